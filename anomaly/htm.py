"""Hierarchical temporal memory: detectors that learn the sequences of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from operator import index
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly import _core
from anomaly.base import Interval, StrOptions
from anomaly.errors import DataError, ParameterError
from anomaly.htm_core import HtmCoreStream
from anomaly.streaming import (
    FROZEN,
    LEARN,
    ManyStreams,
    StreamDetector,
    StreamRecord,
    Timestamp,
    number_of,
    seconds_of,
)
from anomaly.tiles import TileDetector

__all__ = ["FieldsRecord", "Forecast", "HTMDetector", "MultiHTMDetector", "TileDetector"]

_ONE = 20_000  # permanence 1.0 in the native core


class Forecast(NamedTuple):
    """Distribution of a value to come.

    Attributes
    ----------
    mean : float
        Expected value.
    values : ndarray of shape (n_classes,)
        Values that can come, ascending.
    probabilities : ndarray of shape (n_classes,)
        Their probabilities, summing to 1.
    """

    mean: float
    values: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @property
    def most_likely(self) -> float:
        """The value of largest probability."""
        return float(self.values[self.probabilities.argmax()])


class HTMDetector(StreamDetector):
    """Find the unusual in a stream by whether the sequence so far predicted it.

    A value becomes a pattern of active bits, the pattern chooses columns, and
    cells in the columns learn which columns follow. The share of columns that
    came unpredicted is the raw score; its average over a few records against
    its own past, and a value outside the range of late, make the likelihood.
    After an alarm the detector rests.

    With several columns of ``X`` one memory learns their joint sequence.

    Parameters
    ----------
    learning_period : int, default=600
        Records that are learnt and not scored.
    settling_period : int, default=600
        A learning period that is much shorter (less than 80 %) only makes scores begin
        earlier: with this many records all is learnt anew, as if the learning period
        had been that long. 0 turns this off; it is off where the range is given and
        for htm.core.
    value_range : {"learnt", "adaptive"} or (float, float), default="learnt"
        Range of the values, for the encoder: known beforehand, the larger of
        range and six standard deviations of the learning period, or that and
        followed when it changes twofold.
    n_buckets : int, default=130
        Steps of the encoder over 1.4 times the range.
    n_bits, n_active_bits : int, default=400, 21
        Size of an encoded value.
    time_of_day, day_of_week, weekend : bool, default=False
        Encode the clock too.
    n_columns, n_active_columns : int, default=1024, 20
        Columns of the spatial pooler; their number is a multiple of 64.
    cells_per_column : int, default=16
        Cells with which a column tells contexts apart, 1 to 32.
    potential : float, default=0.8
        Share of the bits that a column can connect to.
    pool_connected, pool_increment, pool_decrement : float
        Permanence of a connection of the pooler, and its changes.
    activation_threshold, matching_threshold : int, default=10, 7
        Connected synapses that predict, and synapses that are learnt further.
    n_new_synapses, max_synapses : int, default=16, 32
        Synapses a segment aims at, and holds at most.
    initial_permanence, connected_permanence : float, default=0.24, 0.5
        Permanence of a new synapse, and from which it counts.
    increment, decrement, punishment : float, default=0.04, 0.008, 0.001
        Changes of permanence after right and wrong predictions.
    max_segments : int or None, default=None
        Segments of the whole memory; the least recently used one makes room.
        None means one per column with one cell each, else two per column: enough
        for the benchmark.
        Long sequences of many cells need more.
    max_segments_per_cell : int or None, default=None
        The same for a cell. None means three with one cell per column, else one:
        it is what keeps the cost of a record flat, as a noisy stream would else
        crowd the same cells with segments that all match. More of them tell
        sequences of many shared values apart better. For htm.core None means 128.
    prediction_steps : sequence of int, default=(1,)
        How many records ahead values are predicted.
    prediction_rate : float, default=0.05
        Learning rate of the prediction.
    window_size, likelihood_lag, likelihood_period, skip : optional
        As in `TileDetector`.
    mean_floor, variance_floor : float, default=0.06, 0.001
        Least mean and variance of the raw score that are assumed. With these, more
        than two of the last ten records must be wholly new for an alarm, however well the
        stream was predicted before.
    deviation_scale : float, default=4.5
        Deviation of the raw score from its past that is an alarm.
    range_scale : float, default=0.05
        Distance outside the range, as a share of it, that is an alarm.
    range_period : int or None, default=4000
        Records after which the range is forgotten, at the latest after twice as
        many; None remembers it for ever.
    rest_period : int or None, default=None
        Records of half volume after an alarm; None means
        ``int(40 + 0.2 * learning_period)``, of the settling period once that counts.
    fatigue, fatigue_period : float, default=0, 3000
        As in `TileDetector`.
    backend : {"native", "htm.core"}, default="native"
        Whose encoder, pooler and memory run. htm.core must be installed (extra
        ``htm``); it predicts nothing here but the last value, and its own random
        numbers decide.
    threshold : float, default=0.5
        Likelihood from which a record is an anomaly.
    learning : bool, default=True
        False freezes what was learnt.
    random_state : int, RandomState instance or None, default=0
        Seed of the pooler, the encoder's hash and the choice of synapses.

    Notes
    -----
    Permanences are kept in steps of 1/20,000.

    References
    ----------
    Cui, Ahmad, Hawkins: The HTM Spatial Pooler, Frontiers in Computational
    Neuroscience 2017. Hawkins, Ahmad: Why Neurons Have Thousands of Synapses,
    Frontiers in Neural Circuits 2016. Ahmad, Lavin, Purdy, Agha: Unsupervised
    Real-Time Anomaly Detection for Streaming Data, Neurocomputing 2017.

    Examples
    --------
    >>> from anomaly.htm import HTMDetector
    >>> detector = HTMDetector(learning_period=200, value_range=(0.0, 10.0))
    >>> for t in range(1000):
    ...     answer = detector.process_one([0.0, 3.0, 9.0, 5.0][t % 4])
    >>> answer.raw_score, round(answer.predicted)
    (0.0, 5)
    >>> detector.process_one(20.0).is_anomaly
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **StreamDetector._parameter_constraints,
        "learning_period": [Interval(Integral, 1, 10**7, closed="both")],
        "settling_period": [Interval(Integral, 0, 10**7, closed="both")],
        "value_range": [StrOptions({"learnt", "adaptive"}), "array-like"],
        "n_buckets": [Interval(Real, 1, 10**6, closed="both")],
        "n_bits": [Interval(Integral, 16, 4096, closed="both")],
        "n_active_bits": [Interval(Integral, 1, 128, closed="both")],
        "time_of_day": ["boolean"],
        "day_of_week": ["boolean"],
        "weekend": ["boolean"],
        "n_columns": [Interval(Integral, 64, 16384, closed="both")],
        "n_active_columns": [Interval(Integral, 1, 4096, closed="both")],
        "cells_per_column": [Interval(Integral, 1, 32, closed="both")],
        "potential": [Interval(Real, 0, 1, closed="right")],
        "pool_connected": [Interval(Real, 0, 1, closed="neither")],
        "pool_increment": [Interval(Real, 0, 0.5, closed="both")],
        "pool_decrement": [Interval(Real, 0, 0.5, closed="both")],
        "activation_threshold": [Interval(Integral, 1, 32, closed="both")],
        "matching_threshold": [Interval(Integral, 1, 32, closed="both")],
        "n_new_synapses": [Interval(Integral, 1, 32, closed="both")],
        "max_synapses": [Interval(Integral, 1, 32, closed="both")],
        "initial_permanence": [Interval(Real, 0, 1, closed="neither")],
        "connected_permanence": [Interval(Real, 0, 1, closed="neither")],
        "increment": [Interval(Real, 0, 0.5, closed="both")],
        "decrement": [Interval(Real, 0, 0.5, closed="both")],
        "punishment": [Interval(Real, 0, 0.5, closed="both")],
        "max_segments": [Interval(Integral, 1, 65535, closed="both"), None],
        "max_segments_per_cell": [Interval(Integral, 1, 65535, closed="both"), None],
        "prediction_steps": ["array-like"],
        "prediction_rate": [Interval(Real, 0, 1, closed="both")],
        "window_size": [Interval(Integral, 1, 64, closed="both")],
        "likelihood_lag": [Interval(Integral, 0, 10**4, closed="both")],
        "likelihood_period": [Interval(Real, 1, None, closed="left")],
        "skip": [Interval(Real, 0, 10**6, closed="both")],
        "mean_floor": [Interval(Real, 0, None, closed="left")],
        "variance_floor": [Interval(Real, 0, None, closed="neither")],
        "deviation_scale": [Interval(Real, 0, None, closed="neither")],
        "range_scale": [Interval(Real, 0, None, closed="neither")],
        "range_period": [Interval(Integral, 1, 10**12, closed="both"), None],
        "rest_period": [Interval(Integral, 0, 10**12, closed="both"), None],
        "fatigue": [Interval(Real, 0, None, closed="left")],
        "fatigue_period": [Interval(Real, 0, None, closed="neither")],
        "backend": [StrOptions({"native", "htm.core"})],
    }

    def __init__(
        self,
        learning_period: int = 600,
        *,
        settling_period: int = 600,
        value_range: Any = "learnt",
        n_buckets: float = 130,
        n_bits: int = 400,
        n_active_bits: int = 21,
        time_of_day: bool = False,
        day_of_week: bool = False,
        weekend: bool = False,
        n_columns: int = 1024,
        n_active_columns: int = 20,
        cells_per_column: int = 16,
        potential: float = 0.8,
        pool_connected: float = 0.2,
        pool_increment: float = 0.003,
        pool_decrement: float = 0.0005,
        activation_threshold: int = 10,
        matching_threshold: int = 7,
        n_new_synapses: int = 16,
        max_synapses: int = 32,
        initial_permanence: float = 0.24,
        connected_permanence: float = 0.5,
        increment: float = 0.04,
        decrement: float = 0.008,
        punishment: float = 0.001,
        max_segments: int | None = None,
        max_segments_per_cell: int | None = None,
        prediction_steps: Sequence[int] = (1,),
        prediction_rate: float = 0.05,
        window_size: int = 10,
        likelihood_lag: int = 50,
        likelihood_period: float = 4000,
        skip: float = 0.8,
        mean_floor: float = 0.06,
        variance_floor: float = 0.001,
        deviation_scale: float = 4.5,
        range_scale: float = 0.05,
        range_period: int | None = 4000,
        rest_period: int | None = None,
        fatigue: float = 0.0,
        fatigue_period: float = 3000,
        backend: str = "native",
        threshold: float = 0.5,
        learning: bool = True,
        random_state: Any = 0,
    ) -> None:
        self.learning_period = learning_period
        self.settling_period = settling_period
        self.value_range = value_range
        self.n_buckets = n_buckets
        self.n_bits = n_bits
        self.n_active_bits = n_active_bits
        self.time_of_day = time_of_day
        self.day_of_week = day_of_week
        self.weekend = weekend
        self.n_columns = n_columns
        self.n_active_columns = n_active_columns
        self.cells_per_column = cells_per_column
        self.potential = potential
        self.pool_connected = pool_connected
        self.pool_increment = pool_increment
        self.pool_decrement = pool_decrement
        self.activation_threshold = activation_threshold
        self.matching_threshold = matching_threshold
        self.n_new_synapses = n_new_synapses
        self.max_synapses = max_synapses
        self.initial_permanence = initial_permanence
        self.connected_permanence = connected_permanence
        self.increment = increment
        self.decrement = decrement
        self.punishment = punishment
        self.max_segments = max_segments
        self.max_segments_per_cell = max_segments_per_cell
        self.prediction_steps = prediction_steps
        self.prediction_rate = prediction_rate
        self.window_size = window_size
        self.likelihood_lag = likelihood_lag
        self.likelihood_period = likelihood_period
        self.skip = skip
        self.mean_floor = mean_floor
        self.variance_floor = variance_floor
        self.deviation_scale = deviation_scale
        self.range_scale = range_scale
        self.range_period = range_period
        self.rest_period = rest_period
        self.fatigue = fatigue
        self.fatigue_period = fatigue_period
        self.backend = backend
        self.threshold = threshold
        self.learning = learning
        self.random_state = random_state

    def predict_one(self, steps: int = 1, field: int = 0) -> Forecast:
        """Distribution of the value so many records ahead.

        Parameters
        ----------
        steps : int, default=1
            One of ``prediction_steps``.
        field : int, default=0
            Which column of the records.

        Returns
        -------
        Forecast

        Raises
        ------
        ParameterError
            If this number of steps was not asked for in the constructor.
        """
        check_is_fitted(self)
        horizons = [] if isinstance(self._stream, HtmCoreStream) else self._horizons()
        if steps not in horizons:
            raise ParameterError(
                f"steps must be one of prediction_steps={horizons}, got {steps!r}; "
                f"name it there to have it learnt"
            )
        if not 0 <= field < self.n_features_in_:
            raise ParameterError(
                f"field must be from 0 to {self.n_features_in_ - 1}, got {field!r}"
            )
        mean, values, shares = self._forecast(field, horizons.index(steps))
        return Forecast(mean, np.array(values), np.array(shares))

    def _forecast(self, field: int, which: int) -> Any:
        return _core.htm_forecast(self._stream, field, which)

    def inspect(self) -> dict[str, Any]:
        """Active columns, active and winner cells after the last record, and sizes."""
        check_is_fitted(self)
        found: dict[str, Any] = _core.htm_look(self._stream)
        return found

    def _horizons(self) -> list[int]:
        try:
            steps = sorted({index(s) for s in self.prediction_steps})
        except TypeError:
            steps = [0]
        if len(steps) > 16 or (steps and not 1 <= steps[0] <= steps[-1] <= 1000):
            raise ParameterError(
                f"prediction_steps must be at most 16 whole numbers from 1 to 1000, "
                f"got {self.prediction_steps!r}"
            )
        return steps

    def _range(self) -> tuple[int, float, float]:
        if isinstance(self.value_range, str):
            return (2 if self.value_range == "adaptive" else 1), 0.0, 1.0
        try:
            low, high = (float(v) for v in self.value_range)
        except (TypeError, ValueError):
            low = high = np.nan
        if not (np.isfinite([low, high]).all() and low < high):
            raise ParameterError(
                f"value_range must be two finite numbers, the smaller first, "
                f"got {self.value_range!r}"
            )
        return 0, low, high

    def _new_stream(self, n_fields: int) -> Any:
        self._check_sizes(n_fields)
        mode, low, high = self._range()
        rest, period = self.rest_period, self.range_period
        alone = self.cells_per_column == 1
        segments = self.max_segments or self.n_columns * (1 if alone else 2)
        segments_per_cell = self.max_segments_per_cell or (
            128 if self.backend == "htm.core" else 3 if alone else 1
        )
        options = {
            "n_fields": n_fields,
            "bits": self.n_bits,
            "active_bits": self.n_active_bits,
            "time_of_day": int(self.time_of_day),
            "weekday": int(self.day_of_week),
            "weekend": int(self.weekend),
            "columns": self.n_columns,
            "active_columns": self.n_active_columns,
            "cells": self.cells_per_column,
            "potential": _steps(self.potential),
            "pool_connected": _steps(self.pool_connected),
            "pool_increment": _steps(self.pool_increment),
            "pool_decrement": _steps(self.pool_decrement),
            "activation": self.activation_threshold,
            "matching": self.matching_threshold,
            "new_synapses": self.n_new_synapses,
            "max_synapses": self.max_synapses,
            "initial": _steps(self.initial_permanence),
            "connected": _steps(self.connected_permanence),
            "increment": _steps(self.increment),
            "decrement": _steps(self.decrement),
            "punishment": _steps(self.punishment),
            "max_segments": segments,
            "max_segments_per_cell": segments_per_cell,
            "rows": 1024,
            "horizons": self._horizons(),
            "rate": self.prediction_rate,
            "learning": self.learning_period,
            "settling": self.settling_period,
            "window": self.window_size,
            "lag": self.likelihood_lag,
            "skip": int(self.skip * self.learning_period),
            "settled_skip": int(self.skip * self.settling_period),
            "range_mode": mode,
            "low": low,
            "high": high,
            "steps": float(self.n_buckets),
            "range_block": period or 0,
            "mean_floor": self.mean_floor,
            "variance_floor": self.variance_floor,
            "horizon": self.likelihood_period,
            "deviation_scale": self.deviation_scale,
            "range_scale": self.range_scale,
            "fatigue": self.fatigue,
            "fatigue_period": self.fatigue_period,
            "rest": int(40 + 0.2 * self.learning_period) if rest is None else rest,
            "settled_rest": int(40 + 0.2 * self.settling_period) if rest is None else rest,
            "seed": self._seed(),
        }
        return HtmCoreStream(options) if self.backend == "htm.core" else _core.new_htm(options)

    def _check_sizes(self, n_fields: int) -> None:
        if self.n_columns % 64:
            raise ParameterError(f"n_columns must be a multiple of 64, got {self.n_columns}")
        if self.n_columns * self.cells_per_column > 65536:
            raise ParameterError(
                "n_columns * cells_per_column must be at most 65536, "
                f"got {self.n_columns} * {self.cells_per_column}"
            )
        if self.n_active_columns > self.n_columns:
            raise ParameterError(
                f"n_active_columns must be at most n_columns={self.n_columns}, "
                f"got {self.n_active_columns}"
            )
        if self.n_new_synapses > self.max_synapses:
            raise ParameterError(
                f"n_new_synapses must be at most max_synapses={self.max_synapses}, "
                f"got {self.n_new_synapses}"
            )
        if n_fields > 256:
            raise ParameterError(f"at most 256 fields fit one memory, got {n_fields}")


class FieldsRecord(NamedTuple):
    """What `MultiHTMDetector` says about one record.

    Attributes
    ----------
    fields : dict of str to StreamRecord
        The answer for each field; one without a value has likelihood 0.
    likelihood : float
        Of all fields together, 0 to 0.8.
    shares : dict of str to float
        Each field's share in it.
    is_anomaly : bool
    """

    fields: dict[str, StreamRecord]
    likelihood: float
    shares: dict[str, float]
    is_anomaly: bool


class MultiHTMDetector(HTMDetector):
    """Watch several named fields that come together.

    Each field has its own memory, as in the original program, or all of them
    share one (``joint=True``). Fields may be missing from a record, and may
    carry their own time stamps.

    Without ``joint`` the likelihood of all fields is that of the eighth-power
    mean of their strengths: one field that screams is an alarm, and so are many
    that murmur.

    Parameters
    ----------
    fields : sequence of str or None, default=None
        Names of the fields; None takes those of the first record or frame.
    joint : bool, default=False
        Learn one sequence of all fields instead of one per field.
    learning_period, value_range, n_columns, n_active_columns, cells_per_column, \
    prediction_steps, threshold, learning, random_state
        As in `HTMDetector`.
    parameters : dict or None, default=None
        Any other parameter of `HTMDetector`.

    Examples
    --------
    >>> from anomaly.htm import MultiHTMDetector
    >>> detector = MultiHTMDetector(["A", "B"], learning_period=200, cells_per_column=1)
    >>> for t in range(600):
    ...     answer = detector.process_fields({"A": t % 4, "B": 5.0 - t % 2})
    >>> answer = detector.process_fields({"A": 40.0})
    >>> answer.is_anomaly, answer.shares
    (True, {'A': 1.0, 'B': 0.0})
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{
            name: HTMDetector._parameter_constraints[name]
            for name in (
                "learning_period",
                "value_range",
                "n_columns",
                "n_active_columns",
                "cells_per_column",
                "prediction_steps",
                "threshold",
                "learning",
                "random_state",
            )
        },
        "fields": ["array-like", None],
        "joint": ["boolean"],
        "parameters": [dict, None],
    }

    def __init__(
        self,
        fields: Sequence[str] | None = None,
        *,
        joint: bool = False,
        learning_period: int = 600,
        value_range: Any = "learnt",
        n_columns: int = 1024,
        n_active_columns: int = 20,
        cells_per_column: int = 16,
        prediction_steps: Sequence[int] = (1,),
        parameters: dict[str, Any] | None = None,
        threshold: float = 0.5,
        learning: bool = True,
        random_state: Any = 0,
    ) -> None:
        self.fields = fields
        self.joint = joint
        self.learning_period = learning_period
        self.value_range = value_range
        self.n_columns = n_columns
        self.n_active_columns = n_active_columns
        self.cells_per_column = cells_per_column
        self.prediction_steps = prediction_steps
        self.parameters = parameters
        self.threshold = threshold
        self.learning = learning
        self.random_state = random_state

    def process_fields(
        self, record: Mapping[str, Any], timestamp: Timestamp = None
    ) -> FieldsRecord:
        """Score a record of named fields, then learn it.

        Parameters
        ----------
        record : mapping of str to float, or to (timestamp, float)
            The fields that have a value.
        timestamp : number of seconds, datetime, str or None
            Wall clock of the fields that do not bring their own.

        Returns
        -------
        FieldsRecord
        """
        pairs = {
            name: _timed(name, value) if isinstance(value, tuple) else (timestamp, value)
            for name, value in record.items()
        }
        values = self._values_by_name({name: value for name, (_, value) in pairs.items()})
        names = [str(name) for name in self.feature_names_in_]
        row = np.array([[number_of(v) for v in values]])
        clocks = [seconds_of(pairs[n][0] if n in pairs else timestamp) for n in names]
        together, strengths, each = self._answers(row, np.array([clocks]))
        total = float(strengths.sum())
        return FieldsRecord(
            fields={
                name: StreamRecord(x, due, novelty, likelihood, likelihood >= self.threshold)
                for name, x, due, novelty, likelihood in zip(names, *each, strict=True)
            },
            likelihood=together,
            shares={
                name: strength / total if total > 0 else 0.0
                for name, strength in zip(names, strengths.tolist(), strict=True)
            },
            is_anomaly=together >= self.threshold,
        )

    def _answers(
        self, row: NDArray[np.float64], clocks: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64], list[list[float]]]:
        """Likelihood of all fields, strength of each, and (x, predicted, raw, likelihood)."""
        mode = LEARN if self.learning else FROZEN
        if isinstance(self._stream, _FieldByField):
            likelihood, novelty, expected = self._stream.record(row, clocks, mode)
            together, strengths = _together(likelihood, ~np.isnan(row))
            columns = (row, expected, novelty, likelihood)
            return float(together[0]), strengths[0], [c[0].tolist() for c in columns]
        known = clocks[np.isfinite(clocks)]
        result = self._block(self._stream, row, known[:1] if len(known) else None, mode)
        strengths = result.strengths
        novelty = np.broadcast_to(result.raw_score[:, None], row.shape)
        columns = (row, result.predicted, novelty, strengths / (1.0 + strengths))
        return float(result.likelihood[0]), strengths[0], [c[0].tolist() for c in columns]

    def _values_by_name(self, x: Mapping[str, Any]) -> list[Any]:
        if self._stream is None and self.fields is not None:
            self._start(len(self.fields))
            self.feature_names_in_ = np.array(list(self.fields), dtype=object)
        return super()._values_by_name(x)

    def _memory(self) -> HTMDetector:
        """The detector of one field, or of all."""
        own = {
            name: getattr(self, name)
            for name in MultiHTMDetector._parameter_constraints
            if name not in ("fields", "joint", "parameters")
        }
        unknown = set(self.parameters or {}) - set(HTMDetector().get_params())
        if unknown:
            raise ParameterError(f"parameters has no {sorted(unknown)[0]!r} in HTMDetector")
        memory = HTMDetector(**{**own, **(self.parameters or {})})
        memory._validate_params()
        return memory

    def _new_stream(self, n_fields: int) -> Any:
        if self.fields is not None and len(self.fields) != n_fields:
            raise ParameterError(
                f"fields names {len(self.fields)} fields, a record has {n_fields} values"
            )
        memory = self._memory()
        if self.joint:
            return memory._new_stream(n_fields)
        return _FieldByField([memory._new_stream(1) for _ in range(n_fields)])

    def predict_one(self, steps: int = 1, field: int | str = 0) -> Forecast:
        """Distribution of a field's value so many records ahead.

        Parameters
        ----------
        steps : int, default=1
            One of ``prediction_steps``.
        field : int or str, default=0

        Returns
        -------
        Forecast
        """
        check_is_fitted(self)
        if isinstance(field, str):
            names = [str(name) for name in getattr(self, "feature_names_in_", ())]
            if field not in names:
                raise ParameterError(f"unknown field {field!r}; this stream has {names}")
            field = names.index(field)
        return super().predict_one(steps, field)

    def _forecast(self, field: int, which: int) -> Any:
        if isinstance(self._stream, _FieldByField):
            return _core.htm_forecast(self._stream.parts[field], 0, which)
        return super()._forecast(field, which)


class _FieldByField(ManyStreams):
    """One stream per field."""

    def _process(self, *block: Any) -> None:
        values, seconds, mode, scores, raw, strengths, expected = block
        clock = np.nan if seconds is None else seconds[:, None]
        clocks = np.broadcast_to(clock, values.shape)
        likelihood, novelty, expected[...] = self._each(values, clocks, mode)
        present = ~np.isnan(values)
        scores[...], strengths[...] = _together(likelihood, present)
        raw[...] = novelty.sum(axis=1) / np.maximum(present.sum(axis=1), 1)

    def record(
        self, row: NDArray[np.float64], clocks: NDArray[np.float64], mode: int
    ) -> list[NDArray[np.float64]]:
        """Likelihood, novelty and expected value of each field, each with its own clock."""
        with self._lock:
            return self._each(row, clocks, mode)

    def _each(
        self, values: NDArray[np.float64], clocks: NDArray[np.float64], mode: int
    ) -> list[NDArray[np.float64]]:
        answers = [np.empty(values.shape) for _ in range(3)]
        for f, part in enumerate(self.parts):
            column = [np.ascontiguousarray(a[:, f]) for a in (values, clocks)]
            scores, raw, strengths, expected = (np.empty(len(values)) for _ in range(4))
            part.process(*column, mode, scores, raw, strengths, expected)
            for answer, of_field in zip(answers, (scores, raw, expected), strict=True):
                answer[:, f] = of_field
        return answers


def _together(
    likelihood: NDArray[np.float64], present: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Likelihood of all fields by the eighth-power mean of their strengths, and these."""
    strengths = likelihood / (1.0 - likelihood)
    n = np.maximum(present.sum(axis=1), 1)
    together = ((strengths**8).sum(axis=1) / n) ** 0.125
    return together / (1.0 + together), strengths


def _timed(name: str, pair: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(pair) != 2:
        raise DataError(f"field {name!r} must be a value or (timestamp, value), got {pair!r}")
    return pair


def _steps(permanence: float) -> int:
    return max(round(permanence * _ONE), 1 if permanence > 0 else 0)
