"""A detector for tables of which a few rows are labelled."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from xgboost import XGBClassifier

from anomaly.base import BaseDetector, Interval
from anomaly.ensemble import EnsembleDetector, Tail
from anomaly.errors import DataError

_FOLDS = 3
HALF_WEIGHT = 3  # labelled anomalies at which labels and ensemble count alike


class FewLabelsDetector(BaseDetector):
    """Blend of what labels teach and what is unusual anyway.

    A random forest and XGBoost learn the labels; an `EnsembleDetector` looks at
    all rows without them. Both scores are put on one scale, the negative
    logarithm of the share of normal rows that score as high. With m labelled
    anomalies the blend is ``w * labels + (1 - w) * ensemble`` with
    ``w = m / (m + 3)``: without labels it is the ensemble, with hundreds it is
    the classifiers.

    Unlabelled rows count as presumably normal, which most of them are.

    Parameters
    ----------
    ensemble : estimator or None, default=None
        The part that needs no labels; None is ``EnsembleDetector()``. Rows
        labelled anomalous are withheld from it.
    n_trees : int, default=200
        Trees of the random forest, and rounds of XGBoost.
    unlabelled : int, default=-1
        Label of rows that nobody has looked at; a missing label (NaN, None)
        means the same. Where every label is this value or 1, it names the
        normal class in ``classes_``.
    n_jobs : int, optional
        Threads. Never changes a score.
    random_state : int, RandomState or None, default=None
        Seed of the parts.

    Attributes
    ----------
    n_anomalies_, n_normal_, n_unlabelled_ : int
        Rows of each kind seen in ``fit``.
    weight_ : float
        The ``w`` above.
    threshold_ : float
        Blended score above which a row is called anomalous: as many training
        rows lie above as are labelled anomalous, at least the share that the
        ensemble would call so.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.few_labels import FewLabelsDetector
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 3))
    >>> X[:20] = 1.0 + 0.1 * rng.normal(size=(20, 3))  # a fault that is not extreme
    >>> y = np.full(300, -1)
    >>> y[:10] = 1
    >>> detector = FewLabelsDetector(random_state=0).fit(X, y)
    >>> detector.n_anomalies_, detector.n_normal_, detector.n_unlabelled_
    (10, 0, 290)
    >>> detector.predict([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    array([ 1, -1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "ensemble": [BaseEstimator, None],
        "n_trees": [Interval(Integral, 1, None, closed="left")],
        "unlabelled": [Integral],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        ensemble: BaseEstimator | None = None,
        *,
        n_trees: int = 200,
        unlabelled: int = -1,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.ensemble = ensemble
        self.n_trees = n_trees
        self.unlabelled = unlabelled
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn from rows of which some are labelled.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), optional
            Normal, anomalous, or not labelled. None: no row is labelled.

        Returns
        -------
        self

        Raises
        ------
        DataError
            If every row is labelled anomalous, or the only label is neither 0
            nor 1, so that nobody can tell which class it is.
        """
        self._validate_params()
        table = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        anomalous = self._read_labels(y, len(table))
        if anomalous.all():
            raise DataError("y gives every row the class of anomalies, so nothing shows the usual")
        random = check_random_state(self.random_state)
        unusual = self._fit_ensemble(table, anomalous, random)
        self._fit_classifiers(table, anomalous, random)
        self.weight_ = self.n_anomalies_ / (self.n_anomalies_ + HALF_WEIGHT)
        share = max(anomalous.mean(), (unusual > 0).mean())
        self.threshold_ = float(np.quantile(self._blend(table, unusual), 1.0 - share))
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Blended score minus ``threshold_``; above 0 is an anomaly.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
            In natural logarithms, as that of `EnsembleDetector`.
        """
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, reset=False)
        return self._blend(table, self._ensemble.decision_function(table)) - self.threshold_

    def _read_labels(self, y: ArrayLike | None, n_rows: int) -> NDArray[np.bool_]:
        """Set the classes and the counts; return which rows are labelled anomalous."""
        anomalous = np.zeros(n_rows, dtype=bool)
        looked_at = np.zeros(n_rows, dtype=bool)
        if y is None:
            self._encode_labels(None, n_rows)
        else:
            labels = column_or_1d(y, warn=True)
            check_consistent_length(anomalous, labels)
            looked_at, named = _known_labels(labels, self.unlabelled)
            known = labels[named]
            if known.dtype == object:  # numbers beside None
                known = pd.Series(known).infer_objects().to_numpy()
            found = self._encode_labels(known, len(known))
            if len(self.classes_) == 1 and not named.all():
                raise DataError(
                    f"the only label is {self.classes_[0]!r}: use 0 for normal and 1 for "
                    f"anomalous, or label one row of the other class"
                )
            anomalous[named] = found
        self.n_anomalies_ = int(anomalous.sum())
        self.n_normal_ = int((looked_at & ~anomalous).sum())
        self.n_unlabelled_ = int((~looked_at).sum())
        return anomalous

    def _fit_ensemble(
        self,
        table: NDArray[np.float64],
        anomalous: NDArray[np.bool_],
        random: np.random.RandomState,
    ) -> NDArray[np.float64]:
        """Fit to the rows not labelled anomalous; return the scores of all rows."""
        part = EnsembleDetector() if self.ensemble is None else clone(self.ensemble)
        given = {"random_state": random.randint(2**31 - 1), "n_jobs": self.n_jobs}
        part.set_params(**{k: v for k, v in given.items() if part.get_params().get(k, v) is None})
        self._ensemble = part.fit(table[~anomalous])
        unusual = np.asarray(self._ensemble.decision_function(table))
        self._usual_tail = Tail(unusual[~anomalous])
        return unusual

    def _fit_classifiers(
        self,
        table: NDArray[np.float64],
        anomalous: NDArray[np.bool_],
        random: np.random.RandomState,
    ) -> None:
        """Fit both to all rows; learn how they score normal rows from folds without these."""
        seed = random.randint(2**31 - 1)
        self._classifiers: list[BaseEstimator] = []
        if not anomalous.any():
            return
        normal = np.flatnonzero(~anomalous)
        fold = random.permutation(len(normal)) % _FOLDS
        scores = np.empty(len(normal))
        for k in range(min(_FOLDS, len(normal))):
            kept = np.concatenate([np.flatnonzero(anomalous), normal[fold != k]])
            parts = self._make_classifiers(table[kept], anomalous[kept], seed)
            scores[fold == k] = _taught(parts, table[normal[fold == k]])
        self._classifiers = self._make_classifiers(table, anomalous, seed)
        self._taught_tail = Tail(scores)

    def _make_classifiers(
        self, table: NDArray[np.float64], anomalous: NDArray[np.bool_], seed: int
    ) -> list[BaseEstimator]:
        forest = RandomForestClassifier(
            self.n_trees, class_weight="balanced", random_state=seed, n_jobs=self.n_jobs
        )
        boosting = XGBClassifier(
            n_estimators=self.n_trees,
            learning_rate=0.1,
            scale_pos_weight=(~anomalous).sum() / anomalous.sum(),
            random_state=int(seed),
            n_jobs=self.n_jobs or 1,
        )
        return [part.fit(table, anomalous) for part in (forest, boosting)]

    def _blend(
        self, table: NDArray[np.float64], unusual: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        surprise = self._usual_tail.surprise(unusual)
        if not self._classifiers:
            return surprise
        taught = self._taught_tail.surprise(_taught(self._classifiers, table))
        return np.asarray(self.weight_ * taught + (1.0 - self.weight_) * surprise)


def _taught(classifiers: list[BaseEstimator], table: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.mean([part.predict_proba(table)[:, 1] for part in classifiers], axis=0))


def _known_labels(
    labels: NDArray[Any], unlabelled: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows that somebody labelled, and rows whose label names a class.

    They differ where the mark of unlabelled rows stands in for the normal
    class because there is no other label but 1.
    """
    if labels.dtype.kind == "f" and np.isinf(labels).any():
        raise DataError("y contains infinity, which is no label")
    present = ~np.asarray(pd.isna(labels), dtype=bool)
    looked_at = present & ~np.asarray(labels == unlabelled, dtype=bool)
    if not looked_at.any():
        raise DataError("y labels no row; leave y out to learn without labels")
    only_ones = bool(np.isin(labels[looked_at], (1,)).all())
    return looked_at, present if only_ones else looked_at
