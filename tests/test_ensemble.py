"""The ensemble against literal twins of its members, and what its scores promise."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

from anomaly.ensemble import (
    EnsembleDetector,
    Tail,
    _Covariance,
    _Forest,
    _Histogram,
    _Neighbours,
    _RobustCovariance,
)
from anomaly.errors import DataError


def table(n=200, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d))


@pytest.fixture(scope="module")
def fitted():
    return EnsembleDetector(random_state=0).fit(table())


def slow_neighbours(reference, row, count):
    """Mean distance to the nearest rows, one copy of an equal row left out."""
    distances = sorted(np.sqrt(((reference - row) ** 2).sum(axis=1)).tolist())
    if distances[0] == 0:
        distances = distances[1:]
    return np.mean(distances[:count])


@pytest.mark.parametrize("d", [3, 100, 210])
def test_neighbours_equal_a_sort_of_all_distances(d):
    reference, fresh = table(150, d), table(40, d, seed=1)
    reference[100:] = reference[:50]  # duplicates
    member = _Neighbours({"few": 0.01, "many": 0.1})
    training = member.fit(reference)
    for rows, scores in ((reference, training), (fresh, member.score(fresh))):
        for row, found in zip(rows, scores, strict=True):
            expected = [slow_neighbours(reference, row, 5), slow_neighbours(reference, row, 15)]
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_neighbours_of_training_rows_leave_the_row_itself_out():
    reference = table(60, 2)
    distances = np.sort(cdist(reference, reference), axis=1)[:, 1:7]
    found = _Neighbours({"all": 0.1}).fit(reference)[:, 0]
    assert found == pytest.approx(distances.mean(axis=1), rel=1e-4)


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=30),
    st.lists(st.integers(-2, 8), min_size=1, max_size=10),
)
def test_tail_probability_equals_counting(training, scores):
    n, top = len(training), max(training)
    spread = top - np.median(training)
    found = Tail(np.array(training, float)).surprise(np.array(scores, float))
    for score, surprise in zip(scores, found, strict=True):
        above = sum(t > score for t in training) + 0.5 * sum(t == score for t in training)
        tail = (above + 0.5) / (n + 1)
        if score > top:
            tail /= 1 + (score - top) / (spread if spread > 0 else 1)
        assert surprise == pytest.approx(-np.log(tail))


def test_histogram_equals_a_walk_over_bins():
    rows = table(80, 3)
    member = _Histogram()
    training = member.fit(rows)[:, 0]
    histograms = [np.histogram(column, bins=10, density=True) for column in rows.T]
    for row, found in zip(rows, training, strict=True):
        expected = 0.0
        for value, (density, edges) in zip(row, histograms, strict=True):
            place = min(np.searchsorted(edges, value, side="right") - 1, 9)
            expected -= np.log2(density[place] + 0.1)
        assert found == pytest.approx(expected)
    outside = member.score(rows.max(axis=0, keepdims=True) + 1.0)[0, 0]
    assert outside == pytest.approx(-3 * np.log2(0.1))


def test_forest_equals_scikit_learns():
    rows, fresh = table(300, 4), table(50, 4, seed=1)
    member = _Forest(3)
    training = member.fit(rows)[:, 0]
    theirs = IsolationForest(n_estimators=200, max_samples=300, random_state=3).fit(rows)
    assert training == pytest.approx(-theirs.score_samples(rows))
    assert member.score(fresh)[:, 0] == pytest.approx(-theirs.score_samples(fresh))


def test_covariance_equals_scikit_learns_and_training_rows_are_held_out():
    rows, fresh = table(100, 4), table(20, 4, seed=1)
    member = _Covariance()
    training = member.fit(rows)[:, 0]
    whole = LedoitWolf().fit(rows)
    assert member.score(fresh)[:, 0] == pytest.approx(np.sqrt(whole.mahalanobis(fresh)))
    held_out = np.arange(100) % 5 == 2
    without = LedoitWolf().fit(rows[~held_out])
    assert training[held_out] == pytest.approx(np.sqrt(without.mahalanobis(rows[held_out])))


def test_a_half_in_a_plane_gives_way_to_the_shrunk_covariance_of_all_rows():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3))
    rows[:200, 2] = 0.0  # two rows in three lie in a plane
    member = _RobustCovariance(0)
    member.fit(rows)
    whole = LedoitWolf().fit(rows)
    fresh = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    found = member.score(fresh)[:, 0]
    assert found == pytest.approx(np.sqrt(whole.mahalanobis(fresh)))
    assert found[1] > found[0] + 2


def test_columns_that_always_move_together_keep_the_tightest_half():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 2)) * np.where(np.arange(300) < 200, 0.1, 3.0)[:, None]
    rows = np.column_stack([rows, rows.sum(axis=1)])
    member = _RobustCovariance(0)
    member.fit(rows)
    # The half is ten times as narrow as all rows, so it sees ten times as far.
    assert member.score(np.array([[1.0, 0.0, 1.0]]))[0, 0] > 5


def test_decision_is_the_mean_surprise_minus_the_threshold(fitted):
    rows = table(30, seed=1)
    scores = fitted.member_scores(rows)
    assert list(scores.columns) == [
        "neighbours_1",
        "neighbours_10",
        "forest",
        "histogram",
        "robust_covariance",
        "covariance",
    ]
    expected = scores.mean(axis=1) - fitted.threshold_
    assert fitted.decision_function(rows) == pytest.approx(expected)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_a_score_does_not_depend_on_its_batch(fitted, seed, size):
    rng = np.random.default_rng(seed)
    rows = table(300, seed=1)
    rows[::7] *= 30
    whole = fitted.decision_function(rows)
    chosen = rng.permutation(300)[:size]
    assert fitted.decision_function(rows[chosen]).tolist() == whole[chosen].tolist()


@pytest.mark.parametrize("d", [80, 230])
def test_a_score_does_not_depend_on_its_batch_in_wide_tables(d):
    rows = table(150, d, seed=1)
    detector = EnsembleDetector(random_state=0).fit(table(300, d))
    whole = detector.decision_function(rows)
    assert [detector.decision_function(row[None])[0] for row in rows[:20]] == whole[:20].tolist()
    assert detector.decision_function(rows[::-1])[::-1].tolist() == whole.tolist()


@pytest.mark.parametrize("d", [60, 80, 230])
def test_members_round_a_row_alike_wherever_it_stands(d):
    detector = EnsembleDetector(random_state=0).fit(table(300, d))
    rows = table(150, d, seed=1)
    for model in detector._models:
        whole = model.score(detector._scale(rows))
        for start in (1, 56, 127, 149):
            later = model.score(detector._scale(rows[start:]))
            assert later.tolist() == whole[start:].tolist(), model.names


def test_threads_change_nothing(fitted):
    rows = table(20_000, seed=1)
    threads = clone(fitted).set_params(n_jobs=2).fit(table())
    assert threads.decision_function(rows).tolist() == fitted.decision_function(rows).tolist()


def test_pickle_and_seed_restore_the_same_scores(fitted):
    rows = table(50, seed=1)
    expected = fitted.decision_function(rows).tolist()
    assert pickle.loads(pickle.dumps(fitted)).decision_function(rows).tolist() == expected
    assert clone(fitted).fit(table()).decision_function(rows).tolist() == expected


def test_scores_keep_growing_beyond_the_training_rows(fitted):
    direction = np.array([1.0, -0.5, 0.0, 0.2, 0.0])
    steps = np.linspace(3, 12, 10)[:, None] * direction
    assert (np.diff(fitted.decision_function(steps)) > 0).all()


@pytest.mark.parametrize("mode", ["full", "light"])
def test_contamination_is_the_share_of_training_rows_called(mode):
    rows = table(500)
    detector = EnsembleDetector(mode, contamination=0.1, random_state=0).fit(rows)
    # Neighbours, forest and histogram score a training row as they did in fit.
    assert 0.07 <= detector.predict(rows).mean() <= 0.11


def test_modes_and_widths_choose_the_members():
    narrow, wide = table(60, 3), table(60, 210)
    light = EnsembleDetector("light", random_state=0)
    full = EnsembleDetector(random_state=0)
    assert light.fit(narrow).members_ == ["forest", "robust_covariance"]
    assert light.fit(wide).members_ == ["covariance"]
    assert full.fit(wide).members_ == ["neighbours_1", "covariance"]


def test_light_mode_keeps_no_training_rows():
    rows = table(2000, 20)
    sizes = [
        len(pickle.dumps(EnsembleDetector("light", random_state=0).fit(part)))
        for part in (rows[:1500], rows)
    ]
    assert sizes[1] < 1.2 * sizes[0]


def test_explain_points_at_the_odd_column(fitted):
    rows = np.zeros((3, 5)) + np.median(table(), axis=0)
    for i in range(3):
        rows[i, i] += 25.0
    assert fitted.explain(rows).idxmax(axis=1).tolist() == ["x0", "x1", "x2"]


def test_explain_keeps_the_names_and_leaves_constant_columns_at_zero():
    frame = pd.DataFrame(table(100, 2), columns=["speed", "load"]).assign(unit=1.0)
    with pytest.warns(UserWarning, match="1 constant column is left out: unit"):
        detector = EnsembleDetector("light", random_state=0).fit(frame)
    shares = detector.explain(frame.head(3))
    assert list(shares.columns) == ["speed", "load", "unit"]
    assert (shares["unit"] == 0).all()


def test_large_tables_are_represented_by_a_sample():
    rows = table(3000, 3)
    detector = EnsembleDetector(max_reference=200, random_state=0).fit(rows)
    rows[0] = 40.0
    assert detector.decision_function(rows).argmax() == 0


def test_a_column_that_is_mostly_one_value_still_counts():
    rows = np.zeros((300, 2))
    rows[:, 0] = np.random.default_rng(0).normal(size=300)
    rows[:6, 1] = 1.0
    detector = EnsembleDetector(random_state=0).fit(rows)
    assert detector.kept_columns_.tolist() == [0, 1]
    odd, usual = detector.decision_function([[0.0, 1.0], [0.0, 0.0]])
    assert odd > usual


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (np.ones((9, 2)), None, "no column of X varies"),
        (table(9), np.ones(9), "every row the class of anomalies"),
    ],
)
def test_tables_that_show_nothing_are_refused(X, y, message):
    with pytest.raises(DataError, match=message):
        EnsembleDetector().fit(X, y)


def test_extreme_values_stay_finite(fitted):
    rows = np.full((2, 5), [1e300, -1e300, 1e-300, 0.0, -0.0])
    assert np.isfinite(fitted.decision_function(rows)).all()
    X = table(50)
    X[0] = 1e200
    assert np.isfinite(EnsembleDetector(random_state=0).fit(X).decision_function(X)).all()


@pytest.mark.parametrize(("name", "at_least"), [("WBC", 0.97), ("breastw", 0.97)])
def test_real_tables_are_ranked(shared_data, name, at_least):
    with np.load(shared_data / "tabular" / f"{name}.npz") as data:
        X, y = data["X"], data["y"]
    assert (
        roc_auc_score(y, EnsembleDetector(random_state=0).fit(X).decision_function(X)) > at_least
    )


@pytest.mark.parametrize("mode", ["full", "light"])
@pytest.mark.parametrize("n_columns", [150, 250])
def test_training_rows_of_wide_tables_keep_their_share_of_anomalies(mode, n_columns):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, n_columns))
    X[:5] += 3
    detector = EnsembleDetector(mode, random_state=0).fit(X)
    scores = detector.decision_function(X)
    assert abs((scores > 0).mean() - 0.05) < 0.01
    assert roc_auc_score(np.arange(300) < 5, scores) > 0.98
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.decision_function(X[3:9]), scores[3:9])


@pytest.mark.parametrize("n_rows", [2, 3, 4])
@pytest.mark.parametrize("n_columns", [1, 3, 70, 250])
def test_a_handful_of_rows_is_enough(n_rows, n_columns):
    X = np.random.default_rng(0).normal(size=(n_rows, n_columns))
    assert np.isfinite(EnsembleDetector(random_state=0).fit(X).decision_function(X * 3)).all()
