"""The C core's window features equal their NumPy twin (tests/kpi_oracle.py)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly import _core
from tests import kpi_oracle

WINDOWS = (10, 11, 13, 20, 33, 64, 165, 180, 250)


def measure(rows, window):
    rows = np.ascontiguousarray(rows, dtype=float)
    n = len(rows)
    parts, features = np.full((n, 4), np.nan), np.full((n, _core.VALUE_FEATURES), np.nan)
    expected, codes = np.full((n, 2), np.nan), np.zeros(n, dtype=np.int32)
    _core.value_measure(rows, window, parts, features, expected, codes)
    return parts, features, expected, codes


def assert_equals_twin(rows, window):
    parts, features, _, codes = measure(rows, window)
    for i, row in enumerate(np.asarray(rows, dtype=float)):
        if codes[i] == 0:
            wanted_parts, wanted = kpi_oracle.measure(row, window)
            np.testing.assert_allclose(parts[i], wanted_parts, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(features[i], wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("window", WINDOWS)
def test_features_equal_their_twin(window):
    rng = np.random.default_rng(window)
    d = 5 * window + 3
    season = 100 + 50 * np.sin(np.arange(d) / 20)
    rows = [
        rng.normal(100, 5, d),
        rng.poisson(0.3, d),
        rng.poisson(season),
        -rng.gamma(2, 3, d),
        rng.integers(0, 3, d),
        season * rng.lognormal(0, 0.1, d),
        np.cumsum(rng.normal(size=d)),
        1e9 * season + rng.normal(size=d),
    ]
    assert_equals_twin(rows, window)


@pytest.mark.parametrize("window", WINDOWS)
def test_constant_zero_and_negative_histories_equal_their_twin(window):
    rows = np.zeros((6, 5 * window + 3))
    rows[1] = 7.5
    rows[2] = -3
    rows[3, -1] = 10
    rows[4] = 1
    rows[4, -1] = 1.0000001
    rows[5, -window:] = 3
    assert_equals_twin(rows, window)


@pytest.mark.parametrize("window", WINDOWS)
def test_missing_values_and_days_equal_their_twin(window):
    rng = np.random.default_rng(window)
    full, d = 2 * window + 1, 5 * window + 3
    rows = rng.normal(3, 1, (8, d))
    rows[:, :-1][rng.random((8, d - 1)) < 0.1] = np.nan
    rows[1, :full] = np.nan
    rows[2, full : 2 * full] = np.nan
    rows[3, : 2 * full] = np.nan
    rows[4, 2 * full] = np.nan
    assert_equals_twin(rows, window)


@settings(max_examples=60, deadline=None)
@given(
    window=st.sampled_from([10, 12, 21, 40]),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6, 1e12]),
    digits=st.sampled_from([None, 0]),
)
def test_any_window_equals_its_twin(window, seed, scale, digits):
    rng = np.random.default_rng(seed)
    rows = scale * rng.standard_t(2, (2, 5 * window + 3)) + rng.choice([0, 1, -5]) * scale
    assert_equals_twin(rows if digits is None else np.round(rows), window)


@pytest.mark.parametrize(
    ("where", "what"),
    [(-1, np.nan), (-1, np.inf), (0, np.inf), (70, -np.inf), (90, 1e200)],
)
def test_unusable_series_are_refused(where, what):
    rows = np.ones((1, 103))
    rows[0, where] = what
    assert measure(rows, 20)[3][0] == -3


def test_too_few_known_points_are_refused():
    rows = np.ones((2, 103))
    rows[0, 82:93] = np.nan
    rows[1, 82:92] = np.nan
    assert list(measure(rows, 20)[3]) == [-3, 0]


def test_wrong_buffers_are_refused():
    with pytest.raises(ValueError, match="window must be 10 to 100000, got 9"):
        measure(np.ones((1, 48)), 9)
    with pytest.raises(ValueError, match="rows must hold 103 items, got 104"):
        measure(np.ones((1, 104)), 20)
    with pytest.raises(TypeError, match="rows must have item format 'd'"):
        _core.value_measure(np.ones(103, dtype="f"), 20, *[np.ones(1)] * 4)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20))
def test_text_numbers_equal_pythons_to_one_step(values):
    for text in (",".join(map(repr, values)), " , ".join(f"{v:.6e}" for v in values)):
        out = np.empty(len(values))
        assert _core.value_parse(text, out) == len(values)
        wanted = np.array([float(t) for t in text.split(",")])
        assert (np.abs(out - wanted) <= 4 * np.spacing(np.abs(wanted))).all()


@given(st.lists(st.integers(-(10**15), 10**15), min_size=1, max_size=20))
def test_whole_numbers_in_text_are_exact(values):
    out = np.empty(len(values))
    assert _core.value_parse(",".join(map(str, values)), out) == len(values)
    assert out.tolist() == values


ILLEGAL = [
    *("", " ", ",", "1,", ",1", "1,,2", "nan", "inf", "1e", "0x1", "1 2", "--1", ".", "1.2.3"),
    *("1e999", "1;2", "1\x002", "\uff11"),
]


@pytest.mark.parametrize("text", ILLEGAL)
def test_illegal_numbers_are_refused(text):
    assert _core.value_parse(text, np.empty(4)) == -1
