"""State of a share of the streams in one file: journal of records, snapshots, first answers."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from production.streams import Record, Stream

_SCHEMA = """
CREATE TABLE IF NOT EXISTS streams (
    stream INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL, id TEXT NOT NULL,
    snapshot BLOB NOT NULL, snapshot_seq INTEGER NOT NULL,
    seq INTEGER NOT NULL, newest REAL, last TEXT, settings TEXT NOT NULL,
    forgotten_until REAL,
    UNIQUE (kind, id));
CREATE TABLE IF NOT EXISTS records (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    stream INTEGER NOT NULL, seq INTEGER NOT NULL, instant REAL NOT NULL,
    record TEXT NOT NULL, answer TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS records_seq ON records (stream, seq);
CREATE INDEX IF NOT EXISTS records_instant ON records (stream, instant);
CREATE TABLE IF NOT EXISTS replies (
    stream INTEGER NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, seq INTEGER NOT NULL,
    reply TEXT NOT NULL, PRIMARY KEY (stream, key));
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""


class Journal:
    """One SQLite file: whatever is committed survives a crash and a power cut.

    A stream is its last snapshot and the records since. A record, its answer and
    any new snapshot are one transaction, committed before anyone is told.

    Parameters
    ----------
    path : str or Path
        Made if missing.
    remembered : int
        Records per stream that are kept for re-sent ones and for looking back.
    """

    def __init__(self, path: str | Path, remembered: int = 10_000) -> None:
        self.path = Path(path)
        self.remembered = remembered
        self._base = connect(self.path)
        self._base.executescript(_SCHEMA)

    def close(self) -> None:
        self._base.close()

    def execute(self, statement: str, arguments: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run one statement on the connection of this journal's owner."""
        return self._base.execute(statement, arguments)

    def begin(self) -> None:
        self._base.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self._base.execute("COMMIT")

    def rollback(self) -> None:
        if self._base.in_transaction:
            self._base.execute("ROLLBACK")

    # --- streams

    def count(self) -> int:
        """How many streams there are."""
        return int(self.execute("SELECT count(*) FROM streams").fetchone()[0])

    def wake(self, kind: str, name: str) -> tuple[int, Stream] | None:
        """The number and the state of a stream, its newest records replayed."""
        row = self.execute(
            "SELECT stream, snapshot, snapshot_seq FROM streams WHERE kind = ? AND id = ?",
            (kind, name),
        ).fetchone()
        if row is None:
            return None
        number, snapshot, seq = row
        stream = Stream.thaw(snapshot)
        for (text,) in self.execute(
            "SELECT record FROM records WHERE stream = ? AND seq > ? ORDER BY seq", (number, seq)
        ):
            stream.apply(Record.from_json(text))
        return number, stream

    def add(self, stream: Stream) -> int:
        """Enter a new stream."""
        settings = json.dumps(stream.settings.__dict__)
        cursor = self.execute(
            "INSERT INTO streams (kind, id, snapshot, snapshot_seq, seq, settings)"
            " VALUES (?, ?, ?, 0, 0, ?)",
            (stream.kind, stream.name, stream.freeze(), settings),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def remove(self, number: int) -> None:
        """Forget a stream and all its records."""
        for table in ("records", "replies", "streams"):
            self.execute(f"DELETE FROM {table} WHERE stream = ?", (number,))

    def snapshot(self, number: int, stream: Stream) -> None:
        """Keep the state as it is, and forget records that are too old to matter."""
        self.execute(
            "UPDATE streams SET snapshot = ?, snapshot_seq = ?, settings = ? WHERE stream = ?",
            (stream.freeze(), stream.seq, json.dumps(stream.settings.__dict__), number),
        )
        last = stream.seq - self.remembered
        if last <= 0:
            return
        exported = self.watermark()
        where = "stream = ? AND seq <= ? AND number <= ?"
        found = self.execute(
            f"SELECT max(instant) FROM records WHERE {where}", (number, last, exported)
        ).fetchone()
        if found[0] is not None:
            self.execute(
                "UPDATE streams SET forgotten_until = max(coalesce(forgotten_until, 0), ?)"
                " WHERE stream = ?",
                (found[0], number),
            )
            self.execute(f"DELETE FROM records WHERE {where}", (number, last, exported))
            self.execute("DELETE FROM replies WHERE stream = ? AND seq <= ?", (number, last))

    def forgotten_until(self, number: int) -> float:
        """Up to this instant it is not known any more which records came."""
        found = self.execute(
            "SELECT forgotten_until FROM streams WHERE stream = ?", (number,)
        ).fetchone()
        return float("-inf") if found is None or found[0] is None else float(found[0])

    # --- records

    def append(self, number: int, record: Record, answer: dict[str, Any]) -> None:
        self.execute(
            "INSERT INTO records (stream, seq, instant, record, answer) VALUES (?, ?, ?, ?, ?)",
            (number, answer["seq"], record.instant, record.to_json(), json.dumps(answer)),
        )

    def note_last(self, number: int, stream: Stream, answer: dict[str, Any]) -> None:
        """Keep the newest answer beside the stream, for lists."""
        self.execute(
            "UPDATE streams SET seq = ?, newest = ?, last = ? WHERE stream = ?",
            (stream.seq, stream.newest, json.dumps(answer), number),
        )

    def at(self, number: int, instant: float) -> list[tuple[str, str]]:
        """Records and answers of one instant, in their order."""
        return self.execute(
            "SELECT record, answer FROM records WHERE stream = ? AND instant = ? ORDER BY seq",
            (number, instant),
        ).fetchall()

    # --- first answers by key

    def reply(self, number: int, key: str) -> tuple[str, str] | None:
        """Digest of the request and the reply that a key was first given."""
        found: tuple[str, str] | None = self.execute(
            "SELECT digest, reply FROM replies WHERE stream = ? AND key = ?", (number, key)
        ).fetchone()
        return found

    def keep_reply(self, number: int, key: str, digest: str, seq: int, reply: str) -> None:
        self.execute(
            "INSERT INTO replies VALUES (?, ?, ?, ?, ?)", (number, key, digest, seq, reply)
        )

    # --- what the result store has

    def watermark(self) -> int:
        """Number of the last record that the result store has."""
        found = self.execute("SELECT value FROM meta WHERE name = 'exported'").fetchone()
        return 0 if found is None else int(found[0])


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a state file; every commit is flushed to disk."""
    mode = "ro" if read_only else "rwc"
    base = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=30,
        check_same_thread=False,
    )
    if not read_only:
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = FULL")
    return base


def mark_exported(base: sqlite3.Connection, number: int) -> None:
    """Note how far the result store has got."""
    base.execute("INSERT OR REPLACE INTO meta VALUES ('exported', ?)", (number,))
