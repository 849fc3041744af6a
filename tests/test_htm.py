"""The native temporal memory equals its slow, dense twin, and keeps its promises."""

from __future__ import annotations

import math
import pickle
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly import _core
from anomaly.errors import DataError, ParameterError
from anomaly.htm import HTMDetector
from anomaly.tiles import TileDetector
from tests.stream_oracles import OracleHTM

SMALL = {"n_columns": 64, "n_active_columns": 8, "activation_threshold": 4}
SMALL |= {"matching_threshold": 3, "n_new_synapses": 6, "max_synapses": 10, "n_bits": 100}


def a_stream(n, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([1.0, 5.0, 9.0, 5.0, 2.0])[np.arange(n) % 5] + 0.2 * rng.normal(size=n)


def both(X, **options):
    fast = HTMDetector(**options)
    slow = OracleHTM(n_fields=X.shape[1], **options)
    seconds = 1e9 + 600.0 * np.arange(len(X))
    result = fast.process_many(X, seconds)
    pairs = [slow.process(x, s) for x, s in zip(X.tolist(), seconds.tolist(), strict=True)]
    return fast, slow, result, np.array(pairs)


def assert_same(fast, slow, result, pairs):
    assert result.raw_score.tobytes() == pairs[:, 1].tobytes()
    assert result.likelihood.tobytes() == pairs[:, 0].tobytes()
    seen = fast.inspect()
    assert seen["active_cells"] == slow.active
    assert seen["winner_cells"] == slow.winners
    assert seen["segments"] == len(slow.segments)
    assert seen["synapses"] == sum(len(s[1]) for s in slow.segments.values())


@pytest.mark.parametrize("cells", [1, 4])
def test_periodic_stream_equals_the_oracle_bit_for_bit(cells):
    X = a_stream(700).reshape(-1, 1)
    X[600:604] = 30.0
    fast, slow, result, pairs = both(X, learning_period=150, cells_per_column=cells, **SMALL)
    assert_same(fast, slow, result, pairs)
    assert result.likelihood[600] >= 0.5
    assert result.raw_score[400:600].mean() < 0.3


def test_full_size_memory_equals_the_oracle():
    X = a_stream(130).reshape(-1, 1)
    assert_same(*both(X, learning_period=30, value_range=(0.0, 10.0)))


@settings(max_examples=20, deadline=None)
@given(
    x=st.lists(
        st.one_of(
            st.integers(0, 6).map(float), st.sampled_from([math.nan, math.inf, 1e300, -1e308])
        ),
        min_size=5,
        max_size=90,
    ),
    settling_period=st.sampled_from([0, 10, 25]),
    cells=st.sampled_from([1, 2, 5]),
    fields=st.integers(1, 2),
    max_segments=st.sampled_from([None, 9]),
    per_cell=st.sampled_from([128, 1]),
    given_range=st.booleans(),
    clock=st.booleans(),
    range_period=st.sampled_from([4000, 10]),
    seed=st.integers(0, 2**31),
)
def test_any_stream_equals_the_oracle(
    x,
    settling_period,
    cells,
    fields,
    max_segments,
    per_cell,
    given_range,
    clock,
    range_period,
    seed,
):
    X = np.array(x[: len(x) // fields * fields]).reshape(-1, fields)
    fast, slow, result, pairs = both(
        X,
        learning_period=8,
        settling_period=settling_period,
        cells_per_column=cells,
        max_segments=max_segments,
        max_segments_per_cell=per_cell,
        value_range=(0.0, 6.0) if given_range else "learnt",
        time_of_day=clock,
        range_period=range_period,
        random_state=seed,
        **SMALL,
    )
    assert_same(fast, slow, result, pairs)
    assert np.isfinite(result.likelihood).all()


@pytest.mark.parametrize("value_range", ["learnt", "adaptive", (0.0, 10.0)])
def test_pickle_at_any_record_continues_identically(value_range):
    options = {**SMALL, "max_segments": 60, "value_range": value_range, "range_period": 90}
    options |= {"settling_period": 200}
    x = a_stream(500, seed=3)
    x[250:] *= 3.0
    whole = HTMDetector(100, prediction_steps=(1, 3), **options)
    broken = HTMDetector(100, prediction_steps=(1, 3), **options)
    for i, value in enumerate(x.tolist()):
        if i % 37 == 5 or i in (99, 100, 101, 199, 200):
            broken = pickle.loads(pickle.dumps(broken))
        assert broken.process_one(value, 60.0 * i) == whole.process_one(value, 60.0 * i)
    for steps in (1, 3):
        assert broken.predict_one(steps).mean == whole.predict_one(steps).mean
    assert broken._stream.to_bytes() == whole._stream.to_bytes()
    assert whole.inspect()["segments"] == 60


def test_short_learning_period_ends_as_a_long_one():
    x = a_stream(500)
    options = {**SMALL, "settling_period": 200}
    early, late = HTMDetector(20, **options), HTMDetector(200, **options)
    results = [d.process_many(x) for d in (early, late)]
    for column in ("raw_score", "predicted"):
        a, b = (getattr(result, column)[200:] for result in results)
        assert a.tobytes() == b.tobytes()
    assert results[0].raw_score[20:200].any()
    assert not results[1].raw_score[:200].any()


@pytest.mark.parametrize("at", [30, 99, 100, 300])
def test_scoring_leaves_no_trace(at):
    x = a_stream(400)
    detector = HTMDetector(100, **SMALL)
    detector.process_many(x[:at])
    before = detector._stream.to_bytes()
    expected = pickle.loads(pickle.dumps(detector)).process_one(x[at]).likelihood
    assert detector.score_one(x[at]) == expected
    detector.score_one(1e9)
    assert detector._stream.to_bytes() == before


def test_frozen_memory_moves_on_but_learns_nothing():
    x = a_stream(600)
    detector = HTMDetector(100, **SMALL)
    detector.process_many(x)
    detector.set_params(learning=False)
    size = detector.inspect()["synapses"]
    detector.process_many(np.random.default_rng(0).uniform(0, 9, 200))
    assert detector.inspect()["synapses"] == size
    assert detector.process_many(a_stream(50)).raw_score[10:].mean() < 0.4


def test_sequence_is_predicted_several_records_ahead():
    cycle = np.array([1.0, 5.0, 9.0, 5.0, 2.0])
    detector = HTMDetector(100, value_range=(0.0, 10.0), prediction_steps=(1, 2, 4))
    result = detector.process_many(np.tile(cycle, 300))
    off = np.abs(result.predicted[1000:, 0] - np.tile(cycle, 100))
    assert np.quantile(off, 0.95) < 0.3
    for steps in (1, 2, 4):
        forecast = detector.predict_one(steps)
        assert forecast.mean == pytest.approx(cycle[(steps - 1) % 5], abs=0.3)
        assert forecast.most_likely == pytest.approx(cycle[(steps - 1) % 5], abs=0.1)
        assert forecast.probabilities.sum() == pytest.approx(1.0)
        assert (np.diff(forecast.values) >= 0).all()


def test_context_tells_the_same_value_apart():
    detector = HTMDetector(100, value_range=(0.0, 10.0), cells_per_column=8)
    detector.process_many(np.tile([1.0, 5.0, 9.0, 5.0], 400))
    detector.process_one(1.0)
    detector.process_one(5.0)
    assert detector.predict_one().mean == pytest.approx(9.0, abs=1.0)
    detector.process_one(9.0)
    detector.process_one(5.0)
    assert detector.predict_one().mean == pytest.approx(1.0, abs=1.0)


def test_one_cell_of_each_active_column_wins():
    detector = HTMDetector(100, **SMALL)
    several = False
    for x in a_stream(1500).tolist():
        detector.process_one(x)
        seen = detector.inspect()
        assert [cell // 16 for cell in seen["winner_cells"]] == seen["active_columns"]
        several |= len(seen["active_columns"]) < len(seen["active_cells"]) < 8 * 16
    assert several


def test_unknown_number_of_steps_is_refused():
    detector = HTMDetector(10, **SMALL).fit(np.arange(30.0).reshape(-1, 1))
    with pytest.raises(ParameterError, match=r"one of prediction_steps=\[1\], got 3; name it"):
        detector.predict_one(3)
    with pytest.raises(ParameterError, match="field must be from 0 to 0, got 1"):
        detector.predict_one(1, field=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_columns": 100}, "n_columns must be a multiple of 64, got 100"),
        ({"n_columns": 4096, "cells_per_column": 32}, "must be at most 65536, got 4096"),
        ({"n_columns": 64, "n_active_columns": 65}, "must be at most n_columns=64, got 65"),
        ({"n_new_synapses": 20, "max_synapses": 10}, "at most max_synapses=10, got 20"),
        ({"value_range": (3.0, 1.0)}, "two finite numbers, the smaller first, got"),
        ({"prediction_steps": (0,)}, "at most 16 whole numbers from 1 to 1000, got"),
        ({"prediction_steps": (1.5,)}, r"whole numbers from 1 to 1000, got \(1.5,\)"),
        ({"value_range": (1.0, 2.0, 3.0)}, "two finite numbers, the smaller first, got"),
    ],
)
def test_sizes_that_do_not_fit_are_named(parameters, message):
    with pytest.raises(ParameterError, match=message):
        HTMDetector(**parameters).fit([[1.0], [2.0]])


@pytest.mark.parametrize("value", [0.0, -3.5, 1e300])
def test_constant_stream_never_alarms(value):
    result = HTMDetector(100, **SMALL).process_many(np.full(1500, value))
    assert not result.is_anomaly.any()
    assert result.raw_score[1000:].max() == 0.0


def test_odd_values_keep_everything_finite_and_are_counted():
    x = a_stream(600)
    x[300], x[310], x[320], x[330] = math.nan, math.inf, 1e300, -1e308
    detector = HTMDetector(100, **SMALL)
    result = detector.process_many(x, np.r_[np.arange(599.0), 5.0])
    assert np.isfinite(result.likelihood).all()
    assert np.isfinite(result.predicted[331:]).all()
    assert result.likelihood[300] == 0.0
    assert result.is_anomaly[310]
    assert result.is_anomaly[320]
    counts = detector.counts_
    assert (counts.missing, counts.infinite, counts.backward) == (1, 1, 1)


def test_adaptive_range_follows_a_change_of_scale():
    x = a_stream(4000)
    x[1000:] = 100.0 + 40.0 * x[1000:]
    options = {**SMALL, "range_period": 300}
    fixed = HTMDetector(200, **options)
    adaptive = HTMDetector(200, value_range="adaptive", **options)
    errors = []
    for detector in (fixed, adaptive):
        result = detector.process_many(x)
        errors.append(np.abs(result.predicted[3000:, 0] - x[3000:]).mean())
    assert errors[1] < 0.5 * errors[0]


def test_memory_stops_growing_and_snapshots_are_small():
    rng = np.random.default_rng(0)
    detector = HTMDetector(100, cells_per_column=4, max_segments=2000)
    sizes = []
    for _ in range(4):
        detector.process_many(rng.uniform(0, 10, 1500))
        sizes.append(detector.memory_bytes_)
    assert sizes[-1] <= 1.1 * sizes[-2]
    assert sizes[-1] <= 10e6
    assert len(pickle.dumps(detector)) <= 3e6


def test_joint_fields_learn_one_sequence():
    rng = np.random.default_rng(0)
    a = a_stream(3000)
    X = pd.DataFrame({"a": a, "b": np.roll(a, 1) + 0.1 * rng.normal(size=3000)})
    X.loc[2500, "b"] = 40.0
    result = HTMDetector(300).process_many(X)
    assert result.is_anomaly[2500]
    assert result.shares[2500].argmax() == 1
    assert result.raw_score[2000:2500].mean() < 0.4


def test_many_threads_on_one_memory_lose_no_record():
    detector = HTMDetector(50, **SMALL)

    def work():
        for value in a_stream(200).tolist():
            detector.process_one(value)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert detector.counts_.records == 800


@pytest.mark.parametrize(
    ("detector", "n"), [(HTMDetector(50, **SMALL), 20_000), (TileDetector(50), 200_000)]
)
def test_blocks_let_other_threads_run(detector, n):
    values, turns, seen = a_stream(n), [0], []
    scores, raw = np.empty(n), np.empty(n)
    process = detector.fit(values[:100].reshape(-1, 1))._stream.process

    def work():
        seen.append(turns[0])
        process(values, None, 1, scores, raw, None, None)
        seen.append(turns[0])

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=work)
    sys.setswitchinterval(100.0)  # now a thread runs until it lets others
    try:
        thread.start()
        while thread.is_alive():
            turns[0] += 1
            time.sleep(0)
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert seen[1] > seen[0]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_snapshot_is_refused_or_survives(data):
    whole = snapshot()
    bad = bytearray(whole)
    if data.draw(st.booleans()):
        bad = bad[: data.draw(st.integers(0, len(bad) - 1))]
    else:
        # the header and the segments; what lies between are permanences and weights
        place = st.one_of(st.integers(0, 900), st.integers(len(bad) - 6000, len(bad) - 1))
        for at in data.draw(st.lists(place, min_size=1, max_size=4)):
            bad[at] = data.draw(st.integers(0, 255))
    try:
        stream = _core.restore_htm(bytes(bad))
    except (ValueError, MemoryError):
        return
    if len(stream.to_bytes()) == len(whole):
        for value in (1.0, 5.0, 9.0, 2.0):
            stream.one(value, math.nan, 1)


def snapshot(_kept=[]):  # noqa: B006
    if not _kept:
        detector = HTMDetector(50, max_segments=40, **SMALL)
        detector.process_many(a_stream(300))
        _kept.append(detector._stream.to_bytes())
    return _kept[0]


def test_records_of_the_wrong_width_are_refused():
    detector = HTMDetector(10, **SMALL).fit(np.zeros((5, 2)))
    with pytest.raises(DataError, match="has 2 values, got 1"):
        detector.process_many(np.zeros(3))
    with pytest.raises(ValueError, match="has 2 values, got 1"):
        detector.process_one(1.0)
