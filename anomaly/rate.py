"""Rate detection: success ratios and other near-normal series."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly import _core
from anomaly.base import BaseDetector, Interval, StrOptions
from anomaly.errors import DataError
from anomaly.windows import MIN_WINDOW, as_windows, window_from

Array = NDArray[np.float64]

_METHODS = {"sigma": 0, "quantile": 1, "binomial": 1}
_DIRECTIONS = {"both": 0, "low": 1, "high": 2}


class RateDetector(BaseDetector):
    """Test the last point of windows of a rate.

    Parameters
    ----------
    method : {"quantile", "sigma", "binomial"}, default="quantile"
        "sigma" flags a point more than ``n_sigma`` standard deviations from the
        mean of its history, as the n-sigma rule always did. "quantile" also wants
        no more than a share ``alpha`` of the history to lie as far out, which keeps
        skewed rates from raising alarms. "binomial" needs volumes: it flags a point
        whose binomial tail under the pooled rate of the history, widened by the
        overdispersion seen there, is below ``alpha``.
    n_sigma : float, default=3.0
    alpha : float, default=0.0027
        Share of normal points that may be flagged.
    direction : {"both", "low", "high"}, default="both"
        Which side counts.
    min_effect : float, default=0.001
        Smallest difference to the mean that counts, relative to the mean.
    seasonal : bool, default=False
        Test the difference to the mean of yesterday and last week at each time.
        Not for "binomial".

    Attributes
    ----------
    window_ : int
    classes_ : ndarray of shape (2,)

    Notes
    -----
    Rows are windows as in `anomaly.windows`; with another number of columns, one
    plain series whose last point is tested. For "binomial", ``X`` holds the rates
    (0 to 1) and then, in as many columns more, the volumes: how many events each
    rate counts. Nothing is learnt: each row brings its own history.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.rate import RateDetector
    >>> rng = np.random.default_rng(0)
    >>> X = rng.binomial(10_000, 0.995, size=(2, 903)) / 10_000
    >>> X[1, -1] = 0.97
    >>> RateDetector().fit(X).predict(X)
    array([0, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "method": [StrOptions(set(_METHODS))],
        "n_sigma": [Interval(Real, 0, 1e6, closed="right")],
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "direction": [StrOptions(set(_DIRECTIONS))],
        "min_effect": [Interval(Real, 0, 1e6, closed="both")],
        "seasonal": ["boolean"],
    }

    window_: int

    def __init__(
        self,
        method: Literal["quantile", "sigma", "binomial"] = "quantile",
        n_sigma: float = 3.0,
        alpha: float = 0.0027,
        direction: Literal["both", "low", "high"] = "both",
        min_effect: float = 0.001,
        seasonal: bool = False,
    ):
        self.method = method
        self.n_sigma = n_sigma
        self.alpha = alpha
        self.direction = direction
        self.min_effect = min_effect
        self.seasonal = seasonal

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.classifier_tags.poor_score = True  # a table of features is no series
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Check the parameters and learn the shape of the windows.

        Parameters
        ----------
        X : array-like of shape (n, 5 * window + 3), twice that for "binomial"
        y : array-like of shape (n,), optional
            Only its classes are used.
        """
        self._validate_params()
        checked = validate_data(self, X, ensure_all_finite="allow-nan", dtype=np.float64)
        if self.method == "binomial" and checked.shape[1] % 2:
            raise DataError(
                f"method='binomial' needs as many columns of volumes as of rates; "
                f"X has {checked.shape[1]} columns"
            )
        self.window_ = window_from(checked.shape[1] // (2 if self.method == "binomial" else 1))
        self._encode_labels(y, len(checked))
        return self

    def _test(self, X: ArrayLike) -> tuple[Array, Array]:
        check_is_fitted(self)
        rows = validate_data(self, X, ensure_all_finite="allow-nan", dtype=np.float64, reset=False)
        volumes = None
        if self.method == "binomial":
            rows, volumes = np.hsplit(rows, 2)
            volumes = np.ascontiguousarray(as_windows(volumes, self.window_))
        rows = np.ascontiguousarray(as_windows(rows, self.window_))
        scores, normal = np.empty(len(rows)), np.empty(len(rows))
        codes = np.zeros(len(rows), dtype=np.int32)
        _core.rate_test(
            *(rows, volumes, self.window_, _METHODS[self.method], _DIRECTIONS[self.direction]),
            *(int(self.seasonal), self.n_sigma, self.alpha, self.min_effect),
            *(scores, normal, codes),
        )
        if codes.any():
            hint = "; rates lie in 0 … 1, volumes above 0" if volumes is not None else ""
            raise DataError(
                f"row {np.flatnonzero(codes)[0]} cannot be tested: its last point is missing, a "
                f"value is out of range, or fewer than {MIN_WINDOW} others are known{hint}"
            )
        return scores, normal

    def decision_function(self, X: ArrayLike) -> Array:
        """Logarithm of the distance in units of the limit: above 0 is an anomaly.

        Parameters
        ----------
        X : array-like of shape (n, n_features_in_)

        Returns
        -------
        ndarray of shape (n,)
        """
        return np.asarray(np.log(np.clip(self._test(X)[0], 1e-12, 1e12)))

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probability of normal and of an anomaly: 0.15 and 0.85 at the limit.

        Parameters
        ----------
        X : array-like of shape (n, n_features_in_)

        Returns
        -------
        ndarray of shape (n, 2)
        """
        normal = self._test(X)[1]
        return np.column_stack([normal, 1.0 - normal])
