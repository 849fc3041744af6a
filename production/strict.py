"""JSON and ids from strangers: read strictly, refused in one sentence."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from anomaly.errors import AnomalyError

MAX_DEPTH = 32
MAX_DIGITS = 400

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DEPTH = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_LONG_NUMBER = re.compile(rf"[0-9.eE+-]{{{MAX_DIGITS},}}")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class RequestError(AnomalyError, ValueError):
    """A request that cannot be taken: its status, its kind and one sentence.

    Parameters
    ----------
    status : int
        HTTP status, 400 to 599.
    detail : str
        One sentence, which names the field or the limit.
    kind : str
        A word for metrics and for the problem's type.
    retry_after_s : int, optional
        When to try again.
    """

    def __init__(
        self, status: int, detail: str, kind: str = "invalid", retry_after_s: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind
        self.retry_after_s = retry_after_s


def read_json(content: bytes | str) -> Any:
    """Parse JSON, refusing what parsers disagree about.

    Refused are NaN and infinite numbers (also ``1e999``), a key that occurs twice
    in an object, nesting deeper than `MAX_DEPTH`, text that is not UTF-8 and
    characters that no database stores (NUL, lone surrogates).

    Raises
    ------
    RequestError
        With status 400.

    Examples
    --------
    >>> from production.strict import read_json
    >>> read_json(b'{"timestamp": "2016-12-1 0:00:10", "actualValue": 3855.0}')
    {'timestamp': '2016-12-1 0:00:10', 'actualValue': 3855.0}
    >>> read_json('{"a": 1e999}')
    Traceback (most recent call last):
        ...
    production.strict.RequestError: JSON number 1e999 is too large
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise RequestError(400, f"the body is not UTF-8 text (byte {error.start})") from None
    if not text.strip():
        raise RequestError(400, "JSON is needed, got nothing")
    _check_depth(text)
    if len(text) > MAX_DIGITS and _LONG_NUMBER.search(_without_strings(text)):
        raise RequestError(400, f"a JSON number has more than {MAX_DIGITS} characters")
    try:
        found = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RequestError(
            400, f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    if "\\u" in text or "\x00" in text:
        _check_text(found)
    return found


def _without_strings(text: str) -> str:
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', text, flags=re.DOTALL)


def _check_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _DEPTH.finditer(text):
        mark = found.group()
        depth += mark in "[{"
        depth -= mark in "]}"
        if depth > MAX_DEPTH:
            raise RequestError(400, f"JSON is nested deeper than {MAX_DEPTH} levels")


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            raise RequestError(400, "a text holds a NUL character or half a surrogate pair")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_text(key)
            _check_text(inner)
    elif isinstance(value, list):
        for inner in value:
            _check_text(inner)


def _no_constant(name: str) -> float:
    raise RequestError(400, f"{name} is not a JSON number; leave a missing value out or send null")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise RequestError(400, f"JSON number {text[:40]} is too large")
    return number


def _whole(text: str) -> int | float:
    return int(text) if len(text) < 19 else _finite(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RequestError(400, f"JSON key {twice[:64]!r} occurs twice in one object")
    return found


_DECODER = json.JSONDecoder(
    parse_constant=_no_constant,
    parse_float=_finite,
    parse_int=_whole,
    object_pairs_hook=_unique,
)


def checked_id(text: Any, name: str = "id") -> str:
    """An id of 1 to 64 letters, digits, dots, underscores and hyphens.

    Examples
    --------
    >>> from production.strict import checked_id
    >>> checked_id("boiler-7.in")
    'boiler-7.in'
    """
    if text is None:
        raise RequestError(422, f"{name} is missing")
    if not isinstance(text, str) or not _ID.fullmatch(text) or text in (".", ".."):
        raise RequestError(
            422,
            f"{name} must be 1 to 64 of the characters A-Z a-z 0-9 . _ -, got {str(text)[:80]!r}",
        )
    return text


def as_object(value: Any, name: str, allowed: frozenset[str] | None = None) -> dict[str, Any]:
    """The value as a JSON object, with no key but the allowed ones."""
    if not isinstance(value, dict):
        raise RequestError(422, f"{name} must be a JSON object, got {kind_of(value)}")
    unknown = sorted(set(value) - allowed) if allowed is not None else []
    if unknown:
        raise RequestError(
            422,
            f"{name} has no field {unknown[0][:64]!r}; it may have "
            f"{', '.join(sorted(allowed or ()))}",
        )
    return value


def as_number(value: Any, name: str) -> float:
    """The value as a finite float; booleans and texts are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(422, f"{name} must be a number, got {kind_of(value)}")
    return float(value)


def as_text(value: Any, name: str, longest: int = 255) -> str:
    """The value as a text of bounded length."""
    if not isinstance(value, str):
        raise RequestError(422, f"{name} must be a text, got {kind_of(value)}")
    if len(value) > longest:
        raise RequestError(422, f"{name} must have {longest} characters at most, got {len(value)}")
    if _UNSTORABLE.search(value):
        raise RequestError(422, f"{name} holds a NUL character or half a surrogate pair")
    return value


def as_whole(value: Any, name: str, low: int, high: int) -> int:
    """The value as an integer between two bounds; its digits as text will do."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(422, f"{name} must be a whole number, got {kind_of(value)}")
    if not low <= value <= high:
        raise RequestError(422, f"{name} must be {low} to {high}, got {value}")
    return value


def kind_of(value: Any) -> str:
    """What JSON calls a value, with the value where it is short.

    Examples
    --------
    >>> from production.strict import kind_of
    >>> kind_of([1]), kind_of("x"), kind_of(None)
    ('an array', "the text 'x'", 'null')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "an array" if isinstance(value, list) else "an object"
