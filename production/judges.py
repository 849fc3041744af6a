"""What a model says of rows: records of an exported classifier, windows of a value model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly import _core
from anomaly.errors import ClassifierFileError, DataError, ParameterError
from anomaly.exported import ExportedClassifier, unpack, verify
from anomaly.value import ValueDetector

__all__ = ["Judge", "RecordJudge", "Verdicts", "WindowJudge", "judge_from", "judge_of"]

MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "none"})
_VALUE_MODEL = b"KPIVALUE"
_SHORT = 15  # characters of a number that a double holds exactly


@dataclass
class Verdicts:
    """Answers to some rows: flags, scores where the model gives them, and faults by row."""

    flags: NDArray[np.bool_]
    scores: NDArray[np.float64] | None = None
    faults: dict[int, str] = field(default_factory=dict)

    def cells(self, row: int) -> list[str]:
        """The answers to a row as text; empty where it has a fault."""
        if row in self.faults:
            return [""] if self.scores is None else ["", ""]
        flag = "01"[bool(self.flags[row])]
        return [flag] if self.scores is None else [flag, repr(float(self.scores[row]))]


class Judge(Protocol):
    """A model that answers rows.

    Attributes
    ----------
    columns : tuple of str
        What it needs of a row.
    answers : tuple of str
        The columns it adds: first the flag, 1 for an anomaly, then perhaps a score.
    """

    columns: tuple[str, ...]
    answers: tuple[str, ...]

    def judge(self, columns: Sequence[Sequence[Any]]) -> Verdicts:
        """Answer rows given column by column, each cell a text or a value."""


def judge_of(model: Any, decimal: str = ".") -> Judge:
    """Judge of a loaded model.

    Parameters
    ----------
    model : ExportedClassifier or ValueDetector
    decimal : {".", ","}, default="."
        Decimal mark in text; for records only.
    """
    if isinstance(model, ValueDetector):
        if decimal != ".":
            raise ParameterError("decimal: windows hold numbers with a point, got ','")
        return WindowJudge(model)
    return RecordJudge(model, decimal)


def judge_from(
    data: bytes, *, decimal: str = ".", skew: str = "refuse", key: str | bytes | None = None
) -> Judge:
    """Verify the bytes of a model file, and bring it to life.

    Parameters
    ----------
    data : bytes
        Of an exported classifier, or of a model that `ValueDetector.save` wrote.
    decimal : {".", ","}, default="."
    skew : {"refuse", "accept"}, default="refuse"
    key : str or bytes, optional
        By default ``ANOMALY_KEY`` of the environment of this process. A value model
        holds numbers only and carries no signature.

    Raises
    ------
    ClassifierFileError
        The file is damaged, foreign, not signed as it should be, or does not fit here.
    """
    if is_value_model(data):
        return judge_of(_value_detector(data), decimal)
    return judge_of(unpack(verify(data, key), skew=skew), decimal)


def is_value_model(data: bytes) -> bool:
    """Whether the bytes begin as a model of `ValueDetector.save` does."""
    return data.startswith(_VALUE_MODEL)


def _value_detector(data: bytes) -> ValueDetector:
    # Its reader takes a path: a file without a name in any folder serves.
    with tempfile.NamedTemporaryFile(prefix="anomaly-", suffix=".model") as file:
        file.write(data)
        file.flush()
        try:
            return ValueDetector.load(file.name)
        except ClassifierFileError as error:
            raise ClassifierFileError(str(error).removeprefix(f"{file.name}: ")) from None


# ---- records


class RecordJudge:
    """An exported classifier over rows of text or values.

    Parameters
    ----------
    classifier : ExportedClassifier
    decimal : {".", ","}, default="."
    """

    answers: tuple[str, ...] = ("malicious",)

    def __init__(self, classifier: ExportedClassifier, decimal: str = ".") -> None:
        self.classifier = classifier
        self.columns = classifier.columns
        self._readers = [cell_reader(field, decimal) for field in classifier.schema]

    def judge(self, columns: Sequence[Sequence[Any]]) -> Verdicts:
        """Answer rows together if all are sound, else one by one to find the faults."""
        verdicts = Verdicts(np.zeros(len(columns[0]), dtype=bool))
        try:
            frame = pd.DataFrame(
                {
                    name: [read(cell) for cell in column]
                    for name, column, read in zip(
                        self.columns, columns, self._readers, strict=True
                    )
                }
            )
            verdicts.flags[:] = self.classifier(frame)
        except DataError:
            for i, row in enumerate(zip(*columns, strict=True)):
                try:
                    verdicts.flags[i] = self.judge_one(row)
                except DataError as error:
                    verdicts.faults[i] = str(error)
        return verdicts

    def judge_one(self, cells: Sequence[Any]) -> bool:
        """Answer one row.

        Raises
        ------
        DataError
            With what is wrong with it.
        """
        values = [read(cell) for read, cell in zip(self._readers, cells, strict=True)]
        return bool(self.classifier(dict(zip(self.columns, values, strict=True))))


def cell_reader(field: dict[str, Any], decimal: str) -> Callable[[Any], Any]:
    """Function from a cell, a text or a value, to the value of a field."""
    name = field["name"]
    if field["kind"] == "category":
        values = {str(value): value for value in field["allowed"]}

        def read_category(cell: Any) -> Any:
            if not isinstance(cell, str):
                return cell
            value = values.get(cell)
            if value is None:
                cell = cell.strip()
                value = values.get(cell, None if cell.lower() in MISSING_WORDS else cell)
            return value

        return read_category

    def read_number(cell: Any) -> float:
        plain = cell
        if decimal != "." and isinstance(cell, str):
            plain = cell.replace(".", "?").replace(decimal, ".")
        try:
            number = float(plain)
        except (TypeError, ValueError):
            number = None
        if number is None or (isinstance(plain, str) and "_" in plain):
            if cell is None or str(cell).strip().lower() in MISSING_WORDS:
                return float("nan")
            raise DataError(f"{name}: a number is needed, got {cell!r}")
        return number

    return read_number


# ---- windows


class WindowJudge:
    """A value model over windows: columns ``data_c``, ``data_b`` and ``data_a``.

    A cell holds comma-joined numbers as text, or a list of numbers. An empty place
    is a missing value. The score is ``decision_function``: above 0 is an anomaly.

    Parameters
    ----------
    detector : ValueDetector
    """

    columns: tuple[str, ...] = ("data_c", "data_b", "data_a")
    answers: tuple[str, ...] = ("anomaly", "score")

    def __init__(self, detector: ValueDetector) -> None:
        self.detector = detector
        span = 2 * detector.window_ + 1
        self._lengths = (span, span, detector.window_ + 1)

    def judge(self, columns: Sequence[Sequence[Any]]) -> Verdicts:
        """Answer windows together; one by one where some cannot be tested."""
        n = len(columns[0])
        verdicts = Verdicts(np.zeros(n, dtype=bool), np.zeros(n))
        X = np.full((n, sum(self._lengths)), np.nan)
        for i, cells in enumerate(zip(*columns, strict=True)):
            try:
                X[i] = self._row(cells)
            except DataError as error:
                verdicts.faults[i] = str(error)
        sound = [i for i in range(n) if i not in verdicts.faults]
        if sound:
            self._score(X, sound, verdicts)
        return verdicts

    def _score(self, X: NDArray[np.float64], rows: list[int], verdicts: Verdicts) -> None:
        assert verdicts.scores is not None
        try:
            verdicts.scores[rows] = self.detector.decision_function(X[rows])
        except ValueError as error:
            if len(rows) == 1:
                verdicts.faults[rows[0]] = str(error).removeprefix("row 0 ")
                return
            for i in rows:
                self._score(X, [i], verdicts)
            return
        verdicts.flags[rows] = verdicts.scores[rows] > 0

    def _row(self, cells: Sequence[Any]) -> NDArray[np.float64]:
        parts = [_numbers(name, cell) for name, cell in zip(self.columns, cells, strict=True)]
        found = tuple(map(len, parts))
        if found != self._lengths:
            c, b, a = self._lengths
            raise DataError(
                f"data_c, data_b and data_a hold {found[0]}, {found[1]} and {found[2]} numbers; "
                f"the model has a window of {a - 1} and wants {c}, {b} and {a}"
            )
        return np.concatenate(parts)


def _numbers(name: str, cell: Any) -> NDArray[np.float64]:
    if cell is None:
        raise DataError(f"{name}: value is missing")
    try:
        if not isinstance(cell, str):
            return np.array([np.nan if v is None else v for v in cell], dtype=float)
        texts = cell.split(",")
        values = np.empty(len(texts))
        # The core rounds as float() does while a number has few digits and no exponent.
        short = len(max(texts, key=len)) <= _SHORT and cell.isascii() and "e" not in cell.lower()
        if short and _core.value_parse(cell, values) == len(values):
            return values
        return np.array([float(v) if v.strip() else np.nan for v in texts])
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: {error}") from None
