"""Density of what is normal against the background of anomalies."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.neighbors import KernelDensity
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly.base import BaseDetector, Interval, StrOptions

Floats = NDArray[np.float64]

# Log ratios are cut off here, far beyond any that matters, so that all stay finite.
_FAR = 1e6


class KernelDensityClassifier(BaseDetector):
    """Compares the kernel density of normal rows with a background of anomalies.

    Rows are split into groups by their columns of zeros and ones (one-hot
    categories). Within a group the normal density is a Gaussian kernel density
    of the other columns; the background is uniform over the bounding box of
    the training rows, or a kernel density of the rows labelled anomalous. With
    Bayes' rule this gives a probability, and the threshold on it is the one
    that maximises the expected F1 [1]_.

    Parameters
    ----------
    bandwidth : "silverman", "scott" or float, default="silverman"
        Width of the kernel in standard deviations of its group [2]_.
    background : {"uniform", "density"}, default="uniform"
        Density of anomalies.
    prior : float or None, default=None
        Share of anomalies; None takes the share of the labels, or 0.1 without.
    threshold : {"f1", "bayes"}, default="f1"
        ``bayes`` cuts at a probability of one half: the fewest errors.

    Attributes
    ----------
    cut_ : float
        Probability above which a row is an anomaly.
    groups_ : list of tuple
        Patterns of the columns of zeros and ones among normal rows.

    References
    ----------
    .. [1] Z. C. Lipton, C. Elkan, B. Naryanaswamy, "Optimal thresholding of
       classifiers to maximize F1 measure", ECML PKDD 2014.
    .. [2] B. W. Silverman, "Density estimation for statistics and data
       analysis", Chapman & Hall 1986.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.density import KernelDensityClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = np.concatenate([rng.normal(size=(200, 2)), rng.uniform(-6, 6, size=(40, 2))])
    >>> y = np.repeat([0, 1], [200, 40])
    >>> KernelDensityClassifier().fit(X, y).predict([[0.0, 0.0], [4.0, -4.0]])
    array([0, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "bandwidth": [
            StrOptions({"silverman", "scott"}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "background": [StrOptions({"uniform", "density"})],
        "prior": [Interval(Real, 0, 1, closed="neither"), None],
        "threshold": [StrOptions({"f1", "bayes"})],
    }

    cut_: float

    def __init__(
        self,
        bandwidth: str | float = "silverman",
        background: str = "uniform",
        prior: float | None = None,
        threshold: str = "f1",
    ) -> None:
        self.bandwidth = bandwidth
        self.background = background
        self.prior = prior
        self.threshold = threshold

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn the densities and the cut.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), optional
        """
        self._validate_params()
        rows = validate_data(self, X, dtype=np.float64)
        labels = self._encode_labels(y, len(rows))
        anomalous = np.zeros(len(rows), dtype=bool) if labels is None else labels
        normal = rows if anomalous.all() else rows[~anomalous]
        self._is_category = ((rows == 0) | (rows == 1)).all(axis=0)
        low, high = rows.min(axis=0), rows.max(axis=0)
        width = np.where(high > low, high - low, 1.0)[~self._is_category]
        self._log_uniform = -float(np.log(width).sum())
        self._normal = self._learn(normal)
        self._anomaly = self._learn(rows[anomalous]) if anomalous.any() else {}
        self.groups_ = sorted(self._normal)
        share = self.prior or (float(anomalous.mean()) if anomalous.any() else 0.1)
        share = min(max(share, 1e-6), 1 - 1e-6)
        self._log_odds = float(np.log(share) - np.log1p(-share))
        self.cut_ = 0.5
        if self.threshold == "f1" and anomalous.any() and not anomalous.all():
            self.cut_ = _best_cut(expit(self._log_ratio(rows)))
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Log odds of an anomaly less those of the cut: above 0 is an anomaly.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        return self._log_ratio(rows) - float(np.log(self.cut_) - np.log1p(-self.cut_))

    def _groups(self, rows: Floats) -> dict[tuple[float, ...], NDArray[np.intp]]:
        """Rows of each pattern of the categories."""
        if not len(rows):
            return {}
        patterns, member = np.unique(rows[:, self._is_category], axis=0, return_inverse=True)
        member = member.ravel()
        return {
            tuple(pattern.tolist()): np.flatnonzero(member == number)
            for number, pattern in enumerate(patterns)
        }

    def _learn(self, rows: Floats) -> dict[tuple[float, ...], _Density]:
        overall = _spread(rows[:, ~self._is_category], 1.0)
        return {
            pattern: _Density(
                rows[members][:, ~self._is_category],
                len(members) / len(rows),
                self.bandwidth,
                overall,
            )
            for pattern, members in self._groups(rows).items()
        }

    def _log_ratio(self, rows: Floats) -> Floats:
        """Log of anomaly against normal, with the prior."""
        ratio = np.full(len(rows), _FAR)
        for pattern, members in self._groups(rows).items():
            values = rows[members][:, ~self._is_category]
            if pattern in self._normal:
                background = self._background(pattern, values)
                ratio[members] = background - self._normal[pattern].log(values)
        return np.clip(
            np.nan_to_num(ratio, posinf=_FAR, neginf=-_FAR) + self._log_odds, -_FAR, _FAR
        )

    def _background(self, pattern: tuple[float, ...], values: Floats) -> Floats:
        known = self._anomaly.get(pattern)
        share = known.share if known else 1.0 / (1 + len(self._normal))
        if self.background == "density" and known is not None:
            return known.log(values)
        return np.full(len(values), np.log(share) + self._log_uniform)


class _Density:
    """Gaussian kernel density of one group, times the share of the group."""

    def __init__(
        self, rows: Floats, share: float, bandwidth: str | float, overall: Floats
    ) -> None:
        self.share = share
        n, d = rows.shape
        self._kernel: KernelDensity | None = None
        if d == 0:
            return
        self._scale = _spread(rows, overall)
        width = {
            "silverman": (n * (d + 2) / 4) ** (-1 / (d + 4)),
            "scott": n ** (-1 / (d + 4)),
        }.get(str(bandwidth), bandwidth)
        self._kernel = KernelDensity(bandwidth=float(width)).fit(rows / self._scale)

    def log(self, rows: Floats) -> Floats:
        """Log density of each row."""
        if self._kernel is None:
            return np.full(len(rows), np.log(self.share))
        density = self._kernel.score_samples(rows / self._scale)
        return np.asarray(density - np.log(self._scale).sum() + np.log(self.share))


def _spread(rows: Floats, fallback: float | Floats) -> Floats:
    """Standard deviation of each column, or the fallback where it is 0."""
    found = rows.std(axis=0) if len(rows) else np.zeros(rows.shape[1])
    return np.where(found > 1e-12 * (1 + np.abs(rows).max(axis=0, initial=0)), found, fallback)


def _best_cut(chance: Floats) -> float:
    """Cut on calibrated probabilities with the best expected F1."""
    ranked = np.sort(chance)[::-1]
    expected = np.cumsum(ranked)
    f1 = 2 * expected / (np.arange(1, len(ranked) + 1) + expected[-1])
    return float(np.clip(f1.max() / 2, 1e-9, 0.5))
