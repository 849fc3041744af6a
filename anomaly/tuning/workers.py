"""Processes that run work units on this machine.

Each worker is a pool of one process, so that a process which dies takes only
its own unfinished fit with it: its pool is built anew and the unit is tried
again; a unit that kills its worker twice is logged as failed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor
from threadpoolctl import ThreadpoolController

from anomaly.tuning.folds import Folds
from anomaly.tuning.log import LogReader, LogWriter, RunFolder
from anomaly.tuning.units import Fit, Record, Unit, can_join, failed_records, join_units, run_unit

# Deaths of its worker after which a unit is given up.
DEATHS = 2
# Work handed to a process at a time, so that handing out stays below a percent or so.
_BATCH_SECONDS = 0.25
_BATCH_MOST = 200
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass
class Outcome:
    """What came of a unit: its records, and the part that another process holds."""

    unit: Unit
    records: list[Record]
    busy: Unit | None = None
    seconds: float = 0.0


class UnitRunner:
    """Runs units in this process and appends each record to this process's own file.

    Parameters
    ----------
    data : Folds
    folder : RunFolder or None
        None keeps no log.
    """

    def __init__(self, data: Folds, folder: RunFolder | None) -> None:
        self.data = data
        self.folder = folder
        self.writer = None if folder is None else LogWriter(folder)
        self.reader = None if folder is None else LogReader(folder)

    def run(self, unit: Unit) -> Outcome:
        """Run the fits of a unit that are neither done nor held by another process."""
        begun = time.perf_counter()
        outcome = Outcome(unit, [])
        if self.folder is None or self.reader is None or self.writer is None:
            outcome.records += run_unit(self.data, unit)
        else:
            with ExitStack() as claims:
                mine, outcome.busy = _claimed(self.folder, unit, claims)
                for record in self._missing(mine, self.reader):
                    self.writer.write(record)
                    outcome.records.append(record)
        outcome.seconds = time.perf_counter() - begun
        return outcome

    def close(self) -> None:
        """End the log file."""
        if self.writer is not None:
            self.writer.close()

    def _missing(self, mine: Unit | None, reader: LogReader) -> Iterator[Record]:
        """Run what the log lacks; after the claim, so that nobody else can add it."""
        if mine is not None:
            reader.refresh()
            mine = mine.without(reader)
        if mine is not None:
            yield from run_unit(self.data, mine)


def _claimed(folder: RunFolder, unit: Unit, claims: ExitStack) -> tuple[Unit | None, Unit | None]:
    """The part of a unit that was free and is claimed now, and the part that others hold."""
    if unit.staged is not None:
        is_mine = claims.enter_context(folder.claim(unit.name))
        return (unit, None) if is_mine else (None, unit)
    parts: dict[bool, list[Fit]] = {True: [], False: []}
    for fit in unit.fits:
        parts[claims.enter_context(folder.claim(fit.name))].append(fit)
    mine, held = (replace(unit, fits=tuple(parts[i])) if parts[i] else None for i in (True, False))
    return mine, held


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold numerical libraries to one thread: results do not depend on the machine."""
    with ThreadpoolController().limit(limits=1):
        yield


class LocalWorkers:
    """Runs units on this machine, in this process or in several.

    Parameters
    ----------
    data : Folds
    folder : RunFolder or None
    n_jobs : int
        Number of worker processes; 1 works in this process.
    """

    def __init__(self, data: Folds, folder: RunFolder | None, n_jobs: int) -> None:
        self.data = data
        self.folder = folder
        self.n_jobs = n_jobs
        self._own = UnitRunner(data, folder)
        self._pools: list[ProcessPoolExecutor | None] = [None] * (n_jobs if n_jobs > 1 else 0)
        self._deaths: Counter[str] = Counter()
        self._seconds_per_fit: float | None = None

    def run(self, units: deque[Unit]) -> Iterator[Outcome]:
        """Run units, in about the order given, and yield what came of each."""
        yield from self._run_here(units) if self.n_jobs == 1 else self._run_pools(units)

    def close(self, kill: bool = False) -> None:
        """Stop the workers, at once or after what they are doing."""
        for pool in self._pools:
            if pool is not None:
                pool.shutdown(wait=True, kill_workers=kill)
        self._pools = [None] * len(self._pools)
        self._own.close()

    def _run_here(self, units: deque[Unit]) -> Iterator[Outcome]:
        while units:
            yield self._own.run(units.popleft())

    def _run_pools(self, units: deque[Unit]) -> Iterator[Outcome]:
        running: dict[Future[Outcome], tuple[int, Unit]] = {}
        idle = list(range(self.n_jobs))
        while units or running:
            while units and idle:
                slot, unit = idle.pop(), self._next(units)
                try:
                    running[self._pool(slot).submit(_run_in_worker, unit)] = slot, unit
                except BrokenProcessPool:  # it died idle
                    self._pools[slot] = None
                    units.appendleft(unit)
                    idle.append(slot)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, unit = running.pop(future)
                idle.append(slot)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    self._pools[slot] = None
                    yield from self._after_death(unit, units)
                else:
                    self._learn_pace(outcome)
                    yield outcome

    def _pool(self, slot: int) -> ProcessPoolExecutor:
        pool = self._pools[slot]
        if pool is None:
            pool = self._pools[slot] = ProcessPoolExecutor(
                max_workers=1,
                timeout=None,
                initializer=_start_worker,
                initargs=(self.data, self.folder, os.getpid()),
                env=_ONE_THREAD,
            )
        return pool

    def _next(self, units: deque[Unit]) -> Unit:
        """The next unit, or as many single fits as fill a batch."""
        first = units.popleft()
        if first.staged is not None or self._seconds_per_fit is None:
            return first
        most = int(_BATCH_SECONDS / max(self._seconds_per_fit, 1e-6))
        most = max(1, min(most, _BATCH_MOST, (len(units) + 1) // self.n_jobs))
        batch = [first]
        while len(batch) < most and units and can_join(first, units[0]):
            if self._deaths[units[0].name]:
                break
            batch.append(units.popleft())
        return join_units(batch) if len(batch) > 1 and not self._deaths[first.name] else first

    def _learn_pace(self, outcome: Outcome) -> None:
        if outcome.unit.staged is None and outcome.records:
            pace = outcome.seconds / len(outcome.records)
            old = self._seconds_per_fit
            self._seconds_per_fit = pace if old is None else 0.7 * old + 0.3 * pace

    def _after_death(self, unit: Unit, units: deque[Unit]) -> Iterator[Outcome]:
        """Put back what a dead worker left undone; give up what killed it repeatedly."""
        if unit.staged is None and len(unit.fits) > 1:
            # Which of the fits it was shows when they run one by one.
            singles = unit.singles()
            self._deaths.update(single.name for single in singles)
            units.extendleft(reversed(singles))
            return
        self._deaths[unit.name] += 1
        if self._deaths[unit.name] <= DEATHS:
            units.appendleft(unit)
            return
        records = [record for fit in unit.fits for record in self._give_up(unit, fit)]
        yield Outcome(unit, records)

    def _give_up(self, unit: Unit, fit: Fit) -> Iterator[Record]:
        reason = f"the worker process died {DEATHS + 1} times in this fit"
        for record in failed_records(unit, fit, self.data.random_state, reason):
            if self._own.writer is not None:
                self._own.writer.write(record)
            yield record


# In the worker process --------------------------------------------------------------

_runner: UnitRunner | None = None


def _start_worker(data: Folds, folder: RunFolder | None, parent: int) -> None:
    global _runner
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    _runner = UnitRunner(data, folder)


def _exit_with(parent: int) -> None:
    """End this process when the one that started it is gone, even by kill -9."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run_in_worker(unit: Unit) -> Outcome:
    assert _runner is not None
    return _runner.run(unit)


def interrupt_on_terminate() -> Any:
    """Turn SIGTERM into KeyboardInterrupt; returns the handler that was set."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, stop)
