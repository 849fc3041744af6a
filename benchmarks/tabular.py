"""Detectors on a folder of labelled tables, against their peers, with paired intervals.

    python benchmarks/tabular.py --data tables/ --labels none few all

Every table is split at random into 70 % for training and 30 % for scoring,
stratified by class, and every detector sees the same splits. PyOD's detectors
join when PyOD is installed. Means are over tables; an interval is the middle
95 % of the mean difference over tables drawn with replacement.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from xgboost import XGBClassifier

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.ensemble import EnsembleDetector
from anomaly.few_labels import FewLabelsDetector
from anomaly.voting import MeanOfBestDetector

LARGEST = 100_000  # rows of a table that are used
SAME_ROWS = "none-same-rows"
COLUMNS = [
    *("table", "labels", "share", "detector", "seed"),
    *("AUROC", "AP", "cpu_seconds", "failed"),
]

# ---------------------------------------------------------------- detectors
# Each takes training rows, training labels (0 where unlabelled), rows to score and a seed.


def ensemble(mode: str) -> Callable:
    def score(X, y, rows, seed):
        return EnsembleDetector(mode, random_state=seed).fit(X).decision_function(rows)

    return score


def isolation_forest(X, y, rows, seed):
    return -IsolationForest(random_state=seed).fit(X).score_samples(rows)


def minimum_covariance(X, y, rows, seed):
    if X.shape[1] > 200:
        raise ValueError("left out: minutes to hours on more than 200 columns")
    return -EllipticEnvelope(random_state=seed).fit(X).score_samples(rows)


def local_outlier_factor(X, y, rows, seed):
    scale = StandardScaler().fit(X)
    model = LocalOutlierFactor(novelty=True).fit(scale.transform(X))
    return -model.score_samples(scale.transform(rows))


def five_neighbours(X, y, rows, seed):
    scale = StandardScaler().fit(X)
    model = NearestNeighbors(n_neighbors=5).fit(scale.transform(X))
    return model.kneighbors(scale.transform(rows))[0][:, -1]


def few_labels(X, y, rows, seed):
    return FewLabelsDetector(random_state=seed).fit(X, y).decision_function(rows)


def mean_of_best(X, y, rows, seed):
    return MeanOfBestDetector(cv=3, random_state=seed).fit(X, y).decision_function(rows)


def classifier(make: Callable) -> Callable:
    def score(X, y, rows, seed):
        return make(seed).fit(X, y).predict_proba(rows)[:, 1]

    return score


def forest_and_boosting(X, y, rows, seed):
    """What the few-labels detector learns from labels, without the ensemble."""
    forest, boosting = SUPERVISED["random forest"], SUPERVISED["XGBoost"]
    return forest(X, y, rows, seed) + boosting(X, y, rows, seed)


SUPERVISED = {
    "random forest": classifier(lambda seed: RandomForestClassifier(300, random_state=seed)),
    "XGBoost": classifier(lambda seed: XGBClassifier(n_jobs=1, random_state=seed)),
    "histogram boosting": classifier(
        lambda seed: HistGradientBoostingClassifier(random_state=seed)
    ),
}


def pyod_peers(names: dict[str, str]) -> dict[str, Callable]:
    """PyOD's detectors by module and class name, none where it is not installed."""
    import importlib.util

    if importlib.util.find_spec("pyod") is None:
        return {}

    def peer(module: str, name: str) -> Callable:
        def score(X, y, rows, seed):
            cls = getattr(importlib.import_module(f"pyod.models.{module}"), name)
            scale = StandardScaler().fit(X)
            model = cls()
            if name == "XGBOD":
                model.fit(scale.transform(X), y)
            else:
                model.fit(scale.transform(X))
            return model.decision_function(scale.transform(rows))

        return score

    return {f"PyOD {name}": peer(module, name) for module, name in names.items()}


def detectors(labels: str) -> dict[str, Callable]:
    """Detectors of a mode; the first is the one that the others are compared with."""
    if labels in ("none", SAME_ROWS):
        return {
            "EnsembleDetector": ensemble("full"),
            "EnsembleDetector light": ensemble("light"),
            "isolation forest": isolation_forest,
            "minimum covariance": minimum_covariance,
            "5 neighbours": five_neighbours,
            "local outlier factor": local_outlier_factor,
            **pyod_peers({"hbos": "HBOS", "ecod": "ECOD", "copod": "COPOD", "gmm": "GMM"}),
        }
    if labels == "few":
        return {
            "FewLabelsDetector": few_labels,
            "EnsembleDetector": ensemble("full"),
            "labels only": forest_and_boosting,
            **pyod_peers({"xgbod": "XGBOD"}),
        }
    return {"MeanOfBestDetector": mean_of_best, **SUPERVISED}


# --------------------------------------------------------------- measuring


def read_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows and labels of an .npz with X and y, or of a CSV whose last column is the label.

    Text columns of a CSV become one column of 0 and 1 for each value; its rows
    with an empty cell are left out.
    """
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as data:
            X, y = data["X"], data["y"]
    else:
        frame = pd.read_csv(path).dropna()
        X = pd.get_dummies(frame.iloc[:, :-1], dtype=float).to_numpy(float)
        y = frame.iloc[:, -1].to_numpy()
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 and 1; of a CSV they are the last column")
    if min((y == 1).sum(), (y == 0).sum()) < 4:
        raise ValueError("at least 4 rows of each label are needed")
    return np.asarray(X, float), np.asarray(y).ravel().astype(int)


def measure(path: Path, labels: str, share: float, name: str, seed: int) -> dict:
    """One detector on one split of one table."""
    X, y = read_table(path)
    if len(X) > LARGEST:
        X, _, y, _ = train_test_split(X, y, train_size=LARGEST, stratify=y, random_state=0)
    if labels == SAME_ROWS:
        rows, truth = X, y
    else:
        X, rows, y, truth = train_test_split(X, y, test_size=0.3, stratify=y, random_state=seed)
    if labels == "few":
        known = np.random.default_rng(seed).permutation(np.flatnonzero(y))
        y = np.zeros_like(y)
        y[known[: max(1, round(share * len(known)))]] = 1
    result = {"table": path.stem, "labels": labels, "share": share, "detector": name, "seed": seed}
    start = time.process_time()
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        try:
            scores = detectors(labels)[name](X, y, rows, seed)
        except Exception as error:  # one peer that fails on a table must not end the run
            return {**result, "failed": f"{type(error).__name__}: {error}"}
    return {
        **result,
        "AUROC": roc_auc_score(truth, scores),
        "AP": average_precision_score(truth, scores),
        "cpu_seconds": time.process_time() - start,
    }


def measured(work: list[tuple], n_jobs: int, out: Path | None) -> list[dict]:
    """Results of all jobs; those that ``out`` holds from an earlier run are not run again."""
    kept = [row for row in read_results(out) if job_key(row) in {named(job) for job in work}]
    done = {job_key(row) for row in kept}
    left = [job for job in work if named(job) not in done]
    found = Parallel(n_jobs, return_as="generator_unordered")(
        delayed(measure)(*job) for job in left
    )
    for row in track(found, "measuring", len(left), console=Console(stderr=True)):
        kept.append(row)
        if out:
            append_result(out, row)
    return kept


def named(job: tuple) -> tuple:
    path, labels, share, name, seed = job
    return path.stem, labels, share, name, seed


def job_key(row: dict) -> tuple:
    return row["table"], row["labels"], float(row["share"]), row["detector"], int(row["seed"])


def read_results(out: Path | None) -> list[dict]:
    """Whole lines of an earlier run; a last line cut short is removed from the file."""
    if out is None or not out.exists():
        return []
    text = out.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        out.write_text(whole)
    rows = list(csv.DictReader(io.StringIO(whole)))
    for row in rows:
        row["failed"] = row["failed"] or None
        for number in ("share", "AUROC", "AP", "cpu_seconds"):
            row[number] = float(row[number] or "nan")
    return rows


def append_result(out: Path, row: dict) -> None:
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def jobs(tables: list[Path], options: argparse.Namespace) -> Iterator[tuple]:
    for labels in options.labels:
        for share in options.shares if labels == "few" else [1.0]:
            for name in detectors(labels):
                for path in tables:
                    for seed in range(options.repeats):
                        yield path, labels, share, name, seed


def paired_interval(ours: pd.Series, theirs: pd.Series) -> tuple[float, float, float]:
    """Mean difference over tables and the middle 95 % of its bootstrap."""
    difference = (ours - theirs).dropna().to_numpy()
    if not len(difference):
        return np.nan, np.nan, np.nan
    drawn = np.random.default_rng(0).choice(difference, (10_000, len(difference))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return difference.mean(), low, high


def summary(results: pd.DataFrame, title: str) -> Table:
    table = Table(title=title)
    for column in ("detector", "tables", "AUROC", "AP", "CPU s", "first − this: AUROC", "AP "):
        table.add_column(column, justify="left" if column == "detector" else "right")
    by_table = results.groupby(["detector", "table"])[["AUROC", "AP", "cpu_seconds"]].mean()
    names = list(dict.fromkeys(results["detector"]))
    first = by_table.loc[names[0]]
    for name in names:
        mine = by_table.loc[name]
        shown = [f"{mine[m].mean():.3f}" for m in ("AUROC", "AP")]
        shown.append(f"{mine['cpu_seconds'].mean():.2f}")
        for m in ("AUROC", "AP"):
            mean, low, high = paired_interval(first[m], mine[m])
            shown.append("" if name == names[0] else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]")
        table.add_row(name, str(mine["AUROC"].notna().sum()), *shown)
    return table


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="example: python benchmarks/tabular.py --data tables/ --labels none --repeats 3",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz or .csv tables")
    parser.add_argument(
        "--labels",
        nargs="+",
        choices=["none", SAME_ROWS, "few", "all"],
        default=["none"],
        help="how many labels the detectors may see; none-same-rows fits to the rows it scores",
    )
    parser.add_argument(
        "--shares",
        nargs="+",
        type=float,
        default=[0.01, 0.05, 0.1],
        help="shares of the anomalies that are labelled, for --labels few",
    )
    parser.add_argument("--tables", nargs="+", help="only these tables, by name")
    parser.add_argument("--detectors", nargs="+", help="only these detectors, by name")
    parser.add_argument("--repeats", type=int, default=3, help="splits per table")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument(
        "--out", type=Path, help="add every result to this CSV; a run stopped midway goes on"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    tables = sorted(p for p in options.data.glob("*") if p.suffix in (".npz", ".csv"))
    tables = [p for p in tables if options.out is None or p.resolve() != options.out.resolve()]
    tables = [p for p in tables if not options.tables or p.stem in options.tables]
    if not tables:
        print(f"tabular.py: error: no .npz or .csv tables in {options.data}", file=sys.stderr)
        return 2
    for path in tables:
        try:
            read_table(path)
        except (ValueError, KeyError, OSError) as error:
            print(f"tabular.py: error: {path.name}: {error}", file=sys.stderr)
            return 2
    work = [
        job
        for job in jobs(tables, options)
        if not options.detectors or job[3] in options.detectors
    ]
    work.sort(key=lambda job: -job[0].stat().st_size)  # the longest first, to end together
    results = pd.DataFrame(measured(work, options.jobs, options.out), columns=COLUMNS)
    order = {name: i for mode in options.labels for i, name in enumerate(detectors(mode))}
    results = results.sort_values("detector", key=lambda names: names.map(order), kind="stable")
    console = Console(width=120)
    for failure in results.dropna(subset="failed").itertuples():
        console.print(f"{failure.detector} failed on {failure.table}: {failure.failed}")
    for (labels, share), part in results.groupby(["labels", "share"], sort=False):
        known = f", {share:.0%} of the anomalies labelled" if labels == "few" else ""
        console.print(summary(part, f"labels: {labels}{known}; {options.repeats} splits a table"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
