"""What a back end costs per fit, and how much two workers of this machine bring.

    python benchmarks/scaling.py                  # overhead on small fits of about 2.5 ms
    python benchmarks/scaling.py --workers        # one worker against two, fits of 50 ms

Small fits are those of a decision tree, which is not staged. Each back end starts its
processes and prepares the folds before the clock does; then it takes turns with bare
loops over the same fits, without log or lock, in as many processes as it has workers, so
that both see the same machine. Ratios are to those loops, of wall time and of the CPU
seconds of this process and all its descendants; median (smallest–largest) of the rounds.
Needs ``pip install '.[dask]'``.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.tuning import Backend
from anomaly.tuning.engine import Evaluator, make_space
from anomaly.tuning.folds import Folds
from anomaly.tuning.scores import count, ratio_scores
from anomaly.tuning.workers import ONE_THREAD, one_thread

CHUNK = 100
SMALL_ROWS, LARGE_ROWS = 1200, 26_000


class Work(NamedTuple):
    """The fits that every back end makes: all candidates on all folds but the first."""

    data: Folds
    grid: dict[str, list[Any]]
    candidates: list[dict[str, Any]]

    @property
    def fits(self) -> list[tuple[int, dict[str, Any]]]:
        return [(fold, each) for fold in range(1, len(self.data)) for each in self.candidates]


Run = Callable[[], Any]
# Starts what is to be started, and yields what makes a run ready.
BackEnd = Callable[[Work, int], Any]


def make_work(rows: int, fits: int) -> Work:
    """Rows for a decision tree in six folds, of which the first only warms up."""
    X, y = make_classification(rows, 5, random_state=0)
    grid = {"max_depth": [6], "ccp_alpha": list(np.linspace(0, 1e-6, max(fits // 5, 1)))}
    space = make_space(DecisionTreeClassifier(random_state=0), grid)
    return Work(Folds(X, y, cv=6), grid, [c.params for c in space.distinct])


def fit_one(data: Folds, fold: int, params: dict[str, Any]) -> dict[str, Any]:
    """One fit as a user would write it."""
    rows = data.prepared(fold)
    model = clone(DecisionTreeClassifier(random_state=0)).set_params(**params)
    labels = model.fit(rows.X_train, rows.y_train).predict(rows.X_test)
    return ratio_scores(count(labels == 1, rows.y_test == 1))


def fit_many(data: Folds, fits: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [fit_one(data, *fit) for fit in fits]


# Bare loops -----------------------------------------------------------------------------

_work: Work | None = None


def _keep(work: Work) -> None:
    global _work
    _work = work


def _loop(begin: int, end: int) -> int:
    assert _work is not None
    with one_thread():
        return len(fit_many(_work.data, _work.fits[begin:end]))


class BareLoops:
    """A loop without log, lock or messages in every one of so many processes."""

    def __init__(self, work: Work, workers: int) -> None:
        self.workers = workers
        self.n_fits = len(work.fits)
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, context, initializer=_keep, initargs=(work,))
        self()

    def __call__(self) -> None:
        # Parts small enough that the processes end together, whoever else is at work.
        size = min(CHUNK, -(-self.n_fits // (4 * self.workers)))
        parts = [self._pool.submit(_loop, i, i + size) for i in range(0, self.n_fits, size)]
        for part in parts:
            part.result()

    def close(self) -> None:
        self._pool.shutdown()


# Back ends ------------------------------------------------------------------------------


@contextmanager
def ours(work: Work, workers: int, name: str) -> Iterator[Callable[[], Any]]:
    """`tune` without its answer: keys, locks, log on disk."""
    how = {"workers": workers} if name == "dask" else {"n_jobs": workers}
    space = make_space(DecisionTreeClassifier(random_state=0), work.grid)

    @contextmanager
    def ready() -> Iterator[Run]:
        with tempfile.TemporaryDirectory() as folder:
            evaluator = Evaluator(work.data, space, log=Path(folder) / "run", place=place)
            try:
                # Every worker has to be up before the clock starts.
                evaluator.evaluate(space.distinct, [0])
                yield partial(evaluator.evaluate, space.distinct, range(1, len(work.data)))
            finally:
                evaluator.close()

    with Backend(name=name, **how).open() as place:
        yield ready


@contextmanager
def threads(work: Work, workers: int) -> Iterator[Callable[[], Any]]:
    with joblib.Parallel(workers, backend="threading") as pool:
        yield always(lambda: pool(joblib.delayed(fit_one)(work.data, *f) for f in work.fits))


@contextmanager
def grid_search(work: Work, workers: int, backend: str = "loky") -> Iterator[Callable[[], Any]]:
    search = GridSearchCV(
        DecisionTreeClassifier(random_state=0),
        work.grid,
        cv=work.data.splits[1:],
        scoring="f1",
        n_jobs=workers,
        refit=False,
    )

    def run() -> None:
        with joblib.parallel_config(backend):
            search.fit(work.data.X, work.data.y)

    with ExitStack() as stack:
        if backend == "dask":
            stack.enter_context(local_cluster(workers))
        if workers > 1:
            run()  # starts the processes
        yield always(run)


@contextmanager
def dask_tasks(work: Work, workers: int, chunk: int) -> Iterator[Callable[[], Any]]:
    """Futures without log or locks, so many fits each."""
    with local_cluster(workers) as client:
        data = client.scatter(work.data, broadcast=True)
        chunks = [work.fits[i : i + chunk] for i in range(0, len(work.fits), chunk)]

        def run() -> None:
            client.gather([client.submit(fit_many, data, part, pure=False) for part in chunks])

        run()
        yield always(run)


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.ERROR,
            env=ONE_THREAD,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def always(run: Run) -> Callable[[], Any]:
    """For a back end that needs nothing new before a run."""

    @contextmanager
    def ready() -> Iterator[Run]:
        yield run

    return ready


BACK_ENDS: dict[str, tuple[BackEnd, int]] = {
    "ours, this process": (partial(ours, name="loky"), 1),
    "ours, loky": (partial(ours, name="loky"), 2),
    "ours, dask": (partial(ours, name="dask"), 2),
    "joblib, threads": (threads, 2),
    "GridSearchCV": (grid_search, 1),
    "GridSearchCV, loky": (grid_search, 2),
    "GridSearchCV, joblib's dask": (partial(grid_search, backend="dask"), 2),
    f"dask, {CHUNK} fits a task, no log": (partial(dask_tasks, chunk=CHUNK), 2),
    "dask, one fit a task, no log": (partial(dask_tasks, chunk=1), 2),
}


# Measuring ------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """CPU time of this process and all its descendants, the dead ones included."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def timed(run: Run) -> np.ndarray:
    """Wall and CPU seconds."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    run()
    return np.array([time.perf_counter() - wall, cpu_seconds() - cpu])


def compare(work: Work, names: list[str], rounds: int) -> None:
    """Print the ratio of every back end to bare loops in as many processes."""
    title = f"{len(work.fits)} fits; ratios to bare loops in as many processes"
    table = Table(
        "back end", "workers", "wall", "CPU", "CPU ms per fit", "of a bare loop", "start s"
    )
    for name in names:
        open_back_end, workers = BACK_ENDS[name]
        loops = BareLoops(work, workers)
        bare, spent, begun = [], [], time.perf_counter()
        with open_back_end(work, workers) as ready:
            start = None
            for _ in range(rounds):
                with ready() as run:
                    start = start or time.perf_counter() - begun
                    bare.append(timed(loops))
                    spent.append(timed(run))
        loops.close()
        ratios = np.array(spent) / np.array(bare)
        per_fit = [
            np.median(np.array(each)[:, 1]) / len(work.fits) * 1e3 for each in (spent, bare)
        ]
        row = (
            name,
            str(workers),
            spread(ratios[:, 0]),
            spread(ratios[:, 1]),
            *(f"{ms:.2f}" for ms in per_fit),
            f"{start:.1f}",
        )
        table.add_row(*row)
        print(*row, sep="  ", flush=True)
    Console(width=120).print(title, table)


def scale(work: Work, rounds: int) -> None:
    """Print how much faster two workers are than one.

    On a machine with other work, wall time says little; then the CPU time bounds
    what two idle processors would give.
    """
    table = Table("back end", "one worker, s", "two, s", "speed-up", "CPU, one", "CPU, two")
    for name in ("bare loops", "loky", "dask"):
        spent = np.array([[spent_of(name, work, n) for n in (1, 2)] for _ in range(rounds)])
        (wall, cpu), (wall_2, cpu_2) = np.median(spent, axis=0)
        row = (
            name,
            f"{wall:.2f}",
            f"{wall_2:.2f}",
            spread(spent[:, 0, 0] / spent[:, 1, 0]),
            f"{cpu:.2f}",
            f"{cpu_2:.2f}",
        )
        table.add_row(*row)
        print(*row, sep="  ", flush=True)
    Console(width=120).print(f"{len(work.fits)} fits", table)


def spent_of(name: str, work: Work, workers: int) -> np.ndarray:
    """Wall and CPU seconds of the fits, once the workers are up."""
    if name == "bare loops":
        loops = BareLoops(work, workers)
        spent = timed(loops)
        loops.close()
        return spent
    with ours(work, workers, name) as ready, ready() as run:
        return timed(run)


def spread(values: Any) -> str:
    """Median, smallest and largest."""
    return f"{np.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", action="store_true", help="one worker against two")
    parser.add_argument("--only", action="append", choices=list(BACK_ENDS), metavar="BACK_END")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fits", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with one_thread():
        if options.workers:
            scale(make_work(LARGE_ROWS, options.fits or 200), options.rounds)
        else:
            work = make_work(SMALL_ROWS, options.fits or 2000)
            compare(work, options.only or list(BACK_ENDS), options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
