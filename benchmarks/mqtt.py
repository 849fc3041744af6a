"""Compare the MQTT runner with a consumer that only counts, on one Mosquitto.

    python benchmarks/mqtt.py
    python benchmarks/mqtt.py --devices 100 --messages 200

Starts a Mosquitto of its own, publishes arrays of 100 samples for many devices at full
speed with QoS 1, and prints samples per second of both and their ratio.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly import bearing, lorenz
from anomaly.broker import parse
from anomaly.lorenz import simulate
from production.devices import Plan
from production.mqtt import Route, Runner, Settings

SIZE = 100


def start_broker(folder: Path) -> tuple[subprocess.Popen, str]:
    """Start Mosquitto without a limit on what it queues."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "mosquitto.conf").write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n"
        "max_inflight_messages 1000\n"
    )
    binary = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if binary is None:
        sys.exit("mosquitto is needed; install the system package of this name")
    process = subprocess.Popen([binary, "-c", str(folder / "mosquitto.conf")], stderr=-3)
    time.sleep(1.0)
    return process, f"mqtt://127.0.0.1:{port}"


def publish(url: str, devices: int, messages: int) -> None:
    """Send messages for each device in turn, and return when all are delivered."""
    signal = simulate(SIZE * messages, noise=0.02, random_state=1)
    broker = parse(url)
    client = broker.client("publisher", persistent=True)
    client.max_queued_messages_set(0)
    delivered = threading.Semaphore(0)
    client.on_publish = lambda *_: delivered.release()
    broker.connect(client, persistent=True)
    client.loop_start()
    while not client.is_connected():
        time.sleep(0.01)
    for number in range(messages):
        text = lorenz.payload(signal[number * SIZE : (number + 1) * SIZE], number * SIZE)
        for device in range(devices):
            client.publish(f"plant/{device}/vibration", text, qos=1)
    for _ in range(devices * messages):
        delivered.acquire()
    client.disconnect()
    client.loop_stop()


def drain_bare(url: str, wanted: int) -> float:
    """CPU-light baseline: parse and count samples."""
    counted, done = [0], threading.Event()

    def on_message(_client: object, _data: object, message: object) -> None:
        counted[0] += len(json.loads(message.payload)["x"])
        if counted[0] >= wanted:
            done.set()

    return drained(url, "bare", on_message, done)


def drained(url: str, name: str, on_message: object, done: threading.Event) -> float:
    """Seconds from connecting until everything that waited has come."""
    broker = parse(url)
    client = broker.client(name, persistent=True)
    client.on_message = on_message
    begun = time.perf_counter()
    broker.connect(client, persistent=True)
    client.loop_start()
    done.wait()
    seconds = time.perf_counter() - begun
    client.disconnect()
    client.loop_stop()
    return seconds


def subscribe(url: str, name: str) -> None:
    """Open a session that collects while nobody listens."""
    broker, done = parse(url), threading.Event()
    client = broker.client(name, persistent=True)
    client.on_connect = lambda client, *_: client.subscribe("plant/+/vibration", qos=1)
    client.on_subscribe = lambda *_: done.set()
    broker.connect(client, persistent=True)
    client.loop_start()
    done.wait()
    client.disconnect()
    client.loop_stop()


def drain_runner(url: str, wanted: int, folder: Path) -> float:
    """Seconds until the runner has judged and acknowledged everything that waited."""
    route = Route(
        subscribe="plant/+/vibration",
        publish="plant/{device}/anomaly",
        detector=str(folder / "bearing.clf"),
        plan=Plan(window=3000),
    )
    runner = Runner(Settings(parse(url), (route,), client_id="runner", state=str(folder / "s")))
    thread = threading.Thread(target=runner.run)
    begun = time.perf_counter()
    thread.start()
    while runner.watch.counts["samples"] < wanted:
        time.sleep(0.005)
    seconds = time.perf_counter() - begun
    runner.stopping.set()
    thread.join()
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--messages", type=int, default=60, help="of 100 samples, per device (60)")
    options = parser.parse_args()
    wanted = options.devices * options.messages * SIZE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savetxt(
            folder / "healthy.csv",
            simulate(6000, noise=0.02, random_state=0),
            delimiter=",",
            header="x,y,z",
            comments="",
        )
        bearing.main([str(folder / "healthy.csv"), str(folder / "bearing.clf")])
        broker, url = start_broker(folder)
        try:
            for client in ("bare", "runner"):
                subscribe(url, client)
            publish(url, options.devices, options.messages)
            bare = wanted / drain_bare(url, wanted)
            runner = wanted / drain_runner(url, wanted, folder)
        finally:
            broker.terminate()
            broker.wait()
    print(f"bare consumer: {bare:,.0f} samples/s")
    print(f"runner:        {runner:,.0f} samples/s")
    print(f"runner / bare consumer: {runner / bare:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
