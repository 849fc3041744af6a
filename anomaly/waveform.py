"""Windows of sampled signals, and the contract of detectors that learn from healthy ones."""

from __future__ import annotations

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

# Share of the healthy windows, the last ones, on which thresholds are set.
HELD_OUT = 0.3


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
    ``_parts(windows)``, which returns one non-negative score per part and
    window. Each part gets its own threshold on held-out healthy windows; the
    decision is the logarithm of the largest ratio of a part to its threshold.

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

    window_size: int
    false_alarm_rate: float
    noise_floor: float

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
        scaled = [self._scale(segment) for segment in segments]
        learnt, held_out = _split(scaled, self.window_size)
        self._learn(learnt)
        self._calibrate(held_out)
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

    # -- what a subclass writes -------------------------------------------------

    def _learn(self, segments: Sequence[NDArray[np.float64]]) -> None:
        raise NotImplementedError

    def _parts(self, windows: Windows) -> dict[str, NDArray[np.float64]]:
        raise NotImplementedError

    # -- private ------------------------------------------------------------------

    def _check(self, X: ArrayLike, reset: bool) -> NDArray[np.float64]:
        if np.ndim(X) != 3:
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

    def _calibrate(self, held_out: Sequence[NDArray[np.float64]]) -> None:
        """Set the threshold of each part so that together they keep the false-alarm rate."""
        hop = max(1, self.window_size // 4)
        scores: dict[str, list[NDArray[np.float64]]] = {}
        for segment in held_out:
            for name, part in self._parts(cut(segment, self.window_size, hop)).items():
                scores.setdefault(name, []).append(part)
        share = self.false_alarm_rate / len(scores)
        self.thresholds_ = {
            name: tail_threshold(np.concatenate(found), share) for name, found in scores.items()
        }

    def _decide(self, windows: Windows) -> NDArray[np.float64]:
        ratios = [
            np.log(np.maximum(part, 1e-300) / self.thresholds_[name])
            for name, part in self._parts(windows).items()
        ]
        return np.max(ratios, axis=0)


def tail_threshold(scores: ArrayLike, false_alarm_rate: float) -> float:
    """Score that healthy windows exceed at no more than a given rate.

    The larger of the highest score seen and the quantile of a log-normal
    distribution fitted to the scores, its spread widened for their number
    (one-sided tolerance factor of Natrella, 1963, at 90 % confidence).

    Parameters
    ----------
    scores : array-like of shape (n_windows,)
        Scores of healthy windows, at least 0.
    false_alarm_rate : float
        Share of healthy windows that may exceed the threshold.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.waveform import tail_threshold
    >>> healthy = np.exp(np.random.default_rng(0).normal(size=1000))
    >>> bool(np.exp(3.09) < tail_threshold(healthy, 0.001) < np.exp(3.6))
    True
    """
    logs = np.log(np.maximum(np.asarray(scores, dtype=float), 1e-12))
    n = len(logs)
    if n == 0:
        raise DataError("at least 1 healthy window is needed to set a threshold, got 0")
    z, sure = norm.isf(false_alarm_rate), norm.isf(0.1)
    a = 1.0 - sure**2 / (2.0 * max(n - 1, 1))
    b = z**2 - sure**2 / n
    factor = (z + np.sqrt(max(z**2 - a * b, 0.0))) / a if a > 0.2 else 4.0 * z
    spread = max(float(logs.std(ddof=1)) if n > 1 else 0.0, 0.05)
    return float(np.exp(max(logs.max(), logs.mean() + factor * spread)))


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
        raise DataError("y must label some rows healthy (the first class), got none")
    return segments


def _split(
    segments: list[NDArray[np.float64]], window_size: int
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """The earlier healthy samples to learn from, the later ones to set thresholds on."""
    if len(segments) == 1:
        (only,) = segments
        at = len(only) - max(round(HELD_OUT * len(only)), min(window_size, len(only) // 2))
        return [only[: max(at, 1)]], [only[min(at, len(only) - 1) :]]
    if len(segments) < 4:
        longest = max(segments, key=len)
        learnt, held_out = _split([longest], window_size)
        return [*(s for s in segments if s is not longest), *learnt], held_out
    at = len(segments) - max(1, round(HELD_OUT * len(segments)))
    return segments[:at], segments[at:]
