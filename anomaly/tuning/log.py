"""The log of a run: appended by many processes, read back after any crash.

A run is a folder with ``run.json`` (the plan), ``claims`` (byte-range locks,
one byte per work unit) and one ``<run>.<host>.<pid>.out.tmp`` per writing
process. `merge` joins them into ``<run>.out`` beside the folder.

A line is complete before the next one begins, so a killed process leaves at
most one torn line at the end of its own file, and the reader forgives exactly
that. Every line carries the key of its fit; a key that occurs twice counts once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly.errors import DataError, ParameterError
from anomaly.files import sync_folder, write_aside
from anomaly.tuning.literals import PACKAGES, entries_from_literal, from_literal, to_literal
from anomaly.tuning.units import Record

_KEY = re.compile(rb"'key': '([0-9a-f]{16})'")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def format_line(record: Record) -> str:
    """One line of the log, with its newline.

    Examples
    --------
    >>> from anomaly.tuning.log import format_line
    >>> from anomaly.tuning.units import Record
    >>> format_line(Record({"C": 1.0}, {"fold": 0, "F1": 0.5}))
    "{'C': 1.0}\\t{'fold': 0, 'F1': 0.5}\\n"
    """
    return f"{to_literal(record.params)}\t{to_literal(record.scores)}\n"


def parse_line(line: str, packages: frozenset[str] = PACKAGES) -> Record:
    """Read one line of the log.

    Raises
    ------
    ParameterError
        If the line is not in the notation.
    """
    params, tab, scores = line.rstrip("\n").partition("\t")
    if not tab:
        raise ParameterError(f"no tab between parameters and scores: {line[:80]!r}")
    record = Record(from_literal(params, packages), from_literal(scores, packages))
    if not (isinstance(record.params, dict) and isinstance(record.scores, dict)):
        raise ParameterError(f"parameters and scores must be dicts: {line[:80]!r}")
    return record


def key_of(line: bytes) -> str | None:
    """Key of the fit that a line tells of; None for what is no whole line.

    Examples
    --------
    >>> from anomaly.tuning.log import key_of
    >>> key_of(b"{}\\t{'F1': 0.5, 'key': '0123456789abcdef'}\\n")
    '0123456789abcdef'
    """
    found = _KEY.search(line.partition(b"\t")[2])  # text in a literal has no bare tab
    return found[1].decode() if found and line.endswith(b"}\n") else None


@dataclass(frozen=True)
class MergeReport:
    """What `RunFolder.merge` did: lines written, and lines it had to leave out."""

    path: Path
    lines: int
    repeated: int
    torn: int
    malformed: int

    def __str__(self) -> str:
        left = [
            f"{number} {what}"
            for number, what in (
                (self.repeated, "repeated"),
                (self.torn, "torn"),
                (self.malformed, "malformed"),
            )
            if number
        ]
        return f"{self.lines} fits in {self.path}" + (
            f" (dropped: {', '.join(left)})" if left else ""
        )


class RunFolder:
    """Folder of a run.

    Parameters
    ----------
    path : str or PathLike
        The folder; its name is the name of the run, and the merged log stands
        beside it as ``<path>.out``. Created when missing.

    Raises
    ------
    ParameterError
        If the name is not made of letters, digits, ``_``, ``-`` and ``.``.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = self.path.name
        if not RUN_NAME.fullmatch(self.name):
            raise ParameterError(
                "the name of a run is made of letters, digits, '_', '-' and '.', "
                f"got {self.name!r}"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.merged = self.path.parent / f"{self.name}.out"
        self._claims: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_claims": None}

    # Plan ---------------------------------------------------------------------

    def plan(self) -> dict[str, Any]:
        """Content of ``run.json``, empty for a new run."""
        try:
            text = (self.path / "run.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        try:
            found = json.loads(text)
        except ValueError as error:
            raise DataError(f"{self.path / 'run.json'} is damaged: {error}") from None
        return found if isinstance(found, dict) else {}

    def note(self, **entries: Any) -> None:
        """Set entries of ``run.json``, keeping those of other processes."""
        with self.locked("run.lock"), write_aside(self.path / "run.json") as file:
            json.dump(self.plan() | entries, file, indent=1, sort_keys=True)
            file.write("\n")

    def identity(self) -> str:
        """Random mark of the run, the same for every process and copy of its folder."""
        with self.locked("agree.lock"):
            found = self.plan().get("id")
            if found is None:
                found = secrets.token_hex(8)
                self.note(id=found)
        return str(found)

    def agree(self, name: str, plan: dict[str, Any]) -> None:
        """Store the plan of one search, or check it against the stored one.

        Raises
        ------
        ParameterError
            Naming every difference, when the folder holds another plan.
        """
        with self.locked("agree.lock"):
            plans = self.plan().get("plans", {})
            if name not in plans:
                self.note(plans=plans | {name: plan})
                return
        differences = list(plan_differences(plans[name], plan))
        if differences:
            raise ParameterError(
                f"run {self.name!r} cannot be continued: {'; '.join(differences)}; "
                "go back to what it was, or start another run"
            )

    def forget(self) -> None:
        """Free the name of a run that failed before its first fit; others are left alone."""
        if self.files():
            return
        for name in (
            "manifest.json",
            "progress.json",
            "agree.lock",
            "merge.lock",
            "claims",
            "run.json",
            "run.lock",
        ):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder holds what a user put there
            self.path.rmdir()

    # Locks ----------------------------------------------------------------------

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold a lock file of the folder for the length of a block."""
        handle = os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Claim a work unit; yields False while another process holds it.

        The claim is a lock on one byte, so it ends with the process, however
        that ends.
        """
        if self._claims is None:
            self._claims = os.open(self.path / "claims", os.O_RDWR | os.O_CREAT, 0o666)
        byte = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, byte)

    # Files -----------------------------------------------------------------------

    def files(self) -> list[Path]:
        """The merged log and every process's own file, of this run only."""
        begin, end = f"{self.name}.", ".out.tmp"
        names = [n for n in os.listdir(self.path) if n.startswith(begin) and n.endswith(end)]
        own = [self.path / name for name in sorted(names)]
        return [self.merged, *own] if self.merged.exists() else own

    def merge(self) -> MergeReport:
        """Join all files of the run into ``<run>.out``.

        Files of processes that still write are read but kept. The others are
        deleted once the merged log is on disk under its final name.

        Returns
        -------
        MergeReport
        """
        with self.locked("merge.lock"):
            done: list[tuple[Path, int]] = []
            reader = LogReader(self)
            for path in self.files():
                handle = os.open(path, os.O_RDONLY)
                free = _try_lock(handle)
                reader.read(path)
                if free and path != self.merged:
                    done.append((path, handle))  # stays locked until it is deleted
                else:
                    os.close(handle)
            with write_aside(self.merged, "wb") as file:
                file.writelines(reader.lines.values())
            for path, handle in done:
                path.unlink()
                os.close(handle)
            sync_folder(self.path)
        counts = reader.repeated, reader.torn(), reader.malformed
        return MergeReport(self.merged, len(reader.lines), *counts)


class LogReader:
    """Follows the files of a run; each key counts once.

    Attributes
    ----------
    lines : dict of str to bytes
        Key of a fit to its line.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.lines: dict[str, bytes] = {}
        self.repeated = 0
        self.malformed = 0
        self._at: dict[Path, int] = {}
        self._torn: dict[Path, bool] = {}
        self._merged_as: tuple[int, int] | None = None

    def __contains__(self, key: str) -> bool:
        return key in self.lines

    def refresh(self) -> None:
        """Read what was added since the last call."""
        for path in self.folder.files():
            if path == self.folder.merged:
                stat = path.stat()
                if self._merged_as == (stat.st_ino, stat.st_size):
                    continue
                self._merged_as = stat.st_ino, stat.st_size
                self._at.pop(path, None)
            self.read(path)

    def read(self, path: Path) -> None:
        """Read a file from where the last call ended, up to its last whole line."""
        begin = self._at.get(path, 0)
        try:
            # Only an opened file is known to have its present size on NFS.
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return  # merged meanwhile: its lines are in the merged log
        with open(handle, "rb", buffering=0) as file:
            if os.fstat(handle).st_size == begin:
                return
            file.seek(begin)
            text = file.readall()
        whole = text.rfind(b"\n") + 1
        self._at[path] = begin + whole
        self._torn[path] = whole < len(text)
        for line in text[:whole].splitlines(keepends=True):
            self._take(line)

    def torn(self) -> int:
        """Number of files that end within a line."""
        return sum(self._torn.values())

    def scores(self, key: str) -> dict[str, Any]:
        """Scores of a fit."""
        line = self.lines[key].partition(b"\t")[2]
        try:
            return entries_from_literal(line.decode())
        except (ParameterError, UnicodeDecodeError) as error:
            raise DataError(
                f"run {self.folder.name!r}: fit {key} cannot be read: {error}"
            ) from None

    def _take(self, line: bytes) -> None:
        key = key_of(line)
        if key is None:
            self.malformed += 1
        elif key in self.lines:
            self.repeated += 1
        else:
            self.lines[key] = line


class LogWriter:
    """One process's own file of a run, opened at the first line."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._handle: int | None = None

    def write(self, record: Record) -> None:
        """Append the line of a record and hand it to the operating system."""
        self.write_line(format_line(record).encode())

    def write_line(self, text: bytes) -> None:
        """Append one whole line and hand it to the operating system."""
        if self._handle is None:
            self._handle = self._open()
        while text:
            text = text[os.write(self._handle, text) :]

    def close(self) -> None:
        """End the file; its lock goes with it."""
        if self._handle is not None:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"
        for number in range(10_000):
            again = f"-{number}" if number else ""
            name = f"{self.folder.name}.{host}.{os.getpid()}{again}.out.tmp"
            path = self.folder.path / name
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
            except FileExistsError:
                continue  # left by a process of the same number
            # A merge may take a file for abandoned before it is locked.
            if _try_lock(handle) and os.fstat(handle).st_nlink:
                return handle
            os.close(handle)
        raise DataError(f"no free name for a log file in {self.folder.path}")


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def plan_differences(was: Any, now: Any, where: str = "") -> Iterator[str]:
    """Every leaf that differs between two plans, in words."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted(was.keys() | now.keys()):
            yield from plan_differences(was.get(name), now.get(name), name)
    elif was != now:
        yield f"{where} was {was}, is {now}"
