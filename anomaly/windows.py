"""KPI windows: last week, yesterday and the last hours of one metric, as one row.

A row holds ``data_c`` (the same time last week, ``window`` points either side),
``data_b`` (the same time yesterday, likewise) and ``data_a`` (the last
``window`` points and the tested one): ``5 * window + 3`` numbers in this order.
"""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.errors import DataError, ParameterError

Array = NDArray[np.float64]

MIN_WINDOW = 10
MAX_WINDOW = 100_000

_ANOMALOUS = ("1", "true", "anomaly", "anomalous", "negative")


def window_of(n_columns: int) -> int | None:
    """Window of a row of so many columns, None where it is not one of windows.

    Examples
    --------
    >>> from anomaly.windows import window_of
    >>> window_of(903), window_of(100)
    (180, None)
    """
    window, rest = divmod(n_columns - 3, 5)
    return window if rest == 0 and MIN_WINDOW <= window <= MAX_WINDOW else None


def window_from(n_columns: int) -> int:
    """Window of rows of so many columns: of windows, else of one plain series."""
    return window_of(n_columns) or max(n_columns - 1, MIN_WINDOW)


def as_windows(X: Array, window: int) -> Array:
    """Rows in the layout c, b, a; a plain series gets an unknown yesterday and last week.

    A plain series of fewer than 11 points is led by its first value.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.windows import as_windows
    >>> as_windows(np.ones((1, 30)), window=29).shape
    (1, 148)
    """
    n_columns = X.shape[1]
    if n_columns == 5 * window + 3:
        return X
    rows = np.full((len(X), 5 * window + 3), np.nan)
    rows[:, -(window + 1) :] = X[:, :1]
    rows[:, -n_columns:] = X
    return rows


def cut(
    series: pd.Series,
    window: int = 180,
    day: str | pd.Timedelta = "1D",
    week: str | pd.Timedelta = "7D",
    *,
    step: str | pd.Timedelta | None = None,
    points: pd.DatetimeIndex | None = None,
    duplicates: Literal["mean", "first", "last", "error"] = "mean",
    calendar: Literal["clock", "elapsed"] = "clock",
) -> pd.DataFrame:
    """Cut one window for each point that has a week of history.

    Parameters
    ----------
    series : Series of float with a DatetimeIndex
        In any order. With a time zone, ``calendar`` decides what a day is.
    window : int, default=180
        Points before the tested one; at least 10.
    day, week : str or Timedelta
        How far back ``data_b`` and ``data_c`` are centred.
    step : str or Timedelta, optional
        Sampling interval; by default the commonest distance between points.
    points : DatetimeIndex, optional
        Tested times; by default every time of the series whose window lies
        within it. Asking for one outside is an error.
    duplicates : {"mean", "first", "last", "error"}
        What to do with several values of one time.
    calendar : {"clock", "elapsed"}
        With a time zone, "clock" takes yesterday at the same local time, so the
        24 hours are 23 or 25 over a change of summer time; "elapsed" always
        counts hours. Without one they are the same.

    Returns
    -------
    DataFrame of shape (n, 5 * window + 3)
        Indexed by the tested time; columns ``c-180 … c180, b-180 … b180,
        a-180 … a0``. Times that the series does not hold are NaN (a gap): values
        are never interpolated. A point without a value is not tested.

    Notes
    -----
    Points are snapped to the grid of ``step`` that starts at the first point;
    two points that fall on one grid time count as duplicates. A local time that
    a change of summer time skips is taken an hour later; one that it repeats is
    taken at its first occurrence.

    Examples
    --------
    >>> import pandas as pd
    >>> from anomaly.windows import cut
    >>> index = pd.date_range("2024-01-01", periods=9 * 24, freq="h")
    >>> frame = cut(pd.Series(range(len(index)), index, dtype=float), window=10)
    >>> frame.shape
    (38, 53)
    >>> float(frame["a0"].iloc[0]), float(frame["b0"].iloc[0]), float(frame["c0"].iloc[0])
    (178.0, 154.0, 10.0)
    """
    _check_cut(series, window, duplicates, calendar)
    back = [pd.Timedelta(week), pd.Timedelta(day), pd.Timedelta(0)]
    grid = _grid(series, step, duplicates)
    if (back[1] < grid.step) or (back[0] <= back[1]):
        raise ParameterError(
            f"week must be longer than day, and day than the step {grid.step}; "
            f"got day={back[1]}, week={back[0]}"
        )
    tested = grid.times if points is None else grid.times_of(points)
    places = [grid.place(_shifted(tested, span, calendar)) for span in back]
    inside = (places[0] - window >= 0) & (places[1] + window < len(grid.values))
    inside &= places[2] < len(grid.values)
    if points is not None and not inside.all():
        first = tested[~inside][0]
        raise DataError(f"points: {first} has no full window within the series")
    keep = inside & ~np.isnan(grid.values[np.clip(places[2], 0, len(grid.values) - 1)])
    columns, names = [], []
    for letter, place, right in zip("cba", places, (window, window, 0), strict=True):
        offsets = np.arange(-window, right + 1)
        columns.append(grid.values[place[keep][:, None] + offsets])
        names += [f"{letter}{offset}" for offset in offsets]
    return pd.DataFrame(np.hstack(columns), index=tested[keep], columns=names)


class _Grid:
    """A series on an even grid, gaps as NaN."""

    def __init__(self, start: pd.Timestamp, step: pd.Timedelta, values: Array):
        self.start, self.step, self.values = start, step, values
        self.times = pd.DatetimeIndex(start + step * np.arange(len(values)))

    def place(self, times: pd.DatetimeIndex) -> NDArray[np.int64]:
        """Grid position nearest to each time."""
        return np.rint(np.asarray((times - self.start) / self.step)).astype(np.int64)

    def times_of(self, points: pd.DatetimeIndex) -> pd.DatetimeIndex:
        points = pd.DatetimeIndex(points)
        if (points.tz is None) != (self.times.tz is None):
            raise DataError("points and series must both have a time zone, or neither")
        return points if points.tz is None else points.tz_convert(self.times.tz)


def _check_cut(series: pd.Series, window: int, duplicates: str, calendar: str) -> None:
    if not isinstance(series, pd.Series) or not isinstance(series.index, pd.DatetimeIndex):
        raise DataError("series must be a pandas Series with a DatetimeIndex")
    if len(series) < 2 or series.index.hasnans:
        raise DataError("series must hold two points or more, and no missing time")
    if not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ParameterError(f"window must be {MIN_WINDOW} to {MAX_WINDOW}, got {window}")
    if duplicates not in ("mean", "first", "last", "error"):
        raise ParameterError(f"duplicates must be mean, first, last or error, got {duplicates!r}")
    if calendar not in ("clock", "elapsed"):
        raise ParameterError(f"calendar must be clock or elapsed, got {calendar!r}")


def _grid(series: pd.Series, step: str | pd.Timedelta | None, duplicates: str) -> _Grid:
    series = series.astype(float).sort_index(kind="stable")
    start = series.index[0]
    gaps = pd.Series(series.index[1:] - series.index[:-1])
    gaps = gaps[gaps > pd.Timedelta(0)]
    if step is None and gaps.empty:
        raise DataError("series holds a single time")
    width = pd.Timedelta(step) if step is not None else _commonest(gaps)
    if not width > pd.Timedelta(0):
        raise ParameterError(f"step must be above 0, got {width}")
    place = np.rint(np.asarray((series.index - start) / width)).astype(np.int64)
    if place[-1] > 50_000_000:
        raise DataError(f"a step of {width} makes {place[-1]} grid points; name a longer step")
    by_place = pd.Series(series.to_numpy(), index=place)
    if duplicates == "error" and by_place.index.has_duplicates:
        twice = start + width * int(by_place.index[by_place.index.duplicated()][0])
        raise DataError(f"series has several values at {twice}")
    how = "mean" if duplicates in ("mean", "error") else duplicates
    single = by_place.groupby(level=0).agg(how)
    values = np.full(int(place[-1]) + 1, np.nan)
    values[single.index.to_numpy()] = single.to_numpy()
    return _Grid(start, width, values)


def _commonest(gaps: pd.Series) -> pd.Timedelta:
    counts = gaps.value_counts()
    width, share = pd.Timedelta(counts.index[0]), counts.iloc[0] / len(gaps)
    if share < 0.2 and len(gaps) > 10:
        raise DataError(
            f"no distance between points is common: the commonest, {width}, is {share:.0%} of "
            f"them; name the step"
        )
    return width


def _shifted(times: pd.DatetimeIndex, span: pd.Timedelta, calendar: str) -> pd.DatetimeIndex:
    """Each time a span earlier, by the clock on the wall or by elapsed time."""
    if times.tz is None or calendar == "elapsed" or span == pd.Timedelta(0):
        return times - span
    local = times.tz_localize(None) - span
    first = np.ones(len(local), dtype=bool)
    return local.tz_localize(times.tz, ambiguous=first, nonexistent=pd.Timedelta("1h"))


def history_groups(X: Array, run: int = 12) -> NDArray[np.int64]:
    """Number the windows so that those that share history share a number.

    Two windows belong together when a run of values, not all alike, occurs in
    both. Split by these groups, or windows cut a few minutes apart end up on
    both sides of a split.

    Parameters
    ----------
    X : ndarray of shape (n, n_columns)
    run : int, default=12
        Length of the shared run.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.windows import history_groups
    >>> one, other = np.arange(60.0), np.arange(60.0) ** 2
    >>> history_groups(np.array([one, other, one + 5])).tolist()
    [0, 1, 0]
    """
    X = np.asarray(X, dtype=float)
    parent = np.arange(len(X))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    seen: dict[bytes, int] = {}
    for i, row in enumerate(np.ascontiguousarray(X)):
        changes = np.diff(row) != 0
        for start in range(len(row) - run + 1):
            if changes[start : start + run - 1].sum() < 3:
                continue
            first = seen.setdefault(row[start : start + run].tobytes(), i)
            parent[root(i)] = root(first)
    numbers = np.unique([root(i) for i in range(len(X))], return_inverse=True)[1]
    return np.asarray(numbers, dtype=np.int64)


def read_windows(
    path: str | os.PathLike[str], *, label: str | None = "label", anomaly: str | None = None
) -> tuple[Array, NDArray[np.bool_] | None]:
    """Read windows from a CSV with columns data_c, data_b and data_a of comma-joined numbers.

    Parameters
    ----------
    path : str or PathLike
    label : str or None, default="label"
        Column of the class; None, or a file without it, reads no labels.
    anomaly : str, optional
        The value that marks anomalies; by default 1, true, anomaly, anomalous or
        negative, whichever the column holds.

    Returns
    -------
    X : ndarray of shape (n, 5 * window + 3)
    y : ndarray of bool of shape (n,), or None
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # empty, ragged, or no text
        raise DataError(f"{path}: no CSV file of windows: {error}") from None
    missing = [name for name in ("data_c", "data_b", "data_a") if name not in frame]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(map(str, frame.columns))}"
        )
    rows = [_row(path, i, record) for i, record in enumerate(frame.itertuples(index=False), 2)]
    if not rows:
        raise DataError(f"{path}: no windows")
    if len({len(row) for row in rows}) > 1:
        raise DataError(f"{path}: windows of several lengths")
    X = np.vstack(rows)
    if label is None or label not in frame:
        return X, None
    return X, _labels(path, frame[label], anomaly)


def _row(path: str | os.PathLike[str], line: int, record: tuple[str, ...]) -> Array:
    parts = []
    for name in ("data_c", "data_b", "data_a"):
        text = getattr(record, name)
        try:
            parts.append(np.array([float(v) if v.strip() else np.nan for v in text.split(",")]))
        except ValueError as error:
            raise DataError(f"{path} row {line}: {name}: {error}") from None
    c, b, a = map(len, parts)
    if not (c == b == 2 * a - 1 and window_of(c + b + a)):
        raise DataError(
            f"{path} row {line}: data_c, data_b and data_a hold {c}, {b} and {a} numbers; "
            f"wanted 2·window+1, 2·window+1 and window+1 with a window of {MIN_WINDOW} or more"
        )
    return np.concatenate(parts)


def _labels(
    path: str | os.PathLike[str], column: pd.Series, anomaly: str | None
) -> NDArray[np.bool_]:
    values = column.str.strip()
    found = sorted(values.unique())
    if anomaly is None:
        usual = [
            v for v in found if v.lower() in ("1", "true", "anomaly", "anomalous", "negative")
        ]
        if len(usual) != 1:
            raise DataError(f"{path}: which label marks anomalies? Found {', '.join(found)}")
        anomaly = usual[0]
    if anomaly not in found:
        raise DataError(f"{path}: no label {anomaly!r}; found {', '.join(found)}")
    return np.asarray(values == anomaly)
