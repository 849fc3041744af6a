"""Vibration: residuals of a vector autoregression, joined with an amplitude check."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly.base import Interval
from anomaly.waveform import WindowDetector, Windows, check_samples, cut, tail_threshold

__all__ = ["VibrationDetector"]

# Healthy machines come to rest now and then: a channel counts as quiet when its
# healthy variance is this many times that of the window (a tenth of the amplitude).
QUIETEST = 100.0


class VibrationDetector(WindowDetector):
    """Faults in vibration, seen by how badly the healthy dynamics predict the signal.

    A vector autoregression predicts each sample from the ``order`` samples
    before it. Its squared residual, in units of the healthy one, is averaged
    over a window, or exponentially over a stream, where it is capped: a glitch
    of one sample alarms, whatever its size, for a bounded time. It is joined with
    a check of the amplitude: parts ``louder`` and ``quieter``. Scaling,
    model and thresholds come from healthy data only, so a fault that is merely
    louder is still seen.

    Parameters
    ----------
    window_size : int, default 100
        Samples per window.
    order : int, default 8
        Samples from which the next is predicted.
    ridge : float, default 1e-3
        Penalty of the least squares, on scaled signals.
    false_alarm_rate : float, default 0.001
        Share of healthy windows that may alarm.
    noise_floor : float, default 1e-3
        Smallest residual, as a share of a channel's healthy standard deviation,
        that counts: noise-free signals do not alarm on rounding.
    smoothing : float, default 0.05
        Weight of the newest sample in the exponential average of a stream.
    learn_size : int, default 3000
        Samples after which `learn_one` fits.

    Attributes
    ----------
    mean_, scale_ : ndarray of shape (n_channels,)
        Healthy mean and standard deviation.
    coefficients_ : ndarray of shape (order * n_channels + 1, n_channels)
    thresholds_ : dict of str to float
        For the parts ``residual``, ``louder``, ``quieter`` and, in streams, ``stream``.

    References
    ----------
    H. Lütkepohl, *New Introduction to Multiple Time Series Analysis*, 2005, ch. 3.

    Examples
    --------
    >>> from anomaly.lorenz import simulate
    >>> from anomaly.vibration import VibrationDetector
    >>> healthy = simulate(6000, noise=0.02, random_state=0)
    >>> detector = VibrationDetector().fit(healthy)
    >>> broken = simulate(300, fraction=1.0, noise=0.02, random_state=1)
    >>> detector.predict(broken.reshape(3, 100, 3))
    array([1, 1, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **WindowDetector._parameter_constraints,
        "order": [Interval(Integral, 1, None, closed="left")],
        "ridge": [Interval(Real, 0, None, closed="neither")],
        "smoothing": [Interval(Real, 0, 1, closed="right")],
        "learn_size": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        window_size: int = 100,
        order: int = 8,
        ridge: float = 1e-3,
        false_alarm_rate: float = 0.001,
        noise_floor: float = 1e-3,
        smoothing: float = 0.05,
        learn_size: int = 3000,
    ) -> None:
        self.window_size = window_size
        self.order = order
        self.ridge = ridge
        self.false_alarm_rate = false_alarm_rate
        self.noise_floor = noise_floor
        self.smoothing = smoothing
        self.learn_size = learn_size

    # -- streams ------------------------------------------------------------------

    def score_one(self, x: Sequence[float]) -> float:
        """Score the newest sample of a stream: above 0 is an anomaly.

        Parameters
        ----------
        x : sequence of n_channels numbers

        Returns
        -------
        float
            Logarithm of the smoothed residual over its threshold; 0.0 at most
            until the model is fitted and ``order`` samples have come.

        Raises
        ------
        DataError
            If the sample is not finite or has other channels. It is left out: one
            NaN taken would hide all that follows.
        """
        if not hasattr(self, "coefficients_"):
            return 0.0
        values = np.asarray(x, dtype=float)
        check_samples(values, len(self.mean_))
        scaled = (values - self.mean_) / self.scale_
        recent = self._stream()
        if len(recent) == self.order:
            lags = np.concatenate([*reversed(recent), [1.0]])
            with np.errstate(over="ignore", invalid="ignore"):
                residual = (scaled - lags @ self.coefficients_) / self.residual_scale_
                energy = float(residual @ residual) / len(residual)
            energy = min(self._most_energy, energy)  # in this order NaN gives the most
            self._level += self.smoothing * (energy - self._level)
        recent.append(scaled)
        return float(np.log(max(self._level, 1e-300) / self.thresholds_["stream"]))

    def score_many(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score the next samples of a stream: `score_one` for each, at once.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_channels)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        values = np.asarray(X, dtype=float)
        if not hasattr(self, "coefficients_"):
            return np.zeros(len(values))
        check_samples(values, len(self.mean_))
        recent = self._stream()
        scaled = self._scale(values)
        signal = np.concatenate([np.reshape(recent, (-1, values.shape[1])), scaled])
        with np.errstate(over="ignore", invalid="ignore"):
            energies = np.mean(self._residuals(signal[None])[0] ** 2, axis=1)
        levels = np.full(len(values), self._level)
        first = len(values) - len(energies)
        for i, energy in enumerate(np.fmin(energies, self._most_energy).tolist(), start=first):
            self._level += self.smoothing * (energy - self._level)
            levels[i] = self._level
        recent.extend(scaled)
        return np.log(np.maximum(levels, 1e-300) / self.thresholds_["stream"])

    def reset_stream(self) -> None:
        """Forget the samples of the stream so far; what was learnt stays."""
        super().reset_stream()
        for name in ("_recent", "_level"):
            self.__dict__.pop(name, None)

    @property
    def _most_energy(self) -> float:
        """Twice what one sample needs to raise the alarm of the stream by itself.

        More would alarm no sooner, but for long after a single glitch.
        """
        return 2.0 * self.thresholds_["stream"] / self.smoothing

    def _stream(self) -> deque[NDArray[np.float64]]:
        if not hasattr(self, "_recent"):
            self._recent: deque[NDArray[np.float64]] = deque(maxlen=self.order)
            self._level = 1.0
        return self._recent

    # -- explanation ----------------------------------------------------------------

    def explain(self, X: ArrayLike) -> list[dict[str, Any]]:
        """Say for each window which part, channel and sample stand out.

        Parameters
        ----------
        X : array-like of shape (n_windows, window_size, n_channels)

        Returns
        -------
        list of dict
            ``decision``, ``part`` (``residual``, ``louder`` or ``quieter``), ``parts`` (each
            one's ratio to its threshold), ``channel`` (number of the one with the
            largest share), ``channels`` (shares, which sum to 1) and ``sample``
            (position of the largest residual in the window).
        """
        check_is_fitted(self)
        windows = self._scale(self._check(X, reset=False))
        parts = self._parts(windows)
        squares = self._residuals(windows) ** 2
        weights = self._weights(windows)
        answers = []
        for i, decision in enumerate(self._decide(windows)):
            ratios = {
                name: float(part[i] / self.thresholds_[name]) for name, part in parts.items()
            }
            part = max(ratios, key=lambda name: ratios[name])
            weight = weights[part][i]
            shares = weight / weight.sum() if weight.sum() > 0 else np.full(len(weight), np.nan)
            answers.append(
                {
                    "decision": float(decision),
                    "part": part,
                    "parts": ratios,
                    "channel": int(np.argmax(weight)),
                    "channels": [float(share) for share in shares],
                    "sample": int(np.argmax(squares[i].mean(axis=1))) + self.order
                    if squares.shape[1]
                    else None,
                }
            )
        return answers

    # -- private ----------------------------------------------------------------------

    def _weights(self, windows: Windows) -> dict[str, NDArray[np.float64]]:
        """What each channel adds to each part, (n_windows, n_channels)."""
        squares = self._residuals(windows) ** 2
        return {
            "residual": squares.mean(axis=1) if squares.shape[1] else np.ones_like(windows[:, 0]),
            "louder": self._louder(windows),
            "quieter": self._quieter(windows),
        }

    def _learn(self, segments: Sequence[NDArray[np.float64]]) -> None:
        n_channels = segments[0].shape[1]
        lags = np.concatenate([self._lags(s[None])[0] for s in segments])
        targets = np.concatenate([s[self.order :] for s in segments])
        gram = lags.T @ lags + self.ridge * np.eye(self.order * n_channels + 1)
        self.coefficients_ = np.linalg.solve(gram, lags.T @ targets)
        spread = (
            np.sqrt(np.mean((targets - lags @ self.coefficients_) ** 2, axis=0))
            if len(targets)
            else np.zeros(n_channels)
        )
        self.residual_scale_ = np.maximum(spread, self.noise_floor)
        self.reset_stream()
        cuts = [cut(segment, self.window_size) for segment in segments]
        self.loudness_ = _typical([self._power(windows) for windows in cuts])
        self.variation_ = _typical([self._variance(windows) for windows in cuts])

    def _healthy_scores(self, segment: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {**super()._healthy_scores(segment), "stream": self._smoothed(segment)}

    def _calibrate(self, scores: dict[str, list[NDArray[np.float64]]]) -> None:
        smoothed = scores.pop("stream")
        super()._calibrate(scores)
        self.thresholds_["quieter"] = max(self.thresholds_["quieter"], QUIETEST)
        # A healthy window's worth of samples may alarm at most at the stated rate.
        rate = self.false_alarm_rate / self.window_size
        n_independent = max(1, round(sum(map(len, smoothed)) * self.smoothing / 2.0))
        threshold = tail_threshold(np.concatenate(smoothed), rate, n_independent)
        self.thresholds_["stream"] = max(threshold, 1.0)

    def _parts(self, windows: Windows) -> dict[str, NDArray[np.float64]]:
        squares = self._residuals(windows) ** 2
        energy = np.mean(squares, axis=(1, 2)) if squares.shape[1] else np.ones(len(windows))
        return {
            "residual": energy,
            "louder": self._louder(windows).max(axis=1),
            "quieter": self._quieter(windows).max(axis=1),
        }

    def _louder(self, windows: Windows) -> NDArray[np.float64]:
        """Power over the healthy one, (n_windows, n_channels)."""
        return self._power(windows) / self.loudness_

    def _quieter(self, windows: Windows) -> NDArray[np.float64]:
        """Healthy variance over that within the window, (n_windows, n_channels)."""
        return self.variation_ / self._variance(windows)

    def _power(self, windows: Windows) -> NDArray[np.float64]:
        return np.mean(windows**2, axis=1) + self.noise_floor**2

    def _variance(self, windows: Windows) -> NDArray[np.float64]:
        return np.var(windows, axis=1) + self.noise_floor**2

    def _residuals(self, windows: Windows) -> NDArray[np.float64]:
        """Scaled residuals of the samples that have ``order`` others before them."""
        predicted = self._lags(windows) @ self.coefficients_
        return (windows[:, self.order :] - predicted) / self.residual_scale_

    def _lags(self, windows: Windows) -> NDArray[np.float64]:
        """Rows ``z[t-1], …, z[t-order], 1`` for every t of every window."""
        n, size, _ = windows.shape
        count = max(size - self.order, 0)
        lagged = [
            windows[:, self.order - k : self.order - k + count] for k in range(1, self.order + 1)
        ]
        return np.concatenate([*lagged, np.ones((n, count, 1))], axis=2)

    def _smoothed(self, segment: NDArray[np.float64]) -> NDArray[np.float64]:
        """What `score_one` averages, over a whole segment."""
        residuals = self._residuals(segment[None])[0]
        level, levels = 1.0, []
        for square in np.mean(residuals**2, axis=1) if len(residuals) else ():
            level += self.smoothing * (float(square) - level)
            levels.append(level)
        return np.array(levels or [level])


def _typical(powers: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Geometric mean over windows, per channel."""
    return np.exp(np.mean(np.log(np.concatenate(powers)), axis=0))
