"""Devices that send samples: messages to windows to answers, with no network in it."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import DataError, ParameterError
from anomaly.waveform import WindowDetector, cut

__all__ = ["Device", "Plan", "parse_samples"]

Samples = NDArray[np.float64]

# Largest message, and most messages of a device whose repetition is recognised.
MAX_BYTES = 1 << 20
REMEMBERED = 4096

# A larger number would overflow when squared.
LARGEST = 1e100

# Scores kept for pictures, one per window.
HISTORY = 1000


@dataclass(frozen=True)
class Plan:
    """How a device is watched.

    Parameters
    ----------
    fields : tuple of str
        Channels, by their names in the messages.
    window, hop : int
        Samples per answer, and from one answer to the next; ``hop`` is ``window``
        by default, so windows touch.
    learn : int
        Healthy windows to learn from before the first answer.
    continuous : bool
        Whether a detector that can, learns each healthy window on; it never learns
        one that alarms.
    stream : bool
        Whether each sample is judged as it comes, besides the windows.
    """

    fields: tuple[str, ...] = ("x", "y", "z")
    window: int = 3000
    hop: int | None = None
    learn: int = 1
    continuous: bool = False
    stream: bool = True

    def __post_init__(self) -> None:
        if self.window < 1 or not 1 <= self.step <= self.window or self.learn < 1:
            raise ParameterError(
                f"window, hop, learn: window and learn must be 1 at least and hop 1 to window, "
                f"got window={self.window}, hop={self.hop}, learn={self.learn}"
            )
        if not self.fields or len(set(self.fields)) != len(self.fields):
            raise ParameterError(f"fields: distinct names are needed, got {self.fields}")

    @property
    def step(self) -> int:
        """Samples from one answer to the next."""
        return self.window if self.hop is None else self.hop


# ---- messages


def digest(payload: bytes, mid: int) -> bytes:
    """What identifies a message of a device when it comes again.

    ``mid`` is its number in the broker's session, which a redelivery repeats;
    0 for a message that tells itself apart.
    """
    return hashlib.blake2b(payload, salt=mid.to_bytes(4, "big"), digest_size=12).digest()


def parse_samples(payload: bytes, fields: Sequence[str]) -> tuple[Samples, bool]:
    """Read the samples of a message.

    Parameters
    ----------
    payload : bytes
        JSON: ``{"x": 1, "y": 2, "z": 3}``, or arrays of equal length in place of
        the numbers, or a list of such objects; any of them may stand in ``"d"``.
    fields : sequence of str
        Names of the channels.

    Returns
    -------
    samples : ndarray of shape (n_samples, n_channels)
    marked : bool
        Whether the message tells itself apart by ``"seq"`` or ``"ts"``.

    Raises
    ------
    DataError
        One sentence that names what is wrong with the message.

    Examples
    --------
    >>> from production.devices import parse_samples
    >>> parse_samples(b'{"d": {"x": [1, 2], "y": [3, 4]}, "ts": 7}', ["x", "y"])
    (array([[1., 3.],
           [2., 4.]]), True)
    """
    if len(payload) > MAX_BYTES:
        raise DataError(f"message: at most {MAX_BYTES} bytes are taken, got {len(payload)}")
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise DataError(f"message: not JSON: {str(error)[:80]}") from None
    body = message.get("d", message) if isinstance(message, dict) else message
    marked = any(
        isinstance(part, dict) and ("seq" in part or "ts" in part) for part in (message, body)
    )
    parts = body if isinstance(body, list) else [body]
    if not parts:
        raise DataError("message: at least one sample is needed, got an empty list")
    return np.concatenate([_samples_of(part, fields) for part in parts]), marked


def _samples_of(part: Any, fields: Sequence[str]) -> Samples:
    if not isinstance(part, dict):
        raise DataError(f"message: an object of fields is needed, got {type(part).__name__}")
    missing = [name for name in fields if name not in part]
    if missing:
        came = ", ".join(map(repr, list(part)[:8])) or "none"
        raise DataError(f"message: field {missing[0]!r} is missing; fields that came: {came}")
    columns = [part[name] if isinstance(part[name], list) else [part[name]] for name in fields]
    if len({len(column) for column in columns}) != 1 or not columns[0]:
        raise DataError(
            "message: fields must have equally many values, one at least, got "
            + ", ".join(str(len(column)) for column in columns)
        )
    for name, column in zip(fields, columns, strict=True):
        for value in column:
            if type(value) not in (int, float) or not abs(value) <= LARGEST:
                raise DataError(f"message: {name!r} must be finite numbers, got {value!r:.40}")
    return np.array(columns, dtype=np.float64).T


# ---- devices


@dataclass
class Device:
    """One device: its detector, its unfinished window, and what has been said of it.

    `feed` takes samples as they come and returns the answers they complete. All
    state is in the object, so that a pickled one goes on where it was.
    """

    name: str
    plan: Plan
    detector: Any
    fitted: bool
    sequence: int = 0
    received: int = 0
    duplicates: int = 0
    alarm: bool = False
    frozen: bool = False
    history: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    last_window: Samples | None = None
    _loud: bool = False  # the stream, at its newest sample
    _pending: list[Samples] = field(default_factory=list)
    _n_pending: int = 0
    _first: int = 0
    _seen: OrderedDict[bytes, None] = field(default_factory=OrderedDict)

    @classmethod
    def start(cls, name: str, plan: Plan, detector: WindowDetector, fitted: bool) -> Device:
        """A device not heard of before, with a detector of its own."""
        return cls(name, plan, copy.deepcopy(detector), fitted)

    def is_duplicate(self, payload: bytes, marked: bool, mid: int, redelivered: bool) -> bool:
        """Whether a message has been taken before; it is remembered otherwise.

        Parameters
        ----------
        payload : bytes
        marked : bool
            Whether it tells itself apart by a number or time of its own. If not,
            it may look like another and still be one: a machine at rest sends the
            same sample again and again.
        mid : int
            Number in the broker's session, 0 without one.
        redelivered : bool
            Whether the broker says that it may have sent it before.
        """
        key = digest(payload, 0 if marked else mid)
        if key in self._seen and (marked or redelivered):
            self.duplicates += 1
            return True
        self._seen[key] = None
        self._seen.move_to_end(key)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def feed(self, samples: Samples) -> list[dict[str, Any]]:
        """Take samples; return what is to be said now, oldest first."""
        if not self.fitted:
            return self._learn(samples)
        answers = []
        while len(samples):
            piece = samples[: self.plan.window - self._n_pending]
            samples = samples[len(piece) :]
            answers += self._judge_samples(piece)
            self.received += len(piece)
            self._pending.append(piece)
            self._n_pending += len(piece)
            if self._n_pending == self.plan.window:
                answers.append(self._judge_window())
        return answers

    def reset(self) -> None:
        """Take the device for repaired: end the alarm, go on learning."""
        self.alarm = self.frozen = self._loud = False
        if hasattr(self.detector, "reset_stream"):
            self.detector.reset_stream()

    def status(self) -> dict[str, Any]:
        """State in one word, and counts."""
        state = "learning" if not self.fitted else "alarm" if self.alarm else "healthy"
        return {
            "device": self.name,
            "state": state,
            "sequence": self.sequence,
            "samples": self.received,
            "duplicates": self.duplicates,
            **({"frozen": self.frozen} if self.plan.continuous else {}),
        }

    # -- private

    def _learn(self, samples: Samples) -> list[dict[str, Any]]:
        wanted = self.plan.learn * self.plan.window
        used = samples[: wanted - self._n_pending]
        self._pending.append(used)
        self._n_pending += len(used)
        self.received += len(used)
        if self._n_pending < wanted:
            return []
        self.detector.fit(np.concatenate(self._pending))
        self.fitted, self._pending, self._n_pending = True, [], 0
        self._first = self.received
        learnt = {"event": "learnt", "device": self.name, "samples": wanted}
        rest = samples[len(used) :]
        return [learnt, *(self.feed(rest) if len(rest) else [])]

    def _judge_samples(self, samples: Samples) -> list[dict[str, Any]]:
        if not self.plan.stream or not hasattr(self.detector, "score_many"):
            return []
        scores = self.detector.score_many(samples)
        self._loud = bool(scores[-1] > 0)
        if self.alarm or not (scores > 0).any():
            return []
        at = int(np.argmax(scores > 0))
        self.alarm = True
        return [
            {
                "event": "alarm",
                "device": self.name,
                "sample": self.received + at,
                "score": float(scores[at]),
                "threshold": 0.0,
                "anomaly": True,
            }
        ]

    def _judge_window(self) -> dict[str, Any]:
        signal = np.concatenate(self._pending)
        window, rest = signal[: self.plan.window], signal[self.plan.step :]
        first, self._first = self._first, self._first + self.plan.step
        self._pending, self._n_pending = [rest], len(rest)
        pieces = cut(window, self.detector.window_size)
        decisions = self.detector.decision_function(pieces)
        worst = int(np.argmax(decisions))
        score = float(decisions[worst])
        anomaly = score > 0
        self.alarm = anomaly or self._loud  # or the stream would raise the same alarm again
        self.sequence += 1
        self.last_window = window
        self.history.append((self.sequence, score))
        answer = {
            "event": "window",
            "device": self.name,
            "sequence": self.sequence,
            "first_sample": first,
            "last_sample": first + self.plan.window - 1,
            "score": score,
            "threshold": 0.0,
            "anomaly": anomaly,
            "share": float(np.mean(decisions > 0)),
            "explanation": self._explain(pieces[worst : worst + 1]),
        }
        if self.plan.continuous and hasattr(self.detector, "learn_window"):
            answer["loss"] = self._go_on_learning(window)
            answer["frozen"] = self.frozen
        return answer

    def _explain(self, piece: Samples) -> dict[str, Any] | None:
        if not hasattr(self.detector, "explain"):
            return None
        (answer,) = self.detector.explain(piece)
        channel = answer.get("channel")
        if channel is not None:
            answer = {**answer, "channel": self.plan.fields[channel]}
        return answer

    def _go_on_learning(self, window: Samples) -> list[float]:
        """Losses of the training on a healthy window; a fault freezes it until `reset`."""
        self.frozen = self.frozen or self.alarm
        return [] if self.frozen else [float(x) for x in self.detector.learn_window(window)]
