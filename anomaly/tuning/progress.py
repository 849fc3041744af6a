"""How far a search is: a bar on a terminal, a plain line every minute elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import IO, Any, Protocol


class Progress(Protocol):
    """What a search tells while it runs."""

    def start(self, name: str, total: int, done: int) -> None:
        """A search of ``total`` fits begins; ``done`` of them are in the log already."""

    def advance(self, fits: int, total: int, best: float) -> None:
        """So many more fits are done; ``total`` may have changed."""

    def stop(self) -> None:
        """The search is over, however it ended."""


class Silent:
    """Says nothing."""

    def start(self, name: str, total: int, done: int) -> None:
        """Do nothing."""

    def advance(self, fits: int, total: int, best: float) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


class Lines:
    """One plain line now and then, for files and service logs.

    Parameters
    ----------
    file : file, default=stderr
    every_s : float
        Seconds between lines.

    Examples
    --------
    >>> import sys
    >>> from anomaly.tuning.progress import Lines
    >>> lines = Lines(sys.stdout, every_s=0)
    >>> lines.start("AdaBoost", total=10, done=4)
    >>> lines.advance(fits=6, total=10, best=0.9375)  # doctest: +ELLIPSIS
    AdaBoost: 10 of 10 fits, ... fits/s, 0:00:00 left, best 0.9375
    """

    def __init__(self, file: IO[str] | None = None, every_s: float = 60.0) -> None:
        self.file = file
        self.every_s = every_s

    def start(self, name: str, total: int, done: int) -> None:
        """Begin to count."""
        self.name, self.done, self.total, self.best = name, done, total, math.nan
        self.fresh = 0
        self.begun = self.said = time.monotonic()

    def advance(self, fits: int, total: int, best: float) -> None:
        """Count, and say so when it is time."""
        self.done, self.total, self.best = self.done + fits, total, best
        self.fresh += fits
        if time.monotonic() - self.said >= self.every_s:
            self.said = time.monotonic()
            print(self.line(), file=self.file or sys.stderr, flush=True)

    def stop(self) -> None:
        """Do nothing: the caller prints the result."""

    def line(self) -> str:
        """The state of the search in one line."""
        rate = self.fresh / max(time.monotonic() - self.begun, 1e-9)
        left = clock((self.total - self.done) / rate) if rate else "?"
        return (
            f"{self.name}: {self.done} of {self.total} fits, {rate:.1f} fits/s, "
            f"{left} left, best {self.best:.4f}"
        )


class Bar:
    """A bar with rate, time left and best score."""

    def start(self, name: str, total: int, done: int) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self.lines = Lines(every_s=math.inf)
        self.lines.start(name, total, done)
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}  {task.fields[left]} left  best {task.fields[best]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(
            name, total=total, completed=done, rate="", left="?", best="-"
        )
        self.bar.start()

    def advance(self, fits: int, total: int, best: float) -> None:
        """Move the bar."""
        self.lines.advance(fits, total, best)
        rate = self.lines.fresh / max(time.monotonic() - self.lines.begun, 1e-9)
        self.bar.update(
            self.task,
            total=total,
            completed=self.lines.done,
            rate=f"{rate:.1f} fits/s",
            left=clock((total - self.lines.done) / rate) if rate else "?",
            best=f"{best:.4f}",
        )

    def stop(self) -> None:
        """Leave the bar as it is."""
        self.bar.stop()


def choose(progress: Any) -> Progress:
    """Reporter for an option: None (a bar on a terminal only), True, False or a reporter."""
    if progress is None or progress is True:
        if sys.stderr.isatty():
            return Bar()
        return Lines() if progress else Silent()
    return Silent() if progress is False else progress


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    Examples
    --------
    >>> from anomaly.tuning.progress import clock
    >>> clock(3725.4)
    '1:02:05'
    """
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
