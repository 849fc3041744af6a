"""Time stamps as they come: unpadded, naive or zoned, and what they mean."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from production.strict import RequestError, kind_of

_STAMP = re.compile(
    r"(\d{4})-(\d{1,2})-(\d{1,2})[ T](\d{1,2}):(\d{1,2})(?::(\d{1,2})(?:[.,](\d{1,9}))?)?"
    r" ?(?:(Z|z)|([+-])(\d{2}):?(\d{2}))?",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1)
_LATEST = 253_402_300_799  # the end of the year 9999


class Moment(NamedTuple):
    """A time stamp, understood.

    Attributes
    ----------
    instant : float
        Seconds since 1970-01-01 UTC: the order of records.
    wall : float
        The same as the clock on the stream's wall shows it: hour and weekday.
    text : str
        As it came.
    """

    instant: float
    wall: float
    text: str


def zone_of(name: Any) -> tzinfo:
    """A time zone by its name in the IANA database.

    Examples
    --------
    >>> from production.clock import zone_of
    >>> str(zone_of("Europe/Berlin"))
    'Europe/Berlin'
    """
    if name == "UTC":
        return UTC
    try:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_+/-]{1,64}", name):
            raise ValueError
        return ZoneInfo(name)
    except (ValueError, ZoneInfoNotFoundError, OSError):
        raise RequestError(
            422, f"time_zone must be a name such as Europe/Berlin, got {str(name)[:64]!r}"
        ) from None


def moment_of(value: Any, zone: tzinfo = UTC, *, after: float | None = None) -> Moment:
    """Understand a time stamp.

    Parameters
    ----------
    value : str or number
        ``2016-12-1 0:00:10`` with or without padding, ``T``, fraction of a second
        and offset; or seconds since 1970-01-01 UTC.
    zone : tzinfo
        Where a stamp without an offset was read off the wall.
    after : float, optional
        Instant of the record before. In the hour that autumn repeats, a stamp
        that would otherwise go back is taken for the second pass.

    Raises
    ------
    RequestError
        If it is not a date and time.

    Examples
    --------
    >>> from production.clock import moment_of
    >>> moment_of("2016-12-1 0:00:10").instant
    1480550410.0
    >>> moment_of("2016-12-01T01:00:10+01:00").instant
    1480550410.0
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value <= _LATEST:
            raise RequestError(422, f"timestamp must be 0 to {_LATEST} seconds, got {value}")
        local = datetime.fromtimestamp(value, tz=zone).replace(tzinfo=None)
        return Moment(float(value), (local - _EPOCH).total_seconds(), str(value))
    if not isinstance(value, str):
        raise RequestError(422, f"timestamp must be a date and time, got {kind_of(value)}")
    try:
        naive, offset = _parse(value)
        return _place(naive, offset, zone, after, value)
    except (ValueError, OverflowError):
        raise RequestError(
            422,
            f"timestamp must be a date and time such as 2016-12-01 00:00:10, got {value[:64]!r}",
        ) from None


def _parse(text: str) -> tuple[datetime, timezone | None]:
    found = _STAMP.fullmatch(text.strip())
    if found is None:
        raise ValueError(text)
    *numbers, fraction, utc, sign, hours, minutes = found.groups()
    year, month, day, hour, minute, second = (int(n or 0) for n in numbers)
    micro = int((fraction or "0").ljust(6, "0")[:6])
    naive = datetime(year, month, day, hour, minute, second, micro)
    if naive < _EPOCH:
        raise ValueError(text)
    if utc:
        return naive, UTC
    if sign is None:
        return naive, None
    shift = timedelta(hours=int(hours), minutes=int(minutes))
    return naive, timezone(shift if sign == "+" else -shift)


def _place(
    naive: datetime, offset: timezone | None, zone: tzinfo, after: float | None, text: str
) -> Moment:
    if offset is not None:
        moment = naive.replace(tzinfo=offset)
        local = moment.astimezone(zone).replace(tzinfo=None)
        return Moment(moment.timestamp(), (local - _EPOCH).total_seconds(), text)
    instant = naive.replace(tzinfo=zone).timestamp()
    if after is not None and instant < after and zone is not UTC:
        second = naive.replace(tzinfo=zone, fold=1).timestamp()
        instant = second if second > after else instant
    return Moment(instant, (naive - _EPOCH).total_seconds(), text)


def padded(moment: Moment) -> str:
    """The time on the stream's wall as ``2016-12-01 00:00:10``.

    Examples
    --------
    >>> from production.clock import moment_of, padded
    >>> padded(moment_of("2016-12-1 0:00:10"))
    '2016-12-01 00:00:10'
    """
    return (_EPOCH + timedelta(seconds=moment.wall)).isoformat(sep=" ")
