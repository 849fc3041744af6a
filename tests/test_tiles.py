"""The native context tiles answer bit for bit like their slow, obvious twin."""

from __future__ import annotations

import copy
import json
import math
import pickle
import threading
from datetime import date

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError

from anomaly import _core
from anomaly.errors import DataError, ParameterError
from anomaly.streaming import seconds_of, seconds_of_many
from anomaly.tiles import TileDetector
from tests.stream_oracles import OracleTiles, oracle_asinh


def a_stream(n, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    x = 10 * np.sin(t / 12.0) + rng.normal(size=n)
    x[n // 2 : n // 2 + 12] += 25.0
    x[3 * n // 4 :] *= 0.2
    return x, 1.4e9 + 300.0 * t


def both(x, seconds, **options):
    fast = TileDetector(**options).process_many(x, seconds)
    slow = OracleTiles(**options)
    pairs = [slow.process(v, s) for v, s in zip(x, seconds, strict=True)]
    return fast, np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


@pytest.mark.parametrize("learning_period", [1, 40, 200])
def test_scores_equal_the_oracle_bit_for_bit(learning_period):
    x, seconds = a_stream(900)
    fast, scores, raw = both(x, seconds, learning_period=learning_period)
    assert fast.likelihood.tobytes() == scores.tobytes()
    assert fast.raw_score.tobytes() == raw.tobytes()
    assert scores.max() >= 0.5


@pytest.mark.parametrize("short", [1, 40, 240])
def test_short_learning_period_ends_as_a_long_one(short):
    x, seconds = a_stream(900)
    early, late = TileDetector(short), TileDetector(300)
    raw = [d.process_many(x, seconds).raw_score[300:] for d in (early, late)]
    assert raw[0].tobytes() == raw[1].tobytes()
    assert early.is_learning_period_over_


def test_scores_of_a_short_learning_period_begin_with_it():
    x = np.tile([0.0, 1.0, 4.0, 1.0], 100)
    detector = TileDetector(40)
    detector.process_many(x[:60])
    assert detector.score_one(9.0) >= 0.5


@settings(max_examples=25, deadline=None)
@given(
    x=st.lists(
        st.one_of(
            st.floats(-50, 50),
            st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e308, 0.0, 1e-320]),
        ),
        min_size=1,
        max_size=80,
    ),
    learning_period=st.integers(1, 30),
    settling_period=st.integers(0, 60),
    lag=st.integers(0, 12),
    n_tilings=st.integers(1, 14),
    power=st.sampled_from([1, 3, 8]),
    range_period=st.sampled_from([None, 7]),
    seed=st.integers(0, 2**31),
)
def test_any_stream_equals_the_oracle(
    x, learning_period, settling_period, lag, n_tilings, power, range_period, seed
):
    seconds = [1e9 + 1800.0 * i for i in range(len(x))]
    fast, scores, raw = both(
        x,
        seconds,
        learning_period=learning_period,
        settling_period=settling_period,
        likelihood_lag=lag,
        n_tilings=n_tilings,
        power=power,
        range_period=range_period,
        random_state=seed,
    )
    assert fast.likelihood.tobytes() == scores.tobytes()
    assert fast.raw_score.tobytes() == raw.tobytes()
    assert np.isfinite(scores).all()


@given(st.floats(allow_nan=False))
def test_portable_asinh_is_asinh(x):
    exact = math.asinh(max(min(x, 1.7976931348623157e308), -1.7976931348623157e308))
    assert oracle_asinh(x) == pytest.approx(exact, rel=4 * 2.3e-16, abs=1e-323)


def test_one_by_one_in_blocks_and_through_pickles_is_the_same_stream():
    x, seconds = a_stream(700)
    whole = TileDetector(100).process_many(x, seconds)
    single = TileDetector(100)
    for i, (value, second) in enumerate(zip(x.tolist(), seconds.tolist(), strict=True)):
        if i % 50 == 7:
            single = pickle.loads(pickle.dumps(single))
        if i % 50 == 9:
            single = copy.deepcopy(single)
        answer = single.process_one(value, second)
        assert answer.likelihood == whole.likelihood[i]
        assert answer.raw_score == whole.raw_score[i]
        assert answer.predicted == whole.predicted[i, 0]
        assert answer.is_anomaly == whole.is_anomaly[i]
    blocks = TileDetector(100)
    parts = [blocks.process_many(x[i : i + 33], seconds[i : i + 33]) for i in range(0, len(x), 33)]
    assert np.concatenate([p.likelihood for p in parts]).tobytes() == whole.likelihood.tobytes()


@pytest.mark.parametrize("at", [10, 99, 100, 101, 350])
def test_scoring_leaves_no_trace(at):
    x, seconds = a_stream(400)
    detector = TileDetector(100)
    detector.process_many(x[:at], seconds[:at])
    before = detector._stream.to_bytes()
    expected = pickle.loads(pickle.dumps(detector)).process_one(x[at], seconds[at]).likelihood
    assert detector.score_one(x[at], seconds[at]) == expected
    assert detector.score_one(1e6) >= 0.0
    assert detector._stream.to_bytes() == before


def test_frozen_detector_moves_on_in_time_but_learns_nothing():
    x, seconds = a_stream(600)
    learning, frozen = TileDetector(100), TileDetector(100)
    for detector in (learning, frozen):
        detector.process_many(x[:250], seconds[:250])
    frozen.set_params(learning=False)
    after_learning = [learning.process_one(500.0).raw_score for _ in range(300)]
    after_frozen = [frozen.process_one(500.0).raw_score for _ in range(300)]
    assert after_learning[-1] == 0.0
    assert min(after_frozen) > 0.5


def test_learnt_streams_continue_in_predict_without_change():
    x, seconds = a_stream(500)
    frame = pd.DataFrame({"v": x}, index=pd.to_datetime(seconds, unit="s"))
    whole = TileDetector(100).process_many(x, seconds)
    fitted = TileDetector(100).fit(frame[:300])
    for _ in range(2):
        proba = fitted.predict_proba(frame[300:])[:, 1]
        assert proba.tobytes() == whole.likelihood[300:].tobytes()
        assert (fitted.predict(frame[300:]) == whole.is_anomaly[300:]).all()
    fitted.partial_fit(frame[300:400])
    assert (fitted.predict(frame[400:]) == whole.is_anomaly[400:]).all()


def test_missing_and_infinite_values_are_counted_and_not_learnt():
    x, _ = a_stream(400)
    clean = TileDetector(100)
    clean.process_many(x)
    dirty = TileDetector(100)
    for i, value in enumerate(x):
        if i % 10 == 5:
            answer = dirty.process_one(math.nan)
            assert answer.likelihood == 0.0
            assert not answer.is_anomaly
        dirty.process_one(value)
    assert dirty.counts_.missing == 40
    assert dirty.counts_.records == 440
    assert dirty.score_one(3.0) == clean.score_one(3.0)
    answer = dirty.process_one(math.inf)
    assert answer.is_anomaly
    assert answer.likelihood == 0.8
    assert dirty.counts_.infinite == 1


def test_infinite_value_alarms_in_the_learning_period_too():
    detector = TileDetector(100)
    assert detector.process_one(-math.inf).is_anomaly
    assert not detector.process_one(1.0).is_anomaly


def test_clock_running_backward_is_counted_and_taken_in_order_of_arrival():
    detector = TileDetector(10)
    for second in [0.0, 60.0, 60.0, 30.0, 90.0]:
        detector.process_one(1.0, second)
    assert detector.counts_.repeated == 1
    assert detector.counts_.backward == 1
    assert detector.counts_.records == 5


@pytest.mark.parametrize("value", [0.0, 7.5, -1e300, 1e308])
def test_constant_stream_never_alarms(value):
    result = TileDetector(100).process_many(np.full(3000, value))
    assert not result.is_anomaly.any()
    assert np.isfinite(result.likelihood).all()


def test_huge_value_in_a_tame_stream_alarms_and_all_stays_finite():
    x, _ = a_stream(600)
    x[:] = np.sin(np.arange(600) / 9.0)
    x[500] = 1e300
    result = TileDetector(100).process_many(x)
    assert result.is_anomaly[500]
    assert np.isfinite(result.likelihood).all()


def test_state_is_small_and_does_not_grow():
    x, seconds = a_stream(3000)
    detector = TileDetector(600)
    detector.process_many(x[:1000], seconds[:1000])
    early = detector.memory_bytes_
    detector.process_many(x, seconds)
    assert detector.memory_bytes_ == early <= 40 * 1024
    assert len(pickle.dumps(detector)) <= 40 * 1024


def test_fields_tell_their_share():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 3))
    X[1200, 1] = 40.0
    result = TileDetector(300).process_many(pd.DataFrame(X, columns=["a", "b", "c"]))
    assert result.fields == ("a", "b", "c")
    assert result.is_anomaly[1200]
    assert result.shares[1200].argmax() == 1
    assert result.shares[1200].sum() == pytest.approx(1.0)


def test_pairs_of_fields_find_what_single_fields_cannot():
    rng = np.random.default_rng(0)
    a = rng.normal(size=4000)
    X = np.column_stack([a, a + 0.05 * rng.normal(size=4000)])
    X[3500:3520, 1] *= -1.0  # each field alone looks as always
    with_pairs = TileDetector(600).process_many(X).likelihood
    without = TileDetector(600, max_pairs=0).process_many(X).likelihood
    assert with_pairs[3500:3540].max() >= 0.5
    assert without[3500:3540].max() < 0.5


def test_records_by_name_and_missing_fields():
    detector = TileDetector(5)
    for i in range(20):
        record = {"a": float(i % 3), "b": 2.0}
        if i % 4 == 1:
            del record["b"]
        answer = detector.process_one(record if i else {"a": 0.0, "b": 2.0})
        assert len(answer.value) == 2
    assert detector.predict_one() == (1.0, 2.0)
    with pytest.raises(DataError, match="unknown field 'c'; this stream has"):
        detector.process_one({"c": 1.0})
    with pytest.raises(DataError, match="has 2 values, got 3"):
        detector.process_one([1.0, 2.0, 3.0])


def test_many_threads_on_one_stream_lose_no_record():
    detector = TileDetector(50)
    x, _ = a_stream(500)

    def work():
        for value in x.tolist():
            detector.process_one(value)
        detector.process_many(x)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert detector.counts_.records == 4000


@pytest.mark.parametrize("cut", [0, 8, 100, -1])
def test_damaged_snapshot_is_refused(cut):
    detector = TileDetector(10).fit(np.arange(30.0).reshape(-1, 1))
    whole = detector._stream.to_bytes()
    assert _core.restore_tiles(whole).to_bytes() == whole
    with pytest.raises(ValueError, match="not a snapshot of a tiles stream"):
        _core.restore_tiles(whole[:cut])
    with pytest.raises(ValueError, match="not a snapshot of a tiles stream"):
        _core.restore_tiles(b"x" * len(whole))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.integers(0, 255))
def test_snapshot_with_any_byte_changed_is_refused_or_survives(at, byte):
    detector = TileDetector(10, n_bits=64).fit(np.arange(30.0).reshape(-1, 1))
    bad = bytearray(detector._stream.to_bytes())
    bad[at] = byte
    try:
        stream = _core.restore_tiles(bytes(bad))
    except ValueError:
        return
    stream.one(3.0, math.nan, 1)


@pytest.mark.parametrize(
    ("timestamp", "seconds"),
    [
        (None, math.nan),
        (12.5, 12.5),
        ("2016-12-1 0:00:10", 1480550410.0),
        ("2016-12-01T00:00:10+05:00", 1480550410.0),
        (pd.Timestamp("2016-12-01 00:00:10"), 1480550410.0),
        (np.datetime64("2016-12-01T00:00:10"), 1480550410.0),
        (pd.NaT, math.nan),
    ],
)
def test_timestamps_of_every_kind_are_wall_clock_seconds(timestamp, seconds):
    assert seconds_of(timestamp) == pytest.approx(seconds, nan_ok=True)
    assert seconds_of_many([timestamp])[0] == pytest.approx(seconds, nan_ok=True)


def test_wrong_timestamp_is_named():
    with pytest.raises(DataError, match=r"date and time such as .* got 'noon'"):
        TileDetector().process_one(1.0, "noon")


def test_wrong_record_is_named():
    with pytest.raises(DataError, match="must be a number, a sequence of numbers or a mapping"):
        TileDetector().process_one("high")


@pytest.mark.parametrize("value", ["high", [1.0], 10**400])
def test_wrong_value_in_a_record_is_named(value):
    with pytest.raises(DataError, match="a value must be a number, got"):
        TileDetector().process_one([1.0, value])


@pytest.mark.parametrize("timestamp", [[1], 10**400, date(2024, 5, 1)])
def test_what_is_no_timestamp_is_named(timestamp):
    with pytest.raises(DataError, match="must be a number of seconds or a date and time, got"):
        TileDetector().process_one(1.0, timestamp)


def test_limits_are_refused_by_name():
    with pytest.raises(ParameterError, match="at most 4096 fields fit one detector, got 5000"):
        TileDetector().fit(np.zeros((2, 5000)))
    with pytest.raises(ValueError, match="'range_period' parameter of TileDetector"):
        TileDetector(range_period=10**30).process_one(1.0)
    with pytest.raises(NotFittedError):
        TileDetector().predict_one()


def test_real_series_find_known_anomalies(shared_data):
    frame = pd.read_csv(shared_data / "nab" / "realKnownCause" / "nyc_taxi.csv")
    windows = json.loads((shared_data / "nab" / "windows.json").read_text())
    result = TileDetector(750).process_many(frame["value"], frame["timestamp"])
    time = pd.to_datetime(frame["timestamp"])
    found = [
        result.is_anomaly[time.between(*window)].any()
        for window in windows["realKnownCause/nyc_taxi.csv"]
    ]
    assert sum(found) >= 3
    assert result.is_anomaly.sum() < 60
