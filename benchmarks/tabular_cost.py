"""What the ensemble costs on 10,000 and 1,000,000 rows, beside PyOD's detectors of the same kinds.

    python benchmarks/tabular_cost.py

Prints processor time of `fit` and of scoring all rows, on one thread, and how
many times the ensemble's sum each takes. PyOD's part needs PyOD installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.ensemble import EnsembleDetector

PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "PyOD KNN, 1 % of rows": ("knn", "KNN", {"method": "mean", "n_neighbors": 0.01}),
    "PyOD KNN, 10 % of rows": ("knn", "KNN", {"method": "mean", "n_neighbors": 0.1}),
    "PyOD IForest": ("iforest", "IForest", {"n_estimators": 200, "max_samples": 1024}),
    "PyOD HBOS": ("hbos", "HBOS", {}),
    "PyOD MCD": ("mcd", "MCD", {}),
}


def detectors(n_rows: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "EnsembleDetector", lambda: EnsembleDetector(random_state=0)
    yield "EnsembleDetector light", lambda: EnsembleDetector("light", random_state=0)
    if n_rows > 10_000 or importlib.util.find_spec("pyod") is None:
        return
    for title, (module, name, options) in PEERS.items():
        cls = getattr(importlib.import_module(f"pyod.models.{module}"), name)
        given = {k: round(v * n_rows) if isinstance(v, float) else v for k, v in options.items()}
        cls(**given).fit(
            made(2 * given.get("n_neighbors", 100), 2)
        )  # whatever is compiled or loaded the first time
        yield title, lambda cls=cls, given=given: cls(**given)


def made(n_rows: int, n_columns: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n_rows, n_columns)) @ rng.normal(size=(n_columns, n_columns))


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measure(n_rows: int, n_columns: int, console: Console) -> None:
    X = made(n_rows, n_columns)
    table = Table(title=f"{n_rows:,} rows, {n_columns} columns: seconds of processor time")
    for column in ("detector", "fit", "score", "both / ensemble's"):
        table.add_column(column, justify="left" if column == "detector" else "right")
    first = None
    for name, make in detectors(n_rows):
        model = make()
        fit, score = (
            seconds(lambda m=model: m.fit(X)),
            seconds(lambda m=model: m.decision_function(X)),
        )
        first = first or fit + score
        table.add_row(name, f"{fit:.2f}", f"{score:.2f}", f"{(fit + score) / first:.2f}")
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--columns", nargs="+", type=int, default=[10])
    options = parser.parse_args(arguments)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        for n_rows in options.rows:
            for n_columns in options.columns:
                measure(n_rows, n_columns, Console(width=100))
    return 0


if __name__ == "__main__":
    sys.exit(main())
