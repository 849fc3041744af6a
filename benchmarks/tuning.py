"""Staged fits against scikit-learn's GridSearchCV, in CPU time, on slices of real grids.

    python benchmarks/tuning.py
    python benchmarks/tuning.py --family adaboost --slices 8
    python benchmarks/tuning.py --searches

Every slice is tuned twice on the bundled sizes of people, cars and motorcycles with
1,000 injected points: by `GridSearchCV(n_jobs=1)` over the same pipeline, folds and
seeds, and by `anomaly.tuning.tune` with its log on disk. All scores must be equal to
the last bit; the ratio is that of the CPU seconds of both. A slice of AdaBoost is one
learning rate and one depth of the original grid with all its 99 values of n_estimators.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.tree import DecisionTreeClassifier

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.tuning import family, tune
from anomaly.tuning.engine import seeded
from anomaly.tuning.workers import one_thread
from detector import Detector

HUNDRED = list(range(1, 101))
ORIGINAL = [
    {
        "n_estimators": list(range(1, 100)),
        "learning_rate": [rate],
        "estimator": [DecisionTreeClassifier(max_depth=depth)],
    }
    for rate, depth in [(0.1, 2), (0.5, 5), (0.9, 9), (0.3, 7), (0.7, 3), (0.9, 4), (0.1, 8)]
]
SLICES: dict[str, list[dict[str, list[Any]]]] = {
    "adaboost": ORIGINAL,
    "gradient_boosting": [{"n_estimators": HUNDRED}],
    "knn": [{"n_neighbors": list(range(1, 51))}, {"n_neighbors": list(range(1, 51)), "p": [1]}],
    "random_forest": [{"n_estimators": list(range(2, 61, 2))}],
    "extra_trees": [{"n_estimators": list(range(2, 61, 2))}],
    "xgboost": [{"n_estimators": list(range(4, 101, 4)), "n_jobs": [1]}],
    "hist_gradient_boosting": [{"max_iter": list(range(4, 61, 4))}],
}
DEFAULT = {"adaboost": 1, "gradient_boosting": 1, "knn": 1, "random_forest": 1, "xgboost": 1}


def load_rows(data: str) -> Detector:
    """The bundled data with injected points, split into halves."""
    rows = Detector.from_catalogue(data)
    rows.inject(1000)
    return rows.format(0)


def by_grid_search(name: str, grid: dict[str, list[Any]], rows: Detector, cv: int) -> Any:
    """CPU seconds and scores of the peer."""
    model = seeded(family(name).make(), 0)
    search = GridSearchCV(
        Pipeline([("prepare", rows.encoder()), ("classifier", model)]),
        {f"classifier__{key}": values for key, values in grid.items()},
        cv=cv,
        scoring="f1",
        n_jobs=1,
        refit=False,
    )
    begun = time.process_time()
    search.fit(rows.xtrain, rows.ytrain.astype(int))
    seconds = time.process_time() - begun
    return seconds, search.cv_results_["mean_test_score"]


def by_stages(name: str, grid: dict[str, list[Any]], rows: Detector, cv: int) -> Any:
    """CPU seconds and scores of ours, with the log on disk."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        result = tune(
            family(name).make(),
            grid,
            rows.xtrain,
            rows.ytrain.to_numpy().astype(int),
            prepare=rows.encoder(),
            cv=cv,
            log=Path(folder) / "run",
            progress=False,
            refit=False,
        )
        return time.process_time() - begun, result.table["mean_score"].to_numpy()


def compare(names: list[str], slices: int | None, data: str, cv: int) -> None:
    """Print the ratio of every slice."""
    rows, console = load_rows(data), Console()
    columns = ("slice", "fits", "GridSearchCV", "staged", "ratio", "scores that differ")
    table = Table(*columns, title=f"{len(rows.xtrain)} training rows, {cv} folds, CPU seconds")
    for name in names:
        spent = np.zeros(2)
        for number, grid in enumerate(SLICES[name][: slices or DEFAULT.get(name, 1)]):
            staged, ours = by_stages(name, grid, rows, cv)
            peer, theirs = by_grid_search(name, grid, rows, cv)
            spent += peer, staged
            differ = int(np.count_nonzero(ours != theirs))
            label = f"{name} {number + 1}"
            numbers = (f"{peer:.2f}", f"{staged:.2f}", f"{peer / staged:.1f}", str(differ))
            table.add_row(label, str(len(ours) * cv), *numbers)
            console.print(f"{label}: {peer / staged:.1f}", highlight=False)
        if number:
            table.add_row(
                f"{name} all", "", *(f"{s:.2f}" for s in spent), f"{spent[0] / spent[1]:.1f}"
            )
    console.print(table)


def compare_searches(data: str, cv: int) -> None:
    """Print what every search spends, and loses, on the original grid thinned out."""
    rows, console = load_rows(data), Console()
    grid = {
        "n_estimators": list(range(1, 100)),
        "learning_rate": [0.1, 0.3, 0.5, 0.7, 0.9],
        "estimator": [DecisionTreeClassifier(max_depth=depth) for depth in (2, 4, 6, 9)],
    }
    table = Table("search", "CPU seconds", "fits", "best F1", "loss", title="AdaBoost, staged")
    first = None
    for search in ("grid", "racing", "optuna", "halving"):
        begun = time.process_time()
        tuned = rows.tune_parameters(
            family("adaboost").make(), grid, cv=cv, search=search, refit=False, progress=False
        )
        seconds = time.process_time() - begun
        first = tuned.score if first is None else first
        numbers = f"{tuned.score:.4f}", f"{first - tuned.score:.4f}"
        table.add_row(search, f"{seconds:.1f}", str(rows.tuning.n_fits_), *numbers)
    console.print(table)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", action="append", choices=list(SLICES), help="repeat for more")
    parser.add_argument("--slices", type=int, help="slices of every family")
    parser.add_argument("--data", default="dimensions_small", help="entry of the catalogue")
    parser.add_argument("--cv", type=int, default=5)
    parser.add_argument("--searches", action="store_true", help="compare the ways through a grid")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with one_thread():
        if options.searches:
            compare_searches(options.data, options.cv)
        else:
            compare(options.family or list(DEFAULT), options.slices, options.data, options.cv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
