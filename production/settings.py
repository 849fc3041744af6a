"""How the service is started: options, a TOML file, and secrets from the environment."""

from __future__ import annotations

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from anomaly.errors import ParameterError
from production.lanes import Limits
from production.streams import StreamSettings

#: What each token may do. ``ANOMALY_TOKEN`` may do everything.
TOKENS = {
    "ANOMALY_TOKEN": frozenset({"read", "write", "train"}),
    "ANOMALY_TOKEN_TRAIN": frozenset({"read", "write", "train"}),
    "ANOMALY_TOKEN_WRITE": frozenset({"read", "write"}),
    "ANOMALY_TOKEN_READ": frozenset({"read"}),
}


@dataclass(frozen=True)
class Bounds:
    """What one request may take.

    Parameters
    ----------
    body_bytes : int
        Length of a body.
    rows : int
        Records of a batch, samples of an upload.
    fields : int
        Fields of a record.
    window : int
        Points of a KPI window.
    in_flight : int
        Requests under way at one time; more are told to come back.
    header_timeout_s, body_timeout_s : float
        Time for a client to send its headers and its body.
    """

    body_bytes: int = 8 << 20
    rows: int = 10_000
    fields: int = 64
    window: int = 10_080
    in_flight: int = 256
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0


@dataclass(frozen=True)
class Settings:
    """Everything that the service is told at its start.

    Examples
    --------
    >>> from production.settings import Settings
    >>> Settings(host="0.0.0.0").check()
    Traceback (most recent call last):
        ...
    anomaly.errors.ParameterError: --host 0.0.0.0 can be reached from outside, so a token is \
needed: set ANOMALY_TOKEN (16 characters or more), or bind to 127.0.0.1
    """

    host: str = "127.0.0.1"
    port: int = 5000
    database: str = "sqlite:///anomaly.sqlite"
    models: Path = Path("models")
    state: Path = Path("anomaly-state")
    bounds: Bounds = field(default_factory=Bounds)
    limits: Limits = field(default_factory=Limits)
    streams: StreamSettings = field(default_factory=StreamSettings)
    retention_days: float | None = None
    retention_rows: int | None = None
    tokens: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)

    def check(self) -> None:
        """Refuse what would leave the door open.

        Raises
        ------
        ParameterError
            For a bind beyond loopback without a token, or a token that is short.
        """
        if not self.tokens and not is_loopback(self.host):
            raise ParameterError(
                f"--host {self.host} can be reached from outside, so a token is needed: set "
                f"ANOMALY_TOKEN (16 characters or more), or bind to 127.0.0.1"
            )
        if any(len(token) < 16 for token in self.tokens):
            raise ParameterError("a token must have 16 characters or more")
        if not 0 <= self.port <= 65535:
            raise ParameterError(f"--port must be 0 to 65535, got {self.port}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host name.

    Examples
    --------
    >>> from production.settings import is_loopback
    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def tokens_from(environment: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """Tokens and their roles."""
    return {environment[n]: roles for n, roles in TOKENS.items() if environment.get(n)}


def read_settings(given: Mapping[str, Any], config: str | os.PathLike[str] | None) -> Settings:
    """Settings from options, which go before those of a TOML file.

    Parameters
    ----------
    given : mapping
        Options of the command line; None where not given.
    config : path, optional
        TOML with the names of `Settings`, and the tables ``bounds``, ``limits`` and
        ``streams``.
    """
    table: dict[str, Any] = {}
    if config is not None:
        with open(config, "rb") as file:
            try:
                table = tomllib.load(file)
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise ParameterError(f"{config}: {error}") from None
    parts: dict[str, Any] = {
        "bounds": _part(Bounds, table.pop("bounds", {}), "bounds"),
        "limits": _part(Limits, table.pop("limits", {}), "limits"),
        "streams": StreamSettings.read(table.pop("streams", {})),
        "tokens": tokens_from(os.environ),
    }
    known = {f.name for f in fields(Settings)} - set(parts)
    unknown = sorted(set(table) - known)
    if unknown:
        raise ParameterError(
            f"{config}: there is no setting {unknown[0]!r}; known are "
            f"{', '.join(sorted(known | {'bounds', 'limits', 'streams'}))}"
        )
    _check_types(table, config)
    options = table | {k: v for k, v in given.items() if v is not None}
    for name in ("models", "state"):
        if name in options:
            options[name] = Path(options[name])
    settings = replace(Settings(**parts), **options)
    settings.check()
    return settings


def _check_types(table: Mapping[str, Any], config: Any) -> None:
    wanted: dict[str, tuple[Any, ...]] = {"port": (int,), "retention_rows": (int,)}
    wanted["retention_days"] = (int, float)
    for key, value in table.items():
        kinds = wanted.get(key, (str,))
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ParameterError(f"{config}: {key} must be {kinds[-1].__name__}, got {value!r}")
        if key.startswith("retention_") and not float(value) > 0:
            raise ParameterError(f"{config}: {key} must be above 0, got {value!r}")


def _part(kind: Any, table: Any, name: str) -> Any:
    if not isinstance(table, dict):
        raise ParameterError(f"[{name}] must be a table, got {table!r:.80}")
    known = {f.name: f.default for f in fields(kind)}
    for key, value in table.items():
        if key not in known:
            raise ParameterError(
                f"[{name}] has no setting {key!r}; known are {', '.join(sorted(known))}"
            )
        whole = isinstance(known[key], int)
        if type(value) not in ((int,) if whole else (int, float)) or not value > 0:
            wanted = "a whole number" if whole else "a number"
            raise ParameterError(f"[{name}] {key} must be {wanted} above 0, got {value!r}")
    return kind(**table)
