"""Value detection: is the newest point of a metric in line with its history?

The features and scores are those of the native core, the same that C programs
link; this module trains, calibrates, saves and explains.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import struct
import sys
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import GroupShuffleSplit, KFold, ShuffleSplit
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from anomaly import _core
from anomaly.base import BaseDetector, Interval, StrOptions
from anomaly.errors import AnomalyError, ClassifierFileError, DataError, ParameterError
from anomaly.files import write_aside
from anomaly.kpi_families import grid_injections, inject_windows, make_windows
from anomaly.windows import (
    MIN_WINDOW,
    as_windows,
    history_groups,
    read_windows,
    window_from,
    window_of,
)

Array = NDArray[np.float64]

#: Below this probability of normal a point is called anomalous.
THRESHOLD = 0.15

PARTS = ("step", "seasonal", "level", "global")

_MAGIC, _CONTAINER, _FORMATS = b"KPIVALUE", 1, ("json", "ubj")
_HEADER = struct.Struct("<8s6I16d")
_TASK_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# Trees per unit of margin in the joined log score. Half of the joined score stays
# with the training-free parts at least: they know no family that they have not seen.
_SLOPE = 0.5
_WEIGHTS = (0.0, 0.25, 0.5)


class Measures(NamedTuple):
    """What the core measures in windows; rows it cannot use are NaN."""

    parts: Array
    features: Array
    expected: Array
    codes: NDArray[np.int32]


class Calibration(NamedTuple):
    """Numbers that join trees and training-free score; the core reads them in this order."""

    margin: float
    slope: float
    weight: float
    scale: float
    steepness: float
    free_scale: float


def models_folder() -> Path:
    """Where models are looked up by task id: ``ANOMALY_MODELS``, else the shipped ones."""
    return Path(os.environ.get("ANOMALY_MODELS") or Path(__file__).parent / "models")


def model_path(task_id: str | None = None, folder: str | os.PathLike[str] | None = None) -> Path:
    """Path of a task's model, or of the shipped one.

    Raises
    ------
    ParameterError
        For a task id that is not 1 to 64 of ``A-Z a-z 0-9 . _ -``, or is ``.`` or ``..``.
    """
    if task_id is None:
        return Path(__file__).parent / "models" / "value_default_model"
    if not isinstance(task_id, str) or not _TASK_ID.fullmatch(task_id) or task_id in (".", ".."):
        raise ParameterError(
            f"task id must be 1 to 64 of the characters A-Z a-z 0-9 . _ -, got {task_id!r}"
        )
    return Path(folder or models_folder()) / task_id


def measure(X: Array, window: int) -> Measures:
    """Measure windows in the native core.

    Parameters
    ----------
    X : ndarray of shape (n, 5 * window + 3)
    window : int

    Returns
    -------
    Measures
        ``parts`` (n, 4), ``features`` (n, 72), ``expected`` (n, 2): the value
        expected and the residual that scores 1; ``codes`` (n,): 0, or -3 where
        the series cannot be used.
    """
    X = np.ascontiguousarray(X, dtype=float)
    n = len(X)
    parts = np.full((n, len(PARTS)), np.nan)
    features = np.full((n, _core.VALUE_FEATURES), np.nan)
    expected = np.full((n, 2), np.nan)
    codes = np.zeros(n, dtype=np.int32)
    _core.value_measure(X, window, parts, features, expected, codes)
    return Measures(parts, features, expected, codes)


class ValueDetector(BaseDetector):
    """Test the last point of each window against its hours, yesterday and last week.

    A training-free score, the largest of four parts (step, seasonal difference,
    local level, global level), is joined with gradient-boosted trees on features
    of the window. The joined score is 1 at the false-alarm rate asked for.

    Parameters
    ----------
    window : int, optional
        Points before the tested one. By default it follows from the number of
        columns: ``5 * window + 3`` columns are ``data_c``, ``data_b``, ``data_a``;
        any other number is read as one plain series whose last point is tested.
    false_alarm_rate : float, default=0.01
        Share of normal windows that may score above 1.
    n_estimators : int, default=300
        Trees of the head.
    max_depth : int, default=4
        Depth of the trees.
    learning_rate : float, default=0.1
        Shrinkage of the trees.
    injections : int, default=3
        Anomalies injected into each normal window for training.
    head_weight : float or "auto", default="auto"
        Share of the trees in the joined score, 0 to 1; "auto" takes the share,
        0.5 at most, that finds most on windows kept aside and never less than
        the training-free score alone.
    n_jobs : int, default=1
        Threads for training and prediction.
    random_state : int, RandomState instance or None, default=0

    Attributes
    ----------
    window_ : int
    calibration_ : Calibration
    model_ : bytes
        The model file: what `save` writes and the C library loads.
    classes_ : ndarray of shape (2,)

    Notes
    -----
    ``fit(X)`` without labels takes the trees of the shipped model and calibrates
    the joined score on the windows, all taken for normal; with fewer than 100 of
    them the shipped calibration stays. ``fit(X, y)`` also trains the trees, on the
    labelled windows and on anomalies injected into the normal ones.

    The probability of an anomaly is 0.85 exactly at the threshold, where
    ``decision_function``, the logarithm of the joined score, is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.value import ValueDetector
    >>> rng = np.random.default_rng(0)
    >>> X = rng.poisson(100, size=(3, 903)).astype(float)
    >>> X[2, -1] = 400
    >>> ValueDetector().fit(X[:2]).predict(X)
    array([0, 0, 1])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "window": [None, Interval(Integral, MIN_WINDOW, 100_000, closed="both")],
        "false_alarm_rate": [Interval(Real, 0, 0.5, closed="neither")],
        "n_estimators": [Interval(Integral, 1, 10_000, closed="both")],
        "max_depth": [Interval(Integral, 1, 12, closed="both")],
        "learning_rate": [Interval(Real, 0, 1, closed="right")],
        "injections": [Interval(Integral, 1, 100, closed="both")],
        "head_weight": [Interval(Real, 0, 1, closed="both"), StrOptions({"auto"})],
        "n_jobs": [Interval(Integral, 1, 256, closed="both")],
        "random_state": ["random_state"],
    }

    window_: int
    calibration_: Calibration
    model_: bytes

    def __init__(
        self,
        window: int | None = None,
        false_alarm_rate: float = 0.01,
        n_estimators: int = 300,
        max_depth: int = 4,
        learning_rate: float = 0.1,
        injections: int = 3,
        head_weight: float | Literal["auto"] = "auto",
        n_jobs: int = 1,
        random_state: Any = 0,
    ):
        self.window = window
        self.false_alarm_rate = false_alarm_rate
        self.n_estimators = n_estimators
        self.max_depth = max_depth
        self.learning_rate = learning_rate
        self.injections = injections
        self.head_weight = head_weight
        self.n_jobs = n_jobs
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.classifier_tags.poor_score = True  # a table of features is no series
        return tags

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_handle"}

    # --- fitting ---

    def fit(
        self, X: ArrayLike, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Calibrate on normal windows, and train the trees where labels are given.

        Parameters
        ----------
        X : array-like of shape (n, 5 * window + 3)
            NaN marks missing values.
        y : array-like of shape (n,), optional
        groups : array-like of shape (n,), optional
            Windows of one group are never split between training and calibration.

        Raises
        ------
        DataError
            If no window, or with labels no normal window, can be used.
        """
        self._validate_params()
        checked = validate_data(self, X, ensure_all_finite="allow-nan", dtype=np.float64)
        n_columns = checked.shape[1]
        if self.window is not None and self.window != window_of(n_columns):
            raise DataError(
                f"X has {n_columns} columns; window={self.window} needs "
                f"{5 * self.window + 3} (data_c, data_b, data_a)"
            )
        self.window_ = window_from(n_columns)
        rows = as_windows(checked, self.window_)
        anomalous = self._encode_labels(y, len(rows))
        usable = measure(rows, self.window_).codes == 0
        if not usable.any():
            raise DataError("X holds no window whose tested point and last points are known")
        if anomalous is None:
            self._calibrate_default(rows[usable])
            return self
        if (~usable | anomalous).all():
            raise DataError(
                "X holds no usable window labelled normal: all have one class, the anomaly"
            )
        told = None if groups is None else np.asarray(groups)[usable]
        self._train(rows[usable], anomalous[usable], told)
        return self

    def _calibrate_default(self, rows: Array) -> None:
        default = ValueDetector.load(model_path())
        self.calibration_ = default.calibration_
        if len(rows) >= 100:
            found = measure(rows, self.window_)
            margins = default._margins(found.features)
            self.calibration_ = _scales(
                found.parts.max(axis=1),
                margins,
                self.false_alarm_rate,
                weight=default.calibration_.weight,
                steepness=default.calibration_.steepness,
            )
        self._assemble(*_payload(default.model_))

    def _train(self, rows: Array, anomalous: NDArray[np.bool_], groups: Any) -> None:
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        samples = self._samples(rows, anomalous, rng)
        trained = None
        margins = np.full(len(samples.target), np.nan)
        for train, aside in self._splits(samples, groups):
            trained = self._boost(samples.features[train], samples.target[train])
            margins[aside] = _margins_of(trained, samples.features[aside])
        known = ~np.isnan(margins)
        if known.all() or trained is None:  # every row was aside once: all may train the last
            trained = self._boost(samples.features, samples.target)
            margins = margins if known.all() else _margins_of(trained, samples.features)
            known = ~np.isnan(margins)
        self.calibration_ = self._calibrate(samples, margins, known)
        self._assemble(bytes(trained.save_raw("ubj")), "ubj")

    def _samples(
        self, rows: Array, anomalous: NDArray[np.bool_], rng: np.random.Generator
    ) -> _Samples:
        """The labelled windows, then the injected ones, measured; with the source row of each."""
        normal = np.flatnonzero(~anomalous)
        blocks, sources, targets = [rows], [np.arange(len(rows))], [anomalous]
        for _ in range(self.injections):
            changed, made_from = inject_windows(rows[normal], self.window_, random_state=rng)
            blocks.append(changed)
            sources.append(normal[made_from])
            targets.append(np.ones(len(changed), dtype=bool))
        found = measure(np.vstack(blocks), self.window_)
        usable = found.codes == 0
        return _Samples(
            found.features[usable],
            found.parts.max(axis=1)[usable],
            np.concatenate(targets)[usable],
            np.concatenate(sources)[usable],
        )

    def _splits(self, samples: _Samples, groups: Any) -> list[tuple[Any, Any]]:
        """Rows to train on and rows kept aside; a window and its injections stay together."""
        units = np.unique(samples.source)
        labels = units if groups is None else np.unique(groups, return_inverse=True)[1][units]
        n_units = len(np.unique(labels))
        if n_units < 3:
            return []
        if n_units >= 1000:
            splitter = ShuffleSplit if groups is None else GroupShuffleSplit
            folds = splitter(1, test_size=0.2, random_state=0).split(units, groups=labels)
        else:
            blocks = np.unique(labels)
            folds = (
                (np.isin(labels, blocks[a]), np.isin(labels, blocks[b]))
                for a, b in KFold(3, shuffle=True, random_state=0).split(blocks)
            )
        return [
            (np.isin(samples.source, units[a]), np.isin(samples.source, units[b]))
            for a, b in folds
        ]

    def _boost(self, features: Array, target: NDArray[np.bool_]) -> Any:
        import xgboost

        if target.all() or not target.any():  # nothing to tell apart: trees that say nothing
            features = np.vstack([features, features])
            target = np.repeat([False, True], len(target))
        balance = np.where(target, (~target).sum() / max(target.sum(), 1), 1.0)
        table = xgboost.DMatrix(
            features.astype(np.float32), target, weight=balance, nthread=self.n_jobs
        )
        settings = {
            "objective": "binary:logistic",
            "tree_method": "hist",
            "max_depth": self.max_depth,
            "eta": self.learning_rate,
            "subsample": 0.8,
            "colsample_bytree": 0.5,
            "min_child_weight": 2,
            "lambda": 2,
            "base_score": 0.5,
            "nthread": self.n_jobs,
            "seed": 0,
            "verbosity": 0,
        }
        return xgboost.train(settings, table, self.n_estimators)

    def _calibrate(
        self, samples: _Samples, margins: Array, known: NDArray[np.bool_]
    ) -> Calibration:
        free, margins, target = samples.free[known], margins[known], samples.target[known]
        if target.all():  # only injected windows were kept aside
            return Calibration(0.0, _SLOPE, 0.0, 1.0, 2.0, 1.0)
        weights = _WEIGHTS if self.head_weight == "auto" else (float(self.head_weight),)
        best, most = None, -1.0
        for weight in weights:
            candidate = _scales(
                free[~target], margins[~target], self.false_alarm_rate, weight=weight
            )
            scores = _joined(candidate, free, margins)
            share = float(np.mean(scores[target] > 1)) if target.any() else 0.0
            if share > most:
                best, most = candidate._replace(steepness=_steepness(scores, target)), share
        assert best is not None
        return best

    def _assemble(self, payload: bytes, form: str) -> None:
        constants = [*self.calibration_, *[0.0] * (16 - len(self.calibration_))]
        head = _HEADER.pack(
            _MAGIC,
            _CONTAINER,
            _core.VALUE_FEATURE_SET,
            _core.VALUE_FEATURES,
            self.window_,
            _FORMATS.index(form),
            len(payload),
            *constants,
        )
        body = head + payload
        self.model_ = body + hashlib.sha256(body).digest()
        self._handle = _core.value_load(self.model_)

    # --- predicting ---

    def _checked(self, X: ArrayLike) -> Array:
        check_is_fitted(self)
        checked = validate_data(
            self, X, ensure_all_finite="allow-nan", dtype=np.float64, reset=False
        )
        return np.ascontiguousarray(as_windows(checked, self.window_))

    def _loaded(self) -> Any:
        if not hasattr(self, "_handle"):
            self._handle = _core.value_load(self.model_)
        return self._handle

    def _margins(self, features: Array) -> Array:
        margins = np.empty(len(features))
        _core.value_margin(self._loaded(), np.ascontiguousarray(features), margins)
        return margins

    def _test(self, X: ArrayLike) -> tuple[Array, Array]:
        rows = self._checked(X)
        scores, normal = np.empty(len(rows)), np.empty(len(rows))
        codes = np.zeros(len(rows), dtype=np.int32)
        _core.value_test(self._loaded(), rows, self.window_, scores, normal, codes, self.n_jobs)
        if codes.any():
            raise DataError(
                f"row {np.flatnonzero(codes)[0]} cannot be tested: its last point is missing, a "
                f"value is beyond 1e150, or fewer than {MIN_WINDOW} points before it are known"
            )
        return scores, normal

    def decision_function(self, X: ArrayLike) -> Array:
        """Logarithm of the joined score: above 0 is an anomaly.

        Parameters
        ----------
        X : array-like of shape (n, 5 * window + 3)

        Returns
        -------
        ndarray of shape (n,)
        """
        return np.asarray(np.log(self._test(X)[0]))

    def predict_proba(self, X: ArrayLike) -> Array:
        """Probability of normal and of an anomaly; the C library's ``prob`` is the first.

        Parameters
        ----------
        X : array-like of shape (n, 5 * window + 3)

        Returns
        -------
        ndarray of shape (n, 2)
        """
        normal = self._test(X)[1]
        return np.column_stack([normal, 1.0 - normal])

    def explain(self, X: ArrayLike) -> pd.DataFrame:
        """Why each window scores as it does.

        Parameters
        ----------
        X : array-like of shape (n, 5 * window + 3)

        Returns
        -------
        DataFrame of n rows
            ``value`` tested; ``expected`` from the last points and yesterday's
            shape, with the bounds ``lower`` and ``upper`` where the seasonal part
            reaches 1; the training-free parts ``step`` (local jump), ``seasonal``
            (difference to yesterday), ``level`` (distance to the local median) and
            ``global`` (distance to the mean of everything), 1 at about a 1 %
            false-alarm rate; ``trees``, the same of the trained head; the joined
            ``score``, and ``probability`` of an anomaly.
        """
        rows = self._checked(X)
        scores, normal = self._test(X)
        found = measure(rows, self.window_)
        k = self.calibration_
        expected, spread = found.expected.T
        frame = pd.DataFrame({"value": rows[:, -1], "expected": expected})
        frame["lower"], frame["upper"] = expected - spread, expected + spread
        for name, part in zip(PARTS, found.parts.T, strict=True):
            frame[name] = part / k.free_scale
        frame["trees"] = np.exp(k.slope * (self._margins(found.features) - k.margin))
        frame["score"], frame["probability"] = scores, 1.0 - normal
        return frame

    # --- files ---

    def save(self, path: str | os.PathLike[str], format: Literal["ubj", "json"] = "ubj") -> None:
        """Write the model file that `load`, `anomaly.Detect` and the C library read.

        Parameters
        ----------
        path : str or PathLike
        format : {"ubj", "json"}, default="ubj"
            How XGBoost's own model stands inside the container.
        """
        check_is_fitted(self)
        if format not in _FORMATS:
            raise ParameterError(f"format must be ubj or json, got {format!r}")
        payload, form = _payload(self.model_)
        if form != format:
            payload, form = _converted(payload, format), format
            self._assemble(payload, form)
        with write_aside(path, "wb") as file:
            file.write(self.model_)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a model file, whole and checked.

        Raises
        ------
        ClassifierFileError
            If the file is damaged, foreign, or made for other window features.
        """
        content = Path(path).read_bytes()
        try:
            handle = _core.value_load(content)
        except ValueError as error:
            raise ClassifierFileError(f"{path}: {error}") from None
        window = int(_core.value_info(handle)["window"])
        detector = cls(window=window)
        fields = _HEADER.unpack_from(content)
        detector.window_ = window
        detector.calibration_ = Calibration(*fields[7 : 7 + len(Calibration._fields)])
        detector.model_ = content
        detector.classes_ = np.array([0, 1])
        detector.n_features_in_ = 5 * window + 3
        detector._handle = handle
        return detector


class _Samples(NamedTuple):
    features: Array
    free: Array  # training-free score
    target: NDArray[np.bool_]
    source: NDArray[np.int64]  # the row that each was made from


def _payload(model: bytes) -> tuple[bytes, str]:
    form = _HEADER.unpack_from(model)[5]
    return model[_HEADER.size : -32], _FORMATS[form]


def _converted(payload: bytes, form: str) -> bytes:
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(bytearray(payload))
    return bytes(booster.save_raw(form))


def _margins_of(booster: Any, features: Array) -> Array:
    import xgboost

    table = xgboost.DMatrix(features.astype(np.float32), nthread=1)
    return np.asarray(booster.predict(table, output_margin=True), dtype=float)


def _scales(
    free: Array, margins: Array, rate: float, *, weight: float, steepness: float = 2.0
) -> Calibration:
    """Constants that put every score of normal windows at 1 for the false-alarm rate."""
    enough = len(free) >= 100
    own = float(np.quantile(free, 1 - rate)) if enough else 1.0
    margin = float(np.quantile(margins, 1 - rate))
    rough = Calibration(margin, _SLOPE, weight, 1.0, steepness, max(own, 1e-3))
    joined = float(np.quantile(_joined(rough, free, margins), 1 - rate)) if enough else 1.0
    return rough._replace(scale=max(joined, 1e-3))


def _joined(k: Calibration, free: Array, margins: Array) -> Array:
    """The core's joined score, for calibrating it."""
    alone = np.log(np.maximum(free / k.free_scale, 1e-6))
    trees = k.slope * (margins - k.margin)
    return np.asarray(np.exp((1 - k.weight) * alone + k.weight * trees) / k.scale)


def _steepness(scores: Array, target: NDArray[np.bool_]) -> float:
    """Steepness of the odds in the score that makes the labels likeliest, classes balanced."""
    from scipy.optimize import minimize_scalar

    logs, anchor = np.log(scores), np.log((1 - THRESHOLD) / THRESHOLD)
    if not target.any():
        return 2.0

    def loss(steepness: float) -> float:
        odds = anchor + steepness * logs
        missed = np.logaddexp(0, -odds[target]).mean()
        return float(missed + np.logaddexp(0, odds[~target]).mean())

    return float(minimize_scalar(loss, bounds=(0.3, 10), method="bounded").x)


# --- evaluation ---


def evaluate(
    detector: ValueDetector, X: ArrayLike, *, false_alarm_rate: float = 0.01
) -> dict[str, Any]:
    """Share of single injected anomalies found in normal windows at a false-alarm rate.

    The threshold of each method is the quantile of its own scores of the windows
    as they are.

    Parameters
    ----------
    detector : ValueDetector
    X : array-like of shape (n, 5 * window + 3)
        Normal windows.
    false_alarm_rate : float, default=0.01

    Returns
    -------
    dict
        For "joined", "training_free" and "three_sigma": ``mult`` and ``shift``, the
        means over the factors and the shifts of `anomaly.kpi_families`, and
        ``each``, the share found of every one. ``false_alarms`` is the share of
        windows that the detector flags by its own threshold.
    """
    rows = detector._checked(X)
    rows = rows[measure(rows, detector.window_).codes == 0]
    injected = grid_injections(rows, detector.window_)
    plain = _all_scores(detector, rows)
    limits = {name: np.quantile(s, 1 - false_alarm_rate) for name, s in plain.items()}
    each: dict[str, dict[str, float]] = {name: {} for name in plain}
    for kind, last in injected.items():
        changed = rows.copy()
        changed[:, -1] = last
        for name, scores in _all_scores(detector, changed).items():
            each[name][kind] = float(np.mean(scores > limits[name]))
    result: dict[str, Any] = {"windows": len(rows), "false_alarm_rate": false_alarm_rate}
    result["false_alarms"] = float(np.mean(plain["joined"] > 1))
    for name, shares in each.items():
        mult = [share for kind, share in shares.items() if kind.startswith("×")]
        shift = [share for kind, share in shares.items() if not kind.startswith("×")]
        result[name] = {
            "mult": round(float(np.mean(mult)), 4),
            "shift": round(float(np.mean(shift)), 4),
            "each": {kind: round(share, 4) for kind, share in shares.items()},
        }
    return result


def _all_scores(detector: ValueDetector, rows: Array) -> dict[str, Array]:
    parts = measure(rows, detector.window_).parts
    return {
        "joined": detector._test(rows)[0],
        "training_free": parts.max(axis=1),
        "three_sigma": parts[:, PARTS.index("global")],
    }


# --- command line ---

_EXAMPLE = """examples:
  python -m anomaly.value train --out value_default_model
  python -m anomaly.value train --csv windows.csv --anomaly negative --task logins
  python -m anomaly.value evaluate --csv windows.csv --anomaly negative --task logins
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        report = {"train": _train_command, "evaluate": _evaluate_command}[options.command](options)
    except (AnomalyError, OSError) as error:
        print(f"python -m anomaly.value: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=1, ensure_ascii=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anomaly.value",
        description="Train value models on windows, and measure what they find.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a model and record its evaluation")
    evaluation = commands.add_parser("evaluate", help="measure a model on labelled windows")
    for command in (train, evaluation):
        command.add_argument("--csv", help="windows: columns data_c, data_b, data_a and a label")
        command.add_argument("--label", default="label", help="column of the class (label)")
        command.add_argument("--anomaly", help="the label that marks anomalies")
        command.add_argument("--task", help="task id that names the model")
        command.add_argument("--models", help="folder of models (ANOMALY_MODELS, else shipped)")
    train.add_argument("--out", help="model file to write, instead of --task")
    train.add_argument("--synthetic", type=int, default=12000, help="synthetic windows (12000)")
    train.add_argument("--window", type=int, default=180, help="window without --csv (180)")
    train.add_argument("--seed", type=int, default=0, help="seed of everything random (0)")
    train.add_argument("--jobs", type=int, default=1, help="threads (1)")
    return parser


def _train_command(options: argparse.Namespace) -> dict[str, Any]:
    path = _target(options)
    if options.synthetic < 0 or not 0 <= options.seed < 2**31 or not 1 <= options.jobs <= 256:
        raise ParameterError("synthetic and seed must not be negative, jobs be 1 to 256")
    own, labels, window = _own_windows(options)
    seeds = np.random.SeedSequence(options.seed).spawn(2)
    made, _ = make_windows(options.synthetic, window, random_state=np.random.default_rng(seeds[0]))
    if len(made) + len(own) == 0:
        raise ParameterError("nothing to train on: give --csv or --synthetic above 0")
    groups = history_groups(own) if len(own) else np.empty(0, dtype=np.int64)
    aside = np.isin(groups, np.unique(groups)[::4]) & (len(np.unique(groups)) >= 8)
    detector = ValueDetector(n_jobs=options.jobs, random_state=options.seed).fit(
        np.vstack([made, own[~aside]]),
        np.concatenate([np.zeros(len(made), dtype=int), labels[~aside].astype(int)]),
        np.concatenate([np.arange(len(made)), len(made) + groups[~aside]]),
    )
    detector.save(path)
    fresh, _ = make_windows(3000, window, random_state=np.random.default_rng(seeds[1]))
    report: dict[str, Any] = {
        "model": path.name,
        "sha256": hashlib.sha256(detector.model_).hexdigest(),
        "seed": options.seed,
        "synthetic_windows": len(made),
        "labelled_windows": len(own),
        "calibration": detector.calibration_._asdict(),
        "synthetic": evaluate(detector, fresh),
    }
    if aside.any():
        report["kept_aside"] = _labelled_report(detector, own[aside], labels[aside])
    with write_aside(path.with_name(path.name + ".json")) as file:
        file.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def _target(options: argparse.Namespace) -> Path:
    if (options.out is None) == (options.task is None):
        raise ParameterError("give --task ID or --out FILE, one of them")
    if options.out is not None:
        path = Path(options.out)
        if path.is_dir() or not path.parent.is_dir():
            raise ParameterError(f"--out must be a file in an existing folder, got {path}")
        return path
    path = model_path(options.task, options.models)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _own_windows(options: argparse.Namespace) -> tuple[Array, NDArray[np.bool_], int]:
    if options.csv is None:
        if not MIN_WINDOW <= options.window <= 2000:
            raise ParameterError(f"window must be {MIN_WINDOW} to 2000, got {options.window}")
        return np.empty((0, 5 * options.window + 3)), np.empty(0, dtype=bool), options.window
    own, labels = read_windows(options.csv, label=options.label, anomaly=options.anomaly)
    if labels is None:
        raise DataError(f"{options.csv}: no column {options.label}")
    window = window_of(own.shape[1])
    assert window is not None
    return own, labels, window


def _labelled_report(
    detector: ValueDetector, X: Array, anomalous: NDArray[np.bool_]
) -> dict[str, Any]:
    flagged = detector.predict(X) == 1
    report: dict[str, Any] = {"windows": len(X), "anomalies": int(anomalous.sum())}
    if anomalous.any():
        report["anomalies_found"] = round(float(flagged[anomalous].mean()), 4)
    if not anomalous.all():
        report["normal_flagged"] = round(float(flagged[~anomalous].mean()), 4)
        report["injected"] = evaluate(detector, X[~anomalous])
    return report


def _evaluate_command(options: argparse.Namespace) -> dict[str, Any]:
    if options.csv is None:
        raise ParameterError("evaluate needs --csv")
    detector = ValueDetector.load(model_path(options.task, options.models))
    own, labels, window = _own_windows(options)
    if window != detector.window_:
        raise DataError(f"{options.csv} has windows of {window}, the model of {detector.window_}")
    return _labelled_report(detector, own, labels)


if __name__ == "__main__":
    sys.exit(main())
