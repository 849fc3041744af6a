"""From a score to a decision that keeps a promise: budgets of false alarms, or costs.

A calibration set is scores of rows that are known, or assumed, to be normal,
and that the detector was not fitted to. Nothing is assumed about the scores
but that calibration rows and new normal rows come in exchangeable order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta
from sklearn.base import BaseEstimator, clone, is_outlier_detector
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly.base import BaseDetector, Interval
from anomaly.ensemble import EnsembleDetector
from anomaly.errors import DataError, ParameterError

__all__ = [
    "BudgetDetector",
    "Threshold",
    "anomaly_scores",
    "conformal_pvalues",
    "cost_threshold",
    "daily_alarm_threshold",
    "discoveries",
    "false_alarm_threshold",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Threshold:
    """A score above which a row is called anomalous, and what that promises.

    Attributes
    ----------
    value : float
        Alarm if a score is larger than this.
    promise : str
        In words, for reports and logs.
    n_calibration : int
        Scores that it rests on.
    """

    value: float
    promise: str
    n_calibration: int

    def decide(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Which scores are alarms.

        Parameters
        ----------
        scores : array-like of shape (n,)

        Returns
        -------
        ndarray of bool of shape (n,)
        """
        return np.asarray(np.asarray(scores, dtype=float) > self.value)


def conformal_pvalues(calibration: ArrayLike, scores: ArrayLike) -> Floats:
    """Share of calibration scores at least as high, the row itself counted in.

    For a new normal row the probability of a value ≤ p is at most p, whatever
    the detector and the size of the calibration set.

    Parameters
    ----------
    calibration : array-like of shape (n,)
        Scores of normal rows.
    scores : array-like of shape (m,)

    Returns
    -------
    ndarray of shape (m,)
        From 1/(n + 1) to 1.

    References
    ----------
    Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005.

    Examples
    --------
    >>> from anomaly.threshold import conformal_pvalues
    >>> conformal_pvalues([1, 2, 3, 4], [0, 3.5, 9])
    array([1. , 0.4, 0.2])
    """
    ordered = np.sort(_scores(calibration, "calibration"))
    at_least = len(ordered) - np.searchsorted(ordered, _scores(scores, "scores"), side="left")
    return np.asarray((1.0 + at_least) / (len(ordered) + 1.0))


def false_alarm_threshold(
    calibration: ArrayLike, rate: float, *, confidence: float | None = None
) -> Threshold:
    """Threshold that a new normal row exceeds with at most the given probability.

    Parameters
    ----------
    calibration : array-like of shape (n,)
        Scores of normal rows. Anomalies among them only lower the true rate.
    rate : float
        Between 0 and 1.
    confidence : float, optional
        None: the rate holds on average over calibration sets. Otherwise it
        holds with this probability for the calibration set at hand, which
        needs more scores.

    Returns
    -------
    Threshold

    Raises
    ------
    DataError
        If the calibration set is too small for the promise.

    References
    ----------
    Vovk: Conditional validity of inductive conformal predictors, 2012.

    Examples
    --------
    >>> from anomaly.threshold import false_alarm_threshold
    >>> false_alarm_threshold(range(99), 0.05).value
    94.0
    >>> false_alarm_threshold(range(99), 0.05).promise
    'at most 5% of normal rows are expected to raise an alarm'
    >>> false_alarm_threshold(range(99), 0.05, confidence=0.9).promise
    'at most 5% of normal rows raise an alarm, with 0.9 confidence'
    >>> false_alarm_threshold(range(99), 0.001)
    Traceback (most recent call last):
        ...
    anomaly.errors.DataError: the calibration set is too small: a false-alarm rate of 0.001 \
needs 999 scores of normal rows, got 99; the smallest rate these can promise is 0.01
    """
    _check_share(rate, "rate")
    ordered = np.sort(_scores(calibration, "calibration"))
    allowed = _allowed(len(ordered), rate, confidence)
    if allowed < 1:
        raise DataError(_too_small(len(ordered), rate, confidence))
    expected, sure = "are expected to ", ""
    if confidence is not None:
        expected, sure = "", f", with {confidence:.4g} confidence"
    promise = f"at most {100 * rate:.4g}% of normal rows {expected}raise an alarm{sure}"
    return Threshold(float(ordered[len(ordered) - allowed]), promise, len(ordered))


def daily_alarm_threshold(
    calibration: ArrayLike,
    alarms_per_day: float,
    rows_per_day: float,
    *,
    confidence: float | None = None,
) -> Threshold:
    """Threshold with at most so many false alarms a day to be expected.

    Parameters
    ----------
    calibration : array-like of shape (n,)
        Scores of normal rows.
    alarms_per_day : float
        May be below 1, e.g. 1/7 for one a week.
    rows_per_day : float
        Rows scored on a day.
    confidence : float, optional
        As in `false_alarm_threshold`.

    Returns
    -------
    Threshold

    Examples
    --------
    >>> from anomaly.threshold import daily_alarm_threshold
    >>> daily_alarm_threshold(range(999), 2, rows_per_day=1440).promise
    'at most 2 false alarms a day are to be expected of 1440 rows'
    """
    if not 0 < alarms_per_day < rows_per_day:
        raise ParameterError(
            f"alarms_per_day must be above 0 and below rows_per_day, "
            f"got {alarms_per_day!r} of {rows_per_day!r}"
        )
    found = false_alarm_threshold(
        calibration, alarms_per_day / rows_per_day, confidence=confidence
    )
    sure = "" if confidence is None else f", with {confidence:.4g} confidence"
    promise = (
        f"at most {alarms_per_day:.4g} false alarms a day are to be expected "
        f"of {rows_per_day:.6g} rows{sure}"
    )
    return Threshold(found.value, promise, found.n_calibration)


def discoveries(calibration: ArrayLike, scores: ArrayLike, rate: float) -> NDArray[np.bool_]:
    """Rows of a batch to report so that few of the reported ones are normal.

    Benjamini and Hochberg's step-up rule on conformal p-values. The expected
    share of normal rows among the reported ones is at most ``rate``. The
    answer for a row depends on the batch, as the promise is about the batch.
    With n calibration scores and m rows, no fewer than m/(rate·(n + 1)) rows
    can be reported at once, so small sets find large groups only.

    Parameters
    ----------
    calibration : array-like of shape (n,)
        Scores of normal rows.
    scores : array-like of shape (m,)
        Scores of the batch.
    rate : float
        False-discovery rate, between 0 and 1.

    Returns
    -------
    ndarray of bool of shape (m,)

    Raises
    ------
    DataError
        If the calibration set is too small to report anything at this rate.

    References
    ----------
    Bates, Candès, Lei, Romano, Sesia: Testing for outliers with conformal
    p-values, Annals of Statistics 2023.

    Examples
    --------
    >>> from anomaly.threshold import discoveries
    >>> discoveries(range(99), [5, 50, 200, 300], rate=0.1)
    array([False, False,  True,  True])
    """
    _check_share(rate, "rate")
    pvalues = conformal_pvalues(calibration, scores)
    n = np.size(calibration)
    if 1.0 / (n + 1) > rate:
        raise DataError(_too_small(n, rate, None, "false-discovery"))
    ordered = np.sort(pvalues)
    steps = rate * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
    passed = np.flatnonzero(ordered <= steps * (1.0 + 1e-12))
    return np.asarray(pvalues <= (ordered[passed[-1]] if len(passed) else -1.0))


def cost_threshold(scores: ArrayLike, labels: ArrayLike, cost_ratio: float) -> Threshold:
    """Threshold with the least cost on labelled rows.

    Parameters
    ----------
    scores : array-like of shape (n,)
        Of rows that the detector was not fitted to.
    labels : array-like of bool or 0/1 of shape (n,)
        True where the row is an anomaly; both kinds are needed.
    cost_ratio : float
        Cost of a missed anomaly divided by the cost of a false alarm.

    Returns
    -------
    Threshold
        Halfway between two scores; the highest of equally good ones. This is
        the best on these rows, not a bound for new ones.

    Examples
    --------
    >>> from anomaly.threshold import cost_threshold
    >>> cost_threshold([1, 2, 3, 4, 5], [0, 0, 1, 0, 1], cost_ratio=10).value
    2.5
    >>> cost_threshold([1, 2, 3, 4, 5], [0, 0, 1, 0, 1], cost_ratio=0.5).value
    4.5
    """
    if not 0 < cost_ratio < math.inf:
        raise ParameterError(f"cost_ratio must be above 0 and finite, got {cost_ratio!r}")
    values = _scores(scores, "scores")
    if not np.isin(labels, (0, 1)).all():
        raise DataError("labels must hold 0 and 1 only: a cost needs to know every row")
    truth = np.asarray(labels).astype(bool)
    if len(truth) != len(values):
        raise DataError(f"labels has {len(truth)} values, scores has {len(values)}")
    if truth.all() or not truth.any():
        raise DataError("the calibration set is too small: a cost needs rows of both kinds")
    order = np.argsort(values, kind="stable")
    ordered, anomalous = values[order], truth[order]
    missed = np.append(0, np.cumsum(anomalous))  # when the lowest i rows raise no alarm
    false_alarms = (~truth).sum() - np.append(0, np.cumsum(~anomalous))
    costs = false_alarms + cost_ratio * missed
    possible = np.concatenate([[True], ordered[1:] != ordered[:-1], [True]])
    costs = np.where(possible, costs, np.inf)
    best = len(costs) - 1 - int(np.argmin(costs[::-1]))
    edges = np.concatenate([[-np.inf], ordered, [np.inf]])
    value = edges[best] / 2 + edges[best + 1] / 2 if 0 < best < len(ordered) else edges[best]
    promise = (
        f"least cost with a missed anomaly worth {cost_ratio:.4g} false alarms: "
        f"{costs[best] / len(values):.4g} false alarms' worth a row on the calibration rows"
    )
    return Threshold(float(value), promise, len(values))


def _explains(detector: BudgetDetector) -> bool:
    return hasattr(getattr(detector, "estimator_", None), "explain")


class BudgetDetector(BaseDetector):
    """Any detector or classifier, with the threshold set by a budget.

    ``fit`` withholds part of the rows, fits the estimator to the rest and sets
    the threshold on the withheld ones. With labels only normal rows calibrate
    a budget of false alarms; without, all withheld rows do, and the anomalies
    among them make it stricter than promised, never laxer.

    Parameters
    ----------
    estimator : estimator or None, default=None
        A detector of this toolkit, a classifier, or an outlier detector of
        scikit-learn. None is ``EnsembleDetector()`` with a seed drawn from
        ``random_state``.
    false_alarm_rate : float, optional
        At most this share of normal rows raises an alarm. 0.01 if no budget is
        given.
    alarms_per_day, rows_per_day : float, optional
        At most this many false alarms a day are to be expected.
    cost_ratio : float, optional
        Cost of a missed anomaly in false alarms; needs labels.
    confidence : float, optional
        See `false_alarm_threshold`.
    calibration_size : float, default=0.3
        Share of the rows that are withheld.
    random_state : int, RandomState or None, default=None
        Draws the withheld rows. A given estimator keeps its own.

    Attributes
    ----------
    estimator_ : estimator
        Fitted to the rows that were not withheld.
    threshold_ : Threshold
        With its promise in words.
    calibration_ : ndarray
        Scores of the withheld normal rows, sorted.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.ensemble import EnsembleDetector
    >>> from anomaly.threshold import BudgetDetector
    >>> X = np.random.default_rng(0).normal(size=(1000, 2))
    >>> part = EnsembleDetector("light", random_state=0)
    >>> detector = BudgetDetector(part, alarms_per_day=2, rows_per_day=200, random_state=0)
    >>> detector.fit(X).threshold_.promise
    'at most 2 false alarms a day are to be expected of 200 rows'
    >>> detector.predict([[0.0, 0.0], [9.0, 9.0]])
    array([0, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "estimator": [BaseEstimator, None],
        "false_alarm_rate": [Interval(Real, 0, 1, closed="neither"), None],
        "alarms_per_day": [Interval(Real, 0, None, closed="neither"), None],
        "rows_per_day": [Interval(Real, 0, None, closed="neither"), None],
        "cost_ratio": [Interval(Real, 0, None, closed="neither"), None],
        "confidence": [Interval(Real, 0, 1, closed="neither"), None],
        "calibration_size": [Interval(Real, 0, 1, closed="neither")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: BaseEstimator | None = None,
        *,
        false_alarm_rate: float | None = None,
        alarms_per_day: float | None = None,
        rows_per_day: float | None = None,
        cost_ratio: float | None = None,
        confidence: float | None = None,
        calibration_size: float = 0.3,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.false_alarm_rate = false_alarm_rate
        self.alarms_per_day = alarms_per_day
        self.rows_per_day = rows_per_day
        self.cost_ratio = cost_ratio
        self.confidence = confidence
        self.calibration_size = calibration_size
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # it keeps to its budget, not to the labels
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Fit the estimator to part of the rows and the threshold to the others.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), optional
            Two classes. Rows that nobody has labelled count as normal: give
            them the normal class.

        Returns
        -------
        self

        Raises
        ------
        DataError
            If too few rows are withheld for the promise, or a cost comes
            without labels of both classes.
        ParameterError
            If more than one budget is given.
        """
        self._validate_params()
        self._check_budget()
        table = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        anomalous = self._encode_labels(y, len(table))
        fitted, withheld = self._split(len(table), anomalous)
        part = self._part()
        if anomalous is None:
            self.estimator_ = part.fit(table[fitted])
        else:
            self.estimator_ = part.fit(table[fitted], anomalous[fitted])
        scores = anomaly_scores(self.estimator_, table[withheld])
        truth = np.zeros(len(scores), dtype=bool) if anomalous is None else anomalous[withheld]
        self.calibration_ = np.sort(scores[~truth])
        found = self._set_threshold(scores, truth)
        # A withheld row must stay on its side when rounding differs in another batch.
        self.threshold_ = replace(found, value=found.value + 1e-12 * abs(found.value))
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Score of the estimator minus the threshold; above 0 is an alarm.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, reset=False)
        return anomaly_scores(self.estimator_, table) - self.threshold_.value

    @available_if(_explains)
    def explain(self, X: ArrayLike) -> pd.DataFrame:
        """Which columns make a row unusual, where the estimator can say.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        DataFrame of shape (n_samples, n_features)
            That of the estimator, e.g. `EnsembleDetector.explain`.
        """
        table = validate_data(self, X, dtype=np.float64, reset=False)
        shares = self.estimator_.explain(table)
        return shares.set_axis(getattr(self, "feature_names_in_", shares.columns), axis=1)

    def discover(self, X: ArrayLike, false_discovery_rate: float) -> NDArray[np.bool_]:
        """Which rows of a batch to report; see `discoveries`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        false_discovery_rate : float
            Expected share of normal rows among the reported ones, at most.

        Returns
        -------
        ndarray of bool of shape (n_samples,)
        """
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, reset=False)
        return discoveries(
            self.calibration_, anomaly_scores(self.estimator_, table), false_discovery_rate
        )

    def _part(self) -> Any:
        if self.estimator is not None:
            return clone(self.estimator)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        return EnsembleDetector(random_state=seed)

    def _check_budget(self) -> None:
        given = [
            name
            for name in ("false_alarm_rate", "alarms_per_day", "cost_ratio")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ParameterError(f"one budget at a time, got {' and '.join(given)}")
        if self.cost_ratio is not None and self.confidence is not None:
            raise ParameterError(
                "confidence is of a budget of false alarms; a cost_ratio promises no bound"
            )
        if (self.alarms_per_day is None) != (self.rows_per_day is None):
            raise ParameterError(
                "alarms_per_day and rows_per_day are given together or not at all"
            )

    def _split(
        self, n_rows: int, anomalous: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        both = anomalous is not None and min(anomalous.sum(), (~anomalous).sum()) > 1
        size = min(max(math.ceil(self.calibration_size * n_rows), 1), n_rows - 1)
        both = both and min(size, n_rows - size) >= 2
        fitted, withheld = train_test_split(
            np.arange(n_rows),
            test_size=size,
            stratify=anomalous if both else None,
            random_state=self.random_state,
        )
        return np.sort(fitted), np.sort(withheld)

    def _set_threshold(self, scores: Floats, truth: NDArray[np.bool_]) -> Threshold:
        if self.cost_ratio is not None:
            return cost_threshold(scores, truth, self.cost_ratio)
        if self.alarms_per_day is not None and self.rows_per_day is not None:
            return daily_alarm_threshold(
                self.calibration_,
                self.alarms_per_day,
                self.rows_per_day,
                confidence=self.confidence,
            )
        rate = 0.01 if self.false_alarm_rate is None else self.false_alarm_rate
        return false_alarm_threshold(self.calibration_, rate, confidence=self.confidence)


def anomaly_scores(estimator: Any, X: ArrayLike) -> Floats:
    """Score of any fitted estimator, larger for anomalies.

    Parameters
    ----------
    estimator : fitted estimator
        Asked for its ``decision_function``, or else for the probability of its
        second class; outlier detectors of scikit-learn are turned round.
    X : array-like of shape (n_samples, n_features)

    Returns
    -------
    ndarray of shape (n_samples,)
    """
    if is_outlier_detector(estimator):
        return -np.asarray(estimator.score_samples(X), dtype=float)
    if hasattr(estimator, "decision_function"):
        return np.asarray(estimator.decision_function(X), dtype=float)
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(X)[:, 1], dtype=float)
    raise ParameterError(
        f"estimator must have decision_function or predict_proba; {type(estimator).__name__} has "
        f"neither"
    )


def _scores(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise DataError(f"{name} must have one dimension, got shape {array.shape}")
    if np.isnan(array).any():
        raise DataError(f"{name} must be numbers, got NaN at {np.flatnonzero(np.isnan(array))[0]}")
    return array


def _check_share(value: float, name: str) -> None:
    if not 0.0 < value < 1.0:
        raise ParameterError(f"{name} must be between 0 and 1, got {value!r}")


def _allowed(n: int, rate: float, confidence: float | None) -> int:
    """How many of n calibration scores may lie on or above the threshold."""
    if confidence is None:
        return min(math.floor((n + 1) * rate + 1e-9), n)
    _check_share(confidence, "confidence")
    # With the a-th highest score as threshold the true rate is Beta(a, n + 1 - a).
    candidates = np.arange(1, n + 1)
    sure = beta.cdf(rate, candidates, n + 1 - candidates) >= confidence
    return int(candidates[sure].max(initial=0))


def _rounded_up(rate: float) -> float:
    """To three digits and never down, so that the rate that is named can be had."""
    unit = 10.0 ** (math.floor(math.log10(rate)) - 2)
    return min(math.ceil(rate / unit - 1e-6) * unit, 1.0)


def _too_small(n: int, rate: float, confidence: float | None, kind: str = "false-alarm") -> str:
    if confidence is None:
        needed, smallest = math.ceil(1.0 / rate - 1e-9) - 1, 1.0 / (n + 1)
        sure = ""
    else:
        needed = math.ceil(math.log1p(-confidence) / math.log1p(-rate))
        smallest = 1.0 - (1.0 - confidence) ** (1.0 / n) if n else 1.0
        sure = f" with {confidence:.4g} confidence"
    return (
        f"the calibration set is too small: a {kind} rate of {rate:.4g}{sure} needs {needed} "
        f"scores of normal rows, got {n}; the smallest rate these can promise is "
        f"{_rounded_up(smallest):.3g}"
    )
