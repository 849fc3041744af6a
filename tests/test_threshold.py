"""Promises of thresholds, in 10,000 simulated repeats each, and their exact twins."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV

from anomaly.ensemble import EnsembleDetector
from anomaly.errors import DataError, ParameterError
from anomaly.threshold import (
    BudgetDetector,
    conformal_pvalues,
    cost_threshold,
    daily_alarm_threshold,
    discoveries,
    false_alarm_threshold,
)

REPEATS = 10_000


def upper(mean, n=REPEATS):
    """Four standard errors above a mean of shares."""
    return mean + 4 * math.sqrt(mean * (1 - mean) / n)


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (99, 0.01), (150, 0.1)])
def test_false_alarm_rate_holds_over_10000_calibration_sets(n, rate):
    rng = np.random.default_rng(0)
    calibration = rng.exponential(size=(REPEATS, n))
    values = np.array([false_alarm_threshold(row, rate).value for row in calibration])
    exact = np.exp(-values)  # probability that a new normal score exceeds the threshold
    alarms = rng.exponential(size=REPEATS) > values
    spread = exact.std() / math.sqrt(REPEATS)
    assert exact.mean() <= rate + 4 * spread
    assert exact.mean() >= rate - 1 / (n + 1) - 4 * spread  # and it is not just cautious
    assert alarms.mean() <= upper(rate)


def test_false_alarm_rate_holds_for_scores_with_ties():
    rng = np.random.default_rng(0)
    calibration = rng.integers(0, 5, size=(REPEATS, 40))
    values = np.array([false_alarm_threshold(row, 0.1).value for row in calibration])
    assert (rng.integers(0, 5, size=REPEATS) > values).mean() <= upper(0.1)


def test_false_alarm_rate_holds_for_a_fitted_detector():
    rng = np.random.default_rng(0)
    rates = []
    for seed in range(40):
        rows = rng.standard_t(3, size=(600, 3))
        part = IsolationForest(n_estimators=20, random_state=seed)
        budget = BudgetDetector(part, false_alarm_rate=0.05, random_state=seed)
        rates.append(budget.fit(rows).predict(rng.standard_t(3, size=(2000, 3))).mean())
    assert np.mean(rates) < 0.05 + 4 * np.std(rates) / math.sqrt(40)


def test_confidence_holds_over_10000_calibration_sets():
    rng = np.random.default_rng(0)
    calibration = rng.exponential(size=(REPEATS, 300))
    values = [false_alarm_threshold(row, 0.05, confidence=0.9).value for row in calibration]
    broken = np.exp(-np.array(values)) > 0.05
    assert broken.mean() <= upper(0.1)
    assert broken.mean() > 0.02  # and it is not just cautious


def test_daily_budget_holds_over_10000_days():
    rng = np.random.default_rng(0)
    values = [
        daily_alarm_threshold(rng.exponential(size=199), 3, 288).value for _ in range(REPEATS)
    ]
    alarms = rng.binomial(288, np.exp(-np.array(values)))
    assert alarms.mean() <= 3 + 4 * alarms.std() / math.sqrt(REPEATS)


@pytest.mark.parametrize("shift", [0.0, 2.0, 5.0])
def test_false_discovery_rate_holds_over_10000_batches(shift):
    rng = np.random.default_rng(0)
    shares = np.empty(REPEATS)
    for i in range(REPEATS):
        scores = rng.normal(size=40)
        scores[:8] += shift
        found = discoveries(rng.normal(size=200), scores, rate=0.2)
        normal = found[8:] if shift else found
        shares[i] = normal.sum() / max(found.sum(), 1)
    assert shares.mean() <= 0.2 + 4 * shares.std() / math.sqrt(REPEATS)


def test_discoveries_find_clear_anomalies():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=100)
    scores[:10] += 20
    assert discoveries(rng.normal(size=2000), scores, rate=0.1)[:10].all()


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=30),
    st.lists(st.integers(-1, 10), min_size=1, max_size=10),
)
def test_pvalues_equal_counting(calibration, scores):
    expected = [(1 + sum(c >= s for c in calibration)) / (1 + len(calibration)) for s in scores]
    assert conformal_pvalues(calibration, scores) == pytest.approx(expected)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_an_alarm_is_a_pvalue_within_the_rate(calibration, rate):
    scores = np.arange(-1, 101)
    small = conformal_pvalues(calibration, scores) <= rate + 1e-12
    try:
        alarms = false_alarm_threshold(calibration, rate).decide(scores)
    except DataError:
        assert not small.any()
    else:
        assert (alarms == small).all()


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=20).filter(
        lambda rows: len({label for _, label in rows}) == 2
    ),
    st.sampled_from([0.2, 1.0, 7.0]),
)
def test_cost_equals_a_search_over_all_thresholds(rows, ratio):
    scores, labels = (np.array(column) for column in zip(*rows, strict=True))

    def cost(value):
        alarms = scores > value
        return (alarms & ~labels).sum() + ratio * (~alarms & labels).sum()

    found = cost_threshold(scores, labels, ratio)
    best = min(cost(value) for value in itertools.chain([-1], scores))
    assert cost(found.value) == pytest.approx(best)


@pytest.mark.parametrize(
    ("confidence", "needed", "smallest"), [(None, 999, 0.00991), (0.9, 2302, 0.0228)]
)
def test_too_small_a_calibration_set_is_refused_with_what_it_could_promise(
    confidence, needed, smallest
):
    with pytest.raises(DataError, match=f"needs {needed} .*got 100; .* promise is {smallest}"):
        false_alarm_threshold(np.arange(100), 0.001, confidence=confidence)
    assert false_alarm_threshold(np.arange(needed), 0.001, confidence=confidence)
    with pytest.raises(DataError, match="too small"):
        false_alarm_threshold(np.arange(needed - 1), 0.001, confidence=confidence)


def test_too_small_sets_are_refused_for_discoveries_costs_and_detectors():
    with pytest.raises(DataError, match=r"a false-discovery rate of 0\.05 needs 19"):
        discoveries([1, 2, 3], [9], rate=0.05)
    with pytest.raises(DataError, match="rows of both kinds"):
        cost_threshold([1, 2], [0, 0], 1.0)
    with pytest.raises(DataError, match=r"a false-alarm rate of 0\.01 needs 99"):
        BudgetDetector(random_state=0).fit(np.random.default_rng(0).normal(size=(100, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: false_alarm_threshold([1], 0), "rate must be between 0 and 1, got 0"),
        (lambda: daily_alarm_threshold([1], 5, 5), "below rows_per_day, got 5 of 5"),
        (lambda: cost_threshold([1], [1], 0), "cost_ratio must be above 0 and finite, got 0"),
        (lambda: conformal_pvalues([np.nan], [1]), "calibration must be numbers, got NaN at 0"),
        (
            lambda: BudgetDetector(false_alarm_rate=0.1, cost_ratio=2.0).fit([[1], [2]]),
            "one budget at a time, got false_alarm_rate and cost_ratio",
        ),
        (
            lambda: BudgetDetector(alarms_per_day=1).fit([[1], [2]]),
            "alarms_per_day and rows_per_day are given together",
        ),
    ],
)
def test_bad_budgets_are_refused(call, message):
    with pytest.raises((ParameterError, DataError), match=message):
        call()


def labelled(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(600, 2))
    y = np.arange(600) < 60
    X[y] += 2.5
    return X, y


@pytest.mark.parametrize(
    "estimator",
    [
        EnsembleDetector("light", random_state=0),
        IsolationForest(random_state=0),
        RandomForestClassifier(20, random_state=0),
        LogisticRegression(),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_any_score_becomes_a_decision(estimator):
    X, y = labelled()
    budget = BudgetDetector(estimator, false_alarm_rate=0.05, random_state=0).fit(X, y)
    fresh, truth = labelled(1)
    alarms = budget.predict(fresh)
    assert alarms[truth].mean() > alarms[~truth].mean()
    assert alarms[~truth].mean() < 0.12
    assert pickle.loads(pickle.dumps(budget)).predict(fresh).tolist() == alarms.tolist()


def test_budgets_can_be_searched_in_a_grid():
    X, y = labelled()
    budget = BudgetDetector(LogisticRegression(), cost_ratio=1.0, random_state=0)
    search = GridSearchCV(budget, {"cost_ratio": [0.01, 5.0]}, scoring="recall", cv=3).fit(X, y)
    assert search.best_params_ == {"cost_ratio": 5.0}


def test_a_batch_can_be_screened():
    X, y = labelled()
    budget = BudgetDetector(LogisticRegression(), false_alarm_rate=0.05, random_state=0).fit(X, y)
    fresh, truth = labelled(1)
    found = budget.discover(fresh, 0.2)
    assert truth[found].mean() > 0.7


def test_a_seed_fixes_the_estimator_that_is_not_given():
    X = np.random.default_rng(0).normal(size=(400, 3))
    scores = [BudgetDetector(random_state=0).fit(X).decision_function(X) for _ in range(2)]
    assert scores[0].tolist() == scores[1].tolist()


def test_a_budget_explains_what_its_estimator_explains():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(400, 2)), columns=["speed", "load"])
    detector = BudgetDetector(random_state=0).fit(frame)
    odd = frame.head(1).assign(load=9.0)
    assert detector.explain(odd).idxmax(axis=1).tolist() == ["load"]
    assert not hasattr(BudgetDetector(LogisticRegression()), "explain")


@pytest.mark.parametrize("confidence", [None, 0.9])
@pytest.mark.parametrize("n", [1, 7, 96, 99, 1234])
def test_the_rate_that_a_refusal_names_can_be_had(n, confidence):
    scores = np.arange(n)
    with pytest.raises(DataError, match="too small") as refusal:
        false_alarm_threshold(scores, 1e-6, confidence=confidence)
    named = float(str(refusal.value).split()[-1])
    if named < 1:
        assert false_alarm_threshold(scores, named, confidence=confidence).n_calibration == n


@pytest.mark.parametrize("labels", [[0, 1, np.nan], [0, 1, 2]])
def test_a_cost_refuses_rows_of_unknown_class(labels):
    with pytest.raises(DataError, match="labels must hold 0 and 1 only"):
        cost_threshold([1, 2, 3], labels, 2)


def test_budgets_that_cannot_be_kept_are_refused():
    X, y = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 5 == 0
    with pytest.raises(ParameterError, match="finite"):
        cost_threshold([1, 2], [0, 1], math.inf)
    with pytest.raises(ParameterError, match="confidence is of a budget of false alarms"):
        BudgetDetector(cost_ratio=2, confidence=0.9).fit(X, y)
    with pytest.raises(ParameterError, match="LinearRegression has neither"):
        BudgetDetector(LinearRegression()).fit(X, y)


def test_a_rate_is_promised_as_an_expectation_unless_a_confidence_is_given():
    assert "are expected to raise" in false_alarm_threshold(range(99), 0.05).promise
    sure = false_alarm_threshold(range(99), 0.05, confidence=0.9).promise
    assert sure == "at most 5% of normal rows raise an alarm, with 0.9 confidence"
