"""Events of a purchase network: what is one, and what is wrong with the others."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from anomaly.errors import DataError

COLUMNS = ("event_type", "timestamp", "id", "amount", "id1", "id2")
"""The fields of an event, in the order of the columns of a table of events."""

DECIMALS = 6
"""Money is counted in millionths: four decimals beyond cents."""

MAX_AMOUNT = 10**18
"""Largest amount, in millionths: a million million."""

_KEYS = {"purchase": ("id", "amount"), "befriend": ("id1", "id2"), "unfriend": ("id1", "id2")}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} ([01][0-9]|2[0-3]):[0-9]{2}:[0-9]{2}")
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


class EventError(DataError):
    """An event that cannot be read; ``kind`` names the fault in a few words."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class JsonNumber(str):
    """The digits of a JSON number, kept as they were written."""


class Event(NamedTuple):
    """An event in the terms of the native core."""

    kind: str
    ids: tuple[bytes, ...]
    time: int
    amount: int


def read_event(event: Mapping[str, Any]) -> Event:
    """Turn a mapping of fields into an event.

    Parameters
    ----------
    event : mapping
        With ``event_type``, ``timestamp`` and either ``id`` and ``amount``
        (purchase) or ``id1`` and ``id2`` (befriend, unfriend). Others are ignored.

    Returns
    -------
    Event
        Ids as UTF-8, ``time`` in microseconds since 1970, ``amount`` in
        millionths (0 unless a purchase).

    Raises
    ------
    EventError
        Saying which field is wrong, what is allowed and what came.

    Examples
    --------
    >>> from anomaly.purchases import read_event
    >>> read_event({"event_type": "purchase", "timestamp": "1970-01-01 00:00:01",
    ...             "id": "7", "amount": "16.83"})
    Event(kind='purchase', ids=(b'7',), time=1000000, amount=16830000)
    """
    if "event_type" not in event:
        raise EventError("missing key", "event_type is missing")
    kind = event["event_type"]
    if not isinstance(kind, str) or kind not in _KEYS:
        raise EventError(
            "unknown event type",
            f"event_type must be purchase, befriend or unfriend, got {kind!r:.60}",
        )
    for key in ("timestamp", *_KEYS[kind]):
        if key not in event:
            raise EventError("missing key", f"{key} is missing in a {kind}")
    time = read_time(event["timestamp"])
    if kind == "purchase":
        return Event(kind, (_read_id("id", event["id"]),), time, read_amount(event["amount"]))
    return Event(kind, tuple(_read_id(key, event[key]) for key in _KEYS[kind]), time, 0)


def _read_id(key: str, value: object) -> bytes:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or (isinstance(value, JsonNumber) and not value.isdigit()):
        raise EventError("bad id", f"{key} must be text or a whole number, got {value!r:.60}")
    return value.encode("utf-8", "surrogatepass")


def read_time(value: object) -> int:
    """Microseconds since 1970 of ``YYYY-MM-DD HH:MM:SS`` or of a datetime without zone."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, str) and _TIME.fullmatch(value):
        with contextlib.suppress(ValueError):  # a day that does not exist
            value = datetime.fromisoformat(value)
    if not isinstance(value, datetime) or value.tzinfo is not None or value != value:
        raise EventError(
            "bad timestamp",
            "timestamp must be YYYY-MM-DD HH:MM:SS or a datetime without time zone, "
            f"got {value!r:.60}",
        )
    return (value - _EPOCH) // _MICROSECOND


def read_amount(value: object) -> int:
    """Millionths of an amount given as text, whole number, Decimal or float, exactly.

    A float stands for the shortest decimal that reads back as it, so 16.83 is
    16.83. Nothing is ever rounded: an amount with more than six decimals that
    are not zero, or above a million million, raises.

    Examples
    --------
    >>> from anomaly.purchases.events import read_amount
    >>> read_amount("16.83"), read_amount(0.1), read_amount("2e3")
    (16830000, 100000, 2000000000)
    """
    text = _amount_text(value)
    if not _NUMBER.fullmatch(text):
        named = {"nan": "NaN amount", "inf": "infinite amount", "infinity": "infinite amount"}
        kind = named.get(text.lstrip("+-").lower(), "non-numeric amount")
        raise EventError(kind, f"amount must be a decimal number, got {value!r:.60}")
    sign, digits, exponent = Decimal(text).as_tuple()
    written = "".join(map(str, digits)).lstrip("0")
    significant = written.rstrip("0")
    if not significant:
        return 0
    if sign:
        raise EventError("negative amount", f"amount must not be negative, got {value!r:.60}")
    power = int(exponent) + len(written) - len(significant) + DECIMALS
    if power < 0:
        raise EventError(
            "amount finer than a millionth",
            f"amount must have {DECIMALS} decimals at most, got {value!r:.60}; round it first",
        )
    if len(significant) + power > 19 or int(significant) * 10**power > MAX_AMOUNT:
        raise EventError(
            "amount too large", f"amount must be {MAX_AMOUNT // 10**6} at most, got {value!r:.60}"
        )
    return int(significant) * 10**power


def _amount_text(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "a truth value"
    if isinstance(value, float | np.floating):
        return repr(float(value)) if isinstance(value, float) else str(value)
    if isinstance(value, str | int | np.integer | Decimal):
        return str(value).strip(" \t\r\n")
    return type(value).__name__


def cents(value: int) -> str:
    """Money in cents as text with two decimals.

    >>> from anomaly.purchases.events import cents
    >>> cents(2910), cents(5)
    ('29.10', '0.05')
    """
    return f"{value // 100}.{value % 100:02d}"
