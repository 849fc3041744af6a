"""Native forests; oracle: scikit-learn's own predict, decision_function and predict_proba."""

from __future__ import annotations

import platform
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier

from anomaly import _core
from anomaly.forest import RefusedValueError, compile_forest, float_cut

N_FEATURES = 4
# Compilers fuse scikit-learn's multiply-add of gradient boosting on processors that have it
# by default; then the last bit of a score may differ.
FUSES = platform.machine() not in ("x86_64", "AMD64")


def table(missing=False):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, N_FEATURES))
    y = ((X**2).sum(axis=1) > 5).astype(int)
    X[:, 3] = rng.integers(0, 2, 400)  # an indicator column
    if missing:
        X[rng.random(X.shape) < 0.1] = np.nan
    return X, y


def fit(classifier, missing=False, labels=(0, 1)):
    X, y = table(missing)
    return classifier.fit(X, np.array(labels)[y])


ENSEMBLES = {
    "adaboost": AdaBoostClassifier(
        DecisionTreeClassifier(max_depth=3), n_estimators=20, learning_rate=0.7, random_state=0
    ),
    "adaboost of stumps": AdaBoostClassifier(n_estimators=10, random_state=0),
    "adaboost, one perfect tree": AdaBoostClassifier(DecisionTreeClassifier(random_state=0)),
    "extra tree": ExtraTreeClassifier(random_state=0),
    "extra trees": ExtraTreesClassifier(n_estimators=11, random_state=0),
    "forest": RandomForestClassifier(n_estimators=10, random_state=0),
    "gradient boosting": GradientBoostingClassifier(n_estimators=20, random_state=0),
    "gradient boosting, exponential": GradientBoostingClassifier(
        n_estimators=20, loss="exponential", random_state=0
    ),
    "gradient boosting from zero": GradientBoostingClassifier(
        n_estimators=20, init="zero", random_state=0
    ),
    "histogram boosting": HistGradientBoostingClassifier(max_iter=20, random_state=0),
    "tree": DecisionTreeClassifier(random_state=0),
}
TAKES_NAN = ["tree", "extra tree", "forest", "extra trees", "histogram boosting"]
FITTED = {name: fit(ensemble) for name, ensemble in ENSEMBLES.items()}


def reference(classifier, X):
    if hasattr(classifier, "decision_function"):
        scores = classifier.decision_function(X)
    else:
        scores = classifier.predict_proba(X)[:, 1]
    return classifier.predict(X) == classifier.classes_[1], scores


def thresholds_of(classifier):
    """Every cut of the ensemble in the first columns, as rows on and around it."""
    trees = np.ravel(getattr(classifier, "estimators_", [classifier]))
    found = [tree.tree_.threshold for tree in trees if hasattr(tree, "tree_")]
    if not found:
        found = [p[0].nodes["num_threshold"] for p in classifier._predictors]
    return np.unique(np.concatenate(found))[:200]


def assert_equal(classifier, X):
    forest = compile_forest(classifier)
    labels, scores = forest.decide(X)
    expected, expected_scores = reference(classifier, X)
    assert (labels == expected).all()
    if isinstance(classifier, GradientBoostingClassifier) and FUSES:
        assert np.allclose(scores, expected_scores, rtol=1e-12, atol=1e-12)
    else:
        assert scores.tobytes() == expected_scores.tobytes()
    for row, label, score in zip(X[:20], labels, scores, strict=False):
        assert forest.decide_one(row.tolist()) == (label, score)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_answers_equal_scikit_learns_to_the_bit(name):
    assert_equal(FITTED[name], np.random.default_rng(1).normal(size=(501, N_FEATURES)) * 2)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_answers_on_and_around_every_threshold(name):
    cuts = thresholds_of(FITTED[name])
    as_float = cuts.astype(np.float32).astype(float)
    around = [cuts, as_float, np.nextafter(cuts, 9), np.nextafter(as_float, -9), cuts + 3e-8]
    values = np.concatenate([*around, float_cut(cuts), np.nextafter(float_cut(cuts), 9)])
    assert_equal(FITTED[name], np.repeat(values[:, None], N_FEATURES, axis=1))


@pytest.mark.parametrize("name", ENSEMBLES)
@settings(max_examples=25, deadline=None)
@given(
    X=hnp.arrays(
        float,
        st.tuples(st.integers(1, 20), st.just(N_FEATURES)),
        elements=st.floats(-3e38, 3e38) | st.floats(-3, 3) | st.sampled_from([0.0, -0.0, 1e-46]),
    )
)
def test_any_finite_rows_agree(name, X):
    assert_equal(FITTED[name], X)


@pytest.mark.parametrize("name", TAKES_NAN)
@settings(max_examples=25, deadline=None)
@given(
    X=hnp.arrays(
        float,
        st.tuples(st.integers(1, 20), st.just(N_FEATURES)),
        elements=st.just(np.nan) | st.floats(-4, 4),
    )
)
def test_any_rows_with_missing_values_agree(name, X):
    assert_equal(FITTED[name], X)


@pytest.mark.parametrize("missing", [False, True], ids=["fitted without NaN", "fitted with NaN"])
@pytest.mark.parametrize("name", TAKES_NAN)
def test_missing_values_go_where_scikit_learn_sends_them(name, missing):
    classifier = fit(ENSEMBLES[name], missing) if missing else FITTED[name]
    X = np.random.default_rng(2).normal(size=(300, N_FEATURES))
    X[np.random.default_rng(3).random(X.shape) < 0.4] = np.nan
    assert_equal(classifier, X)


@pytest.mark.parametrize("name", ENSEMBLES)
def test_refused_values_are_located(name):
    forest = compile_forest(FITTED[name])
    refused = [np.inf, -np.inf]
    refused += [] if name in TAKES_NAN else [np.nan]
    refused += [] if name == "histogram boosting" else [1e39, -3.5e38]
    for value in refused:
        X = np.zeros((70, N_FEATURES))
        X[66, 2] = value
        with pytest.raises(RefusedValueError, match="row 66, column 2: the value is infinite"):
            forest.decide(X)
        with pytest.raises(RefusedValueError, match="row 0, column 2"):
            forest.decide_one(X[66].tolist())
        if np.isfinite(value) or name != "histogram boosting":
            with np.errstate(over="ignore"), pytest.raises(ValueError):
                FITTED[name].predict(X)


def test_largest_float_is_taken_as_scikit_learn_takes_it():
    X = np.full((1, N_FEATURES), 3.4028235e38)
    assert_equal(FITTED["forest"], X)


@pytest.mark.parametrize("n_rows", [0, 1, 7, 8, 9, 511, 512, 513, 1100])
def test_answers_do_not_depend_on_the_number_of_rows(n_rows):
    forest = compile_forest(FITTED["adaboost"])
    X = np.random.default_rng(4).normal(size=(1100, N_FEATURES))
    labels, scores = forest.decide(X)
    some_labels, some_scores = forest.decide(X[:n_rows])
    assert (some_labels == labels[:n_rows]).all()
    assert some_scores.tobytes() == scores[:n_rows].tobytes()


@pytest.mark.parametrize("labels", [(False, True), ("normal", "odd"), (3, 7)])
def test_any_pair_of_labels(labels):
    classifier = fit(AdaBoostClassifier(n_estimators=5), labels=labels)
    assert_equal(classifier, table()[0])


def test_others_are_left_to_their_own_predict():
    X, y = table()
    assert compile_forest(LogisticRegression().fit(X, y)) is None
    assert compile_forest(DecisionTreeClassifier().fit(X, y + (X[:, 0] > 1))) is None  # 3 classes
    assert compile_forest(DecisionTreeClassifier().fit(X, np.zeros(len(X)))) is None
    boosted = AdaBoostClassifier(LogisticRegression(), n_estimators=2).fit(X, y)
    assert compile_forest(boosted) is None
    started = GradientBoostingClassifier(init=LogisticRegression(), n_estimators=2).fit(X, y)
    assert compile_forest(started) is None
    categorical = HistGradientBoostingClassifier(categorical_features=[3], max_iter=3).fit(X, y)
    assert compile_forest(categorical) is None
    assert compile_forest(SVC().fit(X, y)) is None


def test_threads_share_one_forest():
    forest = compile_forest(FITTED["forest"])
    X = np.random.default_rng(5).normal(size=(20000, N_FEATURES))
    expected = forest.decide(X)[1].tobytes()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(forest.decide(X)[1].tobytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


GOOD = {
    "feature": [0, 0, 0],
    "threshold": [0.0, 0.0, 0.0],
    "left": [1, 1, 2],
    "right": [2, 1, 2],
    "nan_left": [0, 0, 0],
    "values": [0.0, 1.0, -1.0],
    "roots": [0],
}
TYPES = {"threshold": "f8", "values": "f8", "nan_left": "u1"}


def make_core(n_features=1, start=(0.0,), rule=0, **changed):
    arrays = {k: np.array(v, dtype=TYPES.get(k, "i4")) for k, v in (GOOD | changed).items()}
    return _core.Forest(
        **arrays, n_features=n_features, start=start, divisor=1.0, factor=1.0, rule=rule,
        check_as_float=False, allow_nan=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"feature": [1, 0, 0]},
        {"feature": [-1, 0, 0]},
        {"left": [3, 1, 2]},
        {"left": [-1, 1, 2]},
        {"left": [0, 1, 2]},  # a loop
        {"right": [2, 0, 2]},  # back to the root
        {"right": [0, 1, 2]},
        {"roots": [3]},
        {"roots": [-1]},
        {"values": [0.0, 1.0]},
        {"threshold": [0.0]},
        {"n_features": 0},
        {"rule": 3},
        {"rule": 2},
        {"start": ()},
        {"start": (0.0, 0.0, 0.0)},
    ],
    ids=str,
)
def test_the_core_refuses_a_forest_that_reads_outside_or_loops(changed):
    with pytest.raises(ValueError):
        make_core(**changed)


def test_the_core_refuses_wrong_buffers():
    core = make_core()
    assert core.evaluate_one([-1.0]) == (True, 1.0)
    assert core.evaluate_one([1.0]) == (False, -1.0)
    assert core.evaluate_one([float("nan")]) is None
    with pytest.raises(ValueError, match="a list of 1 floats"):
        core.evaluate_one([1.0, 2.0])
    with pytest.raises(TypeError):
        core.evaluate_one(["a"])
    rows, scores, labels = np.zeros((2, 1)), np.zeros(2), np.zeros(2, "u1")
    assert core.evaluate(rows, scores, labels) == -1
    with pytest.raises(ValueError, match="1 values for each score"):
        core.evaluate(rows[:1], scores, labels)
    with pytest.raises(TypeError, match="rows must have item format 'd'"):
        core.evaluate(rows.astype("f4"), scores, labels)
    with pytest.raises(TypeError, match="made once"):
        core.__init__()
    with pytest.raises(ValueError, match="not initialised"):
        _core.Forest.__new__(_core.Forest).evaluate_one([1.0])
