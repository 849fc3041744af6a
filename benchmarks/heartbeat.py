"""Compare raw scores with those that NuPIC gave for the same stream.

    python benchmarks/heartbeat.py --data heartbeat

The folder holds heartBeat.csv (three header lines; fields a, b, c) and
anomalyDetect_output.csv, NuPIC's prediction and raw score for each row and field. Ours
has the same columns (2,048, 40 active, 32 cells each) and knows the range of the values
beforehand, as NuPIC did. Raw scores are compared by rank from row 1,000 on, and both
predictions with repeating the last value.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.htm import HTMDetector

START = 1000


def compare(values: pd.Series, theirs: pd.DataFrame, cells: int, seed: int) -> dict[str, float]:
    """Rank correlation of raw scores and mean absolute errors of predictions."""
    detector = HTMDetector(
        START,
        value_range=(values.min(), values.max()),
        n_columns=2048,
        n_active_columns=40,
        cells_per_column=cells,
        activation_threshold=13,
        matching_threshold=10,
        n_new_synapses=20,
        random_state=seed,
    )
    start = time.process_time()
    ours = detector.process_many(values)
    cost = 1e6 * (time.process_time() - start) / len(values)
    later = slice(START, None)
    field = values.name
    ranks = [
        pd.Series(scores).rank().to_numpy()
        for scores in (ours.raw_score[later], theirs[f"anomalyScore_{field}"].to_numpy()[later])
    ]
    x = values.to_numpy()
    forecast = theirs[f"predict_{field}"].to_numpy()[later]
    return {
        "rank correlation": float(np.corrcoef(*ranks)[0, 1]),
        "mean raw score": float(ours.raw_score[later].mean()),
        "NuPIC's": float(theirs[f"anomalyScore_{field}"][later].mean()),
        "error": float(np.abs(ours.predicted[later, 0] - x[later]).mean()),
        "NuPIC's error": float(np.abs(forecast - x[later]).mean()),
        "last value's": float(np.abs(np.diff(x[START - 1 :])).mean()),
        "µs": cost,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="heartbeat.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--cells", type=int, default=32, help="per column (default: 32)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        stream = pd.read_csv(options.data / "heartBeat.csv", skiprows=[1, 2])
        theirs = pd.read_csv(options.data / "anomalyDetect_output.csv")
    except OSError as error:
        print(f"heartbeat.py: error: {error}", file=sys.stderr)
        return 2
    n = min(len(stream), len(theirs))
    rows = {
        field: compare(stream[field][:n].astype(float), theirs[:n], options.cells, options.seed)
        for field in ("a", "b", "c")
    }
    print(pd.DataFrame(rows).T.to_string(float_format=lambda v: f"{v:.3f}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
