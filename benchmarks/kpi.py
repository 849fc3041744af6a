"""KPI windows: CPU time of a window of 903 points, native and by plain peers, in one run.

    python benchmarks/kpi.py
    python benchmarks/kpi.py --windows 2000 --found
    python benchmarks/kpi.py --segments 200

The peers are the NumPy twin of the same features (tests/kpi_oracle.py), the n-sigma
rule by pandas, float() on the text, and, where tsfresh is installed
(pip install 'anomaly[bench]'), its minimal feature set of data_a, data_b and data_c.
With a C compiler, libdetect is built in a temporary folder and its functions are
called one window at a time, which adds the few microseconds of ctypes; "C only" takes
an empty call away again. --found adds what the shipped model finds in synthetic windows.
--segments N measures something else instead: how many anomalous segments put into N
five-minute series are found at their first or second point; the series are synthetic,
or with --series those among the first N CSV files that are five-minute series of ten
days or more.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly import Detect, _core
from anomaly.kpi_families import MULTIPLES, log_uniform, make_series, make_windows
from anomaly.rate import RateDetector
from anomaly.value import PARTS, ValueDetector, evaluate, measure, model_path
from anomaly.windows import cut
from tests import kpi_oracle

ROOT = Path(__file__).resolve().parent.parent
WINDOW, FULL = 180, 361


def main() -> int:
    options = parse()
    if options.segments:
        Console().print(soon(five_minutes(options), options.seed))
        return 0
    X, _ = make_windows(options.windows, WINDOW, random_state=options.seed)
    detector = ValueDetector.load(model_path())
    table = Table(title=f"CPU µs per window of {X.shape[1]} points, best of {options.repeats}")
    for heading in ("what", "native", "peer", "peer µs", "ratio"):
        table.add_column(heading, justify="left" if heading in ("what", "peer") else "right")
    for what, native, peer, other in [*batches(X, detector, options), *texts(X, options)]:
        table.add_row(what, f"{native:.2f}", peer, f"{other:.1f}", f"{other / native:.0f}×")
    for what, native in library_calls(X, options):
        table.add_row(what, f"{native:.2f}", "", "", "")
    console = Console()
    console.print(table)
    console.print(linear(X, detector, options))
    console.print(threads(X, detector, options))
    if options.found:
        console.print(found(detector, options))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=1000, help="windows in a batch (1000)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements, the best counts (7)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--found", action="store_true", help="also what the model finds")
    parser.add_argument("--segments", type=int, default=0, metavar="N", help="series, see above")
    parser.add_argument("--series", metavar="DIR", help="CSV files of time and value, for these")
    return parser.parse_args()


def best(run: Callable[[], Any], count: int, repeats: int) -> float:
    """CPU microseconds per item, the least of several runs."""
    least = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        run()
        least = min(least, time.process_time() - start)
    return least / count * 1e6


def batches(
    X: Any, detector: ValueDetector, options: argparse.Namespace
) -> list[tuple[str, float, str, float]]:
    few, n = X[:20], len(X)
    rate = RateDetector().fit(X)
    value_time = best(lambda: detector.predict_proba(X), n, options.repeats)
    twin = best(lambda: [kpi_oracle.measure(row, WINDOW) for row in few], len(few), 2)
    rows = [("value, NumPy batch", value_time, "features by NumPy", twin)]
    if importlib.util.find_spec("tsfresh"):
        rows.append(("", value_time, "tsfresh minimal set", tsfresh_minimal(few)))
    else:
        print("tsfresh is not installed: pip install 'anomaly[bench]'", file=sys.stderr)
    rate_time = best(lambda: rate.predict_proba(X), n, options.repeats)
    three = best(lambda: [three_sigma(row) for row in few], len(few), 3)
    rows.append(("rate, NumPy batch", rate_time, "3 sigma by pandas", three))
    return rows


def three_sigma(row: Any) -> bool:
    history = pd.Series(row[:-1])
    return bool(abs(row[-1] - history.mean()) > 3 * history.std(ddof=0))


def tsfresh_minimal(rows: Any) -> float:
    from tsfresh.feature_extraction import MinimalFCParameters, extract_features

    ids = np.repeat(np.arange(3 * len(rows)), np.tile([FULL, FULL, WINDOW + 1], len(rows)))
    frame = pd.DataFrame({"id": ids, "value": rows.ravel()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return best(
            lambda: extract_features(
                frame,
                column_id="id",
                column_value="value",
                default_fc_parameters=MinimalFCParameters(),
                n_jobs=0,
                disable_progressbar=True,
            ),
            *(len(rows), 2),
        )


def texts(X: Any, options: argparse.Namespace) -> list[tuple[str, float, str, float]]:
    requests = []
    for row in X[:100]:
        parts = [",".join(f"{v:g}" for v in part) for part in np.split(row, [FULL, 2 * FULL])]
        requests.append(
            {"window": WINDOW, **dict(zip(("dataC", "dataB", "dataA"), parts, strict=True))}
        )
    detect, out = Detect(), np.empty(X.shape[1])
    whole = [",".join([r["dataC"], r["dataB"], r["dataA"]]) for r in requests]
    parsed = best(lambda: [_core.value_parse(t, out) for t in whole], 100, options.repeats)
    floats = best(lambda: [[float(v) for v in t.split(",")] for t in whole], 100, options.repeats)
    answer = best(lambda: [detect.value_predict(r) for r in requests], 100, options.repeats)
    rate = best(lambda: [detect.rate_predict(r) for r in requests], 100, options.repeats)
    return [
        ("903 numbers from text", parsed, "float() on the parts", floats),
        ("Detect.value_predict, text", answer, "float() alone", floats),
        ("Detect.rate_predict, text", rate, "float() alone", floats),
    ]


class Data(ctypes.Structure):
    """ValueData and RateData: the pointers differ in type only."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("data_a", "data_b", "data_c")),
        *((name, ctypes.c_int) for name in ("len_a", "len_b", "len_c")),
    )


def library_calls(X: Any, options: argparse.Namespace) -> list[tuple[str, float]]:
    if shutil.which("make") is None or shutil.which("cc") is None:
        print("no C compiler: the C library is not measured", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            ROOT / "libdetect",
            f"{folder}/libdetect",
            ignore=shutil.ignore_patterns("build", "*.so", "*.a"),
        )
        subprocess.run(
            ["make", "-s", "-C", f"{folder}/libdetect", "libdetect.so"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        so = ctypes.CDLL(f"{folder}/libdetect/libdetect.so")
    return measure_library(so, X, options)


def measure_library(so: Any, X: Any, options: argparse.Namespace) -> list[tuple[str, float]]:
    so.load_model.restype = ctypes.c_void_p
    so.value_predict.argtypes = [ctypes.c_void_p] * 4
    so.rate_predict.argtypes = [ctypes.c_void_p] * 3
    handle = so.load_model(str(model_path()).encode())
    result, prob = ctypes.c_int(), ctypes.c_float()
    out = (ctypes.addressof(result), ctypes.addressof(prob))
    rows = X[:200]
    whole = np.clip(np.round(rows), -(2**31), 2**31 - 1).astype(np.int32)
    value_data, rate_data = structures(whole), structures(rows)
    empty = best(
        lambda: [so.value_predict(None, ctypes.addressof(d), *out) for d in value_data],
        *(len(rows), options.repeats),
    )
    value = best(
        lambda: [so.value_predict(handle, ctypes.addressof(d), *out) for d in value_data],
        *(len(rows), options.repeats),
    )
    rate = best(
        lambda: [so.rate_predict(ctypes.addressof(d), *out) for d in rate_data],
        *(len(rows), options.repeats),
    )
    return [("value_predict, C only", value - empty), ("rate_predict, C only", rate - empty)]


def structures(rows: Any) -> list[Data]:
    found, size = [], rows.itemsize
    for row in rows:
        start = row.ctypes.data
        found.append(
            Data(start + 2 * FULL * size, start + FULL * size, start, WINDOW + 1, FULL, FULL)
        )
    return found


def linear(X: Any, detector: ValueDetector, options: argparse.Namespace) -> str:
    found = []
    for rows in (X[: len(X) // 10], X):
        each = best(lambda r=rows: detector.predict_proba(r), len(rows), options.repeats)
        found.append(f"{each:.1f} µs in a batch of {len(rows)}")
    return "per row " + ", ".join(found)


def threads(X: Any, detector: ValueDetector, options: argparse.Namespace) -> str:
    def wall(workers: int) -> float:
        least = float("inf")
        for _ in range(options.repeats):
            many = [
                threading.Thread(target=detector.predict_proba, args=(X,)) for _ in range(workers)
            ]
            start = time.perf_counter()
            for thread in many:
                thread.start()
            for thread in many:
                thread.join()
            least = min(least, time.perf_counter() - start)
        return workers / least

    return f"two threads do {wall(2) / wall(1):.2f} times the windows of one, by the clock"


def found(detector: ValueDetector, options: argparse.Namespace) -> Table:
    fresh, _ = make_windows(1000, WINDOW, random_state=options.seed + 1)
    report = evaluate(detector, fresh)
    table = Table(title="share of injected anomalies found at 1 % false alarms, synthetic windows")
    for heading in ("method", "mult", "shift"):
        table.add_column(heading)
    for method in ("three_sigma", "training_free", "joined"):
        table.add_row(method, *(f"{report[method][k]:.3f}" for k in ("mult", "shift")))
    return table


HOURS = 36  # three hours of five minutes


def soon(every_series: list[pd.Series], seed: int) -> Table:
    """Share of segments found at their first or second point, at 0.5 % false alarms.

    One threshold per method for all series: the quantile of its scores of every
    point with a week of history, before segments are put in.
    """
    rng = np.random.default_rng(seed)
    plain, changed, kinds = [], [], []
    for series in every_series:
        odd = series.to_numpy(copy=True)
        starts, named = put_segments(rng, odd)
        if not starts:
            continue
        kinds += named
        first_two = series.index[np.add.outer(starts, [0, 1]).ravel()]
        plain.append(cut(series, HOURS).to_numpy())
        changed.append(cut(pd.Series(odd, series.index), HOURS, points=first_two).to_numpy())
    normal, early = scores(np.vstack(plain)), scores(np.vstack(changed))
    print(f"{len(kinds)} segments in {len(plain)} series, {len(normal['3 sigma'])} normal points")
    table = Table(title="found within two points at 0.5 % false alarms")
    every = ["all", *sorted(set(kinds))]
    for heading in ("method", *every):
        table.add_column(heading)
    for method, found in early.items():
        hit = (found > np.quantile(normal[method], 0.995)).reshape(-1, 2).any(axis=1)
        shares = [hit[[kind in ("all", k) for k in kinds]].mean() for kind in every]
        table.add_row(method, *(f"{share:.3f}" for share in shares))
    return table


def five_minutes(options: argparse.Namespace) -> list[pd.Series]:
    """Series of ten days: synthetic ones, or the last days of CSV files of time and value."""
    if options.series is None:
        rng = np.random.default_rng(options.seed)
        index = pd.date_range("2024-01-01", periods=2880, freq="5min")
        made = (make_series(10, step=5, random_state=rng)[0] for _ in range(options.segments))
        return [pd.Series(values, index) for values in made]
    found = []
    for path in sorted(Path(options.series).rglob("*.csv"))[: options.segments]:
        read = pd.read_csv(path, index_col=0, parse_dates=True).iloc[:, 0].sort_index()
        even = read.groupby(read.index.floor("5min")).mean().astype(float)
        if (np.diff(even.index) == np.timedelta64(5, "m")).mean() > 0.9:
            found.append(even.asfreq("5min").iloc[-2880:])
    return [series for series in found if len(series) == 2880]


def put_segments(rng: np.random.Generator, values: Any) -> tuple[list[int], list[str]]:
    """Change three segments of the last two days in place; where each starts, and its kind."""
    starts, kinds = [], []
    for place in np.sort(rng.choice(8, 3, replace=False)):
        start = len(values) - 576 + 72 * int(place) + int(rng.integers(0, 24))
        part = values[start : start + int(rng.integers(3, 25))]
        before = part.copy()
        kind = str(rng.choice(["shift", "factor", "zero"]))
        if kind == "shift":
            steps = np.diff(values[start - HOURS : start])
            steps = steps[~np.isnan(steps)]
            sigma = 1.4826 * np.median(np.abs(steps - np.median(steps)))
            part += log_uniform(rng, 3, 20) * rng.choice([-1, 1]) * sigma
        else:
            part *= rng.choice(MULTIPLES[1:]) if kind == "factor" else 0.0
        if np.abs(part[:2] - before[:2]).min() > 1e-12:  # no value is missing, and each changed
            starts.append(start)
            kinds.append(kind)
    return starts, kinds


def scores(rows: Any) -> dict[str, Any]:
    """Scores of the shipped model, of its training-free half (U3) and of 3 sigma."""
    shipped = ValueDetector().fit(rows[:1])  # too few to calibrate on: all stays as shipped
    parts = measure(rows, HOURS).parts
    return {
        "3 sigma": parts[:, PARTS.index("global")],
        "training-free": parts.max(axis=1),
        "shipped model": shipped.decision_function(rows),
    }


if __name__ == "__main__":
    sys.exit(main())
