"""Files on this machine or at any fsspec address, whole or absent when written.

An address is an absolute path, or what fsspec understands: ``s3://bucket/key``,
``gs://…``, ``abfs://…``, ``sftp://host/path``. Passwords and keys belong into the
environment or fsspec's own configuration, never into an address.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from anomaly.errors import DataError, MissingExtraError, ParameterError, require
from anomaly.files import write_aside as write_local

__all__ = ["Stored", "Tree", "clean", "find", "is_local", "tree_of"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# A file put there appears when it is whole; elsewhere it is put aside and renamed.
_OBJECT_STORES = frozenset(
    {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"}
)
_EXTRAS = {"s3a": "s3", "gs": "gcs", "az": "abfs", "abfss": "abfs"}
_MARKS = (
    "ETag",
    "etag",
    "md5Hash",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
_BLOCK = 8 << 20


@dataclass(frozen=True)
class Stored:
    """A file as it was found: where, its name below the folder searched, size and version."""

    address: str
    name: str
    size: int
    mark: str


def is_local(address: str) -> bool:
    """Whether an address is a path of this machine.

    Examples
    --------
    >>> from production.places import is_local
    >>> is_local("data/a.csv"), is_local("file:///data/a.csv"), is_local("s3://bucket/a.csv")
    (True, True, False)
    """
    return address.startswith("file://") or not _SCHEME.match(address)


def clean(address: str) -> str:
    """An address without a doubt: an absolute path, or a scheme and path without a password.

    Raises
    ------
    ParameterError
    """
    if is_local(address):
        return os.path.abspath(address.removeprefix("file://"))
    if "::" in address:
        raise ParameterError(f"addresses in one another are not supported, got {address}")
    if urlsplit(address).password:
        place = re.sub(r"//[^/@]*@", "//…@", address)
        raise ParameterError(f"{place}: leave the password to the environment")
    return address


def tree_of(address: str) -> Tree:
    """The file tree that an address belongs to."""
    return _Here() if is_local(address) else _There(address)


def find(pattern: str) -> list[Stored]:
    """Files at an address: the file itself, those of a pattern, or those below a folder.

    Names are relative to the folder, or to the part of a pattern before the first
    wildcard, and keep the subfolders below it. Hidden files, and those that begin
    with an underscore, are left out of patterns and folders. Sorted by name.

    Raises
    ------
    DataError
        If there is none.
    """
    address = clean(pattern)
    found = tree_of(address).find(address)
    if not found:
        raise DataError(f"{pattern}: no such file")
    return sorted(found, key=lambda stored: stored.name)


def _is_hidden(name: str) -> bool:
    return any(step.startswith((".", "_")) for step in name.split("/"))


def _root(pattern: str) -> str:
    """The folder before the first wildcard."""
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    return fixed.rpartition("/")[0]


class Tree:
    """What scoring needs of a file tree."""

    def find(self, pattern: str) -> list[Stored]:
        """Files of a pattern, a folder, or one file."""
        raise NotImplementedError

    def below(self, folder: str) -> dict[str, int]:
        """Sizes of all files below a folder, hidden ones too, by address."""
        raise NotImplementedError

    def look(self, address: str, name: str = "") -> Stored:
        """Size and version of a file; FileNotFoundError where there is none."""
        raise NotImplementedError

    def open(self, address: str) -> IO[bytes]:
        """Open for reading, with ``seek``."""
        raise NotImplementedError

    def write_aside(self, address: str) -> Any:
        """Context of a binary file that takes its name when the block succeeds."""
        raise NotImplementedError

    def remove(self, address: str) -> None:
        """Remove a file, if it is there."""
        raise NotImplementedError

    def size(self, address: str) -> int | None:
        """Size of a file, None where there is none."""
        try:
            return self.look(address).size
        except FileNotFoundError:
            return None


class _Here(Tree):
    """The file system of this machine."""

    def find(self, pattern: str) -> list[Stored]:
        if os.path.isfile(pattern):
            return [self.look(pattern, os.path.basename(pattern))]
        if os.path.isdir(pattern):
            root, paths = pattern, [str(path) for path in Path(pattern).rglob("*")]
        else:
            root = _root(pattern) or "/"
            paths = glob.glob(pattern, recursive=True)
        names = {os.path.relpath(path, root): path for path in paths if os.path.isfile(path)}
        return [self.look(path, name) for name, path in names.items() if not _is_hidden(name)]

    def below(self, folder: str) -> dict[str, int]:
        sizes = {}
        for path, _, names in os.walk(folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # removed in the meantime
                    sizes[os.path.join(path, name)] = os.lstat(os.path.join(path, name)).st_size
        return sizes

    def look(self, address: str, name: str = "") -> Stored:
        state = os.stat(address)
        return Stored(address, name, state.st_size, str(state.st_mtime_ns))

    def open(self, address: str) -> IO[bytes]:
        return open(address, "rb")

    @contextlib.contextmanager
    def write_aside(self, address: str) -> Iterator[IO[bytes]]:
        os.makedirs(os.path.dirname(address), exist_ok=True)
        with write_local(address, "wb") as file:
            yield file

    def remove(self, address: str) -> None:
        Path(address).unlink(missing_ok=True)


class _There(Tree):
    """A file tree behind fsspec."""

    def __init__(self, address: str) -> None:
        core = require("fsspec.core", extra="dask")
        scheme = address.partition("://")[0]
        try:
            self._fs: Any = core.url_to_fs(address)[0]
        except ImportError as error:
            extra = _EXTRAS.get(scheme, scheme)
            raise MissingExtraError(
                f"{scheme}:// needs another library; run: pip install 'fsspec[{extra}]'"
            ) from error
        except ValueError as error:
            raise ParameterError(f"{address}: {error}") from error
        self._is_store = scheme in _OBJECT_STORES

    def find(self, pattern: str) -> list[Stored]:
        self._fs.invalidate_cache()
        if re.search(r"[*?\[]", pattern):
            root, listed = _root(pattern), self._fs.glob(pattern, detail=True)
        elif self._fs.isfile(pattern):
            return [self.look(pattern, pattern.rpartition("/")[2])]
        else:
            root, listed = pattern.rstrip("/"), self._fs.find(pattern, detail=True)
        found = self._named(root, listed)
        return [stored for stored in found if not _is_hidden(stored.name)]

    def below(self, folder: str) -> dict[str, int]:
        self._fs.invalidate_cache()
        found = self._named(folder, self._fs.find(folder, detail=True))
        return {stored.address: stored.size for stored in found}

    def _named(self, root: str, listed: dict[str, Any]) -> list[Stored]:
        """Files of a listing, which may spell their root otherwise than the address did."""
        bare = self._fs._strip_protocol(root).rstrip("/") + "/"
        names = {path.removeprefix(bare): info for path, info in listed.items()}
        return [
            _stored(f"{root}/{name}", name, info)
            for name, info in names.items()
            if info["type"] == "file"
        ]

    def look(self, address: str, name: str = "") -> Stored:
        self._fs.invalidate_cache(self._fs._parent(address))
        return _stored(address, name, self._fs.info(address))

    def open(self, address: str) -> IO[bytes]:
        opened: IO[bytes] = self._fs.open(address, "rb", block_size=_BLOCK, cache_type="readahead")
        return opened

    @contextlib.contextmanager
    def write_aside(self, address: str) -> Iterator[IO[bytes]]:
        """Write a file here, then put it there, so that no torn stream is ever closed."""
        with tempfile.NamedTemporaryFile(prefix="anomaly-", suffix=".part") as file:
            yield file
            file.flush()
            if self._is_store:
                self._fs.put_file(file.name, address)
                return
            self._fs.makedirs(address.rpartition("/")[0], exist_ok=True)
            folder, _, name = address.rpartition("/")
            aside = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.part"
            self._fs.put_file(file.name, aside)
            if self._fs.exists(address):
                self._fs.rm_file(address)
            self._fs.mv(aside, address)

    def remove(self, address: str) -> None:
        try:
            self._fs.rm_file(address)
        except FileNotFoundError:
            return


def _stored(address: str, name: str, info: dict[str, Any]) -> Stored:
    mark = next((info[key] for key in _MARKS if info.get(key) is not None), "")
    if hasattr(mark, "timestamp"):  # some trees say it as a time here, as seconds there
        mark = mark.timestamp()
    return Stored(address, name, int(info["size"] or 0), str(mark))
