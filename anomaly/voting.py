"""Detectors for fully labelled tables: the mean of the best few of several families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from xgboost import XGBClassifier

from anomaly.base import BaseDetector, Interval
from anomaly.errors import DataError, ParameterError
from anomaly.tuning import TuningResult, family, tune
from anomaly.tuning.engine import Grid, seeded
from anomaly.tuning.folds import Folds
from anomaly.tuning.scores import count, ratio_scores, scorer
from anomaly.tuning.units import OVERSAMPLE, candidate_classifier

Candidates = Sequence[tuple[str, BaseEstimator]]


class MeanOfBestDetector(BaseDetector):
    """Supervised detector: cross-validates families, averages the best ones.

    Which family wins differs from table to table and often by chance; the mean
    probability of the best few is better than the single winner and safer.

    Parameters
    ----------
    candidates : list of (str, estimator) or None, default=None
        Classifiers. One without ``predict_proba`` takes part with the logistic
        of its ``decision_function``. None stands for random forest, extra
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
        mean = np.mean([_probability(part, table) for _, part in self.best_], axis=0)
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


def _probability(part: Any, table: NDArray[np.float64]) -> NDArray[np.float64]:
    if hasattr(part, "predict_proba"):
        return np.asarray(part.predict_proba(table)[:, 1], dtype=float)
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * part.decision_function(table))))


def tune_families(
    grids: Mapping[str, Grid],
    X: Any,
    y: ArrayLike,
    *,
    n_best: int = 3,
    prepare: Any = None,
    cv: Any = 5,
    scoring: str = "f1",
    random_state: int | None = 0,
    refit: bool = True,
    **options: Any,
) -> TuningResult:
    """Tune several families and take the mean of the best few.

    Parameters
    ----------
    grids : mapping of str to grid
        Name of each family, or import path, and the values to try.
    X : array-like or DataFrame of shape (n_samples, n_features)
    y : array-like of shape (n_samples,)
        1 or True is the anomaly.
    n_best : int, default=3
        How many families are averaged, each with its best parameters.
    prepare, cv, scoring, random_state, refit, **options
        As for `anomaly.tuning.tune`.

    Returns
    -------
    TuningResult
        ``best_estimator_`` is a pipeline of ``prepare`` and a
        `MeanOfBestDetector`, ``best_params_`` the parameters of each averaged
        family, ``best_score_`` the mean's own score over the same folds, and
        ``table`` has one row per family: ``family``, ``params``,
        ``mean_score`` and ``used``, best first.

    Raises
    ------
    ParameterError
        If a grid asks for ``oversample``: injected rows are not mixed into
        real labels here.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from anomaly.voting import tune_families
    >>> X, y = make_classification(200, class_sep=0.8, random_state=0)
    >>> grids = {"knn": {"n_neighbors": [3, 9]}, "logistic_regression": {"C": [0.1, 1.0]},
    ...          "sklearn.naive_bayes.GaussianNB": {}}
    >>> result = tune_families(grids, X, y, n_best=2, cv=3)
    >>> sorted(result.best_params_)
    ['logistic_regression', 'sklearn.naive_bayes.GaussianNB']
    """
    _check_families(grids)
    results = {
        name: tune(
            name,
            grid,
            X,
            y,
            prepare=prepare,
            cv=cv,
            scoring=scoring,
            random_state=random_state,
            refit=False,
            **options,
        )
        for name, grid in grids.items()
    }
    return mean_of_families(
        results,
        X,
        y,
        n_best=n_best,
        prepare=prepare,
        cv=cv,
        scoring=scoring,
        random_state=random_state,
        refit=refit,
    )


def mean_of_families(
    results: Mapping[str, TuningResult],
    X: Any,
    y: ArrayLike,
    *,
    n_best: int = 3,
    prepare: Any = None,
    cv: Any = 5,
    scoring: str = "f1",
    random_state: int | None = 0,
    refit: bool = True,
) -> TuningResult:
    """The mean of the best few families that were tuned one by one.

    Parameters
    ----------
    results : mapping of str to TuningResult
        By family or import path. Candidates that trained on extra injected
        rows are passed over.
    X, y, n_best, prepare, cv, scoring, random_state, refit
        As for `tune_families`.

    Returns
    -------
    TuningResult
    """
    if n_best < 1:
        raise ParameterError(f"n_best must be 1 or more, got {n_best}")
    chosen = {name: _best_without_injection(name, results[name]) for name in results}
    order = sorted(chosen, key=lambda name: -chosen[name][1])
    best = order[:n_best]
    parts = [
        (name, candidate_classifier(seeded(family(name).make(), random_state), chosen[name][0]))
        for name in best
    ]
    mean = MeanOfBestDetector(parts, n_best=len(parts))
    labels = np.asarray(y)
    score = _cross_validated(
        mean, Folds(X, labels, prepare=prepare, cv=cv, random_state=random_state), scoring
    )
    steps = [("prepare", clone(prepare))] if prepare is not None else []
    pipeline = Pipeline([*steps, ("classifier", mean)])
    return TuningResult(
        best_estimator_=pipeline.fit(X, labels) if refit else None,
        best_params_={name: chosen[name][0] for name in best},
        best_score_=score,
        table=pd.DataFrame(
            {
                "family": order,
                "params": [chosen[name][0] for name in order],
                "mean_score": [chosen[name][1] for name in order],
                "used": [name in best for name in order],
            }
        ),
        n_candidates_=sum(result.n_candidates_ for result in results.values()),
        n_distinct_=sum(result.n_distinct_ for result in results.values()),
        n_fits_=sum(result.n_fits_ for result in results.values()),
        n_resumed_=sum(result.n_resumed_ for result in results.values()),
    )


def _best_without_injection(name: str, result: TuningResult) -> tuple[dict[str, Any], float]:
    """Parameters and score of the best candidate that saw the rows as they are."""
    plain = [params.get(OVERSAMPLE, 1) == 1 for params in result.table["params"]]
    table = result.table[plain].dropna(subset="mean_score")
    if table.empty:
        raise ParameterError(f"{name}: no candidate was fitted without {OVERSAMPLE}")
    row = table.iloc[int(np.argmax(table["mean_score"].to_numpy()))]
    params = {key: value for key, value in row["params"].items() if key != OVERSAMPLE}
    return params, float(row["mean_score"])


def _check_families(grids: Mapping[str, Grid]) -> None:
    if not grids:
        raise ParameterError("grids must name a family")
    for name, grid in grids.items():
        family(name)
        parts = [grid] if isinstance(grid, Mapping) else grid
        if any(OVERSAMPLE in part for part in parts):
            raise ParameterError(
                f"{name}: leave {OVERSAMPLE} out of the grid; the mean of several families "
                f"learns from the rows as they are"
            )


def _cross_validated(mean: MeanOfBestDetector, folds: Folds, scoring: str) -> float:
    measure = scorer(scoring)
    scores = []
    for fold in range(len(folds)):
        data = folds.prepared(fold)
        fitted = clone(mean).fit(data.X_train, data.y_train)
        anomaly = folds.classes[-1]
        flags = [np.asarray(v == anomaly) for v in (fitted.predict(data.X_test), data.y_test)]
        scores.append(measure(ratio_scores(count(flags[0], flags[1]))))
    return float(np.mean(scores))


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
