"""Windows of sampled signals, and the contract of detectors that learn from healthy ones."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly.base import BaseDetector, Interval
from anomaly.errors import DataError

Windows = NDArray[np.float64]

# Parts of the healthy data; each is scored by a model of the others to set thresholds.
N_FOLDS = 5

# Windows that set thresholds overlap: a new one starts every 1/4 of a window.
OVERLAP = 4

# Healthy windows to learn from; a detector that learnt one alarms on most others.
FEWEST_LEARNT = 10

# Below this number of windows the tolerance factor is undefined or useless.
FEWEST_FOR_TOLERANCE = 8

# Smallest believable standard deviation of the logarithm of a healthy score.
SMALLEST_SPREAD = 0.05


def cut(signal: ArrayLike, window_size: int, hop: int | None = None) -> Windows:
    """Cut a signal to windows.

    Parameters
    ----------
    signal : array-like of shape (n_samples, n_channels)
    window_size : int
        Samples per window. A shorter signal is one window.
    hop : int, optional
        Samples from one window to the next; by default they touch. When the last
        samples do not fill a window, one more ends with the signal.

    Returns
    -------
    ndarray of shape (n_windows, window_size, n_channels)

    Examples
    --------
    >>> from anomaly.waveform import cut
    >>> cut([[1], [2], [3], [4], [5]], window_size=2)[:, :, 0]
    array([[1., 2.],
           [3., 4.],
           [4., 5.]])
    """
    values = np.asarray(signal, dtype=np.float64)
    return np.stack([values[a:b] for a, b in spans(len(values), window_size, hop)])


def spans(n_samples: int, window_size: int, hop: int | None = None) -> list[tuple[int, int]]:
    """First and past-the-end sample of each window that `cut` makes."""
    if n_samples <= window_size:
        return [(0, n_samples)]
    starts = list(range(0, n_samples - window_size + 1, hop or window_size))
    if starts[-1] + window_size < n_samples:
        starts.append(n_samples - window_size)
    return [(start, start + window_size) for start in starts]


class WindowDetector(BaseDetector):
    """Base of detectors that learn a healthy signal and score windows of it.

    A subclass writes ``_learn(segments)``, from scaled healthy segments, and
    ``_parts(windows)``, which returns one score per part and window, about 1 for
    healthy ones. Each part gets its own threshold, 1 at least, on healthy
    windows it was not learnt from; the decision is the logarithm of the largest
    ratio of a part to its threshold.

    ``X`` of shape (n_windows, window_size, n_channels) gives one answer per
    window. ``X`` of shape (n_samples, n_channels) is one signal, cut to windows
    that touch; each sample gets the answer of its window, the last ones that of
    the window that ends with the signal.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "window_size": [Interval(Integral, 1, None, closed="left")],
        "false_alarm_rate": [Interval(Real, 0, 0.5, closed="neither")],
        "noise_floor": [Interval(Real, 0, None, closed="neither")],
    }

    _confidence: ClassVar[float] = 0.999

    window_size: int
    false_alarm_rate: float
    noise_floor: float

    # Samples after which `learn_one` fits; an argument of some detectors.
    learn_size: int = 3000

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True  # on shuffled rows, which are no signal
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn the healthy signal and set the threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_channels) or (n_windows, window_size, n_channels)
        y : array-like of shape (n_samples,) or (n_windows,), optional
            Labels. Rows of the second class are left out: a fault is never learnt.

        Returns
        -------
        self
        """
        self._validate_params()
        values = self._check(X, reset=True)
        anomalous = self._encode_labels(y, len(values))
        segments = _healthy_segments(values, anomalous)
        self._learn_scale(segments)
        self._learn_and_calibrate([self._scale(segment) for segment in segments])
        self.reset_stream()
        self.__dict__.pop("_collected", None)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Logarithm of the score over its threshold: above 0 is an anomaly.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_channels) or (n_windows, window_size, n_channels)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_windows,)
        """
        check_is_fitted(self)
        values = self._check(X, reset=False)
        if values.ndim == 3:
            return self._decide(self._scale(values))
        scores = np.empty(len(values))
        bounds = spans(len(values), self.window_size)
        scaled = self._scale(values)
        if len(bounds) == 1:
            scores[:] = self._decide(scaled[None])[0]
            return scores
        decisions = self._decide(np.stack([scaled[a:b] for a, b in bounds]))
        for (first, past), decision in zip(reversed(bounds), reversed(decisions), strict=True):
            scores[first:past] = decision  # earlier windows overwrite the overlapping last one
        return scores

    # -- streams ------------------------------------------------------------------

    def learn_one(self, x: Sequence[float]) -> None:
        """Collect a healthy sample; fit once ``learn_size`` of them have come.

        Parameters
        ----------
        x : sequence of n_channels numbers
        """
        if hasattr(self, "thresholds_"):
            return
        if not hasattr(self, "_collected"):
            self._collected: list[list[float]] = []
        values = np.asarray(x, dtype=float)
        n_channels = len(self._collected[0]) if self._collected else len(values)
        check_samples(values, n_channels)
        self._collected.append(values.tolist())
        if len(self._collected) >= self.learn_size:
            collected, self._collected = self._collected, []
            self.fit(np.array(collected))

    def score_one(self, x: Sequence[float]) -> float:
        """Score the window that ends with the newest sample: above 0 is an anomaly.

        Parameters
        ----------
        x : sequence of n_channels numbers

        Returns
        -------
        float
            The `decision_function` of the last ``window_size`` samples; 0.0 until
            the detector is fitted and as many have come. Each call costs a window.

        Raises
        ------
        DataError
            If the sample is not finite or has other channels. It is left out.
        """
        if not hasattr(self, "thresholds_"):
            return 0.0
        values = np.asarray(x, dtype=float)
        check_samples(values, len(self.mean_))
        if not hasattr(self, "_newest"):
            self._newest: deque[NDArray[np.float64]] = deque(maxlen=self.window_size)
        self._newest.append(values)
        if len(self._newest) < self.window_size:
            return 0.0
        return float(self._decide(self._scale(np.array(self._newest))[None])[0])

    def process_one(self, x: Sequence[float]) -> float:
        """Score a sample, then learn it."""
        score = self.score_one(x)
        self.learn_one(x)
        return score

    def reset_stream(self) -> None:
        """Forget the samples of the stream so far; what was learnt stays."""
        self.__dict__.pop("_newest", None)

    # -- what a subclass writes -------------------------------------------------

    def _learn(self, segments: Sequence[NDArray[np.float64]]) -> None:
        raise NotImplementedError

    def _parts(self, windows: Windows) -> dict[str, NDArray[np.float64]]:
        raise NotImplementedError

    # -- private ------------------------------------------------------------------

    def _check(self, X: ArrayLike, reset: bool) -> NDArray[np.float64]:
        if (X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim) != 3:
            return validate_data(self, X, reset=reset, dtype=np.float64, order="C")
        values = check_array(X, dtype=np.float64, allow_nd=True, order="C")
        if reset:
            self.n_features_in_ = values.shape[2]
        elif values.shape[2] != self.n_features_in_:
            raise ValueError(
                f"X has {values.shape[2]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        return values

    def _learn_scale(self, segments: Sequence[NDArray[np.float64]]) -> None:
        stacked = np.concatenate(segments)
        self.mean_ = stacked.mean(axis=0)
        spread = stacked.std(axis=0)
        size = np.maximum(np.abs(self.mean_), 1.0)
        # A channel that hardly moves is not blown up to unit spread.
        self.scale_ = np.where(spread > 1e-9 * size, spread, size)

    def _scale(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return (values - self.mean_) / self.scale_

    def _learn_and_calibrate(self, segments: list[NDArray[np.float64]]) -> None:
        """Learn all segments; set thresholds on each fold, scored by a model of the others."""
        folds = _folds(segments, self.window_size, N_FOLDS)
        scores: dict[str, list[NDArray[np.float64]]] = {}
        for i, fold in enumerate(folds):
            others = [s for j, other in enumerate(folds) if j != i for s in other]
            self._learn(others or fold)
            self._collect(fold, scores)
        self._learn(segments)
        self._calibrate(scores)

    def _collect(
        self,
        segments: Sequence[NDArray[np.float64]],
        scores: dict[str, list[NDArray[np.float64]]],
    ) -> None:
        for segment in segments:
            for name, found in self._healthy_scores(segment).items():
                scores.setdefault(name, []).append(found)

    def _healthy_scores(self, segment: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Scores of overlapping windows of a segment, for thresholds."""
        return self._parts(cut(segment, self.window_size, max(1, self.window_size // OVERLAP)))

    def _calibrate(self, scores: dict[str, list[NDArray[np.float64]]]) -> None:
        """Set the thresholds, so that all parts together keep the false-alarm rate."""
        share = self.false_alarm_rate / len(scores)
        self.thresholds_ = {}
        for name, found in scores.items():
            n_independent = sum(-(-len(part) // OVERLAP) for part in found)
            threshold = tail_threshold(
                np.concatenate(found), share, n_independent, self._confidence
            )
            self.thresholds_[name] = max(threshold, 1.0)

    def _decide(self, windows: Windows) -> NDArray[np.float64]:
        ratios = [
            np.log(np.maximum(part, 1e-300) / self.thresholds_[name])
            for name, part in self._parts(windows).items()
        ]
        return np.max(ratios, axis=0)


def tail_threshold(
    scores: ArrayLike,
    false_alarm_rate: float,
    n_independent: int | None = None,
    confidence: float = 0.999,
) -> float:
    """Score that healthy windows exceed at no more than a given rate.

    The larger of the highest score seen and the quantile of a log-normal
    distribution fitted to the scores, widened for their number by the one-sided
    tolerance factor.

    Parameters
    ----------
    scores : array-like of shape (n_windows,)
        Scores of healthy windows, at least 0.
    false_alarm_rate : float
        Share of healthy windows that may exceed the threshold.
    n_independent : int, optional
        How many independent scores they are worth; all, by default.
    confidence : float, default 0.999
        How sure it is that the rate is kept, if the scores are log-normal.

    References
    ----------
    M. G. Natrella, *Experimental Statistics*, NBS Handbook 91, 1963, ch. 2.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.waveform import tail_threshold
    >>> healthy = np.exp(np.random.default_rng(0).normal(size=1000))
    >>> bool(np.exp(3.09) < tail_threshold(healthy, 0.001) < np.exp(3.6))
    True
    """
    logs = np.log(np.maximum(np.asarray(scores, dtype=float), 1e-12))
    if len(logs) == 0:
        raise DataError("at least 1 healthy window is needed to set a threshold, got 0")
    factor = _tolerance_factor(false_alarm_rate, n_independent or len(logs), confidence)
    spread = max(float(logs.std(ddof=1)) if len(logs) > 1 else 0.0, SMALLEST_SPREAD)
    return float(np.exp(max(logs.max(), logs.mean() + factor * spread)))


def _tolerance_factor(rate: float, n: int, confidence: float) -> float:
    """Standard deviations above the mean of n that 1 - rate of a normal stays below."""
    z, sure = norm.isf(rate), norm.isf(1.0 - confidence)
    if n < FEWEST_FOR_TOLERANCE:
        return float(4.0 * z)
    a = 1.0 - sure**2 / (2.0 * (n - 1))
    b = z**2 - sure**2 / n
    return float((z + np.sqrt(max(z**2 - a * b, 0.0))) / a)


def _healthy_segments(
    values: NDArray[np.float64], anomalous: NDArray[np.bool_] | None
) -> list[NDArray[np.float64]]:
    """Runs of healthy samples, or each healthy window as a run."""
    if values.ndim == 3:
        kept = values if anomalous is None else values[~anomalous]
        segments = list(kept)
    elif anomalous is None:
        segments = [values]
    else:
        edges = np.flatnonzero(np.diff(anomalous)) + 1
        runs = zip(np.split(values, edges), np.split(anomalous, edges), strict=True)
        segments = [run for run, odd in runs if not odd[0]]
    if not segments:
        raise DataError(
            f"y must label at least one sample healthy (the first class), got 0 of {len(values)}"
        )
    return segments


def _folds(
    segments: list[NDArray[np.float64]], window_size: int, n_folds: int
) -> list[list[NDArray[np.float64]]]:
    """Parts of nearly equal length, in order; only segments of several windows are cut."""
    if len(segments) >= n_folds:
        bounds = np.linspace(0, len(segments), n_folds + 1).round().astype(int)
        return [segments[a:b] for a, b in itertools.pairwise(bounds)]
    pieces = []
    for segment in segments:
        n = max(1, min(n_folds, len(segment) // window_size))
        pieces.append(np.array_split(segment, n))
    n = max(len(of_one) for of_one in pieces)
    return [[of_one[i] for of_one in pieces if i < len(of_one)] for i in range(n)]


def check_samples(values: NDArray[np.float64], n_channels: int) -> None:
    """Refuse samples that are not finite or have other channels.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.waveform import check_samples
    >>> check_samples(np.array([1.0, np.nan]), 2)
    Traceback (most recent call last):
        ...
    anomaly.errors.DataError: X: samples must be finite numbers, got NaN or infinity
    """
    if values.shape[-1:] != (n_channels,):
        raise DataError(f"X: samples of {n_channels} channels are needed, got {values.shape}")
    if not np.isfinite(values).all():
        raise DataError("X: samples must be finite numbers, got NaN or infinity")
