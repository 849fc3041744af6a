"""What a run folder holds, read without changing anything.

The text of this file is also sent to other hosts and run by the ``python3``
that is there: it imports the standard library only.
"""

from __future__ import annotations

import ast
import base64
import fcntl
import json
import os
import re
import socket
import sys
import time
import zlib
from pathlib import Path
from typing import Any

MARK = "anomaly-probe:"
_KEY = re.compile(rb"'key': '([0-9a-f]{16})'")
_COUNTS = re.compile(rb"'tn': (\d+), 'fp': (\d+), 'fn': (\d+), 'tp': (\d+)")
_SECONDS = re.compile(rb"'(?:fit|predict)_seconds': ([0-9.e+-]+)")
_FAILED = re.compile(rb"'failed': ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")")


def probe(path: str) -> dict[str, Any]:
    """Everything that can be said of a run without its code and its data.

    Returns
    -------
    dict
        ``plan`` and ``progress`` (``run.json`` and ``progress.json``, None where
        absent); ``is_alive``, whether the process that wrote the latter lives
        (None if it was on another host); ``now`` (seconds); ``files`` (``name``,
        ``host``, ``is_open`` while its process lives, ``changed``); ``fits`` by key
        (number of the file, the four counts or None, seconds); ``failed``
        reasons by key.
    """
    folder = Path(path)
    found: dict[str, Any] = {
        "plan": _read_json(folder / "run.json"),
        "progress": _read_json(folder / "progress.json"),
        "now": time.time(),
        "files": [],
        "fits": {},
        "failed": {},
    }
    found["is_alive"] = _is_alive(found["progress"])
    merged = folder.parent / f"{folder.name}.out"
    own = sorted(folder.glob(f"{folder.name}.*.out.tmp"))
    for file in [merged, *own]:
        _read_log(file, folder.name, found)
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_alive(progress: Any) -> Any:
    """Whether a process of this host lives."""
    if not progress or progress.get("host") != socket.gethostname():
        return None
    try:
        os.kill(int(progress["pid"]), 0)
    except PermissionError:  # it is another user's
        return True
    except (OSError, KeyError, ValueError):
        return False
    return True


def _read_log(path: Path, run: str, found: dict[str, Any]) -> None:
    try:
        with open(path, "rb") as file:
            host, _, _ = path.name[len(run) + 1 :].partition(".")
            entry = {
                "name": path.name,
                "host": "" if path.name == f"{run}.out" else host,
                "is_open": _is_locked(file.fileno()),
                "changed": os.fstat(file.fileno()).st_mtime,
            }
            number = len(found["files"])
            found["files"].append(entry)
            for line in file:
                if line.endswith(b"}\n"):
                    _take(line.partition(b"\t")[2], number, found)
    except FileNotFoundError:
        return  # merged meanwhile, or not yet


def _is_locked(handle: int) -> bool:
    """Whether the process that writes a file lives: it holds a lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(handle, fcntl.LOCK_UN)
    return False


def _take(scores: bytes, number: int, found: dict[str, Any]) -> None:
    key = _KEY.search(scores)
    if key is None or key[1].decode() in found["fits"]:
        return
    name = key[1].decode()
    counts = _COUNTS.search(scores)
    seconds = sum(float(text) for text in _SECONDS.findall(scores) if text != b"nan")
    found["fits"][name] = [
        number,
        None if counts is None else [int(each) for each in counts.groups()],
        round(seconds, 6),
    ]
    failed = _FAILED.search(scores)
    if failed is not None:
        found["failed"][name] = str(ast.literal_eval(failed[1].decode(errors="replace")))


def main() -> None:
    """Print what `probe` finds in the folder that is the only argument, packed into a line."""
    answer = json.dumps(probe(sys.argv[1])).encode()
    print(MARK + base64.b64encode(zlib.compress(answer)).decode())


if __name__ == "__main__":
    main()
