"""How far a search is: a bar on a terminal, a plain line every minute elsewhere.

A run with a folder also keeps ``progress.json`` there, for other shells and
hosts. It is replaced as a whole every two seconds, and at the end of a search, by
every process that works on the run; a ``when`` of long ago with the state
"running" tells of a process that was killed::

    {
     "format": 1,
     "state": "running",          # or "ended", "stopped" (an error or Ctrl-C)
     "search": "AdaBoostClassifier",
     "done": 120, "total": 900,   # fits of this search, those from the log included
     "resumed": 20,               # those that came from the log
     "best": 0.93,                # best score so far, null before the first
     "fits_per_s": 12.5, "left_s": 62.4,            # null before the first fit
     "hosts": {"node1": {"fits": 100, "fits_per_s": 12.5}},
     "backend": "dask", "place": "Dask scheduler tcp://…, dashboard http://…",
     "host": "laptop", "pid": 4711,                 # the process that writes
     "begun": 1767225600.0, "when": 1767225608.0    # seconds since 1970, UTC
    }

``hosts`` counts the fits that each host has made since ``begun``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any, Protocol

from anomaly.files import write_aside

# Seconds between two states of a run in its folder.
_BEAT_S = 2.0
# Hosts whose rate is shown, the busiest ones.
_HOSTS_SHOWN = 4


class Progress(Protocol):
    """What a search tells while it runs."""

    def start(self, name: str, total: int, done: int) -> None:
        """A search of ``total`` fits begins; ``done`` of them are in the log already."""

    def advance(self, fits: int, total: int, best: float, host: str = "") -> None:
        """So many more fits are done, by this host; ``total`` may have changed."""

    def stop(self) -> None:
        """The search is over, however it ended."""


class Silent:
    """Says nothing."""

    def start(self, name: str, total: int, done: int) -> None:
        """Do nothing."""

    def advance(self, fits: int, total: int, best: float, host: str = "") -> None:
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
        self.hosts: Counter[str] = Counter()
        self.begun = self.said = time.monotonic()

    def advance(self, fits: int, total: int, best: float, host: str = "") -> None:
        """Count, and say so when it is time."""
        self.done, self.total, self.best = self.done + fits, total, best
        self.fresh += fits
        if host:
            self.hosts[host] += fits
        if time.monotonic() - self.said >= self.every_s:
            self.said = time.monotonic()
            print(self.line(), file=self.file or sys.stderr, flush=True)

    def stop(self) -> None:
        """Do nothing: the caller prints the result."""

    def line(self) -> str:
        """The state of the search in one line."""
        left = clock((self.total - self.done) / self.rate) if self.fresh else "?"
        return (
            f"{self.name}: {self.done} of {self.total} fits, {self.rates()}, "
            f"{left} left, best {self.best:.4f}"
        )

    @property
    def rate(self) -> float:
        """Fits per second since the search began here."""
        return self.fresh / self.seconds

    @property
    def seconds(self) -> float:
        """Seconds since the search began here."""
        return max(time.monotonic() - self.begun, 1e-9)

    def rates(self) -> str:
        """Fits per second, and those of each host if there are several."""
        text = f"{self.rate:.1f} fits/s"
        if len(self.hosts) < 2:
            return text
        most = self.hosts.most_common(_HOSTS_SHOWN)
        each = [f"{host} {fits / self.seconds:.1f}" for host, fits in most]
        more = len(self.hosts) - len(most)
        return f"{text} ({', '.join(each)}{f', {more} more' if more else ''})"


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

    def advance(self, fits: int, total: int, best: float, host: str = "") -> None:
        """Move the bar."""
        self.lines.advance(fits, total, best, host)
        self.bar.update(
            self.task,
            total=total,
            completed=self.lines.done,
            rate=self.lines.rates(),
            left=clock((total - self.lines.done) / self.lines.rate) if self.lines.fresh else "?",
            best=f"{best:.4f}",
        )

    def stop(self) -> None:
        """Leave the bar as it is."""
        self.bar.stop()


class Heartbeat:
    """Passes everything on, and keeps ``progress.json`` in the folder of a run.

    Parameters
    ----------
    folder : Path
    reporter : Progress
    backend, place : str
        Name of the back end, and where its fits run.
    """

    def __init__(self, folder: Path, reporter: Progress, backend: str, place: str) -> None:
        self.path = folder / "progress.json"
        self.reporter = reporter
        self.lines = Lines(every_s=math.inf)
        self.place = {"backend": backend, "place": place, "host": socket.gethostname()}

    def start(self, name: str, total: int, done: int) -> None:
        """Begin to count."""
        self.reporter.start(name, total, done)
        self.lines.start(name, total, done)
        self.resumed, self.begun = done, time.time()
        self._write("running")
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)
        self.thread.start()

    def advance(self, fits: int, total: int, best: float, host: str = "") -> None:
        """Count."""
        self.reporter.advance(fits, total, best, host)
        self.lines.advance(fits, total, best, host or self.place["host"])

    def stop(self) -> None:
        """Write how it ended: with all fits done, or before."""
        self.reporter.stop()
        self.stopped.set()
        self.thread.join()
        self._write("ended" if self.lines.done >= self.lines.total else "stopped")

    def _beat(self) -> None:
        while not self.stopped.wait(_BEAT_S):
            self._write("running")

    def _write(self, state: str) -> None:
        lines, seconds = self.lines, self.lines.seconds
        left = (lines.total - lines.done) / lines.rate if lines.fresh else None
        entry = {
            "format": 1,
            "state": state,
            "search": lines.name,
            "done": lines.done,
            "total": lines.total,
            "resumed": self.resumed,
            "best": None if math.isnan(lines.best) else lines.best,
            "fits_per_s": lines.rate if lines.fresh else None,
            "left_s": left,
            "hosts": {
                host: {"fits": fits, "fits_per_s": fits / seconds}
                for host, fits in sorted(lines.hosts.copy().items())
            },
            **self.place,
            "pid": os.getpid(),
            "begun": self.begun,
            "when": time.time(),
        }
        # A state that cannot be written must not end the run.
        with contextlib.suppress(OSError), write_aside(self.path) as file:
            json.dump(entry, file, indent=1)
            file.write("\n")


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
