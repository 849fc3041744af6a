"""The contract of every detector: a scikit-learn classifier; its second class is the anomaly."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import HasMethods, Hidden, Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

# scikit-learn keeps its table-driven parameter checks in a private module; this
# is the one place that knows, so there is one place to mend if it moves.
__all__ = ["BaseDetector", "HasMethods", "Hidden", "Interval", "StrOptions"]


class BaseDetector(ClassifierMixin, BaseEstimator):
    """Base of every detector.

    A subclass stores its constructor arguments, lists what they may be in
    ``_parameter_constraints``, and writes ``fit`` and ``decision_function``.
    ``fit`` starts with ``self._validate_params()`` and ends with ``classes_``
    set, which `_encode_labels` does.

    The polarity is fixed once for the whole toolkit: ``classes_[1]`` is the
    anomaly (``classes_`` is ``[0, 1]`` when ``fit`` got no labels), and a larger
    ``decision_function``, above all one above 0, is more anomalous.

    Attributes
    ----------
    classes_ : ndarray of shape (2,)
        Labels of normal and anomalous samples, in this order.
    n_features_in_ : int
        Number of columns seen in ``fit``.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {}

    classes_: NDArray[Any]
    n_features_in_: int

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.target_tags.required = False
        return tags

    def _encode_labels(self, y: ArrayLike | None, n_samples: int) -> NDArray[np.bool_] | None:
        """Set ``classes_`` and return which samples are labelled anomalous.

        Parameters
        ----------
        y : array-like of shape (n_samples,) or None
            Two classes at most; with one class, 0, False and the single label
            itself mean normal.
        n_samples : int
            Number of rows of ``X``.

        Returns
        -------
        ndarray of bool of shape (n_samples,), or None if ``y`` is None
        """
        if y is None:
            self.classes_ = np.array([0, 1])
            return None
        check_classification_targets(y)
        labels = column_or_1d(y, warn=True)
        if len(labels) != n_samples:
            raise ValueError(f"y has {len(labels)} labels, X has {n_samples} rows")
        found = np.unique(labels)
        if len(found) > 2:
            raise ValueError(
                f"Only binary classification is supported: y must have 2 classes at most "
                f"(normal, anomaly), got {len(found)} classes"
            )
        if len(found) == 1:
            only = found[0]
            if only in (0, 1):  # one-sided labels of the default pair
                found = np.array([0, 1]).astype(found.dtype)
        self.classes_ = found
        if len(found) == 1:
            return np.zeros(n_samples, dtype=bool)
        return np.asarray(labels == found[1])

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Score samples: above 0 is an anomaly, larger is more anomalous."""
        raise NotImplementedError

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Label samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
            ``classes_[1]`` where ``decision_function`` is above 0.
        """
        check_is_fitted(self)
        anomalous = self.decision_function(X) > 0
        if len(self.classes_) == 1:
            return np.repeat(self.classes_, len(anomalous))
        return self.classes_[anomalous.astype(int)]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probability of each class, the logistic of `decision_function` unless overridden.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, 2)
            Columns in the order of ``classes_``.
        """
        anomalous = 0.5 * (1.0 + np.tanh(0.5 * self.decision_function(X)))
        return np.column_stack([1.0 - anomalous, anomalous])

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn from samples, with labels where the method uses them."""
        raise NotImplementedError
