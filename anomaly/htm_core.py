"""The pipeline of `HTMDetector` on the encoders and algorithms of htm.core."""

from __future__ import annotations

import importlib
import math
import pickle
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import MissingExtraError
from anomaly.streaming import FROZEN, LEARN, PEEK, moment_of

__all__ = ["HtmCoreStream"]


def libraries() -> dict[str, Any]:
    """The four modules of htm.core, or an error with the install line."""
    names = ("htm.bindings.sdr", "htm.bindings.algorithms", "htm.encoders.rdse")
    try:
        modules = [importlib.import_module(name) for name in (*names, "htm.encoders.date")]
    except ImportError as error:
        raise MissingExtraError(
            "htm.core is not installed; run: pip install 'anomaly[htm]' (it is on no package "
            "index and is built from source)"
        ) from error
    return dict(zip(("sdr", "algorithms", "rdse", "date"), modules, strict=True))


@dataclass
class Judge:
    """Steps from a raw score to a likelihood, as `libdetect/likelihood.c` takes them."""

    options: dict[str, Any]
    recent: deque[float] = field(default_factory=deque)
    lagged: deque[float] = field(default_factory=deque)
    values: deque[tuple[float, ...]] = field(default_factory=deque)
    mean: float = 0.0
    variance: float = 0.0
    n: int = 0
    t: int = 0
    age: float = math.inf
    alarms: float = 0.0

    def score(self, raw: float | None, x: tuple[float, ...], keep: bool) -> float:
        """Likelihood of a record; ``keep`` moves the rest after an alarm on."""
        o = self.options
        e = max((self._outside(i, v) for i, v in enumerate(x)), default=0.0)
        if self.t < o["learning"]:
            return 0.8 if math.isinf(e) else 0.0
        z = 0.0 if raw is None or not self.n else self._deviation(raw)
        s1 = min(z / o["deviation_scale"], 4.0)
        s2 = min(e / o["range_scale"], 4.0)
        g = s1 / (1.0 + o["fatigue"] * self.alarms)
        age = self.age + 1
        resting = age <= o["rest"]
        if resting:
            g = 0.5 * min(g, 1.0)
        y = max(g, s2)
        if keep:
            self.alarms = self.alarms * math.exp(-1.0 / o["fatigue_period"]) + (y >= 1.0)
            self.age = 0 if y >= 1.0 or (resting and s1 >= 1.0) else age
        return y / (1.0 + y)

    def learn(self, raw: float, x: tuple[float, ...]) -> None:
        """Make a record part of the past."""
        o = self.options
        self.recent.append(raw)
        if len(self.recent) > o["window"]:
            self.recent.popleft()
        self.lagged.append(float(np.mean(self.recent)))
        if self.t - o["lag"] >= o["skip"]:
            self._learn_past(self.lagged[0])
        if len(self.lagged) > o["lag"]:
            self.lagged.popleft()
        self.values.append(x)
        if o["range_block"] and len(self.values) > 2 * o["range_block"]:
            self.values.popleft()
        self.t += 1

    def _learn_past(self, a: float) -> None:
        self.n += 1
        rate = 1.0 / min(self.n, self.options["horizon"])
        delta = a - self.mean
        self.mean += rate * delta
        self.variance = (1.0 - rate) * (self.variance + rate * delta * delta)

    def _deviation(self, raw: float) -> float:
        o = self.options
        window = [*self.recent, raw][-o["window"] :]
        a = float(np.mean(window)) - max(self.mean, o["mean_floor"])
        return min(max(a / math.sqrt(max(self.variance, o["variance_floor"])), 0.0), 15.0)

    def _outside(self, i: int, x: float) -> float:
        if math.isnan(x):
            return 0.0
        if math.isinf(x):
            return math.inf
        column = [v[i] for v in self.values if math.isfinite(v[i])]
        low, high = (min(column), max(column)) if column else (x, x)
        return max(x - high, low - x, 0.0) / (high - low) if high > low else 0.0


class HtmCoreStream:
    """A stream with the interface of the native ones; one record after the other.

    The range of the values must be known or is that of the first records, as in
    the native kernel. What is expected is the last value.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.library = libraries()
        self.judge = Judge(options)
        self.buffer: list[tuple[tuple[float, ...], float]] | None = (
            [] if options["range_mode"] else None
        )
        self.last: tuple[float, ...] | None = None
        self.counts = dict.fromkeys(("records", "missing", "infinite", "repeated", "backward"), 0)
        self.clock = -math.inf
        self._lock = threading.Lock()
        if self.buffer is None:
            self._build([(options["low"], options["high"])] * options["n_fields"])

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = dict(self.__dict__)
            for name in ("library", "_lock"):
                del state[name]
            return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, library=libraries(), _lock=threading.Lock())

    def to_bytes(self) -> bytes:
        """Snapshot of the whole state, by the pickling of htm.core."""
        return pickle.dumps(self)

    def info(self) -> dict[str, Any]:
        """Counts of records and readiness; the memory is the size of a snapshot."""
        ready = self.judge.t >= self.options["learning"]
        return {**self.counts, "memory": len(self.to_bytes()), "ready": ready}

    def one(self, value: float, seconds: float, mode: int) -> tuple[float, float, float]:
        """Score, raw score and expected value of one record of one field."""
        with self._lock:
            expected = self.last[0] if self.last else value
            return (*self._record((value,), seconds, mode), expected)

    def process(
        self,
        values: NDArray[np.float64],
        seconds: NDArray[np.float64] | None,
        mode: int,
        scores: NDArray[np.float64],
        raw: NDArray[np.float64],
        strengths: NDArray[np.float64],
        expected: NDArray[np.float64],
    ) -> None:
        """As the native streams do; the strength of each field is that of the record."""
        rows = values.reshape(len(scores), -1)
        with self._lock:
            for i, row in enumerate(rows.tolist()):
                expected[i] = self.last if self.last else row
                now = math.nan if seconds is None else float(seconds[i])
                scores[i], raw[i] = self._record(tuple(row), now, mode)
                strengths[i] = scores[i] / (1.0 - scores[i])

    def _record(self, x: tuple[float, ...], seconds: float, mode: int) -> tuple[float, float]:
        if mode != PEEK:
            self._count(x, seconds)
        if all(map(math.isnan, x)):
            return 0.0, 0.0
        if self.buffer is not None:
            return self._wait(x, seconds, mode), 0.0
        return self._step(x, seconds, mode)

    def _count(self, x: tuple[float, ...], seconds: float) -> None:
        self.counts["records"] += 1
        self.counts["missing"] += all(map(math.isnan, x))
        self.counts["infinite"] += any(map(math.isinf, x))
        if math.isfinite(seconds):
            self.counts["repeated"] += seconds == self.clock
            self.counts["backward"] += seconds < self.clock
            self.clock = seconds

    def _wait(self, x: tuple[float, ...], seconds: float, mode: int) -> float:
        score = 0.8 if any(map(math.isinf, x)) else 0.0
        if mode != LEARN or not any(map(math.isfinite, x)):
            return score
        assert self.buffer is not None
        self.buffer.append((x, seconds))
        self.last = x
        if len(self.buffer) == self.options["learning"]:
            waiting, self.buffer = self.buffer, None
            table = np.array([values for values, _ in waiting])
            table[~np.isfinite(table)] = np.nan
            self._build([_range_of(column[~np.isnan(column)]) for column in table.T])
            for values, second in waiting:
                self._step(values, second, LEARN)
        return score

    def _step(self, x: tuple[float, ...], seconds: float, mode: int) -> tuple[float, float]:
        if not any(map(math.isfinite, x)):
            return self.judge.score(None, x, mode != PEEK), 0.0
        columns = self.library["sdr"].SDR(self.pooler.getColumnDimensions())
        self.pooler.compute(self._encode(x, seconds), mode == LEARN, columns)
        raw = self._raw(columns) if mode == PEEK else self._activate(columns, mode)
        score = self.judge.score(raw, x, mode != PEEK)
        if mode != PEEK:
            self.last = x
        if mode == LEARN:
            self.judge.learn(raw, x)
        return score, raw

    def _activate(self, columns: Any, mode: int) -> float:
        self.memory.compute(columns, learn=mode != FROZEN)
        return float(self.memory.anomaly)

    def _raw(self, columns: Any) -> float:
        """Share of the columns without a predicted cell, before anything is activated."""
        self.memory.activateDendrites(False)
        cells = np.asarray(self.memory.getPredictiveCells().sparse)
        foreseen = np.unique(cells // self.options["cells"])
        return 1.0 - float(np.isin(np.asarray(columns.sparse), foreseen).mean())

    def _encode(self, x: tuple[float, ...], seconds: float) -> Any:
        sdr = self.library["sdr"].SDR
        parts = [
            encoder.encode(value) if math.isfinite(value) else sdr(self.options["bits"])
            for encoder, value in zip(self.encoders, x, strict=True)
        ]
        if self.dates is not None:
            known = math.isfinite(seconds)
            parts.append(self.dates.encode(moment_of(seconds)) if known else sdr(self.dates.size))
        return parts[0] if len(parts) == 1 else sdr(self.width).concatenate(parts)

    def _build(self, ranges: list[tuple[float, float]]) -> None:
        o, algorithms = self.options, self.library["algorithms"]
        seed = o["seed"] % (2**31 - 1) + 1
        self.encoders = []
        for number, (low, high) in enumerate(ranges):
            settings = self.library["rdse"].RDSE_Parameters()
            settings.size = o["bits"]
            settings.activeBits = o["active_bits"]
            settings.resolution = max((high - low) * 1.4 / o["steps"], 1e-9)
            settings.seed = seed + number
            self.encoders.append(self.library["rdse"].RDSE(settings))
        self.dates = None
        clock = {
            name: width
            for name, on, width in (
                ("timeOfDay", o["time_of_day"], (21, 5.25)),
                ("dayOfWeek", o["weekday"], 21),
                ("weekend", o["weekend"], 21),
            )
            if on
        }
        if clock:
            self.dates = self.library["date"].DateEncoder(**clock)
        self.width = o["bits"] * len(ranges) + (self.dates.size if self.dates else 0)
        one = 20_000
        self.pooler = algorithms.SpatialPooler(
            inputDimensions=(self.width,),
            columnDimensions=(o["columns"],),
            potentialPct=o["potential"] / one,
            potentialRadius=self.width,
            globalInhibition=True,
            localAreaDensity=o["active_columns"] / o["columns"],
            synPermInactiveDec=o["pool_decrement"] / one,
            synPermActiveInc=o["pool_increment"] / one,
            synPermConnected=o["pool_connected"] / one,
            boostStrength=0.0,
            wrapAround=True,
            seed=seed,
        )
        self.memory = algorithms.TemporalMemory(
            columnDimensions=(o["columns"],),
            cellsPerColumn=o["cells"],
            activationThreshold=o["activation"],
            initialPermanence=o["initial"] / one,
            connectedPermanence=o["connected"] / one,
            minThreshold=o["matching"],
            maxNewSynapseCount=o["new_synapses"],
            permanenceIncrement=o["increment"] / one,
            permanenceDecrement=o["decrement"] / one,
            predictedSegmentDecrement=o["punishment"] / one,
            maxSegmentsPerCell=o["max_segments_per_cell"],
            maxSynapsesPerSegment=o["max_synapses"],
            seed=seed,
        )


def _range_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """The larger of range and six standard deviations, about the middle."""
    if not len(values):
        return 0.0, 1.0
    middle = 0.5 * float(values.min()) + 0.5 * float(values.max())
    half = max(float(np.ptp(values)), 6.0 * float(values.std())) / 2.0
    return middle - half, middle + half
