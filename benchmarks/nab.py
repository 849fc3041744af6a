"""Run stream detectors over a folder in the layout of the Numenta Anomaly Benchmark.

    python benchmarks/nab.py --data NAB/data --labels NAB/labels/combined_windows.json
    python benchmarks/nab.py --data DIR --detector tile --seeds 3 --out results

Every series is streamed once, score first and learn second, with one fixed set of
parameters and the benchmark's probation (15 % of a series, at most 750 records) as
learning period. Scores follow the rules of the benchmark: one threshold for all
series, the best one for each profile. The rows `random` (uniform scores) and
`z-score` (rolling mean and deviation) show what little effort reaches.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.errors import AnomalyError, DataError
from anomaly.evaluation import range_precision_recall, vus_pr
from anomaly.files import write_aside
from anomaly.htm import HTMDetector
from anomaly.stream_ensemble import DEFAULT_WEIGHTS, StreamEnsemble
from anomaly.tiles import TileDetector

# Weights of a false alarm and of a missed window; a hit weighs 1.
PROFILES = {
    "standard": (0.11, 1.0),
    "reward_low_FP_rate": (0.22, 1.0),
    "reward_low_FN_rate": (0.11, 2.0),
}
NO_ALARM = 1.1  # the threshold above every score


@dataclass(frozen=True)
class Series:
    """One file: its name, values, clock and labelled windows as first and last index."""

    name: str
    values: np.ndarray
    seconds: np.ndarray
    timestamps: list[str]
    windows: list[tuple[int, int]]

    @property
    def probation(self) -> int:
        return min(int(0.15 * len(self.values)), 750)

    @property
    def labels(self) -> np.ndarray:
        flags = np.zeros(len(self.values), dtype=bool)
        for first, last in self.windows:
            flags[first : last + 1] = True
        return flags


def read_folder(data: Path, labels: Path) -> list[Series]:
    """Every series named in the labels that the folder holds."""
    windows = json.loads(labels.read_text(encoding="utf-8"))
    names = sorted(name for name in windows if (data / name).is_file())
    if not names:
        raise DataError(f"{data} holds none of the {len(windows)} files named in {labels}")
    return [read_series(data, name, windows[name]) for name in names]


def read_series(data: Path, name: str, windows: list[list[str]]) -> Series:
    frame = pd.read_csv(data / name)
    if list(frame.columns[:2]) != ["timestamp", "value"]:
        raise DataError(f"{name} must have the columns timestamp,value, got {list(frame.columns)}")
    moments = pd.to_datetime(frame["timestamp"])
    return Series(
        name=name,
        values=frame["value"].to_numpy(np.float64),
        seconds=moments.to_numpy("datetime64[us]").astype(np.int64) / 1e6,
        timestamps=frame["timestamp"].astype(str).tolist(),
        windows=[_indices(moments, pd.Timestamp(a), pd.Timestamp(b)) for a, b in windows],
    )


def _indices(moments: pd.Series, start: pd.Timestamp, stop: pd.Timestamp) -> tuple[int, int]:
    inside = np.flatnonzero((moments >= start) & (moments <= stop))
    return int(inside[0]), int(inside[-1])


# The scorer


def _scaled_sigmoid(position: np.ndarray) -> np.ndarray:
    """From about 1 at the start of a window (-1) over 0 at its end to -1 long after (3)."""
    soft = 2.0 / (1.0 + np.exp(5.0 * np.minimum(position, 3.0))) - 1.0
    return np.where(position >= 3.0, -1.0, soft)


def alarm_values(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """What an alarm at each record is worth (before weights), and its window or -1."""
    n = len(series.values)
    index = np.arange(n)
    worth, window = np.full(n, -1.0), np.full(n, -1)
    for first, last in series.windows:
        worth[last + 1 :] = _scaled_sigmoid((index[last + 1 :] - last) / max(last - first, 1))
    for number, (first, last) in enumerate(series.windows):
        inside = index[first : last + 1]
        position = -(last - inside + 1.0) / (last - first + 1.0)
        worth[first : last + 1] = _scaled_sigmoid(position) / _scaled_sigmoid(np.array(-1.0))
        window[first : last + 1] = number
    return worth, window


def sweep(
    corpus: list[Series], scores: list[np.ndarray], false_alarm: float, miss: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Raw total at every threshold, from "no alarm at all" down, and the number of windows."""
    score, worth, window = _counted_records(corpus, scores)
    n_windows = len(np.unique(window[window >= 0]))
    order = np.argsort(-score, kind="stable")
    score, worth, window = score[order], worth[order], window[order]
    gains = np.where(window < 0, worth * false_alarm, 0.0)
    earned: dict[int, float] = {}
    for i in np.flatnonzero(window >= 0):
        before = earned.get(window[i], -miss)
        if worth[i] > before:
            gains[i] = worth[i] - before
            earned[window[i]] = worth[i]
    totals = -miss * n_windows + np.concatenate([[0.0], np.cumsum(gains)])
    ends = np.append(score[1:] != score[:-1], True)  # ties share a threshold
    keep = np.concatenate([[True], ends])
    return np.concatenate([[NO_ALARM], score])[keep], totals[keep], n_windows


def _counted_records(
    corpus: list[Series], scores: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, worths and windows of all records after probation; window numbers are unique."""
    parts, base = [], 0
    for series, values in zip(corpus, scores, strict=True):
        worth, window = alarm_values(series)
        window = np.where(window >= 0, window + base, -1)
        parts.append([a[series.probation :] for a in (np.asarray(values), worth, window)])
        base += len(series.windows)
    score, worth, window = (np.concatenate(column) for column in zip(*parts, strict=True))
    return score, worth, window


def normalised(total: float, n_windows: int, miss: float) -> float:
    """0 is no alarm ever, 100 is every window met by its first record and no false alarm."""
    lowest = -miss * n_windows
    return 100.0 * (total - lowest) / (n_windows - lowest)


def nab_scores(
    corpus: list[Series], scores: list[np.ndarray], threshold: float | None = None
) -> dict[str, tuple[float, float]]:
    """Normalised score and threshold for each profile; the best threshold unless given."""
    result = {}
    for profile, (false_alarm, miss) in PROFILES.items():
        thresholds, totals, n_windows = sweep(corpus, scores, false_alarm, miss)
        if n_windows == 0:
            raise DataError("no labelled window lies after probation, so nothing can be scored")
        at = int(totals.argmax()) if threshold is None else _reached(thresholds, threshold)
        result[profile] = (normalised(totals[at], n_windows, miss), float(thresholds[at]))
    return result


def _reached(thresholds: np.ndarray, threshold: float) -> int:
    return int(np.flatnonzero(thresholds >= threshold)[-1])


# Detectors


# Alarms without looking at labels: the detectors' default, and the usual 3 deviations.
OWN_THRESHOLD = {"z-score": float(np.tanh(0.3)), "random": 0.999}


def make_detector(name: str, learning_period: int, seed: int) -> Any:
    if name == "tile":
        return TileDetector(learning_period, random_state=seed)
    if name == "htm":
        return HTMDetector(learning_period, cells_per_column=1, random_state=seed)
    if name == "ensemble":
        return StreamEnsemble(
            [(part, make_detector(part, learning_period, seed)) for part in ("tile", "htm")],
            weights=DEFAULT_WEIGHTS,
        )
    raise DataError(f"unknown detector {name!r}")


def rolling_z_scores(values: np.ndarray, size: int = 100) -> np.ndarray:
    """The plain peer: distance from the mean of the last records, in their deviations."""
    past = pd.Series(values).shift().rolling(size, min_periods=10)
    z = (values - past.mean()).abs() / past.std(ddof=0).clip(lower=1e-9)
    return np.tanh(z.fillna(0.0).to_numpy() / 10.0)


def run_series(job: tuple[str, Series, int, int | None]) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores, alarms and CPU seconds of one detector on one series."""
    name, series, seed, learning_period = job
    start = time.process_time()
    if name == "random":
        number = sum(series.name.encode()) + 7919 * seed
        scores = np.random.default_rng(number).random(len(series.values))
    elif name == "z-score":
        scores = rolling_z_scores(series.values)
    else:
        detector = make_detector(name, learning_period or max(series.probation, 1), seed)
        scores = detector.process_many(series.values, series.seconds).likelihood
    return scores, scores >= OWN_THRESHOLD.get(name, 0.5), time.process_time() - start


def warm_up() -> None:
    """Keeps first-call costs out of the figures."""
    for name in DETECTORS:
        make_detector(name, 10, 0).process_many(np.arange(30.0))


def run_all(
    names: list[str],
    corpus: list[Series],
    seeds: int,
    learning_period: int | None,
    jobs: int,
    console: Console,
) -> dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray, float]]]:
    """Every detector and seed over every series, in parallel."""
    plan = [
        (name, series, seed, learning_period)
        for name in names
        for seed in range(seeds)
        for series in corpus
    ]
    answers = []
    processes = multiprocessing.get_context("spawn").Pool(jobs, warm_up)
    with Progress(console=console) as progress, processes as pool:
        task = progress.add_task("series", total=len(plan))
        for answer in pool.imap(run_series, plan):
            answers.append(answer)
            progress.advance(task)
    grouped: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray, float]]] = {}
    for (name, _, seed, _), answer in zip(plan, answers, strict=True):
        grouped.setdefault((name, seed), []).append(answer)
    return grouped


def measure(
    name: str, corpus: list[Series], answers: list[tuple[np.ndarray, np.ndarray, float]]
) -> dict[str, float]:
    """All figures of one run over all series."""
    scores = [answer[0] for answer in answers]
    best = nab_scores(corpus, scores)
    fixed = nab_scores(corpus, scores, threshold=OWN_THRESHOLD.get(name, 0.5))
    figures = {profile: score for profile, (score, _) in best.items()}
    figures["fixed"] = fixed["standard"][0]
    figures |= window_hits(corpus, [answer[1] for answer in answers])
    figures |= series_measures(corpus, answers)
    records = sum(len(series.values) for series in corpus)
    figures["µs/record"] = 1e6 * sum(answer[2] for answer in answers) / records
    return figures


def window_hits(corpus: list[Series], alarms: list[np.ndarray]) -> dict[str, float]:
    """Share of alarms that lie in windows, and of windows that have one."""
    good = every = hit = total = 0
    for series, flags in zip(corpus, alarms, strict=True):
        flags = flags & (np.arange(len(flags)) >= series.probation)
        good += int((flags & series.labels).sum())
        every += int(flags.sum())
        hit += sum(bool(flags[a : b + 1].any()) for a, b in series.windows)
        total += len(series.windows)
    return {"precision": good / max(every, 1), "recall": hit / max(total, 1)}


def series_measures(
    corpus: list[Series], answers: list[tuple[np.ndarray, np.ndarray, float]]
) -> dict[str, float]:
    """Means over the series that have labels."""
    rows = []
    for series, (scores, alarms, _) in zip(corpus, answers, strict=True):
        start = series.probation
        labels = series.labels[start:]
        if not labels.any():
            continue
        found = range_precision_recall(labels, alarms[start:], existence_weight=0.5)
        rows.append([*found[:2], vus_pr(labels, scores[start:], max_buffer=20)])
    means = np.mean(rows, axis=0)
    return {"range P": means[0], "range R": means[1], "VUS-PR": means[2]}


# Output


def write_results(
    out: Path, name: str, corpus: list[Series], answers: list[tuple[np.ndarray, np.ndarray, float]]
) -> None:
    """One file per series as the benchmark writes them: timestamp,value,anomaly_score,label."""
    for series, (scores, _, _) in zip(corpus, answers, strict=True):
        folder, _, file_name = series.name.rpartition("/")
        (out / name / folder).mkdir(parents=True, exist_ok=True)
        with write_aside(out / name / folder / f"{name}_{file_name}") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["timestamp", "value", "anomaly_score", "label"])
            labels = series.labels.astype(int)
            rows = zip(series.timestamps, series.values, scores, labels, strict=True)
            writer.writerows([t, repr(float(v)), repr(float(s)), k] for t, v, s, k in rows)


def read_results(folder: Path, corpus: list[Series]) -> list[np.ndarray]:
    """Scores of result files in the benchmark's format, of any detector."""
    scores = []
    for series in corpus:
        parent, _, file_name = series.name.rpartition("/")
        found = sorted((folder / parent).glob(f"*_{file_name}"))
        if not found:
            raise DataError(f"{folder / parent} holds no result file for {series.name}")
        column = pd.read_csv(found[0])["anomaly_score"].to_numpy(np.float64)
        if len(column) != len(series.values):
            raise DataError(
                f"{found[0]} has {len(column)} rows, {series.name} {len(series.values)}"
            )
        scores.append(column)
    return scores


def table_of(figures: dict[str, list[dict[str, float]]], title: str) -> Table:
    table = Table(title=title)
    columns = list(next(iter(figures.values()))[0])
    table.add_column("detector")
    for column in columns:
        table.add_column(
            column.replace("reward_low_", "low ").replace("_rate", ""), justify="right"
        )
    for name, runs in figures.items():
        cells = []
        for column in columns:
            values = [run[column] for run in runs]
            digits = 1 if column.startswith(("standard", "reward", "fixed")) else 2
            spread = f" ± {np.std(values):.{digits}f}" if digits == 1 and len(values) > 1 else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}")
        table.add_row(name, *cells)
    return table


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="nab.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of category/series.csv")
    parser.add_argument("--labels", type=Path, help="windows (default: DATA/windows.json)")
    parser.add_argument(
        "--detector", action="append", choices=DETECTORS, help="repeat for several (default: all)"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs per detector")
    parser.add_argument(
        "--learning-period", type=int, metavar="N", help="records, instead of the probation"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write result files here")
    parser.add_argument(
        "--score", type=Path, metavar="DIR", help="only score result files of some detector"
    )
    return parser.parse_args(arguments)


DETECTORS = ("tile", "htm", "ensemble")
PEERS = ("z-score", "random")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    console = Console(width=150)
    try:
        corpus = read_folder(options.data, options.labels or options.data / "windows.json")
        if options.score:
            for profile, (score, threshold) in nab_scores(
                corpus, read_results(options.score, corpus)
            ).items():
                print(f"{profile:20s} {score:6.2f}  at threshold {threshold:.6g}")
            return 0
        run(options, corpus, console)
    except (AnomalyError, OSError) as error:
        print(f"nab.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace, corpus: list[Series], console: Console) -> None:
    names = [*(options.detector or DETECTORS), *PEERS]
    start = time.perf_counter()
    grouped = run_all(names, corpus, options.seeds, options.learning_period, options.jobs, console)
    took = time.perf_counter() - start
    figures: dict[str, list[dict[str, float]]] = {}
    for (name, seed), answers in grouped.items():
        figures.setdefault(name, []).append(measure(name, corpus, answers))
        if options.out and seed == 0:
            write_results(options.out, name, corpus, answers)
    records = sum(len(series.values) for series in corpus)
    console.print(
        table_of(figures, f"{len(corpus)} series, {records:,} records, {options.seeds} seeds")
    )
    console.print(
        f"streamed in {took:.1f} s with {options.jobs} processes; fixed (standard profile), "
        "precision, recall and range measures at each detector's own threshold; "
        "µs/record is CPU time"
    )


if __name__ == "__main__":
    sys.exit(main())
