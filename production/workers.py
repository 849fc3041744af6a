"""Who scores the parts: this process, processes of this machine, or a Dask cluster.

All of them run jobs with a bounded number in flight, and give each job's result or the
error that it ended with. A job whose worker dies is done again; one that has killed
three workers ends with a `WorkerDiedError`, and the others go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from joblib import cpu_count
from joblib.externals.loky import ProcessPoolExecutor

from anomaly.errors import AnomalyError, ParameterError, require
from anomaly.tuning.backend import check_address

__all__ = ["Cluster", "Here", "Processes", "WorkerDiedError", "Workers"]

#: Deaths of its worker after which a job is given up.
DEATHS = 3
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_GONE = "the Dask scheduler is gone; run the same command again to go on"

Task = Callable[..., Any]
Ended = tuple[Any, Any]  # a job, and its result or the exception that it ended with


class WorkerDiedError(AnomalyError, RuntimeError):
    """A job killed the processes that worked on it."""

    def __init__(self) -> None:
        super().__init__(f"killed its worker {DEATHS} times (out of memory?); given up")


class Workers(Protocol):
    """Runs ``task(model, settings, job)`` for many jobs."""

    def run(self, task: Task, settings: Any, jobs: Iterable[Any]) -> Iterator[Ended]:
        """Run jobs, taken from the iterable as workers get free; yield them as they end."""

    def close(self, kill: bool = False) -> None:
        """Let the workers go, at once or after what they are doing."""


class Here:
    """Runs jobs in this process, one after another."""

    def __init__(self, model: bytes) -> None:
        self.model = model

    def run(self, task: Task, settings: Any, jobs: Iterable[Any]) -> Iterator[Ended]:
        """Run jobs one after another."""
        for job in jobs:
            try:
                ended = task(self.model, settings, job)
            except Exception as error:
                ended = error
            yield job, ended

    def close(self, kill: bool = False) -> None:
        """Do nothing."""


class Processes:
    """Runs jobs in processes of this machine, each of which gets the model once.

    Every process has a pool of its own, so that one that dies takes nothing with it
    but its own job.

    Parameters
    ----------
    model : bytes
    n_jobs : int
        -1 for one process for each core.
    """

    def __init__(self, model: bytes, n_jobs: int = -1) -> None:
        self.model = model
        self.n_jobs = cpu_count() if n_jobs == -1 else n_jobs
        self._pools: list[ProcessPoolExecutor | None] = [None] * self.n_jobs
        self._deaths: Counter[Any] = Counter()

    def run(self, task: Task, settings: Any, jobs: Iterable[Any]) -> Iterator[Ended]:
        """Run jobs, one at a time in each process."""
        coming, again = iter(jobs), deque[Any]()
        running: dict[Future[Any], tuple[int, Any]] = {}
        idle = list(range(self.n_jobs))
        while True:
            while idle:
                job = again.popleft() if again else next(coming, None)
                if job is None:
                    break
                slot = idle.pop()
                running[self._submit(slot, task, settings, job)] = slot, job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, job = running.pop(future)
                idle.append(slot)
                ended = _ended(future)
                if isinstance(ended, BrokenProcessPool):
                    self._pools[slot] = None
                    self._deaths[job] += 1
                    if self._deaths[job] < DEATHS:
                        again.append(job)
                        continue
                    ended = WorkerDiedError()
                yield job, ended

    def close(self, kill: bool = False) -> None:
        """Stop the processes."""
        for pool in self._pools:
            if pool is not None:
                pool.shutdown(wait=True, kill_workers=kill)
        self._pools = [None] * self.n_jobs

    def _submit(self, slot: int, task: Task, settings: Any, job: Any) -> Future[Any]:
        try:
            return self._pool(slot).submit(_run_task, task, settings, job)
        except BrokenProcessPool:  # it died idle
            self._pools[slot] = None
            return self._pool(slot).submit(_run_task, task, settings, job)

    def _pool(self, slot: int) -> ProcessPoolExecutor:
        pool = self._pools[slot]
        if pool is None:
            pool = self._pools[slot] = ProcessPoolExecutor(
                max_workers=1,
                timeout=None,
                initializer=_start_process,
                initargs=(self.model, os.getpid()),
                env=_ONE_THREAD,
            )
        return pool


def _ended(future: Any) -> Any:
    try:
        return future.result()
    except Exception as error:
        return error


# In the process

_model = b""


def _start_process(model: bytes, parent: int) -> None:
    global _model
    _model = model
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    """End this process when the one that started it is gone, even by kill -9."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _run_task(task: Task, settings: Any, job: Any) -> Any:
    return task(_model, settings, job)


# ---- Dask


class Cluster:
    """Runs jobs on a Dask cluster: an existing one, or one of this machine.

    The bytes of the model file travel once to the scheduler, as the argument of a task
    of its own, so that workers which join later, or take over, get them too. Whoever
    may speak to the scheduler may run code on its workers: that is Dask's contract.

    Parameters
    ----------
    model : bytes
    scheduler : str, optional
        Address, such as ``tcp://host:8786``.
    n_workers : int, optional
        Processes of a cluster that is started here, and stopped by `close`.
    """

    def __init__(
        self, model: bytes, scheduler: str | None = None, n_workers: int | None = None
    ) -> None:
        distributed = require("dask.distributed", extra="dask")
        dask = require("dask", extra="dask")
        self._cluster: Any = None
        self._distributed = distributed
        if scheduler is not None:
            check_address(scheduler)
        if scheduler is None:
            with dask.config.set({"distributed.scheduler.allowed-failures": DEATHS - 1}):
                self._cluster = distributed.LocalCluster(
                    n_workers=cpu_count() if n_workers is None else n_workers,
                    threads_per_worker=1,
                    dashboard_address="127.0.0.1:0",
                    silence_logs="CRITICAL",
                )
        try:
            self._client = distributed.Client(
                self._cluster if scheduler is None else scheduler,
                timeout="10s",
                set_as_default=False,
            )
        except (OSError, ValueError) as error:
            raise ParameterError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sending large graph")
            self._model = self._client.submit(_as_it_is, model, pure=False)

    @property
    def dashboard(self) -> str | None:
        """Address of the cluster's dashboard, if it has one."""
        services = self._client.scheduler_info()["services"]
        return self._client.dashboard_link if "dashboard" in services else None

    @property
    def n_threads(self) -> int:
        """Threads of all the workers there are now."""
        return sum(self._client.nthreads().values())

    def run(self, task: Task, settings: Any, jobs: Iterable[Any]) -> Iterator[Ended]:
        """Run jobs, two for each thread of the cluster at a time.

        The scheduler holds a death against every job that the worker had, so a job is
        given up only after it has been tried alone.
        """
        suspects: list[Any] = []
        for job, ended in self._run(task, settings, jobs, None):
            if isinstance(ended, self._killed):
                suspects.append(job)
            else:
                yield job, ended
        for job, ended in self._run(task, settings, suspects, 1):
            yield job, WorkerDiedError() if isinstance(ended, self._killed) else ended

    def close(self, kill: bool = False) -> None:
        """Leave the cluster, and stop it if it was started here."""
        # What was to be done is done: a worker that is slow to end is no error.
        with contextlib.suppress(TimeoutError):
            self._client.close()
        if self._cluster is not None:
            with contextlib.suppress(TimeoutError):
                self._cluster.close()

    @property
    def _killed(self) -> type[Exception]:
        killed: type[Exception] = self._distributed.KilledWorker
        return killed

    def _run(
        self, task: Task, settings: Any, jobs: Iterable[Any], most: int | None
    ) -> Iterator[Ended]:
        coming = iter(jobs)
        running: dict[Any, Any] = {}
        while True:
            try:
                bound = most or max(1, 2 * self.n_threads)
            except OSError as error:
                raise ParameterError(_GONE) from error
            while len(running) < bound and (job := next(coming, None)) is not None:
                future = self._client.submit(task, self._model, settings, job, pure=False)
                running[future] = job
            if not running:
                return
            for future in self._done(list(running)):
                yield running.pop(future), _ended(future)

    def _done(self, futures: list[Any]) -> set[Any]:
        """Those that have ended after two seconds at most: the cluster may have grown."""
        try:
            with self._client.as_current():
                done: set[Any] = self._distributed.wait(
                    futures, timeout=2, return_when="FIRST_COMPLETED"
                ).done
        except TimeoutError:
            return set()
        except self._distributed.CancelledError as error:  # not an Exception
            raise ParameterError(_GONE) from error
        if any(future.cancelled() for future in done):
            raise ParameterError(_GONE)
        return done


def _as_it_is(model: bytes) -> bytes:
    return model
