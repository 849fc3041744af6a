"""From records to a tuned, exported anomaly classifier.

    python detector.py dimensions --inject 1000 --classifier rbf_svc --plot dimensions.png

`Detector` holds a table of records, marks or injects anomalies, splits the rows
into a training and a test half, tunes and evaluates classifiers, plots, and
exports the classify function that runs in production.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import Pipeline

from anomaly import evaluation, injection, loading
from anomaly.encoding import RecordEncoder
from anomaly.errors import AnomalyError, DataError, ParameterError
from anomaly.exported import ExportedClassifier, export_classifier
from anomaly.files import write_aside
from anomaly.metrics import Ratios, confusion_ratios
from anomaly.outlier import as_classifier
from anomaly.report import Report
from anomaly.threshold import Threshold, anomaly_scores
from anomaly.tuning import TuningResult, family, tune
from anomaly.tuning.engine import seeded
from anomaly.voting import tune_families

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Classified", "Detector", "Evaluation", "Tuned", "confusion_ratios"]

# What the detector notes beside the features of a row.
NOTES = ["duplicate", "odd", "origin"]

# Features beyond which a listing of rows shows only the one to blame.
MOST_COLUMNS = 4

UNLABELLED_NOTE = (
    "Rows without a label count as normal here. An anomaly among them counts as a false alarm "
    "where it is flagged, so precision is at least what is shown, and is not counted as missed "
    "where it is not, so the share found may be lower."
)

# Colours that colour-blind readers tell apart (Okabe and Ito, 2008).
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]


class Classified(NamedTuple):
    """What `Detector.classify` returns."""

    matrix: NDArray[np.int64]
    seconds: float
    classifier: Any


class Tuned(NamedTuple):
    """What `Detector.tune_parameters` returns."""

    estimator: Any
    parameters: dict[str, Any]
    score: float


@dataclass(frozen=True)
class Evaluation:
    """How a fitted classifier does on the held-out half.

    Attributes
    ----------
    matrix : ndarray of shape (2, 2)
        ``[[tn, fp], [fn, tp]]``.
    ratios : Ratios
    by_type : DataFrame
        One row per origin of the test rows (``record``, ``label`` or the type of
        injection): number of rows, number flagged, and their share.
    seconds_per_row : float
        Prediction time over the whole test half, per row.
    truth, scores, flagged : ndarray of shape (n_rows,)
        Labels, scores and decisions of the test rows.
    origin : ndarray of str of shape (n_rows,)
        What ``by_type`` groups by.
    """

    matrix: NDArray[np.int64]
    ratios: Ratios
    by_type: pd.DataFrame
    seconds_per_row: float
    truth: NDArray[np.bool_] = field(repr=False)
    scores: NDArray[np.float64] = field(repr=False)
    flagged: NDArray[np.bool_] = field(repr=False)
    origin: NDArray[Any] = field(repr=False)

    @cached_property
    def report(self) -> Report:
        """Ranking with intervals beside a random score, top of the list, and types.

        ``print(report)`` shows the tables, ``report.to_html(path)`` writes one
        page with the curves. Made when first asked for.

        Raises
        ------
        DataError
            If the test half holds rows of one kind only.
        """
        made = self.truth & ~np.isin(self.origin, ["label", "appended"])
        return evaluation.evaluate(
            self.truth,
            self.scores,
            predicted=self.flagged,
            types=self.origin,
            injected=bool(made.any()),
            notes=[UNLABELLED_NOTE] if "unlabelled" in self.origin else [],
            title="Held-out half",
        )


class Detector:
    """A table of records on its way to a classifier of anomalies.

    Parameters
    ----------
    frame : DataFrame
        One row per record. Columns called ``duplicate``, ``odd`` or ``origin``
        are taken as notes on the rows, all others but ``label`` as features.
    label : str, optional
        Column that says which rows are anomalous: booleans, 0 and 1, or two
        values of which the second in sorted order is the anomaly.
    unlabelled : {"error", "normal"}, default "error"
        Whether a row without a label is refused, or taken for normal and noted
        as ``unlabelled`` in the column ``origin``: with few labels most of
        these rows are normal (see `anomaly.few_labels`).
    categorical : sequence of str, optional
        Features that are categories. By default those that are not numbers.
    missing : {"drop", "keep"}, default "drop"
        What happens to rows with a missing or infinite feature.
    duplicates : {"drop", "keep"}, default "drop"
        Whether only the first of equal rows is kept. Rows that had an equal are
        marked in the column ``duplicate`` either way.
    scaling : {"standard", "none"}, default "standard"
        How the encoder scales numeric features.
    random_state : int, default 0
        Seed of everything random that is not given one of its own.

    Attributes
    ----------
    frame : DataFrame
        Features, then the columns ``duplicate``, ``odd`` and ``origin``.
    report : dict of str to int
        Counts of rows read, dropped and flagged.
    row_labels : Index
        Where each row of ``frame`` stood in the table that was given: its index
        there, None for rows that were added.
    loaded : loading.Report or None
        What the loader found, where there was one.
    manifest : injection.Manifest
        What was injected; its rows are those of ``frame``.
    xtrain, ytrain, xtest, ytest : DataFrame or Series
        The halves that `format` makes.
    best_clf : fitted pipeline
        What `tune_parameters` or `classify` fitted last.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from detector import Detector
    >>> records = pd.DataFrame({
    ...     "class": ["car"] * 60 + ["human"] * 60,
    ...     "length": [4000 + i for i in range(60)] + [900 + i for i in range(60)],
    ...     "width": [1700 + i for i in range(60)] + [430 + i for i in range(60)],
    ... })
    >>> detector = Detector(records)
    >>> _ = detector.inject(60, "uniform", random_state=1)
    >>> matrix, seconds, clf = detector.format(seed=2).classify(RandomForestClassifier(20))
    >>> int(matrix.sum())
    90
    >>> detector.predict("human", 2500, 1000)
    True
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        *,
        label: str | None = None,
        unlabelled: str = "error",
        categorical: Sequence[str] | None = None,
        missing: str = "drop",
        duplicates: str = "drop",
        scaling: str = "standard",
        random_state: int = 0,
    ) -> None:
        _check_frame(frame)
        _check_choice("unlabelled", unlabelled, ("error", "normal"))
        _check_choice("missing", missing, ("drop", "keep"))
        _check_choice("duplicates", duplicates, ("drop", "keep"))
        self.missing = missing
        self.duplicates = duplicates
        self.scaling = scaling
        self.random_state = random_state
        self.features = [c for c in frame.columns if c != label and c not in NOTES]
        self.categorical = _categorical_columns(frame[self.features], categorical)
        self.numeric = [c for c in self.features if c not in self.categorical]
        self.manifest = injection.Manifest()
        self.loaded: loading.Report | None = None
        self.report: dict[str, int] = {"rows": len(frame)}
        self.frame = self._with_notes(frame, label, unlabelled)
        self.row_labels = frame.index
        self.clean()

    @classmethod
    def from_csv(
        cls, source: str | os.PathLike[str] | IO[Any], *, label: str | None = None, **options: Any
    ) -> Self:
        """Read a CSV file, ``-`` for standard input, or an open file.

        Parameters
        ----------
        source : path or file
        label : str, optional
            Column that holds the labels.
        **options
            Those of `anomaly.loading.read_csv` (``separator``, ``decimal``,
            ``columns``, ``units``, …) and of the constructor.
        """
        own = {k: options.pop(k) for k in _CONSTRUCTOR_OPTIONS & options.keys()}
        # Rows without a label must reach the constructor, which drops the others itself;
        # it also knows the place in the file of the rows that it keeps.
        keep = label is None or own.get("unlabelled") == "normal"
        options["missing"] = "keep" if keep else own.get("missing", "drop")
        return cls._from_loaded(loading.read_csv(source, label=label, **options), own)

    @classmethod
    def from_catalogue(
        cls, name: str, catalogue: str | os.PathLike[str] | None = None, **options: Any
    ) -> Self:
        """Load a data set that a catalogue describes.

        Parameters
        ----------
        name : str
            Entry of the catalogue, e.g. ``"dimensions"``.
        catalogue : path, optional
            A TOML file; by default the bundled one.
        **options
            Those of the constructor.
        """
        loaded = loading.Catalogue(catalogue).load(name, missing=options.get("missing"))
        return cls._from_loaded(loaded, options)

    @classmethod
    def _from_loaded(cls, loaded: loading.Loaded, options: dict[str, Any]) -> Self:
        options.setdefault("categorical", loaded.categorical)
        detector = cls(loaded.frame, label=loaded.label, **options)
        detector.loaded = loaded.report
        return detector

    # -- rows ---------------------------------------------------------------

    def clean(self) -> Self:
        """Drop rows with missing or infinite features and later copies of equal rows.

        Rows that had an equal are marked in the column ``duplicate``. Counts go
        to ``report``.
        """
        frame = self.frame.reset_index(drop=True)
        if self.missing == "drop":
            endless = frame[self.numeric].isin([np.inf, -np.inf])
            cells = frame[self.features].isna() | endless.reindex(columns=self.features)
            absent = cells.fillna(False).any(axis=1)
            self.report["missing"] = self.report.get("missing", 0) + int(absent.sum())
            if len(frame) and absent.all():
                counts = cells.sum().sort_values(ascending=False, kind="stable")
                worst = ", ".join(f"{name} {n}" for name, n in counts.head(5).items() if n)
                raise DataError(
                    f"every row has a missing or infinite cell, so none is left: {worst} of "
                    f"{len(frame)} rows; leave such columns out"
                )
            frame = frame[~absent]
        key = [*self.features, "odd"]
        frame = frame.assign(duplicate=frame["duplicate"] | frame.duplicated(key, keep=False))
        if self.duplicates == "drop":
            later = frame.duplicated(key)
            self.report["duplicates"] = self.report.get("duplicates", 0) + int(later.sum())
            frame = frame[~later]
        self.report["kept"] = len(frame)
        self.row_labels = self.row_labels[frame.index]
        self.frame = frame.reset_index(drop=True)
        return self

    def append_odd_points(self, points: pd.DataFrame | Iterable[Any]) -> Self:
        """Append rows that are anomalies.

        Parameters
        ----------
        points : DataFrame, or iterable of mappings or sequences
            One entry per feature; sequences in the order of ``features``.
        """
        rows = points if isinstance(points, pd.DataFrame) else self._rows(points)
        self._append(rows, np.repeat("appended", len(rows)))
        return self

    def inject(
        self,
        n: int,
        strategy: str | Sequence[str] | Mapping[str, float] = "uniform",
        random_state: int | None = None,
        **options: float,
    ) -> injection.Manifest:
        """Inject anomalies made from the normal rows.

        Parameters
        ----------
        n : int
            Number of rows to add.
        strategy : str, sequence or mapping
            A strategy of `anomaly.injection.inject`, or a mix of them.
        random_state : int, optional
            By default the detector's own.
        **options
            Those of the strategy.

        Returns
        -------
        Manifest
            What was injected; it is also added to ``manifest``.
        """
        normal = self.frame.loc[~self.frame["odd"], self.features]
        rows, manifest = injection.inject(
            normal,
            n,
            strategy,
            categorical=tuple(self.categorical),
            random_state=self.random_state if random_state is None else random_state,
            **options,
        )
        types = manifest.types(len(rows))
        manifest = manifest.shifted(len(self.frame))
        self._append(rows, types)
        self.manifest = injection.Manifest(self.manifest.entries + manifest.entries)
        return manifest

    def format(
        self, seed: int | None = None, *, test_size: float = 0.5, order: str = "random"
    ) -> Self:
        """Split the rows into a training and a test half that share none.

        Parameters
        ----------
        seed : int, optional
            By default the detector's ``random_state``.
        test_size : float, default 0.5
            Share of the rows that is held out.
        order : {"random", "time"}, default "random"
            ``"random"`` shuffles and keeps the share of every origin and
            category in both parts; ``"time"`` keeps the order and holds out the end.
        """
        _check_choice("order", order, ("random", "time"))
        seed = self.random_state if seed is None else seed
        frame = self._without_contradictions()
        if order == "time":
            cut = round(len(frame) * (1 - test_size))
            train, test = np.arange(cut), np.arange(cut, len(frame))
        else:
            splitter = StratifiedShuffleSplit(1, test_size=test_size, random_state=seed)
            train, test = next(splitter.split(frame, self._strata(frame)))
        self.train_rows, self.test_rows = frame.index[train], frame.index[test]
        halves = [frame.iloc[rows].reset_index(drop=True) for rows in (train, test)]
        self.xtrain, self.xtest = (half[self.features] for half in halves)
        self.ytrain, self.ytest = (half["odd"] for half in halves)
        self.origin_test = halves[1]["origin"]
        return self

    # -- classifiers --------------------------------------------------------

    def pipeline(self, clf: BaseEstimator) -> BaseEstimator:
        """The classifier behind the encoder, unfitted; a pipeline is left as it is."""
        if isinstance(clf, Pipeline | injection.OversampleClassifier):
            return clone(clf)
        return Pipeline([("prepare", self.encoder()), ("classifier", as_classifier(clone(clf)))])

    def encoder(self) -> RecordEncoder:
        """The transformer that turns records into numbers, unfitted.

        It knows the categories of all rows, so a rare one that falls into one
        half only is no surprise to the other.
        """
        categories = {c: sorted(self.frame[c].dropna().unique()) for c in self.categorical}
        return RecordEncoder(categories=categories, scaling=self.scaling)

    def classify(self, clf: BaseEstimator) -> Classified:
        """Fit a classifier on the training half and try it on the test half.

        Parameters
        ----------
        clf : classifier

        Returns
        -------
        Classified
            ``(matrix, seconds, classifier)``: confusion matrix
            ``[[tn, fp], [fn, tp]]``, seconds of fit and prediction, and the
            fitted pipeline of encoder and classifier.
        """
        self._check_formatted()
        start = time.perf_counter()
        fitted = self.pipeline(clf).fit(self.xtrain, self.ytrain)
        matrix = self._confusion(fitted.predict(self.xtest))
        self.best_clf = fitted
        return Classified(matrix, time.perf_counter() - start, fitted)

    def tune_parameters(
        self,
        clf: BaseEstimator | Mapping[str, Any],
        grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]] | None = None,
        cv: Any = 5,
        n_jobs: int = 1,
        scoring: str = "f1",
        **options: Any,
    ) -> Tuned:
        """Search the best parameters by cross-validation on the training half.

        Parameters
        ----------
        clf : classifier, or mapping of str to grid
            A mapping names several families, each with its grid: all are tuned
            and the three best are averaged (see `anomaly.voting.tune_families`).
        grid : mapping of str to sequence, or a sequence of such
            Values to try for each parameter of ``clf``, and ``oversample``: how
            many times as many injected rows to train on. Left out where ``clf``
            holds the grids.
        cv : int or splitter, default 5
        n_jobs : int, default 1
            Worker processes; -1 for one per processor.
        scoring : str, default "f1"
        **options
            Those of `anomaly.tuning.tune` (``search``, ``log``, ``progress``, …),
            and ``n_best`` for several families.

        Returns
        -------
        Tuned
            ``(estimator, parameters, score)``: the pipeline fitted on the whole
            training half with the best parameters, these, and their mean score.
        """
        self._check_formatted()
        options.setdefault("random_state", self.random_state)
        options |= {"prepare": self.encoder(), "cv": cv, "n_jobs": n_jobs, "scoring": scoring}
        labels = self.ytrain.to_numpy().astype(int)
        if isinstance(clf, Mapping) == (grid is not None):
            raise ParameterError(
                "give a classifier and its grid, or a mapping of families to grids"
            )
        result: TuningResult
        if isinstance(clf, Mapping):
            result = tune_families(clf, self.xtrain, labels, **options)
        else:
            result = tune(clf, cast(Any, grid), self.xtrain, labels, **options)
        self.use(result)
        return Tuned(result.best_estimator_, result.best_params_, result.best_score_)

    def use(self, result: TuningResult) -> Self:
        """Take the winner of a search as the classifier that predicts and is exported."""
        self.tuning = result
        self.best_clf = result.best_estimator_
        return self

    def evaluate(self, clf: BaseEstimator | None = None) -> Evaluation:
        """Try a fitted classifier on the test half.

        Parameters
        ----------
        clf : fitted classifier, optional
            By default the one fitted last.

        Returns
        -------
        Evaluation
            Its ``report`` has the curves, intervals and chance levels.
        """
        fitted = self._fitted(clf)
        start = time.perf_counter()
        flagged = np.asarray(fitted.predict(self.xtest)).astype(bool)
        seconds = time.perf_counter() - start
        types = pd.DataFrame({"origin": self.origin_test, "flagged": flagged}).groupby("origin")
        by_type = types.agg(
            rows=("flagged", "size"), flagged=("flagged", "sum"), share=("flagged", "mean")
        )
        matrix = self._confusion(flagged)
        return Evaluation(
            matrix,
            confusion_ratios(matrix),
            by_type,
            seconds / max(len(flagged), 1),
            truth=self.ytest.to_numpy(),
            scores=anomaly_scores(fitted, self.xtest),
            flagged=flagged,
            origin=self.origin_test.to_numpy(),
        )

    def unusual(self, n: int = 10, clf: BaseEstimator | None = None) -> pd.DataFrame:
        """The rows with the highest scores, most unusual first.

        Parameters
        ----------
        n : int, default 10
        clf : fitted classifier, optional
            By default the one fitted last.

        Returns
        -------
        DataFrame
            Features, ``score`` (above its threshold if ``flagged``), and
            ``because``, the feature with the largest share in the score, where
            the classifier has ``explain``; empty where no feature by itself
            makes a difference. The index is ``row_labels``: the
            row's place in the table or CSV file that was given, from 0.
        """
        fitted = self._fitted(clf)
        scores = anomaly_scores(fitted, self.frame[self.features])
        top = np.argsort(-scores, kind="stable")[:n]
        rows = self.frame[self.features].iloc[top]
        flagged = np.asarray(fitted.predict(rows)).astype(bool)
        result = rows.assign(score=scores[top], flagged=flagged)
        if isinstance(fitted, Pipeline) and hasattr(fitted[-1], "explain"):
            shares = fitted[-1].explain(fitted[:-1].transform(rows)).to_numpy(copy=True)
            origins = np.asarray(fitted[0].origins_)
            shares[:, (shares == 0).all(axis=0)] = -np.inf  # columns that never vary
            because = origins[shares.argmax(axis=1)].astype(object)
            result["because"] = np.where(shares.max(axis=1) > 0, because, "")
        return result.set_axis(self.row_labels[top], axis=0)

    def predict(self, *values: Any, **record: Any) -> bool:
        """Whether one record is an anomaly.

        Parameters
        ----------
        *values
            One per feature, in the order of ``features``.
        **record
            Or by name. A feature whose name is a Python keyword may have an
            underscore appended (``class_``).
        """
        return bool(ExportedClassifier(self._fitted(None))(*values, **record))

    def export(
        self, path: str | os.PathLike[str] = "anomaly_classifier.clf", **options: Any
    ) -> Path:
        """Write the classify function of the classifier fitted last.

        Parameters
        ----------
        path : path
        **options
            Those of `anomaly.exported.export_classifier`: ``format``,
            ``missing``, ``key``, …

        Returns
        -------
        Path
            The file written.
        """
        fitted = self._fitted(None)
        options.setdefault("probes", self._probes())
        options.setdefault("scores", self._scores(fitted))
        options.setdefault("fingerprint", self._fingerprint())
        return export_classifier(fitted, path, **options)

    # -- plots --------------------------------------------------------------

    def plot(
        self, x: str | None = None, y: str | None = None, *, ax: Axes | None = None
    ) -> tuple[Figure, Axes]:
        """Scatter plot of the rows: colour is the category, shape how a row came to be.

        Parameters
        ----------
        x, y : str, optional
            Numeric features; by default the last one and the first one.
        ax : Axes, optional
            Where to draw; by default on a new figure.

        Returns
        -------
        (Figure, Axes)
        """
        x, y = self._plot_columns(x, y)
        figure, ax = _axes(ax)
        shapes = {"unique": "^", "duplicate": "o", "odd": "s"}
        kind = np.where(
            self.frame["odd"], "odd", np.where(self.frame["duplicate"], "duplicate", "unique")
        )
        for colour, (category, rows) in zip(
            _colours(), self._by_category(self.frame), strict=False
        ):
            for name, shape in shapes.items():
                chosen = rows[kind[rows.index] == name]
                if len(chosen):
                    text = f"{category} {name}".strip()
                    ax.plot(chosen[x], chosen[y], shape, ms=4, alpha=0.5, c=colour, label=text)
        ax.set(xlabel=x, ylabel=y, title="Records")
        ax.legend(loc="best", fontsize="small")
        return figure, ax

    def plot_decision_boundaries(
        self,
        clf: BaseEstimator | None = None,
        x: str | None = None,
        y: str | None = None,
        *,
        steps: int = 200,
        ax: Axes | None = None,
    ) -> tuple[Figure, Axes]:
        """Where a fitted classifier draws the line, for each category.

        Parameters
        ----------
        clf : fitted classifier, optional
            By default the one fitted last.
        x, y : str, optional
            Numeric features of the axes; the others are held at their median.
        steps : int, default 200
            Points per axis of the grid that is classified.
        ax : Axes, optional

        Returns
        -------
        (Figure, Axes)
        """
        fitted = self._fitted(clf)
        x, y = self._plot_columns(x, y)
        figure, ax = _axes(ax)
        grid_x, grid_y = np.meshgrid(*(self._span(c, steps) for c in (x, y)))
        normal = self.frame[~self.frame["odd"]]
        for colour, (category, rows) in zip(_colours(), self._by_category(normal), strict=False):
            grid = pd.DataFrame({c: rows[c].median() for c in self.numeric}, index=range(steps**2))
            for name in self.categorical:
                grid[name] = rows[name].mode()[0]
            grid[x], grid[y] = grid_x.ravel(), grid_y.ravel()
            flagged = np.asarray(fitted.predict(grid[self.features])).astype(float)
            ax.plot(rows[x], rows[y], ".", ms=2, alpha=0.3, c=colour)
            if 0 < flagged.sum() < len(flagged):
                ax.contour(grid_x, grid_y, flagged.reshape(grid_x.shape), [0.5], colors=[colour])
            ax.plot([], [], "-", c=colour, label=category or "normal")
        ax.set(xlabel=x, ylabel=y, title="Decision boundaries")
        ax.legend(loc="best", fontsize="small")
        return figure, ax

    def save_plot(self, path: str | os.PathLike[str]) -> Path:
        """Write records and decision boundaries side by side; the suffix names the format."""
        from matplotlib.figure import Figure

        path = Path(path)
        figure = Figure(figsize=(13, 6), layout="constrained")
        left, right = figure.subplots(1, 2)
        self.plot(ax=left)
        self.plot_decision_boundaries(ax=right)
        check_picture(str(path))
        with write_aside(path, "wb") as file:
            figure.savefig(file, format=path.suffix.lstrip(".").lower() or "png", dpi=110)
        return path

    # -- private ------------------------------------------------------------

    def _with_notes(self, frame: pd.DataFrame, label: str | None, unlabelled: str) -> pd.DataFrame:
        notes = {
            "duplicate": frame["duplicate"].astype(bool) if "duplicate" in frame else False,
            "odd": _labels(frame, label, unlabelled),
        }
        framed = frame[self.features].assign(**notes)
        origin = np.where(framed["odd"], "label", "record").astype(object)
        if label is not None and unlabelled == "normal":
            unknown = frame[label].isna().to_numpy()
            origin[unknown] = "unlabelled"
            self.report["unlabelled"] = int(unknown.sum())
        return framed.assign(origin=origin)

    def _rows(self, points: Iterable[Any]) -> pd.DataFrame:
        rows = []
        for number, point in enumerate(points):
            values = point if isinstance(point, Mapping) else dict(zip(self.features, point))  # noqa: B905
            if set(values) != set(self.features) or (
                not isinstance(point, Mapping) and len(point) != len(self.features)
            ):
                raise DataError(
                    f"point {number} must have the fields {self.features}, got {point!r}"
                )
            rows.append(values)
        return pd.DataFrame(rows, columns=self.features)

    def _append(self, rows: pd.DataFrame, types: NDArray[Any]) -> None:
        if set(rows.columns) != set(self.features):
            raise DataError(f"columns must be {self.features}, got {list(rows.columns)}")
        for column in self.numeric:
            values = pd.to_numeric(rows[column], errors="coerce")
            if not np.isfinite(values.to_numpy(float)).all():
                raise DataError(f"{column} must be finite numbers, got {list(rows[column])[:5]}")
        noted = rows[self.features].assign(duplicate=False, odd=True, origin=types)
        self.frame = pd.concat([self.frame, noted], ignore_index=True)
        self.row_labels = self.row_labels.append(pd.Index([None] * len(noted), dtype=object))

    def _without_contradictions(self) -> pd.DataFrame:
        """Rows without injected ones that equal a record, or each other."""
        order = self.frame.sort_values("odd", kind="stable")
        copies = order.duplicated(self.features) & order["odd"] & (order["origin"] != "label")
        self.report["contradictions"] = int(copies.sum())
        return self.frame[~copies.sort_index()]

    def _strata(self, frame: pd.DataFrame) -> NDArray[Any]:
        """Origin and category of each row; rare ones join the largest of the same label."""
        odd = frame["odd"]
        counts = odd.value_counts()
        if counts.empty or counts.min() < 2:
            raise DataError(
                f"at least 2 rows of a kind are needed to split; got {counts.get(False, 0)} "
                f"normal and {counts.get(True, 0)} anomalous"
            )
        strata = odd.astype(str) + "|" + frame["origin"].astype(str)
        for column in self.categorical[:1]:
            strata = strata + "|" + frame[column].astype(str)
        rare = strata.map(strata.value_counts()) < 4
        for label in (False, True):
            own = strata[odd == label]
            if len(own):
                strata[rare & (odd == label)] = own.value_counts().index[0]
        return strata.to_numpy()

    def _confusion(self, predicted: ArrayLike) -> NDArray[np.int64]:
        flagged = np.asarray(predicted).astype(bool)
        return confusion_matrix(self.ytest.to_numpy(), flagged, labels=[False, True])

    def _check_formatted(self) -> None:
        if not hasattr(self, "xtrain"):
            raise ParameterError("call format() first: it makes the training and the test half")

    def _fitted(self, clf: BaseEstimator | None) -> Any:
        self._check_formatted()
        fitted = getattr(self, "best_clf", None) if clf is None else clf
        if fitted is None:
            raise ParameterError("no classifier is fitted: call classify or tune_parameters first")
        return fitted

    def _plot_columns(self, x: str | None, y: str | None) -> tuple[str, str]:
        if len(self.numeric) < 2:
            raise DataError(f"a plot needs two numeric features, got {self.numeric}")
        chosen = (x or self.numeric[-1], y or self.numeric[0])
        for name in chosen:
            _check_choice("column", name, self.numeric)
        return chosen

    def _by_category(self, frame: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
        if not self.categorical:
            return [("", frame)]
        return [(str(name), rows) for name, rows in frame.groupby(self.categorical[0])]

    def _span(self, column: str, steps: int) -> NDArray[np.float64]:
        low, high = self.frame[column].min(), self.frame[column].max()
        return np.linspace(low, high, steps)

    def _probes(self) -> pd.DataFrame:
        """Held-out records, normal and odd, of which sixteen travel with the file."""
        odd = self.xtest[self.ytest].head(100)
        normal = self.xtest[~self.ytest].head(100)
        return pd.concat([normal, odd], ignore_index=True)

    def _fingerprint(self) -> str:
        """Digest of the training half, rows and labels in order."""
        rows = pd.util.hash_pandas_object(self.xtrain.assign(odd=self.ytrain), index=False)
        return hashlib.sha256(rows.to_numpy().tobytes()).hexdigest()

    def _scores(self, fitted: Any) -> dict[str, Any]:
        """Cross-validated and held-out scores that travel with the file."""
        held_out = self.evaluate(fitted).ratios._asdict()
        scores: dict[str, Any] = {"held_out": held_out}
        tuning = getattr(self, "tuning", None)
        if tuning is not None and tuning.best_estimator_ is fitted:
            scores["cross_validated"] = {"score": float(tuning.best_score_)}
        return scores


_CONSTRUCTOR_OPTIONS = {"missing", "duplicates", "scaling", "random_state", "unlabelled"}


def _check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ParameterError(f"{name} must be one of {list(allowed)}, got {value!r}")


def _check_frame(frame: Any) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"frame must be a DataFrame, got {type(frame).__name__}")
    repeated = list(frame.columns[frame.columns.duplicated()].unique())
    if repeated:
        raise DataError(f"columns must have names of their own; {repeated} occur more than once")


def _categorical_columns(frame: pd.DataFrame, chosen: Sequence[str] | None) -> list[str]:
    if chosen is None:
        return [c for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    unknown = [c for c in chosen if c not in frame.columns]
    if unknown:
        raise ParameterError(
            f"categorical must name columns of {list(frame.columns)}, got {unknown}"
        )
    return list(chosen)


def _labels(frame: pd.DataFrame, label: str | None, unlabelled: str) -> pd.Series | bool:
    """Which rows are anomalous: from the label column, else from an earlier ``odd`` note."""
    if label is None:
        return frame["odd"].astype(bool) if "odd" in frame else False
    if label not in frame:
        raise ParameterError(f"label must be a column of {list(frame.columns)}, got {label!r}")
    values = frame[label]
    if values.isna().any() and unlabelled == "error":
        raise DataError(
            f"{label}: every row needs a label, {int(values.isna().sum())} are missing "
            f"(unlabelled='normal' takes them for normal)"
        )
    found = sorted(values.dropna().unique())
    if len(found) > 2:
        raise DataError(f"{label} must have two values (normal, anomaly), got {len(found)}")
    if set(found) <= {0, 1}:
        return values.eq(1).fillna(False).astype(bool)
    if len(found) < 2:
        raise DataError(f"{label} must have two values (normal, anomaly), got {found}")
    return values.eq(found[1]).fillna(False).astype(bool)


def _axes(ax: Axes | None) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    if ax is not None:
        return cast(Figure, ax.get_figure(root=True)), ax

    figure = Figure(figsize=(8, 6), layout="constrained")
    return figure, figure.add_subplot()


def _colours() -> Iterable[str]:
    import itertools

    return itertools.cycle(PALETTE)


# -- command line -------------------------------------------------------------

EPILOG = """\
examples:
  python detector.py dimensions --inject 1000 --classifier rbf_svc
      load the bundled body and vehicle sizes, inject 1,000 points drawn evenly
      over the bounding box, fit on one half, judge on the other
  python detector.py measurements.csv --label faulty --plot measurements.png
      a table of your own with a label column
  python detector.py measurements.csv --export anomaly_classifier.clf
      no labels: list the most unusual rows, and write the classify function for
      production/classify.py
  python detector.py measurements.csv --label faulty --unlabelled normal --classifier few_labels
      a few labels: rows with an empty label are taken for normal

Which classifier to use with no, few or all labels: docs/choosing.md

To search for the best parameters first, see: python parameters.py --help
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``python detector.py``."""
    parser = argparse.ArgumentParser(
        prog="detector.py",
        description="Load records, inject or read anomalies, fit one classifier on half of the "
        "rows and judge it on the other half.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="entry of the catalogue, a CSV file, or - for standard input")
    parser.add_argument(
        "--catalogue", help="catalogue of data sets (TOML; default: the bundled one)"
    )
    parser.add_argument("--label", help="column of a CSV file that holds the labels")
    parser.add_argument(
        "--unlabelled",
        choices=["error", "normal"],
        default="error",
        help="normal keeps rows with an empty label, as normal ones; error leaves them out",
    )
    parser.add_argument("--separator", help="of a CSV file; found by itself when not given")
    parser.add_argument("--decimal", default=".", help="decimal mark of a CSV file (default .)")
    add_reading_options(parser)
    parser.add_argument("--inject", type=int, metavar="N", help="inject N anomalies")
    parser.add_argument("--strategy", default="uniform", help="of the injection (default uniform)")
    parser.add_argument(
        "--classifier", help="family to fit (default random_forest; ensemble without labels)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of injection, split and fit")
    parser.add_argument("--plot", metavar="FILE", help="picture of records and boundaries")
    parser.add_argument("--report", metavar="FILE", help="page of curves and intervals (HTML)")
    parser.add_argument("--export", metavar="FILE", help="classify function to write")
    return parser


def add_reading_options(parser: argparse._ActionsContainer) -> None:
    """Options of a CSV file that every command line of the house takes."""
    parser.add_argument("--thousands", help="mark between thousands of a CSV file, e.g. ' '")
    parser.add_argument(
        "--anomalies",
        action="append",
        metavar="VALUE",
        help="value of the label that means anomaly; repeat (default: 1, true, yes, anomaly)",
    )


def check_outputs(*paths: str | None) -> None:
    """Refuse files that could not be written, before any work is done."""
    for path in paths:
        if path is None:
            continue
        if not path or Path(path).is_dir():
            raise ParameterError(f"a file to write must have a name, got {path!r}")
        if not Path(path).parent.is_dir():
            raise ParameterError(
                f"{path} cannot be written: there is no folder {Path(path).parent}"
            )


def check_picture(path: str | None) -> None:
    """Refuse a picture whose suffix names no format."""
    if path is None:
        return
    from matplotlib.figure import Figure

    known = sorted(Figure().canvas.get_supported_filetypes())
    _check_choice("format of the plot", Path(path).suffix.lstrip(".").lower() or "png", known)


def load(arguments: argparse.Namespace) -> Detector:
    """The detector that a command line asks for."""
    names = loading.Catalogue(arguments.catalogue).names()
    scaling = getattr(arguments, "scaling", "standard")
    if arguments.data in names:
        return Detector.from_catalogue(
            arguments.data, arguments.catalogue, scaling=scaling, random_state=arguments.seed
        )
    if arguments.data != "-" and not Path(arguments.data).exists():
        raise DataError(
            f"{arguments.data} is neither a file nor in the catalogue ({', '.join(names)})"
        )
    return Detector.from_csv(
        arguments.data,
        label=arguments.label,
        unlabelled=getattr(arguments, "unlabelled", "error"),
        separator=arguments.separator,
        decimal=arguments.decimal,
        scaling=scaling,
        thousands=arguments.thousands,
        anomalies=arguments.anomalies,
        random_state=arguments.seed,
    )


def run(arguments: argparse.Namespace) -> None:
    """Load, inject, split, fit, judge or list, plot, report, export."""
    # Refuse what cannot be done before loading.
    if arguments.classifier:
        family(arguments.classifier)
    check_outputs(arguments.plot, arguments.report, arguments.export)
    check_picture(arguments.plot)
    detector = load(arguments)
    if arguments.inject:
        detector.inject(arguments.inject, arguments.strategy)
    labelled = bool(detector.frame["odd"].any())
    name = arguments.classifier or ("random_forest" if labelled else "ensemble")
    classifier = seeded(family(name).make(), arguments.seed)
    if not labelled and arguments.report:
        raise DataError("a report needs anomalies to judge by: name a --label or --inject some")
    with warnings.catch_warnings():
        # `show_loaded` says it with the names of the file.
        warnings.filterwarnings("ignore", ".* constant columns? (is|are) left out")
        seconds = detector.format().classify(classifier).seconds
    if labelled:
        show(detector, seconds)
    else:
        show_unusual(detector)
    if arguments.plot:
        print(f"wrote {detector.save_plot(arguments.plot)}")
    if arguments.report:
        print(f"wrote {detector.evaluate().report.to_html(arguments.report)}")
    if arguments.export:
        print(f"wrote {detector.export(arguments.export)}")


def show_unusual(detector: Detector) -> None:
    """Print the most unusual rows of a table without labels."""
    from rich.console import Console
    from rich.table import Table

    show_loaded(detector)
    rows = detector.unusual()
    if len(detector.features) > MOST_COLUMNS:
        if "because" in rows:
            values = [row.get(row["because"], "") for _, row in rows.iterrows()]
            rows = rows[["score", "flagged", "because"]].assign(value=values)
        else:
            rows = rows[["score", "flagged", *detector.features[:MOST_COLUMNS]]]
    table = Table(
        "row",
        *map(str, rows.columns),
        title="no labels: the most unusual rows",
        caption="row 0 is the first record; fitted to a random half of the rows",
    )
    for number, row in rows.iterrows():
        shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row)
        table.add_row(str(number), *shown)
    Console().print(table)


def show_loaded(detector: Detector) -> None:
    """Print what was read, what is left of it, and what the threshold promises."""
    lines = []
    if detector.loaded is not None:
        lines.append(str(detector.loaded))
        missing = detector.loaded.missing
        no_label = sum(n for name, n in missing.items() if name not in detector.features)
        if no_label and "unlabelled" not in detector.report:
            lines.append(f"  {no_label} rows have no label; --unlabelled normal keeps them")
    left_out = {
        "left out for missing or infinite cells": detector.report.get("missing", 0),
        "left out for repeating an earlier one": detector.report.get("duplicates", 0),
    }
    found = ", ".join(f"{n} {why}" for why, n in left_out.items() if n)
    if found:
        lines.append(f"  {detector.report['kept']} rows in use: {found}")
    still = [name for name in detector.features if detector.frame[name].nunique() < 2]
    if still:
        shown = ", ".join(map(str, still[:5])) + (" …" if len(still) > 5 else "")
        lines.append(f"  the same in every row: {shown}")
    names = [
        n for n in detector.categorical if detector.frame[n].nunique() > 0.5 * len(detector.frame)
    ]
    if names:
        lines.append(
            f"  text that is almost never the same twice, better left out: {', '.join(names)}"
        )
    threshold = getattr(detector.best_clf[-1], "threshold_", None)
    if isinstance(threshold, Threshold):
        lines.append(f"threshold: {threshold.promise} ({threshold.n_calibration} withheld rows)")
    for line in lines:
        print(line)


def show(detector: Detector, seconds: float) -> None:
    """Print what was loaded, ratios, and the share found of each type."""
    from rich.console import Console
    from rich.table import Table

    found = detector.evaluate()
    console = Console()
    show_loaded(detector)
    ratios = Table("", *found.ratios._fields, title=f"held-out half ({seconds:.2f} s)")
    ratios.add_row("", *(f"{value:.3f}" for value in found.ratios))
    console.print(ratios)
    types = Table("origin", "rows", "flagged", "share")
    for row in found.by_type.itertuples():
        types.add_row(str(row.Index), str(row.rows), str(row.flagged), f"{row.share:.3f}")
    console.print(types)
    if detector.manifest.entries:
        print(evaluation.INJECTED_NOTE)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 on success, 2 after a fault of the user's input."""
    arguments = build_parser().parse_args(argv)
    try:
        run(arguments)
    except (AnomalyError, OSError, ValueError) as error:
        print(f"detector.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    sys.exit(main())
