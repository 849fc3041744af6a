"""The Dask back end: units of a search on the workers of a cluster.

Dask carries the work: it knows which workers live, brings tasks and data to
them, and answers back. This module decides what a search needs beyond that:
which hosts may work (library versions), what is done again after a loss, and
that every line is in the log of the run before it counts.

Units go to a worker by its address, a few at a time, so that it is known at any
moment who holds what. The data go out once to each worker, when it is taken in.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import logging
import queue
import re
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from anomaly.errors import AnomalyError, DataError, ParameterError, require
from anomaly.tuning import remote
from anomaly.tuning.backend import Backend, check_address
from anomaly.tuning.fitter import Answer
from anomaly.tuning.folds import Folds
from anomaly.tuning.literals import entries_from_literal
from anomaly.tuning.log import LogReader, LogWriter, RunFolder, key_of
from anomaly.tuning.remote import Spec, Store
from anomaly.tuning.shipping import code_trees, modules_of, ship
from anomaly.tuning.units import Record, Unit
from anomaly.tuning.workers import Outcome, Workers

# How often joins and leaves are looked at, and how long known workers may take to answer
# before a search begins without them.
_LOOK_S = 0.5
_ANSWER_S = 15.0
_END_S = 5.0
# A unit that is out for longer than this is given to an idle worker as well.
_STRAGGLES_S = 3.0
# Losses of whole workers after which a unit is given up: they are seldom its fault.
LOSSES = 5

_log = logging.getLogger(__name__)


class ClusterLostError(AnomalyError, ConnectionError):
    """The scheduler of the cluster does not answer any more."""


@contextmanager
def open_cluster(backend: Backend) -> Iterator[Cluster]:
    """Connect to a cluster, or start one and stop it after.

    Raises
    ------
    MissingExtraError
        Without Dask.
    ParameterError
        If no scheduler answers at the address.
    """
    distributed = require("distributed", "dask")
    with ExitStack() as stack:
        if backend.hosts is not None:
            hosts = importlib.import_module("anomaly.tuning.hosts")
            address = stack.enter_context(hosts.start_hosts(backend.hosts))
        elif backend.workers is not None:
            # The fits run below the workers, whose own memory says nothing then.
            address = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=backend.workers,
                    threads_per_worker=1,
                    memory_limit=0,
                    dashboard_address="127.0.0.1:0",
                    # It samples every 10 ms, and would see nothing but waiting.
                    env={"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"},
                )
            ).scheduler_address
        else:
            address = str(backend.scheduler)
            check_address(address)
        try:
            client = stack.enter_context(distributed.Client(address, set_as_default=False))
        except (OSError, ValueError) as error:
            raise ParameterError(f"no Dask scheduler answers at {address}: {error}") from None
        cluster = Cluster(client, address, backend)
        cluster.ship()
        try:
            yield cluster
        except BaseException:
            cluster.end(finished=False)
            raise
        cluster.end(finished=True)


class Cluster:
    """An open cluster: makes the workers of one search after another.

    Attributes
    ----------
    client : distributed.Client
    address : str
        Of the scheduler.
    backend : Backend
    session : str
        Mark of this connection, by which workers know their child processes.
    stores : set of Store
        Folders that workers keep for the runs of this session.
    modules : set of str
        Modules of classes that were looked at.
    shipped : set of str
        Packages that other hosts have been given.
    """

    def __init__(self, client: Any, address: str, backend: Backend) -> None:
        self.client = client
        self.address = address
        self.backend = backend
        self.session = secrets.token_hex(8)
        self.stores: set[Store] = set()
        self.modules: set[str] = set()
        self.shipped: set[str] = set()

    def workers(self, data: Folds, folder: RunFolder | None, versions: dict[str, str]) -> Workers:
        """Workers for the units of one search."""
        return DaskWorkers(self, data, folder, versions)

    def ship(self, objects: Iterable[Any] = ()) -> None:
        """Give other hosts the code of this process and of the objects' classes."""
        if self.backend.workers is not None:
            return  # this host
        modules = modules_of(objects)
        if self.shipped and modules <= self.modules:
            return  # looking for what they import reads every file of a package
        self.modules |= modules
        packages = set(code_trees(objects))
        if not packages <= self.shipped:
            self.shipped |= packages
            ship(self.client, objects)

    def describe(self) -> str:
        """Where fits run, and the address of Dask's dashboard."""
        return f"Dask scheduler {self.address}, dashboard {self.client.dashboard_link}"

    def end(self, finished: bool) -> None:
        """Stop what workers still do for this session; forget lines that are in the log."""
        stores = list(self.stores) if finished else []
        call = threading.Thread(
            target=self._end, args=(remote.end_session, self.session, stores), daemon=True
        )
        call.start()
        call.join(_END_S)  # a worker that stands still would never answer

    def _end(self, *call: Any) -> None:
        # A cluster that is gone, or a host without this package, has nothing to end.
        with contextlib.suppress(Exception):
            if self.client.status == "running":
                self.client.run(*call, on_error="ignore")


@dataclass(eq=False)
class _Worker:
    """A worker of the cluster whose versions were found right."""

    address: str
    host: str
    mark: str
    threads: int
    spec: Spec
    flights: set[_Flight] = field(default_factory=set)


@dataclass(eq=False)
class _Job:
    """A unit, and where it is under way; more than once near the end."""

    unit: Unit
    flights: set[_Flight] = field(default_factory=set)
    is_done: bool = False


@dataclass(eq=False)
class _Flight:
    """One task of a unit on a worker."""

    job: _Job
    worker: _Worker
    begun: float
    future: Any = None
    is_over: bool = False


class DaskWorkers(Workers):
    """Runs units on the workers of a Dask cluster.

    Parameters
    ----------
    cluster : Cluster
    data : Folds
    folder : RunFolder or None
        The run on this side; each line is appended to it as it comes.
    versions : dict of str to str
        Library versions that every host must have.
    """

    def __init__(
        self, cluster: Cluster, data: Folds, folder: RunFolder | None, versions: dict[str, str]
    ) -> None:
        super().__init__(data, cluster.backend.fit_timeout_s)
        self.cluster = cluster
        self.client = cluster.client
        self.folder = folder
        self._versions = versions | remote.versions_of(versions)
        self._payload = _pickled(data)
        self._writer = None if folder is None else LogWriter(folder)
        self._keys = set() if folder is None else _keys_of(folder)
        self._store = self._make_store()
        self._digest = hashlib.sha256(self._payload).hexdigest()[:16]
        self._wanted: set[str] = set()
        self._held: dict[str, Any] = {}  # address of a worker, to the data it was sent
        self._workers: dict[str, _Worker] = {}
        self._asked: dict[str, int] = {}  # workers that have not said their versions, to threads
        self._refused: dict[str, str] = {}
        self._collecting: set[str] = set()
        self._arrived: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], Any]]
        self._arrived = queue.SimpleQueue()
        self._jobs: set[_Job] = set()
        self._units: deque[Unit] = deque()
        self._losses: Counter[str] = Counter()
        self._lost: list[Outcome] = []  # given up, and not yet told
        self._look_at = 0.0
        self._is_waiting = False
        self._had_workers = False
        self._is_skewed = False  # some host was refused for its versions

    # What the engine calls ---------------------------------------------------------------

    def prepare(self) -> None:
        """Ask the workers for their versions, and for lines that the log lacks."""
        end = time.monotonic() + _ANSWER_S
        self._look()
        while self._asked or self._collecting:
            for _ in self._receive():
                pass  # the engine reads these lines from the log
            if time.monotonic() > end:
                break
        self._check_refused()

    def run(self, units: deque[Unit]) -> Iterator[Outcome]:
        """Run units on whatever workers there are, and yield what came of each."""
        fits = [(u.classifier, u.oversample, [fit.params for fit in u.fits]) for u in units]
        self.cluster.ship([self.data.prepare, *fits])
        self._units = units
        self._wanted = {k for unit in units for fit in unit.fits for k in fit.keys.values()}
        while units or self._jobs or self._lost:
            self._look()
            self._check_refused()
            self._hand_out()
            yield from self._receive()

    def close(self, kill: bool = False) -> None:
        """Let go of what is still under way, and end the log."""
        for worker in self._workers.values():
            for flight in list(worker.flights):
                self._let_go(flight)
        if self._writer is not None:
            self._writer.close()
        self._held = {}

    def _write(self, record: Record) -> None:
        self._keys.add(record.key)
        if self._writer is not None:
            self._writer.write(record)

    # Workers come and go -------------------------------------------------------------------

    def _make_store(self) -> Store | None:
        if self.folder is None:
            return None
        mark = self.folder.identity()
        if not re.fullmatch("[0-9a-f]{16}", mark):
            raise DataError(f"{self.folder.path / 'run.json'} is damaged: id {mark!r}")
        store = Store(self.cluster.backend.worker_folder, f"{self.folder.name[:60]}-{mark}")
        self.cluster.stores.add(store)
        return store

    def _look(self) -> None:
        """See which workers have come and gone."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        threads = self._present()
        for address in [a for a in self._workers if a not in threads]:
            self._lose(self._workers.pop(address))
        known = self._workers.keys() | self._asked.keys() | self._refused.keys()
        for address in threads.keys() - known:
            self._asked[address] = threads[address]
            asked = self._submit(remote.describe_host, list(self._versions), to=address)
            self._await(asked, self._welcome, address)
        for address in [a for a in self._asked if a not in threads]:
            del self._asked[address]
        if not threads and not self._is_waiting:
            at = self.cluster.address
            if self.client.status == "running":
                _log.warning("no workers at %s; waiting for some (dask worker %s)", at, at)
            else:
                _log.warning("the scheduler at %s does not answer; trying again", at)
        self._is_waiting = not threads

    def _present(self) -> dict[str, int]:
        """Workers of the cluster and their threads; none while the scheduler is away."""
        if self.client.status == "running":
            try:
                return dict(self.client.nthreads())
            except (OSError, CancelledError):
                return {}
        if self.client.status != "connecting":
            raise ClusterLostError(
                f"the Dask scheduler at {self.cluster.address} is gone; finished fits are in the "
                "log, or kept by the workers for when the run continues"
            )
        time.sleep(_LOOK_S)
        return {}

    def _welcome(self, address: str, answer: Any) -> Iterator[Outcome]:
        """Take a worker in that has said its versions, or refuse it."""
        threads = self._asked.pop(address, None)
        if threads is None or isinstance(answer, CancelledError):
            return
        if isinstance(answer, BaseException):
            self._refuse(address, f"{address}: {type(answer).__name__}: {answer}")
            return
        found = remote.differences(self._versions, answer.versions)
        if found and not self.cluster.backend.allow_version_skew:
            self._is_skewed = True
            self._refuse(address, f"{answer.name} has {found}")
            return
        if found and self.folder is not None:
            skew = self.folder.plan().get("version_skew", {})
            self.folder.note(version_skew=skew | {answer.name: found})
        spec = Spec(self.cluster.session, self._digest, found)
        self._workers[address] = _Worker(address, answer.name, answer.mark, threads, spec)
        self._had_workers = True
        self._collect(self._workers[address])
        yield from ()

    def _refuse(self, address: str, reason: str) -> None:
        if reason not in self._refused.values():
            _log.warning("host refused: %s", reason)
        self._refused[address] = reason

    def _check_refused(self) -> None:
        """Give up where all hosts are refused and none has ever been taken in."""
        if self._refused and not (self._workers or self._asked or self._had_workers):
            reasons = sorted(set(self._refused.values()))
            if self._is_skewed:
                reasons.append(
                    "install the same versions everywhere, or allow the skew "
                    "(--allow-version-skew)"
                )
            raise ParameterError(f"every host was refused: {'; '.join(reasons)}")

    def _collect(self, worker: _Worker) -> None:
        """Fetch lines that this host has kept and the log may lack."""
        if self._store is None or worker.host in self._collecting:
            return
        self._collecting.add(worker.host)
        asked = self._submit(remote.lines_here, self._store, to=worker.address)
        self._await(asked, self._take_kept, worker.host)

    def _take_kept(self, host: str, answer: Any) -> Iterator[Outcome]:
        self._collecting.discard(host)
        if not isinstance(answer, BaseException):
            records = [r for r in self._take_lines(answer) if r.key in self._wanted]
            self._forget_done()
            if records:
                yield Outcome(Unit(None, -1, ()), records, host=host)

    def _forget_done(self) -> None:
        """Take out of the queue what has turned out to be done."""
        left = [unit.without(self._keys) for unit in self._units]
        self._units.clear()
        self._units.extend(unit for unit in left if unit is not None)

    def _lose(self, worker: _Worker, why: str = "its worker was lost") -> None:
        """Put back what a lost worker held; what it was at may be the cause."""
        for place, flight in enumerate(sorted(worker.flights, key=lambda f: f.begun)):
            self._let_go(flight)
            job = flight.job
            if not job.is_done and not job.flights:
                self._jobs.discard(job)
                if place < worker.threads:
                    self._after_loss(job.unit, why)
                else:
                    self._put_back_left(job.unit)

    def _put_back_left(self, unit: Unit) -> None:
        left = unit.without(self._keys)
        if left is not None:
            self._units.appendleft(left)

    def _after_loss(self, unit: Unit, why: str) -> None:
        """Put back a unit that its worker took along; give it up after many losses."""
        self._losses[unit.name] += 1
        if self._losses[unit.name] <= LOSSES:
            self._put_back_left(unit)
        elif len(unit.fits) > 1:
            self._put_back(unit, self._units, deaths=0)
        else:
            self._lost.append(self._give_up(unit, f"{why} {LOSSES + 1} times in this fit"))

    # Units go out and come back ---------------------------------------------------------------

    def _hand_out(self) -> None:
        if not self._workers or not self._has_data_out():
            return
        threads = sum(worker.threads for worker in self._workers.values())
        for depth in (1, 2):
            for worker in self._workers.values():
                while (
                    len(self._units) > (depth - 1) * threads
                    and len(worker.flights) < depth * worker.threads
                ):
                    self._send(_Job(self._next(self._units, threads)), worker)
        if not self._units:
            self._send_again()

    def _send_again(self) -> None:
        """Give what is out for long to idle workers, too; the first answer counts."""
        idle = [w for w in self._workers.values() if len(w.flights) < w.threads]
        if not idle or not self._jobs:
            return
        over = time.monotonic() - _STRAGGLES_S
        alone = [next(iter(job.flights)) for job in self._jobs if len(job.flights) == 1]
        for flight in sorted(alone, key=lambda f: f.begun):
            others = [w for w in idle if w is not flight.worker and len(w.flights) < w.threads]
            if flight.begun < over and others:
                self._send(flight.job, others[0])

    def _send(self, job: _Job, worker: _Worker) -> None:
        flight = _Flight(job, worker, time.monotonic())
        job.flights.add(flight)
        worker.flights.add(flight)
        self._jobs.add(job)
        unit = _pickled(job.unit)
        flight.future = self._submit(
            remote.run_unit_here,
            self._held[worker.address],
            worker.mark,
            worker.spec,
            self._store,
            unit,
            self.fit_timeout_s,
            to=worker.address,
        )
        self._await(flight.future, self._land, flight)

    def _land(self, flight: _Flight, answer: Any) -> Iterator[Outcome]:
        """Take an answer, and see to what it leaves undone."""
        if flight.is_over:
            return
        self._let_go(flight)
        job = flight.job
        if isinstance(answer, Answer):
            records = self._take_lines(answer.lines)
            self._learn_pace(job.unit, len(answer.lines), answer.seconds)
            host = flight.worker.host
            yield Outcome(job.unit, records, seconds=answer.seconds, host=host)
            if not job.is_done:
                yield from self._see_to_rest(job, answer, flight.worker)
            return
        if not isinstance(answer, CancelledError):
            _log.warning("a unit is sent again after %s: %s", type(answer).__name__, answer)
        if not job.is_done and not job.flights:
            self._jobs.discard(job)
            if isinstance(answer, CancelledError):
                self._put_back_left(job.unit)
            else:
                self._after_loss(job.unit, f"{type(answer).__name__}: {answer}"[:200])

    def _see_to_rest(self, job: _Job, answer: Answer, worker: _Worker) -> Iterator[Outcome]:
        job.is_done = True
        self._jobs.discard(job)
        rest = job.unit.without(self._keys)
        if answer.end == "failed" and self._workers.pop(worker.address, None) is not None:
            self._had_workers = bool(self._workers)
            self._refuse(worker.address, f"{worker.host} cannot read the search: {answer.why}")
            self._lose(worker)
        if answer.end == "stranger" and self._workers.pop(worker.address, None) is not None:
            self._lose(worker)  # it has begun anew at its old address, and is asked again
        if rest is None:
            return
        if answer.end not in ("died", "late"):
            self._units.appendleft(rest)
            return
        if rest.staged is None and len(rest.fits) > 1:
            # Lines come fit by fit, so the first one without is the culprit.
            first, *others = rest.singles()
            self._units.extendleft(reversed(others))
            rest = first
        if answer.end == "died":
            yield from self._after_death(rest, self._units, answer.why)
        else:
            yield from self._after_timeout(rest, self._units)

    def _let_go(self, flight: _Flight) -> None:
        flight.is_over = True
        flight.worker.flights.discard(flight)
        flight.job.flights.discard(flight)
        if flight.future is not None and not flight.future.done():
            flight.future.cancel(reason="not needed any more")

    def _take_lines(self, lines: list[bytes]) -> list[Record]:
        """Append lines to the log that it lacks, and read their scores."""
        fresh: dict[str, bytes] = {}
        for line in lines:
            key = key_of(line)
            if key is not None and key not in self._keys:
                fresh[key] = line
        if fresh and self._writer is not None:
            self._writer.write_line(b"".join(fresh.values()))
        self._keys.update(fresh)
        return [
            Record({}, entries_from_literal(line.decode().partition("\t")[2]), key)
            for key, line in fresh.items()
        ]

    # Dask ------------------------------------------------------------------------------------

    def _submit(self, function: Callable[..., Any], *arguments: Any, to: str) -> Any:
        key = f"anomaly-{self.cluster.session}-{secrets.token_hex(8)}"
        return self.client.submit(function, *arguments, key=key, workers=[to], pure=False)

    def _has_data_out(self) -> bool:
        """Whether workers hold the data; sends them to those that lack them.

        A worker never waits for a copy from another one, which may stand still.
        """
        lacking = [
            address
            for address in self._workers
            if address not in self._held or self._held[address].status != "finished"
        ]
        if not lacking:
            return True
        try:
            sent = self.client.scatter(self._payload, workers=lacking, broadcast=True, hash=False)
        except (OSError, RuntimeError, ValueError, KeyError) as error:  # they left just now
            _log.warning("the data could not be sent: %s: %s", type(error).__name__, error)
            self._look_at = 0.0
            return False
        self._held |= dict.fromkeys(lacking, sent)
        return True

    def _await(self, future: Any, handle: Callable[..., Any], *about: Any) -> None:
        """Have the answer of a task handled here when it is there."""

        async def fetch() -> Any:
            return await self.client.gather(future, asynchronous=True)

        def arrive(done: Future[Any]) -> None:
            try:
                answer = done.result()
            except BaseException as error:
                answer = error
            self._arrived.put((handle, about, answer))

        loop = self.client.loop.asyncio_loop
        asyncio.run_coroutine_threadsafe(fetch(), loop).add_done_callback(arrive)

    def _receive(self) -> Iterator[Outcome]:
        """Handle the answers that are there, after waiting for the first a little."""
        while self._lost:
            yield self._lost.pop()
        # No more than are there now, so that idle workers are seen to in between.
        for number in range(max(self._arrived.qsize(), 1)):
            try:
                handle, about, answer = self._arrived.get(timeout=_LOOK_S if number == 0 else 0)
            except queue.Empty:
                return
            yield from handle(*about, answer)


def _keys_of(folder: RunFolder) -> set[str]:
    reader = LogReader(folder)
    reader.refresh()
    return set(reader.lines)


def _pickled(thing: Any) -> bytes:
    """Pickled, with classes of the main script inside."""
    return bytes(require("cloudpickle", "dask").dumps(thing))
