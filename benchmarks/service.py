"""Requests per second of the service against a plain Flask route with the same detector.

    python benchmarks/service.py                 # 1, 16 and 64 clients, 5 s each
    python benchmarks/service.py --seconds 2 --clients 16

Needs ``pip install '.[service]' flask``. The load comes from this process, on the
same cores. Flask runs its own threaded server and keeps its answers nowhere; the
service flushes every stream record to disk before it answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BATCH = 1000


def window_body(window: int = 180) -> bytes:
    """A normal KPI window: 903 numbers of text."""
    rng = random.Random(0)

    def part(n: int) -> str:
        return ",".join(str(round(rng.gauss(1000, 30))) for _ in range(n))

    asked = {
        "viewId": "2012",
        "viewName": "logins",
        "attrId": "19201",
        "attrName": "login requests",
        "window": window,
        "time": "2018-10-17 17:28:00",
        "dataC": part(2 * window + 1),
        "dataB": part(2 * window + 1),
        "dataA": part(window) + ",1000",
    }
    return json.dumps(asked).encode()


def record_body(client: int, i: int) -> bytes:
    clock = f"{i // 3600 % 24}:{i // 60 % 60:02}:{i % 60:02}"
    record = {"timestamp": f"2024-01-{1 + i // 86400:02} {clock}", "actualValue": float(i % 17)}
    return b"streamData=" + json.dumps(record).encode()


def batch_body(client: int, i: int) -> bytes:
    first = 1_700_000_000 + BATCH * i
    records = ({"timestamp": first + j, "value": float(j % 17)} for j in range(BATCH))
    return "\n".join(map(json.dumps, records)).encode()


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def one_client(port, number, make, end, times):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    i = 0
    while time.perf_counter() < end:
        path, body = make(number, i)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
        begin = time.perf_counter()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        times.append(time.perf_counter() - begin)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        if b"connection: close" in answer.lower():
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        i += 1
    writer.close()


async def load(port, clients, make, seconds):
    """Requests per second, p50 and p99 in ms, and how many requests."""
    times: list[float] = []
    begin = time.perf_counter()
    await asyncio.gather(
        *(one_client(port, n, make, begin + seconds, times) for n in range(clients))
    )
    wall = time.perf_counter() - begin
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return len(times) / wall, p50, p99, len(times)


def serve_flask(port: int) -> None:
    import logging

    from flask import Flask, jsonify, request
    from werkzeug.serving import WSGIRequestHandler

    from anomaly import Detect
    from anomaly.htm import HTMDetector

    logging.getLogger("werkzeug").disabled = True
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    app, detect, streams = Flask("peer"), Detect(), {}

    @app.post("/PredictValue")
    def value():
        code, answer = detect.value_predict(request.get_json(force=True))
        return jsonify(code=code, msg="", data=answer)

    @app.post("/PredictRate")
    def rate():
        code, answer = detect.rate_predict(request.get_json(force=True))
        return jsonify(code=code, msg="", data=answer)

    @app.post("/api/HTM/v1.0/anomalyDetection/<name>")
    def stream(name):
        given = json.loads(request.form["streamData"])
        found = streams.setdefault(name, HTMDetector(100, value_range="adaptive"))
        said = found.process_one(given["actualValue"], timestamp=given["timestamp"])
        return jsonify(
            actualValue=given["actualValue"],
            anomalyScore=said.raw_score,
            predictValue=said.predicted,
            timestamp=given["timestamp"],
        )

    app.run(port=port, threaded=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("a server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    ours, peer = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "production.service", "--port", str(ours)]
        service = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=-3
        )
        flask = multiprocessing.get_context("spawn").Process(
            target=serve_flask, args=(peer,), daemon=True
        )
        flask.start()
        try:
            wait_for(ours)
            wait_for(peer)
            measure(Server(ours, service.pid), Server(peer, flask.pid), options)
        finally:
            service.terminate()
            service.wait()
            flask.terminate()
            flask.join()


def measure(ours: Server, peer: Server, options: argparse.Namespace) -> None:
    window = window_body()
    print("route          clients  requests/s   p50 ms   p99 ms  CPU ms  Flask: requests/s …")
    for clients in options.clients:
        for path in ("/PredictValue", "/PredictRate"):

            def test(n: int, i: int, path: str = path) -> tuple[str, bytes]:
                return path, window

            report(path[1:], clients, ours, peer, test, options.seconds)

        def one(n: int, i: int, run: int = clients) -> tuple[str, bytes]:
            return f"/api/HTM/v1.0/anomalyDetection/s{run}-{n}", record_body(n, i)

        def batch(n: int, i: int, run: int = clients) -> tuple[str, bytes]:
            return f"/v1/streams/b{run}-{n}/records", batch_body(n, i)

        single = report("one record", clients, ours, peer, one, options.seconds)
        many = ours.under(clients, batch, options.seconds)
        print(
            f"{'1000 records':14} {clients:7} {many}  {many.cpu_ms / BATCH:.3f} CPU ms a record, "
            f"{many.rate * BATCH:.0f} records/s: {many.rate * BATCH / single.rate:.1f} times one, "
            f"{single.cpu_ms * BATCH / many.cpu_ms:.1f} times by CPU time",
            flush=True,
        )


class Figures(NamedTuple):
    """What one load gave."""

    rate: float
    p50: float
    p99: float
    cpu_ms: float

    def __str__(self) -> str:
        return f"{self.rate:11.1f} {self.p50:8.2f} {self.p99:8.2f} {self.cpu_ms:7.2f}"


def _later(make: Any, begin: int, n: int, i: int) -> tuple[str, bytes]:
    return make(n, begin + i)


class Server(NamedTuple):
    """A server under test."""

    port: int
    pid: int

    def under(self, clients: int, make: Any, seconds: float) -> Figures:
        begin = asyncio.run(load(self.port, clients, make, seconds / 10))[3]
        before = cpu_seconds(self.pid)
        later = partial(_later, make, begin)  # records go on where the warm-up ended
        rate, p50, p99, requests = asyncio.run(load(self.port, clients, later, seconds))
        return Figures(rate, p50, p99, (cpu_seconds(self.pid) - before) / requests * 1e3)


def report(
    name: str, clients: int, ours: Server, peer: Server, make: Any, seconds: float
) -> Figures:
    mine, other = (server.under(clients, make, seconds) for server in (ours, peer))
    print(f"{name:14} {clients:7} {mine}  {other}", flush=True)
    return mine


if __name__ == "__main__":
    main()
