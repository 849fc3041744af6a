"""The htm.core backend: refused with the install line, or driven as its interface asks.

The library is on no package index, so a stand-in with the same interface takes its
place here: every column listens to one bit, and the memory expects what it saw last.
"""

from __future__ import annotations

import math
import pickle
import sys
import types

import numpy as np
import pytest

from anomaly.errors import MissingExtraError
from anomaly.htm import HTMDetector
from anomaly.htm_core import Judge
from tests.stream_oracles import Alarm, Likelihood, Range


class SDR:
    def __init__(self, size):
        self.size = size[0] if isinstance(size, tuple | list) else size
        self.sparse = np.array([], dtype=int)

    def concatenate(self, parts):
        offsets = np.cumsum([0, *(part.size for part in parts)])
        assert offsets[-1] == self.size
        self.sparse = np.concatenate(
            [p.sparse + o for p, o in zip(parts, offsets[:-1], strict=True)]
        )
        return self


class RDSE_Parameters:
    pass


class RDSE:
    def __init__(self, settings):
        self.settings = settings

    def encode(self, value):
        made = SDR(self.settings.size)
        bucket = math.floor(value / self.settings.resolution)
        made.sparse = (bucket + np.arange(self.settings.activeBits)) % self.settings.size
        return made


class DateEncoder:
    size = 24

    def __init__(self, **clock):
        assert set(clock) <= {"timeOfDay", "dayOfWeek", "weekend"}

    def encode(self, moment):
        made = SDR(24)
        made.sparse = np.array([moment.hour])
        return made


class SpatialPooler:
    def __init__(self, **settings):
        assert settings["potentialRadius"] == settings["inputDimensions"][0]
        self.columns = settings["columnDimensions"]

    def getColumnDimensions(self):
        return self.columns

    def compute(self, encoding, learn, columns):
        columns.sparse = np.unique(encoding.sparse % self.columns[0])


class TemporalMemory:
    def __init__(self, **settings):
        self.cells = settings["cellsPerColumn"]
        self.known = np.array([], dtype=int)
        self.anomaly = 0.0

    def activateDendrites(self, learn):
        assert learn is False

    def getPredictiveCells(self):
        made = SDR(10**6)
        made.sparse = self.known * self.cells
        return made

    def compute(self, columns, learn):
        self.anomaly = 1.0 - float(np.isin(columns.sparse, self.known).mean())
        if learn:
            self.known = np.asarray(columns.sparse)


@pytest.fixture
def stand_in(monkeypatch):
    places = {
        "htm": {},
        "htm.bindings": {},
        "htm.encoders": {},
        "htm.bindings.sdr": {"SDR": SDR},
        "htm.bindings.algorithms": {
            "SpatialPooler": SpatialPooler,
            "TemporalMemory": TemporalMemory,
        },
        "htm.encoders.rdse": {"RDSE": RDSE, "RDSE_Parameters": RDSE_Parameters},
        "htm.encoders.date": {"DateEncoder": DateEncoder},
    }
    for name, content in places.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)


def a_stream(n=700):
    x = 5.0 + np.sin(np.arange(n) / 20.0)
    x[500:505] = 40.0
    x[600] = math.nan
    x[610] = math.inf
    return x


def test_missing_library_is_refused_with_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "htm", None)
    monkeypatch.setitem(sys.modules, "htm.bindings", None)
    with pytest.raises(MissingExtraError, match=r"run: pip install 'anomaly\[htm\]'"):
        HTMDetector(backend="htm.core").process_one(1.0)


def test_judge_equals_the_steps_of_the_oracle():
    rng = np.random.default_rng(0)
    options = {"learning": 60, "window": 10, "lag": 50, "skip": 48, "range_block": 0}
    options |= {"mean_floor": 0.01, "variance_floor": 0.001, "horizon": 4000}
    options |= {"deviation_scale": 4.5, "range_scale": 0.05, "rest": 52}
    options |= {"fatigue": 0.1, "fatigue_period": 3000}
    judge = Judge(options)
    past, seen = Likelihood(0.01, 0.001, 4000), Range(None)
    alarm = Alarm(4.5, 0.05, 0.1, 3000, 52)
    raws, means = [], []
    for t in range(800):
        raw = float(rng.random() < (0.9 if 400 < t < 420 else 0.1))
        x = float(rng.normal())
        raws.append(raw)
        means.append(np.mean(raws[-10:]))
        expected = alarm.score(past.deviation(means[-1]), seen.novelty(x)) if t >= 60 else 0.0
        assert judge.score(raw, (x,), keep=True) == pytest.approx(expected, abs=1e-12)
        if t - 50 >= 48:
            past.learn(means[t - 50])
        seen.learn(x)
        judge.learn(raw, (x,))
    assert judge.alarms > 0


def test_special_records_are_treated_as_by_the_native_backend(stand_in):
    result = HTMDetector(100, backend="htm.core").process_many(a_stream())
    assert result.is_anomaly[500]
    assert result.is_anomaly[610]
    assert result.likelihood[600] == 0.0
    assert np.isfinite(result.likelihood).all()


def test_backend_pickles_peeks_and_counts(stand_in):
    x = a_stream()
    whole = HTMDetector(100, backend="htm.core", time_of_day=True)
    broken = HTMDetector(100, backend="htm.core", time_of_day=True)
    for i, value in enumerate(x.tolist()):
        if i % 90 == 50:
            broken = pickle.loads(pickle.dumps(broken))
            assert broken.score_one(value, 60.0 * i) == broken.score_one(value, 60.0 * i)
        answers = [detector.process_one(value, 60.0 * i) for detector in (whole, broken)]
        assert answers[0] == answers[1] or math.isnan(value)
    assert whole.counts_.missing == whole.counts_.infinite == 1
    assert whole.is_learning_period_over_


def test_known_range_is_live_from_the_first_record(stand_in):
    detector = HTMDetector(10, backend="htm.core", value_range=(0.0, 10.0))
    assert detector.process_one(1.0).raw_score == 1.0
    assert detector.process_one(1.0).raw_score == 0.0
