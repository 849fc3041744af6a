"""One record and many through the exported classifier, against scikit-learn's own predict.

    python benchmarks/classify.py
    python benchmarks/classify.py --trees 46 --depth 8 --repeats 2000
    python benchmarks/classify.py --tables 1000000

Both sides are measured in the same run, in CPU time, on the bundled dimensions
with 1,000 odd points. "one record" is a call with a class, a length and a width
against `predict` of the bare classifier on the row already encoded, which leaves
out what encoding costs scikit-learn. "records/s" is a frame of many through the
function and through `predict` of the whole fitted pipeline. Every answer is
compared.

`--tables N` measures a CSV file of N records instead: a plain loop over chunks of
`pandas.read_csv` with the same exported function, one stream, one and two processes,
and Dask with one and two workers. Wall time includes starting the processes; CPU time
is that of all of them. The answers of each are compared with those of the stream.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.encoding import RecordEncoder
from anomaly.exported import ExportedClassifier, export_classifier, unpack, verify
from anomaly.injection import inject
from anomaly.loading import Catalogue
from production.batch import Options, score_tables
from production.classify import classify_rows
from production.workers import Cluster, Processes

ROOT = Path(__file__).resolve().parent.parent
FIELDS = ["class", "length", "width"]


def main() -> int:
    options = parse()
    records, odd = load(options.data)
    if options.tables:
        return measure_tables(records, odd, options)
    train = np.random.default_rng(0).random(len(records)) < 0.5
    many = records[~train]
    many = many.iloc[np.arange(options.rows) % len(many)].reset_index(drop=True)
    table = Table(title=f"{len(records)} records of {options.data}, half of them to train on")
    for heading in (
        "classifier", "native", "one record µs", "predict µs", "ratio", "records/s", "pipeline/s",
        "ratio", "CSV records/s", "same",
    ):  # fmt: skip
        table.add_column(heading, justify="left" if heading == "classifier" else "right")
    for name, classifier in classifiers(options).items():
        pipeline = make_pipeline(RecordEncoder(), classifier).fit(records[train], odd[train])
        table.add_row(name, *measure(pipeline, many, options.repeats))
    Console(width=130).print(table)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="dimensions", help="name in datasets/catalogue.toml")
    parser.add_argument("--trees", type=int, default=46, help="trees of AdaBoost (default 46)")
    parser.add_argument("--depth", type=int, default=8, help="their depth (default 8)")
    parser.add_argument("--rows", type=int, default=20000, help="records of the frame")
    parser.add_argument("--repeats", type=int, default=1000, help="calls with one record")
    parser.add_argument("--tables", type=int, metavar="N", help="measure a file of N records")
    return parser.parse_args()


def load(name: str) -> tuple[pd.DataFrame, np.ndarray[Any, Any]]:
    frame = Catalogue(ROOT / "datasets" / "catalogue.toml").load(name).frame[FIELDS]
    odd, _ = inject(frame, 1000, "uniform", categorical=["class"], random_state=0)
    return (
        pd.concat([frame, odd[FIELDS]], ignore_index=True),
        np.repeat([0, 1], [len(frame), len(odd)]),
    )


def classifiers(options: argparse.Namespace) -> dict[str, Any]:
    tree = DecisionTreeClassifier(max_depth=options.depth)
    return {
        f"AdaBoost, {options.trees} trees": AdaBoostClassifier(
            tree, n_estimators=options.trees, learning_rate=0.5, random_state=0
        ),
        "random forest, 100": RandomForestClassifier(random_state=0),
        "extra trees, 100": ExtraTreesClassifier(random_state=0),
        "gradient boosting, 100": GradientBoostingClassifier(random_state=0),
        "histogram boosting, 100": HistGradientBoostingClassifier(random_state=0),
        "decision tree": DecisionTreeClassifier(random_state=0),
        "XGBoost, 100": XGBClassifier(n_jobs=1),
        "logistic regression": LogisticRegression(),
        "SVC": SVC(),
    }


def measure(pipeline: Any, many: pd.DataFrame, repeats: int) -> list[str]:
    fun = ExportedClassifier(pipeline)
    encoder, classifier = pipeline
    record = tuple(many.iloc[0])
    row = encoder.transform(many.head(1))
    few = max(20, repeats // 20)
    ours, theirs = (
        seconds(lambda: fun(*record), repeats),
        seconds(lambda: classifier.predict(row), few),
    )
    frame, pipe = seconds(lambda: fun(many), 3), seconds(lambda: pipeline.predict(many), 3)
    expected = pipeline.predict(many) == 1
    singly = [fun(*r) for r in many.head(500).itertuples(index=False, name=None)]
    same = (fun(many) == expected).all() and singly == expected[:500].tolist()
    lines = many.to_csv(index=False).splitlines(keepends=True)
    streamed = seconds(lambda: sum(1 for _ in classify_rows(fun, lines)), 1)
    n = len(many)
    return [
        "yes" if fun.is_native else "no",
        *(f"{1e6 * ours:.1f}", f"{1e6 * theirs:.0f}", f"{theirs / ours:.1f}"),
        *(f"{n / frame:,.0f}", f"{n / pipe:,.0f}", f"{pipe / frame:.1f}"),
        f"{n / streamed:,.0f}",
        "yes" if same else "NO",
    ]


# ---- tables


def measure_tables(
    records: pd.DataFrame, odd: np.ndarray[Any, Any], options: argparse.Namespace
) -> int:
    pipeline = make_pipeline(RecordEncoder(), next(iter(classifiers(options).values())))
    pipeline.fit(records, odd)
    with tempfile.TemporaryDirectory() as folder:
        model = export_classifier(pipeline, f"{folder}/m.clf", probes=records).read_bytes()
        path = Path(folder, "table.csv")
        many = records.iloc[np.arange(options.tables) % len(records)].assign(
            id=np.arange(options.tables)
        )
        many.to_csv(path, index=False)
        size = path.stat().st_size
        table = Table(title=f"{options.tables:,} records, {size / 1e6:.0f} MB")
        for heading in ("how", "wall s", "records/s", "ratio", "CPU s", "ratio", "same"):
            table.add_column(heading, justify="left" if heading == "how" else "right")
        reference: tuple[float, float] = (0.0, 0.0)
        expected = None
        for name, run in ways(model, path, size).items():
            begin, cpu = time.perf_counter(), cpu_seconds()
            labels = run()
            took, used = time.perf_counter() - begin, cpu_seconds() - cpu
            reference = (took, used) if expected is None else reference
            expected = labels if expected is None else expected
            table.add_row(
                name,
                *(f"{took:.1f}", f"{options.tables / took:,.0f}", f"{reference[0] / took:.2f}"),
                *(f"{used:.1f}", f"{reference[1] / used:.2f}"),
                "yes" if np.array_equal(labels, expected) else "NO",
            )
    Console(width=130).print(table)
    return 0


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def ways(model: bytes, path: Path, size: int) -> dict[str, Callable[[], Any]]:
    """Ways to score a table; each returns the labels."""
    fun = unpack(verify(model))
    out = path.with_name("out.csv")

    def plain() -> Any:
        with open(out, "w") as file:
            for i, chunk in enumerate(pd.read_csv(path, chunksize=65536)):
                chunk["malicious"] = fun(chunk[FIELDS]).astype(int)
                chunk.to_csv(file, index=False, header=i == 0)
        return labels_in([out])

    def stream() -> Any:
        with open(path, newline="") as lines, open(out, "w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(classify_rows(fun, lines))
        return labels_in([out])

    def parts(make: Callable[[bytes], Any]) -> Any:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            asked = Options((str(path),), folder, part_size=-(-size // 8))
            run = score_tables(model, asked, make)
            assert not run.failed
            return labels_in(sorted(Path(folder).glob("*.csv")))

    return {
        "pandas, a plain loop": plain,
        "one stream": stream,
        "1 process": lambda: parts(lambda data: Processes(data, 1)),
        "2 processes": lambda: parts(lambda data: Processes(data, 2)),
        "Dask, 1 worker": lambda: parts(lambda data: Cluster(data, n_workers=1)),
        "Dask, 2 workers": lambda: parts(lambda data: Cluster(data, n_workers=2)),
    }


def labels_in(paths: list[Path]) -> Any:
    return np.concatenate([pd.read_csv(p, usecols=["malicious"])["malicious"] for p in paths])


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """CPU seconds per call, the best of three rounds."""
    rounds = []
    for _ in range(3):
        begin = time.process_time()
        for _ in range(repeats):
            call()
        rounds.append((time.process_time() - begin) / repeats)
    return min(rounds)


if __name__ == "__main__":
    sys.exit(main())
