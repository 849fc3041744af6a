"""What a Dask worker does for a search; called there, by tasks of `anomaly.tuning.cluster`.

The worker itself fits nothing. It keeps a child process per thread
(`anomaly.tuning.fitter`), and a folder on its own disk that holds the lines of
finished fits until the run has ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import anomaly
from anomaly.errors import DataError
from anomaly.tuning.fitter import Answer, FitProcess, module_path
from anomaly.tuning.log import LogReader, RunFolder

# Lines of a run that was never continued are deleted after this long.
_KEPT_S = 30 * 86400.0
_STORE = re.compile(r"-[0-9a-f]{16}$")


@dataclass(frozen=True)
class Spec:
    """What the child processes of a search have in common.

    Attributes
    ----------
    session : str
        Mark of the client's connection.
    data : str
        Digest of the pickled `Folds`.
    skew : str
        Noted in every line.
    """

    session: str
    data: str
    skew: str = ""


@dataclass(frozen=True)
class Store:
    """Folder on every worker's own disk for the lines of a run.

    Attributes
    ----------
    parent : str or None
        Where it stands; None is ``$XDG_STATE_HOME/anomaly/runs``.
    name : str
        Name and mark of the run.
    """

    parent: str | None
    name: str

    def path(self) -> Path:
        """The folder on this host; a name never leads elsewhere."""
        parent = self.parent
        if parent is None:
            state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
            parent = os.path.join(state, "anomaly", "runs")
        return Path(parent).expanduser() / Path(self.name).name


_idle: dict[Spec, list[FitProcess]] = {}
_busy: dict[FitProcess, Spec] = {}
_lock = threading.Lock()


def run_unit_here(
    payload: bytes,
    mark: str,
    spec: Spec,
    store: Store | None,
    unit: bytes,
    limit_s: float | None,
) -> Answer:
    """Run a pickled unit in a child process of this worker.

    A worker of another mark has not been asked for its versions.
    """
    if mark != own_mark():
        return Answer(end="stranger")
    path = None if store is None else store.path()
    if path is not None and not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        _forget_old(path.parent)
    try:
        process = _take(payload, spec)
    except DataError as error:
        return Answer(end="failed", why=str(error))
    try:
        return process.run(unit, path, limit_s)
    finally:
        _give(process, spec)


def _take(payload: bytes, spec: Spec) -> FitProcess:
    """An idle child process, or a new one; those of other data are not needed any more."""
    with _lock:
        _end([s for s in _idle if s.session == spec.session and s != spec])
        found = _idle.setdefault(spec, [])
        while found:
            process = found.pop()
            # The code of a classifier may have come after the process began.
            if process.is_alive and process.path == module_path():
                break
            process.close()
        else:
            if hashlib.sha256(payload).hexdigest()[:16] != spec.data:
                raise DataError("the rows that came to this worker are not those of the run")
            process = FitProcess(payload, spec.skew)
        _busy[process] = spec
    return process


def _give(process: FitProcess, spec: Spec) -> None:
    with _lock:
        if _busy.pop(process, None) is not None and process.is_alive:
            _idle.setdefault(spec, []).append(process)
        else:
            process.close()


def _end(specs: Iterable[Spec]) -> None:
    for spec in list(specs):
        for process in _idle.pop(spec):
            process.close()


def end_session(session: str, finished: Iterable[Store]) -> None:
    """Stop the child processes of a client, and delete the lines of finished runs."""
    with _lock:
        _end([spec for spec in _idle if spec.session == session])
        for process in [p for p, spec in _busy.items() if spec.session == session]:
            del _busy[process]
            process.kill()
    for store in finished:
        with contextlib.suppress(OSError):
            shutil.rmtree(store.path())


# Versions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """What a worker says of itself."""

    name: str
    mark: str
    versions: dict[str, str]


def describe_host(libraries: Iterable[str]) -> Host:
    """Name of this host, and its versions of some libraries."""
    return Host(socket.gethostname(), own_mark(), versions_of(libraries))


@cache
def own_mark() -> str:
    """Random mark of this process."""
    return secrets.token_hex(8)


def versions_of(libraries: Iterable[str]) -> dict[str, str]:
    """Versions of libraries here, of Python, and of the code of this package."""
    found = {
        "anomaly": anomaly.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "code of anomaly": code_fingerprint(),
    }
    for name in libraries:
        if name not in found:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = "missing"
    return found


@cache
def code_fingerprint() -> str:
    """Digest of the Python sources of this package."""
    digest = hashlib.sha256()
    root = Path(anomaly.__file__).parent
    for path in sorted(root.rglob("*.py")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode())
        digest.update(text)
    return digest.hexdigest()[:12]


# Lines on this worker's disk --------------------------------------------------------------


def lines_here(store: Store) -> list[bytes]:
    """Lines that processes of this host have written for a run."""
    path = store.path()
    if not path.is_dir():
        return []
    reader = LogReader(RunFolder(path))
    reader.refresh()
    return list(reader.lines.values())


def _forget_old(parent: Path) -> None:
    """Delete the lines of runs that nobody has continued; nothing else in the folder."""
    for path in parent.iterdir():
        with contextlib.suppress(OSError):
            if _STORE.search(path.name):
                last = max(p.stat().st_mtime for p in (path, *path.iterdir()))
                if time.time() - last > _KEPT_S:
                    shutil.rmtree(path)


def differences(here: dict[str, Any], there: dict[str, Any]) -> str:
    """What a host has otherwise, in words; empty if nothing.

    Examples
    --------
    >>> from anomaly.tuning.remote import differences
    >>> differences({"numpy": "2.4", "scipy": "1.17"}, {"numpy": "2.3", "scipy": "1.17"})
    'numpy 2.3 (here 2.4)'
    """
    names = [name for name in sorted(here) if there.get(name) != here[name]]
    return ", ".join(f"{n} {there.get(n, 'missing')} (here {here[n]})" for n in names)
