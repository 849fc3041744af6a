"""Grids in TOML files: one table of parameters per classifier.

A parameter is one of

* an array of values, where an inner array stands for a tuple;
* ``{from = 1, to = 99}``, both ends included, with ``step = 2`` or ``times = 10``
  if not by ones;
* ``{layers = [0, 4], size = [1, 49]}``, all tuples of equal sizes;
* a string with a list in the notation of logs, for anything else:
  ``"[None, sklearn.tree.DecisionTreeClassifier(max_depth=2)]"``.

Several tables of one classifier, ``[[mlp]]``, are several grids, one after the other.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from anomaly.errors import ParameterError
from anomaly.tuning.literals import PACKAGES, from_literal, to_literal

Grids = dict[str, list[dict[str, list[Any]]]]

# Far above any grid that could be run; stops a mistyped range.
_MOST_VALUES = 100_000


def load_grids(path: str | os.PathLike[str]) -> Grids:
    """Read a file of grids.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to list of dict
        Classifier (family or import path) to its grids, as `tune` takes them.

    Raises
    ------
    ParameterError
        Naming the file, the classifier and the parameter.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ParameterError(
            f"grid {os.fspath(path)!r} cannot be read: {error.strerror}"
        ) from None
    try:
        return parse_grids(text)
    except (tomllib.TOMLDecodeError, ParameterError) as error:
        raise ParameterError(f"grid {os.fspath(path)!r}: {error}") from None


def parse_grids(text: str) -> Grids:
    """Read grids from the text of a TOML file.

    Examples
    --------
    >>> from anomaly.tuning.grids import parse_grids
    >>> parse_grids('''
    ... [adaboost]
    ... n_estimators = {from = 10, to = 50, step = 20}
    ... learning_rate = [0.5, 1.0]
    ... estimator = "[sklearn.tree.DecisionTreeClassifier(max_depth=2)]"
    ... ''')["adaboost"]
    [{'n_estimators': [10, 30, 50], 'learning_rate': [0.5, 1.0], \
'estimator': [DecisionTreeClassifier(max_depth=2)]}]
    """
    grids: Grids = {}
    # Decimals are kept as written, so that a range of tenths ends where it should.
    for name, tables in tomllib.loads(text, parse_float=Decimal).items():
        listed = tables if isinstance(tables, list) else [tables]
        if not all(isinstance(table, dict) for table in listed):
            raise ParameterError(f"{name!r} must be a table of parameters, [{name}]")
        packages = PACKAGES | ({name.partition(".")[0]} if "." in name else set())
        grids[name] = [
            {key: _values(f"{name}.{key}", value, packages) for key, value in table.items()}
            for table in listed
        ]
    return grids


def grids_to_text(grids: Grids) -> dict[str, list[dict[str, str]]]:
    """Grids as literals, to be stored with a run."""
    return {
        name: [{key: to_literal(values) for key, values in table.items()} for table in tables]
        for name, tables in grids.items()
    }


def grids_from_text(stored: Mapping[str, Any]) -> Grids:
    """Grids that `grids_to_text` stored."""
    return {
        name: [
            {
                key: from_literal(text, PACKAGES | {name.partition(".")[0]})
                for key, text in table.items()
            }
            for table in tables
        ]
        for name, tables in stored.items()
    }


def _values(where: str, given: Any, packages: frozenset[str]) -> list[Any]:
    if isinstance(given, list):
        values = [_plain(value) for value in given]
    elif isinstance(given, str):
        values = from_literal(given, packages)
    elif isinstance(given, dict) and given.keys() == {"layers", "size"}:
        values = _layers(where, given)
    elif isinstance(given, dict):
        values = _range(where, given)
    else:
        raise ParameterError(f"{where} must be a list of values, got {given!r}; put it into [ ]")
    if not isinstance(values, list) or not values:
        raise ParameterError(f"{where} must hold at least one value in a list, got {given!r}")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    return tuple(map(_plain, value)) if isinstance(value, list) else value


def _range(where: str, given: Mapping[str, Any]) -> list[Any]:
    allowed = "{from = 1, to = 9}, with step or times, or {layers = [0, 4], size = [1, 49]}"
    if not {"from", "to"} <= given.keys() <= {"from", "to", "step", "times"}:
        raise ParameterError(f"{where} must be {allowed}, got the keys {', '.join(given)}")
    numbers = {name: _number(where, value) for name, value in given.items()}
    step, times = numbers.get("step", Decimal(1)), numbers.get("times")
    value, last = numbers["from"], numbers["to"]
    grows = (times > 1 and value > 0) if times is not None else step > 0
    if not grows or ("step" in given and "times" in given):
        raise ParameterError(f"{where} must grow by one of step > 0 and times > 1, got {given}")
    whole = all(isinstance(number, int) for number in given.values())
    values: list[Any] = []
    while value <= last:
        values.append(int(value) if whole else float(value))
        if len(values) > _MOST_VALUES:
            raise ParameterError(f"{where} has more than {_MOST_VALUES} values")
        value = value + step if times is None else value * times
    return values


def _number(where: str, value: Any) -> Decimal:
    if isinstance(value, Decimal) or (isinstance(value, int) and not isinstance(value, bool)):
        return Decimal(value)
    raise ParameterError(f"{where} must be a range of numbers, got {value!r}")


def _layers(where: str, given: Mapping[str, Any]) -> list[tuple[int, ...]]:
    for key in ("layers", "size"):
        pair = given[key]
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
        ):
            raise ParameterError(f"{where}: {key} must be [least, most], got {pair!r}")
    (least, most), (small, large) = given["layers"], given["size"]
    return [
        (size,) * layers for layers in range(least, most + 1) for size in range(small, large + 1)
    ]
