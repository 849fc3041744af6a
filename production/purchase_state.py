"""What lets a purchase daemon be killed at any moment: snapshot, journal, replayed output.

The stream log is its own journal: a snapshot says how far it was read and how
long the output was then, and what came after is judged again, with the same
answers. Lines from standard input cannot be read again, so they are written to
a journal, and flushed to disk, before they are judged.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anomaly.errors import DataError
from anomaly.files import sync_folder, write_aside

BLOCK = 1 << 20
_HEAD = 4096
_VERSION = b"purchases-1"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a state folder for this process; it is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder} is in use by another process") from None
        yield


@dataclass
class Position:
    """How far the inputs were read and the output was written.

    Attributes
    ----------
    run : dict
        What must not change between starts: settings and fingerprints.
    journal : int
        Number of the journal; 0 if the stream log is a file.
    offset, output : int
        Bytes of the stream log or journal that were taken, of the output that
        was written.
    head : int
        Checksum of the first bytes of the stream log.
    counts : dict
        Of both logs.
    """

    run: dict[str, Any]
    journal: int
    offset: int = 0
    output: int = 0
    head: int = 0
    counts: dict[str, Any] | None = None


def write_snapshot(folder: Path, position: Position, network: bytes) -> None:
    """Replace the snapshot of a folder, whole and flushed."""
    body = json.dumps(asdict(position)).encode() + b"\n" + network
    with write_aside(folder / "snapshot", "wb") as file:
        file.write(b"%s %08x\n" % (_VERSION, zlib.crc32(body)))
        file.write(body)


def read_snapshot(folder: Path) -> tuple[Position, bytes] | None:
    """The snapshot of a folder, or None before the first."""
    path = folder / "snapshot"
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if head != b"%s %08x" % (_VERSION, zlib.crc32(body)):
        raise DataError(
            f"{path} is damaged or of another version; delete the folder to start again "
            "from the batch log"
        )
    fields, _, network = body.partition(b"\n")
    return Position(**json.loads(fields)), network


class LogFile:
    """A log read from an offset on, whole lines only; it may be growing.

    Parameters
    ----------
    path : Path
    offset : int
    head : int
        Checksum of the first bytes when the offset was noted.
    """

    def __init__(self, path: Path, offset: int = 0, head: int = 0) -> None:
        self.path = path
        self.offset = offset
        self.ended = False
        if not path.is_file():
            raise DataError(f"{path} must be a file to be read with a state; - is stdin")
        self._handle = os.open(path, os.O_RDONLY)
        if self._size() < offset or (offset and self.head() != head):
            raise DataError(f"{path} is not the log that was read up to byte {offset} before")

    def read(self) -> bytes:
        """The next whole lines, about a block of them; empty at the end."""
        wanted = BLOCK
        while True:
            text = os.pread(self._handle, wanted, self.offset)
            lines = text[: text.rfind(b"\n") + 1]
            if lines or len(text) < wanted:
                break
            wanted *= 2
        if not text and self._size() < self.offset:
            raise DataError(f"{self.path} was shortened while it was followed")
        self.offset += len(lines)
        return lines

    def wait(self, timeout_s: float) -> None:
        """Give the log time to grow."""
        time.sleep(timeout_s)

    def head(self) -> int:
        """Checksum of the first bytes, of those that were taken."""
        return zlib.crc32(os.pread(self._handle, min(self.offset, _HEAD), 0))

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _size(self) -> int:
        return os.fstat(self._handle).st_size


class Journal:
    """Standard input, kept on disk from the last snapshot on."""

    def __init__(self, folder: Path, number: int, offset: int = 0, head: int = 0) -> None:
        self._folder = folder
        self._rest = b""
        self.ended = False
        self.number = number
        for path in folder.glob("journal-*"):
            if path != self._path(number):
                path.unlink()
        self._open(number, offset, head)

    def read(self) -> bytes:
        """The next whole lines: of the journal, then of standard input."""
        lines = self._log.read()
        if lines or self.ended:
            return lines
        if not select.select([0], [], [], 0)[0]:
            return b""
        block = os.read(0, BLOCK)
        self.ended = not block
        text = self._rest + (block or (b"\n" if self._rest else b""))
        whole = text.rfind(b"\n") + 1
        self._rest = text[whole:]
        if whole:
            self._append(text[:whole])
        return self._log.read()

    def wait(self, timeout_s: float) -> None:
        """Wait for standard input."""
        select.select([0], [], [], timeout_s)

    @property
    def offset(self) -> int:
        """Bytes of the journal that were taken."""
        return self._log.offset

    def head(self) -> int:
        """Checksum of the first bytes taken."""
        return self._log.head()

    def turn(self) -> None:
        """Begin a new, empty journal if this one was taken whole; `drop` deletes the old one."""
        if os.fstat(self._handle).st_size > self.offset:
            return
        self.close()
        self.number += 1
        self._open(self.number, 0, 0, fresh=True)

    def drop(self) -> None:
        """Delete the journal before this one, now that a snapshot stands for it."""
        self._path(self.number - 1).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        os.close(self._handle)
        self._log.close()

    def _path(self, number: int) -> Path:
        return self._folder / f"journal-{number}"

    def _open(self, number: int, offset: int, head: int, fresh: bool = False) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if fresh else 0)
        self._handle = os.open(self._path(number), flags, 0o666)
        self._cut_torn_line()
        os.fsync(self._handle)
        sync_folder(self._folder)
        self._log = LogFile(self._path(number), offset, head)

    def _cut_torn_line(self) -> None:
        """A power cut may leave a part of the last line; it was never judged."""
        end = os.fstat(self._handle).st_size
        while end:
            start = max(0, end - BLOCK)
            newline = os.pread(self._handle, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        os.ftruncate(self._handle, end)

    def _append(self, lines: bytes) -> None:
        view = memoryview(lines)
        while view:
            view = view[os.write(self._handle, view) :]
        os.fsync(self._handle)


class ReplayedOutput:
    """An output that is only ever appended to, however often its lines are made again.

    Lines made after a restart that are there already are compared, not written;
    a torn last one is completed.
    """

    def __init__(self, path: Path, position: int, fresh: bool) -> None:
        self.path = path
        self.position = position
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if fresh else 0), 0o666)
        if os.fstat(self._handle).st_size < position:
            raise DataError(
                f"{path} is shorter than the {position} bytes written before; put it back, or "
                "delete the state to start again from the batch log"
            )

    def write(self, lines: bytes) -> None:
        """Add lines, or find that they are there."""
        there = os.pread(self._handle, len(lines), self.position)
        if not lines.startswith(there):
            raise DataError(f"{self.path} was changed by another program at byte {self.position}")
        rest = memoryview(lines)[len(there) :]
        at = self.position + len(there)
        while rest:
            written = os.pwrite(self._handle, rest, at)
            rest, at = rest[written:], at + written
        self.position = at

    def flush(self) -> None:
        """Make what is written survive a power cut."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        os.close(self._handle)
