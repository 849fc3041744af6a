"""Find parameters for a stream: encoder, pooler, memory and likelihood.

    python -m anomaly.swarm data.csv --time timestamp --field value --size small
    python -m anomaly.swarm data.csv --field value --label faulty --size medium --out found.json
    python -m anomaly.stream run data.csv --time timestamp --value value --params found.json

Candidates are judged on stretches of the stream that follow what they have learnt. With
--label, a column of 0 and 1, the best is the one whose alarms agree best with it (F1 per
record); without, it is the one that predicts most records better than repeating the last
value does. Every finished candidate is in the log before the next begins: a swarm that
was stopped goes on where it was when it is started again in the same way.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import TimeSeriesSplit

from anomaly.errors import AnomalyError, DataError, ParameterError
from anomaly.files import write_aside
from anomaly.htm import HTMDetector
from anomaly.stream import find_header, lines_of, make_detector, records_of, separator
from anomaly.tuning import tune

__all__ = ["GRIDS", "ForecastSkill", "main", "swarm"]

Grid = dict[str, list[Any]]

# Encoder, pooler and memory; what decides about predictions.
_MEMORY: dict[str, Grid] = {
    "small": {"n_buckets": [80, 130, 200], "cells_per_column": [1, 16]},
    "medium": {
        "n_buckets": [50, 80, 130, 200],
        "cells_per_column": [1, 8, 16],
        "increment": [0.04, 0.1],
        "time_of_day": [False, True],
    },
    "large": {
        "n_buckets": [30, 50, 80, 130, 200, 300],
        "cells_per_column": [1, 8, 16, 32],
        "pool_increment": [0.0, 0.003, 0.01],
        "increment": [0.04, 0.1],
        "time_of_day": [False, True],
        "day_of_week": [False, True],
    },
}
# Beside that with labels, where the likelihood decides.
_LIKELIHOOD: dict[str, Grid] = {
    "small": {"deviation_scale": [3.5, 4.5]},
    "medium": {"deviation_scale": [3.5, 4.5, 5.5]},
    "large": {"deviation_scale": [3.0, 4.0, 4.5, 5.5], "range_scale": [0.02, 0.05, 0.2]},
}
_TILES: dict[str, Grid] = {
    "small": {"tile_size": [0.1, 0.2, 0.4], "deviation_scale": [3.5, 4.25, 5.0]},
    "medium": {
        "tile_size": [0.1, 0.2, 0.4],
        "window_size": [5, 10, 20],
        "deviation_scale": [3.5, 4.25, 5.0],
        "range_scale": [0.02, 0.05, 0.2],
    },
    "large": {
        "tile_size": [0.05, 0.1, 0.2, 0.4],
        "window_size": [3, 5, 10, 20],
        "variance_floor": [0.0001, 0.0003, 0.001],
        "deviation_scale": [3.0, 3.5, 4.25, 5.0, 6.0],
        "range_scale": [0.02, 0.05, 0.2],
    },
}
GRIDS: dict[tuple[str, bool, str], Grid] = {
    ("htm", labelled, size): _MEMORY[size] | (_LIKELIHOOD[size] if labelled else {})
    for labelled in (False, True)
    for size in _MEMORY
} | {("tile", True, size): grid for size, grid in _TILES.items()}


class ForecastSkill(HTMDetector):
    """An `HTMDetector` as the tuning engine sees it when there are no labels.

    The last column of ``X`` holds an arbitrary 0 or 1, which is also ``y``. For
    a record that was predicted better than by the value before it, ``predict``
    gives this answer, else the wrong one: the accuracy is the share of records
    with skill.
    """

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Learn all columns but the last."""
        super().fit(_without_last(X))
        self.classes_ = np.array([0, 1])
        self._last = np.asarray(X, dtype=np.float64)[-1, :-1]
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """The answer in the last column where the prediction has skill."""
        table = np.asarray(X, dtype=np.float64)
        values, answer = table[:, :-1], table[:, -1].astype(int)
        before = np.vstack([self._last, values[:-1]])
        predicted = self._continued(_without_last(X)).predicted
        error = np.abs(predicted - values).sum(axis=1)
        skilled = error < np.abs(before - values).sum(axis=1)
        skilled |= error == 0
        return np.where(skilled, answer, 1 - answer)


def _without_last(X: Any) -> Any:
    return X.iloc[:, :-1] if isinstance(X, pd.DataFrame) else np.asarray(X)[:, :-1]


def swarm(
    frame: pd.DataFrame,
    labels: ArrayLike | None = None,
    *,
    detector: str = "htm",
    size: str = "small",
    grid: Grid | None = None,
    folds: int = 3,
    n_jobs: int = 1,
    random_state: int = 0,
    log: str | Path | None = None,
    search: str = "grid",
    progress: Any = None,
) -> dict[str, Any]:
    """Find the parameters that suit a stream.

    Parameters
    ----------
    frame : DataFrame of shape (n_records, n_fields)
        Values in their order; an index of dates is the clock.
    labels : array-like of shape (n_records,), optional
        1 where a record is an anomaly.
    detector : {"htm", "tile"}, default="htm"
    size : {"small", "medium", "large"}, default="small"
        How many candidates to try.
    grid : dict of str to list, optional
        Parameters and values to try instead of those of ``size``.
    folds : int, default=3
        Stretches that candidates are judged on, each after all before it.
    n_jobs : int, default=1
        Processes.
    random_state : int, default=0
    log : str or Path, optional
        Folder of the run, from which it can go on.
    search : {"grid", "racing", "halving", "optuna"}, default="grid"
        Way through the candidates.
    progress : None, bool or reporter
        As for `anomaly.tuning.tune`.

    Returns
    -------
    dict
        ``detector`` and ``parameters``, as `anomaly.stream.read_parameters`
        takes them, with ``score``, ``scoring`` and ``n_candidates``.

    Raises
    ------
    ParameterError
        For a detector or size that is not known.
    DataError
        If the stream is too short to be cut.

    Examples
    --------
    >>> import pandas as pd
    >>> from anomaly.swarm import swarm
    >>> frame = pd.DataFrame({"value": [0.0, 1.0, 3.0, 2.0] * 100})
    >>> found = swarm(frame, grid={"n_buckets": [20], "cells_per_column": [1]})
    >>> found["scoring"], round(found["score"], 2)
    ('share predicted better than by the last value', 0.99)
    """
    labelled = labels is not None
    if grid is None:
        grid = _grid(detector, labelled, size)
    learning = _learning_period(len(frame), folds)
    fixed: dict[str, Any] = {"learning_period": learning, "random_state": random_state}
    X, y, model, scoring = _task(frame, labels, detector, fixed)
    result = tune(
        model,
        grid,
        X,
        y,
        cv=TimeSeriesSplit(folds),
        scoring=scoring,
        n_jobs=n_jobs,
        random_state=None,
        search=search,
        log=log,
        progress=progress,
        refit=False,
    )
    best = {name: _plain(value) for name, value in result.best_params_.items()}
    return {
        "detector": detector,
        "parameters": fixed | best,
        "score": result.best_score_,
        "scoring": "F1 per record"
        if labelled
        else "share predicted better than by the last value",
        "n_candidates": result.n_candidates_,
    }


def _grid(detector: str, labelled: bool, size: str) -> Grid:
    if size not in _MEMORY:
        raise ParameterError(f"size must be one of {list(_MEMORY)}, got {size!r}")
    if (detector, labelled, size) in GRIDS:
        return GRIDS[detector, labelled, size]
    if detector == "tile":
        raise ParameterError("tiles do not forecast: tuning them needs labels")
    raise ParameterError(f"detector must be 'htm' or 'tile', got {detector!r}")


def _learning_period(n_records: int, folds: int) -> int:
    """Half of the first stretch, at most the usual 600 records."""
    first = n_records // (folds + 1)
    if first < 20:
        raise DataError(
            f"{n_records} records are too few for {folds} folds: {20 * (folds + 1)} are needed"
        )
    return min(600, first // 2)


def _task(
    frame: pd.DataFrame, labels: ArrayLike | None, detector: str, fixed: dict[str, Any]
) -> tuple[pd.DataFrame, NDArray[np.int64], Any, str]:
    """Samples, answers, model and scoring for the tuning engine."""
    if labels is not None:
        y = np.asarray(labels)
        if len(y) != len(frame) or not np.isin(y, (0, 1)).all() or len(np.unique(y)) != 2:
            raise DataError("labels must be 0 and 1, both, one per record")
        return frame, y.astype(np.int64), make_detector(detector, fixed), "f1"
    y = np.arange(len(frame), dtype=np.int64) % 2
    return frame.assign(answer=y), y, ForecastSkill(**fixed), "accuracy"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def read_stream(
    path: str, time: str | None, fields: list[str], label: str | None, separator: str = ","
) -> tuple[pd.DataFrame, NDArray[np.float64] | None]:
    """Values and labels of a CSV, plain or with the original's three header lines."""
    options = argparse.Namespace(
        data=path, time=time, separator=separator, value=[*fields, *([label] if label else [])]
    )
    lines = lines_of(path, False, None)
    records = [r for r in records_of(lines, find_header(lines, options), options) if r is not None]
    table = np.array([values for _, _, values in records], dtype=np.float64)
    table = table.reshape(len(records), len(options.value))
    index = None
    if time:
        index = pd.DatetimeIndex(pd.to_datetime([s for _, s, _ in records], unit="s"))
    frame = pd.DataFrame(table[:, : len(fields)], columns=fields, index=index)
    return frame, table[:, -1] if label else None


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    command = argparse.ArgumentParser(
        prog="python -m anomaly.swarm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("data", help="CSV file with a header line")
    command.add_argument("--time", metavar="COLUMN", help="time stamps (default: no clock)")
    command.add_argument(
        "--field", metavar="COLUMN", action="append", help="values; repeat for several fields"
    )
    command.add_argument("--label", metavar="COLUMN", help="0 or 1 for each record")
    command.add_argument(
        "--separator", type=separator, default=",", help="between columns (default: a comma)"
    )
    command.add_argument("--detector", choices=["htm", "tile"], default="htm")
    command.add_argument("--size", choices=list(_MEMORY), default="small")
    command.add_argument("--folds", type=int, default=3, metavar="K")
    command.add_argument("--n-jobs", type=int, default=1, metavar="N", help="processes")
    command.add_argument("--search", default="grid", help="grid, racing, halving or optuna")
    command.add_argument("--seed", type=int, default=0, metavar="N")
    command.add_argument(
        "--out", metavar="FILE", help="parameter file (default: DATA with .params.json)"
    )
    command.add_argument("--log", metavar="DIR", help="folder of the run (default: beside OUT)")
    return command


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    options = parser().parse_args(arguments)
    out = Path(options.out or Path(options.data).with_suffix(".params.json"))
    try:
        frame, labels = read_stream(
            options.data,
            options.time,
            options.field or ["value"],
            options.label,
            options.separator,
        )
        found = swarm(
            frame,
            labels,
            detector=options.detector,
            size=options.size,
            folds=options.folds,
            n_jobs=options.n_jobs,
            random_state=options.seed,
            log=options.log or out.with_suffix(".run"),
            search=options.search,
        )
        with write_aside(out) as file:
            json.dump(found, file, indent=1)
            file.write("\n")
    except (AnomalyError, OSError, ValueError) as error:
        print(f"anomaly.swarm: error: {error}", file=sys.stderr)
        return 2
    print(f"{found['scoring']}: {found['score']:.4f}, best of {found['n_candidates']}")
    print(f"{found['parameters']} written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
