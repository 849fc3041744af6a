"""Staged fits give what scikit-learn's GridSearchCV gives, candidate by candidate."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

from anomaly.tuning import tune
from anomaly.tuning.staging import staged_parameter

TREES = [DecisionTreeClassifier(max_depth=d) for d in (1, 3)]


def blobs(seed=0, n=240, n_features=3, overlap=1.6):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, n_features))
    y = (rng.random(n) < 0.35).astype(int)
    X[y == 1] += overlap
    return X, y


def on_a_lattice(seed=0, n=200):
    """Many equal distances: the hard case for prefixes of neighbours."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 6, size=(n, 2)).astype(float)
    return X, (rng.random(n) < 0.4).astype(int)


CASES = {
    "adaboost": (
        AdaBoostClassifier(random_state=3),
        {"n_estimators": [1, 2, 5, 9, 14], "learning_rate": [0.3, 1.0], "estimator": TREES},
    ),
    "adaboost that ends early": (
        AdaBoostClassifier(DecisionTreeClassifier(max_depth=12), random_state=3),
        {"n_estimators": [1, 4, 9]},
    ),
    "gradient boosting": (
        GradientBoostingClassifier(random_state=3),
        {"n_estimators": [1, 3, 8, 12], "subsample": [1.0, 0.6], "max_features": [None, 2]},
    ),
    "histogram gradient boosting": (
        HistGradientBoostingClassifier(random_state=3, min_samples_leaf=5),
        {"max_iter": [1, 3, 8], "max_features": [1.0, 0.5]},
    ),
    "random forest": (
        RandomForestClassifier(random_state=3),
        {"n_estimators": [1, 2, 5, 11], "max_depth": [2, None], "bootstrap": [True, False]},
    ),
    "extra trees": (
        ExtraTreesClassifier(random_state=3),
        {"n_estimators": [1, 2, 5, 11], "max_features": [1, None]},
    ),
    "xgboost": (
        XGBClassifier(random_state=3, n_jobs=1),
        {"n_estimators": [1, 2, 5, 11], "subsample": [1.0, 0.6], "max_depth": [1, 3]},
    ),
    "neighbours": (
        KNeighborsClassifier(),
        {"n_neighbors": [1, 2, 3, 6, 11, 40, 100], "weights": ["uniform", "distance"]},
    ),
    "neighbours by brute force": (
        KNeighborsClassifier(algorithm="brute"),
        {"n_neighbors": [1, 2, 5, 12], "weights": ["uniform", "distance"], "p": [1, 2]},
    ),
}


def by_grid_search(classifier, grid, X, y, cv=3, scoring="f1"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = GridSearchCV(
            Pipeline([("prepare", StandardScaler()), ("classify", classifier)]),
            {f"classify__{name}": values for name, values in grid.items()},
            cv=cv,
            scoring=scoring,
        ).fit(X, y)
    folds = [search.cv_results_[f"split{k}_test_score"] for k in range(cv)]
    return search, np.column_stack(folds)


@pytest.mark.parametrize("data", [blobs, on_a_lattice], ids=["blobs", "lattice"])
@pytest.mark.parametrize("name", CASES)
def test_staged_scores_equal_those_of_grid_search(name, data):
    classifier, grid = CASES[name]
    X, y = data()
    expected, by_fold = by_grid_search(classifier, grid, X, y)
    result = tune(classifier, grid, X, y, prepare=StandardScaler(), cv=3)
    ours = result.table[["fold_0", "fold_1", "fold_2"]].to_numpy()
    np.testing.assert_array_equal(ours, by_fold)
    np.testing.assert_array_equal(
        result.table["mean_score"], expected.cv_results_["mean_test_score"]
    )
    assert result.best_score_ == expected.best_score_
    assert str(result.best_params_) == str(
        {k.removeprefix("classify__"): v for k, v in expected.best_params_.items()}
    )
    np.testing.assert_array_equal(result.best_estimator_.predict(X), expected.predict(X))


def test_the_comparison_sees_one_different_prediction():
    X, y = blobs()
    _, by_fold = by_grid_search(*CASES["neighbours"], X, y)
    other = y.copy()
    other[0] = 1 - other[0]
    _, changed = by_grid_search(*CASES["neighbours"], X, other)
    assert (by_fold != changed).any()


@pytest.mark.parametrize("scoring", ["accuracy", "balanced_accuracy", "precision", "recall"])
def test_other_scores_equal_those_of_grid_search(scoring):
    classifier, grid = RandomForestClassifier(random_state=1), {"n_estimators": [2, 5]}
    X, y = blobs(seed=4)
    _, by_fold = by_grid_search(classifier, grid, X, y, scoring=scoring)
    result = tune(classifier, grid, X, y, prepare=StandardScaler(), cv=3, scoring=scoring)
    ours = result.table[["fold_0", "fold_1", "fold_2"]].to_numpy()
    np.testing.assert_allclose(ours, by_fold, rtol=1e-15)


def test_a_staged_fit_is_one_fit():
    X, y = blobs()
    counted = []

    class Counting(AdaBoostClassifier):
        def fit(self, X, y, sample_weight=None):
            counted.append(self.n_estimators)
            return super().fit(X, y)

    # A subclass may change anything, so it is never staged.
    tune(Counting(random_state=0), {"n_estimators": [1, 2, 3]}, X, y, cv=2, refit=False)
    assert sorted(counted) == [1, 1, 2, 2, 3, 3]
    result = tune(
        AdaBoostClassifier(random_state=0), {"n_estimators": [1, 2, 3]}, X, y, cv=2, refit=False
    )
    assert len(result.table) == 3


@pytest.mark.parametrize(
    "classifier",
    [
        RandomForestClassifier(random_state=0, warm_start=True),
        RandomForestClassifier(),
        RandomForestClassifier(random_state=np.random.RandomState(0)),
        AdaBoostClassifier(KNeighborsClassifier(), random_state=0),
        GradientBoostingClassifier(random_state=0, n_iter_no_change=3),
        HistGradientBoostingClassifier(random_state=0, early_stopping=True),
        XGBClassifier(random_state=0, early_stopping_rounds=3),
        XGBClassifier(random_state=0, booster="dart"),
        KNeighborsClassifier(n_neighbors=60),
        KNeighborsClassifier(weights=len),
    ],
    ids=lambda classifier: str(classifier).partition(" at 0x")[0],
)
def test_no_stages_where_prefixes_are_not_exact(classifier):
    assert staged_parameter(classifier, 100) is None


def test_early_stopping_falls_back_to_separate_fits_with_equal_scores():
    classifier = HistGradientBoostingClassifier(
        random_state=0, early_stopping=True, n_iter_no_change=1, min_samples_leaf=5
    )
    X, y = blobs()
    grid = {"max_iter": [2, 9, 30]}
    _, by_fold = by_grid_search(classifier, grid, X, y)
    result = tune(classifier, grid, X, y, prepare=StandardScaler(), cv=3)
    np.testing.assert_array_equal(result.table[["fold_0", "fold_1", "fold_2"]], by_fold)


def test_a_value_that_fails_does_not_take_its_prefixes_along():
    X, y = blobs()
    result = tune(KNeighborsClassifier(algorithm="kd_tree"), {"n_neighbors": [3, 500]}, X, y, cv=2)
    assert result.best_params_ == {"n_neighbors": 3}
    assert np.isnan(result.table["mean_score"]).tolist() == [False, True]


def test_stage_values_that_are_no_counts_are_left_to_the_classifier():
    X, y = blobs()
    result = tune(AdaBoostClassifier(random_state=0), {"n_estimators": [0, 2.5, 3]}, X, y, cv=2)
    assert result.best_params_ == {"n_estimators": 3}
    assert np.isnan(result.table["mean_score"]).tolist() == [True, True, False]


def test_a_wrong_shared_parameter_fails_all_stages():
    X, y = blobs()
    result = tune(
        AdaBoostClassifier(random_state=0),
        {"n_estimators": [2, 3], "learning_rate": [-1.0, 1.0]},
        X,
        y,
        cv=2,
    )
    failed = np.isnan(result.table["mean_score"])
    assert [p["learning_rate"] for p in result.table["params"][failed]] == [-1.0, -1.0]


def test_every_staged_family_is_compared_with_grid_search():
    from anomaly.tuning.literals import public_path
    from anomaly.tuning.staging import STAGES

    compared = {public_path(type(classifier)) for classifier, _ in CASES.values()}
    assert compared == set(STAGES)
    grids = itertools.chain.from_iterable(grid for _, grid in CASES.values())
    assert {stages.parameter for stages in STAGES.values()} <= set(grids)


@pytest.mark.parametrize("name", [name for name in CASES if name != "neighbours"])
def test_stages_are_really_read_off_one_fit(name, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("fitted one by one")

    monkeypatch.setattr("anomaly.tuning.units._run_plain", refuse)
    classifier, grid = CASES[name]
    X, y = blobs(n=120)
    assert len(tune(classifier, grid, X, y, cv=2, refit=False).table)
