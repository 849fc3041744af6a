"""The mean of the best: which candidates are chosen, and what is averaged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from anomaly.encoding import RecordEncoder
from anomaly.errors import DataError, ParameterError
from anomaly.tuning import tune
from anomaly.voting import MeanOfBestDetector, mean_of_families, tune_families

CANDIDATES = [
    ("dummy", DummyClassifier()),
    ("line", LogisticRegression()),
    ("bayes", GaussianNB()),
    ("tree", DecisionTreeClassifier(max_depth=3, random_state=0)),
]


def table(n=300, seed=0):
    X = np.random.default_rng(seed).normal(size=(n, 3))
    return X, X[:, 0] + 0.3 * X[:, 1] > 1.2


def test_the_best_by_cross_validation_are_averaged():
    X, y = table()
    fresh, _ = table(seed=1)
    detector = MeanOfBestDetector(CANDIDATES, n_best=2, random_state=7).fit(X, y)
    seed = np.random.RandomState(7).randint(2**31 - 1)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    scores = {
        name: cross_val_score(part, X, y, cv=folds, scoring="average_precision").mean()
        for name, part in CANDIDATES
    }
    best = sorted(scores, key=scores.get, reverse=True)[:2]
    assert [name for name, _ in detector.best_] == best
    assert detector.scores_["mean"].tolist() == pytest.approx(sorted(scores.values())[::-1])
    assert detector.scores_.loc[detector.scores_["used"], "name"].tolist() == best
    parts = [dict(CANDIDATES)[name].fit(X, y).predict_proba(fresh)[:, 1] for name in best]
    assert detector.predict_proba(fresh)[:, 1] == pytest.approx(np.mean(parts, axis=0))


def test_decision_is_positive_where_the_mean_probability_is_above_half():
    X, y = table()
    detector = MeanOfBestDetector(CANDIDATES, random_state=0).fit(X, y)
    above = detector.predict_proba(X)[:, 1] > 0.5
    assert ((detector.decision_function(X) > 0) == above).all()
    assert (detector.predict(X) == above).all()


def test_a_single_anomaly_takes_the_first_candidates_uncompared():
    X, _ = table(40)
    detector = MeanOfBestDetector(CANDIDATES, n_best=2).fit(X, np.arange(40) == 3)
    assert [name for name, _ in detector.best_] == ["dummy", "line"]
    assert detector.scores_["mean"].isna().all()


def test_the_default_families_run():
    X, y = table(120)
    detector = MeanOfBestDetector(cv=2, random_state=0).fit(X, y)
    assert len(detector.scores_) == 6
    assert len(detector.best_) == 3


def test_one_class_is_refused():
    with pytest.raises(DataError, match="y holds one class only"):
        MeanOfBestDetector(CANDIDATES).fit(table()[0], np.zeros(300))


GRIDS = {
    "knn": {"n_neighbors": [1, 9]},
    "logistic_regression": {"C": [0.1, 1.0]},
    "linear_svc": {"C": [1.0]},
    "sklearn.dummy.DummyClassifier": {},
}


def test_families_are_tuned_one_by_one_and_the_best_averaged():
    X, y = table()
    result = tune_families(GRIDS, X, y, prepare=StandardScaler(), n_best=2, cv=3)
    single = {n: tune(n, g, X, y, prepare=StandardScaler(), cv=3) for n, g in GRIDS.items()}
    best = sorted(single, key=lambda name: -single[name].best_score_)[:2]
    assert list(result.best_params_) == best
    assert result.best_params_ == {name: single[name].best_params_ for name in best}
    assert result.table["mean_score"].tolist() == sorted(
        (part.best_score_ for part in single.values()), reverse=True
    )
    assert result.n_candidates_ == 6
    mean = result.best_estimator_.predict_proba(X)[:, 1]
    parts = [_shares(single[name].best_estimator_, X) for name in best]
    assert mean == pytest.approx(np.mean(parts, axis=0))


def _shares(estimator, X):
    if hasattr(estimator, "predict_proba"):
        return estimator.predict_proba(X)[:, 1]
    return 1 / (1 + np.exp(-estimator.decision_function(X)))


def test_the_score_of_the_mean_is_its_own_over_the_folds():
    X, y = table()
    result = tune_families(GRIDS, X, y, cv=3)
    folds = StratifiedKFold(3)
    expected = cross_val_score(clone(result.best_estimator_), X, y, cv=folds, scoring="f1")
    assert result.best_score_ == pytest.approx(expected.mean())


def test_candidates_that_trained_on_injected_rows_are_passed_over():
    X, y = table()
    frame = pd.DataFrame(X, columns=list("abc"))
    options = {"prepare": RecordEncoder(), "cv": 3}
    mixed = tune("knn", {"n_neighbors": [9], "oversample": [1, 3]}, frame, y, **options)
    plain = tune("knn", {"n_neighbors": [9]}, frame, y, **options)
    mean = mean_of_families({"knn": mixed}, frame, y, **options)
    assert mean.best_params_ == {"knn": {"n_neighbors": 9}}
    assert mean.best_score_ == pytest.approx(plain.best_score_)
    only = tune("knn", {"n_neighbors": [9], "oversample": [3]}, frame, y, **options)
    with pytest.raises(ParameterError, match="knn: no candidate was fitted without oversample"):
        mean_of_families({"knn": only}, frame, y, **options)


def test_injected_rows_are_not_mixed_into_the_mean():
    with pytest.raises(ParameterError, match="knn: leave oversample out of the grid"):
        tune_families({"knn": {"oversample": [1, 2]}}, *table())
