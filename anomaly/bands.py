"""Frequency bands of vibration: for explanation, for pictures, and to back up the residual."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.utils.validation import check_is_fitted

from anomaly.base import Interval
from anomaly.vibration import VibrationDetector
from anomaly.waveform import OVERLAP, WindowDetector, Windows, cut

__all__ = ["BandDetector", "VibrationEnsemble", "band_edges", "band_powers"]


def band_edges(window_size: int, n_bands: int) -> NDArray[np.intp]:
    """First Fourier bins of bands as wide as they are high, and the bin past the last.

    Examples
    --------
    >>> from anomaly.bands import band_edges
    >>> band_edges(100, 5)
    array([ 1,  2,  5, 11, 23, 51])
    """
    n_bins = window_size // 2 + 1
    if n_bins < 2:
        return np.array([0, n_bins])
    return np.unique(np.geomspace(1, n_bins, n_bands + 1).round().astype(np.intp))


def band_powers(windows: Windows, n_bands: int, window_size: int) -> NDArray[np.float64]:
    """Mean power in each band of each channel.

    Parameters
    ----------
    windows : ndarray of shape (n_windows, n_samples, n_channels)
        Shorter ones are padded; the mean is taken off and a Hann window applied.
    n_bands : int
        Bands wanted; short windows have fewer.
    window_size : int
        Length of the Fourier transform.

    Returns
    -------
    ndarray of shape (n_windows, n_channels, n_bands)
    """
    n_samples = windows.shape[1]
    tapered = windows - windows.mean(axis=1, keepdims=True)
    if n_samples > 2:
        tapered = tapered * np.hanning(n_samples)[None, :, None]
    power = np.abs(np.fft.rfft(tapered, n=window_size, axis=1)) ** 2 / n_samples
    edges = band_edges(window_size, n_bands)
    bands = [power[:, a:b].mean(axis=1) for a, b in itertools.pairwise(edges)]
    return np.stack(bands, axis=2)


class _Bands:
    """Distance of windows from healthy ones, in logarithms of band powers."""

    def __init__(
        self, segments: Sequence[NDArray[np.float64]], size: int, n_bands: int, floor: float
    ) -> None:
        self._size, self._n_bands, self._floor = size, n_bands, floor
        hop = max(1, size // OVERLAP)
        healthy = np.concatenate([self._features(cut(s, size, hop)) for s in segments])
        self.mean = healthy.mean(axis=0)
        spread = healthy.std(axis=0)
        # A band that never moves counts in units of a tenth, not of its rounding.
        self.scale = np.where(spread > 1e-3, spread, 0.1)
        self.precision = np.eye(healthy.shape[1])
        if len(healthy) > 1:
            covariance, _ = ledoit_wolf((healthy - self.mean) / self.scale, assume_centered=True)
            self.precision = np.linalg.inv(covariance + 1e-3 * np.eye(len(covariance)))

    def shares(self, windows: Windows) -> NDArray[np.float64]:
        """What each feature adds to the squared distance, (n_windows, n_features)."""
        away = (self._features(windows) - self.mean) / self.scale
        return away * (away @ self.precision) / away.shape[1]

    def distance(self, windows: Windows) -> NDArray[np.float64]:
        """Squared Mahalanobis distance over the number of features: about 1 if healthy."""
        return np.maximum(self.shares(windows).sum(axis=1), 1e-12)

    def _features(self, windows: Windows) -> NDArray[np.float64]:
        powers = band_powers(windows, self._n_bands, self._size)
        return np.log(powers + self._floor**2).reshape(len(windows), -1)


class BandDetector(WindowDetector):
    """Faults seen in the power of a few frequency bands.

    The logarithms of the band powers of a window are compared with the healthy
    ones by a Mahalanobis distance whose covariance is shrunk (Ledoit and Wolf).
    Less sharp than `VibrationDetector`, but it says which frequencies moved.

    Parameters
    ----------
    window_size : int, default 100
        Samples per window.
    n_bands : int, default 5
        Bands per channel, as wide as they are high.
    rate_hz : float, default 100.0
        Samples per second, for the frequencies in `explain`.
    false_alarm_rate : float, default 0.001
        Share of healthy windows that may alarm.
    noise_floor : float, default 1e-3
        Amplitude, as a share of a channel's healthy standard deviation, below
        which power does not count.

    References
    ----------
    O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional
    covariance matrices", J. Multivariate Analysis 88, 2004.

    Examples
    --------
    >>> from anomaly.bands import BandDetector
    >>> from anomaly.lorenz import simulate
    >>> detector = BandDetector().fit(simulate(6000, noise=0.02, random_state=0))
    >>> broken = simulate(600, fraction=1.0, noise=0.02, random_state=1)[300:]
    >>> detector.predict(broken.reshape(3, 100, 3))
    array([1, 1, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **WindowDetector._parameter_constraints,
        "n_bands": [Interval(Integral, 1, None, closed="left")],
        "rate_hz": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        window_size: int = 100,
        n_bands: int = 5,
        rate_hz: float = 100.0,
        false_alarm_rate: float = 0.001,
        noise_floor: float = 1e-3,
    ) -> None:
        self.window_size = window_size
        self.n_bands = n_bands
        self.rate_hz = rate_hz
        self.false_alarm_rate = false_alarm_rate
        self.noise_floor = noise_floor

    def explain(self, X: ArrayLike) -> list[dict[str, Any]]:
        """Say for each window which channel and band stand out.

        Parameters
        ----------
        X : array-like of shape (n_windows, window_size, n_channels)

        Returns
        -------
        list of dict
            ``decision``, ``channel`` (its number), ``band_hz`` (lowest and highest
            frequency) and ``share`` of the distance that it makes.
        """
        check_is_fitted(self)
        windows = self._scale(self._check(X, reset=False))
        edges = band_edges(self.window_size, self.n_bands) * self.rate_hz / self.window_size
        n_bands = len(edges) - 1
        answers = []
        for decision, shares in zip(
            self._decide(windows), np.abs(self._bands.shares(windows)), strict=True
        ):
            channel, band = divmod(int(np.argmax(shares)), n_bands)
            answers.append(
                {
                    "decision": float(decision),
                    "channel": channel,
                    "band_hz": [float(edges[band]), float(edges[band + 1])],
                    "share": float(shares.max() / max(shares.sum(), 1e-300)),
                }
            )
        return answers

    def _learn(self, segments: Sequence[NDArray[np.float64]]) -> None:
        self._bands = _Bands(segments, self.window_size, self.n_bands, self.noise_floor)

    def _parts(self, windows: Windows) -> dict[str, NDArray[np.float64]]:
        return {"bands": self._bands.distance(windows)}


class VibrationEnsemble(VibrationDetector):
    """`VibrationDetector` backed by frequency bands; at least as sharp as either.

    The part ``joint`` is the larger of the residual and of the band distance
    raised to ``band_weight``, which brings both to the same spread on healthy
    windows. Streams are scored as by `VibrationDetector`.

    Parameters
    ----------
    window_size, order, ridge, false_alarm_rate, noise_floor, smoothing, learn_size
        As of `VibrationDetector`.
    n_bands : int, default 5
        As of `BandDetector`.
    band_weight : float, default 0.1
        Exponent of the band distance.

    Examples
    --------
    >>> from anomaly.bands import VibrationEnsemble
    >>> from anomaly.lorenz import simulate
    >>> detector = VibrationEnsemble().fit(simulate(6000, noise=0.02, random_state=0))
    >>> broken = simulate(600, fraction=1.0, noise=0.02, random_state=1)[300:]
    >>> detector.predict(broken.reshape(3, 100, 3))
    array([1, 1, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **VibrationDetector._parameter_constraints,
        "n_bands": [Interval(Integral, 1, None, closed="left")],
        "band_weight": [Interval(Real, 0, None, closed="neither")],
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
        n_bands: int = 5,
        band_weight: float = 0.1,
    ) -> None:
        super().__init__(
            window_size, order, ridge, false_alarm_rate, noise_floor, smoothing, learn_size
        )
        self.n_bands = n_bands
        self.band_weight = band_weight

    def _learn(self, segments: Sequence[NDArray[np.float64]]) -> None:
        super()._learn(segments)
        self._bands = _Bands(segments, self.window_size, self.n_bands, self.noise_floor)

    def _parts(self, windows: Windows) -> dict[str, NDArray[np.float64]]:
        parts = super()._parts(windows)
        bands = self._bands.distance(windows)
        joint = np.maximum(parts.pop("residual"), bands**self.band_weight)
        return {"joint": joint, **parts, "bands": bands}

    def _weights(self, windows: Windows) -> dict[str, NDArray[np.float64]]:
        weights = super()._weights(windows)
        shares = np.abs(self._bands.shares(windows))
        by_channel = shares.reshape(len(windows), windows.shape[2], -1).sum(axis=2)
        return {**weights, "joint": weights["residual"], "bands": by_channel}
