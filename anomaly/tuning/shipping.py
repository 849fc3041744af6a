"""Code and its checks for Dask workers that have Python and the libraries only.

`ship` sends this package, and modules of the user that are not installed, to
the scheduler and to every worker of a cluster, present and future. Each keeps
them in ``~/.cache/anomaly/code/<sha256>``; see `anomaly.tuning.arrival`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import logging
import pickle
import site
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anomaly
from anomaly.errors import ParameterError, require
from anomaly.tuning import arrival

PLUGIN = "anomaly-code"
REFUSED = "anomaly-refused"
# More than this is no source code.
_LARGEST = 64 * 2**20

_log = logging.getLogger(__name__)


def ship(client: Any, objects: Iterable[Any] = ()) -> dict[str, str]:
    """Give the scheduler and all workers of a cluster the code of this process.

    Workers that join later get it before their first task, or leave again when
    they are refused. Call it before anything else is sent, since neither the
    scheduler nor a worker can read a task without the code. Every refusal is
    logged as a warning.

    Parameters
    ----------
    client : distributed.Client
    objects : iterable, default=()
        What tasks will be made of: the modules of their classes are sent, too,
        with what these import, where they are not installed.

    Returns
    -------
    dict of str to str
        Address of every worker that was refused, to the reason.

    Raises
    ------
    ParameterError
        If the scheduler or every worker is refused, with the reasons.
    """
    require("distributed", extra="dask")
    trees = code_trees(objects)
    arguments: dict[str, Any] = {
        "archive": pack(trees),
        "digests": {name: arrival.tree_digest(path) for name, path in trees.items()},
        "platform_tag": arrival.platform_name(),
    }
    before = len(client.get_events(REFUSED) or ())
    client.subscribe_topic(REFUSED, _warn)
    present = frozenset(client.scheduler_info(n_workers=-1)["workers"])
    try:
        mark = hashlib.sha256(arguments["archive"]).hexdigest()[:16]
        client.register_plugin(_carried("scheduler", present, arguments), name=f"{PLUGIN}-{mark}")
    except RuntimeError as error:
        raise ParameterError(f"refused: {error}") from None
    try:
        client.register_plugin(_carried("worker", present, arguments), name=PLUGIN)
    except RuntimeError:
        events = (client.get_events(REFUSED) or ())[before:]
        refused = {event["worker"]: str(event["reason"]) for _, event in events}
        if present <= refused.keys():
            raise ParameterError(f"refused: {'; '.join(sorted(refused.values()))}") from None
        return refused
    return {}


def _warn(event: tuple[float, Mapping[str, str]]) -> None:
    _log.warning("worker refused: %s", event[1]["reason"])


# The packages -------------------------------------------------------------------------


def code_trees(objects: Iterable[Any] = ()) -> dict[str, Path]:
    """Packages to send: this one, and those of the objects' classes that are not installed.

    Returns
    -------
    dict of str to Path
        Top-level name to its folder or file.
    """
    found = {"anomaly": Path(anomaly.__file__).parent}
    waiting = {name.partition(".")[0] for name in modules_of(objects)}
    while waiting:
        name = waiting.pop()
        path = None if name in found or name == "__main__" else _own_code(name)
        if path is not None:
            found[name] = path
            waiting |= _imported(path)
    return found


def pack(trees: Mapping[str, Path]) -> bytes:
    """Zip of the packages and of what builds the native core; the same trees, the same bytes.

    Raises
    ------
    ParameterError
        If the files are too large to be code.
    """
    files = {
        (inner if path.is_file() else f"{path.name}/{inner}"): each
        for path in trees.values()
        for inner, each in arrival.tree_files(path)
    }
    package = trees["anomaly"]
    core, sources = package.parent / arrival.CORE, package.parent / arrival.SOURCES
    files |= {arrival.CORE: core} if core.exists() else {}
    for pattern in ("*.[ch]", "python/*.[ch]"):
        for path in sources.glob(pattern):
            files[f"{arrival.SOURCES}/{path.relative_to(sources).as_posix()}"] = path
    size = sum(path.stat().st_size for path in files.values())
    if size > _LARGEST:
        raise ParameterError(
            f"the code to send, {', '.join(trees)}, has {size / 2**20:.0f} MiB, at most "
            f"{_LARGEST >> 20} are sent; keep data out of the folders of packages"
        )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            # A fixed time, so that the archive depends on the content alone.
            archive.writestr(_entry(name), files[name].read_bytes())
    return packed.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


class _Modules(pickle.Pickler):
    """Notes the module of every class and function that a pickle names."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.names: set[str] = set()

    def persistent_id(self, obj: Any) -> None:
        """Look at an object on its way; nothing is replaced."""
        if isinstance(obj, type) or callable(obj):
            self.names.add(str(getattr(obj, "__module__", None) or "builtins"))


def modules_of(objects: Iterable[Any]) -> set[str]:
    """Modules of all classes and functions that objects are made of."""
    pickler = _Modules()
    pickler.dump(list(objects))
    return pickler.names


def _own_code(name: str) -> Path | None:
    """Folder or file of a top-level module of the user; None for what is installed."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if found is None or found.origin in (None, "built-in", "frozen"):
        return None
    path = Path(str(found.origin)).resolve()
    paths = sysconfig.get_paths()
    installed = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed += [*site.getsitepackages(), site.getusersitepackages()]
    installed += [str(Path(entry).resolve()) for entry in sys.path if "-packages" in entry]
    if any(path.is_relative_to(Path(each).resolve()) for each in installed):
        return None
    return path.parent if found.submodule_search_locations else path


def _imported(root: Path) -> set[str]:
    """Top-level names that the files of a package import."""
    names = set()
    for _, path in arrival.tree_files(root):
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.partition(".")[0])
    return names


# The plugin ----------------------------------------------------------------------------


def _carried(kind: str, present: frozenset[str], arguments: Mapping[str, Any]) -> Any:
    """A plugin that is pickled as the text of `arrival`.

    Text, since the other side may run another Python, whose byte code differs:
    it must get as far as saying so.
    """
    from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

    made = "(exec(text, scope := {'__name__': 'anomaly_arrival'}), scope['plugin'](*given))[1]"
    given = {
        "text": Path(arrival.__file__).read_text("utf-8"),
        "given": (kind, present, arguments),
    }

    class ForWorkers(WorkerPlugin):
        def __reduce__(self) -> Any:
            return eval, (made, given)

    class ForScheduler(SchedulerPlugin):
        idempotent = True  # its name says what it carries

        def __reduce__(self) -> Any:
            return eval, (made, given)

    return ForWorkers() if kind == "worker" else ForScheduler()
