"""Lanes: threads that own streams, keep their order and acknowledge only what is on disk."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import queue
import sqlite3
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomaly.errors import AnomalyError
from production.journal import Journal, connect
from production.streams import MULTI, SINGLE, Record, Stream, StreamSettings
from production.strict import RequestError

LANES = 4  # part of the format of the state folder: a stream's lane follows from its id

_log = logging.getLogger("anomaly.service")


@dataclass
class Limits:
    """Bounds of what the streams of one process may take.

    Parameters
    ----------
    streams : int
        Streams in all.
    warm_bytes : int
        Memory for streams that are awake.
    queued : int
        Requests that wait in one lane.
    remembered : int
        Records per stream kept for re-sent ones.
    snapshot_records : int
        Records after which a stream's state is written whole.
    """

    streams: int = 20_000
    warm_bytes: int = 512 << 20
    queued: int = 256
    remembered: int = 10_000
    snapshot_records: int = 2000


@dataclass
class Batch:
    """Records of one request for one stream, in their order.

    Attributes
    ----------
    given : list of (time stamp, mapping of field to value)
    key, digest : str
        ``Idempotency-Key`` and what it was sent with; empty without one.
    """

    kind: str
    name: str
    given: list[tuple[Any, dict[str, Any]]]
    key: str = ""
    digest: str = ""
    settings: StreamSettings = field(default_factory=StreamSettings)


class Lane(threading.Thread):
    """One thread, one state file, the streams that hash to it.

    Requests that wait together are committed together. If the commit fails
    nothing was acknowledged, and every stream that was touched is put back to
    what the file holds.
    """

    def __init__(self, number: int, path: Path, limits: Limits, census: Census) -> None:
        super().__init__(name=f"lane-{number}", daemon=True)
        self.limits = limits
        self.census = census
        self.journal = Journal(path, limits.remembered)
        self.waiting: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue(
            limits.queued
        )
        self._warm: OrderedDict[tuple[str, str], tuple[int, Stream]] = OrderedDict()
        self._sizes: dict[tuple[str, str], int] = {}
        self._unsaved: dict[tuple[str, str], int] = {}
        self._touched: set[tuple[str, str]] = set()
        self._added = 0

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Queue work; its future is settled after its commit.

        Raises
        ------
        RequestError
            With status 503 if too much waits already.
        """
        future: Future[Any] = Future()
        try:
            self.waiting.put_nowait((work, future))
        except queue.Full:
            raise RequestError(
                503,
                f"more than {self.limits.queued} requests wait for these streams",
                kind="queue_full",
                retry_after_s=1,
            ) from None
        return future

    def run(self) -> None:
        while True:
            first = self.waiting.get()
            jobs = [first]
            while len(jobs) < 64 and not self.waiting.empty():
                jobs.append(self.waiting.get_nowait())
            self._settle([job for job in jobs if job is not None])
            if None in jobs:
                break
        self._close()

    def stop(self) -> None:
        """Finish what waits, write every state, end."""
        self.waiting.put(None)
        self.join()

    # --- one commit

    def _settle(self, jobs: list[tuple[Callable[[], Any], Future[Any]]]) -> None:
        jobs = [job for job in jobs if job[1].set_running_or_notify_cancel()]
        if not jobs:
            return
        self._touched.clear()
        self._added = 0
        try:
            self.journal.begin()
            outcomes = [self._attempt(work) for work, _ in jobs]
            self._put_to_sleep()
            self.journal.commit()
        except (sqlite3.Error, OSError) as error:
            self._undo(error)
            fault = RequestError(
                503,
                f"the state cannot be written ({error}); nothing of this request was learnt",
                kind="state_unwritable",
                retry_after_s=5,
            )
            outcomes = [(None, fault)] * len(jobs)
        for (_, future), (result, failure) in zip(jobs, outcomes, strict=True):
            if failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(result)

    def _attempt(self, work: Callable[[], Any]) -> tuple[Any, Exception | None]:
        """Do one piece of work; if it fails, it leaves no trace in the transaction."""
        self.journal.execute("SAVEPOINT work")
        before, self._touched, added = self._touched, set(), self._added
        try:
            result = work()
        except (sqlite3.Error, OSError):
            self._touched |= before
            raise
        except Exception as error:
            self.journal.execute("ROLLBACK TO work")
            self.journal.execute("RELEASE work")
            self._keep_earlier(before)
            self.census.add(added - self._added)
            self._added = added
            if not isinstance(error, AnomalyError):
                _log.exception("a request failed in its lane")
            return None, error
        self.journal.execute("RELEASE work")
        self._touched |= before
        return result, None

    def _keep_earlier(self, before: set[tuple[str, str]]) -> None:
        """Put what failed back to sleep; what earlier work changed wakes with its records."""
        for key in self._touched:
            self._forget(key)
        self._touched |= before

    def _undo(self, error: Exception) -> None:
        _log.error("the state cannot be written: %s", error)
        self.journal.rollback()
        for key in self._touched:
            self._forget(key)
        self.census.add(-self._added)

    def _forget(self, key: tuple[str, str]) -> None:
        self._warm.pop(key, None)
        self._unsaved.pop(key, None)
        self._sizes.pop(key, None)

    # --- streams in memory

    def _awake(self, kind: str, name: str) -> tuple[int, Stream] | None:
        key = kind, name
        self._touched.add(key)
        found = self._warm.get(key)
        if found is not None:
            self._warm.move_to_end(key)
            return found
        found = self.journal.wake(kind, name)
        if found is not None:
            self._keep(key, found)
        return found

    def _keep(self, key: tuple[str, str], found: tuple[int, Stream]) -> None:
        self._warm[key] = found
        self._sizes[key] = found[1].size

    def _add(self, stream: Stream) -> int:
        if not self.census.enter():
            raise RequestError(
                429,
                f"there are {self.limits.streams} streams already, which is the limit",
                kind="stream_count",
            )
        self._added += 1
        number = self.journal.add(stream)
        self._touched.add((stream.kind, stream.name))
        self._keep((stream.kind, stream.name), (number, stream))
        return number

    def _put_to_sleep(self) -> None:
        """Write and drop the streams that were not used for longest, beyond the memory allowed."""
        room = self.limits.warm_bytes // LANES
        while len(self._warm) > 1 and sum(self._sizes.values()) > room:
            key, (number, stream) = next(iter(self._warm.items()))
            if self._unsaved.get(key):
                self.journal.snapshot(number, stream)
            self._touched.add(key)
            self._forget(key)

    def _close(self) -> None:
        try:
            self.journal.begin()
            for key, (number, stream) in self._warm.items():
                if self._unsaved.get(key):
                    self.journal.snapshot(number, stream)
            self.journal.commit()
        except (sqlite3.Error, OSError) as error:  # the records are there; waking replays them
            _log.error("snapshots were not written: %s", error)
            self.journal.rollback()
        self.journal.close()

    # --- work, called within a transaction

    def take(self, batch: Batch) -> list[dict[str, Any]]:
        """Admit, score, learn and note the records of a batch; one answer for each."""
        found = self._awake(batch.kind, batch.name)
        if found is not None and batch.key:
            known = self.journal.reply(found[0], batch.key)
            if known is not None:
                return _first_reply(known, batch)
        stream = Stream(batch.kind, batch.name, batch.settings) if found is None else found[1]
        records = stream.prepare(batch.given)
        number = self._add(stream) if found is None else found[0]
        answers = [self._take_one(number, stream, record) for record in records]
        self._after(number, stream, answers)
        if batch.key:
            self.journal.keep_reply(
                number, batch.key, batch.digest, stream.seq, json.dumps(answers)
            )
        return answers

    def _take_one(self, number: int, stream: Stream, record: Record) -> dict[str, Any]:
        status = "scored"
        if record.instant <= stream.newest:
            known = self.journal.at(number, record.instant)
            for text, first in known:
                if _same(text, record):
                    stream.counts["duplicate"] += 1
                    return {**json.loads(first), "status": "duplicate"}
            status = "duplicate" if known else "late"
            refusal = self._refusal(number, stream, record, status, known)
            if refusal is not None:
                return refusal
            status = "conflicting" if known else "late"
        elif record.instant > time.time() + stream.settings.future_s:
            stream.counts["future"] += 1
            if stream.settings.future == "reject":
                return _refused(
                    record, "future", f"more than {stream.settings.future_s:g} s ahead"
                )
            status = "future"
        gaps = stream.counts["gap"]
        answer = stream.apply(record)
        self.journal.append(number, record, answer)
        if stream.counts["gap"] > gaps and status == "scored":
            status = "gap"
        return {**answer, "status": status}

    def _refusal(
        self, number: int, stream: Stream, record: Record, status: str, known: list[Any]
    ) -> dict[str, Any] | None:
        stream.counts[status] += 1
        if known:
            if stream.settings.duplicates == "first":
                return {**json.loads(known[0][1]), "status": "duplicate"}
            if stream.settings.duplicates == "reject":
                return _refused(record, "duplicate", "another value came for this time before")
            return None
        if stream.settings.late == "reject":
            return _refused(record, "late", "older than the newest record")
        if record.instant <= self.journal.forgotten_until(number):
            return _refused(
                record,
                "late",
                f"older than the {self.limits.remembered} records that are remembered, so it "
                f"may have been learnt before",
            )
        return None

    def _after(self, number: int, stream: Stream, answers: list[dict[str, Any]]) -> None:
        learnt = [answer for answer in answers if answer.get("status") not in _ANSWERED]
        if not learnt:
            return
        key = stream.kind, stream.name
        self.journal.note_last(number, stream, learnt[-1])
        self._unsaved[key] = self._unsaved.get(key, 0) + len(learnt)
        self._sizes[key] = stream.size
        if self._unsaved[key] >= self.limits.snapshot_records:
            self.journal.snapshot(number, stream)
            self._unsaved[key] = 0

    def configure(self, kind: str, name: str, settings: StreamSettings) -> dict[str, Any]:
        """Make a stream with these settings, or give them to it."""
        found = self._awake(kind, name)
        if found is None:
            stream = Stream(kind, name, settings)
            number = self._add(stream)
        else:
            number, stream = found
            stream.with_settings(settings)
        self.journal.snapshot(number, stream)
        self._unsaved[kind, name] = 0
        return describe(stream)

    def look(self, kind: str, name: str) -> dict[str, Any]:
        """What is known of a stream."""
        return describe(self._known(kind, name)[1])

    def remove(self, kind: str, name: str) -> None:
        """Forget a stream."""
        number, _ = self._known(kind, name)
        self.journal.remove(number)
        self._forget((kind, name))
        self.census.add(-1)
        self._added -= 1

    def _known(self, kind: str, name: str) -> tuple[int, Stream]:
        found = self._awake(kind, name)
        if found is None:
            raise RequestError(404, f"there is no stream {name!r} of kind {kind}", kind="unknown")
        return found


_ANSWERED = frozenset({"duplicate", "rejected"})


class Census:
    """How many streams there are, and may be."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0
        self._lock = threading.Lock()

    def enter(self) -> bool:
        """Count one more stream, unless there is no room."""
        with self._lock:
            if self.count >= self.most:
                return False
            self.count += 1
            return True

    def add(self, n: int) -> None:
        with self._lock:
            self.count += n


class Lanes:
    """All streams of a state folder.

    Parameters
    ----------
    folder : str or Path
        Made if missing; one process at a time.
    limits : Limits, optional

    Examples
    --------
    >>> import tempfile
    >>> from production.lanes import Batch, Lanes
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lanes = Lanes(folder)
    ...     batch = Batch("single", "7", [("2016-12-01 00:00:10", {"value": 3855.0})])
    ...     [answer] = lanes.take(batch).result()
    ...     [again] = lanes.take(batch).result()
    ...     lanes.stop()
    >>> answer["seq"], answer["status"], again["seq"], again["status"]
    (1, 'scored', 1, 'duplicate')
    """

    def __init__(self, folder: str | Path, limits: Limits | None = None) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.limits = limits or Limits()
        self._lock = _locked(self.folder)
        self.census = Census(self.limits.streams)
        self.lanes = [
            Lane(i, self.folder / f"lane-{i}.sqlite", self.limits, self.census)
            for i in range(LANES)
        ]
        self.census.count = sum(lane.journal.count() for lane in self.lanes)
        for lane in self.lanes:
            lane.start()

    def of(self, kind: str, name: str) -> Lane:
        """The lane of a stream."""
        return self.lanes[zlib.crc32(f"{kind}/{name}".encode()) % LANES]

    def take(self, batch: Batch) -> Future[list[dict[str, Any]]]:
        """Queue a batch; the future holds one answer for each record once they are durable."""
        lane = self.of(batch.kind, batch.name)
        return lane.submit(lambda: lane.take(batch))

    def configure(self, kind: str, name: str, settings: StreamSettings) -> Future[dict[str, Any]]:
        lane = self.of(kind, name)
        return lane.submit(lambda: lane.configure(kind, name, settings))

    def look(self, kind: str, name: str) -> Future[dict[str, Any]]:
        lane = self.of(kind, name)
        return lane.submit(lambda: lane.look(kind, name))

    def remove(self, kind: str, name: str) -> Future[None]:
        lane = self.of(kind, name)
        return lane.submit(lambda: lane.remove(kind, name))

    def overview(self, after: str, most: int) -> list[dict[str, Any]]:
        """Streams with their newest answers, in the order of their ids; read from disk."""
        rows: list[tuple[str, str, int, str | None]] = []
        for lane in self.lanes:
            rows += self._read(
                lane,
                "SELECT id, kind, seq, last FROM streams WHERE id || '/' || kind > ?"
                " ORDER BY id || '/' || kind LIMIT ?",
                (after, most),
            )
        rows.sort(key=lambda row: f"{row[0]}/{row[1]}")
        return [
            {"id": i, "kind": k, "records": s, "last": json.loads(last) if last else None}
            for i, k, s, last in rows[:most]
        ]

    def kinds(self, name: str) -> list[str]:
        """The kinds in which a stream of this id exists."""
        return [
            kind
            for kind in (SINGLE, MULTI)
            if self._read(
                self.of(kind, name),
                "SELECT 1 FROM streams WHERE kind = ? AND id = ?",
                (kind, name),
            )
        ]

    def answers(
        self, kind: str, name: str, *, since: float, after: int, most: int, newest: bool = False
    ) -> list[dict[str, Any]]:
        """First answers of a stream after an instant and a sequence number, read from disk."""
        order = "DESC" if newest else "ASC"
        rows = self._read(
            self.of(kind, name),
            "SELECT answer FROM records WHERE stream ="
            " (SELECT stream FROM streams WHERE kind = ? AND id = ?)"
            f" AND seq > ? AND instant >= ? ORDER BY seq {order} LIMIT ?",
            (kind, name, after, max(since, -1.0), most),
        )
        found = [json.loads(answer) for (answer,) in rows]
        return found[::-1] if newest else found

    def _read(self, lane: Lane, statement: str, arguments: tuple[Any, ...]) -> list[Any]:
        base = connect(lane.journal.path, read_only=True)
        try:
            return base.execute(statement, arguments).fetchall()
        finally:
            base.close()

    def is_alive(self) -> bool:
        """Whether every lane still works."""
        return all(lane.is_alive() for lane in self.lanes)

    def stop(self) -> None:
        """Finish what waits, write every state, end."""
        for lane in self.lanes:
            lane.stop()
        os.close(self._lock)


def describe(stream: Stream) -> dict[str, Any]:
    """A stream's settings and counts, for people."""
    return {
        "id": stream.name,
        "kind": stream.kind,
        "records": stream.seq,
        "fields": list(stream.fields),
        "detector": stream.detector_name,
        "settings": stream.settings.__dict__,
        "counts": stream.counts,
        "newest": stream.newest if math.isfinite(stream.newest) else None,
    }


def _first_reply(known: tuple[str, str], batch: Batch) -> list[dict[str, Any]]:
    digest, reply = known
    if digest != batch.digest:
        raise RequestError(
            422, "this Idempotency-Key was used before with another body", kind="key_reused"
        )
    return [
        answer if answer.get("status") == "rejected" else {**answer, "status": "duplicate"}
        for answer in json.loads(reply)
    ]


def _same(text: str, record: Record) -> bool:
    """Whether a noted record has the values of another; the writing of the time may differ."""
    mine = json.loads(record.to_json())
    return bool(json.loads(text)[3] == mine[3])


def _refused(record: Record, kind: str, detail: str) -> dict[str, Any]:
    return {"timestamp": record.text, "status": "rejected", "reason": kind, "detail": detail}


def _locked(folder: Path) -> int:
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise RequestError(
            503, f"another service works in {folder}; name another with --state"
        ) from None
    return handle
