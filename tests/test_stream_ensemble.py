"""Detectors that judge one stream together, and fields that are watched side by side."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from anomaly.errors import DataError, ParameterError
from anomaly.htm import HTMDetector, MultiHTMDetector
from anomaly.stream_ensemble import StreamEnsemble
from anomaly.tiles import TileDetector

SMALL = {"n_columns": 64, "n_active_columns": 8}


def a_stream(n=900):
    x = np.sin(np.arange(n) / 7.0)
    x[700:] += 3.0
    return x


def members():
    return [("a", TileDetector(100)), ("b", TileDetector(100, random_state=3))]


@pytest.mark.parametrize(("combine", "how"), [("mean", np.mean), ("maximum", np.max)])
def test_ensemble_equals_its_members_combined(combine, how):
    x = a_stream()
    alone = [clone(m).process_many(x).likelihood for _, m in members()]
    together = StreamEnsemble(members(), combine=combine).process_many(x)
    assert together.likelihood == pytest.approx(how(alone, axis=0))


def test_weights_weigh_the_mean_and_the_maximum():
    x = a_stream()
    first, second = (clone(m).process_many(x).likelihood for _, m in members())
    mean = StreamEnsemble(members(), combine="mean", weights=[3, 1]).process_many(x).likelihood
    assert mean == pytest.approx(0.75 * first + 0.25 * second)
    largest = StreamEnsemble(members(), weights=[4, 2]).process_many(x).likelihood
    assert largest == pytest.approx(np.maximum(first, 0.5 * second))


def test_default_members_alarm_where_the_tiles_do_and_where_htm_is_sure():
    x = a_stream(1500) + 0.1 * np.random.default_rng(0).normal(size=1500)
    together = StreamEnsemble().process_many(x)
    tiles = TileDetector().process_many(x).likelihood
    htm = HTMDetector(cells_per_column=1).process_many(x).likelihood
    assert together.likelihood == pytest.approx(np.maximum(tiles, 0.75 * htm))
    assert (together.strengths[:, 0] >= 1.0).any()
    assert together.is_anomaly[tiles >= 0.5].all()


def test_members_are_patterns_and_their_parameters_reachable():
    ensemble = StreamEnsemble(members())
    ensemble.set_params(a__learning_period=50)
    ensemble.process_many(a_stream())
    assert ensemble.get_params()["a__learning_period"] == 50
    assert ensemble.estimators[0][1]._stream is None


@pytest.mark.parametrize("make", [StreamEnsemble, lambda: MultiHTMDetector(**SMALL)])
def test_composite_streams_pickle_at_any_record(make):
    x = a_stream(300)
    whole, broken = make(), make()
    for i, value in enumerate(x.tolist()):
        if i % 60 == 10:
            broken = pickle.loads(pickle.dumps(broken))
        assert broken.process_one(value) == whole.process_one(value)


def test_wrong_members_and_weights_are_named():
    with pytest.raises(ParameterError, match=r"must be \(name, stream detector\) pairs"):
        StreamEnsemble([("a", 3)]).process_one(1.0)
    with pytest.raises(ParameterError, match="weights must be 2 numbers of 0 or more"):
        StreamEnsemble(members(), weights=[1.0]).process_one(1.0)
    for weights in ([np.nan, 1.0], [1.0, np.inf], ["a", "b"]):
        with pytest.raises(ParameterError, match="weights must be 2 numbers of 0 or more"):
            StreamEnsemble(members(), weights=weights).process_one(1.0)


def test_ensemble_predicts_what_its_first_member_does():
    alone = HTMDetector(100, prediction_steps=(1, 3), **SMALL)
    ensemble = StreamEnsemble([("htm", alone), ("tiles", TileDetector(100))])
    ensemble.process_many(a_stream())
    expected = HTMDetector(100, prediction_steps=(1, 3), **SMALL).fit(a_stream().reshape(-1, 1))
    assert ensemble.predict_one(3).mean == expected.predict_one(3).mean
    assert alone._stream is None


def test_pair_of_a_field_must_be_time_and_value():
    with pytest.raises(DataError, match=r"field 'A' must be a value or \(timestamp, value\)"):
        MultiHTMDetector(**SMALL).process_fields({"A": (1, 2, 3)})


def test_fields_equal_one_memory_each():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"A": a_stream(), "B": rng.normal(size=900)})
    detector = MultiHTMDetector(["A", "B"], learning_period=100, **SMALL)
    answers = [detector.process_fields(record) for record in frame.to_dict("records")]
    for name in frame:
        alone = HTMDetector(100, **SMALL).process_many(frame[name].to_numpy())
        assert [a.fields[name].likelihood for a in answers] == alone.likelihood.tolist()
        assert [a.fields[name].predicted for a in answers] == alone.predicted[:, 0].tolist()
    block = MultiHTMDetector(learning_period=100, **SMALL).process_many(frame)
    assert [a.likelihood for a in answers] == block.likelihood.tolist()
    assert block.fields == ("A", "B")


def test_missing_fields_and_own_time_stamps_are_taken():
    detector = MultiHTMDetector(["A", "B", "C"], learning_period=20, **SMALL)
    for t in range(60):
        record = {"A": ("2016-12-1 0:00:10", t % 3), "B": (60.0 * t, 2.0)}
        answer = detector.process_fields(record, timestamp=60.0 * t)
    assert np.isnan(answer.fields["C"].value)
    assert answer.fields["C"].likelihood == 0.0
    with pytest.raises(DataError, match="unknown field 'D'; this stream has"):
        detector.process_fields({"D": 1.0})


@pytest.mark.parametrize("joint", [False, True])
def test_culprit_has_the_largest_share(joint):
    detector = MultiHTMDetector(joint=joint, learning_period=100, **SMALL)
    for t in range(400):
        detector.process_fields({"A": t % 4, "B": t % 2})
    answer = detector.process_fields({"A": 1.0, "B": 90.0})
    assert answer.is_anomaly
    assert max(answer.shares, key=answer.shares.get) == "B"
    assert sum(answer.shares.values()) == pytest.approx(1.0)
    assert detector.predict_one(1, "A").probabilities.sum() == pytest.approx(1.0)


def test_other_parameters_reach_the_memories():
    detector = MultiHTMDetector(parameters={"time_of_day": True}, **SMALL)
    assert detector._memory().time_of_day
    with pytest.raises(ParameterError, match="parameters has no 'colour' in HTMDetector"):
        MultiHTMDetector(parameters={"colour": 1}, **SMALL).process_one(1.0)


def test_racing_first_records_start_one_stream():
    detector = StreamEnsemble(members())
    barrier = threading.Barrier(6)

    def work():
        barrier.wait()
        for value in range(50):
            detector.process_one(float(value))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert detector.counts_.records == 300
