"""Purchase networks of the service: in memory, with every accepted event on disk first."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anomaly._core import Network
from anomaly.errors import ParameterError
from anomaly.purchases import EventError, make_network, read_event
from anomaly.purchases.events import Event
from anomaly.purchases.log import apply_event, window_texts
from production.journal import connect
from production.strict import RequestError, as_number, as_object, as_whole, read_json

NETWORKS = 64
"""Networks of one service."""

ROOM = 20_000_000
"""Users, friendships and kept purchases of all networks together; about 1 GB."""

SNAPSHOT_EVENTS = 100_000
KEYS = 1000
"""Idempotency keys remembered per network."""

_LONGEST_ID = 256  # bytes
_SCHEMA = """
CREATE TABLE IF NOT EXISTS networks (
    network INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, settings TEXT NOT NULL,
    snapshot BLOB NOT NULL, events INTEGER NOT NULL, flagged INTEGER NOT NULL,
    size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, network INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS batches_network ON batches (network, number);
CREATE TABLE IF NOT EXISTS replies (
    number INTEGER PRIMARY KEY AUTOINCREMENT, network INTEGER NOT NULL, key TEXT NOT NULL,
    digest TEXT NOT NULL, reply TEXT NOT NULL, UNIQUE (network, key));
"""


@dataclass(frozen=True)
class NetworkSettings:
    """What a network is made with, and keeps for its life."""

    degree: int = 2
    window_size: int = 50
    sigma: float = 3.0

    @classmethod
    def read(cls, value: Any) -> NetworkSettings:
        """Settings from JSON, checked."""
        given = as_object(value, "settings", frozenset(cls.__dataclass_fields__))
        settings = cls(
            as_whole(given.get("degree", 2), "degree", 1, 2**31 - 1),
            as_whole(given.get("window_size", 50), "window_size", 2, 10_000),
            as_number(given.get("sigma", 3), "sigma"),
        )
        try:
            settings.make()
        except ParameterError as error:
            raise RequestError(422, str(error)) from None
        return settings

    def make(self) -> Network:
        """An empty network."""
        return make_network(self.degree, self.window_size, self.sigma)


@dataclass
class _Room:
    """A network in memory; whoever holds the lock works on it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    number: int = 0
    network: Network | None = None
    settings: NetworkSettings = field(default_factory=NetworkSettings)
    events: int = 0
    flagged: int = 0
    unsaved: int = 0


class PurchaseStore:
    """All purchase networks of a service, in one SQLite file.

    A network is its last snapshot and the batches since. A batch is judged, then
    committed, then answered; if the commit fails the network is read anew, so
    that nothing is counted that was not acknowledged.

    Parameters
    ----------
    path : Path
        Made if missing.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from production.purchase_store import NetworkSettings, PurchaseStore
    >>> line = b'{"event_type": "befriend", "timestamp": "2026-03-01 09:00:00", %s}'
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = PurchaseStore(Path(folder) / "purchases.sqlite")
    ...     _ = store.create("shop", NetworkSettings(degree=1))
    ...     answers = store.take("shop", line % b'"id1": "ann", "id2": "bob"')
    ...     store.close()
    >>> answers
    [{'event': 1, 'status': 'applied'}]
    """

    def __init__(self, path: Path) -> None:
        self._base = connect(path)
        try:
            self._base.executescript(_SCHEMA)
        except sqlite3.Error:
            self._base.close()
            raise
        self._lock = threading.RLock()  # of the file and of the table of rooms
        self._rooms: dict[str, _Room] = {}

    def close(self) -> None:
        """Close the file; everything is in it already."""
        with self._lock:
            self._base.close()

    def create(self, name: str, settings: NetworkSettings) -> dict[str, Any]:
        """Make an empty network; one that exists must have the same settings."""
        text = json.dumps(asdict(settings))
        with self._lock:
            row = self._base.execute(
                "SELECT settings FROM networks WHERE id = ?", (name,)
            ).fetchone()
            if row is not None and row[0] != text:
                raise RequestError(
                    409, f"network {name!r} has other settings; DELETE it first", "conflict"
                )
            if row is None:
                count = self._base.execute("SELECT count(*) FROM networks").fetchone()[0]
                if count >= NETWORKS:
                    raise RequestError(
                        429,
                        f"there are {NETWORKS} networks already, which is the limit",
                        "networks",
                    )
                self._write(
                    "INSERT INTO networks (id, settings, snapshot, events, flagged, size)"
                    " VALUES (?, ?, ?, 0, 0, 0)",
                    (name, text, settings.make().save()),
                )
        return self.look(name)

    def look(self, name: str) -> dict[str, Any]:
        """Settings and counts of a network."""
        with self._held(name) as (room, network):
            users, friendships, purchases = network.sizes()
            return {
                "id": name,
                "settings": asdict(room.settings),
                "events": room.events,
                "flagged": room.flagged,
                "users": users,
                "friendships": friendships,
                "purchases_kept": purchases,
            }

    def names(self) -> list[str]:
        """Ids of the networks, sorted."""
        with self._lock:
            return [row[0] for row in self._base.execute("SELECT id FROM networks ORDER BY id")]

    def remove(self, name: str) -> None:
        """Forget a network."""
        tables = ("batches", "replies", "networks")
        with self._held(name) as (room, _), self._lock:
            self._transact(
                [(f"DELETE FROM {table} WHERE network = ?", (room.number,)) for table in tables]
            )
            del self._rooms[name]

    def take(
        self, name: str, body: bytes, *, judge: bool = True, key: str = "", most: int = 10_000
    ) -> list[dict[str, Any]]:
        """Judge and apply the events of a body of JSON Lines; an answer for each.

        Raises
        ------
        RequestError
            If a line cannot be read: then nothing is applied. With status 503 if
            the events cannot be written.
        """
        events = read_lines(body, most)
        digest = hashlib.sha256(b"%d" % judge + body).hexdigest()
        with self._held(name) as (room, network):
            if key:
                known = self._known_reply(room.number, key, digest)
                if known is not None:
                    return known
            self._check_room(name, len(events))
            try:
                answers = [_take_one(network, i, e, judge) for i, e in enumerate(events, 1)]
                flagged = sum(answer.get("flagged", False) for answer in answers)
                self._commit(room, body, len(events), flagged, key, digest, answers)
            except BaseException:
                room.network = None  # to be read anew, without this batch
                raise
        return answers

    def _commit(
        self,
        room: _Room,
        body: bytes,
        count: int,
        flagged: int,
        key: str,
        digest: str,
        answers: list[dict[str, Any]],
    ) -> None:
        assert room.network is not None
        number = room.number
        events, all_flagged = room.events + count, room.flagged + flagged
        unsaved = room.unsaved + count
        work: list[tuple[str, tuple[Any, ...]]] = [
            (
                "UPDATE networks SET events = ?, flagged = ?, size = ? WHERE network = ?",
                (events, all_flagged, sum(room.network.sizes()), number),
            )
        ]
        if unsaved >= SNAPSHOT_EVENTS:
            saved = room.network.save()
            work.append(("UPDATE networks SET snapshot = ? WHERE network = ?", (saved, number)))
            work.append(("DELETE FROM batches WHERE network = ?", (number,)))
            unsaved = 0
        else:
            work.append(("INSERT INTO batches (network, body) VALUES (?, ?)", (number, body)))
        if key:
            work.append(
                (
                    "INSERT INTO replies (network, key, digest, reply) VALUES (?, ?, ?, ?)",
                    (number, key, digest, json.dumps(answers)),
                )
            )
            work.append(
                (
                    "DELETE FROM replies WHERE network = ? AND number NOT IN (SELECT number FROM"
                    " replies WHERE network = ? ORDER BY number DESC LIMIT ?)",
                    (number, number, KEYS),
                )
            )
        self._transact(work)
        room.events, room.flagged, room.unsaved = events, all_flagged, unsaved

    @contextlib.contextmanager
    def _held(self, name: str) -> Iterator[tuple[_Room, Network]]:
        """The network with its lock held; 404 if there is none."""
        while True:
            with self._lock:
                found = self._base.execute("SELECT 1 FROM networks WHERE id = ?", (name,))
                if found.fetchone() is None:
                    raise RequestError(
                        404, f"there is no network {name!r}; PUT its settings first", "unknown"
                    )
                room = self._rooms.setdefault(name, _Room())
            with room.lock:
                with self._lock:
                    current = self._rooms.get(name) is room
                if current:  # it was not removed while we waited
                    yield room, self._awake(name, room)
                    return

    def _awake(self, name: str, room: _Room) -> Network:
        """The network in memory, read from the file if it is not there; its lock is held."""
        if room.network is not None:
            return room.network
        with self._lock:
            row = self._base.execute(
                "SELECT network, settings, snapshot, events, flagged FROM networks WHERE id = ?",
                (name,),
            ).fetchone()
            room.number, settings, snapshot, room.events, room.flagged = row
            room.settings = NetworkSettings(**json.loads(settings))
            bodies = self._base.execute(
                "SELECT body FROM batches WHERE network = ? ORDER BY number", (room.number,)
            ).fetchall()
        network = Network.load(snapshot)
        room.unsaved = 0
        for (body,) in bodies:
            for event in read_lines(body):
                apply_event(network, event)
                room.unsaved += 1
        room.network = network
        return network

    def _known_reply(self, number: int, key: str, digest: str) -> list[dict[str, Any]] | None:
        with self._lock:
            row = self._base.execute(
                "SELECT digest, reply FROM replies WHERE network = ? AND key = ?", (number, key)
            ).fetchone()
        if row is None:
            return None
        if row[0] != digest:
            raise RequestError(
                422, "this Idempotency-Key was used before with another body", kind="key_reused"
            )
        found: list[dict[str, Any]] = json.loads(row[1])
        return found

    def _check_room(self, name: str, more: int) -> None:
        with self._lock:
            taken = self._base.execute("SELECT coalesce(sum(size), 0) FROM networks").fetchone()[0]
        if taken + more > ROOM:
            raise RequestError(
                429,
                f"the networks hold {taken} users, friendships and purchases, of {ROOM} allowed; "
                f"network {name!r} cannot grow",
                kind="room",
            )

    def _write(self, statement: str, arguments: tuple[Any, ...]) -> None:
        self._transact([(statement, arguments)])

    def _transact(self, work: list[tuple[str, tuple[Any, ...]]]) -> None:
        with self._lock:
            try:
                self._base.execute("BEGIN IMMEDIATE")
                for statement, arguments in work:
                    self._base.execute(statement, arguments)
                self._base.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise RequestError(
                    503,
                    f"the state cannot be written ({error}); nothing of this request was applied",
                    kind="state_unwritable",
                    retry_after_s=5,
                ) from None


def read_lines(body: bytes, most: int | None = None) -> list[Event]:
    """Events of JSON Lines; a fault names its line."""
    events: list[Event] = []
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        if most is not None and len(events) == most:
            raise RequestError(413, f"a batch must have {most} events at most", kind="rows")
        try:
            event = read_event(as_object(read_json(line), "an event"))
        except RequestError as error:
            raise RequestError(
                error.status, f"line {number}: {error.detail}", error.kind
            ) from None
        except EventError as error:
            raise RequestError(422, f"line {number}: {error}") from None
        if any(len(user) > _LONGEST_ID for user in event.ids):
            raise RequestError(422, f"line {number}: an id must have {_LONGEST_ID} bytes at most")
        events.append(event)
    if not events:
        raise RequestError(422, "the body holds no event")
    return events


def _take_one(network: Network, number: int, event: Event, judge: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"event": number, "status": "applied"}
    if judge and event.kind == "purchase":
        count, total, spread, flagged, score = network.judge(event.ids[0], event.amount)
        mean, sd = window_texts(count, total, spread)
        answer |= {
            "status": "judged",
            "flagged": flagged,
            "score": score if math.isfinite(score) else None,
            "window": count,
            "mean": mean,
            "sd": sd,
        }
    apply_event(network, event)
    return answer
