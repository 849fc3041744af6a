"""Files that are whole or absent: written aside, flushed, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def write_aside(path: str | os.PathLike[str], mode: str = "w", **kwargs: Any) -> Iterator[IO[Any]]:
    """Open a file that takes its final name only when the block succeeds.

    The content goes to a temporary file in the same folder. It is flushed to
    disk and renamed when the block ends, and deleted when the block raises, so
    a reader sees the old file or the new one and never a part of one.

    Parameters
    ----------
    path : str or PathLike
        Final name. Missing parent folders are an error, as with ``open``.
    mode : {"w", "wb"}
        Text (UTF-8, newlines untouched) or binary.
    **kwargs
        Passed to ``open``.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from anomaly.files import write_aside
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with write_aside(f"{folder}/scores.csv") as file:
    ...         _ = file.write("id;F1\\n")
    ...     pathlib.Path(folder, "scores.csv").read_text()
    'id;F1\\n'
    """
    final = Path(path)
    if "b" not in mode:
        kwargs = {"encoding": "utf-8", "newline": "", **kwargs}
    try:
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".part", dir=final.parent)
    except OSError as error:  # name the file that was asked for, not the temporary one
        raise type(error)(error.errno, error.strerror, str(final)) from None
    try:
        with os.fdopen(handle, mode, **kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, final.stat().st_mode if final.exists() else 0o666 & ~_umask())
        os.replace(name, final)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(final.parent)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames and new names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
