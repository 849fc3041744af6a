"""The Lorenz system as a bearing with three axes, healthy, broken or in between.

python -m anomaly.lorenz --state broken --seconds 30 --csv broken.csv
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly.broker import Broker, parse, why_no_connection
from anomaly.errors import AnomalyError, ParameterError
from anomaly.files import write_aside

# Step of the integration; one step is one sample of 10 ms.
STEP = 0.008
START = (2.0, 3.0, 4.0)

# Standard deviation of each healthy axis, the unit of noise.
SPREAD = (7.92, 8.99, 8.62)

# Samples made at once for a file.
AT_ONCE = 10_000

# Messages that may wait for the broker's acknowledgement.
MOST_WAITING = 1000

# How long to wait for the first connection.
CONNECT_S = 10.0


class Constants(NamedTuple):
    """Constants of the Lorenz equations."""

    a: float
    b: float
    c: float


HEALTHY = Constants(10.0, 28.0, 8.0 / 3.0)
BROKEN = Constants(30.0, 128.0, 28.0 / 3.0)


def between(fraction: float) -> Constants:
    """Constants a given share of the way from healthy (0) to broken (1).

    Examples
    --------
    >>> from anomaly.lorenz import between
    >>> between(0.5)
    Constants(a=20.0, b=78.0, c=6.0)
    """
    if fraction in (0.0, 1.0):
        return BROKEN if fraction else HEALTHY
    return Constants(*(h + fraction * (b - h) for h, b in zip(HEALTHY, BROKEN, strict=True)))


def steps(
    schedule: Callable[[int], float], start: tuple[float, float, float] = START
) -> Iterator[tuple[float, float, float]]:
    """Samples without end; each step uses the axes already moved in it.

    Parameters
    ----------
    schedule : callable
        Takes the number of the sample, from 0, and returns the share of the way
        from healthy to broken. The position of the system is kept when it changes.
    start : tuple of 3 floats
        Position before the first sample.

    Yields
    ------
    tuple of 3 floats
        ``x, y, z`` after each step.
    """
    x, y, z = start
    h, number, fraction = STEP, 0, None
    while True:
        if schedule(number) != fraction:
            fraction = schedule(number)
            a, b, c = between(fraction)
        x += h * a * (y - x)
        y += h * (x * (b - z) - y)
        z += h * (x * y - c * z)
        yield x, y, z
        number += 1


def simulate(
    n_samples: int,
    fraction: float | Callable[[int], float] = 0.0,
    *,
    noise: float = 0.0,
    start: tuple[float, float, float] = START,
    random_state: int | np.random.Generator | None = None,
) -> NDArray[np.float64]:
    """Simulate a recording at 100 Hz.

    Parameters
    ----------
    n_samples : int
    fraction : float or callable, default 0.0
        Share of the way from healthy (0) to broken (1), or a schedule as in `steps`.
    noise : float, default 0.0
        Standard deviation of the added Gaussian noise, as a share of the healthy
        standard deviation of each axis.
    start : tuple of 3 floats
    random_state : int, Generator or None
        Seed of the noise.

    Returns
    -------
    ndarray of shape (n_samples, 3)

    References
    ----------
    E. N. Lorenz, "Deterministic Nonperiodic Flow", J. Atmos. Sci. 20, 1963.

    Examples
    --------
    >>> from anomaly.lorenz import simulate
    >>> simulate(2).round(4).tolist()
    [[2.08, 3.3754, 3.9708], [2.1836, 3.7681, 3.9519]]
    """
    schedule = fraction if callable(fraction) else lambda _number: fraction
    walk = steps(schedule, start)
    clean = np.array([next(walk) for _ in range(n_samples)]).reshape(n_samples, 3)
    if noise == 0.0:
        return clean
    rng = np.random.default_rng(random_state)
    return clean + rng.normal(size=clean.shape) * (noise * np.array(SPREAD))


# -- the command ---------------------------------------------------------------------

IOT_2 = "iot-2/type/{type}/id/{id}/{kind}/{name}/fmt/json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success, 2 a mistake of the user."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check_numbers(options)
        rig = Rig(
            fraction_of(options.state),
            [switch_of(text) for text in options.switch],
            rate=options.rate,
            noise=options.noise,
            seed=options.seed,
        )
        if options.mqtt:
            publish(rig, parse(options.mqtt), options)
        else:
            write_csv(rig, round(options.seconds * options.rate), options.csv)
    except (AnomalyError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _check_numbers(options: argparse.Namespace) -> None:
    if not 0 <= options.seconds * options.rate < float("inf"):
        raise ParameterError(
            f"seconds, rate: must be finite and 0 at least, got {options.seconds}, {options.rate}"
        )
    if options.batch < 1:
        raise ParameterError(f"batch: must be 1 at least, got {options.batch}")


def fraction_of(state: str) -> float:
    """Share of the way to broken that a state on the command line means.

    Examples
    --------
    >>> from anomaly.lorenz import fraction_of
    >>> fraction_of("broken"), fraction_of("0.1")
    (1.0, 0.1)
    """
    named = {"healthy": 0.0, "broken": 1.0}
    try:
        fraction = named[state] if state in named else float(state)
    except ValueError:
        fraction = -1.0
    if not 0.0 <= fraction <= 1.0:
        raise ParameterError(f"state: must be healthy, broken or 0 to 1, got {state!r}")
    return fraction


def switch_of(text: str) -> tuple[float, float]:
    """Second and share of a switch such as ``15=broken``."""
    second, _, state = text.partition("=")
    try:
        return float(second), fraction_of(state)
    except ValueError:
        raise ParameterError(f"switch: SECONDS=STATE is needed, got {text!r}") from None


class Rig:
    """The bearing as a source of samples, switched by schedule or by hand."""

    def __init__(
        self,
        fraction: float = 0.0,
        switches: Sequence[tuple[float, float]] = (),
        *,
        rate: float = 100.0,
        noise: float = 0.0,
        seed: int | None = 0,
    ) -> None:
        if not rate > 0 or noise < 0:
            raise ParameterError(
                f"rate must be above 0 and noise 0 at least, got rate={rate}, noise={noise}"
            )
        self.fraction, self.rate = fraction, rate
        self._switches = sorted((round(second * rate), to) for second, to in switches)
        self._noise = noise * np.array(SPREAD)
        self._rng = np.random.default_rng(seed)
        self._walk = steps(self._scheduled)
        self.number = 0

    def _scheduled(self, number: int) -> float:
        while self._switches and self._switches[0][0] <= number:
            self.fraction = self._switches.pop(0)[1]
        return self.fraction

    def take(self, n_samples: int) -> NDArray[np.float64]:
        """The next samples, (n_samples, 3)."""
        clean = np.array([next(self._walk) for _ in range(n_samples)]).reshape(n_samples, 3)
        self.number += n_samples
        if not self._noise.any():
            return clean
        return clean + self._rng.normal(size=clean.shape) * self._noise


def write_csv(rig: Rig, n_samples: int, path: str | None) -> None:
    """Write samples as CSV to a file, or to standard output."""
    lines = itertools.chain(["x,y,z\n"], _lines(rig, n_samples))
    if path is None:
        sys.stdout.writelines(lines)
        return
    with write_aside(path) as file:
        file.writelines(lines)


def _lines(rig: Rig, n_samples: int) -> Iterator[str]:
    for taken in range(0, n_samples, AT_ONCE):
        for x, y, z in rig.take(min(AT_ONCE, n_samples - taken)).tolist():
            yield f"{x},{y},{z}\n"


def payload(samples: NDArray[np.float64], number: int) -> str:
    """One message: a sample, or arrays of them, with the number of the first.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.lorenz import payload
    >>> payload(np.array([[1.0, 2.0, 3.0]]), 7)
    '{"x": 1.0, "y": 2.0, "z": 3.0, "seq": 7}'
    """
    axes: list[Any] = samples[0].tolist() if len(samples) == 1 else samples.T.tolist()
    return json.dumps({**dict(zip("xyz", axes, strict=True)), "seq": number})


def publish(rig: Rig, broker: Broker, options: argparse.Namespace) -> None:
    """Send samples as a device, at its rate or as fast as the broker takes them."""
    client = broker.client(options.client_id, persistent=bool(options.client_id))
    topics = _topics(options)
    connected = threading.Event()
    reasons: list[str] = []

    def on_connect(client: Any, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        if not reason.is_failure:
            client.subscribe(topics["commands"], qos=1)
            connected.set()
        else:
            reasons.append(str(reason))

    client.on_connect = on_connect
    client.on_connect_fail = lambda *_: reasons.append(why_no_connection())
    client.on_message = lambda client, _data, message: _obey(rig, client, message, topics)
    broker.connect(client, persistent=bool(options.client_id))
    client.loop_start()
    try:
        if not connected.wait(CONNECT_S):
            why = f": {reasons[-1]}" if reasons else ""
            raise ParameterError(
                f"mqtt: {broker!r} did not let in this device within {CONNECT_S:.0f} s{why}"
            )
        _send(rig, client, topics["out"], options)
    finally:
        client.disconnect()
        client.loop_stop()


def _topics(options: argparse.Namespace) -> dict[str, str]:
    if options.preset is None:
        if not options.topic or set("+#\0") & set(options.topic):
            raise ParameterError(f"topic: a name without + and # is needed, got {options.topic!r}")
        return {"out": options.topic, "commands": f"{options.topic}/cmd/+", "confirm": ""}
    kind, _, identity = options.preset.partition(":")
    type_, _, identity = identity.partition("/")
    if kind != "iot-2" or not type_ or not identity or set("+#/\0") & set(type_ + identity):
        raise ParameterError(f"preset: iot-2:TYPE/ID is needed, got {options.preset!r}")
    return {
        "out": IOT_2.format(type=type_, id=identity, kind="evt", name="osc"),
        "commands": IOT_2.format(type=type_, id=identity, kind="cmd", name="+"),
        "confirm": IOT_2.format(type=type_, id=identity, kind="evt", name="switch_confirm"),
    }


def _obey(rig: Rig, client: Any, message: Any, topics: dict[str, str]) -> None:
    """Commands ``switch`` (to the other state) and ``to_healthy``."""
    command = message.topic.split("/")[topics["commands"].split("/").index("+")]
    if command == "switch":
        rig.fraction = 0.0 if rig.fraction else 1.0
    elif command == "to_healthy":
        rig.fraction = 0.0
    else:
        return
    if topics["confirm"]:
        client.publish(topics["confirm"], json.dumps({"state": rig.fraction}), qos=1)


def _send(rig: Rig, client: Any, topic: str, options: argparse.Namespace) -> None:
    total = round(options.seconds * options.rate)
    begun, waiting = time.monotonic(), threading.Semaphore(MOST_WAITING)
    client.on_publish = lambda *_: waiting.release()
    while rig.number < total:
        number = rig.number
        samples = rig.take(min(options.batch, total - number))
        if not options.fast:
            time.sleep(max(0.0, begun + rig.number / rig.rate - time.monotonic()))
        waiting.acquire()
        client.publish(topic, payload(samples, number), qos=options.qos)
    for _ in range(MOST_WAITING):
        waiting.acquire()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anomaly.lorenz",
        description="Simulate a bearing with three axes: a CSV file, or a device of a broker.",
        epilog="example: python -m anomaly.lorenz --seconds 60 --switch 45=broken "
        "--mqtt mqtt://localhost --topic plant/press-1/vibration",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--state", default="healthy", help="healthy, broken, or the share of the way, 0 to 1")
    add("--switch", action="append", default=[], metavar="SECONDS=STATE", help="may be repeated")
    add("--rate", type=float, default=100.0, help="samples per second")
    add("--seconds", type=float, default=30.0, help="length of the recording")
    add("--noise", type=float, default=0.02, help="as a share of the healthy spread of an axis")
    add("--seed", type=int, default=0, help="of the noise")
    add("--csv", metavar="FILE", help="where to write; standard output by default")
    add("--mqtt", metavar="URL", help="publish instead, e.g. mqtt://localhost:1883")
    add("--topic", default="plant/bearing/vibration", help="where to publish")
    add("--preset", metavar="iot-2:TYPE/ID", help="topics of the Watson IoT platform instead")
    add("--batch", type=int, default=1, help="samples per message")
    add("--qos", type=int, choices=(0, 1), default=1)
    add("--client-id", default="", help="fixed, for a persistent session")
    add("--fast", action="store_true", help="do not wait for the clock")
    return parser


if __name__ == "__main__":
    sys.exit(main())
