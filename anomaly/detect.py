"""The interface of the original detector: windows as text in, a verdict as text out."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly import _core
from anomaly.errors import ParameterError
from anomaly.value import THRESHOLD, model_path
from anomaly.windows import MAX_WINDOW, MIN_WINDOW

#: Return code of every fault in the parameters.
PARAMETER_FAULT = 1002

DEFAULT_WINDOW = 180

Verdict = tuple[int, dict[str, Any] | str]


class _FaultError(Exception):
    """A fault in the parameters; its text is the answer."""


class Detect:
    """Test windows given as comma-joined numbers.

    Parameters
    ----------
    models : str or PathLike, optional
        Folder in which task ids are looked up; by default the environment's
        ``ANOMALY_MODELS``, else the folder of the shipped model.

    Notes
    -----
    A model is read when it is first asked for, and again only after its file has
    changed. One object may serve many threads.

    Examples
    --------
    >>> import anomaly
    >>> history = ",".join(["9", "10", "12"] * 120 + ["9"])
    >>> data = {"window": 180, "dataC": history, "dataB": history}
    >>> data["dataA"] = ",".join(["10", "9", "12"] * 60) + ",458"
    >>> code, answer = anomaly.Detect().value_predict(data)
    >>> code, answer["ret"], float(answer["p"]) < 0.15
    (0, 0, True)
    >>> anomaly.Detect().value_predict({**data, "dataA": ""})
    (1002, 'dataA can not be empty')
    """

    def __init__(self, models: str | os.PathLike[str] | None = None):
        self._folder = None if models is None else Path(models)
        self._default = str(model_path())
        self._models: dict[str, tuple[tuple[int, int, int], Any]] = {}
        self._lock = threading.Lock()

    def value_predict(self, data: Mapping[str, Any]) -> Verdict:
        """Test the last point of ``dataA`` as a value.

        Parameters
        ----------
        data : mapping
            ``dataC``, ``dataB`` and ``dataA``: comma-joined numbers, 2·window+1,
            2·window+1 and window+1 of them. ``window``: 180 by default.
            ``taskId``: the model to use. Other keys are ignored.

        Returns
        -------
        code : int
            0, or 1002 for a fault in the parameters.
        answer : dict or str
            ``{"ret": 0 | 1, "p": text}``: ret 1 is normal, p the probability of
            normal, and ret is 0 when p is below 0.15; or what is at fault.
        """
        try:
            row, window = _window(data)
            model = self._model(data.get("taskId"))
        except _FaultError as fault:
            return PARAMETER_FAULT, str(fault)
        score, normal, code = np.empty(1), np.empty(1), np.zeros(1, dtype=np.int32)
        _core.value_test(model, row, window, score, normal, code, 1)
        return _verdict(int(code[0]), float(normal[0]))

    def rate_predict(self, data: Mapping[str, Any]) -> Verdict:
        """Test the last point of ``dataA`` as a rate.

        Parameters
        ----------
        data : mapping
            As for `value_predict`; there is no model.

        Returns
        -------
        code : int
        answer : dict or str
        """
        try:
            row, window = _window(data)
        except _FaultError as fault:
            return PARAMETER_FAULT, str(fault)
        score, normal, code = np.empty(1), np.empty(1), np.zeros(1, dtype=np.int32)
        _core.rate_test(row, None, window, 1, 0, 0, 3.0, 0.0027, 0.001, score, normal, code)
        return _verdict(int(code[0]), float(normal[0]))

    def _model(self, task_id: Any) -> Any:
        if task_id == "":
            task_id = None
        try:
            path = self._default if task_id is None else str(model_path(task_id, self._folder))
            status = os.stat(path)
            state = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._models.get(path)
            if known is not None and known[0] == state:
                return known[1]
            with self._lock:
                self._models[path] = state, _core.value_load(Path(path).read_bytes())
            return self._models[path][1]
        except ParameterError as error:
            raise _FaultError(f"taskId is illegal: {error}") from None
        except OSError:
            raise _FaultError(f"taskId has no model: {task_id}") from None
        except ValueError as error:
            raise _FaultError(f"taskId has no sound model: {task_id}: {error}") from None


def _window(data: Any) -> tuple[NDArray[np.float64], int]:
    """The row of a request, its faults found in the order missing, empty, illegal, length."""
    names = ("dataA", "dataB", "dataC")
    if not isinstance(data, Mapping) or any(data.get(name) is None for name in names):
        raise _FaultError("missing parameter")
    for name in names:
        if isinstance(data[name], str) and not data[name].strip():
            raise _FaultError(f"{name} can not be empty")
    a, b, c = (_numbers(name, data[name]) for name in names)
    window = _window_length(data.get("window"), len(a), len(b), len(c))
    for name, values, wanted in (
        ("dataC", c, 2 * window + 1),
        ("dataB", b, 2 * window + 1),
        ("dataA", a, window + 1),
    ):
        if len(values) != wanted:
            raise _FaultError(f"{name} length does not match")
    return np.concatenate([c, b, a]), window


def _numbers(name: str, text: Any) -> NDArray[np.float64]:
    if not isinstance(text, str):
        raise _FaultError(f"{name} contains illegal numbers")
    values = np.empty(text.count(",") + 1)
    try:
        count = _core.value_parse(text, values)
    except UnicodeEncodeError:
        count = -1
    if count != len(values):
        raise _FaultError(f"{name} contains illegal numbers")
    return values


def _window_length(window: Any, a: int, b: int, c: int) -> int:
    """The window asked for; without one, that of the data, or 180 where it fits none."""
    if window is None or window == "":
        fits = b == c == 2 * a - 1 and MIN_WINDOW <= a - 1 <= MAX_WINDOW
        return a - 1 if fits else DEFAULT_WINDOW
    if isinstance(window, str) and window.isascii() and window.isdigit() and len(window) < 10:
        window = int(window)
    if not isinstance(window, int) or isinstance(window, bool):
        raise _FaultError("window contains illegal numbers")
    if not MIN_WINDOW <= window <= MAX_WINDOW:
        raise _FaultError(f"window must be {MIN_WINDOW} to {MAX_WINDOW}")
    return window


def _verdict(code: int, normal: float) -> Verdict:
    if code != 0:  # the text holds no gaps: some number is beyond what can be tested
        return PARAMETER_FAULT, "data contains illegal numbers"
    text = f"{normal:.9g}"
    return 0, {"ret": int(not float(text) < THRESHOLD), "p": text}
