"""Processes that run work units on this machine.

Each worker is a pool of one process, so that a process which dies takes only
its own unfinished fit with it: its pool is built anew and the unit is tried
again; a unit that kills its worker three times is logged as failed.
"""

from __future__ import annotations

import math
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

from anomaly.errors import DataError
from anomaly.tuning.folds import Folds
from anomaly.tuning.log import LogReader, LogWriter, RunFolder
from anomaly.tuning.units import Fit, Record, Unit, can_join, failed_records, join_units, run_unit

# Deaths of its worker after which a unit is given up.
DEATHS = 2
# Work handed to a process at a time, so that handing out stays below a percent or so, and
# as much more for every taker that the one who hands out keeps up with all of them
# (benchmarks/cluster.py).
_BATCH_SECONDS = 0.25
_BATCH_SECONDS_PER_TAKER = 0.008
_BATCH_MOST = 200
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass
class Outcome:
    """What came of a unit: its records, and the part that another process holds."""

    unit: Unit
    records: list[Record]
    busy: Unit | None = None
    seconds: float = 0.0
    host: str = ""


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


class Workers:
    """Hands out units in batches, and decides what comes after a death or a time limit.

    Parameters
    ----------
    data : Folds
    fit_timeout_s : float or None
        Seconds after which a fit is stopped and logged as failed.
    """

    def __init__(self, data: Folds, fit_timeout_s: float | None = None) -> None:
        self.data = data
        self.fit_timeout_s = fit_timeout_s
        self._deaths: Counter[str] = Counter()
        self._seconds_per_fit: float | None = None

    def prepare(self) -> None:
        """Fetch what is finished elsewhere into the log, before it is read."""

    def run(self, units: deque[Unit]) -> Iterator[Outcome]:
        """Run units, in about the order given, and yield what came of each."""
        raise NotImplementedError

    def close(self, kill: bool = False) -> None:
        """Stop the workers, at once or after what they are doing."""
        raise NotImplementedError

    def _write(self, record: Record) -> None:
        """Append a record that no worker process has written."""
        raise NotImplementedError

    def _next(self, units: deque[Unit], n_takers: int) -> Unit:
        """The next unit, or as many single fits as fill a batch."""
        first = units.popleft()
        if first.staged is not None or self._seconds_per_fit is None:
            return first
        seconds = max(_BATCH_SECONDS, _BATCH_SECONDS_PER_TAKER * n_takers)
        seconds = min(seconds, (self.fit_timeout_s or math.inf) / 4)
        most = int(seconds / max(self._seconds_per_fit, 1e-6))
        most = max(1, min(most, _BATCH_MOST, (len(units) + 1) // n_takers))
        batch = [first]
        while len(batch) < most and units and can_join(first, units[0]):
            if self._deaths[units[0].name]:
                break
            batch.append(units.popleft())
        return join_units(batch) if len(batch) > 1 and not self._deaths[first.name] else first

    def _learn_pace(self, unit: Unit, fits: int, seconds: float) -> None:
        if unit.staged is None and fits:
            pace = seconds / fits
            old = self._seconds_per_fit
            self._seconds_per_fit = pace if old is None else 0.7 * old + 0.3 * pace

    def _after_death(self, unit: Unit, units: deque[Unit], why: str = "") -> Iterator[Outcome]:
        """Put back what a dead worker left undone; give up what killed it repeatedly."""
        if unit.staged is None and len(unit.fits) > 1:
            # Which of the fits it was shows when they run one by one.
            self._put_back(unit, units, deaths=1)
            return
        self._deaths[unit.name] += 1
        if self._deaths[unit.name] <= DEATHS:
            units.appendleft(unit)
        elif len(unit.fits) > 1:
            # The largest value may kill its worker where smaller ones do not.
            self._put_back(unit, units, deaths=DEATHS)
        else:
            cause = f" ({why})" if why else ""
            reason = f"the worker process died {DEATHS + 1} times in this fit{cause}"
            yield self._give_up(unit, reason)

    def _after_timeout(self, unit: Unit, units: deque[Unit]) -> Iterator[Outcome]:
        """Give up a fit that was stopped at its limit; try those of a larger unit one by one."""
        if len(unit.fits) > 1:
            self._put_back(unit, units, deaths=0)
        else:
            yield self._give_up(unit, f"time limit of {self.fit_timeout_s:g} s")

    def _put_back(self, unit: Unit, units: deque[Unit], deaths: int) -> None:
        """Put the fits of a unit back one by one, none of them to be joined again."""
        singles = [replace(single, staged=None) for single in unit.singles()]
        for single in singles:
            self._deaths[single.name] = max(deaths, self._deaths[single.name], 1)
        units.extendleft(reversed(singles))

    def _give_up(self, unit: Unit, reason: str) -> Outcome:
        outcome = Outcome(unit, [])
        for fit in unit.fits:
            for record in failed_records(unit, fit, self.data.random_state, reason):
                self._write(record)
                outcome.records.append(record)
        return outcome


class LocalWorkers(Workers):
    """Runs units on this machine, in this process or in several.

    Parameters
    ----------
    data : Folds
    folder : RunFolder or None
    n_jobs : int
        Number of worker processes; 1 works in this process.
    fit_timeout_s : float or None
        With a limit, even one job has a process of its own, which can be stopped.
    """

    def __init__(
        self,
        data: Folds,
        folder: RunFolder | None,
        n_jobs: int,
        fit_timeout_s: float | None = None,
    ) -> None:
        super().__init__(data, fit_timeout_s)
        self.folder = folder
        self.n_jobs = n_jobs
        self._own = UnitRunner(data, folder)
        self._works_here = n_jobs == 1 and fit_timeout_s is None
        self._pools: list[ProcessPoolExecutor | None] = [None] * n_jobs
        self._false_starts = 0

    def run(self, units: deque[Unit]) -> Iterator[Outcome]:
        """Run units, in about the order given, and yield what came of each."""
        yield from self._run_here(units) if self._works_here else self._run_pools(units)

    def close(self, kill: bool = False) -> None:
        """Stop the workers, at once or after what they are doing."""
        for pool in self._pools:
            if pool is not None:
                pool.shutdown(wait=True, kill_workers=kill)
        self._pools = [None] * len(self._pools)
        self._own.close()

    def _write(self, record: Record) -> None:
        if self._own.writer is not None:
            self._own.writer.write(record)

    def _run_here(self, units: deque[Unit]) -> Iterator[Outcome]:
        while units:
            yield self._own.run(units.popleft())

    def _run_pools(self, units: deque[Unit]) -> Iterator[Outcome]:
        running: dict[Future[Any], _Running] = {}
        idle = list(range(self.n_jobs))
        while units or running:
            while idle and len(units) > sum(one.unit is None for one in running.values()):
                self._hand_out(units, idle, running)
            for future in self._finished(running):
                one = running.pop(future)
                idle.append(one.slot)
                yield from self._settle(future, one, units)

    def _hand_out(
        self, units: deque[Unit], idle: list[int], running: dict[Future[Any], _Running]
    ) -> None:
        slot = max(idle, key=lambda slot: self._pools[slot] is not None)
        idle.remove(slot)
        pool, unit = self._pools[slot], None
        try:
            if pool is None:
                # A process has to start before the clock of a fit does.
                pool = self._pools[slot] = self._start_pool()
                future = pool.submit(_be_ready)
            else:
                unit = self._next(units, self.n_jobs)
                future = pool.submit(_run_in_worker, unit)
            running[future] = _Running(slot, unit, time.monotonic())
        except BrokenProcessPool:  # it died idle
            self._pools[slot] = None
            if unit is not None:
                units.appendleft(unit)
            idle.append(slot)

    def _finished(self, running: dict[Future[Any], _Running]) -> list[Future[Any]]:
        """Futures that are done, or whose time is over."""
        limit = self.fit_timeout_s
        if limit is None:
            return list(wait(running, return_when=FIRST_COMPLETED).done)
        begun = [one.begun for one in running.values() if one.unit is not None]
        left = min(begun, default=math.inf) + limit - time.monotonic()
        wait_s = None if left == math.inf else max(left, 0)
        done = wait(running, timeout=wait_s, return_when=FIRST_COMPLETED).done
        over = time.monotonic() - limit
        late = [f for f, one in running.items() if one.unit is not None and one.begun <= over]
        return list(done.union(late))

    def _settle(self, future: Future[Any], one: _Running, units: deque[Unit]) -> Iterator[Outcome]:
        if not future.done():
            pool, self._pools[one.slot] = self._pools[one.slot], None
            if pool is not None:
                pool.shutdown(wait=True, kill_workers=True)
            assert one.unit is not None
            yield from self._after_timeout(one.unit, units)
            return
        try:
            outcome = future.result()
        except BrokenProcessPool:
            self._pools[one.slot] = None
            if one.unit is None:
                self._count_false_start()
            else:
                yield from self._after_death(one.unit, units)
            return
        self._false_starts = 0
        if outcome is not None:
            self._learn_pace(outcome.unit, len(outcome.records), outcome.seconds)
            yield outcome

    def _count_false_start(self) -> None:
        self._false_starts += 1
        if self._false_starts > DEATHS:
            raise DataError("worker processes die before they can begin; is there memory left?")

    def _start_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=1,
            timeout=None,
            initializer=_start_worker,
            initargs=(self.data, self.folder, os.getpid()),
            env=ONE_THREAD,
        )


@dataclass
class _Running:
    """What a process is at: a unit, or its start."""

    slot: int
    unit: Unit | None
    begun: float


# In the worker process --------------------------------------------------------------

_runner: UnitRunner | None = None


def _start_worker(data: Folds, folder: RunFolder | None, parent: int) -> None:
    global _runner
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()
    _runner = UnitRunner(data, folder)


def exit_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone, even by kill -9."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _be_ready() -> None:
    """Nothing: the answer says that the process has started."""


def _run_in_worker(unit: Unit) -> Outcome:
    assert _runner is not None
    return _runner.run(unit)


def interrupt_on_terminate() -> Any:
    """Turn SIGTERM into KeyboardInterrupt; returns the handler that was set."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, stop)
