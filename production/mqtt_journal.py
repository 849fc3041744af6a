"""What a runner has taken, on disk before it is acknowledged: snapshots and a journal.

The folder holds ``snapshot`` and ``journal-N``. A snapshot names the journal
that begins where it ends. Records that a kill cut short are forgotten: their
messages were not acknowledged, so the broker sends them again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pickle
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from anomaly.errors import AnomalyError
from anomaly.files import sync_folder, write_aside

__all__ = ["Journal", "Record", "StateError"]

_HEADER = struct.Struct(">HIHBI")  # lengths of topic and payload, mid, redelivered, checksum
_SNAPSHOT = struct.Struct(">8sQ32s")  # magic, number of the next journal, SHA-256
_MAGIC = b"anomqtt1"


class StateError(AnomalyError, ValueError):
    """The state folder is damaged, foreign, or open to other users."""


class Record(NamedTuple):
    """A message as it came."""

    topic: str
    payload: bytes
    mid: int = 0
    redelivered: bool = False


class Journal:
    """The state folder of one runner.

    Parameters
    ----------
    folder : path-like
        Made if missing, for this user only: its snapshots are pickles, so
        whoever may write there may run code here. One runner at a time.
    sync : bool
        Whether each append is flushed to the disk itself, against power cuts;
        without it, it survives a kill of the process.
    """

    def __init__(self, folder: str | os.PathLike[str], *, sync: bool = False) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except FileExistsError:
            raise StateError(f"{self.folder}: a folder is needed, this is a file") from None
        found = self.folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise StateError(
                f"{self.folder}: must belong to this user and be writable by no other"
            )
        self._lock = _locked(self.folder)
        self._sync = sync
        self._file: Any = None
        self._number = 0
        self.size = 0

    def recover(self) -> tuple[Any | None, list[Record]]:
        """The last snapshot, or None, and the records taken since."""
        state, first = self._read_snapshot()
        numbers = sorted(n for n in self._numbers() if n >= first)
        records = [record for n in numbers for record in _read(self._path(n))]
        self._number = max([first, *numbers])
        self._open(self._number + 1)
        return state, records

    def append(self, records: Iterable[Record]) -> None:
        """Write records, whole or not at all as far as `recover` can see."""
        data = b"".join(map(_packed, records))
        with self._named():
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            if self._sync:
                os.fsync(self._file.fileno())
        self.size += len(data)

    def snapshot(self, state: Any) -> None:
        """Keep the state as it is after all records; older journals go."""
        self._open(self._number + 1)
        payload = pickle.dumps(state)
        with self._named(), write_aside(self.folder / "snapshot", "wb") as file:
            sealed = hashlib.sha256(payload).digest()
            file.write(_SNAPSHOT.pack(_MAGIC, self._number, sealed) + payload)
        for number in self._numbers():
            if number < self._number:
                self._path(number).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal and leave the folder to others."""
        self._close_file()
        os.close(self._lock)

    # -- private

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say which folder is full; the error of a write alone does not."""
        try:
            yield
        except OSError as error:
            raise StateError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, number: int) -> None:
        self._close_file()
        self._number, self.size = number, 0
        self._file = self._path(number).open("ab", buffering=0)
        sync_folder(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"journal-{number}"

    def _numbers(self) -> list[int]:
        names = (path.name.removeprefix("journal-") for path in self.folder.glob("journal-*"))
        return [int(name) for name in names if name.isdecimal()]

    def _read_snapshot(self) -> tuple[Any | None, int]:
        path = self.folder / "snapshot"
        if not path.exists():
            return None, 0
        data = path.read_bytes()
        if len(data) < _SNAPSHOT.size:
            raise StateError(f"{path}: not a snapshot of this program")
        magic, number, sealed = _SNAPSHOT.unpack_from(data)
        payload = data[_SNAPSHOT.size :]
        if magic != _MAGIC or hashlib.sha256(payload).digest() != sealed:
            raise StateError(f"{path}: damaged, or not a snapshot of this program; move it away")
        try:
            return pickle.loads(payload), number
        except (AttributeError, ImportError, TypeError) as error:
            raise StateError(f"{path}: made by another version ({error}); move it away") from error


def _locked(folder: Path) -> int:
    """The folder, held for this process; a kill lets go of it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise StateError(f"{folder}: another runner works in it; name another folder") from None
    return handle


def _packed(record: Record) -> bytes:
    topic = record.topic.encode()
    sum_ = zlib.crc32(record.payload, zlib.crc32(topic))
    header = _HEADER.pack(len(topic), len(record.payload), record.mid, record.redelivered, sum_)
    return header + topic + record.payload


def _read(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
    at = 0
    while at + _HEADER.size <= len(data):
        n_topic, n_payload, mid, redelivered, sum_ = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        topic, payload = data[at : at + n_topic], data[at + n_topic : at + n_topic + n_payload]
        at += n_topic + n_payload
        if at > len(data) or zlib.crc32(payload, zlib.crc32(topic)) != sum_:
            return
        yield Record(topic.decode(), payload, mid, bool(redelivered))
