"""MQTT brokers: where one is, who may enter, and a client that finds its way back."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from anomaly.errors import ParameterError, require

__all__ = ["Broker", "parse", "why_no_connection"]

# Secrets come from the environment only: an argument can be read by every user of a machine.
USERNAME, PASSWORD = "MQTT_USERNAME", "MQTT_PASSWORD"
CA_FILE, CERT_FILE, KEY_FILE = "MQTT_CA_FILE", "MQTT_CERT_FILE", "MQTT_KEY_FILE"

# A persistent session is kept by a broker of MQTT 5 for a day of absence.
SESSION_S = 86_400
KEEPALIVE_S = 30
LARGEST_QUEUE = 10_000


@dataclass(frozen=True)
class Broker:
    """Where a broker is and how to enter; `parse` makes one from a URL."""

    host: str
    port: int
    tls: bool = False
    version: str = "3.1.1"
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def __repr__(self) -> str:
        return f"Broker({'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port})"

    def client(self, client_id: str, *, persistent: bool = False, manual_ack: bool = False) -> Any:
        """Make a paho client, not yet connected.

        Parameters
        ----------
        client_id : str
            Fixed for a persistent session; empty for one the broker chooses.
        persistent : bool
            Whether the broker keeps subscriptions and messages while it is away.
        manual_ack : bool
            Whether messages are acknowledged by ``client.ack`` alone.
        """
        mqtt = require("paho.mqtt.client", extra="mqtt")
        five = self.version == "5"
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if five else not persistent,
            protocol=mqtt.MQTTv5 if five else mqtt.MQTTv311,
            manual_ack=manual_ack,
        )
        if self.username is not None:
            client.username_pw_set(self.username, self.password)
        if self.tls:
            self._encrypt(client)
        client.reconnect_delay_set(min_delay=1, max_delay=60)
        client.max_queued_messages_set(LARGEST_QUEUE)
        return client

    def _encrypt(self, client: Any) -> None:
        named = {CA_FILE: self.ca_file, CERT_FILE: self.cert_file, KEY_FILE: self.key_file}
        if self.key_file and not self.cert_file:
            raise ParameterError(f"broker: {KEY_FILE} is set without its {CERT_FILE}")
        for name, path in named.items():
            try:
                if path:
                    open(path, "rb").close()
            except OSError as error:
                raise ParameterError(f"broker: {name}: {error}") from None
        try:
            client.tls_set(*(path or None for path in named.values()))
        except (ssl.SSLError, ValueError) as error:
            given = ", ".join(f"{name}={path}" for name, path in named.items() if path)
            raise ParameterError(f"broker: no usable certificates in {given}: {error}") from None

    def connect(self, client: Any, *, persistent: bool = False) -> None:
        """Begin to connect; the client's loop does the rest, again and again."""
        options: dict[str, Any] = {}
        if self.version == "5":
            properties = require("paho.mqtt.properties", extra="mqtt")
            packets = require("paho.mqtt.packettypes", extra="mqtt")
            connecting = properties.Properties(packets.PacketTypes.CONNECT)
            connecting.SessionExpiryInterval = SESSION_S if persistent else 0
            options = {"clean_start": not persistent, "properties": connecting}
        client.connect_async(self.host, self.port, keepalive=KEEPALIVE_S, **options)


def why_no_connection() -> str:
    """Say what went wrong; for ``on_connect_fail``, which paho calls without a reason."""
    return str(sys.exc_info()[1] or "it cannot be reached")


def parse(
    url: str, *, version: str = "3.1.1", environment: Mapping[str, str] | None = None
) -> Broker:
    """Read a broker's URL, and the secrets from the environment.

    Parameters
    ----------
    url : str
        ``mqtt://host[:1883]`` or, with TLS, ``mqtts://host[:8883]``.
    version : {"3.1.1", "5"}
    environment : mapping, optional
        By default ``os.environ``: ``MQTT_USERNAME``, ``MQTT_PASSWORD``, and with TLS
        ``MQTT_CA_FILE``, ``MQTT_CERT_FILE``, ``MQTT_KEY_FILE``.

    Raises
    ------
    ParameterError

    Examples
    --------
    >>> from anomaly.broker import parse
    >>> parse("mqtt://localhost", environment={})
    Broker(mqtt://localhost:1883)
    >>> parse("mqtt://me:secret@localhost", environment={})
    Traceback (most recent call last):
        ...
    anomaly.errors.ParameterError: broker: user and password do not belong in the URL; \
set MQTT_USERNAME and MQTT_PASSWORD
    """
    values = os.environ if environment is None else environment
    parts = urlsplit(url if "//" in url else f"mqtt://{url}")
    if parts.username or parts.password:
        raise ParameterError(
            f"broker: user and password do not belong in the URL; set {USERNAME} and {PASSWORD}"
        )
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path not in ("", "/"):
        raise ParameterError(
            f"broker: a URL like mqtt://localhost:1883 or mqtts://host:8883 is needed, got {url!r}"
        )
    if version not in ("3.1.1", "5"):
        raise ParameterError(f"version: must be 3.1.1 or 5, got {version!r}")
    try:
        port = parts.port
    except ValueError:
        raise ParameterError(f"broker: the port must be 1 to 65535, got {url!r}") from None
    tls = parts.scheme == "mqtts"
    broker = Broker(parts.hostname, port or (8883 if tls else 1883), tls, version)
    return replace(
        broker,
        username=values.get(USERNAME),
        password=values.get(PASSWORD),
        ca_file=values.get(CA_FILE),
        cert_file=values.get(CERT_FILE),
        key_file=values.get(KEY_FILE),
    )
