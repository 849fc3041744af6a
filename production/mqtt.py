"""Watch devices of an MQTT broker: samples in, anomaly scores out, through every outage.

The network thread only puts messages into a bounded inbox. One worker writes
them to the journal, feeds the devices, publishes the answers and acknowledges
the messages, in this order; so what is acknowledged is neither lost nor counted
twice, whoever is killed.

    python -m production.mqtt --broker mqtt://localhost:1883 \\
        --subscribe 'plant/+/vibration' --publish 'plant/{device}/anomaly' --state state
"""

from __future__ import annotations

import argparse
import difflib
import http.server
import json
import logging
import signal
import sqlite3
import sys
import threading
import time
import tomllib
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from anomaly.broker import Broker, parse, why_no_connection
from anomaly.errors import AnomalyError, DataError, ParameterError
from anomaly.files import write_aside
from anomaly.vibration import VibrationDetector
from anomaly.waveform import FEWEST_LEARNT, WindowDetector
from production.classify import load
from production.devices import Device, Plan, parse_samples
from production.mqtt_journal import Journal, Record
from production.results import Results, draw

__all__ = ["Inbox", "Route", "Runner", "Settings", "Watch", "main"]

log = logging.getLogger("production.mqtt")

MOST_AT_ONCE = 1000  # messages per turn of the worker
MOST_DEVICES = 10_000
QUEUE_FULL = 15  # of paho: more answers wait for the broker than the client keeps
RENEWAL_S = 5.0  # least time between connections made anew for messages held back
JOURNAL_BYTES = 64 << 20  # a longer journal is replaced by a snapshot
IOT_2 = "iot-2/type/{}/id/{}/{}/{}/fmt/json"


# ---- settings


@dataclass(frozen=True)
class Route:
    """Which topics are watched, how, and where answers go.

    ``{device}`` in a topic is what the wildcards of ``subscribe`` matched, joined
    by ``/``; ``{0}``, ``{1}``, … are its levels.
    """

    subscribe: str
    publish: str = "anomaly/{device}"
    alert: str | None = None
    status: str | None = None
    reset: str | None = None
    device: str | None = None
    detector: str | None = None
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        filters = {"subscribe": self.subscribe, "reset": self.reset}
        for name, text in filters.items():
            if text is not None:
                _check_filter(name, text)
        n_levels = min(text.split("/").count("+") for text in filters.values() if text is not None)
        for pattern in (self.publish, self.alert, self.status):
            if pattern is None:
                continue
            try:
                sample = pattern.format(*"a" * n_levels, device="device")
            except (AttributeError, IndexError, KeyError, ValueError):
                raise ParameterError(
                    f"publish: only {{device}} and one of {{0}}, {{1}}, … for each + of the "
                    f"filter may stand in braces, got {pattern!r} and {self.subscribe!r}"
                ) from None
            if not sample or set("+#\0") & set(sample):
                raise ParameterError(
                    f"publish: a topic without + and # is needed, got {pattern!r}"
                )
            if levels(self.subscribe, sample) is not None:
                raise ParameterError(
                    f"publish: {pattern!r} is itself within subscribe={self.subscribe!r}; "
                    "the runner would hear its own answers"
                )


@dataclass(frozen=True)
class Settings:
    """Everything a runner is told."""

    broker: Broker
    routes: tuple[Route, ...]
    client_id: str = "anomaly"
    state: str | None = None
    sync: bool = False
    inbox: int = 10_000
    when_full: str = "hold"
    qos: int = 1
    store: str | None = None
    plot: str | None = None
    health: str | None = None
    metrics_port: int | None = None
    snapshot_s: float = 30.0

    def __post_init__(self) -> None:
        if self.when_full not in ("hold", "drop"):
            raise ParameterError(f"when_full: must be hold or drop, got {self.when_full!r}")
        if self.inbox < 1 or self.qos not in (0, 1):
            raise ParameterError(
                f"inbox must be 1 at least and qos 0 or 1, got {self.inbox} and {self.qos}"
            )
        if not 0 <= (self.metrics_port or 0) <= 65535:
            raise ParameterError(f"metrics_port: must be 0 to 65535, got {self.metrics_port}")


def iot_2() -> Route:
    """Topics of the Watson IoT platform: ``osc`` in, ``status`` and ``alert`` out."""
    return Route(
        subscribe=IOT_2.format("+", "+", "evt", "osc"),
        publish=IOT_2.format("{0}", "{1}", "evt", "status"),
        alert=IOT_2.format("{0}", "{1}", "evt", "alert"),
        reset=IOT_2.format("+", "+", "cmd", "to_healthy"),
    )


def read_settings(path: str | Path) -> Settings:
    """Read a TOML file with tables ``[broker]``, ``[runner]`` and one ``[[watch]]`` each."""
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: not TOML: {error}") from None
    _only_known(tables, {"broker", "runner", "watch"}, str(path))
    place = tables.get("broker", {})
    _only_known(place, {"url", "version"}, f"{path}: [broker]")
    _typed(place, {"url": str, "version": str}, f"{path}: [broker]")
    runner = tables.get("runner", {})
    known = {f.name for f in fields(Settings)} - {"broker", "routes"}
    _only_known(runner, known, f"{path}: [runner]")
    _typed(runner, get_type_hints(Settings), f"{path}: [runner]")
    watched = tables.get("watch", [])
    if not isinstance(watched, list):
        raise ParameterError(f"{path}: watch must be tables [[watch]], got {watched!r:.80}")
    routes = tuple(_route(table, f"{path}: [[watch]]") for table in watched)
    if not routes:
        raise ParameterError(f"{path}: at least one [[watch]] is needed, got none")
    broker = parse(place.get("url", "mqtt://localhost"), version=place.get("version", "3.1.1"))
    return Settings(broker, routes, **runner)


def _route(table: Mapping[str, Any], where: str) -> Route:
    of_plan = {f.name for f in fields(Plan)}
    of_route = {f.name for f in fields(Route)} - {"plan"}
    _only_known(table, of_plan | of_route | {"preset"}, where)
    _typed(table, get_type_hints(Route) | get_type_hints(Plan) | {"preset": str}, where)
    planned = {name: table[name] for name in table if name in of_plan}
    if "fields" in planned:
        planned["fields"] = tuple(planned["fields"])
    given = {name: table[name] for name in table if name in of_route}
    plan = Plan(**planned)
    if table.get("preset") == "iot-2":
        return replace(iot_2(), plan=plan, **given)
    if "preset" in table:
        raise ParameterError(f"{where}: preset must be 'iot-2', got {table['preset']!r}")
    if "subscribe" not in given:
        raise ParameterError(f"{where}: subscribe is missing")
    return Route(**given, plan=plan)


def _check_filter(name: str, text: str) -> None:
    parts = text.split("/")
    misplaced = any(len(part) > 1 and set("+#") & set(part) for part in parts)
    if not text or "\0" in text or misplaced or "#" in parts[:-1]:
        raise ParameterError(
            f"{name}: a topic filter is needed, with + as a whole level and # as the last one, "
            f"got {text!r}"
        )


def _typed(table: Mapping[str, Any], hints: Mapping[str, Any], where: str) -> None:
    """Refuse values of another type than the field they are for."""
    for name, value in table.items():
        hint = hints[name]
        options = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        kinds = {get_origin(option) or option for option in options}
        if kinds & {tuple}:
            fits = isinstance(value, list | tuple) and all(type(item) is str for item in value)
        else:
            fits = type(value) in kinds or (float in kinds and type(value) is int)
        if not fits:
            wanted = ", ".join(
                {"str": "a string", "int": "a whole number", "float": "a number"}.get(
                    kind.__name__, "true or false" if kind is bool else "a list of strings"
                )
                for kind in kinds - {type(None)}
            )
            raise ParameterError(f"{where}: {name} must be {wanted}, got {value!r:.80}")


def _only_known(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if not isinstance(table, Mapping):
        raise ParameterError(f"{where}: a table of keys is needed, got {table!r:.80}")
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ParameterError(
                f"{where}: unknown key {name!r}; allowed: {', '.join(sorted(known))}{meant}"
            )


# ---- the core: records to answers


def levels(pattern: str, topic: str) -> list[str] | None:
    """What the wildcards of a topic filter match in a topic; None if it does not match.

    Examples
    --------
    >>> from production.mqtt import levels
    >>> levels("plant/+/vibration", "plant/press-1/vibration")
    ['press-1']
    >>> levels("plant/+/vibration", "plant/press-1/status") is None
    True
    """
    wanted, came = pattern.split("/"), topic.split("/")
    matched: list[str] = []
    for i, level in enumerate(wanted):
        if level == "#":
            return [*matched, *came[i:]]
        if i >= len(came) or level not in ("+", came[i]):
            return None
        if level == "+":
            matched.append(came[i])
    return matched if len(came) == len(wanted) else None


class Outgoing(NamedTuple):
    """A message to publish."""

    topic: str
    message: dict[str, Any]
    retain: bool = False


class Watch:
    """Devices of all routes. Messages go in by `apply`, messages to publish come out."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = tuple(routes)
        self.devices: dict[str, Device] = {}
        self.counts: Counter[str] = Counter()
        self._templates = [_template(route) for route in self.routes]

    def apply(self, record: Record) -> list[Outgoing]:
        """Take one message."""
        self.counts["messages"] += 1
        for i, route in enumerate(self.routes):
            matched = levels(route.subscribe, record.topic)
            if matched is not None:
                return self._measure(i, matched, record)
            if (
                route.reset is not None
                and (found := levels(route.reset, record.topic)) is not None
            ):
                device = self.devices.get(route.device or "/".join(found))
                if device is not None:
                    device.reset()
                    return [self._status(route, found, device)]
        return []

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on."""
        return {"devices": self.devices, "counts": self.counts}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier `state`."""
        self.devices, self.counts = state["devices"], state["counts"]

    # -- private

    def _measure(self, number: int, matched: list[str], record: Record) -> list[Outgoing]:
        route = self.routes[number]
        try:
            samples, marked = parse_samples(record.payload, route.plan.fields)
            device = self._device(route.device or "/".join(matched), number)
        except DataError as error:
            self.counts["refused"] += 1
            if self.counts["refused"].bit_count() == 1:  # the 1st, 2nd, 4th, 8th, …
                log.warning("%.100s: %s (%d refused)", record.topic, error, self.counts["refused"])
            return []
        if device.is_duplicate(record.payload, marked, record.mid, record.redelivered):
            self.counts["duplicates"] += 1
            return []
        self.counts["samples"] += len(samples)
        before = device.status()["state"]
        answers = device.feed(samples)
        return self._publishing(route, matched, device, answers, before)

    def _device(self, name: str, number: int) -> Device:
        if name not in self.devices:
            if len(self.devices) >= MOST_DEVICES:
                raise DataError(f"device: at most {MOST_DEVICES} are watched, got {name!r:.80}")
            detector, fitted = self._templates[number]
            self.devices[name] = Device.start(name, self.routes[number].plan, detector, fitted)
        return self.devices[name]

    def _publishing(
        self,
        route: Route,
        matched: list[str],
        device: Device,
        answers: list[dict[str, Any]],
        before: str,
    ) -> list[Outgoing]:
        sent = []
        for answer in answers:
            self.counts[f"{answer['event']}s"] += 1
            self.counts["anomalies"] += bool(answer.get("anomaly"))
            sent.append(Outgoing(_filled(route.publish, matched, device.name), answer))
            if route.alert is not None and answer.get("anomaly"):
                sent.append(Outgoing(_filled(route.alert, matched, device.name), answer))
        if answers or device.status()["state"] != before:
            sent.append(self._status(route, matched, device))
        return sent

    def _status(self, route: Route, matched: list[str], device: Device) -> Outgoing:
        pattern = route.status or f"{route.publish}/state"
        return Outgoing(_filled(pattern, matched, device.name), device.status(), retain=True)


def _filled(pattern: str, matched: list[str], device: str) -> str:
    return pattern.format(*matched, device=device)


def _template(route: Route) -> tuple[WindowDetector, bool]:
    """The detector each device of a route starts with, and whether it is fitted."""
    if route.detector is None:
        detector = _fits_window(VibrationDetector(), route)
        wanted = FEWEST_LEARNT * detector.window_size
        if route.plan.learn * route.plan.window < wanted:
            raise ParameterError(
                f"learn: {wanted} samples at least are needed to tell healthy from not, got "
                f"learn={route.plan.learn} windows of {route.plan.window}; "
                f"learn={-(-wanted // route.plan.window)} is enough"
            )
        return detector, False
    classifier = load(route.detector)
    detector = classifier.pipeline.steps[-1][1]
    if not isinstance(detector, WindowDetector):
        raise ParameterError(
            f"detector: {route.detector} must hold a detector of windows such as "
            f"VibrationDetector, got {type(detector).__name__}"
        )
    if tuple(classifier.columns) != route.plan.fields:
        raise ParameterError(
            f"fields: {route.detector} was fitted to {', '.join(classifier.columns)}, "
            f"got {', '.join(route.plan.fields)}"
        )
    return _fits_window(detector, route), True


def _fits_window(detector: WindowDetector, route: Route) -> WindowDetector:
    if route.plan.window < detector.window_size:
        raise ParameterError(
            f"window: the detector judges {detector.window_size} samples at once, "
            f"so a window has at least as many, got {route.plan.window}"
        )
    return detector


# ---- the inbox


class Item(NamedTuple):
    """A message in the inbox, with what its acknowledgement needs."""

    record: Record
    qos: int
    epoch: int


class Inbox:
    """A bounded queue between the network and the worker; putting never waits.

    When it is full, ``drop`` gives up the oldest message and counts it. With
    ``hold`` it never is, as long as it has room for all that a broker sends before
    it waits for acknowledgements, which is ``max_inflight_messages`` of Mosquitto
    (20 by default). Beyond it no more are taken until the connection has been
    renewed: what is not acknowledged, the broker of a persistent session sends again.
    """

    def __init__(self, size: int, when_full: str) -> None:
        self._size, self._hold = size, when_full == "hold"
        self._items: deque[Item] = deque()
        self._ready = threading.Condition()
        self.held = self.dropped = 0
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> Item | None:
        """Add a message; returns one that was given up for it."""
        with self._ready:
            lost = None
            if self.overflowed or (self._hold and len(self._items) >= self._size):
                self.overflowed = True
                self.held += 1
                return None
            if len(self._items) >= self._size:
                lost = self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._ready.notify()
            return lost

    def take(self, timeout_s: float) -> list[Item]:
        """All messages that wait, up to a bound; none after the time-out."""
        with self._ready:
            if not self._items:
                self._ready.wait(timeout_s)
            n = min(len(self._items), MOST_AT_ONCE)
            return [self._items.popleft() for _ in range(n)]

    def renew(self) -> None:
        """Take messages again, after the connection was renewed."""
        with self._ready:
            self.overflowed = False


# ---- the runner


class Runner:
    """The worker and its network thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.watch = Watch(settings.routes)
        self.inbox = Inbox(settings.inbox, settings.when_full)
        self.connected = False
        self.lost_answers = 0
        self.stopping = threading.Event()
        self._epoch = 0
        self._sent = self._delivered = 0
        self._greetings: set[int] = set()
        self._trouble: str | None = None
        self._refused = False
        self._journal = Journal(settings.state, sync=settings.sync) if settings.state else None
        self._results = Results(settings.store) if settings.store else None
        self._will = f"anomaly/{settings.client_id}/runner"
        self._client = self._make_client()
        self._due = {"renewal": 0.0, "snapshot": 0.0, "health": 0.0, "plot": 0.0}
        self._write_health()  # where it cannot be written, the runner does not begin

    @property
    def persistent(self) -> bool:
        """Whether the broker keeps messages while this runner is away."""
        return self._journal is not None

    def run(self) -> None:
        """Watch until `stopping` is set."""
        self._recover()
        metrics = serve_metrics(self) if self.settings.metrics_port is not None else None
        self.metrics_port = metrics.server_address[1] if metrics is not None else None
        self._connect()
        try:
            while not self.stopping.is_set():
                self._take(self.inbox.take(timeout_s=0.2))
                self._keep_house()
        finally:
            self._close()
            if metrics is not None:
                metrics.shutdown()
                metrics.server_close()

    # -- the worker

    def _recover(self) -> None:
        if self._journal is None:
            return
        state, records = self._journal.recover()
        if state is not None:
            self.watch.restore(state)
        for record in records:
            self._publish(self.watch.apply(record))
        log.info("recovered %d devices, %d messages", len(self.watch.devices), len(records))

    def _take(self, items: list[Item]) -> None:
        """Durable first, then applied and published, acknowledged last."""
        if not items:
            return
        if self._journal is not None:
            self._journal.append(item.record for item in items)
        for item in items:
            self._publish(self.watch.apply(item.record))
        for item in items:
            self._acknowledge(item)

    def _acknowledge(self, item: Item) -> None:
        # A number of an earlier connection may mean another message now.
        if item.qos and item.epoch == self._epoch and self.connected:
            self._client.ack(item.record.mid, item.qos)

    def _publish(self, messages: Iterable[Outgoing]) -> None:
        messages = list(messages)
        for topic, message, retain in messages:
            text = json.dumps(message)
            self._sent += 1
            sent = self._client.publish(topic, text, qos=self.settings.qos, retain=retain)
            if sent.rc == QUEUE_FULL:
                self.lost_answers += 1
                self._sent -= 1
        if self._results is not None:
            self._results.write(m.message for m in messages if "event" in m.message)

    def _keep_house(self) -> None:
        if (
            self.inbox.overflowed
            and not len(self.inbox)
            and self.connected
            and self._is_due("renewal", RENEWAL_S)
        ):
            log.warning("the inbox is smaller than what the broker sends unacknowledged")
            self._disconnect()
            self._connect()
        if self._sent == self._delivered:
            self._snapshot()
        if self._is_due("health", 5.0):
            self._write_health()
        if self.settings.plot and self._is_due("plot", 60.0):
            self._draw()

    def _write_health(self) -> None:
        if self.settings.health:
            with write_aside(self.settings.health) as file:
                json.dump(self.report(), file)

    def _snapshot(self) -> None:
        """Replace the journal. Not while answers wait: it is what would repeat them."""
        if self._journal is None or self._journal.size == 0:
            return
        due = self._is_due("snapshot", self.settings.snapshot_s)
        if due or self._journal.size > JOURNAL_BYTES:
            self._journal.snapshot(self.watch.state())

    def _is_due(self, task: str, period_s: float) -> bool:
        now = time.monotonic()
        if now < self._due[task]:
            return False
        self._due[task] = now + period_s
        return True

    def _draw(self) -> None:
        folder = Path(self.settings.plot or ".")
        folder.mkdir(parents=True, exist_ok=True)
        for device in list(self.watch.devices.values()):
            draw(device, folder)

    def report(self) -> dict[str, Any]:
        """Counts and gauges, for the health file and the metrics."""
        return {
            "time": time.time(),
            "connected": int(self.connected),
            "connections": self._epoch,
            "inbox": len(self.inbox),
            "dropped": self.inbox.dropped,
            "held": self.inbox.held,
            "lost_answers": self.lost_answers,
            "devices": len(self.watch.devices),
            **{name: self.watch.counts[name] for name in COUNTED},
        }

    def _close(self) -> None:
        self.stopping.set()
        give_up = time.monotonic() + 5.0
        while self.connected and self._sent != self._delivered and time.monotonic() < give_up:
            time.sleep(0.01)
        if self.connected:
            self._client.publish(self._will, "stopped", qos=1, retain=True)
        self._disconnect()
        if self._journal is not None:
            if self._sent == self._delivered:
                self._journal.snapshot(self.watch.state())
            self._journal.close()
        if self.settings.plot:
            self._draw()
        if self._results is not None:
            self._results.close()

    # -- the network thread

    def _make_client(self) -> Any:
        client = self.settings.broker.client(
            self.settings.client_id, persistent=self.persistent, manual_ack=True
        )
        client.will_set(self._will, "lost", qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_connect_fail = lambda *_: self._say_once(why_no_connection())
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def _connect(self) -> None:
        self.settings.broker.connect(self._client, persistent=self.persistent)
        self._client.loop_start()

    def _disconnect(self) -> None:
        """Say goodbye after all that was to be sent, and end the network thread."""
        self.connected = False
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        if reason.is_failure:
            self._refused = True
            self._say_once(f"it refused the connection: {reason}")
            return
        self._trouble = None
        self._epoch += 1
        self.inbox.renew()
        self.connected = True
        log.info("connected to %r", self.settings.broker)
        for route in self.settings.routes:
            client.subscribe(route.subscribe, qos=self.settings.qos)
            if route.reset is not None:
                client.subscribe(route.reset, qos=self.settings.qos)
        self._greetings.add(client.publish(self._will, "watching", qos=1, retain=True).mid)

    def _on_publish(self, _client: Any, _data: Any, mid: int, _reason: Any, _more: Any) -> None:
        if mid in self._greetings:
            self._greetings.remove(mid)
        else:
            self._delivered += 1

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _m: Any) -> None:
        was_connected, self.connected = self.connected, False
        refused, self._refused = self._refused, False
        if was_connected and not self.stopping.is_set():
            log.warning("disconnected from %r: %s", self.settings.broker, reason)
        elif not refused and not self.stopping.is_set():
            self._say_once("it hung up before it answered; does it want TLS or a certificate?")

    def _say_once(self, trouble: str) -> None:
        """One line for each new reason, however often the connection is tried."""
        if trouble != self._trouble:
            self._trouble = trouble
            log.error("no connection to %r: %s; trying again", self.settings.broker, trouble)

    def _on_message(self, client: Any, _data: Any, message: Any) -> None:
        if message.retain:  # an old sample, kept for newcomers
            client.ack(message.mid, message.qos)
            return
        record = Record(message.topic, bytes(message.payload), message.mid, bool(message.dup))
        lost = self.inbox.put(Item(record, message.qos, self._epoch))
        if lost is not None:
            self._acknowledge(lost)


# ---- metrics

COUNTED = (
    *("messages", "samples", "refused", "duplicates"),
    *("windows", "alarms", "anomalies", "learnts"),
)
_GAUGES = ("connected", "inbox", "devices", "time")


def metrics_text(report: Mapping[str, float]) -> str:
    """Render a runner's report in Prometheus' text format.

    Examples
    --------
    >>> from production.mqtt import metrics_text
    >>> print(metrics_text({"inbox": 3}), end="")
    # TYPE anomaly_mqtt_inbox gauge
    anomaly_mqtt_inbox 3
    """
    lines = []
    for name, value in report.items():
        kind = "gauge" if name in _GAUGES else "counter"
        full = f"anomaly_mqtt_{name}{'' if kind == 'gauge' else '_total'}"
        lines.append(f"# TYPE {full} {kind}\n{full} {value}\n")
    return "".join(lines)


def serve_metrics(runner: Runner) -> http.server.ThreadingHTTPServer:
    """Serve ``/metrics`` on the loopback in a thread of its own."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics_text(runner.report()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    port = runner.settings.metrics_port or 0
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise ParameterError(f"metrics_port: {port} cannot be opened: {error.strerror}") from None
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


# ---- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success, 2 a mistake of the user."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        runner = Runner(_settings(options))
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda *_: runner.stopping.set())
        runner.run()
    except (AnomalyError, OSError, sqlite3.Error) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    if options.config is not None:
        return read_settings(options.config)
    table = {
        name: value
        for name, value in vars(options).items()
        if name in {*(f.name for f in fields(Plan)), "subscribe", "publish", "detector", "preset"}
        and value is not None
    }
    if "subscribe" not in table and "preset" not in table:
        raise ParameterError("--subscribe, --preset or --config is needed")
    return Settings(
        parse(options.broker, version=options.mqtt_version),
        (_route(table, "command line"),),
        **{
            name: getattr(options, name)
            for name in (f.name for f in fields(Settings))
            if name not in ("broker", "routes", "snapshot_s", "sync")
        },
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m production.mqtt",
        description="Watch the vibration of devices on an MQTT broker. Without a detector, each "
        "device's first windows are learnt as healthy. User, password and certificates come from "
        "MQTT_USERNAME, MQTT_PASSWORD, MQTT_CA_FILE, MQTT_CERT_FILE and MQTT_KEY_FILE.",
        epilog="example: python -m production.mqtt --subscribe 'plant/+/vibration' "
        "--publish 'plant/{device}/anomaly' --detector bearing.clf --state state",
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="TOML file in place of all other options")
    add("--broker", default="mqtt://localhost:1883", metavar="URL", help="mqtt:// or mqtts://")
    add("--mqtt-version", default="3.1.1", choices=("3.1.1", "5"))
    add("--client-id", default="anomaly", help="fixed: the broker's session hangs on it")
    add("--subscribe", metavar="FILTER", help="topics of the samples, e.g. 'plant/+/vibration'")
    add("--publish", metavar="TOPIC", help="of the answers, e.g. 'plant/{device}/anomaly'")
    add("--preset", choices=("iot-2",), help="topics of the Watson IoT platform")
    add("--fields", type=lambda text: tuple(text.split(",")), help="channels, e.g. x,y,z")
    add("--detector", metavar="FILE", help="written by python -m anomaly.bearing")
    add("--learn", type=int, metavar="N", help="healthy windows to learn without a detector (1)")
    add("--window", type=int, help="samples per answer (3000)")
    add("--hop", type=int, help="samples from one answer to the next (window)")
    add(
        "--continuous",
        action="store_true",
        default=None,
        help="an autoencoder goes on learning healthy windows; an alarm freezes it",
    )
    add("--state", metavar="DIR", help="where state survives; makes the session persistent")
    add("--qos", type=int, choices=(0, 1), default=1)
    add("--inbox", type=int, default=10_000, help="messages that may wait")
    add(
        "--when-full", choices=("hold", "drop"), default="hold", help="stop acknowledging, or drop"
    )
    add("--store", metavar="FILE", help="SQLite database for the answers")
    add("--plot", metavar="DIR", help="a picture per device, each minute and at the end")
    add("--health", metavar="FILE", help="JSON, renewed every 5 s")
    add("--metrics-port", type=int, help="Prometheus metrics on the loopback")
    return parser


if __name__ == "__main__":
    sys.exit(main())
