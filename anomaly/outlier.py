"""Any scikit-learn outlier detector as a classifier."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import MetaEstimatorMixin, clone, is_classifier, is_outlier_detector
from sklearn.ensemble import IsolationForest
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly.base import BaseDetector, StrOptions
from anomaly.errors import ParameterError


class OutlierClassifier(MetaEstimatorMixin, BaseDetector):
    """Makes an outlier detector a classifier whose threshold is learnt from the labels.

    The detector is fitted on the rows labelled normal. The threshold on its
    score is the one with the best F1 over the training rows; without labelled
    anomalies it is the detector's own.

    Parameters
    ----------
    estimator : outlier detector, default=None
        With ``fit`` and ``decision_function`` (below 0 is an outlier, as in
        scikit-learn); None is an `IsolationForest`. A `LocalOutlierFactor` is
        used as ``novelty=True``.
    fit_on : {"normal", "all"}, default="normal"
        Rows that the detector is fitted on.
    random_state : int, RandomState or None, default=None
        Seed of the detector, where it takes one and has none.

    Attributes
    ----------
    estimator_ : outlier detector
    threshold_ : float
        Outlyingness above which a row is an anomaly; 0 is the detector's own.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.outlier import OutlierClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = np.concatenate([rng.normal(size=(100, 2)), rng.uniform(4, 6, size=(10, 2))])
    >>> y = np.repeat([0, 1], [100, 10])
    >>> OutlierClassifier(random_state=0).fit(X, y).predict([[0.0, 0.5], [5.0, 5.0]])
    array([0, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        # A LocalOutlierFactor has more methods once novelty is set.
        "estimator": [HasMethods(["fit", "get_params"]), None],
        "fit_on": [StrOptions({"normal", "all"})],
        "random_state": ["random_state"],
    }

    estimator_: Any
    threshold_: float

    def __init__(
        self,
        estimator: Any = None,
        fit_on: str = "normal",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimator = estimator
        self.fit_on = fit_on
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Fit the detector, then choose the threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), optional
        """
        self._validate_params()
        rows = validate_data(self, X, dtype=np.float64)
        anomalous = self._encode_labels(y, len(rows))
        self.estimator_ = self._make_detector()
        if anomalous is None:
            anomalous = np.zeros(len(rows), dtype=bool)
        use_all = self.fit_on == "all" or anomalous.all()
        self.estimator_.fit(rows if use_all else rows[~anomalous])
        self.threshold_ = 0.0
        if anomalous.all():
            self.threshold_ = float(-np.finfo(np.float64).max / 2)
        elif anomalous.any():
            self.threshold_ = best_threshold(self._outlyingness(rows), anomalous)
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Outlyingness less the threshold: above 0 is an anomaly.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        return self._outlyingness(rows) - self.threshold_

    def _make_detector(self) -> Any:
        detector = IsolationForest() if self.estimator is None else clone(self.estimator)
        params = detector.get_params(deep=False)
        if "novelty" in params:
            detector.set_params(novelty=True)
        if params.get("random_state", 0) is None:
            detector.set_params(random_state=self.random_state)
        if not hasattr(detector, "decision_function"):
            raise ParameterError(
                f"estimator must be an outlier detector with decision_function, got {detector!r}"
            )
        return detector

    def _outlyingness(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return -np.asarray(self.estimator_.decision_function(rows), dtype=np.float64).ravel()


def as_classifier(estimator: Any) -> Any:
    """An outlier detector in an `OutlierClassifier`; anything else as it is.

    Its own labels, -1 and 1, would be taken for two kinds of anomaly.

    Examples
    --------
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from anomaly.outlier import as_classifier
    >>> as_classifier(IsolationForest())
    OutlierClassifier(estimator=IsolationForest())
    >>> as_classifier(GaussianNB())
    GaussianNB()
    """
    if is_outlier_detector(estimator) and not is_classifier(estimator):
        return OutlierClassifier(estimator)
    return estimator


def best_threshold(scores: NDArray[np.float64], anomalous: NDArray[np.bool_]) -> float:
    """Threshold whose "above it is an anomaly" has the best F1.

    Midway between two neighbouring scores; the highest of equally good ones.

    Parameters
    ----------
    scores : ndarray of shape (n_samples,)
    anomalous : ndarray of bool of shape (n_samples,)
        With at least one True.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.outlier import best_threshold
    >>> best_threshold(np.array([1.0, 2.0, 4.0, 5.0]), np.array([False, False, True, True]))
    3.0
    """
    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], anomalous[order]
    found = np.cumsum(truth)
    f1 = 2 * found / (np.arange(1, len(ranked) + 1) + found[-1])
    # A cut is possible only below the last of equal scores.
    lower = np.append(ranked[1:], np.nextafter(ranked[-1], -np.inf))
    f1[lower == ranked] = -1.0
    best = int(np.argmax(f1))
    middle = float(ranked[best] + (lower[best] - ranked[best]) / 2)
    return middle if middle < ranked[best] else float(lower[best])
