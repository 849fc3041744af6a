"""How good is a score: measures for tables and for series, each with its chance level.

Measures of series follow the papers they are named after. There is no point
adjustment here: counting a whole range as found because one of its points was
lets a random score look excellent (Kim et al., AAAI 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from anomaly.errors import DataError, ParameterError
from anomaly.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "INJECTED_NOTE",
    "Affiliation",
    "Delay",
    "RangeScore",
    "affiliation",
    "detection_delay",
    "evaluate",
    "evaluate_series",
    "range_precision_recall",
    "ranges_of",
    "vus_pr",
]

Bias = Literal["flat", "front", "middle", "back"]
Floats = NDArray[np.float64]

RANDOM = "random score"

_INTERVALS = (
    "AP: average precision. low and high: ends of 95 % intervals, of {drawn} drawn anew for a "
    "score, of single draws for the random score."
)

INJECTED_NOTE = (
    "Scores on injected anomalies say how well those are found; they say little about real "
    "anomalies (over 43 public tables F1 on injected labels correlates 0.04 to 0.11 with the "
    "AUROC on real ones)."
)


class RangeScore(NamedTuple):
    """Precision, recall and their harmonic mean, each from 0 to 1."""

    precision: float
    recall: float
    f1: float


class Affiliation(NamedTuple):
    """Affiliation precision and recall, and their harmonic mean; 0.5 is about chance."""

    precision: float
    recall: float
    f1: float


class Delay(NamedTuple):
    """How late labelled ranges are noticed, in points of the series.

    Attributes
    ----------
    found : int
        Labelled ranges with at least one alarm.
    total : int
        Labelled ranges.
    mean, median : float
        Points from the start of a found range to its first alarm; NaN if none is found.
    """

    found: int
    total: int
    mean: float
    median: float


def ranges_of(labels: ArrayLike) -> NDArray[np.int64]:
    """Runs of true values.

    Parameters
    ----------
    labels : array-like of bool or 0/1 of shape (n,)

    Returns
    -------
    ndarray of int of shape (n_ranges, 2)
        First index and one past the last index of each run.

    Examples
    --------
    >>> from anomaly.evaluation import ranges_of
    >>> ranges_of([0, 1, 1, 0, 1]).tolist()
    [[1, 3], [4, 5]]
    """
    flags = _flags(labels, "labels")
    edges = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    return np.column_stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)])


def range_precision_recall(
    labels: ArrayLike,
    predicted: ArrayLike,
    *,
    existence_weight: float = 0.0,
    bias: Bias = "flat",
    reciprocal_cardinality: bool = True,
) -> RangeScore:
    """Range-based precision and recall.

    A labelled range earns recall for being noticed at all (weighted by
    ``existence_weight``) and for the part of it that is covered; a predicted
    range earns precision for the part of it that lies in labelled ranges. A
    range met by several ranges of the other side is divided by their number.

    Parameters
    ----------
    labels, predicted : array-like of bool or 0/1 of shape (n,)
        Ground truth and alarms, one per point.
    existence_weight : float, default=0.0
        From 0 (only the covered part counts) to 1 (only being noticed counts).
    bias : {"flat", "front", "middle", "back"}, default="flat"
        Which points of a labelled range count more. Precision is always flat.
    reciprocal_cardinality : bool, default=True
        Divide by the number of overlapping ranges; False leaves fragments unpunished.

    Returns
    -------
    RangeScore
        ``(precision, recall, f1)``. Without any alarm precision is 0.

    Raises
    ------
    DataError
        If the lengths differ, a value is not 0 or 1, or nothing is labelled.

    References
    ----------
    Tatbul, Lee, Zdonik, Alam, Gottschlich: Precision and Recall for Time
    Series, NeurIPS 2018.

    Examples
    --------
    >>> from anomaly.evaluation import range_precision_recall
    >>> score = range_precision_recall([0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1])
    >>> round(score.precision, 3), round(score.recall, 3)
    (0.667, 0.5)
    """
    if not 0.0 <= existence_weight <= 1.0:
        raise ParameterError(f"existence_weight must be from 0 to 1, got {existence_weight!r}")
    if bias not in _BIASES:
        raise ParameterError(f"bias must be one of {sorted(_BIASES)}, got {bias!r}")
    truth, alarms = _pair(labels, predicted)
    real, found = ranges_of(truth), ranges_of(alarms)
    covered = _overlap_rewards(real, alarms, found, _BIASES[bias], reciprocal_cardinality)
    noticed = _counts_inside(real, alarms) > 0
    recall = existence_weight * noticed + (1.0 - existence_weight) * covered
    precision = _overlap_rewards(found, truth, real, _BIASES["flat"], reciprocal_cardinality)
    return RangeScore(*_with_f1(precision.mean() if len(found) else 0.0, recall.mean()))


def vus_pr(labels: ArrayLike, scores: ArrayLike, *, max_buffer: int | None = None) -> float:
    """Volume under the surface of range-aware precision-recall curves.

    Each labelled range gets soft borders of every width from 0 to
    ``max_buffer``; the area under the precision-recall curve is averaged over
    these widths, so neither a threshold nor a tolerance has to be chosen.

    Parameters
    ----------
    labels : array-like of bool or 0/1 of shape (n,)
    scores : array-like of shape (n,)
        Larger is more anomalous. Every distinct score is a threshold.
    max_buffer : int, optional
        Largest width of the soft borders in points, half on either side. By
        default the median length of the labelled ranges, at most 100.

    Returns
    -------
    float
        From 0 to 1. A constant or random score reaches about the share of
        labelled points.

    Raises
    ------
    DataError
        If the lengths differ, a score is NaN, or nothing is labelled.

    References
    ----------
    Paparrizos, Boniol, Palpanas, Tsay, Elmore, Franklin: Volume Under the
    Surface, VLDB 2022. The published code samples 250 thresholds; this one
    takes all.

    Examples
    --------
    >>> from anomaly.evaluation import vus_pr
    >>> labels = [0] * 20 + [1] * 5 + [0] * 20
    >>> vus_pr(labels, labels, max_buffer=0)
    1.0
    >>> round(vus_pr(labels, [0.0] * 45), 2)
    0.14
    """
    truth, values = _truth_and_scores(labels, scores)
    real = ranges_of(truth)
    if max_buffer is None:
        max_buffer = min(100, int(np.median(real[:, 1] - real[:, 0])))
    if max_buffer < 0:
        raise ParameterError(f"max_buffer must be 0 or more, got {max_buffer!r}")
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # end of each tie
    areas = [
        _range_average_precision(truth, values, real, buffer, order, last)
        for buffer in range(max_buffer + 1)
    ]
    return float(np.mean(areas))


def affiliation(labels: ArrayLike, predicted: ArrayLike) -> Affiliation:
    """Affiliation precision and recall: distances judged against random placement.

    The series is cut halfway between labelled ranges into one zone each. In
    its zone an alarm earns the probability that a random point would lie
    farther from the labelled range, and a labelled point the probability that
    a random alarm would lie farther from it than the nearest one.

    Parameters
    ----------
    labels, predicted : array-like of bool or 0/1 of shape (n,)

    Returns
    -------
    Affiliation
        ``(precision, recall, f1)``. Precision averages over the zones with an
        alarm and is 0 if there is none; recall averages over all zones.

    References
    ----------
    Huet, Navarro, Rossi: Local Evaluation of Time Series Anomaly Detection
    Algorithms, KDD 2022.

    Examples
    --------
    >>> from anomaly.evaluation import affiliation
    >>> score = affiliation([0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0])
    >>> round(score.precision, 3), round(score.recall, 3)
    (0.667, 0.833)
    """
    truth, alarms = _pair(labels, predicted)
    real, found = ranges_of(truth), ranges_of(alarms)
    middles = (real[:-1, 1] + real[1:, 0]) / 2.0
    zones = np.column_stack([np.append(0.0, middles), np.append(middles, len(truth))])
    precisions, recalls = [], []
    for event, zone in zip(real.astype(float), zones, strict=True):
        inside = np.clip(found, *zone).astype(float)
        inside = inside[inside[:, 1] > inside[:, 0]]
        if len(inside):
            precisions.append(_zone_precision(event, zone, inside))
        recalls.append(_zone_recall(event, zone, inside) if len(inside) else 0.0)
    precision = float(np.mean(precisions)) if precisions else 0.0
    return Affiliation(*_with_f1(precision, float(np.mean(recalls))))


def detection_delay(labels: ArrayLike, predicted: ArrayLike) -> Delay:
    """How many labelled ranges get an alarm, and how late.

    Parameters
    ----------
    labels, predicted : array-like of bool or 0/1 of shape (n,)

    Returns
    -------
    Delay
        ``(found, total, mean, median)``, in points.

    Examples
    --------
    >>> from anomaly.evaluation import detection_delay
    >>> detection_delay([0, 1, 1, 1, 0, 1], [0, 0, 0, 1, 1, 0])
    Delay(found=1, total=2, mean=2.0, median=2.0)
    """
    truth, alarms = _pair(labels, predicted)
    real = ranges_of(truth)
    at = np.append(np.flatnonzero(alarms), len(truth))
    first = at[np.searchsorted(at, real[:, 0])]
    delays = (first - real[:, 0])[first < real[:, 1]]
    mean, median = (delays.mean(), np.median(delays)) if len(delays) else (np.nan, np.nan)
    return Delay(len(delays), len(real), float(mean), float(median))


def _flags(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{name} must have one dimension, got shape {array.shape}")
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        strange = array[~np.isin(array, (0, 1))][0]
        raise DataError(f"{name} must hold 0 and 1 only, got {strange!r}")
    return array.astype(bool)


def _pair(labels: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    truth, alarms = _flags(labels, "labels"), _flags(predicted, "predicted")
    _check_truth(truth, len(alarms), "predicted")
    return truth, alarms


def _truth_and_scores(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth = _flags(labels, "labels")
    values = np.asarray(scores, dtype=float)
    if values.ndim != 1:
        raise DataError(f"scores must have one dimension, got shape {values.shape}")
    _check_truth(truth, len(values), "scores")
    if np.isnan(values).any():
        raise DataError(
            f"scores must be numbers, got NaN at {np.flatnonzero(np.isnan(values))[0]}"
        )
    return truth, values


def _check_truth(truth: NDArray[np.bool_], length: int, name: str) -> None:
    if len(truth) != length:
        raise DataError(f"labels has {len(truth)} values, {name} has {length}")
    if not truth.any():
        raise DataError("labels holds no anomaly, so nothing can be measured")


def _with_f1(precision: float, recall: float) -> tuple[float, float, float]:
    total = precision + recall
    return float(precision), float(recall), float(2 * precision * recall / total) if total else 0.0


# Weight of positions 1…n of a range of n points.
_BIASES: dict[str, Callable[[int], NDArray[np.float64]]] = {
    "flat": lambda n: np.ones(n),
    "front": lambda n: np.arange(n, 0, -1.0),
    "middle": lambda n: np.minimum(np.arange(1.0, n + 1), np.arange(n, 0, -1.0)),
    "back": lambda n: np.arange(1.0, n + 1),
}


def _overlap_rewards(
    ranges: NDArray[np.int64],
    other_flags: NDArray[np.bool_],
    others: NDArray[np.int64],
    weigh: Callable[[int], NDArray[np.float64]],
    reciprocal: bool,
) -> NDArray[np.float64]:
    """Weighted share of each range that the other side covers, over the pieces it meets."""
    rewards = np.empty(len(ranges))
    for i, (start, stop) in enumerate(ranges):
        weights = weigh(stop - start)
        rewards[i] = weights[other_flags[start:stop]].sum() / weights.sum()
    if reciprocal and len(others):
        before = np.searchsorted(others[:, 1], ranges[:, 0], side="right")
        until = np.searchsorted(others[:, 0], ranges[:, 1], side="left")
        rewards /= np.maximum(until - before, 1)
    return rewards


def _counts_inside(ranges: NDArray[np.int64], flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    total = np.append(0, np.cumsum(flags))
    return total[ranges[:, 1]] - total[ranges[:, 0]]


def _soft_labels(
    truth: NDArray[np.bool_], real: NDArray[np.int64], buffer: int
) -> NDArray[np.float64]:
    """Labels with square-root slopes of half a buffer on either side, at most 1."""
    labels = truth.astype(float)
    half = buffer // 2
    for start, stop in real:
        before = np.arange(max(start - half, 0), start)
        labels[before] += np.sqrt(1.0 - (start - before) / buffer) if half else 0.0
        after = np.arange(stop, min(stop - 1 + half, len(labels)))
        labels[after] += np.sqrt(1.0 - (after - stop + 1) / buffer) if half else 0.0
    return np.minimum(labels, 1.0)


def _range_average_precision(
    truth: NDArray[np.bool_],
    scores: NDArray[np.float64],
    real: NDArray[np.int64],
    buffer: int,
    order: NDArray[np.int64],
    last: NDArray[np.int64],
) -> float:
    """Area under one range-aware precision-recall curve, all thresholds at once."""
    labels = _soft_labels(truth, real, buffer)
    hits = np.cumsum(labels[order])[last]
    positives = (truth.sum() + labels.sum()) / 2.0
    recall = np.minimum(hits / positives, 1.0)
    segments = ranges_of(labels > 0)
    tops = np.sort([-scores[start:stop].max() for start, stop in segments])
    noticed = np.searchsorted(tops, -scores[order][last], side="right") / len(segments)
    gained = np.diff(recall * noticed, prepend=0.0)
    return float(gained @ (hits / (last + 1.0)))


def _quarters(start: float, stop: float) -> NDArray[np.float64]:
    """Midpoints of quarter cells; the midpoint rule on them is exact.

    What affiliation integrates is piecewise linear, and its kinks lie on
    multiples of a quarter point.
    """
    return np.arange(round(4 * start), round(4 * stop)) / 4.0 + 0.125


def _farther_share(
    centre_low: NDArray[np.float64] | float,
    centre_high: NDArray[np.float64] | float,
    distance: NDArray[np.float64],
    zone: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Share of the zone farther than ``distance`` from the interval low…high."""
    low = np.maximum(centre_low - distance, zone[0])
    high = np.minimum(centre_high + distance, zone[1])
    return 1.0 - (high - low) / (zone[1] - zone[0])


def _zone_precision(
    event: NDArray[np.float64], zone: NDArray[np.float64], inside: NDArray[np.float64]
) -> float:
    points = np.concatenate([_quarters(*span) for span in inside])
    distance = np.maximum(0.0, np.maximum(event[0] - points, points - event[1]))
    farther = np.where(distance > 0, _farther_share(event[0], event[1], distance, zone), 1.0)
    return float(farther.mean())


def _zone_recall(
    event: NDArray[np.float64], zone: NDArray[np.float64], inside: NDArray[np.float64]
) -> float:
    points = _quarters(*event)
    after = np.searchsorted(inside[:, 0], points)  # alarms that begin at or before the point
    left = np.append(-np.inf, inside[:, 1])[after]
    right = np.append(inside[:, 0], np.inf)[after]
    distance = np.maximum(0.0, np.minimum(points - left, right - points))
    return float(_farther_share(points, points, distance, zone).mean())


# ------------------------------------------------------------------- reports


def evaluate(
    labels: ArrayLike,
    scores: ArrayLike | Mapping[str, ArrayLike],
    *,
    predicted: ArrayLike | None = None,
    types: ArrayLike | None = None,
    injected: bool = False,
    notes: Sequence[str] = (),
    k: Sequence[int] = (10, 100),
    n_bootstrap: int = 1000,
    random_state: int = 0,
    title: str = "Evaluation",
) -> Report:
    """How well scores rank the anomalies of a table, beside what chance would do.

    Parameters
    ----------
    labels : array-like of bool or 0/1 of shape (n,)
        True where the row is an anomaly; both kinds are needed.
    scores : array-like of shape (n,), or mapping of name to such
        Larger is more anomalous.
    predicted : array-like of bool or 0/1 of shape (n,), optional
        Decisions; adds how many of each type were flagged.
    types : array-like of str of shape (n,), optional
        What kind of anomaly, or of normal row, each row is.
    injected : bool, default=False
        The anomalies were made, not observed: a note says what that means.
    notes : sequence of str, optional
        What else a reader must know.
    k : sequence of int, default=(10, 100)
        Lengths of the top of the list; those longer than the table are left out.
    n_bootstrap : int, default=1000
        Tables drawn with replacement for the 95 % intervals, normal rows and
        anomalies apart; and random scores drawn for the row of chance.
    random_state : int, default=0
    title : str

    Returns
    -------
    Report
        Tables ``Ranking`` (area under the ROC curve and average precision,
        each with ``low`` and ``high``), ``Top of the list``, and ``By type``;
        figures of both curves and of the types.

    Raises
    ------
    DataError
        If lengths differ, a score is NaN, or one kind of row is missing.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.evaluation import evaluate
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(500) < 25
    >>> report = evaluate(labels, rng.normal(size=500) + 2 * labels)
    >>> report.tables["Ranking"].round(2)[["AUROC", "AP", "AP low", "AP high"]]
                  AUROC    AP  AP low  AP high
    score          0.93  0.54    0.38     0.73
    random score   0.50  0.06    0.04     0.11
    """
    named = _named_scores(labels, scores)
    truth = _flags(labels, "labels")
    tables = {
        "Ranking": _ranking(truth, named, _stratified_draws, n_bootstrap, random_state),
        "Top of the list": _top(truth, named, [n for n in k if n <= len(truth)]),
    }
    figures: dict[str, Callable[[Figure], None]] = {
        "Curves": lambda figure: _draw_curves(figure, truth, named)
    }
    if types is not None:
        flags = None if predicted is None else _flags(predicted, "predicted")
        by_type = _by_type(truth, named, np.asarray(types).astype(str), flags)
        tables["By type"] = by_type
        figures["By type"] = lambda figure: _draw_types(figure, by_type)
    return Report(
        title,
        tables,
        [INJECTED_NOTE] * injected + list(notes),
        figures,
        {"Ranking": _counted(truth) + _INTERVALS.format(drawn="rows")},
    )


def evaluate_series(
    labels: ArrayLike,
    scores: ArrayLike | Mapping[str, ArrayLike],
    *,
    threshold: float = 0.5,
    max_buffer: int | None = None,
    n_bootstrap: int = 200,
    random_state: int = 0,
    title: str = "Evaluation",
) -> Report:
    """How well scores find the labelled ranges of a series, beside what chance would do.

    Parameters
    ----------
    labels : array-like of bool or 0/1 of shape (n,)
    scores : array-like of shape (n,), or mapping of name to such
        Larger is more anomalous.
    threshold : float, default=0.5
        A larger score is an alarm. The random score raises as many alarms as
        the first of ``scores``.
    max_buffer : int, optional
        As in `vus_pr`.
    n_bootstrap : int, default=200
        Series drawn for the intervals, as blocks of successive points, because
        neighbouring points are not independent.
    random_state : int, default=0
    title : str

    Returns
    -------
    Report
        Tables ``Ranking`` (point by point), ``Ranges`` (range-based precision
        and recall, VUS-PR, affiliation) and ``Delay``; figures of the curves
        and of the scores over time.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.evaluation import evaluate_series
    >>> labels = np.zeros(400, dtype=int)
    >>> labels[100:120] = labels[300:310] = 1
    >>> scores = np.random.default_rng(0).random(400) * 0.6
    >>> scores[105:112] = scores[303] = 0.9
    >>> report = evaluate_series(labels, scores)
    >>> report.tables["Delay"]
                  found  of  mean delay  median delay
    score             2   2         1.5           1.5
    random score      2   2         5.0           5.0
    """
    named = _named_scores(labels, scores)
    truth = _flags(labels, "labels")
    alarms = {name: values > threshold for name, values in named.items()}
    chance = np.random.default_rng(random_state).random(len(truth))
    named_and_random = {**named, RANDOM: chance}
    alarms[RANDOM] = chance < next(iter(alarms.values())).mean()
    ranges = pd.DataFrame.from_dict(
        {
            name: _range_measures(truth, values, alarms[name], max_buffer)
            for name, values in named_and_random.items()
        },
        orient="index",
    )
    delays = {name: detection_delay(truth, flags) for name, flags in alarms.items()}
    columns = ["found", "of", "mean delay", "median delay"]
    return Report(
        title,
        {
            "Ranking": _ranking(truth, named, _block_draws, n_bootstrap, random_state),
            "Ranges": ranges,
            "Delay": pd.DataFrame.from_dict(delays, orient="index", columns=columns),
        },
        ["Delays are in points of the series. No point adjustment is applied."],
        {
            "Curves": lambda figure: _draw_curves(figure, truth, named),
            "Scores over time": lambda figure: _draw_scores(figure, truth, named, threshold),
        },
        {"Ranking": _counted(truth) + _INTERVALS.format(drawn="blocks of points")},
    )


def _named_scores(
    labels: ArrayLike, scores: ArrayLike | Mapping[str, ArrayLike]
) -> dict[str, Floats]:
    given = scores if isinstance(scores, Mapping) else {"score": scores}
    named = {str(name): _truth_and_scores(labels, values)[1] for name, values in given.items()}
    if not named:
        raise DataError("scores holds no score")
    if np.asarray(labels).astype(bool).all():
        raise DataError("labels holds no normal row, so nothing can be ranked")
    return named


def _counted(truth: NDArray[np.bool_]) -> str:
    return f"{truth.sum()} anomalies among {len(truth)}. "


def _stratified_draws(truth: NDArray[np.bool_], n_draws: int, seed: int) -> Iterator[Floats]:
    """How often each row occurs in tables drawn with replacement, kinds apart."""
    rng = np.random.default_rng(seed)
    kinds = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    for _ in range(n_draws):
        drawn = np.concatenate([rng.choice(rows, len(rows)) for rows in kinds])
        yield np.bincount(drawn, minlength=len(truth)).astype(float)


def _block_draws(truth: NDArray[np.bool_], n_draws: int, seed: int) -> Iterator[Floats]:
    """The same for blocks of successive points; draws without both kinds are left out."""
    rng = np.random.default_rng(seed)
    n_blocks = min(len(truth), max(20, math.isqrt(len(truth))))
    block = np.arange(len(truth)) * n_blocks // len(truth)
    for _ in range(n_draws):
        counts = np.bincount(rng.integers(0, n_blocks, n_blocks), minlength=n_blocks)
        weights = counts[block].astype(float)
        if weights[truth].any() and weights[~truth].any():
            yield weights


class _Curve:
    """Both curves of one score, under any weights of the rows."""

    def __init__(self, truth: NDArray[np.bool_], scores: Floats) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self._truth = truth[self._order]

    def counts(self, weights: Floats | None = None) -> tuple[Floats, Floats]:
        """True and false alarms at each threshold, from the highest down."""
        ordered = np.ones(len(self._truth)) if weights is None else weights[self._order]
        hits = np.cumsum(ordered * self._truth)[self._last]
        return hits, np.cumsum(ordered)[self._last] - hits

    def areas(self, weights: Floats | None = None) -> tuple[float, float]:
        """Area under the ROC curve, and average precision."""
        hits, false_alarms = self.counts(weights)
        recall = np.append(0.0, hits / hits[-1])
        fall_out = np.append(0.0, false_alarms / false_alarms[-1])
        precision = hits / np.maximum(hits + false_alarms, 1e-300)
        return float(np.trapezoid(recall, fall_out)), float(np.diff(recall) @ precision)


def _ranking(
    truth: NDArray[np.bool_],
    named: Mapping[str, Floats],
    draw: Callable[[NDArray[np.bool_], int, int], Iterator[Floats]],
    n_draws: int,
    seed: int,
) -> pd.DataFrame:
    """Areas and their intervals; the same draws for every score, so rows compare."""
    rows = {}
    for name, scores in named.items():
        curve = _Curve(truth, scores)
        spread = [curve.areas(weights) for weights in draw(truth, n_draws, seed)]
        rows[name] = _with_interval(curve.areas(), np.array(spread or [(np.nan, np.nan)]))
    rng = np.random.default_rng(seed)
    chance = np.array(
        [_Curve(truth, rng.random(len(truth))).areas() for _ in range(min(n_draws, 200) + 1)]
    )
    rows[RANDOM] = _with_interval(tuple(chance.mean(axis=0)), chance)
    return pd.DataFrame.from_dict(rows, orient="index")


def _with_interval(areas: tuple[float, ...], spread: Floats) -> dict[str, float]:
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    row = {}
    for i, measure in enumerate(("AUROC", "AP")):
        row[measure] = float(areas[i])
        row[f"{measure} low"], row[f"{measure} high"] = float(low[i]), float(high[i])
    return row


def _top(truth: NDArray[np.bool_], named: Mapping[str, Floats], k: list[int]) -> pd.DataFrame:
    """Precision among the k highest scores; ties count with their share."""
    rows = {}
    for name, scores in named.items():
        hits, false_alarms = _Curve(truth, scores).counts()
        flagged = np.append(0.0, hits + false_alarms)
        found = np.interp(k, flagged, np.append(0.0, hits))
        rows[name] = {f"precision at {n}": f / n for n, f in zip(k, found, strict=True)}
        rows[name] |= {f"found at {n}": f / hits[-1] for n, f in zip(k, found, strict=True)}
    rows[RANDOM] = {f"precision at {n}": truth.mean() for n in k}
    rows[RANDOM] |= {f"found at {n}": n / len(truth) for n in k}
    return pd.DataFrame.from_dict(rows, orient="index")


def _by_type(
    truth: NDArray[np.bool_],
    named: Mapping[str, Floats],
    types: NDArray[Any],
    flags: NDArray[np.bool_] | None,
) -> pd.DataFrame:
    """Each type of anomaly against all normal rows; types of normal rows are counted."""
    if len(types) != len(truth):
        raise DataError(f"labels has {len(truth)} values, types has {len(types)}")
    if flags is not None and len(flags) != len(truth):
        raise DataError(f"labels has {len(truth)} values, predicted has {len(flags)}")
    rows = []
    for kind in np.unique(types):
        own = types == kind
        row: dict[str, Any] = {"type": kind, "rows": int(own.sum())}
        if flags is not None:
            row["flagged"] = float(flags[own].mean())
        chosen = (own & truth) | ~truth
        for name, scores in named.items():
            some = (own & truth).any()
            curve = _Curve(truth[chosen], scores[chosen]) if some else None
            suffix = "" if len(named) == 1 else f" {name}"
            areas = curve.areas() if curve else (np.nan, np.nan)
            row[f"AUROC{suffix}"], row[f"AP{suffix}"] = areas
        share = (own & truth).sum() / chosen.sum()
        row["AP of chance"] = float(share) if share else np.nan
        rows.append(row)
    return pd.DataFrame(rows).set_index("type")


def _range_measures(
    truth: NDArray[np.bool_], scores: Floats, alarms: NDArray[np.bool_], max_buffer: int | None
) -> dict[str, float]:
    by_range = range_precision_recall(truth, alarms)
    near = affiliation(truth, alarms)
    return {
        "precision": by_range.precision,
        "recall": by_range.recall,
        "F1": by_range.f1,
        "VUS-PR": vus_pr(truth, scores, max_buffer=max_buffer),
        "affiliation precision": near.precision,
        "affiliation recall": near.recall,
    }


def _draw_curves(figure: Figure, truth: NDArray[np.bool_], named: Mapping[str, Floats]) -> None:
    roc, pr = figure.subplots(1, 2)
    for name, scores in named.items():
        curve = _Curve(truth, scores)
        hits, false_alarms = curve.counts()
        auroc, average = curve.areas()
        recall = hits / hits[-1]
        precisions = hits / (hits + false_alarms)
        roc.plot(
            np.append(0, false_alarms / false_alarms[-1]),
            np.append(0, recall),
            label=f"{name}: {auroc:.3f}",
        )
        pr.step(
            np.append(0, recall),
            np.append(precisions[0], precisions),
            where="pre",
            label=f"{name}: {average:.3f}",
        )
    roc.plot([0, 1], [0, 1], "--", color="grey", label=f"{RANDOM}: 0.500")
    pr.axhline(truth.mean(), ls="--", color="grey", label=f"{RANDOM}: {truth.mean():.3f}")
    roc.set(xlabel="normal rows flagged", ylabel="anomalies flagged", title="ROC")
    pr.set(xlabel="anomalies flagged (recall)", ylabel="precision", title="Precision and recall")
    pr.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    for axes in (roc, pr):
        axes.legend(loc="best", fontsize="small")


def _draw_types(figure: Figure, by_type: pd.DataFrame) -> None:
    axes = figure.subplots()
    areas = by_type.filter(like="AUROC").dropna(how="all")
    figure.set_figheight(1.2 + 0.4 * areas.size)
    height = 0.8 / max(areas.shape[1], 1)
    for i, column in enumerate(areas):
        axes.barh(np.arange(len(areas)) + i * height, areas[column], height, label=str(column))
    axes.set_yticks(np.arange(len(areas)) + 0.4 - height / 2, [str(kind) for kind in areas.index])
    axes.axvline(0.5, ls="--", color="grey", label=RANDOM)
    axes.margins(y=0.3 / areas.size)
    axes.set(xlabel="AUROC against all normal rows", xlim=(0, 1))
    figure.legend(loc="outside right upper", fontsize="small")


def _draw_scores(
    figure: Figure, truth: NDArray[np.bool_], named: Mapping[str, Floats], threshold: float
) -> None:
    axes = figure.subplots()
    for name, scores in named.items():
        axes.plot(scores, lw=0.8, label=name)
    for start, stop in ranges_of(truth):
        axes.axvspan(start, stop, color="#E69F00", alpha=0.3, lw=0)
    axes.axhline(threshold, ls="--", color="grey", label="threshold")
    axes.set(xlabel="point", ylabel="score")
    axes.legend(loc="best", fontsize="small")
