"""Records of mixed columns as numbers: categories encoded, sizes scaled, nothing guessed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly.base import StrOptions
from anomaly.errors import DataError, ParameterError

__all__ = ["RecordEncoder", "is_missing"]


class RecordEncoder(TransformerMixin, BaseEstimator):
    """Turn records of numbers and categories into rows of float64.

    Numbers are scaled to zero mean and unit standard deviation; categories
    become indicator columns, or their place in sorted order. Columns keep their
    order, so the code of a class depends on the training data alone and never
    on the process, its hash seed or the order of the rows.

    Parameters
    ----------
    categorical : "auto" or list of str or int, default="auto"
        Columns that hold categories, by name (frames) or position. "auto" takes
        the columns of strings: string and category dtypes, and object columns
        with at least one string in them.
    categories : "auto" or dict of str to list, default="auto"
        For each categorical column all the values it may take. "auto", and a
        column that is not named, means the values seen in ``fit``.
    encoding : {"onehot", "ordinal"}, default="onehot"
        One indicator column for each category, or one column with its position.
    scaling : {"standard", "none"}, default="standard"
        What happens to numbers. A constant column is only shifted.
    missing : {"error", "keep"}, default="error"
        Whether a missing value (None, NaN, NA) is refused or becomes NaN. A
        missing category is NaN in all of its columns.

    Attributes
    ----------
    columns_ : tuple of str
        Names of the columns, ``x0``, ``x1``, … where the input had none.
    categories_ : dict of str to tuple
        For each categorical column its categories in sorted order.
    mean_, scale_ : ndarray of shape (n_features_in_,)
        Shift and divisor of each column; 0 and 1 for categories.
    fill_values_ : tuple
        Median of each numeric, most frequent value of each categorical column.
    origins_ : tuple of str
        For each encoded column the column it came from.
    n_features_in_ : int
    feature_names_in_ : ndarray of str, only for input with string column names

    Raises
    ------
    DataError
        A value is of the wrong type, infinite, missing or of an unknown
        category. The message names the column, the row, what is allowed and
        what came. It is also a ValueError.

    Examples
    --------
    >>> import pandas as pd
    >>> from anomaly.encoding import RecordEncoder
    >>> records = pd.DataFrame({"class": ["human", "car", "car"], "length": [300, 4400, 4300]})
    >>> encoder = RecordEncoder(scaling="none").fit(records)
    >>> encoder.transform(records)
    array([[0.0e+00, 1.0e+00, 3.0e+02],
           [1.0e+00, 0.0e+00, 4.4e+03],
           [1.0e+00, 0.0e+00, 4.3e+03]])
    >>> encoder.encode_one(["human", 310])
    [0.0, 1.0, 310.0]
    >>> encoder.encode_one(["humen", 310])
    Traceback (most recent call last):
        ...
    anomaly.errors.DataError: class: unknown category 'humen'; allowed: 'car', 'human'; \
did you mean 'human'?
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "categorical": [StrOptions({"auto"}), list, tuple],
        "categories": [StrOptions({"auto"}), dict],
        "encoding": [StrOptions({"onehot", "ordinal"})],
        "scaling": [StrOptions({"standard", "none"})],
        "missing": [StrOptions({"error", "keep"})],
    }

    def __init__(
        self,
        categorical: str | Sequence[str | int] = "auto",
        categories: str | Mapping[str, Sequence[Any]] = "auto",
        encoding: str = "onehot",
        scaling: str = "standard",
        missing: str = "error",
    ) -> None:
        self.categorical = categorical
        self.categories = categories
        self.encoding = encoding
        self.scaling = scaling
        self.missing = missing

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.categorical = True
        tags.input_tags.allow_nan = self.missing == "keep"
        return tags

    def fit(self, X: ArrayLike | pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Learn categories, means and standard deviations.

        Parameters
        ----------
        X : frame or array-like of shape (n_samples, n_features)
        y : ignored
        """
        self._validate_params()
        columns = self._columns_of(X, reset=True)
        self.columns_ = tuple(
            map(str, getattr(self, "feature_names_in_", [f"x{i}" for i in range(len(columns))]))
        )
        chosen = self._choose_categorical(columns)
        self.categories_: dict[str, tuple[Any, ...]] = {}
        self.mean_ = np.zeros(len(columns))
        self.scale_ = np.ones(len(columns))
        fill: list[Any] = []
        for i, (name, column) in enumerate(zip(self.columns_, columns, strict=True)):
            if i in chosen:
                fill.append(self._learn_categories(name, column))
            else:
                fill.append(self._learn_scale(i, name, column))
        self.fill_values_ = tuple(fill)
        self._plan = self._make_plan()
        self.origins_ = tuple(name for name, _, width, _, _ in self._plan for _ in range(width))
        return self

    def transform(self, X: ArrayLike | pd.DataFrame) -> NDArray[np.float64]:
        """Encode records.

        Parameters
        ----------
        X : frame or array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of float64 of shape (n_samples, n_features_out)
        """
        check_is_fitted(self)
        columns = self._columns_of(X, reset=False)
        out = np.zeros((len(columns[0]), len(self.origins_)))
        at = 0
        for (name, codes, width, mean, scale), column in zip(self._plan, columns, strict=True):
            if codes is None:
                with np.errstate(over="ignore"):  # the classifier refuses infinity
                    out[:, at] = (self._numbers(name, column) - mean) / scale
            else:
                self._write_codes(out[:, at : at + width], name, codes, column)
            at += width
        return out

    def encode_one(self, values: Iterable[Any]) -> list[float]:
        """Encode one record, bit for bit as `transform` does, without its overhead.

        Parameters
        ----------
        values : iterable of length n_features_in_
            One value for each column, in the order of ``columns_``.

        Returns
        -------
        list of float of length n_features_out
        """
        row: list[float] = []
        for (name, codes, width, mean, scale), value in zip(self._plan, values, strict=True):
            if codes is None:
                if type(value) is not float or value - value != 0.0:
                    value = self._number(name, value)
                row.append((value - mean) / scale)
                continue
            code = self._code(name, codes, value)
            if width == 1 and self.encoding == "ordinal":
                row.append(code)
            elif code == code:
                row.extend([0.0] * width)
                row[int(code) - width] = 1.0
            else:
                row.extend([code] * width)
        return row

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> NDArray[Any]:
        """Names of the encoded columns: ``length``, ``class_car``, ``class_human``, …"""
        check_is_fitted(self)
        names = self.columns_
        if input_features is not None:
            names = tuple(map(str, np.asarray(input_features, dtype=object)))
            if hasattr(self, "feature_names_in_") and names != self.columns_:
                raise ValueError("input_features is not equal to feature_names_in_")
            if len(names) != self.n_features_in_:
                raise ValueError(
                    "input_features should have length equal to number of features "
                    f"({self.n_features_in_}), got {len(names)}"
                )
        found: list[str] = []
        for name, own in zip(names, self.columns_, strict=True):
            if own in self.categories_ and self.encoding == "onehot":
                found += [f"{name}_{category}" for category in self.categories_[own]]
            else:
                found.append(name)
        return np.array(found, dtype=object)

    # ---- fitting

    def _columns_of(self, X: Any, reset: bool) -> list[Any]:
        """Columns of a checked table: Series of a frame, or 1-D arrays."""
        if isinstance(X, pd.DataFrame):
            if not X.columns.is_unique:
                raise DataError(f"column names must differ, got {', '.join(map(str, X.columns))}")
            validate_data(self, X, reset=reset, skip_check_array=True)
            if X.empty:
                check_array(X, dtype=None)  # says what is absent in scikit-learn's words
            return [X.iloc[:, i] for i in range(X.shape[1])]
        dtype = None if hasattr(X, "dtype") else object  # a list may mix strings and numbers
        table = validate_data(self, X, reset=reset, dtype=dtype, ensure_all_finite=False)
        return list(table.T)

    def _choose_categorical(self, columns: list[Any]) -> set[int]:
        if isinstance(self.categorical, str):
            return {i for i, column in enumerate(columns) if _holds_strings(column)}
        chosen = set()
        for item in self.categorical:
            if isinstance(item, str) and item in self.columns_:
                chosen.add(self.columns_.index(item))
            elif isinstance(item, int) and -len(columns) <= item < len(columns):
                chosen.add(item % len(columns))
            else:
                raise ParameterError(
                    f"categorical: no column {item!r}; the columns are "
                    + ", ".join(map(repr, self.columns_))
                )
        return chosen

    def _learn_categories(self, name: str, column: Any) -> Any:
        codes, found = _factorize(name, column)
        if (codes < 0).any() and self.missing == "error":
            raise _missing_error(name, int(np.argmax(codes < 0)))
        if not found:
            raise DataError(f"{name}: every value is missing; a category is needed")
        allowed = found
        if isinstance(self.categories, Mapping):
            allowed = list(dict.fromkeys(self.categories.get(name, found)))
            unknown = [value for value in found if value not in allowed]
            if unknown:
                row = int(np.argmax(codes == found.index(unknown[0])))
                raise _unknown_error(name, dict.fromkeys(allowed, 0.0), unknown[0], row)
        self.categories_[name] = _sorted_categories(allowed)
        counts = dict(zip(found, np.bincount(codes[codes >= 0]), strict=True))
        return max(self.categories_[name], key=lambda category: counts.get(category, 0))

    def _learn_scale(self, i: int, name: str, column: Any) -> float:
        values = self._numbers(name, column)
        present = values[~np.isnan(values)]
        if not len(present):
            raise DataError(f"{name}: every value is missing; a number is needed")
        if self.scaling == "standard":
            self.mean_[i], self.scale_[i] = _mean_and_scale(name, present)
        return float(np.median(present))

    def _make_plan(self) -> list[tuple[str, dict[Any, float] | None, int, float, float]]:
        """For each column its name, codes if categorical, width, mean and scale."""
        plan: list[tuple[str, dict[Any, float] | None, int, float, float]] = []
        for i, name in enumerate(self.columns_):
            if name in self.categories_:
                codes = {value: float(j) for j, value in enumerate(self.categories_[name])}
                width = len(codes) if self.encoding == "onehot" else 1
                plan.append((name, codes, width, 0.0, 1.0))
            else:
                plan.append((name, None, 1, float(self.mean_[i]), float(self.scale_[i])))
        return plan

    # ---- values, by column and one by one

    def _numbers(self, name: str, column: Any) -> NDArray[np.float64]:
        """Column as checked float64; NaN only where missing values are kept."""
        kind = getattr(column.dtype, "kind", "O")
        if isinstance(column, pd.Series) and kind in "biuf" and column.dtype != object:
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        elif kind in "biuf":
            values = column.astype(np.float64)
        else:
            values = np.array([self._number(name, value, row) for row, value in enumerate(column)])
        finite = np.isfinite(values)
        if not finite.all() and (self.missing == "error" or np.isinf(values).any()):
            bad = ~finite if self.missing == "error" else np.isinf(values)
            row = int(np.argmax(bad))
            self._number(name, float(values[row]), row)  # raises
        return values

    def _number(self, name: str, value: Any, row: int | None = None) -> float:
        """One value as a finite float, or NaN where missing values are kept."""
        if is_missing(value):
            if self.missing == "error":
                raise _missing_error(name, row)
            return float("nan")
        if isinstance(value, str | bytes | np.ndarray):
            raise DataError(f"{_place(name, row)}: a number is needed, got {value!r}")
        try:
            number = float(value)
        except TypeError as error:
            raise _WrongTypeError(f"{_place(name, row)}: {error}") from error
        except OverflowError:
            number = float("inf")
        if number - number != 0.0:
            raise DataError(
                f"{_place(name, row)}: a finite number is needed, got infinity "
                f"or a value too large: {value!r}"
            )
        return number

    def _code(self, name: str, codes: dict[Any, float], value: Any) -> float:
        try:
            code = codes.get(value)
        except TypeError as error:  # not hashable
            raise DataError(f"{name}: a category is needed, got {value!r}") from error
        if code is not None:
            return code
        if is_missing(value):
            if self.missing == "error":
                raise _missing_error(name, None)
            return float("nan")
        raise _unknown_error(name, codes, value, None)

    def _write_codes(
        self, out: NDArray[np.float64], name: str, codes: dict[Any, float], column: Any
    ) -> None:
        found, values = _factorize(name, column)
        table = np.empty(len(values) + 1)  # the last entry serves code -1, missing
        table[-1] = np.nan
        for i, value in enumerate(values):
            code = codes.get(value)
            if code is None:
                raise _unknown_error(name, codes, value, int(np.argmax(found == i)))
            table[i] = code
        encoded = table[found]
        absent = found < 0
        if absent.any() and self.missing == "error":
            raise _missing_error(name, int(np.argmax(absent)))
        if self.encoding == "ordinal":
            out[:, 0] = encoded
            return
        present = np.flatnonzero(~absent)
        out[present, encoded[present].astype(np.intp)] = 1.0
        out[absent] = np.nan


class _WrongTypeError(DataError, TypeError):
    """Not a number at all; what `float` says, with the column."""


def is_missing(value: Any) -> bool:
    """Whether one value stands for nothing: None, NaN, NaT or NA.

    Examples
    --------
    >>> from anomaly.encoding import is_missing
    >>> [is_missing(value) for value in (None, float("nan"), "", 0)]
    [True, True, False, False]
    """
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    return isinstance(value, float | np.floating) and value != value


def _mean_and_scale(name: str, values: NDArray[np.float64]) -> tuple[float, float]:
    if values.min() == values.max():
        return float(values[0]), 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        mean, spread = float(values.mean()), float(values.std())
    if not np.isfinite([mean, spread]).all():
        raise DataError(f"{name}: values are too large to be scaled, up to {abs(values).max():g}")
    return mean, spread if spread > 0 else 1.0


def _holds_strings(column: Any) -> bool:
    dtype = column.dtype
    if isinstance(dtype, np.dtype) and dtype.kind != "O":
        return dtype.kind in "US"
    if isinstance(dtype, pd.CategoricalDtype | pd.StringDtype):
        return True
    return getattr(dtype, "kind", "") == "O" and any(isinstance(value, str) for value in column)


def _factorize(name: str, column: Any) -> tuple[NDArray[np.intp], list[Any]]:
    """Position of each value among the distinct ones, -1 where missing; and those."""
    values = column if isinstance(column, pd.Series) else np.asarray(column)
    if getattr(values.dtype, "kind", "O") in "US":
        values = values.astype(object)
    try:
        codes, found = pd.factorize(values)
    except TypeError as error:  # not hashable
        raise DataError(
            f"{name}: a category is needed, got a value that is none: {error}"
        ) from error
    plain = [value.item() if isinstance(value, np.generic) else value for value in found]
    return codes, plain


def _sorted_categories(values: list[Any]) -> tuple[Any, ...]:
    try:
        return tuple(sorted(values))
    except TypeError:
        return tuple(sorted(values, key=lambda value: (type(value).__name__, value)))


def _place(name: str, row: int | None) -> str:
    return name if row is None else f"{name}, row {row}"


def _missing_error(name: str, row: int | None) -> DataError:
    # NaN stands in the text because callers of scikit-learn look for it.
    return DataError(f"{_place(name, row)}: value is missing (None or NaN)")


def _unknown_error(name: str, allowed: Iterable[Any], value: Any, row: int | None) -> DataError:
    known = list(allowed)
    shown = ", ".join(map(repr, known[:20])) + (", …" if len(known) > 20 else "")
    message = f"{_place(name, row)}: unknown category {value!r}; allowed: {shown}"
    words = [word for word in known if isinstance(word, str)]
    close = difflib.get_close_matches(str(value), words, n=1)
    return DataError(message + (f"; did you mean {close[0]!r}?" if close else ""))
