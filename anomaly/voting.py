"""A detector for fully labelled tables: the mean of the best few of several families."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import (
    ExtraTreesClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from xgboost import XGBClassifier

from anomaly.base import BaseDetector, Interval
from anomaly.errors import DataError

Candidates = Sequence[tuple[str, BaseEstimator]]


class MeanOfBestDetector(BaseDetector):
    """Supervised detector: cross-validates families, averages the best ones.

    Which family wins differs from table to table and often by chance; the mean
    probability of the best few is better than the single winner and safer.

    Parameters
    ----------
    candidates : list of (str, estimator) or None, default=None
        Classifiers with ``predict_proba``. None stands for random forest, extra
        trees, XGBoost, histogram boosting, nearest neighbours and logistic
        regression, as `default_candidates` makes them.
    n_best : int, default=3
        How many are averaged.
    cv : int, default=5
        Stratified folds of the comparison; fewer where a class has fewer rows.
        With a single row in a class nothing can be compared and the first
        candidates are taken.
    scoring : str or callable, default="average_precision"
        Any scorer of scikit-learn.
    n_jobs : int, optional
        Folds run side by side.
    random_state : int, RandomState or None, default=None
        Seed of folds and candidates.

    Attributes
    ----------
    scores_ : DataFrame
        Columns ``name``, ``mean``, ``std`` over the folds and ``used``, best
        first; NaN where nothing could be compared.
    best_ : list of (str, estimator)
        The fitted ones that are averaged.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from anomaly.voting import MeanOfBestDetector
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 2))
    >>> y = X[:, 0] > 1.2
    >>> trees = [(f"depth {d}", DecisionTreeClassifier(max_depth=d)) for d in (1, 2)]
    >>> detector = MeanOfBestDetector([*trees, ("line", LogisticRegression())], n_best=2)
    >>> detector.fit(X, y).predict([[2.0, 0.0], [0.0, 0.0]])
    array([ True, False])
    >>> len(detector.best_)
    2
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "candidates": [list, tuple, None],
        "n_best": [Interval(Integral, 1, None, closed="left")],
        "cv": [Interval(Integral, 2, None, closed="left")],
        "scoring": [str, callable],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        candidates: Candidates | None = None,
        *,
        n_best: int = 3,
        cv: int = 5,
        scoring: Any = "average_precision",
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.candidates = candidates
        self.n_best = n_best
        self.cv = cv
        self.scoring = scoring
        self.n_jobs = n_jobs
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Compare the candidates by cross-validation and fit the best on all rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
            Both classes.

        Returns
        -------
        self

        Raises
        ------
        DataError
            If y holds one class only.
        """
        self._validate_params()
        table, labels = validate_data(self, X, y, dtype=np.float64)
        anomalous = self._encode_labels(labels, len(table))
        if anomalous is None or len(np.unique(anomalous)) < 2:
            raise DataError("y holds one class only; this detector learns from both")
        random = check_random_state(self.random_state)
        seed = random.randint(2**31 - 1)
        candidates = default_candidates(seed) if self.candidates is None else self.candidates
        means, deviations = self._compare(candidates, table, anomalous, seed)
        order = np.argsort(-np.nan_to_num(means, nan=-np.inf), kind="stable")
        best = order[: self.n_best]
        self.best_ = [
            (candidates[i][0], clone(candidates[i][1]).fit(table, anomalous)) for i in best
        ]
        self.scores_ = pd.DataFrame(
            {"name": [name for name, _ in candidates], "mean": means, "std": deviations}
        ).assign(used=np.isin(np.arange(len(candidates)), best))
        self.scores_ = self.scores_.iloc[order].reset_index(drop=True)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Mean probability of the best candidates.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, 2)
            Columns in the order of ``classes_``.
        """
        check_is_fitted(self)
        table = validate_data(self, X, dtype=np.float64, reset=False)
        mean = np.mean([part.predict_proba(table)[:, 1] for _, part in self.best_], axis=0)
        return np.column_stack([1.0 - mean, mean])

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log odds of the mean probability; above 0 is an anomaly.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
            Within ±34.5; probabilities of 0 and 1 have no finite odds.
        """
        mean = np.clip(self.predict_proba(X)[:, 1], 1e-15, 1.0 - 1e-15)
        return np.asarray(np.log(mean) - np.log1p(-mean))

    def _compare(
        self,
        candidates: Candidates,
        table: NDArray[np.float64],
        anomalous: NDArray[np.bool_],
        seed: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        n_folds = min(self.cv, int(anomalous.sum()), int((~anomalous).sum()))
        if n_folds < 2 or len(candidates) <= self.n_best:
            nothing = np.full(len(candidates), np.nan)
            return nothing, nothing
        folds = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        found = np.array(
            [
                cross_val_score(
                    clone(part),
                    table,
                    anomalous,
                    cv=folds,
                    scoring=self.scoring,
                    n_jobs=self.n_jobs,
                )
                for _, part in candidates
            ]
        )
        return found.mean(axis=1), found.std(axis=1)


def default_candidates(seed: int | None = None) -> list[tuple[str, BaseEstimator]]:
    """The families that `MeanOfBestDetector` compares unless told otherwise.

    Parameters
    ----------
    seed : int, optional

    Returns
    -------
    list of (str, estimator)

    Examples
    --------
    >>> from anomaly.voting import default_candidates
    >>> [name for name, _ in default_candidates()][:3]
    ['random_forest', 'extra_trees', 'xgboost']
    """
    return [
        ("random_forest", RandomForestClassifier(300, random_state=seed)),
        ("extra_trees", ExtraTreesClassifier(300, random_state=seed)),
        (
            "xgboost",
            XGBClassifier(n_estimators=300, learning_rate=0.1, random_state=seed, n_jobs=1),
        ),
        ("histogram_boosting", HistGradientBoostingClassifier(random_state=seed)),
        (
            "neighbours",
            make_pipeline(RobustScaler(), KNeighborsClassifier(10, weights="distance")),
        ),
        (
            "logistic_regression",
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        ),
    ]
