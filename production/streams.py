"""One stream: its detectors, its clock and its policy, apart from where they are kept."""

from __future__ import annotations

import json
import math
import pickle
import zlib
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from production.clock import moment_of, zone_of
from production.detectors import build
from production.strict import RequestError, as_number, as_object, as_text, as_whole

SINGLE, MULTI = "single", "multi"

#: What `anomaly.swarm` tells of its search beside detector (there "tile") and parameters.
SWARM = frozenset({"score", "scoring", "n_candidates"})

#: The one field of a stream of plain values.
VALUE = "value"


@dataclass(frozen=True)
class StreamSettings:
    """What a stream is configured to be; ``PUT /v1/streams/<id>`` sends it.

    Parameters
    ----------
    detector : str or None
        Name of the detector; None takes the service's default.
    min, max, resolution : float or None
        Range of the values and the smallest difference that matters, for
        detectors that encode values; None adapts.
    prediction_step : int or None
        How many records ahead ``prediction`` looks; None is the next one.
    threshold : float or None
        Likelihood from which a record is an anomaly.
    parameters : dict
        Further constructor arguments of the detector. A file that
        ``python -m anomaly.swarm`` wrote is settings as it is.
    joint : bool
        With several fields, one detector for their joint course and not one each.
    time_zone : str
        Where stamps without an offset were read.
    duplicates : {"score", "first", "reject"}
        What happens to another value at a known time. The same value at the same
        time is always answered with its first result.
    late : {"score", "reject"}
        What happens to a record older than the newest.
    future : {"score", "reject"}
        What happens to a record more than ``future_s`` ahead of the server's clock.
    future_s : float
    interval_s : float or None
        Expected distance of records, for counting gaps; None takes the distance
        that came twice running.
    no_timestamp : {"reject", "arrival"}
        Whether a record without a time stamp gets the server's time.

    Examples
    --------
    >>> from production.streams import StreamSettings
    >>> StreamSettings.read({"detector": "tiles", "late": "reject"}).late
    'reject'
    """

    detector: str | None = None
    min: float | None = None
    max: float | None = None
    resolution: float | None = None
    prediction_step: int | None = None
    threshold: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    joint: bool = False
    time_zone: str = "UTC"
    duplicates: str = "score"
    late: str = "score"
    future: str = "score"
    future_s: float = 86_400.0
    interval_s: float | None = None
    no_timestamp: str = "reject"

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "duplicates": ("score", "first", "reject"),
        "late": ("score", "reject"),
        "future": ("score", "reject"),
        "no_timestamp": ("reject", "arrival"),
    }
    #: What may change without starting the stream anew.
    POLICY: ClassVar[frozenset[str]] = frozenset({*CHOICES, "future_s", "interval_s"})

    @classmethod
    def read(cls, given: Any) -> StreamSettings:
        """Settings from JSON, checked down to the detector's constructor."""
        names = frozenset(f.name for f in fields(cls))
        given = as_object(given, "settings", names | SWARM)
        given = {k: v for k, v in given.items() if v is not None and k not in SWARM}
        given |= {"detector": "tiles"} if given.get("detector") == "tile" else {}
        for name in ("min", "max", "resolution", "threshold", "future_s", "interval_s"):
            if name in given:
                given[name] = as_number(given[name], name)
        if "prediction_step" in given:
            given["prediction_step"] = as_whole(
                given["prediction_step"], "prediction_step", 1, 1000
            )
        for name, allowed in cls.CHOICES.items():
            if given.get(name, allowed[0]) not in allowed:
                raise RequestError(
                    422,
                    f"{name} must be one of {', '.join(allowed)}, got {str(given[name])[:40]!r}",
                )
        if not isinstance(given.get("joint", False), bool):
            raise RequestError(422, "joint must be true or false")
        if "detector" in given:
            as_text(given["detector"], "detector", 64)
        as_object(given.get("parameters", {}), "parameters")
        zone_of(given.get("time_zone", "UTC"))
        settings = cls(**given)
        build(asdict(settings))
        return settings


class Record:
    """One record as it was admitted: when, and what, field by field."""

    __slots__ = ("instant", "text", "values", "wall")

    def __init__(self, instant: float, wall: float, text: str, values: list[float]) -> None:
        self.instant, self.wall, self.text, self.values = instant, wall, text, values

    def to_json(self) -> str:
        """Everything that a replay needs; numbers keep every bit."""
        return json.dumps([self.instant, self.wall, self.text, [_or_null(v) for v in self.values]])

    @classmethod
    def from_json(cls, text: str) -> Self:
        instant, wall, stamp, values = json.loads(text)
        return cls(instant, wall, stamp, [math.nan if v is None else v for v in values])


class Stream:
    """Detectors of one stream and what it remembers of its clock.

    `prepare` reads records without changing anything; `apply` scores and learns
    one, and is all that a replay has to call.

    Examples
    --------
    >>> from production.streams import Stream, StreamSettings
    >>> stream = Stream("single", "7", StreamSettings(detector="tiles"))
    >>> [record] = stream.prepare([("2016-12-1 0:00:10", {"value": 3855.0})])
    >>> answer = stream.apply(record)
    >>> answer["seq"], answer["prediction"], answer["is_anomaly"]
    (1, 3855.0, False)
    """

    def __init__(self, kind: str, name: str, settings: StreamSettings) -> None:
        self.kind, self.name, self.settings = kind, name, settings
        self.zone = zone_of(settings.time_zone)
        self.seq = 0
        self.newest = -math.inf
        self.step = 0.0
        self.counts = {"late": 0, "duplicate": 0, "gap": 0, "future": 0, "anomaly": 0}
        self.fields: tuple[str, ...] = ()
        self.detectors: list[Any] = []

    def prepare(self, given: list[tuple[Any, dict[str, Any]]]) -> list[Record]:
        """Read time stamps and values; the first fault refuses all.

        Raises
        ------
        RequestError
            Naming the record where there are several.
        """
        after = self.newest if self.seq else None
        names = self.fields or tuple(given[0][1])
        records = []
        for i, (stamp, values) in enumerate(given):
            try:
                moment = moment_of(stamp, self.zone, after=after)
                numbers = self._numbers(names, values)
            except RequestError as error:
                if len(given) == 1:
                    raise
                raise RequestError(error.status, f"record {i + 1}: {error.detail}") from None
            after = moment.instant if after is None else max(after, moment.instant)
            records.append(Record(moment.instant, moment.wall, moment.text, numbers))
        if not self.fields:
            self._start(names)
        return records

    def _numbers(self, names: tuple[str, ...], values: dict[str, Any]) -> list[float]:
        unknown = [name for name in values if name not in names]
        if unknown:
            raise RequestError(
                422, f"field {unknown[0][:64]!r} is not one of this stream's: {', '.join(names)}"
            )
        return [
            math.nan if values.get(name) is None else as_number(values[name], f"value of {name}")
            for name in names
        ]

    def _start(self, names: tuple[str, ...]) -> None:
        self.fields = names
        settings = asdict(self.settings)
        self.detectors = [build(settings) for _ in range(1 if self.settings.joint else len(names))]

    def apply(self, record: Record) -> dict[str, Any]:
        """Score a record, learn it, and move the clock."""
        self.seq += 1
        self._tick(record)
        parts = self._score(record)
        chief = max(range(len(parts)), key=lambda i: (parts[i][2], parts[i][1]))
        anomalous = any(part[3] for part in parts)
        self.counts["anomaly"] += anomalous
        answer: dict[str, Any] = {"seq": self.seq, "timestamp": record.text}
        if self.kind == SINGLE:
            answer["value"] = _or_null(record.values[0])
            answer["prediction"] = parts[0][0]
        else:
            answer["values"] = dict(zip(self.fields, map(_or_null, record.values), strict=True))
            answer["prediction"] = {n: p[0] for n, p in zip(self.fields, parts, strict=True)}
            answer["scores"] = {n: p[1] for n, p in zip(self.fields, parts, strict=True)}
        answer["score"] = parts[chief][1]
        answer["likelihood"] = parts[chief][2]
        answer["is_anomaly"] = anomalous
        if anomalous:
            answer["explanation"] = self._explain(chief, record, parts[chief])
        return answer

    def _tick(self, record: Record) -> None:
        if record.instant <= self.newest:
            return
        step = record.instant - self.newest
        usual = self.settings.interval_s or self.step
        if self.seq > 1 and usual and step > 1.5 * usual:
            self.counts["gap"] += 1
        elif self.seq > 1:
            self.step = step
        self.newest = record.instant

    def _score(self, record: Record) -> list[tuple[float | None, float, float, bool]]:
        """Prediction, raw score, likelihood and decision of each field."""
        if len(self.detectors) == len(self.fields):
            found = []
            for detector, value in zip(self.detectors, record.values, strict=True):
                said = detector.process_one(value, timestamp=record.wall)
                found.append(
                    (_or_null(said.predicted), said.raw_score, said.likelihood, said.is_anomaly)
                )
            return found
        said = self.detectors[0].process_one(record.values, timestamp=record.wall)
        return [
            (_or_null(p), said.raw_score, said.likelihood, said.is_anomaly) for p in said.predicted
        ]

    def _explain(
        self, i: int, record: Record, part: tuple[float | None, float, float, bool]
    ) -> str:
        name = "value" if self.kind == SINGLE else f"field {self.fields[i]}"
        expected = "nothing" if part[0] is None else f"{part[0]:g}"
        return (
            f"{name} is {record.values[i]:g}, expected was {expected}; novelty {part[1]:.3g}, "
            f"likelihood {part[2]:.3g}"
        )

    @property
    def detector_name(self) -> str:
        """The detector that this stream asked for, or the default."""
        from production.detectors import available

        return self.settings.detector or available()[0]

    @property
    def size(self) -> int:
        """Bytes that the stream takes in memory, about."""
        return 4096 + sum(int(getattr(d, "memory_bytes_", 1 << 16)) for d in self.started())

    def started(self) -> list[Any]:
        """Detectors that have seen a record."""
        return self.detectors if self.seq else []

    def with_settings(self, settings: StreamSettings) -> None:
        """Take new settings; once there are records, only the policy may change.

        Raises
        ------
        RequestError
            Naming what cannot change any more.
        """
        if self.seq:
            before, after = asdict(self.settings), asdict(settings)
            fixed = [k for k in before if before[k] != after[k] and k not in settings.POLICY]
            if fixed:
                raise RequestError(
                    409,
                    f"{fixed[0]} cannot change once the stream has learnt; DELETE it first",
                    kind="conflict",
                )
        else:
            self.fields, self.detectors = (), []
        self.settings = replace(settings)
        self.zone = zone_of(settings.time_zone)

    def freeze(self) -> bytes:
        """Everything as bytes, for this service's own state file."""
        return zlib.compress(pickle.dumps(self.__dict__, protocol=5), 1)

    @classmethod
    def thaw(cls, content: bytes) -> Self:
        """The stream that `freeze` wrote; only for content of this service's state file."""
        stream = cls.__new__(cls)
        stream.__dict__.update(pickle.loads(zlib.decompress(content)))
        return stream


def _or_null(number: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return number if math.isfinite(number) else None
