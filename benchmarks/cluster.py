"""How many workers of a Dask cluster one search can keep busy: measured costs, simulated cluster.

    python benchmarks/cluster.py --measure 10 --measure 100   # costs of client and scheduler
    python benchmarks/cluster.py                              # the table, with those costs
    python benchmarks/cluster.py --log params/first.out       # with the fits of your own run
    python benchmarks/cluster.py --picture cluster.png

``--measure N`` starts a real scheduler in a process of its own and N real Dask workers in
another, lets a search of ours run on them, and prints the CPU time that scheduler and
client spend per task and per fit. The workers answer at once instead of fitting, so two
processors are enough. The simulation then passes every task through client, scheduler and
worker, event by event, as `anomaly.tuning.cluster` does: each worker has one task at work
and one waiting. Needs ``pip install '.[dask]'``.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from sklearn.tree import DecisionTreeClassifier

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.tuning import Backend, RunFolder
from anomaly.tuning import workers as tuning_workers
from anomaly.tuning.engine import Evaluator, make_space
from anomaly.tuning.folds import Folds
from anomaly.tuning.literals import to_literal
from anomaly.tuning.log import parse_line
from anomaly.tuning.units import Fit, Unit

ROOT = Path(__file__).resolve().parent.parent
WORKERS = (1, 10, 30, 100, 300, 1000)
# Tasks that a worker has at a time: one at work and one waiting.
DEPTH = 2


@dataclass(frozen=True)
class Costs:
    """Seconds of one processor; see ``--measure``."""

    client_task: float = 1.4e-3
    client_fit: float = 55e-6
    scheduler_task: float = 3.0e-3
    scheduler_fit: float = 40e-6
    worker_task: float = 5e-3
    heartbeat: float = 0.5e-3
    network: float = 1e-3  # one way; assumed

    def heartbeats(self, workers: int) -> float:
        """Share of the scheduler's time that heartbeats take, at Dask's intervals."""
        every = 0.5 if workers <= 10 else 1.0 if workers < 50 else 2.0
        every = every if workers < 200 else workers / 200 + 1
        return min(workers / every * self.heartbeat, 0.9)


# The simulated cluster ------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a simulated search came to.

    Attributes
    ----------
    efficiency : float
        Share of the workers' time that went into fits.
    client, scheduler : float
        Share of its time in which each was busy.
    """

    efficiency: float
    client: float
    scheduler: float


class _Server:
    """Something that does one thing after another."""

    def __init__(self) -> None:
        self.free = self.busy = 0.0

    def serve(self, now: float, cost: float) -> float:
        """When a request that comes now is done with."""
        self.free = max(self.free, now) + cost
        self.busy += cost
        return self.free


def simulate(
    n_workers: int,
    batch: int,
    fit_seconds: Sequence[float],
    costs: Costs | None = None,
    *,
    depth: int = DEPTH,
    tasks: int | None = None,
    seed: int = 0,
) -> Outcome:
    """Pass tasks through client, scheduler and workers.

    Parameters
    ----------
    n_workers : int
    batch : int
        Fits of a task.
    fit_seconds : sequence of float
        Times of fits, of which each fit draws one.
    costs : Costs, optional
    depth : int
        Tasks that a worker has at a time.
    tasks : int, optional
        Length of the simulation, as tasks per worker.
    seed : int

    Returns
    -------
    Outcome
    """
    costs, tasks = costs or Costs(), tasks or max(6, 2000 // n_workers)
    draw = _Draw(fit_seconds, batch, seed)
    client, scheduler = _Server(), _Server()
    workers = [_Server() for _ in range(n_workers)]
    slow = 1 / (1 - costs.heartbeats(n_workers))
    at_client = (costs.client_task + batch * costs.client_fit) / 2
    at_scheduler = (costs.scheduler_task + batch * costs.scheduler_fit) / 2 * slow
    latency = 2 * (at_client + at_scheduler) + 4 * costs.network
    slowest = n_workers * 2 * max(at_client, at_scheduler)
    horizon = tasks * max(costs.worker_task + batch * draw.mean + latency, slowest)
    # When, in which order, at which stage, for which worker.
    events = [(0.0, i, 0, i % n_workers) for i in range(n_workers * depth)]
    number, work = len(events), 0.0
    while events[0][0] < horizon:
        now, _, stage, at = heapq.heappop(events)
        if stage in (0, 4):  # the client sends a task, or takes an answer
            then = client.serve(now, at_client)
        elif stage in (1, 3):
            then = scheduler.serve(now, at_scheduler)
        else:
            took = draw()
            then = workers[at].serve(now, costs.worker_task + took)
            work += _overlap(then - took, then, horizon / 4, horizon)
        network = costs.network if stage != 4 else 0.0
        heapq.heappush(events, (then + network, number, (stage + 1) % 5, at))
        number += 1
    return Outcome(
        work / (n_workers * horizon * 0.75),
        min(client.busy / horizon, 1.0),
        min(scheduler.busy / horizon * slow, 1.0),
    )


class _Draw:
    """Times of batches of fits drawn at random."""

    def __init__(self, fit_seconds: Sequence[float], batch: int, seed: int) -> None:
        self.times = np.asarray(fit_seconds, dtype=float)
        self.batch = batch
        self.mean = float(self.times.mean())
        self._random = np.random.default_rng(seed)

    def __call__(self) -> float:
        if len(self.times) == 1:
            return self.mean * self.batch
        return float(self._random.choice(self.times, self.batch).sum())


def _overlap(begin: float, end: float, first: float, last: float) -> float:
    return max(min(end, last) - max(begin, first), 0.0)


def batch_of_rule(n_workers: int, fit_seconds: float) -> int:
    """Fits that our back end puts into a task."""
    rule = tuning_workers.Workers(_SOME_DATA)
    rule._learn_pace(_unit(0), 1, fit_seconds)
    return len(rule._next(deque(map(_unit, range(250 * n_workers))), n_workers).fits)


_SOME_DATA = Folds(np.arange(8.0).reshape(4, 2), [0, 1, 0, 1], cv=2)


def _unit(number: int) -> Unit:
    name = f"{number:016x}"
    return Unit(None, 0, (Fit({}, {"test": name}),), name=name)


def smallest_batch(
    n_workers: int, fits: Sequence[float], costs: Costs, least: float
) -> int | None:
    """Smallest batch, of 1, 2, 5, 10 and so on, of at least that efficiency."""
    for batch in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
        if simulate(n_workers, batch, fits, costs).efficiency >= least:
            return batch
    return None


# Fits ------------------------------------------------------------------------------------


class Fits(NamedTuple):
    """Seconds of units of work, and lines of the log that each has."""

    seconds: list[float]
    lines: float = 1.0


def fits_of_log(path: Path) -> dict[str, Fits]:
    """The units of a run, by classifier; a staged fit is one unit."""
    units: dict[tuple[str, ...], float] = {}
    lines: Counter[str] = Counter()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        record = parse_line(line)
        scores = record.scores
        rest = {k: v for k, v in record.params.items() if k != scores.get("staged")}
        alone = "" if "staged" in scores else str(number)
        where = scores["estimator"], to_literal(rest), str(scores["fold"]), alone
        took = scores["fit_seconds"] + scores["predict_seconds"]
        units[where] = units.get(where, 0.0) + took
        lines[scores["estimator"]] += 1
    found: dict[str, list[float]] = {}
    for (estimator, *_), seconds in units.items():
        found.setdefault(estimator, []).append(seconds)
    return {
        name.rpartition(".")[2]: Fits(seconds, lines[name] / len(seconds))
        for name, seconds in found.items()
    }


# Measuring -----------------------------------------------------------------------------


# A line as long as those of real fits.
_LINE = (
    "{{'ccp_alpha': 1.234e-07, 'max_depth': 6}}\t{{'estimator': 'sklearn.tree."
    "DecisionTreeClassifier', 'fold': 1, 'split': 'test', 'seed': 0, 'tn': 96, 'fp': 4, 'fn': 11, "
    "'tp': 89, 'TPR': 0.89, 'FPR': 0.04, 'TNR': 0.96, 'FNR': 0.11, 'PPV': 0.956989247311828, "
    "'F1': 0.9222797927461139, 'fit_seconds': 0.002134, 'predict_seconds': 0.000213, "
    "'key': '{}'}}\n"
)
_FIT_S = 0.0025


def answer_at_once(
    payload: bytes, mark: str, spec: Any, store: Any, unit: bytes, limit_s: float | None
) -> Any:
    """Stands in for `anomaly.tuning.remote.run_unit_here` on the workers."""
    from anomaly.tuning.fitter import Answer

    lines = [_LINE.format(fit.name).encode() for fit in pickle.loads(unit).fits]
    return Answer(lines, seconds=_FIT_S * len(lines))


async def serve_workers(n_workers: int, scheduler: str) -> None:
    """Run so many Dask workers in this process, until it is killed."""
    from distributed import Worker

    from anomaly.tuning import remote

    remote.run_unit_here = answer_at_once
    workers: list[Any] = []
    while len(workers) < n_workers:
        some = min(20, n_workers - len(workers))
        more = [
            Worker(
                scheduler,
                nthreads=1,
                memory_limit=0,
                dashboard=False,
                host="127.0.0.1",
                name=f"worker-{len(workers) + i}",
                local_directory=tempfile.gettempdir(),
            )
            for i in range(some)
        ]
        workers += await asyncio.gather(*more)
    print("ready", flush=True)
    await asyncio.gather(*(worker.finished() for worker in workers))


@contextmanager
def cluster(n_workers: int) -> Iterator[tuple[str, int]]:
    """Address and process of a scheduler that has so many workers."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "scheduler.json"
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--no-dashboard"]
        command += ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)]
        scheduler = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(scheduler.kill)
        while not file.exists():
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        me = [sys.executable, __file__, "--serve", str(n_workers), address]
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        workers = stack.enter_context(subprocess.Popen(me, cwd=ROOT, **quiet))
        stack.callback(workers.kill)
        assert workers.stdout is not None
        if workers.stdout.readline() != "ready\n":
            raise RuntimeError("the workers did not start")
        yield address, scheduler.pid


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def measure(n_workers: int, n_tasks: int = 400) -> None:
    """Print CPU time of client and scheduler, per task and per fit."""
    with cluster(n_workers) as (address, scheduler):
        before = cpu_seconds(scheduler)
        time.sleep(10)
        idle = (cpu_seconds(scheduler) - before) / 10
        spent = {}
        with Backend(name="dask", scheduler=address).open() as place:
            for batch in (1, 100):
                with fixed_batch(batch):
                    spent[batch] = one_search(place, scheduler, batch, max(n_tasks, 3 * n_workers))
    print(f"{n_workers} workers: scheduler idle {idle:.1%} busy", flush=True)
    for i, who in enumerate(("client", "scheduler")):
        per_fit = (spent[100][i] - spent[1][i]) / 99
        task = (spent[1][i] - per_fit) * 1e3
        print(f"  {who}: {task:.2f} ms per task, {per_fit * 1e6:.0f} µs per fit", flush=True)


@contextmanager
def fixed_batch(batch: int) -> Iterator[None]:
    """Have our back end send so many fits in every task."""
    kept = tuning_workers._BATCH_SECONDS, tuning_workers._BATCH_MOST
    tuning_workers._BATCH_SECONDS, tuning_workers._BATCH_MOST = 1e6, batch
    try:
        yield
    finally:
        tuning_workers._BATCH_SECONDS, tuning_workers._BATCH_MOST = kept


def one_search(place: Any, scheduler: int, batch: int, n_tasks: int) -> tuple[float, float]:
    """CPU seconds per task of client and scheduler."""
    data = Folds(np.arange(40.0).reshape(20, 2), [0, 1] * 10, cv=5)
    grid = {"ccp_alpha": list(np.linspace(0, 1e-6, n_tasks * batch // 4))}
    space = make_space(DecisionTreeClassifier(random_state=0), grid)
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator(data, space, log=RunFolder(Path(folder) / "run"), place=place)
        evaluator.evaluate(space.distinct[:1000], [0])
        begun = time.process_time(), cpu_seconds(scheduler)
        evaluator.evaluate(space.distinct, range(1, 5))
        client = time.process_time() - begun[0]
        spent = client / n_tasks, (cpu_seconds(scheduler) - begun[1]) / n_tasks
        evaluator.close()
    return spent


# The answer ---------------------------------------------------------------------------------


def show(fits: dict[str, Fits], costs: Costs) -> None:
    """Print the efficiency of our rule, and the smallest batch of 90 %."""
    table = Table(
        "fits", "mean, ms", "workers", "smallest batch of 90 %", "our batch", "efficiency"
    )
    for name, (seconds, lines) in fits.items():
        mean = float(np.mean(seconds))
        per_unit = replace(
            costs, client_fit=lines * costs.client_fit, scheduler_fit=lines * costs.scheduler_fit
        )
        for n_workers in WORKERS:
            ours = batch_of_rule(n_workers, mean) if lines == 1 else 1  # staged fits go alone
            found = simulate(n_workers, ours, seconds, per_unit)
            least = smallest_batch(n_workers, seconds, per_unit, 0.9)
            limit = "client" if found.client > found.scheduler else "scheduler"
            table.add_row(
                name,
                f"{mean * 1e3:.1f}",
                str(n_workers),
                str(least or f"none: {limit}"),
                str(ours),
                f"{found.efficiency:.0%}",
            )
    Console(width=100).print(table)


def draw_picture(path: Path, costs: Costs) -> None:
    """Efficiency over workers, for several batches of two kinds of fits."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    workers = np.unique(np.geomspace(1, 1000, 13).round().astype(int))
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for panel, ms, batches in zip(
        panels, (2.5, 100), ((1, 10, 100, 1000), (1, 5, 20, 100)), strict=True
    ):
        for batch in batches:
            lines = [simulate(int(n), batch, [ms / 1e3], costs).efficiency for n in workers]
            panel.plot(workers, lines, label=f"{batch} a task")
        ours = [batch_of_rule(int(n), ms / 1e3) for n in workers]
        lines = [
            simulate(int(n), b, [ms / 1e3], costs).efficiency
            for n, b in zip(workers, ours, strict=True)
        ]
        panel.plot(workers, lines, "k--", label="our rule")
        panel.axhline(0.9, color="grey", linewidth=0.5)
        panel.set(xscale="log", xlabel="workers", title=f"fits of {ms} ms", ylim=(0, 1.02))
        panel.legend(fontsize=7, title="fits", title_fontsize=7)
    panels[0].set_ylabel("share of time in fits")
    figure.savefig(path, dpi=90)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", type=int, action="append", metavar="WORKERS")
    parser.add_argument("--log", type=Path, help="merged log of a run, for the times of its fits")
    parser.add_argument("--picture", type=Path, help="draw efficiency over workers")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    costs = Costs()
    if options.serve:
        asyncio.run(serve_workers(int(options.serve[0]), options.serve[1]))
    elif options.measure:
        for n_workers in options.measure:
            measure(n_workers)
    elif options.picture:
        draw_picture(options.picture, costs)
    else:
        fits = {f"of {ms} ms": Fits([ms / 1e3]) for ms in (2.5, 20, 100)}
        show(fits_of_log(options.log) if options.log else fits, costs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
