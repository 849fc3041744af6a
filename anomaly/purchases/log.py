"""Logs of events: one JSON object a line, read as far as it can be read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Integral
from typing import Any

from anomaly._core import Network
from anomaly.errors import DataError, ParameterError
from anomaly.purchases.events import DECIMALS, Event, EventError, JsonNumber, cents, read_event

FIRST_LINES = 5
"""Line numbers kept of each kind of fault."""

_END, _OTHER = 0, 1  # why the native reader stopped; the third reason is a flagged purchase
_EVENTS = ("purchase", "befriend", "unfriend")
_SPACE = re.compile(r"[ \t\r\n]*")
_CONTROL = re.compile(r"[\x00-\x1f]")
_LARGEST = 2**31 - 1
_decoder = json.JSONDecoder(parse_int=JsonNumber, parse_float=JsonNumber)


@dataclass
class LogCounts:
    """What was found in a log.

    Attributes
    ----------
    lines, flagged : int
    events : dict of str to int
        By event type.
    skipped : dict of str to list
        By kind of fault: how many, and the first line numbers.
    """

    lines: int = 0
    flagged: int = 0
    events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_EVENTS, 0))
    skipped: dict[str, tuple[int, list[int]]] = field(default_factory=dict)

    def skip(self, kind: str) -> None:
        """Count a fault on the current line."""
        count, lines = self.skipped.get(kind, (0, []))
        if len(lines) < FIRST_LINES and self.lines not in lines:
            lines = [*lines, self.lines]
        self.skipped[kind] = (count + 1, lines)


class EventLog:
    """Feeds the text of one log to a network.

    Parameters
    ----------
    network : anomaly._core.Network
        Changed by every event.
    judge : bool
        Whether purchases are judged before they are applied.
    counts : LogCounts, optional
        Continued from an earlier part of the log.

    Examples
    --------
    >>> from anomaly._core import Network
    >>> from anomaly.purchases import EventLog
    >>> log = EventLog(Network(degree=1, window=50, sigma_up=3, sigma_down=1), judge=True)
    >>> line = '{"event_type": "%s", "timestamp": "2017-06-13 11:33:0%d", %s}'
    >>> text = "\\n".join([
    ...     line % ("befriend", 1, '"id1": "a", "id2": "b"'),
    ...     line % ("purchase", 2, '"id": "a", "amount": "10.00"'),
    ...     line % ("purchase", 3, '"id": "a", "amount": "12.00"'),
    ...     line % ("purchase", 4, '"id": "b", "amount": "90.00"'), "oops", ""])
    >>> for flagged in log.feed(text.encode()):
    ...     print(flagged.decode())
    {"event_type": "purchase", "timestamp": "2017-06-13 11:33:04", "id": "b", \
"amount": "90.00", "mean": "11.00", "sd": "1.00"}
    >>> log.counts.skipped
    {'undecodable text': (1, [5])}
    """

    def __init__(self, network: Network, judge: bool, counts: LogCounts | None = None) -> None:
        self.network = network
        self.judge = judge
        self.counts = LogCounts() if counts is None else counts

    def feed(self, text: bytes) -> Iterator[bytes]:
        """Take whole lines; yield the line of each flagged purchase, without newline.

        The plain lines are read natively; the others by the `json` module.
        """
        offset = 0
        while True:
            found = self.network.feed(text, offset, self.judge)
            why, start, offset, lines, events, verdict = found
            self.counts.lines += lines
            for name, count in zip(_EVENTS, events, strict=True):
                self.counts.events[name] += count
            if why == _END:
                return
            if why == _OTHER:
                yield from self._feed_objects(text[start:offset])
            else:
                yield self._flagged(text[start:offset].decode("ascii"), verdict)

    def _feed_objects(self, line: bytes) -> Iterator[bytes]:
        for text, value in self._values(line):
            if not isinstance(value, dict):
                self.counts.skip("not an object")
                continue
            try:
                event = read_event(value)
            except EventError as error:
                self.counts.skip(error.kind)
                continue
            verdict = self._take(event)
            if verdict is not None:
                yield self._flagged(text, verdict)

    def _values(self, line: bytes) -> Iterator[tuple[str, Any]]:
        """Every JSON value of a line with its text; counts what cannot be decoded."""
        text, torn = _decoded(line, first=self.counts.lines == 1)
        at = _skip_space(text, 0)
        while at < len(text):
            try:
                value, end = _decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                torn = True
                break
            yield text[at:end], value
            at = _skip_space(text, end)
        if torn:
            self.counts.skip("undecodable text")

    def _take(self, event: Event) -> tuple[int, int, int, bool, float] | None:
        """Apply an event; the verdict if it is a flagged purchase."""
        self.counts.events[event.kind] += 1
        verdict = None
        if event.kind == "purchase" and self.judge:
            verdict = self.network.judge(event.ids[0], event.amount)
        apply_event(self.network, event)
        return verdict if verdict is not None and verdict[3] else None

    def _flagged(self, text: str, verdict: tuple[int, int, int, bool, float]) -> bytes:
        self.counts.flagged += 1
        count, total, spread, _, _ = verdict
        mean, sd = window_texts(count, total, spread)
        text = text.strip(" \t\r\n")
        # Text that could hide a key of ours, or break the line, is written anew.
        if '"mean"' in text or '"sd"' in text or "\\u" in text or _CONTROL.search(text):
            event = {k: v for k, v in _decoder.decode(text).items() if k not in ("mean", "sd")}
            return _json({**event, "mean": mean, "sd": sd}).encode()
        body = text[:-1].rstrip(" \t\r\n")
        return f'{body}, "mean": "{mean}", "sd": "{sd}"}}'.encode()


def _decoded(line: bytes, first: bool) -> tuple[str, bool]:
    """The text of a line up to a byte that is not UTF-8, and whether there was one."""
    if first:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        return line.decode("utf-8"), False
    except UnicodeDecodeError as error:
        return line[: error.start].decode("utf-8"), True


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def make_network(degree: int, window_size: int, sigma: float | Fraction = 3) -> Network:
    """An empty native network.

    Parameters
    ----------
    degree, window_size : int
        At least 1 and 2; beyond the largest C int they mean "without limit".
    sigma : float or Fraction
        Compared exactly; a float stands for the decimal number it is written as.

    Raises
    ------
    ParameterError
        If ``sigma`` is negative or has too many digits to be compared exactly.
    """
    exact = exact_sigma(sigma)
    return Network(
        degree=min(int(degree), _LARGEST),
        window=min(int(window_size), _LARGEST),
        sigma_up=exact.numerator,
        sigma_down=exact.denominator,
    )


def exact_sigma(sigma: float | Fraction) -> Fraction:
    """The fraction that ``sigma`` is compared as."""
    exact = Fraction(sigma if isinstance(sigma, Integral | Fraction) else str(float(sigma)))
    if exact < 0:
        raise ParameterError(f"sigma must be 0 or more, got {sigma!r}")
    if exact.numerator > _LARGEST or exact.denominator > _LARGEST:
        raise ParameterError(
            "sigma must be a number of nine digits at most or a Fraction of two such, "
            f"got {sigma!r:.60}"
        )
    return exact


def _json(value: Any) -> str:
    """JSON on one line, with every number as it was written."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    return str(value) if isinstance(value, JsonNumber) else json.dumps(value)


def apply_event(network: Network, event: Event) -> None:
    """Enter an event into a network."""
    if event.kind == "purchase":
        network.buy(event.ids[0], event.time, event.amount)
    elif event.kind == "befriend":
        network.befriend(*event.ids)
    else:
        network.unfriend(*event.ids)


def window_texts(count: int, total: int, spread: int) -> tuple[str, str]:
    """Mean and standard deviation of a window, truncated to cents.

    Parameters
    ----------
    count, total, spread : int
        N, S1 and Q = N·Σx² − S1² of amounts in millionths.
    """
    if count == 0:
        return cents(0), cents(0)
    unit = 10 ** (DECIMALS - 2)
    deviation = math.isqrt(spread // (count * unit) ** 2)
    return cents(total // (count * unit)), cents(deviation)


def read_header(line: bytes) -> tuple[int, int, bytes]:
    """The settings at the start of a batch log.

    Parameters
    ----------
    line : bytes
        The first line that is not blank.

    Returns
    -------
    degree, window_size : int
    rest : bytes
        What follows the object on its line.

    Raises
    ------
    DataError
        Unless the line starts with an object with whole numbers D ≥ 1 and T ≥ 2.

    Examples
    --------
    >>> from anomaly.purchases import read_header
    >>> read_header(b'{"D":"3", "T":"50"}')
    (3, 50, b'')
    """
    text, _ = _decoded(line, first=True)
    wanted = 'the batch log must start with an object like {"D":"3","T":"50"}'
    try:
        settings, end = _decoder.raw_decode(text, _skip_space(text, 0))
    except (ValueError, RecursionError):
        raise DataError(f"{wanted}, got {line.strip()[:60]!r}") from None
    if not isinstance(settings, dict):
        raise DataError(f"{wanted}, got {line.strip()[:60]!r}")
    degree = _setting(settings, "D", 1, "the number of friendship steps")
    window = _setting(settings, "T", 2, "the number of purchases in a window")
    return degree, window, text[end:].encode("utf-8", "surrogatepass")


def _setting(settings: Mapping[str, Any], key: str, least: int, meaning: str) -> int:
    allowed = f"{key}, {meaning}, must be a whole number of at least {least}"
    if key not in settings:
        raise DataError(f"{allowed}; it is missing from the first object of the batch log")
    text = settings[key]
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,4000}", text) or int(text) < least:
        raise DataError(f"{allowed}, got {text!r:.60}")
    return min(int(text), _LARGEST)
