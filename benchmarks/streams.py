"""Cost of a record in every stream detector, beside river's half-space trees and a z-score.

    python benchmarks/streams.py
    python benchmarks/streams.py --records 1000000 --streams 1000

µs are CPU time of one process and one thread, but for the last line: two threads, by the
clock. Every figure and every ratio comes from this one run.
"""

from __future__ import annotations

import argparse
import math
import pickle
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.errors import AnomalyError, require
from anomaly.htm import HTMDetector
from anomaly.tiles import TileDetector

MAKE: dict[str, Callable[[], Any]] = {
    "tiles": TileDetector,
    "HTM 1,024 × 16": HTMDetector,
    "HTM 1,024 × 1": lambda: HTMDetector(cells_per_column=1),
    "HTM 512 × 1": lambda: HTMDetector(n_columns=512, cells_per_column=1),
    "HTM 512 × 1, no forecast": lambda: HTMDetector(
        n_columns=512, cells_per_column=1, prediction_steps=()
    ),
}


def a_stream(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A day's rhythm in five-minute records, with noise and a slow drift."""
    rng = np.random.default_rng(0)
    t = np.arange(n)
    day = 10 * np.sin(2 * np.pi * t / 288) + 3 * np.sin(2 * np.pi * t / 2016)
    return day + rng.normal(size=n), 1.6e9 + 300.0 * t


class RollingZScore:
    """The plain peer: mean and deviation of the last 100 values by running sums."""

    def __init__(self) -> None:
        self.values: deque[float] = deque()
        self.total = self.squares = 0.0

    def process_one(self, x: float, _: float) -> float:
        n = len(self.values)
        score = 0.0
        if n > 1:
            mean = self.total / n
            score = abs(x - mean) / math.sqrt(max(self.squares / n - mean * mean, 1e-12))
        self.values.append(x)
        self.total += x
        self.squares += x * x
        if n >= 100:
            old = self.values.popleft()
            self.total -= old
            self.squares -= old * old
        return score


class HalfSpaceTreesPeer:
    """river's half-space trees with their defaults, scaled to 0…1 as they ask for."""

    def __init__(self) -> None:
        anomaly = require("river.anomaly", extra="data")
        preprocessing = require("river.preprocessing", extra="data")
        self.model = preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(seed=0)

    def process_one(self, x: float, _: float) -> float:
        record = {"x": x}
        score = self.model.score_one(record)
        self.model.learn_one(record)
        return float(score)


def per_call(model: Any, values: list[float], seconds: list[float]) -> float:
    """µs of CPU time per call of ``process_one``."""
    start = time.process_time()
    for x, second in zip(values, seconds, strict=True):
        model.process_one(x, second)
    return 1e6 * (time.process_time() - start) / len(values)


def per_record(model: Any, values: np.ndarray, seconds: np.ndarray) -> float:
    """µs of CPU time per record of ``process_many``."""
    start = time.process_time()
    model.process_many(values, seconds)
    return 1e6 * (time.process_time() - start) / len(values)


def measure(make: Callable[[], Any], n: int, calls: int) -> dict[str, float]:
    """Everything about one detector."""
    values, seconds = a_stream(n)
    start = time.process_time()
    model = make()
    model.process_one(float(values[0]), float(seconds[0]))
    create = 1e3 * (time.process_time() - start)
    blocks = [
        per_record(model, values[i : i + 10_000], seconds[i : i + 10_000])
        for i in range(1, n - 9_999, 10_000)
    ]
    late = values[-calls:].tolist(), (seconds[-calls:] + 300.0 * n).tolist()
    return {
        "array": float(np.median(blocks)),
        "call": per_call(model, *late),
        "growth": blocks[-1] / blocks[min(1, len(blocks) - 1)],
        "memory KB": model.memory_bytes_ / 1024,
        "snapshot KB": len(pickle.dumps(model)) / 1024,
        "create ms": create,
    }


def round_robin(make: Callable[[], Any], streams: int, rounds: int) -> tuple[float, float]:
    """µs per record of one stream alone, and of many that take turns."""
    values, seconds = a_stream(3000)
    learnt = make()
    learnt.process_many(values[:2000], seconds[:2000])
    alone, *models = (pickle.loads(pickle.dumps(learnt)) for _ in range(streams + 1))
    single = per_call(alone, values[2000:].tolist(), seconds[2000:].tolist())
    turns = list(zip(values[2000:].tolist(), seconds[2000:].tolist(), strict=True))[:rounds]
    start = time.process_time()
    for x, second in turns:
        for model in models:
            model.process_one(x, second)
    return single, 1e6 * (time.process_time() - start) / (rounds * streams)


def two_threads(make: Callable[[], Any], n: int) -> float:
    """How many times faster two streams are in two threads than one after the other."""
    values, seconds = a_stream(n)
    models = [make() for _ in range(4)]
    for model in models:
        model.process_many(values[:2000], seconds[:2000])
    start = time.perf_counter()
    for model in models[:2]:
        model.process_many(values, seconds)
    middle = time.perf_counter()
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda model: model.process_many(values, seconds), models[2:]))
    return (middle - start) / (time.perf_counter() - middle)


def show(figures: dict[str, dict[str, float]], peers: dict[str, float], console: Console) -> None:
    table = Table(title="µs per record, memory and growth")
    for column in ("detector", "µs, arrays", "µs, per call", "last/second 10,000"):
        table.add_column(column, justify="left" if column == "detector" else "right")
    for column in ("memory KB", "snapshot KB", "create ms", *(f"{p} / it" for p in peers)):
        table.add_column(column, justify="right")
    for name, of in figures.items():
        table.add_row(
            name,
            f"{of['array']:.2f}",
            f"{of['call']:.2f}",
            f"{of['growth']:.2f}",
            f"{of['memory KB']:,.0f}",
            f"{of['snapshot KB']:,.0f}",
            f"{of['create ms']:.1f}",
            *(f"{peer / of['call']:.1f} ×" for peer in peers.values()),
        )
    console.print(table)
    for name, cost in peers.items():
        console.print(f"{name}: {cost:.2f} µs per call")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="streams.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--records", type=int, default=60_000, metavar="N", help="per detector")
    parser.add_argument("--calls", type=int, default=5_000, metavar="N", help="of process_one")
    parser.add_argument(
        "--streams", type=int, nargs="+", default=[50, 200, 1000], metavar="N", help="taking turns"
    )
    parser.add_argument("--without-river", action="store_true", help="leave that peer out")
    options = parser.parse_args(arguments)
    console = Console(width=150)
    values, seconds = (a.tolist() for a in a_stream(options.calls))
    try:
        peers = {"rolling z-score": per_call(RollingZScore(), values, seconds)}
        if not options.without_river:
            peers["half-space trees"] = per_call(HalfSpaceTreesPeer(), values, seconds)
    except AnomalyError as error:
        print(f"streams.py: error: {error} (or --without-river)", file=sys.stderr)
        return 2
    figures = {
        name: measure(make, max(options.records, 20_001), options.calls)
        for name, make in MAKE.items()
    }
    show(figures, peers, console)
    for name in ("tiles", "HTM 512 × 1"):
        for streams in options.streams:
            single, many = round_robin(MAKE[name], streams, 20)
            console.print(
                f"{name}: {streams} streams taking turns {many:.2f} µs per record, "
                f"one alone {single:.2f} µs: {many / single:.2f} ×"
            )
        ratio = two_threads(MAKE[name], options.records)
        console.print(f"{name}: two streams in two threads {ratio:.2f} × as fast as in turn")
    return 0


if __name__ == "__main__":
    sys.exit(main())
