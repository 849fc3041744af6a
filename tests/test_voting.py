"""The mean of the best: which candidates are chosen, and what is averaged."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from anomaly.errors import DataError
from anomaly.voting import MeanOfBestDetector

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
