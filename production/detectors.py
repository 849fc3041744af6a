"""Which stream detectors the service can hold, and how a stream's settings reach them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from anomaly.errors import AnomalyError
from production.strict import RequestError

#: Name on the wire: module and class. Anything with the stream verbs will do.
DETECTORS = {
    "htm": ("anomaly.htm", "HTMDetector"),
    "tiles": ("anomaly.tiles", "TileDetector"),
}

#: Records that a detector of the service learns before it judges, unless told otherwise.
LEARNING_PERIOD = 100

MAX_DETECTOR_BYTES = 64 << 20
_LARGEST_NUMBER = 2**20


def available() -> list[str]:
    """Names of the detectors that this installation has, the preferred first.

    Examples
    --------
    >>> from production.detectors import available
    >>> "tiles" in available()
    True
    """
    return [name for name in DETECTORS if _class_of(name) is not None]


def _class_of(name: str) -> Any:
    module, attribute = DETECTORS[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError:
        return None


def build(settings: Mapping[str, Any]) -> Any:
    """A fresh detector for one stream.

    Parameters
    ----------
    settings : mapping
        ``detector``, and what is known of ``min``, ``max``, ``resolution``,
        ``prediction_step``, ``threshold`` and ``parameters``, the constructor's own.

    Raises
    ------
    RequestError
        If the detector does not exist or does not take a setting.

    Examples
    --------
    >>> from production.detectors import build
    >>> build({"detector": "tiles", "threshold": 0.6}).threshold
    0.6
    >>> build({"detector": "tiles", "min": 0, "max": 9})
    Traceback (most recent call last):
        ...
    production.strict.RequestError: detector tiles takes no min, max; its range adapts
    """
    name = settings.get("detector") or available()[0]
    if name not in available():
        raise RequestError(
            422, f"detector must be one of {', '.join(available())}, got {str(name)[:64]!r}"
        )
    kind = _class_of(name)
    accepted = set(inspect.signature(kind).parameters)
    given = _constructor_arguments(name, settings, accepted)
    try:
        detector = kind(**given)
        detector._validate_params()
        detector._new_stream(1)
    except (AnomalyError, ValueError, TypeError, MemoryError) as error:
        raise RequestError(422, f"detector {name}: {_one_line(error)}") from None
    return detector


def _constructor_arguments(
    name: str, settings: Mapping[str, Any], accepted: set[str]
) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if "learning_period" in accepted:
        given["learning_period"] = LEARNING_PERIOD
    if name == "htm":
        given["value_range"] = "adaptive"
    for key, value in (settings.get("parameters") or {}).items():
        if key not in accepted:
            raise RequestError(
                422,
                f"parameters has no {key[:64]!r}; detector {name} takes "
                f"{', '.join(sorted(accepted))}",
            )
        if key == "random_state" and type(value) is not int:  # a replay must repeat it
            raise RequestError(422, "parameters: random_state must be a whole number")
        if isinstance(value, int | float) and abs(value) > _LARGEST_NUMBER:
            raise RequestError(422, f"parameters: {key} must be {_LARGEST_NUMBER} at most")
        given[key] = value
    if settings.get("threshold") is not None:
        given["threshold"] = settings["threshold"]
    given |= _range(name, settings, accepted)
    step = settings.get("prediction_step")
    if step is not None:
        if "prediction_steps" not in accepted:
            raise RequestError(
                422, f"detector {name} takes no prediction_step; it expects the next"
            )
        given["prediction_steps"] = (step,)
    return given


def _range(name: str, settings: Mapping[str, Any], accepted: set[str]) -> dict[str, Any]:
    named = [key for key in ("min", "max", "resolution") if settings.get(key) is not None]
    if not named:
        return {}
    if "value_range" not in accepted:
        raise RequestError(422, f"detector {name} takes no {', '.join(named)}; its range adapts")
    low, high = settings.get("min"), settings.get("max")
    if low is None or high is None or not low < high:
        raise RequestError(
            422, f"min and max must both be given, the smaller first, got {low} and {high}"
        )
    resolution = settings.get("resolution")
    if resolution is None:
        return {"value_range": (low, high)}
    if not resolution > 0 or (high - low) / resolution > _LARGEST_NUMBER:
        raise RequestError(
            422, f"resolution must be above 0 and a part of the range, got {resolution}"
        )
    return {"value_range": (low, high), "n_buckets": max(1.0, (high - low) / resolution)}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
