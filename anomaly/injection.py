"""Anomalies made on purpose, each one written down in a manifest.

Table strategies make new rows out of normal ones (`inject`); series strategies change
a span of a signal (`inject_series`). Every formula stands in the docstring of its
function. Scales are robust: the scale ``s`` of a column is 1.4826 times its median
absolute deviation from the median; where that is zero, its interquartile range over
1.349; where that is zero too, its standard deviation; and at last 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any, ClassVar, Self, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.pipeline import Pipeline
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    has_fit_parameter,
    validate_data,
)

from .base import HasMethods, Interval
from .errors import DataError, ParameterError
from .loading import DUPLICATE

RandomState = int | np.integer | np.random.RandomState | np.random.Generator | None
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Injection:
    """One injection of one type.

    Attributes
    ----------
    type : str
        Name of the strategy; merged injections are joined by ``+``.
    columns : tuple of str
        The columns that were changed.
    magnitude : tuple of float
        In robust sigma. Of a table: for each row, the largest distance over the
        numeric columns from the median of the rows of the same categories. Of a
        series: one number, the largest change within the span; NaN if the values
        were taken away.
    seed : int
        The seed that makes the same injection again.
    rows : tuple of int or None
        Positions of the injected rows of a table.
    span : (int, int) or None
        First position and the one after the last, of a series.
    parts : tuple of Injection
        What a merged injection is made of.
    """

    type: str
    columns: tuple[str, ...]
    magnitude: tuple[float, ...]
    seed: int
    rows: tuple[int, ...] | None = None
    span: tuple[int, int] | None = None
    parts: tuple[Injection, ...] = ()

    def overlaps(self, other: Injection) -> bool:
        """Return whether two injections into a series touch the same cell."""
        if self.span is None or other.span is None or not {*self.columns} & {*other.columns}:
            return False
        return self.span[0] < other.span[1] and other.span[0] < self.span[1]


@dataclass(frozen=True)
class Manifest:
    """What was injected where.

    Attributes
    ----------
    entries : tuple of Injection

    Examples
    --------
    >>> from anomaly.injection import Injection, Manifest
    >>> manifest = Manifest((Injection("spike", ("load",), (6.0,), 7, span=(2, 3)),))
    >>> manifest.labels(5).tolist()
    [False, False, True, False, False]
    >>> Manifest.from_json(manifest.to_json()) == manifest
    True
    """

    entries: tuple[Injection, ...] = ()

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.entries)

    def labels(self, n: int) -> NDArray[np.bool_]:
        """Return which of `n` positions hold an injected anomaly."""
        return self.types(n) != ""

    def types(self, n: int) -> NDArray[Any]:
        """Return the type of the injection at each of `n` positions, "" where there is none.

        Where injections into different columns share a position, their types are
        joined by ``+``.
        """
        found: list[str] = [""] * n
        for entry in self.entries:
            positions = entry.rows if entry.rows is not None else range(*cast(Any, entry.span))
            for position in positions:
                if not 0 <= position < n:
                    raise DataError(f"the manifest names position {position}, there are {n}")
                before = found[position]
                found[position] = f"{before}+{entry.type}" if before else entry.type
        return np.array(found, dtype=str)

    def shifted(self, offset: int) -> Manifest:
        """Return the manifest with every position moved, e.g. by the rows put in front."""
        return Manifest(
            tuple(
                replace(
                    entry,
                    rows=None if entry.rows is None else tuple(r + offset for r in entry.rows),
                    span=None if entry.span is None else _moved(entry.span, offset),
                    parts=Manifest(entry.parts).shifted(offset).entries,
                )
                for entry in self.entries
            )
        )

    def to_json(self) -> str:
        """Return strict JSON; NaN becomes null."""
        return json.dumps(_plain([asdict(entry) for entry in self.entries]), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises
        ------
        DataError
            If the text is not a manifest.
        """
        try:
            return cls(tuple(_entry(item) for item in json.loads(text)))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"not a manifest of injections: {error}") from error


def _moved(span: tuple[int, int], offset: int) -> tuple[int, int]:
    return span[0] + offset, span[1] + offset


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _entry(item: Mapping[str, Any]) -> Injection:
    return Injection(
        type=str(item["type"]),
        columns=tuple(map(str, item["columns"])),
        magnitude=tuple(math.nan if m is None else float(m) for m in item["magnitude"]),
        seed=int(item["seed"]),
        rows=None if item["rows"] is None else tuple(map(int, item["rows"])),
        span=None if item["span"] is None else (int(item["span"][0]), int(item["span"][1])),
        parts=tuple(_entry(part) for part in item["parts"]),
    )


def robust_scale(values: ArrayLike) -> Floats:
    """Return the robust scale of each column, as defined at the top of this module.

    Parameters
    ----------
    values : array-like of shape (n_rows, n_columns)
        NaN is left out.

    Returns
    -------
    ndarray of shape (n_columns,)

    Examples
    --------
    >>> from anomaly.injection import robust_scale
    >>> robust_scale([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [400.0, 5.0]]).round(4).tolist()
    [1.4826, 1.0]
    """
    table = np.asarray(values, dtype=np.float64)
    return np.array([_scale(column[~np.isnan(column)]) for column in table.T])


def _scale(column: Floats) -> float:
    if not len(column):
        return 1.0
    deviation = np.median(np.abs(column - np.median(column)))
    low, high = np.percentile(column, [25, 75])
    for scale in (1.4826 * deviation, (high - low) / 1.349, np.std(column)):
        if scale > 0 and np.isfinite(scale):
            return float(scale)
    return 1.0


def _seed(random_state: RandomState) -> int:
    """Turn any random state into one whole number that can be written down."""
    if isinstance(random_state, int | np.integer) and not isinstance(random_state, bool):
        if random_state < 0:
            raise ParameterError(f"random_state must be 0 or more, got {random_state}")
        return int(random_state)
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    if random_state is None or isinstance(random_state, np.random.Generator):
        return int(np.random.default_rng(random_state).integers(2**31))
    raise ParameterError(
        f"random_state must be None, an int, a RandomState or a Generator, got {random_state!r}"
    )


# ---------------------------------------------------------------- tables


class _Table:
    """Normal rows, split into numbers and categories, and what is known of them."""

    def __init__(self, numbers: pd.DataFrame, categories: pd.DataFrame) -> None:
        self.numbers, self.categories = numbers, categories
        self.values: Floats = numbers.to_numpy(dtype=np.float64)

    def pick(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        return rng.integers(len(self.values), size=n)

    def same(self, picked: NDArray[np.int64]) -> pd.DataFrame:
        return self.categories.iloc[picked].reset_index(drop=True)

    @cached_property
    def distinct(self) -> dict[Any, pd.Series]:
        found = {c: self.categories[c].drop_duplicates() for c in self.categories.columns}
        return {c: values.reset_index(drop=True) for c, values in found.items()}

    @cached_property
    def box(self) -> tuple[Floats, Floats]:
        return np.nanmin(self.values, axis=0), np.nanmax(self.values, axis=0)

    @cached_property
    def whole(self) -> NDArray[np.bool_]:
        whole = np.isnan(self.values) | (self.values == np.rint(self.values))
        return np.asarray(whole.all(axis=0))

    @cached_property
    def group(self) -> NDArray[np.int64]:
        """The group of each row: the rows with the same categories, numbered as they come."""
        names = list(self.categories.columns)
        if not names:
            return np.zeros(len(self.values), dtype=np.int64)
        groups = self.categories.groupby(names, dropna=False, sort=False, observed=True)
        return np.asarray(groups.ngroup(), dtype=np.int64)

    def group_of(self, categories: pd.DataFrame) -> NDArray[np.int64]:
        """The group of each new row, -1 where its categories never met before."""
        names = list(self.categories.columns)
        if not names:
            return np.zeros(len(categories), dtype=np.int64)
        first = np.unique(self.group, return_index=True)[1]
        known = self.categories.iloc[first].assign(**{_GROUP: np.arange(len(first))})
        found = categories.merge(known, how="left", on=names)[_GROUP]
        return np.asarray(found.fillna(-1), dtype=np.int64)

    @cached_property
    def scale(self) -> Floats:
        return robust_scale(self.values)

    @cached_property
    def group_scales(self) -> Floats:
        """The robust scale of every column within every group; last, over all rows."""
        return np.array([*(robust_scale(rows) for rows in self._members), self.scale])

    @cached_property
    def group_medians(self) -> Floats:
        """The median of every column within every group; last, over all rows."""
        overall = np.nanmedian(self.values, axis=0)
        return np.array([*(_medians(rows, overall) for rows in self._members), overall])

    @cached_property
    def _members(self) -> list[Floats]:
        order = np.argsort(self.group, kind="stable")
        ends = np.cumsum(np.bincount(self.group))[:-1]
        return np.split(self.values[order], ends)


Drawn = tuple[Floats, pd.DataFrame]
_GROUP = "number of the group"


def _medians(rows: Floats, otherwise: Floats) -> Floats:
    filled = [column[~np.isnan(column)] for column in rows.T]
    return np.array(
        [np.median(c) if len(c) else o for c, o in zip(filled, otherwise, strict=True)]
    )


def _uniform(table: _Table, rng: np.random.Generator, n: int) -> Drawn:
    low, high = table.box
    values = low + (high - low) * rng.random((n, len(low)))
    return values, _any_categories(table, rng, n)


def _any_categories(table: _Table, rng: np.random.Generator, n: int) -> pd.DataFrame:
    drawn = {
        name: values.iloc[rng.integers(len(values), size=n)].array
        for name, values in table.distinct.items()
    }
    return pd.DataFrame(drawn, index=range(n))


def _class_swap(table: _Table, rng: np.random.Generator, n: int) -> Drawn:
    swappable = [c for c, values in table.distinct.items() if len(values) > 1]
    if not swappable:
        raise ParameterError(
            "strategy 'class_swap' needs a categorical column with two values or more"
        )
    picked = table.pick(rng, n)
    categories = table.same(picked)
    chosen = rng.integers(len(swappable), size=n)
    for position, name in enumerate(swappable):
        at = np.flatnonzero(chosen == position)
        values = table.distinct[name]
        codes = pd.Index(values).get_indexer_for(categories[name].iloc[at])
        others = (codes + rng.integers(1, len(values), size=len(at))) % len(values)
        categories.loc[at, name] = values.iloc[others].array
    return table.values[picked], categories


def _marginal_shuffle(table: _Table, rng: np.random.Generator, n: int) -> Drawn:
    values = np.column_stack([column[table.pick(rng, n)] for column in table.values.T])
    drawn = {
        c: table.categories[c].iloc[table.pick(rng, n)].array for c in table.categories.columns
    }
    return values, pd.DataFrame(drawn, index=range(n))


def _local_noise(table: _Table, rng: np.random.Generator, n: int, strength: float = 3.0) -> Drawn:
    picked = table.pick(rng, n)
    direction = rng.standard_normal((n, table.values.shape[1]))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    scales = table.group_scales[table.group[picked]]
    return table.values[picked] + strength * scales * direction, table.same(picked)


def _scaling(table: _Table, rng: np.random.Generator, n: int, factor: float = 2.0) -> Drawn:
    if not factor > 0 or factor == 1:
        raise ParameterError(f"factor must be positive and not 1, got {factor!r}")
    picked = table.pick(rng, n)
    values = table.values[picked]
    column = rng.integers(values.shape[1], size=n)
    values[np.arange(n), column] *= np.where(rng.random(n) < 0.5, factor, 1 / factor)
    return values, table.same(picked)


def _cluster(table: _Table, rng: np.random.Generator, n: int, tightness: float = 0.1) -> Drawn:
    low, high = table.box
    centre = low + (high - low) * rng.random(len(low))
    model = table.pick(rng, 1)
    scales = table.group_scales[table.group[model]]
    values = centre + tightness * scales * rng.standard_normal((n, len(low)))
    return values, table.same(np.repeat(model, n))


def _extreme(table: _Table, rng: np.random.Generator, n: int, strength: float = 5.0) -> Drawn:
    picked = table.pick(rng, n)
    values = table.values[picked]
    column = rng.integers(values.shape[1], size=n)
    distance = table.scale[column] * rng.uniform(1, strength, size=n)
    low, high = table.box
    above = rng.random(n) < 0.5
    values[np.arange(n), column] = np.where(above, high[column] + distance, low[column] - distance)
    return values, table.same(picked)


_STRATEGIES: dict[str, Callable[..., Drawn]] = {
    "uniform": _uniform,
    "class_swap": _class_swap,
    "marginal_shuffle": _marginal_shuffle,
    "local_noise": _local_noise,
    "scaling": _scaling,
    "cluster": _cluster,
    "extreme": _extreme,
}

#: The table strategies by name, "mix" apart.
STRATEGIES = tuple(_STRATEGIES)


def inject(
    frame: pd.DataFrame,
    n: int,
    strategy: str | Sequence[str] | Mapping[str, float] = "uniform",
    *,
    categorical: Sequence[Any] = (),
    random_state: RandomState = None,
    **options: float,
) -> tuple[pd.DataFrame, Manifest]:
    """Make odd rows out of normal ones.

    Below, ``u`` is a fresh uniform number in [0, 1), ``z`` a standard normal one, "a
    row" one of the normal rows, each as likely as the others, ``s_j`` the robust scale
    of column ``j`` over all rows and ``s_gj`` that over the rows with the same
    categories as the row at hand.

    ``uniform``
        Every number is ``min_j + (max_j - min_j) * u``, every category one of those
        that occur, each as likely as the others: the bounding box.
    ``class_swap``
        A row, whole, but for one categorical column, which takes another of the values
        that occur: the true sizes of something else.
    ``marginal_shuffle``
        Every cell comes from a row of its own: the columns are right, their relation
        is lost.
    ``local_noise`` (``strength=3``)
        A row plus ``strength * s_gj * d_j``, where ``d`` is a direction uniform on the
        unit sphere: exactly ``strength`` robust sigma away.
    ``scaling`` (``factor=2``)
        A row with one of its numbers times ``factor`` or divided by it, either as
        likely: a wrong unit.
    ``cluster`` (``tightness=0.1``)
        All rows close to one point ``c`` uniform in the bounding box: ``c_j +
        tightness * s_gj * z``, with the categories of one row.
    ``extreme`` (``strength=5``)
        A row with one of its numbers put outside the range seen: ``max_j + s_j * v`` or
        ``min_j - s_j * v``, either as likely, ``v`` uniform in [1, strength).
    ``mix``
        All of these in equal parts, ``class_swap`` only where a category can be
        swapped. A sequence of names mixes these; a mapping gives them weights. Parts
        are rounded by the largest remainder, ties in the order given.

    A column whose values are all whole numbers receives whole numbers, rounded to the
    nearest even.

    Parameters
    ----------
    frame : DataFrame
        Normal rows. A column called ``duplicate`` is left out.
    n : int
        Number of rows to make.
    strategy : str, sequence of str, or mapping of str to float
    categorical : sequence of column names
        Columns of categories; columns that do not hold numbers are taken as such
        anyway.
    random_state : int, RandomState, Generator or None
        The seed in use is written to the manifest.
    **options : float
        ``strength``, ``factor``, ``tightness`` of the one strategy named.

    Returns
    -------
    rows : DataFrame of n rows
        Columns and types as in `frame`, numbers as float64; index 0 to n - 1.
    manifest : Manifest
        One entry per strategy in use.

    Raises
    ------
    ParameterError, DataError

    Examples
    --------
    >>> import pandas as pd
    >>> from anomaly.injection import inject
    >>> normal = pd.DataFrame({"class": ["car", "human"], "length": [4500.5, 900.0]})
    >>> rows, manifest = inject(normal, 2, "class_swap", random_state=0)
    >>> rows
      class  length
    0   car   900.0
    1   car   900.0
    >>> manifest.entries[0].type, manifest.entries[0].rows
    ('class_swap', (0, 1))
    """
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 0:
        raise ParameterError(f"n must be a whole number of 0 or more, got {n!r}")
    seed = _seed(random_state)
    frame = frame.drop(columns=DUPLICATE, errors="ignore")
    numbers, categories = _split(frame, categorical)
    shares = _shares(strategy, int(n), categories)
    if options and len(shares) != 1:
        raise ParameterError(f"{', '.join(options)}: only for one strategy, got {list(shares)}")
    seeds = [seed] if len(shares) == 1 else _children(seed, len(shares))
    table = _Table(numbers, categories)
    parts, entries, start = [], [], 0
    for (name, size), own in zip(shares.items(), seeds, strict=True):
        rng = np.random.default_rng(own)
        rows = _draw(table, rng, name, size, options)[list(frame.columns)]
        magnitude = _row_magnitudes(table, rows)
        entry = Injection(
            type=name,
            columns=tuple(map(str, frame.columns)),
            magnitude=tuple(magnitude.tolist()),
            seed=own,
            rows=tuple(range(start, start + size)),
        )
        parts.append(rows)
        entries.append(entry)
        start += size
    filled = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(filled, ignore_index=True), Manifest(tuple(e for e in entries if e.rows))


def _split(frame: pd.DataFrame, categorical: Sequence[Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    for name in categorical:
        if name not in frame:
            raise DataError(f"categorical: there is no column {name!r}, only {list(frame)}")
    if not len(frame):
        raise DataError("there are no normal rows to make odd ones from")
    texts = [
        c
        for c in frame.columns
        if c in set(categorical)
        or not pd.api.types.is_numeric_dtype(frame[c])
        or pd.api.types.is_bool_dtype(frame[c])
    ]
    numbers = frame.drop(columns=texts).astype(np.float64).reset_index(drop=True)
    if not numbers.shape[1]:
        raise DataError("there is no numeric column to make odd rows with")
    values = numbers.to_numpy()
    if np.isinf(values).any():
        raise DataError("the normal rows hold infinite numbers")
    empty = numbers.columns[np.isnan(values).all(axis=0)]
    if len(empty):
        raise DataError(f"column {empty[0]!r} holds no number at all")
    return numbers, frame[texts].reset_index(drop=True)


def _shares(
    strategy: str | Sequence[str] | Mapping[str, float], n: int, categories: pd.DataFrame
) -> dict[str, int]:
    """Divide n among the strategies by the largest remainder."""
    if isinstance(strategy, str) and strategy == "mix":
        swappable = any(categories[c].nunique(dropna=False) > 1 for c in categories.columns)
        strategy = [name for name in STRATEGIES if name != "class_swap" or swappable]
    if isinstance(strategy, str):
        strategy = [strategy]
    weights = dict(strategy) if isinstance(strategy, Mapping) else dict.fromkeys(strategy, 1.0)
    for name, weight in weights.items():
        if name not in _STRATEGIES:
            raise ParameterError(
                f"strategy must be one of {', '.join(STRATEGIES)}, mix; got {name!r}"
            )
        if not (weight > 0 and math.isfinite(weight)):
            raise ParameterError(f"the weight of {name!r} must be positive, got {weight!r}")
    if not weights:
        raise ParameterError("strategy names no strategy")
    total = sum(weights.values())
    exact = {name: n * weight / total for name, weight in weights.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: n - sum(shares.values())]:
        shares[name] += 1
    return shares


def _children(seed: int, n: int) -> list[int]:
    return [int(state) for state in np.random.SeedSequence(seed).generate_state(n)]


def _draw(
    table: _Table, rng: np.random.Generator, name: str, n: int, options: Mapping[str, float]
) -> pd.DataFrame:
    try:
        values, categories = _STRATEGIES[name](table, rng, n, **options)
    except TypeError as error:
        raise ParameterError(f"strategy {name!r} takes no such option: {error}") from error
    values = np.where(table.whole, np.rint(values), values)
    drawn = pd.DataFrame(values, columns=table.numbers.columns)
    for column in categories.columns:
        drawn[column] = categories[column].astype(table.categories[column].dtype)
    return drawn


def _row_magnitudes(table: _Table, rows: pd.DataFrame) -> Floats:
    """Measure how far each new row lies from the rows of the same categories."""
    group = table.group_of(rows[list(table.categories.columns)])
    values = rows[list(table.numbers.columns)].to_numpy()
    distance = np.abs(values - table.group_medians[group]) / table.group_scales[group]
    return cast(Floats, np.max(distance, axis=1, initial=0.0, where=~np.isnan(distance)))


# ---------------------------------------------------------------- series


def _spike(x: Floats, rng: np.random.Generator, a: int, b: int, change: float) -> Floats:
    return x[a:b] + change


def _trend(x: Floats, rng: np.random.Generator, a: int, b: int, change: float) -> Floats:
    return x[a:b] + change * np.arange(1, b - a + 1) / (b - a)


def _noise_burst(x: Floats, rng: np.random.Generator, a: int, b: int, change: float) -> Floats:
    return x[a:b] + abs(change) * rng.standard_normal(b - a)


_ADDING: dict[str, Callable[..., Floats]] = {
    "spike": _spike,
    "level_shift": _spike,
    "trend": _trend,
    "noise_burst": _noise_burst,
}

#: The series strategies by name, each with its usual strength.
SERIES_STRENGTHS = {
    "spike": 6.0,
    "level_shift": 3.0,
    "trend": 5.0,
    "dropout": 0.0,
    "stuck": 0.0,
    "noise_burst": 3.0,
    "seasonal_shift": 0.0,
    "multiply": 2.0,
}
SERIES_STRATEGIES = tuple(SERIES_STRENGTHS)


def inject_series(
    series: pd.DataFrame | pd.Series | ArrayLike,
    type: str,
    *,
    n: int = 1,
    span: tuple[int, int] | None = None,
    length: int | None = None,
    columns: Sequence[Any] | None = None,
    strength: float | None = None,
    direction: str = "both",
    period: int | None = None,
    fill: float = 0.0,
    manifest: Manifest | None = None,
    overlap: str = "refuse",
    random_state: RandomState = None,
) -> tuple[Any, Manifest]:
    """Change spans of a series.

    ``x_t`` is the value before, ``a`` the first position of the span, ``b`` the one
    after its last, ``s`` the robust scale of the column over the whole series, ``k``
    the strength and ``e`` the direction, +1 or -1.

    =================  ========================================  ===================
    type               value in the span                         usual strength
    =================  ========================================  ===================
    ``spike``          ``x_t + e k s``                           6, span of 1
    ``level_shift``    ``x_t + e k s``                           3
    ``trend``          ``x_t + e k s (t - a + 1) / (b - a)``     5
    ``noise_burst``    ``x_t + k s z_t``, standard normal        3
    ``multiply``       ``k x_t``                                 2
    ``dropout``        ``fill`` (NaN: the values are gone)
    ``stuck``          ``x_a``
    ``seasonal_shift`` ``x_{t-h}``, ``h`` half a period; before
                       position ``h``, ``x_{t-h+period}``
    =================  ========================================  ===================

    Parameters
    ----------
    series : DataFrame, Series or array-like of shape (n_points,) or (n_points, n_columns)
        Left as it is; the result is a copy of the same kind with float64 columns.
    type : str
    n : int
        Number of injections, at places drawn by chance; 1 when `span` is given.
    span : (int, int), optional
        First position and the one after the last.
    length : int, optional
        Length of a span drawn by chance; 1 for a spike, a tenth of the series for
        the others.
    columns : sequence, optional
        Names (or positions, for an array) of the columns to change; all by default.
    strength : float, optional
    direction : {"both", "up", "down"}
        Sign of the change; "both" draws it, one for each injection and column.
    period : int, optional
        Season in points, for ``seasonal_shift``.
    fill : float
        For ``dropout``.
    manifest : Manifest, optional
        Earlier injections into this series; the new ones are added to it.
    overlap : {"refuse", "merge"}
        What to do where a span meets an earlier one in the same column. "refuse": a
        `span` given is an error, and one drawn is drawn elsewhere. "merge": the change
        is made on top, and the entries become one, with the union of the spans and
        both of them as its parts.
    random_state : int, RandomState, Generator or None

    Returns
    -------
    changed : as `series`
    manifest : Manifest
        Holds a seed for each injection; that seed, its span, and the same options make
        the same injection again.

    Raises
    ------
    ParameterError, DataError

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.injection import inject_series
    >>> flat = np.array([4.0, 5.0, 6.0, 5.0, 4.0, 5.0])
    >>> changed, manifest = inject_series(flat, "stuck", span=(2, 5), random_state=0)
    >>> changed.tolist()
    [4.0, 5.0, 6.0, 6.0, 6.0, 5.0]
    >>> inject_series(changed, "spike", span=(3, 4), manifest=manifest, random_state=0)
    Traceback (most recent call last):
        ...
    anomaly.errors.ParameterError: span (3, 4) meets the injection 'stuck' at (2, 5); \
choose another, or overlap="merge"
    """
    frame = _as_frame(series)
    _check_series(frame, type, n, span, length, direction, period, overlap, columns)
    chosen = list(frame.columns) if columns is None else list(columns)
    entries = list((manifest or Manifest()).entries)
    size = length or (1 if type == "spike" else max(1, len(frame) // 10))
    seed = _seed(random_state)
    strength = SERIES_STRENGTHS[type] if strength is None else strength
    scales = dict(zip(frame.columns, robust_scale(frame.to_numpy()), strict=True))
    for own in [seed] if n == 1 else _children(seed, n):
        rng = np.random.default_rng(own)
        touched = tuple(map(str, chosen))
        places = np.random.default_rng([own, 1])
        place = span or _place(places, len(frame), size, touched, entries, overlap)
        magnitude = 0.0
        for name in chosen:
            column = frame[name].to_numpy(copy=True)
            sign = {"up": 1.0, "down": -1.0, "both": rng.choice([-1.0, 1.0])}[direction]
            after = _change(column, type, rng, place, sign, strength, scales[name], period, fill)
            magnitude = max(
                magnitude, _largest(after, column[slice(*place)], scales[name]), key=_nan_first
            )
            column[slice(*place)] = after
            frame[name] = column
        entry = Injection(type, touched, (magnitude,), own, span=place)
        entries = _add(entries, entry, overlap)
    return _like(frame, series), Manifest(tuple(entries))


def _as_frame(series: pd.DataFrame | pd.Series | ArrayLike) -> pd.DataFrame:
    if isinstance(series, pd.Series):
        frame = series.to_frame(0 if series.name is None else series.name)
    else:
        frame = series if isinstance(series, pd.DataFrame) else pd.DataFrame(np.asarray(series))
    try:
        return frame.astype(np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(f"a series must hold numbers: {error}") from error


def _like(frame: pd.DataFrame, series: Any) -> Any:
    if isinstance(series, pd.DataFrame):
        return frame
    if isinstance(series, pd.Series):
        return frame.iloc[:, 0].set_axis(series.index).rename(cast(Any, series.name))
    return frame.to_numpy().reshape(np.shape(series))


def _check_series(
    frame: pd.DataFrame,
    type: str,
    n: int,
    span: tuple[int, int] | None,
    length: int | None,
    direction: str,
    period: int | None,
    overlap: str,
    columns: Sequence[Any] | None,
) -> None:
    points = len(frame)
    if type not in SERIES_STRENGTHS:
        raise ParameterError(f"type must be one of {', '.join(SERIES_STRENGTHS)}; got {type!r}")
    if overlap not in ("refuse", "merge"):
        raise ParameterError(f"overlap must be 'refuse' or 'merge', got {overlap!r}")
    if direction not in ("both", "up", "down"):
        raise ParameterError(f"direction must be 'both', 'up' or 'down', got {direction!r}")
    if span is not None and not 0 <= span[0] < span[1] <= points:
        raise ParameterError(f"span must lie within the {points} points, got {span!r}")
    if n < 1 or (span is not None and n != 1):
        raise ParameterError(f"n must be 1 or more, and 1 where a span is given; got {n!r}")
    if length is not None and not 1 <= length <= points:
        raise ParameterError(f"length must be 1 to {points}, got {length!r}")
    if type == "seasonal_shift" and (period is None or not 2 <= period <= points):
        raise ParameterError(f"seasonal_shift needs a period of 2 to {points}, got {period!r}")
    for name in columns or ():
        if name not in frame:
            raise DataError(f"columns: there is no {name!r}, only {list(frame.columns)}")


def _place(
    rng: np.random.Generator,
    points: int,
    size: int,
    columns: tuple[str, ...],
    entries: list[Injection],
    overlap: str,
) -> tuple[int, int]:
    """Draw a span, among those that are free if injections may not overlap."""
    free = np.ones(max(points - size + 1, 0), dtype=bool)
    if overlap == "refuse":
        for entry in entries:
            if entry.span is not None and {*entry.columns} & {*columns}:
                free[max(entry.span[0] - size + 1, 0) : entry.span[1]] = False
    starts = np.flatnonzero(free)
    if not len(starts):
        raise ParameterError(
            f"no room is left for a span of {size} in {points} points; use fewer or shorter "
            f'injections, or overlap="merge"'
        )
    start = int(starts[rng.integers(len(starts))])
    return start, start + size


def _change(
    x: Floats,
    type: str,
    rng: np.random.Generator,
    span: tuple[int, int],
    sign: float,
    strength: float,
    scale: float,
    period: int | None,
    fill: float,
) -> Floats:
    a, b = span
    if type in _ADDING:
        return _ADDING[type](x, rng, a, b, sign * strength * scale)
    if type == "multiply":
        return strength * x[a:b]
    if type == "seasonal_shift":
        season = cast(int, period)
        source = np.arange(a, b) - season // 2
        return x[np.where(source < 0, source + season, source)]
    return np.full(b - a, x[a] if type == "stuck" else fill)


def _add(entries: list[Injection], new: Injection, overlap: str) -> list[Injection]:
    met = [entry for entry in entries if entry.overlaps(new)]
    if not met:
        return [*entries, new]
    if overlap == "refuse":
        raise ParameterError(
            f"span {new.span} meets the injection {met[0].type!r} at {met[0].span}; choose "
            f'another, or overlap="merge"'
        )
    joined = [*met, new]
    spans = [cast(tuple[int, int], entry.span) for entry in joined]
    merged = Injection(
        type="+".join(entry.type for entry in joined),
        columns=tuple(dict.fromkeys(c for entry in joined for c in entry.columns)),
        magnitude=(max((m for e in joined for m in e.magnitude), key=_nan_first),),
        seed=new.seed,
        span=(min(a for a, _ in spans), max(b for _, b in spans)),
        parts=tuple(part for entry in joined for part in (entry.parts or (entry,))),
    )
    return [*(entry for entry in entries if entry not in met), merged]


def _largest(after: Floats, before: Floats, scale: float) -> float:
    """Return the largest change in robust sigma, NaN if values were taken away."""
    if (np.isnan(after) & ~np.isnan(before)).any():
        return math.nan
    change = np.abs(after - before) / scale
    return float(np.max(change, initial=0.0, where=~np.isnan(change)))


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


# ---------------------------------------------------------------- oversampling


def _delegates(name: str) -> Callable[[Any], bool]:
    def has(self: Any) -> bool:
        getattr(getattr(self, "estimator_", self.estimator), name)
        return True

    return has


def _kept_weights(y: NDArray[Any], n_new: int) -> Floats:
    """Weights under which the anomalies together count as much as the labelled ones did."""
    anomalous = y == y[-1]  # the rows added last are anomalies
    total = np.count_nonzero(anomalous)
    return np.where(anomalous, (total - n_new) / total, 1.0)


def weight_options(estimator: Any, weights: Floats | None) -> dict[str, Floats]:
    """Return the keyword that hands sample weights to a classifier's ``fit``.

    Parameters
    ----------
    estimator : classifier
        For a pipeline, the keyword goes to its last step.
    weights : ndarray of shape (n_samples,) or None

    Returns
    -------
    dict
        Empty without weights, or if the classifier takes none.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from sklearn.pipeline import Pipeline
    >>> from anomaly.injection import weight_options
    >>> list(weight_options(Pipeline([("model", LogisticRegression())]), [1.0, 0.5]))
    ['model__sample_weight']
    >>> weight_options(KNeighborsClassifier(), [1.0, 0.5])
    {}
    """
    prefix = ""
    while isinstance(estimator, Pipeline):
        name, estimator = estimator.steps[-1]
        prefix += f"{name}__"
    if weights is None or not has_fit_parameter(estimator, "sample_weight"):
        return {}
    return {f"{prefix}sample_weight": weights}


class OversampleClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):
    """Trains a classifier on more injected anomalies than there are labelled ones.

    ``fit`` adds ``(oversample - 1) * n_pos`` rows (rounded), made by `inject` from the
    training rows labelled normal, where ``n_pos`` is the number of training rows
    labelled anomalous. Prediction is the classifier's own. Put it
    outside the encoder: injection needs the categories as they are.

    More anomalies alone would teach the classifier that anomalies are frequent. So each
    of them, labelled or added, weighs ``n_pos / (n_pos + n_new)``, and together they
    weigh what the labelled ones did; a normal row weighs 1. A classifier whose ``fit``
    takes no ``sample_weight`` (k-nearest neighbours, for one) trains on the rows
    unweighted, and gains little or loses.

    Parameters
    ----------
    estimator : classifier
    oversample : float, default=1
        How many times as many anomalies to train on; 1 leaves the data as they are.
    strategy : str, sequence of str, or mapping of str to float, default="uniform"
        As in `inject`.
    categorical : sequence or None, default=None
        Columns of categories of a frame, or their positions in an array.
    random_state : int, RandomState or None, default=None
    reweight : bool, default=True
        Whether the anomalies keep their weight as a class.

    Attributes
    ----------
    estimator_ : classifier
        Fitted on the original and the added rows.
    classes_ : ndarray of shape (n_classes,)
    manifest_ : Manifest
        The added rows, counted from the end of the training rows.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only when fitted on a frame whose column names are all text.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from anomaly.injection import OversampleClassifier
    >>> X = np.concatenate([np.random.default_rng(0).normal(size=(50, 2)), [[4.0, 4.0]]])
    >>> y = np.repeat([0, 1], [50, 1])
    >>> plain = KNeighborsClassifier()
    >>> OversampleClassifier(plain, oversample=30, random_state=0).fit(X, y).predict(
    ...     [[0.0, 0.0], [2.0, -2.0]]
    ... )
    array([0, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [HasMethods(["fit", "predict"])],
        "oversample": [Interval(Real, 1, None, closed="left")],
        "strategy": [str, list, tuple, dict],
        "categorical": ["array-like", None],
        "random_state": ["random_state"],
        "reweight": ["boolean"],
    }

    estimator_: Any
    manifest_: Manifest

    def __init__(
        self,
        estimator: Any,
        oversample: float = 1,
        strategy: str | Sequence[str] | Mapping[str, float] = "uniform",
        categorical: Sequence[Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        reweight: bool = True,
    ) -> None:
        self.estimator = estimator
        self.oversample = oversample
        self.strategy = strategy
        self.categorical = categorical
        self.random_state = random_state
        self.reweight = reweight

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Add the rows, then fit the classifier on all of them.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Two classes at most when `oversample` is above 1; the second in sorted
            order is the anomaly.
        """
        self._validate_params()
        self.manifest_ = Manifest()
        weights = None
        if self.oversample > 1:
            X, y = self._with_added_rows(X, y)
            n_new = sum(len(entry.rows or ()) for entry in self.manifest_.entries)
            if self.reweight and n_new:
                weights = _kept_weights(y, n_new)
        else:
            validate_data(self, X, skip_check_array=True)
        self.estimator_ = clone(self.estimator)
        self.estimator_.fit(X, y, **weight_options(self.estimator, weights))
        return self

    def _with_added_rows(self, X: Any, y: ArrayLike) -> tuple[Any, NDArray[Any]]:
        if not isinstance(X, pd.DataFrame):
            finite = "allow-nan" if get_tags(self).input_tags.allow_nan else True
            X = check_array(
                X, dtype=None, ensure_all_finite=finite, estimator=self, input_name="X"
            )
        validate_data(self, X, skip_check_array=True)
        check_classification_targets(y)
        labels = column_or_1d(y, warn=True)
        check_consistent_length(X, labels)
        classes = np.unique(labels)
        if len(classes) > 2:
            raise ValueError(
                f"Only binary classification is supported with oversample above 1, "
                f"got {len(classes)} classes"
            )
        n_new = round((self.oversample - 1) * np.count_nonzero(labels == classes[-1]))
        if len(classes) < 2 or n_new == 0:
            return X, labels
        frame = X if isinstance(X, pd.DataFrame) else pd.DataFrame(X).infer_objects()
        rows, manifest = inject(
            frame[labels == classes[0]],
            n_new,
            self.strategy,
            categorical=() if self.categorical is None else tuple(self.categorical),
            random_state=self.random_state,
        )
        self.manifest_ = manifest.shifted(len(frame))
        labels = np.concatenate([labels, np.repeat(classes[1:], n_new)])
        if isinstance(X, pd.DataFrame):
            return pd.concat([X, rows[list(X.columns)]], ignore_index=True), labels
        return np.concatenate([X, rows.to_numpy(dtype=X.dtype)]), labels

    @property
    def classes_(self) -> NDArray[Any]:
        """Classes of the fitted classifier; the last one is the anomaly."""
        return cast(NDArray[Any], self.estimator_.classes_)

    def _checked(self, X: Any) -> Any:
        """Return the fitted classifier if `X` has the columns it was fitted on."""
        check_is_fitted(self)
        if getattr(X, "ndim", 2) < 2:
            check_array(X)  # for its message
        validate_data(self, X, skip_check_array=True, reset=False)
        return self.estimator_

    @available_if(_delegates("predict"))
    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Label samples as the fitted classifier does."""
        return cast(NDArray[Any], self._checked(X).predict(X))

    @available_if(_delegates("predict_proba"))
    def predict_proba(self, X: ArrayLike) -> Floats:
        """Return the fitted classifier's probability of each class."""
        return cast(Floats, self._checked(X).predict_proba(X))

    @available_if(_delegates("decision_function"))
    def decision_function(self, X: ArrayLike) -> Floats:
        """Return the fitted classifier's decision values, larger being more anomalous."""
        return cast(Floats, self._checked(X).decision_function(X))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimator_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.input_tags = inner.input_tags
        tags.input_tags.sparse = inner.input_tags.sparse and self.oversample == 1
        tags.classifier_tags = inner.classifier_tags
        if self.oversample > 1 and tags.classifier_tags is not None:
            tags.classifier_tags.multi_class = False
            tags.classifier_tags.multi_label = False
        tags.target_tags = inner.target_tags
        if self.oversample > 1:
            tags.target_tags.multi_output = False
        return tags
