"""Every error the toolkit raises on purpose.

Each class also inherits the built-in type that callers already catch, so
``except ValueError`` keeps working.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class AnomalyError(Exception):
    """Base of every error raised on purpose by this toolkit."""


class DataError(AnomalyError, ValueError):
    """The data does not have the shape, type or values that are allowed."""


class ParameterError(AnomalyError, ValueError):
    """A parameter or option is outside what is allowed."""


class ClassifierFileError(AnomalyError, ValueError):
    """An exported classifier is damaged, foreign, tampered with or does not fit."""


class MissingExtraError(AnomalyError, ImportError):
    """An optional library is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say how to install it.

    Parameters
    ----------
    module : str
        Import name, e.g. ``"dask.distributed"``.
    extra : str
        The extra of this project that brings it.

    Raises
    ------
    MissingExtraError
        With the exact install line.

    Examples
    --------
    >>> from anomaly.errors import require
    >>> require("json", extra="test").dumps([1])
    '[1]'
    >>> require("no_such_library", extra="dask")
    Traceback (most recent call last):
        ...
    anomaly.errors.MissingExtraError: no_such_library is not installed; \
run: pip install 'anomaly[dask]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise MissingExtraError(
            f"{name} is not installed; run: pip install 'anomaly[{extra}]'"
        ) from error
