"""Few labels: what counts as a label, and that labels help without spoiling."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from anomaly.ensemble import EnsembleDetector
from anomaly.errors import DataError
from anomaly.few_labels import FewLabelsDetector


def table(seed=0, n=240, n_anomalies=24):
    """Rows of which some hide in a corner that is not extreme."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4))
    X[:n_anomalies] = 0.9 + 0.2 * rng.normal(size=(n_anomalies, 4))
    return X, np.arange(n) < n_anomalies


def small(**options):
    return FewLabelsDetector(EnsembleDetector("light"), n_trees=20, random_state=0, **options)


def labels_with(known, y, unknown):
    labels = np.full(len(y), unknown, dtype=object)
    labels[known] = y[known].astype(int)
    return labels


@pytest.mark.parametrize("unknown", [-1, None, np.nan, pd.NA])
def test_every_mark_of_unlabelled_rows_means_the_same(unknown):
    X, y = table()
    known = np.r_[0:3, 30:40]
    labels = pd.array(labels_with(known, y, unknown), dtype="Int64")
    detector = small().fit(X, np.asarray(labels))
    assert (detector.n_anomalies_, detector.n_normal_, detector.n_unlabelled_) == (3, 10, 227)
    assert detector.classes_.tolist() == [0, 1]
    expected = small().fit(X, np.where(np.isin(np.arange(len(y)), known), y, -1).astype(int))
    assert detector.decision_function(X).tolist() == expected.decision_function(X).tolist()


def test_minus_one_names_the_normal_class_where_nothing_else_does():
    X, y = table()
    detector = small().fit(X, np.where(y, 1, -1))
    assert detector.classes_.tolist() == [-1, 1]
    assert (detector.n_anomalies_, detector.n_normal_, detector.n_unlabelled_) == (24, 0, 216)


def test_names_of_classes_are_kept():
    X, y = table()
    labels = np.where(y, "odd", "fine").astype(object)
    labels[100:] = None
    detector = small().fit(X, labels)
    assert detector.classes_.tolist() == ["fine", "odd"]
    assert detector.n_unlabelled_ == 140
    assert set(detector.predict(X)) <= {"fine", "odd"}


def test_no_labels_rank_as_the_ensemble_does():
    X, _ = table()
    detector = small().fit(X)
    ensemble = detector._ensemble
    fresh = np.random.default_rng(1).normal(size=(50, 4)) * 3
    order = np.argsort(ensemble.decision_function(fresh), kind="stable")
    assert (np.diff(detector.decision_function(fresh)[order]) >= 0).all()
    assert detector.weight_ == 0


def test_weight_grows_with_the_labelled_anomalies():
    X, y = table()
    weights = [small().fit(X, y & (np.arange(len(y)) < m)).weight_ for m in (1, 3, 24)]
    assert weights == pytest.approx([1 / 4, 3 / 6, 24 / 27])


def test_a_few_labels_find_what_is_not_extreme():
    X, y = table()
    fresh, truth = table(seed=1)
    few = small().fit(X, np.where(y & (np.arange(len(y)) < 6), 1, -1))
    without = small().fit(X)
    scores = [roc_auc_score(truth, d.decision_function(fresh)) for d in (without, few)]
    assert scores[1] > scores[0] + 0.3


def test_one_label_is_enough_to_start():
    X, y = table()
    detector = small().fit(X, np.r_[1, np.full(len(y) - 1, -1)])
    assert detector.n_anomalies_ == 1
    assert np.isfinite(detector.decision_function(X)).all()


def test_pickle_and_seed_restore_the_same_scores():
    X, y = table()
    detector = small().fit(X, y)
    expected = detector.decision_function(X).tolist()
    assert pickle.loads(pickle.dumps(detector)).decision_function(X).tolist() == expected
    assert small(n_jobs=2).fit(X, y).decision_function(X).tolist() == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(240, -1), "y labels no row; leave y out"),
        (np.full(240, np.nan), "y labels no row; leave y out"),
        (np.ones(240), "every row the class of anomalies"),
        (np.array(["odd"] * 3 + [None] * 237, dtype=object), "the only label is 'odd'"),
        (np.arange(240) % 3, "y must have 2 classes at most"),
    ],
)
def test_labels_that_cannot_be_read_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        small().fit(table()[0], labels)


def test_refused_labels_raise_the_house_error():
    with pytest.raises(DataError):
        small().fit(table()[0], np.full(240, -1))


@pytest.mark.parametrize("mark", [None, np.nan, -1])
def test_one_label_among_missing_ones_of_any_kind(mark):
    X = np.random.default_rng(0).normal(size=(100, 3))
    X[:5] += 6
    y = np.array([1] + [mark] * 99, dtype=object)
    detector = FewLabelsDetector(random_state=0).fit(X, y)
    assert detector.n_unlabelled_ == 99
    assert detector.predict(X)[:5].all()
