"""What a Dask worker does with code that is shipped to it, before it has that code.

This file travels as text and runs on hosts that have no ``anomaly`` yet, under
their own Python: it imports the standard library only, and nothing of it is
pickled. `anomaly.tuning.shipping` is the side that sends.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import io
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CORE = "anomaly/_core.abi3.so"
SOURCES = "libdetect"
# As in setup.py: the same seed gives the same bits wherever the core is built.
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-DPy_LIMITED_API=0x030B0000")
# Code that no run has used for so long is deleted.
_KEPT_S = 30 * 24 * 3600.0


class RefusedError(RuntimeError):
    """This process cannot take part in the run; the text says why."""


def receive(archive: bytes, digests: Mapping[str, str], platform_tag: str) -> str:
    """Unpack the code that was sent, and put it on the path.

    Parameters
    ----------
    archive : bytes
        Zip of the packages; the native core in it is for ``platform_tag``.
    digests : mapping of str to str
        Name of each package in the archive to its `tree_digest`.
    platform_tag : str
        `platform_name` of the sender.

    Returns
    -------
    str
        The folder that is now on the path, or "" if the same code was there.

    Raises
    ------
    RefusedError
        For an old Python, for other code that is loaded already, and where the
        native core can neither be loaded nor built.
    """
    if sys.version_info < (3, 11):  # noqa: UP036 - this may be any Python
        raise RefusedError(
            f"Python {platform.python_version()} is too old, 3.11 or newer is needed"
        )
    loaded = [name for name in digests if name in sys.modules]
    for name in loaded:
        where = location(name)
        if where is None or tree_digest(where) != digests[name]:
            raise RefusedError(
                f"another version of {name} is loaded from {where}; restart the process"
            )
    if len(loaded) == len(digests):
        return ""
    folder = str(unpack(archive, platform_tag))
    sys.path.insert(0, folder)
    # Processes that this one starts look there, too.
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = folder + (os.pathsep + inherited if inherited else "")
    importlib.invalidate_caches()
    return folder


def location(name: str) -> Path | None:
    """Folder of a loaded package, or file of a loaded module."""
    module = sys.modules[name]
    for path in getattr(module, "__path__", None) or [getattr(module, "__file__", None)]:
        if path:
            return Path(path)
    return None


def tree_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Files of a package in order, as relative name and path; compiled ones are left out."""
    if root.is_file():
        yield root.name, root
        return
    for path in sorted(root.rglob("*"), key=lambda each: each.relative_to(root).as_posix()):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if not hidden and path.suffix not in (".pyc", ".so") and path.is_file():
            yield "/".join(parts), path


def tree_digest(root: Path) -> str:
    """Digest of the names and contents of the files of a package."""
    digest = hashlib.sha256()
    for name, path in tree_files(root):
        content = path.read_bytes()
        digest.update(f"{name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def platform_name() -> str:
    """Machines of the same name can often load each other's native core."""
    return f"{sysconfig.get_platform()} {sys.implementation.name}"


def unpack(archive: bytes, platform_tag: str) -> Path:
    """Folder of the user's cache that holds the archive, native core included."""
    digest = hashlib.sha256(f"{platform_name()}\n".encode() + archive).hexdigest()
    store = code_store()
    folder = store / digest
    if not folder.is_dir():
        made = Path(tempfile.mkdtemp(prefix=".part-", dir=store))
        try:
            with zipfile.ZipFile(io.BytesIO(archive)) as packed:
                packed.extractall(made)
            if (made / "anomaly").is_dir():
                ensure_core(made, platform_tag)
            try:
                made.rename(folder)
            except OSError:  # another process was first
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    os.utime(folder)
    forget_old(store)
    return folder


def code_store() -> Path:
    """Where shipped code is kept, for this user alone."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    store = Path(cache, "anomaly", "code")
    try:
        store.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=store):
            return store
    except OSError:  # no home, or one that cannot be written
        return Path(tempfile.mkdtemp(prefix="anomaly-code-"))


def forget_old(store: Path) -> None:
    """Delete code that was not used for a month."""
    for path in store.iterdir():
        try:
            if time.time() - path.stat().st_mtime > _KEPT_S:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue


def ensure_core(folder: Path, platform_tag: str) -> None:
    """Keep the native core that was sent if it can be loaded here; build it otherwise."""
    core = folder / CORE
    if platform_tag == platform_name() and core.exists():
        try:
            ctypes.PyDLL(str(core))
        except OSError:  # of a newer libc, say
            pass
        else:
            return
    build_core(folder / SOURCES, core)


def build_core(sources: Path, core: Path) -> None:
    """Compile the native core with the C compiler of this machine.

    Raises
    ------
    RefusedError
        Saying what is missing.
    """
    files = sorted(map(str, [*sources.glob("*.c"), *sources.glob("python/*.c")]))
    include = sysconfig.get_paths()["include"]
    compiler = shlex.split(os.environ.get("CC", "cc"))
    what = f"the native core that was sent does not fit {platform_name()}, and "
    if not files:
        raise RefusedError(what + "its sources were not sent: install anomaly there")
    if shutil.which(compiler[0]) is None:
        raise RefusedError(
            f"{what}there is no C compiler {compiler[0]!r} (Debian: apt install gcc)"
        )
    if not Path(include, "Python.h").exists():
        raise RefusedError(
            f"{what}{include}/Python.h is missing (Debian: apt install python3-dev)"
        )
    more = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    command = [*compiler, "-shared", "-fPIC", *FLAGS, *more]
    command += [f"-I{include}", f"-I{sources}", "-o", str(core), *files, "-pthread", "-lm"]
    core.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RefusedError(f"{what}it cannot be built: {done.stderr.strip()[-500:]}")


def plugin(kind: str, present: frozenset[str], arguments: Mapping[str, Any]) -> Any:
    """The plugin for a ``worker`` or for the ``scheduler`` that calls `receive`.

    A worker that is not yet ``present`` has joined a run under way: when it is
    refused it leaves again, since nobody waits for its answer. Refusals are
    events of the topic ``anomaly-refused``.
    """
    from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

    class Receive(WorkerPlugin):
        """Takes the code on every worker, also on those that join later."""

        def setup(self, worker: Any) -> None:
            try:
                receive(**arguments)
            except Exception as error:
                reason = f"{worker.name} ({worker.address}): {error}"
                worker.log_event("anomaly-refused", {"worker": worker.address, "reason": reason})
                if worker.address not in present:
                    worker.loop.add_callback(worker.close, reason=f"refused: {reason}")
                # A class of this file cannot be unpickled by the sender.
                raise RuntimeError(reason) from None

    class ReceiveOnScheduler(SchedulerPlugin):
        """Takes the code on the scheduler, which reads the names of what tasks call."""

        async def start(self, scheduler: Any) -> None:
            try:
                receive(**arguments)
            except Exception as error:
                raise RuntimeError(f"the scheduler ({scheduler.address}): {error}") from None

    return Receive() if kind == "worker" else ReceiveOnScheduler()
