"""Rate detection: the n-sigma rule, quantile limits, volumes, seasons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from anomaly.errors import DataError
from anomaly.rate import RateDetector


def twin_sigma(row, window, n_sigma):
    """The n-sigma rule, the obvious way."""
    history, x = row[:-1], row[-1]
    return abs(x - np.nanmean(history)) / (n_sigma * max(np.nanstd(history), 1e-300))


def scores(detector, X):
    return np.exp(detector.fit(X).decision_function(X))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), window=st.sampled_from([10, 11, 40]), gaps=st.booleans())
def test_sigma_equals_its_twin(seed, window, gaps):
    rng = np.random.default_rng(seed)
    X = rng.normal(0.9, 0.02, (3, 5 * window + 3))
    if gaps:
        X[:, :-1][rng.random((3, X.shape[1] - 1)) < 0.2] = np.nan
    found = scores(RateDetector("sigma", n_sigma=2.0, min_effect=0.0), X)
    np.testing.assert_allclose(found, [twin_sigma(row, window, 2.0) for row in X], rtol=1e-9)


def success_rates(n, volume, random_state):
    rng = np.random.default_rng(random_state)
    truth = rng.uniform(0.97, 0.9995, (n, 1))
    return rng.binomial(volume, truth, (n, 903)) / volume


def test_quantile_limits_keep_false_alarms_at_the_rate_where_sigma_does_not():
    X = np.vstack([success_rates(1500, volume, volume) for volume in (200, 1000)])
    plain = RateDetector("sigma", min_effect=0.0).fit(X).predict(X).mean()
    better = RateDetector().fit(X).predict(X).mean()
    assert plain > 0.004
    assert better <= 0.004


def test_a_tiny_change_after_a_constant_history_counts_only_for_plain_sigma():
    X = np.ones((2, 903))
    X[0, -1] = 1.0000001
    X[1, -1] = 0.9
    assert RateDetector("sigma", min_effect=0.0).fit(X).predict(X).tolist() == [1, 1]
    assert RateDetector().fit(X).predict(X).tolist() == [0, 1]
    assert RateDetector(min_effect=0.2).fit(X).predict(X).tolist() == [0, 0]


def test_direction_counts_one_side_only():
    X = np.random.default_rng(0).normal(0.5, 0.01, (2, 103))
    X[:, -1] = 0.3, 0.7
    flags = {d: RateDetector(direction=d).fit(X).predict(X).tolist() for d in ("low", "high")}
    assert flags == {"low": [1, 0], "high": [0, 1]}


def test_seasonal_baseline_sees_what_the_season_hides():
    at = np.arange(-180, 181)
    shape = 0.9 + 0.09 * np.sin(at / 30)
    rng = np.random.default_rng(1)
    row = np.concatenate([shape, shape, shape[:181]]) + rng.normal(0, 0.002, 903)
    row[-1] -= 0.05
    X = row[None]
    assert RateDetector().fit(X).predict(X).tolist() == [0]
    assert RateDetector(seasonal=True).fit(X).predict(X).tolist() == [1]
    X[:, :722] = np.nan  # no past: the plain rule
    assert RateDetector(seasonal=True).fit(X).predict(X).shape == (1,)


@settings(max_examples=40, deadline=None)
@given(
    volume=st.sampled_from([5, 40, 300, 20_000, 10**7]),
    rate=st.sampled_from([0.02, 0.5, 0.9, 0.999]),
    sigmas=st.floats(-6, 6),
)
def test_binomial_tails_equal_scipys(volume, rate, sigmas):
    rng = np.random.default_rng(3)
    hits = np.full(103, rate * volume) + rng.uniform(-0.3, 0.3, 103) * min(1, rate * volume / 9)
    k = np.clip(np.round(volume * rate + sigmas * np.sqrt(volume * rate * (1 - rate))), 0, volume)
    hits[-1] = k
    X = np.concatenate([np.clip(hits / volume, 0, 1), np.full(103, volume)])[None]
    p = (X[0, :102].sum() * volume + 0.5) / (102 * volume + 1)
    spread = np.mean((X[0, :102] - p) ** 2 * volume / (p * (1 - p)))
    assert spread < 1
    tail = 2 * min(stats.binom.cdf(k, volume, p), stats.binom.sf(k - 1, volume, p))
    found = scores(RateDetector("binomial", min_effect=0.0, alpha=0.001), X)[0]
    wanted = np.sqrt(np.log(max(min(tail, 1), 1e-300)) / np.log(0.001))
    assert found == pytest.approx(wanted, rel=2e-2, abs=1e-6)


def test_volumes_make_small_samples_harmless():
    X = np.concatenate([np.full(103, 0.99), np.full(103, 10_000.0)])[None].repeat(2, axis=0)
    X[:, 102] = 0.9
    X[0, -1] = 10
    assert RateDetector("binomial").fit(X).predict(X).tolist() == [0, 1]


def test_faults_are_named():
    X = np.full((2, 103), 0.5)
    X[1, -1] = np.nan
    with pytest.raises(DataError, match="row 1 cannot be tested"):
        RateDetector().fit(X).predict(X)
    with pytest.raises(DataError, match="as many columns of volumes"):
        RateDetector("binomial").fit(X)
    with pytest.raises(ValueError, match="'method' parameter of RateDetector must be"):
        RateDetector("median").fit(X)
    X = np.full((1, 206), 2.0)
    with pytest.raises(DataError, match="rates lie in 0"):
        RateDetector("binomial").fit(X).predict(X)
