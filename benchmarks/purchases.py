"""Compare the purchase network with its slow reference and with a plain-Python heap.

    python benchmarks/purchases.py                       # all of it, some minutes
    python benchmarks/purchases.py --batch 50000 --stream 20000 --slow-events 50
    python benchmarks/purchases.py --flat 100000 1000000 10000000
    python benchmarks/purchases.py --flat 100000 1000000 10000000 --steady

Every figure is of the same logs in the same run, in CPU time. Three programs judge
them: the native network, from the text of the log to the text of the flags; the
plain-Python heap (sets of friends, a deque of purchases per user, a breadth-first
search and `heapq.nlargest` over the members' purchases), on events parsed
beforehand; and the reference of the tests, which looks at every purchase for every
question. The two slow ones judge only the first events of the stream, and must
flag the same.
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import deque
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.purchases import EventLog, make_network, read_event, read_header, simulate, simulation
from anomaly.purchases.simulation import MIX
from tests.purchases_reference import ReferenceNetwork

BLOCK = 1 << 20
PIECE = 100_000
STEADY = (0.78, 0.11, 0.11)
GRAPHS = ("uniform", "power-law")


class HeapNetwork:
    """What a careful programmer writes in plain Python: bounded history, heap of the newest."""

    def __init__(self, degree, window):
        self.degree = degree
        self.window = window
        self.friends = {}
        self.bought = {}
        self.arrivals = 0

    def befriend(self, one, other):
        self.friends.setdefault(one, set()).add(other)
        self.friends.setdefault(other, set()).add(one)

    def unfriend(self, one, other):
        self.friends.get(one, set()).discard(other)
        self.friends.get(other, set()).discard(one)

    def buy(self, user, time_us, amount):
        self.arrivals += 1
        mine = self.bought.setdefault(user, deque(maxlen=self.window))
        mine.append((time_us, self.arrivals, amount))

    def judge(self, user, amount):
        reached, level = {user}, {user}
        for _ in range(self.degree):
            level = {f for u in level for f in self.friends.get(u, ())} - reached
            reached |= level
        reached.discard(user)
        members = (self.bought[u] for u in reached if u in self.bought)
        newest = heapq.nlargest(self.window, (p for mine in members for p in mine))
        n = len(newest)
        total = sum(p[2] for p in newest)
        spread = n * sum(p[2] ** 2 for p in newest) - total**2
        above = n * amount - total
        return n, total, spread, n >= 2 and above > 0 and above**2 > 9 * spread


def parsed(path, skip_header):
    with open(path, "rb") as file:
        if skip_header:
            next(file)
        return [read_event(json.loads(line)) for line in file]


def apply(network, event):
    if event.kind == "purchase":
        network.buy(event.ids[0], event.time, event.amount)
    else:
        getattr(network, event.kind)(*event.ids)


def judge_plainly(network, events):
    """CPU seconds per event and the flags, of a network written in Python."""
    started = time.process_time()
    flags = []
    for event in events:
        if event.kind == "purchase":
            flags.append(network.judge(event.ids[0], event.amount)[3])
        apply(network, event)
    return (time.process_time() - started) / len(events), flags


def blocks(file):
    rest = b""
    while block := file.read(BLOCK):
        end = block.rfind(b"\n") + 1
        yield rest + block[:end]
        rest = block[end:]


def run_natively(folder, degree):
    """CPU seconds of the batch and of the stream, the flags, and peak memory in MB."""
    started = time.process_time()
    with open(folder / "batch_log.json", "rb") as file:
        _, window, _ = read_header(file.readline())
        network = make_network(degree, window)
        log = EventLog(network, judge=False)
        for text in blocks(file):
            list(log.feed(text))
    batch_s = time.process_time() - started
    log = EventLog(network, judge=True)
    started = time.process_time()
    with open(folder / "stream_log.json", "rb") as file:
        flagged = [line for text in blocks(file) for line in log.feed(text)]
    stream_s = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mb = peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return batch_s, log.counts.lines / stream_s, flagged, peak_mb


def in_fresh_process(function, *args):
    """A peak of memory is of a whole process, so each run gets its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def write_logs(folder, graph, users, batch, stream, window):
    made = simulate(
        users, batch, stream, graph=graph, n_anomalies=stream // 1000, window_size=window,
        random_state=0,
    )  # fmt: skip
    made.write(folder)


def compare(options, console):
    table = Table(
        title=f"{options.users} users, {options.batch} batch and {options.stream} stream events, "
        f"T = {options.window}; CPU time"
    )
    for name in ("graph", "D", "batch s", "events/s", "peak MB", "heap ev/s", "× heap",
                 "reference ev/s", "× reference"):  # fmt: skip
        table.add_column(name, justify="right")
    for graph in options.graph:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = (options.users, options.batch, options.stream, options.window)
            in_fresh_process(write_logs, folder, graph, *size)
            history = parsed(folder / "batch_log.json", skip_header=True)
            stream = list(islice(parsed(folder / "stream_log.json", False), options.slow_events))
            for degree in options.degree:
                table.add_row(graph, *compare_once(options, folder, degree, history, stream))
    console.print(table)


def compare_once(options, folder, degree, history, stream):
    found = in_fresh_process(run_natively, folder, degree)
    batch_s, speed, flagged, peak_mb = found
    costs = []
    for make, events in ((HeapNetwork, stream), (ReferenceNetwork, stream[: options.slowest])):
        network = make(degree, options.window)
        for event in history:
            apply(network, event)
        cost, flags = judge_plainly(network, events)
        costs.append(cost)
        check_flags(events, flags, flagged)
    heap, slowest = (1 / cost for cost in costs)
    return (
        str(degree), f"{batch_s:.2f}", f"{speed:,.0f}", f"{peak_mb:.0f}", f"{heap:,.0f}",
        f"{speed / heap:,.0f}", f"{slowest:,.1f}", f"{speed / slowest:,.0f}",
    )  # fmt: skip


def check_flags(events, flags, flagged):
    """The plain program flags what the native one does, as far as it went."""
    purchases = [event for event in events if event.kind == "purchase"]
    expected = [event for event, flag in zip(purchases, flags, strict=True) if flag]
    found = [read_event(json.loads(line)) for line in flagged[: len(expected)]]
    if found != expected:
        raise SystemExit("the programs disagree on what is flagged")


def pieces(graph, users, batch, stream, steady):
    """Text of a long log, a piece at a time; a `steady` stream has one unfriend to a befriend.

    The mix, the pairs and the pace are the simulator's; an unfriend undoes a
    befriend of its own piece.
    """
    rng = np.random.default_rng(0)
    second = 0
    for done in range(0, batch + stream, PIECE):
        size = min(PIECE, batch + stream - done)
        shares = STEADY if steady and done >= batch else list(MIX.values())
        kinds = rng.choice(np.array(list(MIX)), size=size, p=shares)
        pairs = simulation._pairs(kinds, users, graph, rng) + 1
        buyers = rng.integers(1, users + 1, size)
        amounts = np.round(np.exp(rng.normal(3.0, 0.5, size)), 2)
        seconds = second + np.cumsum(rng.poisson(0.2, size))
        second = int(seconds[-1])
        times = np.datetime_as_string(np.datetime64("2017-06-13T11:33:01") + seconds)
        yield "".join(
            f'{{"event_type":"{kind}", "timestamp":"{time[:10]} {time[11:]}", '
            + (
                f'"id": "{buyer}", "amount": "{amount:.2f}"}}\n'
                if kind == "purchase"
                else f'"id1": "{one}", "id2": "{other}"}}\n'
            )
            for kind, time, buyer, amount, (one, other) in zip(
                kinds.tolist(), times.tolist(), buyers.tolist(), amounts.tolist(), pairs.tolist(),
                strict=True,
            )
        ).encode()  # fmt: skip


def run_flat(graph, degree, users, options):
    """(events, events/s so far, events/s of the last piece, friendships, MB) at each length."""
    network = make_network(degree, options.window)
    history = EventLog(network, judge=False)
    texts = pieces(graph, users, options.batch, max(options.flat), options.steady)
    while history.counts.lines < options.batch:
        list(history.feed(next(texts)))
    log = EventLog(network, judge=True)
    spent, rows = 0.0, []
    for text in texts:
        started = time.process_time()
        for _ in log.feed(text):
            pass
        last = time.process_time() - started
        spent += last
        done = log.counts.lines
        if done in options.flat:
            mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            mb /= 1 << 20 if sys.platform == "darwin" else 1 << 10
            speeds = done / spent, text.count(b"\n") / last
            rows.append((done, *speeds, network.sizes()[1], mb))
            print(graph, degree, rows[-1], file=sys.stderr, flush=True)
    return rows


def measure_flatness(options, console):
    table = Table(title="One stream, growing; CPU time")
    for name in ("graph", "D", "events", "events/s", "of the last", "friendships", "peak MB"):
        table.add_column(name, justify="right")
    for graph in options.graph:
        for degree in options.degree:
            rows = in_fresh_process(run_flat, graph, degree, options.users, options)
            for n, speed, last, friendships, mb in rows:
                table.add_row(
                    graph, str(degree), f"{n:,}", f"{speed:,.0f}", f"{last:,.0f}",
                    f"{friendships:,}", f"{mb:.0f}",
                )  # fmt: skip
    console.print(table)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=500_000, help="events of the batch log")
    parser.add_argument("--stream", type=int, default=100_000, help="events of the stream log")
    parser.add_argument("--window", type=int, default=50, help="T")
    parser.add_argument("--degree", type=int, nargs="+", default=[2, 3, 4], help="D")
    parser.add_argument("--graph", nargs="+", choices=GRAPHS, default=GRAPHS)
    parser.add_argument(
        "--slow-events", type=int, default=300, help="judged by the heap version (default 300)"
    )
    parser.add_argument(
        "--slowest", type=int, default=30, help="judged by the reference (default 30)"
    )
    parser.add_argument(
        "--flat", type=int, nargs="+", metavar="EVENTS",
        help="measure only the native speed, on one stream up to these lengths",
    )  # fmt: skip
    parser.add_argument(
        "--steady", action="store_true",
        help="with --flat: as many unfriends as befriends, so that the graph keeps its density",
    )  # fmt: skip
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.flat:
        measure_flatness(options, console)
    else:
        compare(options, console)


if __name__ == "__main__":
    main()
