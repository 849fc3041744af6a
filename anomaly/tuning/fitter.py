"""Fits in a process of their own, below a Dask worker.

A fit may crash, run out of memory or run too long without harm to the worker,
and numerical libraries and warnings, which are settings of a whole process, are
safe when a worker has several threads. A child is started by its command, not
by `multiprocessing`, because the workers of Dask are daemons, which may have no
children of that kind.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from anomaly.tuning.log import LogWriter, RunFolder, format_line
from anomaly.tuning.units import Unit, run_unit
from anomaly.tuning.workers import ONE_THREAD, exit_with_parent, one_thread

# A child without work ends after this long, if nobody has ended it.
_IDLE_S = 300.0
# A child whose pipe is closed ends within this long.
_END_S = 5.0


@dataclass
class Answer:
    """What became of a unit.

    Attributes
    ----------
    lines : list of bytes
        Lines of the log, of the fits that were finished.
    end : {"done", "died", "late", "failed", "stranger"}
        Whether all fits are finished; the process died in the first unfinished
        one; that one was stopped at its time limit; the unit could not be read;
        or the worker has not said its versions yet.
    why : str
    seconds : float
    """

    lines: list[bytes] = field(default_factory=list)
    end: str = "done"
    why: str = ""
    seconds: float = 0.0


class FitProcess:
    """A child process that runs units, one at a time.

    Parameters
    ----------
    payload : bytes
        Pickled `Folds`.
    skew : str
        Differences of library versions to note in every line; usually empty.

    Attributes
    ----------
    path : str
        Where it looks for modules, those of this process at its start.
    """

    def __init__(self, payload: bytes, skew: str) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        code = "from anomaly.tuning.fitter import main; main()"
        self.path = module_path()
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | ONE_THREAD | {"PYTHONPATH": self.path},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._start: tuple[str, bytes] | None = (skew, payload)

    def run(self, unit: bytes, store: Path | None, limit_s: float | None) -> Answer:
        """Run a pickled unit; no fit of it may take longer than the limit.

        Lines also go to a file in the folder ``store``, if one is given.
        """
        answer, begun = Answer(), time.perf_counter()
        try:
            if self._start is not None:
                self._get_ready(answer, *self._start)
            if answer.end == "done":
                begun = time.perf_counter()
                self.pipe.send(store)
                self.pipe.send_bytes(unit)
                self._collect(answer, limit_s)
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)  # or its end would be the kill below
            self.close()
            answer.end, answer.why = "died", self._cause()
        answer.seconds = time.perf_counter() - begun
        return answer

    def _get_ready(self, answer: Answer, skew: str, payload: bytes) -> None:
        """Wait for the start of the process, which is no part of the time of a fit."""
        self.pipe.send(skew)
        self.pipe.send_bytes(payload)
        kind, text = self.pipe.recv()
        self._start = None
        if kind != "ready":
            answer.end, answer.why = "failed", text
            self.close()

    def _collect(self, answer: Answer, limit_s: float | None) -> None:
        while limit_s is None or self.pipe.poll(limit_s):
            kind, text = self.pipe.recv()
            if kind != "line":
                answer.end, answer.why = kind, text
                return
            answer.lines.append(text)
        answer.end = "late"
        self.close()

    def _cause(self) -> str:
        code = self._process.returncode
        if code is None or code >= 0:
            return f"exit code {code}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
        return f"signal {-code}"

    @property
    def is_alive(self) -> bool:
        """Whether it can take another unit."""
        return not self.pipe.closed and self._process.poll() is None

    def kill(self) -> None:
        """End the process at once; a thread that waits for its answer learns of a death."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process, unless it is dead, and let go of its pipe."""
        self._process.kill()
        self._process.wait()
        self.pipe.close()


def module_path() -> str:
    """Where this process looks for modules, as the variable PYTHONPATH of another."""
    return os.pathsep.join(p or os.getcwd() for p in sys.path)


# In the child ------------------------------------------------------------------------


def main() -> None:
    """Serve the parent until it closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=exit_with_parent, args=(os.getppid(),), daemon=True).start()
    _die_first()
    gone = contextlib.suppress(EOFError, BrokenPipeError)
    with Connection(int(sys.argv[1])) as pipe, one_thread(), gone:
        _serve(pipe)


def _serve(pipe: Connection) -> None:
    skew, payload = pipe.recv(), pipe.recv_bytes()
    try:
        data = pickle.loads(payload)
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
        return
    pipe.send(("ready", ""))
    writers: dict[Path | None, LogWriter | None] = {None: None}
    while pipe.poll(_IDLE_S):
        try:
            store = pipe.recv()
            unit = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        except Exception as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}"))
            continue
        if store not in writers:
            writers[store] = LogWriter(RunFolder(store))
        _run(pipe, data, unit, writers[store], skew)
        pipe.send(("done", ""))


def _run(pipe: Connection, data: Any, unit: Unit, writer: LogWriter | None, skew: str) -> None:
    """Run a unit; each line is in the file before the parent has it."""
    for record in run_unit(data, unit):
        if skew:
            record.scores["skew"] = skew
        line = format_line(record).encode()
        if writer is not None:
            writer.write_line(line)
        pipe.send(("line", line))


def _die_first() -> None:
    """Be what Linux kills when memory runs out, rather than the worker."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
