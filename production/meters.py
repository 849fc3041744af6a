"""How far scoring is: a bar on a terminal, a plain line every minute elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Bar", "Lines", "Meter"]


class Meter:
    """Says nothing."""

    def start(self, what: str, size: int) -> None:
        """So many bytes are to be gone through."""

    def advance(self, size: int, records: int) -> None:
        """So many more bytes and records are done."""

    def stop(self) -> None:
        """It is over, however it ended."""


class Lines(Meter):
    """A plain line now and then, for log files.

    Parameters
    ----------
    tell : callable
        Gets each line.
    every_s : float
        Seconds between lines.

    Examples
    --------
    >>> from production.meters import Lines
    >>> lines = Lines(print, every_s=0)
    >>> lines.start("scoring", size=2_000_000)
    >>> lines.advance(size=1_000_000, records=50)  # doctest: +ELLIPSIS
    scoring: 50 %, 1 of 2 MB, ... records/s, 0:00:00 left
    """

    def __init__(self, tell: Callable[[str], None], every_s: float = 60.0) -> None:
        self.tell = tell
        self.every_s = every_s

    def start(self, what: str, size: int) -> None:
        """Begin to count."""
        self.what, self.size, self.done, self.records = what, max(size, 1), 0, 0
        self.begun = self.said = time.monotonic()

    def advance(self, size: int, records: int) -> None:
        """Count, and say so when it is time."""
        self.done += size
        self.records += records
        if time.monotonic() - self.said >= self.every_s:
            self.said = time.monotonic()
            self.tell(f"{self.what}: {100 * self.done / self.size:.0f} %, {self.pace()}")

    def pace(self) -> str:
        """Bytes, rate and time left."""
        gone = max(time.monotonic() - self.begun, 1e-9)
        left = round(gone * (self.size - self.done) / self.done) if self.done else 0
        clock = f"{left // 3600}:{left % 3600 // 60:02}:{left % 60:02}" if self.done else "?"
        return (
            f"{self.done / 1e6:,.0f} of {self.size / 1e6:,.0f} MB, "
            f"{self.records / gone:,.0f} records/s, {clock} left"
        )


class Bar(Lines):
    """A bar on a terminal."""

    def __init__(self) -> None:
        super().__init__(lambda text: None, every_s=float("inf"))

    def start(self, what: str, size: int) -> None:
        """Show the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().start(what, size)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[pace]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task(what, total=self.size, pace="")
        self.bar.start()

    def advance(self, size: int, records: int) -> None:
        """Move the bar."""
        super().advance(size, records)
        self.bar.update(self.task, completed=self.done, pace=self.pace())

    def stop(self) -> None:
        """Leave the bar as it is."""
        self.bar.stop()
