"""What every stream detector shares: its verbs, its clock and its results."""

from __future__ import annotations

import math
import pickle
import threading
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly.base import BaseDetector, Interval
from anomaly.errors import DataError

__all__ = [
    "ManyStreams",
    "StreamCounts",
    "StreamDetector",
    "StreamRecord",
    "StreamResult",
    "seconds_of",
]

Timestamp = float | datetime | np.datetime64 | str | None

PEEK, LEARN, FROZEN = 0, 1, 2
_EPOCH = datetime(1970, 1, 1)
_NO_CLOCK = math.nan
_starting = threading.Lock()


class StreamRecord(NamedTuple):
    """What a stream detector says about one record.

    Attributes
    ----------
    value : float, or tuple of float with several fields
        The record as it came.
    predicted : float, or tuple of float with several fields
        What was expected before the record came; the value itself for the first.
    raw_score : float
        Novelty of this record alone, 0 to 1.
    likelihood : float
        Novelty of late against that of the past, 0 to 0.8; 0 while learning and
        for a record without any value.
    is_anomaly : bool
        Whether the likelihood has reached the threshold.
    """

    value: Any
    predicted: Any
    raw_score: float
    likelihood: float
    is_anomaly: bool


class StreamCounts(NamedTuple):
    """How many records came, and how many of them were special.

    Attributes
    ----------
    records : int
        All of them.
    missing : int
        Without any value (NaN): skipped.
    infinite : int
        With an infinite value: an anomaly, and not learnt.
    repeated, backward : int
        With the time stamp of the record before, or an earlier one: taken in the
        order in which they came.
    """

    records: int
    missing: int
    infinite: int
    repeated: int
    backward: int


@dataclass(frozen=True)
class StreamResult:
    """What a stream detector says about a block of records, one array per column.

    Attributes
    ----------
    values, predicted : ndarray of shape (n_records, n_fields)
    raw_score, likelihood : ndarray of shape (n_records,)
    is_anomaly : ndarray of bool of shape (n_records,)
    strengths : ndarray of shape (n_records, n_fields)
        How much of an alarm each field is by itself; 1 is one.
    seconds : ndarray of shape (n_records,) or None
        Wall clock in seconds since 1970-01-01.
    threshold : float
    fields : tuple of str
    """

    values: NDArray[np.float64]
    predicted: NDArray[np.float64]
    raw_score: NDArray[np.float64]
    likelihood: NDArray[np.float64]
    is_anomaly: NDArray[np.bool_]
    strengths: NDArray[np.float64]
    seconds: NDArray[np.float64] | None
    threshold: float
    fields: tuple[str, ...]

    @property
    def shares(self) -> NDArray[np.float64]:
        """Each field's share of the strength of a record, summing to 1 (or all 0)."""
        total = self.strengths.sum(axis=1, keepdims=True)
        return np.divide(self.strengths, total, out=np.zeros_like(self.strengths), where=total > 0)

    def to_frame(self) -> pd.DataFrame:
        """Everything as one frame, with ``timestamp`` first where there is a clock.

        A clock before 1678 or after 2261 has no time stamp (NaT).
        """
        single = len(self.fields) == 1
        columns: dict[str, Any] = {}
        if self.seconds is not None:
            columns["timestamp"] = pd.to_datetime(self.seconds, unit="s", errors="coerce")
        for i, field in enumerate(self.fields):
            columns["value" if single else field] = self.values[:, i]
            columns["predicted" if single else f"predicted_{field}"] = self.predicted[:, i]
        columns["raw_score"] = self.raw_score
        columns["likelihood"] = self.likelihood
        columns["is_anomaly"] = self.is_anomaly
        return pd.DataFrame(columns)


def seconds_of(timestamp: Timestamp) -> float:
    """Wall clock of a time stamp in seconds since 1970-01-01; NaN for None.

    Parameters
    ----------
    timestamp : number, datetime, datetime64, str or None
        A number is taken as seconds. A time zone is left out, because the hour
        of the day is meant as the source's clock shows it.

    Raises
    ------
    DataError
        If a string is not a date and time.

    Examples
    --------
    >>> from anomaly.streaming import seconds_of
    >>> seconds_of("1970-01-02 00:00:10")
    86410.0
    """
    if timestamp is None:
        return _NO_CLOCK
    if isinstance(timestamp, datetime):
        if timestamp is pd.NaT:
            return _NO_CLOCK
        return (timestamp.replace(tzinfo=None) - _EPOCH).total_seconds()
    if isinstance(timestamp, str):
        return _seconds_of_text(timestamp)
    if isinstance(timestamp, np.datetime64):
        return float((timestamp - np.datetime64(0, "s")) / np.timedelta64(1, "s"))
    try:
        return float(timestamp)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            f"timestamp must be a number of seconds or a date and time, got {timestamp!r}"
        ) from None


def number_of(value: Any) -> float:
    """A value as a float, NaN for None; a DataError shows what is no number."""
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"a value must be a number, got {value!r}") from None


def _seconds_of_text(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = pd.Timestamp(text).to_pydatetime(warn=False)
        except ValueError as error:
            raise DataError(
                f"timestamp must be a date and time such as 2024-05-01 13:00:00, got {text!r}"
            ) from error
    return seconds_of(moment)


def seconds_of_many(timestamps: Any) -> NDArray[np.float64] | None:
    """`seconds_of` for a column of numbers, dates or strings; None stays None."""
    if timestamps is None:
        return None
    column = pd.Series(timestamps).reset_index(drop=True)
    if pd.api.types.is_numeric_dtype(column.dtype):
        return np.ascontiguousarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        if column.dt.tz is not None:
            column = column.dt.tz_localize(None)
        moments = column.to_numpy(dtype="datetime64[us]")
        seconds = moments.astype(np.int64) / 1e6
        seconds[np.isnat(moments)] = np.nan
        return seconds
    return np.array([seconds_of(None if pd.isna(t) else t) for t in column], dtype=np.float64)


def moment_of(seconds: float) -> datetime:
    """The wall clock `seconds_of` came from."""
    return datetime.fromtimestamp(seconds, tz=UTC).replace(tzinfo=None)


class StreamDetector(BaseDetector):
    """Base of every stream detector: one record in, one answer out.

    The stream verbs change the detector: `process_one` scores, then learns;
    `learn_one` only learns; `score_one` leaves no trace. `fit` starts a new
    stream with its samples, `partial_fit` goes on with it. `decision_function`,
    `predict` and `predict_proba` score samples as the records that come next,
    learning on the way, but on a copy: asked twice they answer the same.

    Records follow each other in the order they come. A time stamp only tells
    the hour and the day; a repeated or backward one is counted. A record without
    a value (NaN) is skipped and counted. An infinite value is always an anomaly
    and never learnt.

    One detector may be used from several threads; a record is processed whole.

    A subclass has a ``threshold`` and a ``learning`` parameter and writes
    ``_new_stream``.
    """

    threshold: float
    learning: bool
    random_state: Any

    _stream: Any = None
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "threshold": [Interval(Real, 0, 0.8, closed="right")],
        "learning": ["boolean"],
        "random_state": ["random_state"],
    }

    @abstractmethod
    def _new_stream(self, n_fields: int) -> Any:
        """A fresh native state for this many fields; parameters are valid."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.classifier_tags.poor_score = True  # knows no labels
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return self._stream is not None

    # Stream verbs

    def process_one(self, x: Any, timestamp: Timestamp = None) -> StreamRecord:
        """Score a record, then learn it.

        Parameters
        ----------
        x : float, sequence of float or mapping of field to float
            One value, or one per field; NaN or absent where there is none.
        timestamp : number of seconds, datetime, str or None
            Wall clock of the record.

        Returns
        -------
        StreamRecord
        """
        return self._one(x, timestamp, LEARN if self.learning else FROZEN)

    def learn_one(self, x: Any, timestamp: Timestamp = None) -> Self:
        """Learn a record without asking for its score."""
        self._one(x, timestamp, LEARN if self.learning else FROZEN)
        return self

    def score_one(self, x: Any, timestamp: Timestamp = None) -> float:
        """Likelihood that `process_one` would give this record, which is not learnt."""
        return self._one(x, timestamp, PEEK).likelihood

    def process_many(self, X: Any, timestamps: Any = None) -> StreamResult:
        """`process_one` for a block of records, without Python in between.

        Parameters
        ----------
        X : array-like of shape (n_records,) or (n_records, n_fields), or DataFrame
        timestamps : array-like of shape (n_records,), optional
            By default the index of a frame or series, if that holds dates.

        Returns
        -------
        StreamResult
        """
        values, seconds = self._records(X, timestamps)
        if self._stream is None:
            self._start(values.shape[1])
            self._name_fields(X)
        self._check_width(values.shape[1])
        return self._block(self._stream, values, seconds, LEARN if self.learning else FROZEN)

    @property
    def counts_(self) -> StreamCounts:
        """How many records came, and how many were missing, infinite or out of order."""
        check_is_fitted(self)
        info = self._stream.info()
        return StreamCounts(*(info[name] for name in StreamCounts._fields))

    @property
    def memory_bytes_(self) -> int:
        """Bytes that the state of the stream takes."""
        check_is_fitted(self)
        return int(self._stream.info()["memory"])

    @property
    def is_learning_period_over_(self) -> bool:
        """Whether records are scored already; the first ones are only learnt."""
        check_is_fitted(self)
        return bool(self._stream.info()["ready"])

    # The batch contract

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Start a new stream and learn samples in their order.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            One column per field. A frame whose index holds dates gives the clock.
        y : array-like of shape (n_samples,), optional
            Names the classes; nothing is learnt from it.

        Returns
        -------
        self
        """
        self._validate_params()
        seconds = seconds_of_index(X)
        values = validate_data(self, X, dtype=np.float64, ensure_all_finite=False, order="C")
        self._encode_labels(y, len(values))
        self._stream = self._new_stream(values.shape[1])
        self._block(self._stream, values, seconds, LEARN)
        return self

    def partial_fit(
        self, X: Any, y: ArrayLike | None = None, classes: ArrayLike | None = None
    ) -> Self:
        """Go on with the stream, or start it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like, optional
            Names the classes in the first call if ``classes`` does not.
        classes : array-like, optional
            Both class labels, the anomaly second.

        Returns
        -------
        self
        """
        first = self._stream is None
        if first:
            self._validate_params()
        seconds = seconds_of_index(X)
        values = validate_data(
            self, X, reset=first, dtype=np.float64, ensure_all_finite=False, order="C"
        )
        if first:
            labels = y if classes is None else np.resize(np.asarray(classes), len(values))
            self._encode_labels(labels, len(values))
            if classes is not None:
                self.classes_ = np.unique(np.asarray(classes))
            self._stream = self._new_stream(values.shape[1])
        self._block(self._stream, values, seconds, LEARN if self.learning else FROZEN)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Likelihood minus threshold of samples that follow what was learnt.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
            Above 0 is an anomaly.
        """
        return self._continued(X).likelihood - math.nextafter(self.threshold, 0.0)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities; that of the anomaly is the likelihood.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, 2)
        """
        likelihood = self._continued(X).likelihood
        return np.column_stack([1.0 - likelihood, likelihood])

    # Private work

    def _one(self, x: Any, timestamp: Timestamp, mode: int) -> StreamRecord:
        if x.__class__ is not float:
            x = self._values_of(x)
            if x.__class__ is tuple:
                return self._one_of_many(x, timestamp, mode)
        stream = self._stream
        if stream is None:
            stream = self._start(1)
        seconds = timestamp if timestamp.__class__ is float else seconds_of(timestamp)
        score, raw, expected = stream.one(x, seconds, mode)
        return StreamRecord(x, expected, raw, score, score >= self.threshold)

    def _one_of_many(self, x: tuple[float, ...], timestamp: Timestamp, mode: int) -> StreamRecord:
        if self._stream is None:
            self._start(len(x))
        self._check_width(len(x))
        values = np.array([x], dtype=np.float64)
        result = self._block(self._stream, values, np.array([seconds_of(timestamp)]), mode)
        return StreamRecord(
            x,
            tuple(result.predicted[0].tolist()),
            float(result.raw_score[0]),
            float(result.likelihood[0]),
            bool(result.is_anomaly[0]),
        )

    def _values_of(self, x: Any) -> float | tuple[float, ...]:
        """A float for one field, else a tuple in the order of the fields."""
        if x is None or isinstance(x, Real):
            return number_of(x)
        if isinstance(x, np.ndarray):
            x = np.atleast_1d(x)
        if isinstance(x, Mapping):
            x = self._values_by_name(x)
        elif not isinstance(x, Sequence | np.ndarray) or isinstance(x, str | bytes):
            raise DataError(
                f"a record must be a number, a sequence of numbers or a mapping, got {x!r}"
            )
        values = tuple(number_of(v) for v in x)
        if not values:
            raise DataError("a record must have at least one value, got none")
        return values[0] if len(values) == 1 else values

    def _values_by_name(self, x: Mapping[str, Any]) -> list[Any]:
        known = self.__dict__.get("feature_names_in_")
        if known is None:
            if self._stream is not None:
                raise DataError("this stream's fields have no names: give values in their order")
            self._start(len(x))
            self.feature_names_in_ = known = np.array(list(x), dtype=object)
        strange = [name for name in x if name not in known]
        if strange:
            raise DataError(f"unknown field {strange[0]!r}; this stream has {list(known)}")
        return [x.get(name) for name in known]

    def _start(self, n_fields: int) -> Any:
        """Begin a stream with its first record, once even if threads race for it."""
        self._validate_params()
        with _starting:
            if self._stream is None:
                self.n_features_in_ = n_fields
                self.classes_ = np.array([0, 1])
                self._stream = self._new_stream(n_fields)
        return self._stream

    def _name_fields(self, X: Any) -> None:
        if isinstance(X, pd.DataFrame) and all(isinstance(name, str) for name in X.columns):
            self.feature_names_in_ = np.array(X.columns, dtype=object)

    def _check_width(self, n_fields: int) -> None:
        if n_fields != self.n_features_in_:
            raise DataError(
                f"a record of this stream has {self.n_features_in_} values, got {n_fields}"
            )

    def _records(
        self, X: Any, timestamps: Any
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        seconds = seconds_of_index(X) if timestamps is None else seconds_of_many(timestamps)
        values = np.ascontiguousarray(X, dtype=np.float64)
        if values.ndim == 1:
            values = values.reshape(-1, 1)
        if values.ndim != 2:
            raise DataError(f"records must have one or two dimensions, got shape {values.shape}")
        if seconds is not None and len(seconds) != len(values):
            raise DataError(f"{len(values)} records need as many timestamps, got {len(seconds)}")
        return values, seconds

    def _block(
        self,
        stream: Any,
        values: NDArray[np.float64],
        seconds: NDArray[np.float64] | None,
        mode: int,
    ) -> StreamResult:
        likelihood, raw = np.empty(len(values)), np.empty(len(values))
        strengths, expected = np.empty(values.shape), np.empty(values.shape)
        values = np.ascontiguousarray(values)
        stream.process(values, seconds, mode, likelihood, raw, strengths, expected)
        return StreamResult(
            values=values,
            predicted=expected,
            raw_score=raw,
            likelihood=likelihood,
            is_anomaly=likelihood >= self.threshold,
            strengths=strengths,
            seconds=seconds,
            threshold=self.threshold,
            fields=self._field_names(values.shape[1]),
        )

    def _field_names(self, n_fields: int) -> tuple[str, ...]:
        named = self.__dict__.get("feature_names_in_")
        return tuple(named) if named is not None else tuple(f"x{i}" for i in range(n_fields))

    def _continued(self, X: Any) -> StreamResult:
        check_is_fitted(self)
        seconds = seconds_of_index(X)
        values = validate_data(
            self, X, reset=False, dtype=np.float64, ensure_all_finite=False, order="C"
        )
        mode = LEARN if self.learning else FROZEN
        return self._block(self._copied_stream(), values, seconds, mode)

    def _copied_stream(self) -> Any:
        return pickle.loads(pickle.dumps(self._stream))

    def _seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))


class ManyStreams:
    """Native streams that are used, counted and pickled as one.

    A subclass answers ``_process`` from its ``parts``; records stay whole because
    one lock guards all parts.
    """

    def __init__(self, parts: Sequence[Any], **settings: Any) -> None:
        self.parts = list(parts)
        self.settings = settings
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        with self._lock:
            return _rebuilt, (type(self), pickle.dumps(self.parts), self.settings)

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
        """As the native streams do."""
        with self._lock:
            self._process(values, seconds, mode, scores, raw, strengths, expected)

    def one(self, value: float, seconds: float, mode: int) -> tuple[float, float, float]:
        """As the native streams do, for one field."""
        scores, raw = np.empty(1), np.empty(1)
        strengths, expected = np.empty((1, 1)), np.empty((1, 1))
        clock = np.array([seconds])
        self.process(np.array([[value]]), clock, mode, scores, raw, strengths, expected)
        return float(scores[0]), float(raw[0]), float(expected[0, 0])

    def snapshots(self) -> list[bytes]:
        """Snapshot of each part, taken between two records."""
        with self._lock:
            return [part.to_bytes() for part in self.parts]

    def info(self) -> dict[str, Any]:
        """Counts of the first part, memory of all, ready once all are."""
        found = [part.info() for part in self.parts]
        return {
            **found[0],
            "memory": sum(part["memory"] for part in found),
            "ready": all(part["ready"] for part in found),
        }

    @abstractmethod
    def _process(self, *block: Any) -> None:
        """Fill scores, raw, strengths and expected of a block."""


def _rebuilt(cls: type[ManyStreams], parts: bytes, settings: dict[str, Any]) -> ManyStreams:
    return cls(pickle.loads(parts), **settings)


def snapshots_of(stream: Any) -> list[bytes]:
    """The native snapshots a stream consists of."""
    return stream.snapshots() if isinstance(stream, ManyStreams) else [stream.to_bytes()]


def restore_snapshots(stream: Any, snapshots: Sequence[bytes]) -> Any:
    """A stream like this one, with the state that `snapshots_of` saved."""
    parts = stream.parts if isinstance(stream, ManyStreams) else [stream]
    if len(parts) != len(snapshots):
        raise DataError(f"the state has {len(snapshots)} streams, {len(parts)} are expected")
    restored = []
    for part, snapshot in zip(parts, snapshots, strict=True):
        restore, _ = part.__reduce__()
        restored.append(restore(snapshot))
    if isinstance(stream, ManyStreams):
        return type(stream)(restored, **stream.settings)
    return restored[0]


def seconds_of_index(X: Any) -> NDArray[np.float64] | None:
    """The clock in the index of a frame or series, or None."""
    index = getattr(X, "index", None)
    return seconds_of_many(index) if isinstance(index, pd.DatetimeIndex) else None
