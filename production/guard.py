"""The door of the service: who may enter, how much they may bring, how long they may take."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import logging
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from production.replies import fault_reply
from production.settings import Settings, is_loopback
from production.strict import RequestError

_log = logging.getLogger("anomaly.service")

_OPEN = frozenset({"/healthz", "/readyz"})
_READING_POSTS = frozenset(
    {"/SearchAnomaly", "/QuerySample", "/CountSample", "/QueryTrain", "/QueryTrainSource"}
)
_TRAINING = frozenset({"/Train", "/DeleteTrain", "/v1/promotion"})

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        b"img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
]

_READ_OFF = 4  # of a body too long, as a multiple of the longest allowed
_READ_OFF_S = 2.0


class Guard:
    """ASGI middleware round everything else.

    Parameters
    ----------
    app : ASGI application
    settings : Settings
    metrics : Metrics
        Told of every refusal.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Any) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        self.in_flight += 1
        try:
            self._admit(scope)
            await self._refuse_long(scope, receive)
            await self.app(scope, self._bounded(scope, receive), answer)
        except RequestError as fault:
            self.metrics.refused(fault.kind)
            if not started:
                await fault_reply(scope["path"], fault)(scope, receive, answer)
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not started:
                failure = RequestError(500, "the service failed; its log says why", "internal")
                await fault_reply(scope["path"], failure)(scope, receive, answer)
        finally:
            self.in_flight -= 1

    def _admit(self, scope: Scope) -> None:
        """Refuse strangers, then those who bring too much."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        self._check_origin(scope, headers)
        if scope["path"] not in _OPEN:
            self._check_token(scope, headers)
        if self.in_flight > self.settings.bounds.in_flight:
            raise RequestError(
                503,
                f"more than {self.settings.bounds.in_flight} requests are under way",
                kind="too_many_requests",
                retry_after_s=1,
            )

    async def _refuse_long(self, scope: Scope, receive: Receive) -> None:
        """Refuse a body said to be too long; read it off, so that its sender gets the answer."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or int(length[:20]) <= self._longest:
            return
        left = 0 if b"expect" in headers else _READ_OFF * self._longest
        with suppress(TimeoutError):
            async with asyncio.timeout(_READ_OFF_S):
                while left > 0:
                    message = await receive()
                    more = message.get("more_body", False)
                    left = left - len(message.get("body", b"")) if more else 0
        raise self._too_long()

    def _check_origin(self, scope: Scope, headers: dict[str, str]) -> None:
        """A web page elsewhere must not speak through a visitor's browser."""
        host = headers.get("host", "")
        if not self.settings.tokens and not is_loopback(_split(f"//{host}").hostname or ""):
            raise RequestError(
                403,
                f"host {host[:80]!r} is not this machine's own; without a token only "
                f"127.0.0.1 and localhost are served",
                kind="host",
            )
        origin = headers.get("origin")
        if origin and scope["method"] not in ("GET", "HEAD") and _split(origin).netloc != host:
            raise RequestError(403, "a page of another origin may not do this", kind="origin")

    def _check_token(self, scope: Scope, headers: dict[str, str]) -> None:
        if not self.settings.tokens:
            return
        given = _token_in(headers.get("authorization", "")).encode()
        roles: frozenset[str] = frozenset()
        for token, granted in self.settings.tokens.items():  # all of them: constant time
            if hmac.compare_digest(token.encode(), given):
                roles = roles | granted
        if not roles:
            raise RequestError(
                401, "send the token: Authorization: Bearer <token>", kind="unauthorized"
            )
        needed = role_for(scope["method"], scope["path"])
        if needed not in roles:
            raise RequestError(403, f"this token does not have the role {needed}", kind="role")

    @property
    def _longest(self) -> int:
        return self.settings.bounds.body_bytes

    def _too_long(self) -> RequestError:
        return RequestError(413, f"the body must have {self._longest} bytes at most", kind="body")

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Receive a body of bounded length within a bounded time."""
        taken, whole = 0, False
        end = asyncio.get_running_loop().time() + self.settings.bounds.body_timeout_s

        async def bounded() -> Message:
            nonlocal taken, whole
            if whole:  # only a disconnection can follow
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                raise RequestError(
                    408,
                    f"the body took more than {self.settings.bounds.body_timeout_s:g} s",
                    kind="body_timeout",
                ) from None
            taken += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if taken > self._longest:
                raise self._too_long()
            return message

        return bounded


def role_for(method: str, path: str) -> str:
    """The role that a call needs.

    Examples
    --------
    >>> from production.guard import role_for
    >>> role_for("GET", "/v1/streams"), role_for("POST", "/Train")
    ('read', 'train')
    """
    if path in _TRAINING:
        return "read" if method in ("GET", "HEAD") else "train"
    if method in ("GET", "HEAD", "OPTIONS") or path in _READING_POSTS:
        return "read"
    return "write"


def _split(url: str) -> SplitResult:
    """The parts of a URL, none if it is no URL, such as one with half a bracket."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _token_in(header: str) -> str:
    """The token of a Bearer header, or the password of a Basic one."""
    scheme, _, given = header.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


class TimedProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, hanging up on clients that take too long to send their headers."""

    header_timeout_s = 10.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._header_timer = self.loop.call_later(self.header_timeout_s, self._hang_up)

    def on_message_begin(self) -> None:
        self._header_timer.cancel()
        self._header_timer = self.loop.call_later(self.header_timeout_s, self._hang_up)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._header_timer.cancel()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_timer.cancel()
        super().connection_lost(exc)

    def _hang_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
