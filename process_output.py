"""Plot the tables of a tuning run and bind the figures into one report.

Run ``python process_output.py --help`` for the figures and an example. Every
``plot_…`` function returns the figure and its axes, draws on ``ax`` if one is
given, and neither shows anything nor touches matplotlib's global state.
"""

from __future__ import annotations

import argparse
import ast
import base64
import html
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations as pairs_of
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d import Axes3D

Drawn = tuple[Figure, Axes]

# Okabe and Ito's palette, told apart with any colour vision; shapes repeat it.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7", "#000000", "#B8A900")
MARKERS = "os^DvPX*"
BLUE, VERMILION, GREEN, GREY = PALETTE[0], PALETTE[1], PALETTE[2], "#6b6b6b"
COLOUR_MAP = mpl.colormaps["viridis"]
FORMATS = ("png", "svg", "pdf")
DPI = 125
SIZE = (8.0, 5.0)  # inches: 1000 × 625 pixels
MAX_POINTS = 24  # values of a parameter on one axis; more are put into bins
MAX_SHAPES = len(MARKERS)
TOP = 10

INJECTED = (
    "A score on injected labels says how well this kind of injected point is told apart from the "
    "records, and little about real anomalies: on 43 public tables the F1 on injected points "
    "correlated only 0.04 to 0.11 with the area under the ROC curve on the true anomalies."
)
LESS_IS_BETTER = ("FPR", "FNR", "FIT_SECONDS", "PREDICT_SECONDS", "T")
CONFUSION = ("tn", "fp", "fn", "tp")
_SHORT_NAMES = {"t": "predict_seconds"}  # as the original's scores have it
_CALL = re.compile(r"[A-Za-z_][\w.]*\(.*\)", re.DOTALL)


class ResultsError(ValueError):
    """Tables that are missing, swapped, or do not belong together."""


# --- reading -----------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """Scores and parameters of one estimator in one run, joined.

    Attributes
    ----------
    run, estimator, score : str
        Name of the run, class of the estimator, and the score that is plotted.
    parameters : list of str
        Parameters that took more than one value, the most influential first. A
        parameter that holds lists of equal numbers is split into ``.count`` and
        ``.size``, one that holds an estimator into ``parameter__its_parameter``.
    fits : DataFrame
        One row per scored fit: ``combination``, ``fold``, ``place`` in the log,
        ``score``, ``seconds`` to predict, and tn, fp, fn, tp where known.
    combinations : DataFrame
        One row per combination: ``id``, the parameters, ``mean``, ``low`` and
        ``high`` over the folds, ``sd``, ``folds``, ``seconds``, ``place``.
    notes : list of str
        What the reader of the figures should know about the tables.
    """

    run: str
    estimator: str
    score: str
    parameters: list[str]
    fits: pd.DataFrame
    combinations: pd.DataFrame
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> pd.DataFrame:
        """Combinations that were scored on every fold, best first."""
        table = self.combinations
        whole = table[table["folds"] == table["folds"].max()]
        return whole.sort_values(["mean", "place"], ascending=[False, True])

    @property
    def has_confusion(self) -> bool:
        return all(name in self.fits for name in CONFUSION)

    def confusion_of_best(self) -> np.ndarray:
        """Counts of the best combination over its test folds: [[tn, fp], [fn, tp]]."""
        own = self.fits[self.fits["combination"] == self.complete.index[0]]
        return own[list(CONFUSION)].sum().to_numpy().reshape(2, 2)


def read_results(
    scores_path: str | os.PathLike[str],
    params_path: str | os.PathLike[str],
    *,
    score: str = "F1",
) -> Results:
    """Join the scores of a run with the parameters of one estimator.

    Parameters
    ----------
    scores_path : str or PathLike
        ``RUN.scores.csv``, as ``beautify.py`` writes it.
    params_path : str or PathLike
        ``RUN.params.CLASS.csv`` of the same run.
    score : str, default="F1"
        Column of the scores to plot, in any case; more must be better.

    Returns
    -------
    Results
        Test scores only; scores on training halves and failed fits are left
        out and mentioned in the notes.

    Raises
    ------
    ResultsError
        If a file cannot be read, is not such a table, or the two share no id.
    """
    if score.upper() in LESS_IS_BETTER:
        raise ResultsError(f"score: expected one of which more is better, found {score!r}")
    scores, params = _read_table(scores_path), _read_table(params_path)
    scores.columns = pd.Index([_score_name(name, score) for name in scores.columns])
    if score not in scores:
        hint = " (are the two files swapped?)" if _score_name("f1", score) in params else ""
        raise ResultsError(
            f"{scores_path}: no column {score!r}{hint}; it has {', '.join(scores.columns)}"
        )
    fits = scores[scores["id"].isin(params["id"])].reset_index(names="place")
    if fits.empty:
        raise ResultsError(
            f"{params_path}: shares no id with {scores_path}; is it of another run?"
        )
    notes: list[str] = []
    fits = _test_fits(fits, score, notes)
    if fits.empty:
        raise ResultsError(f"{params_path}: no fit of it has a {score} on test data")
    values, groups = _parameter_values(params)
    fits["combination"] = fits["id"].map(groups)
    fits = _with_folds(fits)
    table = _combination_table(fits).join(values)
    varied = _varied(table, list(values.columns))
    parameters = sorted(varied, key=lambda name: -_influence(table, name))
    run, estimator = _names(scores_path, params_path)
    return Results(run, estimator, score, parameters, fits, table, notes)


def _read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep=";", dtype=str, keep_default_na=False, encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: not a table ({' '.join(str(error).split())})") from None
    if "id" not in table or table.empty:
        raise ResultsError(f"{path}: expected rows under a header with 'id', split by ';'")
    return table


def _score_name(name: str, score: str) -> str:
    """The house's name of a score column: the original wrote `f1` and `t`."""
    known = ("F1", "TPR", "FPR", "TNR", "FNR", "PPV", score)
    spelt = {other.lower(): other for other in known} | _SHORT_NAMES
    return spelt.get(name.lower(), name)


def _names(
    scores_path: str | os.PathLike[str], params_path: str | os.PathLike[str]
) -> tuple[str, str]:
    run = Path(scores_path).name.removesuffix(".csv").removesuffix(".scores")
    own = Path(params_path).name.removesuffix(".csv")
    return run, own.partition(".params.")[2] or own


def _test_fits(fits: pd.DataFrame, score: str, notes: list[str]) -> pd.DataFrame:
    if "split" in fits:
        trained = ~fits["split"].isin(["test", ""])
        if trained.any():
            notes.append(f"{trained.sum()} scores on training data are left out.")
        fits = fits[~trained]
    else:
        notes.append(
            "The log does not mark which scores are on training data; "
            "the original program logged both alike."
        )
    if "samples" in fits:
        rows = _numbers(fits["samples"]).fillna(math.inf)  # empty: the whole training half
        if (rows < rows.max()).any():
            notes.append(f"{(rows < rows.max()).sum()} scores after fits on fewer rows, "
                         "as halving makes them, are left out.")  # fmt: skip
        fits = fits[rows == rows.max()]
    numbers = {"place": fits["place"], "id": fits["id"], "score": _numbers(fits[score])}
    for name in ("fold", *CONFUSION):
        if name in fits:
            numbers[name] = _numbers(fits[name])
    if "predict_seconds" in fits:
        numbers["seconds"] = _numbers(fits["predict_seconds"])
    table = pd.DataFrame(numbers)
    failed = ~np.isfinite(table["score"])
    if failed.any():
        notes.append(f"{failed.sum()} fits without a {score} (failed ones) are left out.")
    return table[~failed].reset_index(drop=True)


def _numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce").astype(float)


def _with_folds(fits: pd.DataFrame) -> pd.DataFrame:
    """Where no fold is named, the repeats of a combination stand for folds.

    There are as many folds as repeats are usual: the original's grid holds the
    network without hidden layers forty-nine times over.
    """
    if "fold" not in fits or fits["fold"].isna().any():
        repeats = fits.groupby("combination")
        usual = repeats.size().mode().max()
        fits["fold"] = (repeats.cumcount() % usual).astype(float)
    return fits


def _combination_table(fits: pd.DataFrame) -> pd.DataFrame:
    grouped = fits.groupby("combination")
    table = grouped["score"].agg(["mean", "min", "max"])
    table.columns = pd.Index(["mean", "low", "high"])
    table["folds"] = grouped["fold"].nunique()
    table["sd"] = grouped["score"].std(ddof=0)
    table["place"] = grouped["place"].max()
    table["id"] = grouped["id"].first()
    table["seconds"] = grouped["seconds"].mean() if "seconds" in fits else math.nan
    return table


def _parameter_values(params: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Readable parameters of each combination, and the combination of each id.

    Rows with the same parameters are one combination: in logs of the original
    each fit has an id of its own.
    """
    texts = params.drop(columns="id")
    groups = texts.groupby(list(texts.columns), sort=False).ngroup() if len(texts.columns) else 0
    numbered = params.assign(combination=groups)
    distinct = numbered.drop_duplicates("combination").set_index("combination")
    columns: dict[str, pd.Series] = {}
    for name in texts.columns:
        columns |= _columns_of(name, distinct[name], set(texts.columns))
    values = pd.DataFrame(columns, index=distinct.index)
    return values, dict(zip(numbered["id"], numbered["combination"], strict=True))


def _columns_of(name: str, cells: pd.Series, taken: set[str]) -> dict[str, pd.Series]:
    """One logged parameter as columns that can be an axis."""
    parsed = {text: _read_cell(text) for text in cells.unique()}
    values = _each(cells, parsed.__getitem__)
    if any(isinstance(value, _Nested) for value in parsed.values()):
        return _columns_of_nested(name, values, taken)
    if all(_is_layers(value) for value in parsed.values()):
        counts = _each(values, len).astype(float)
        sizes = _each(values, lambda layers: layers[0] if layers else 0).astype(float)
        derived = {f"{name}.count": counts, f"{name}.size": sizes}
        if all(len(set(value)) < 2 for value in parsed.values()):
            return derived
        return {**derived, name: _axis(values)}
    return {name: _axis(values)}


def _columns_of_nested(name: str, values: pd.Series, taken: set[str]) -> dict[str, pd.Series]:
    def part(key: str, value: Any) -> Any:
        return value.named.get(key) if isinstance(value, _Nested) else None

    nested = [value for value in values if isinstance(value, _Nested)]
    keys = dict.fromkeys(key for value in nested for key in value.named)
    columns = {name: _axis(_each(values, _label))}
    for key in keys:
        if f"{name}__{key}" not in taken:
            columns[f"{name}__{key}"] = _axis(_each(values, partial(part, key)))
    return columns


@dataclass(frozen=True)
class _Nested:
    """An estimator inside a parameter: its class, and the parameters it was given."""

    name: str
    named: dict[str, Any]


def _read_cell(text: str) -> Any:
    if text == "":
        return None
    if _CALL.fullmatch(text):
        try:
            call = ast.parse(text, mode="eval").body
        except SyntaxError:
            return text
        if isinstance(call, ast.Call):
            inner = [ast.unparse(argument) for argument in call.args]
            name = ast.unparse(call.func).rpartition(".")[2]
            named = {str(key.arg): _read_cell(ast.unparse(key.value)) for key in call.keywords}
            named = {key: None if value == "None" else value for key, value in named.items()}
            return _Nested(f"{name}({', '.join(inner)})" if inner else name, named)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _each(values: pd.Series, change: Callable[[Any], Any]) -> pd.Series:
    """Change each value; unlike ``map``, None stays None."""
    return pd.Series([change(value) for value in values], index=values.index, dtype=object)


def _is_layers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(item, int | float) and not isinstance(item, bool) for item in value
    )


def _label(value: Any) -> str:
    if isinstance(value, _Nested):
        return value.name
    return _short(value) if isinstance(value, float) else str(value)


def _short(number: float) -> str:
    return f"{number:.4g}"


def _axis(values: pd.Series) -> pd.Series:
    """Numbers if all values are numbers, else ordered labels: numbers, words, None."""
    plain = [isinstance(v, int | float) and not isinstance(v, bool) for v in values]
    if all(plain):
        return values.astype(float)

    def rank(value: Any) -> tuple[int, float, str]:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return (2 * (value is None) + (not is_number), value if is_number else 0, _label(value))

    distinct = {_label(value): rank(value) for value in values}
    ordered = sorted(distinct, key=lambda label: distinct[label])
    labels = pd.Categorical(_each(values, _label), categories=ordered, ordered=True)
    return pd.Series(labels, index=values.index)


def _varied(table: pd.DataFrame, names: Iterable[str]) -> list[str]:
    """Parameters with several values, each partition of the combinations once."""
    seen: set[bytes] = set()
    kept = []
    for name in names:
        codes = pd.factorize(table[name])[0]
        if codes.max(initial=0) > 0 and codes.tobytes() not in seen:
            seen.add(codes.tobytes())
            kept.append(name)
    return kept


def _influence(table: pd.DataFrame, name: str) -> float:
    """Share of the variance of the mean scores between the values of a parameter."""
    means = table.groupby(_binned(table[name]), observed=True)["mean"].transform("mean")
    return float(np.nan_to_num(means.var(ddof=0) / max(table["mean"].var(ddof=0), 1e-300)))


def _binned(values: pd.Series) -> pd.Series:
    """A parameter with many numeric values, in bins named by their median."""
    if isinstance(values.dtype, pd.CategoricalDtype) or values.nunique() <= 100:
        return values
    bins = pd.qcut(values, 20, labels=False, duplicates="drop")
    return values.groupby(bins).transform("median")


# --- figures -----------------------------------------------------------------


def plot_marginal(results: Results, parameter: str, *, ax: Axes | None = None) -> Drawn:
    """Effect of one parameter: mean over the others, spread over folds, and the best.

    Parameters
    ----------
    results : Results
        Joined tables.
    parameter : str
        One of ``results.parameters``.
    ax : Axes or None
        Where to draw; a new figure if None.

    Returns
    -------
    figure, axes
        The lower line is the mean over all combinations with a value, its band
        runs from the lowest to the highest fold; the upper is the best mean
        that any combination with the value reached.
    """
    figure, axes = _axes(ax)
    values = _binned(_column(results, parameter))
    fits = results.fits.assign(value=results.fits["combination"].map(values.astype(object)))
    per_fold = fits.groupby(["value", "fold"])["score"].mean().unstack()
    best = results.complete["mean"].groupby(values, observed=True).max()
    order = _in_order(values)
    per_fold, best = per_fold.reindex(order), best.reindex(order)
    x = _places(axes, order)
    mean, low, high = per_fold.mean(axis=1), per_fold.min(axis=1), per_fold.max(axis=1)
    marks = "" if len(order) > MAX_POINTS else "o"
    if values.dtype == float:
        axes.fill_between(x, low, high, color=BLUE, alpha=0.2, lw=0, label="folds, low to high")
        axes.plot(x, mean, color=BLUE, marker=marks, label="mean over the other parameters")
        axes.plot(
            x, best, color=VERMILION, marker=marks and "s", ls="--", label="best combination"
        )
    else:
        reach = np.vstack([mean - low, high - mean])
        axes.errorbar(
            x, mean, reach, color=BLUE, marker="o", ls="", capsize=4,
            label="mean over the other parameters; bar: folds, low to high",
        )  # fmt: skip
        axes.plot(x, best, color=VERMILION, marker="s", ls="", label="best combination")
    _name_axes(
        axes, xlabel=parameter, ylabel=results.score, title=f"{results.estimator}: {parameter}"
    )
    _legend(axes)
    return figure, axes


def plot_heatmap(results: Results, x: str, y: str, *, ax: Axes | None = None) -> Drawn:
    """Mean score over two parameters, averaged over the others; the best cell is framed."""
    figure, axes = _axes(ax, grid=False)
    columns = _binned(_column(results, x)), _binned(_column(results, y))
    keys = [columns[1].rename("y"), columns[0].rename("x")]
    grid = results.combinations["mean"].groupby(keys, observed=True).mean().unstack()
    grid = grid.sort_index().sort_index(axis=1)
    cells = np.ma.masked_invalid(grid.to_numpy(dtype=float))
    axes.set_facecolor("#dddddd")
    image = axes.imshow(cells, aspect="auto", origin="lower", cmap=COLOUR_MAP)
    _word_ticks(axes, "x", [_label(value) for value in grid.columns], most=12)
    _word_ticks(axes, "y", [_label(value) for value in grid.index], most=12)
    if cells.size <= 80:
        _write_cells(axes, cells, COLOUR_MAP, lambda value: f"{value:.3f}")
    row, column = np.unravel_index(cells.argmax(), cells.shape)
    frame = mpl.patches.Rectangle(
        (column - 0.5, row - 0.5), 1, 1, fill=False, ec=VERMILION, lw=2.5, clip_on=False
    )
    axes.add_patch(frame)
    figure.colorbar(image, ax=axes, label=f"mean {results.score}")
    _name_axes(axes, xlabel=x, ylabel=y, title=f"{results.estimator}: {x} × {y}")
    return figure, axes


def plot_progress(results: Results, *, ax: Axes | None = None) -> Drawn:
    """Mean score of each combination in log order, and the best of those before it."""
    figure, axes = _axes(ax)
    done = results.combinations.sort_values("place")
    whole = results.complete.sort_values("place")
    fits = results.fits["place"].sort_values().to_numpy()
    axes.scatter(
        _rank(fits, done["place"]), done["mean"], s=_dot(len(done)), color=GREY, alpha=0.4, lw=0,
        rasterized=len(done) > 2000, label="a combination, mean over its folds",
    )  # fmt: skip
    best = whole["mean"].cummax()
    x = _rank(fits, whole["place"])
    axes.step(
        [*x, len(fits)], [*best, best.iloc[-1]], where="post", color=VERMILION, lw=2,
        label="best so far",
    )  # fmt: skip
    first = int(np.argmax(best.to_numpy() == best.iloc[-1]))
    axes.annotate(
        f"{best.iloc[-1]:.4f} after {x[first]} fits", (x[first], best.iloc[-1]), (0, 7),
        textcoords="offset points", ha="right" if x[first] > len(fits) / 2 else "left",
    )  # fmt: skip
    axes.margins(y=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = f"{results.estimator}: progress"
    _name_axes(axes, xlabel="fits so far", ylabel=f"mean {results.score}", title=title)
    _legend(axes)
    return figure, axes


def plot_cost(*all_results: Results, ax: Axes | None = None) -> Drawn:
    """Mean score against prediction time, with the Pareto front over all estimators given."""
    figure, axes = _axes(ax)
    tables = []
    for place, results in enumerate(all_results):
        table = results.complete
        table = table[table["seconds"] > 0]
        tables.append(table[["seconds", "mean"]])
        axes.scatter(
            table["seconds"], table["mean"], s=2 * _dot(len(table)), alpha=0.55, lw=0,
            color=PALETTE[place % len(PALETTE)] if len(all_results) > 1 else GREY,
            marker=MARKERS[place % MAX_SHAPES], rasterized=len(table) > 2000,
            label=_plain(results.estimator),
        )  # fmt: skip
    points = pd.concat(tables)
    if points.empty:
        raise ResultsError("the scores hold no prediction time")
    front = pareto_front(points)
    colour = VERMILION if len(all_results) == 1 else "black"
    axes.step(
        front["seconds"], front["mean"], where="post", color=colour, marker="o", mfc="none", ms=8,
        label="Pareto front: none faster is as good",
    )  # fmt: skip
    axes.set_xscale("log")
    title = "score against prediction time"
    if len(all_results) == 1:
        title = f"{all_results[0].estimator}: {title}"
    _name_axes(
        axes,
        xlabel="seconds to predict one fold",
        ylabel=f"mean {all_results[0].score}",
        title=title,
    )
    _legend(axes)
    return figure, axes


def pareto_front(points: pd.DataFrame) -> pd.DataFrame:
    """Rows of which no other is at most as slow and at least as good, fastest first.

    Examples
    --------
    >>> points = pd.DataFrame({"seconds": [3.0, 1.0, 2.0], "mean": [0.9, 0.8, 0.7]})
    >>> pareto_front(points)["mean"].tolist()
    [0.8, 0.9]
    """
    ordered = points.sort_values(["seconds", "mean"], ascending=[True, False])
    before = ordered["mean"].cummax().shift(fill_value=-math.inf)
    return ordered[ordered["mean"] > before]


def plot_confusion(results: Results, *, ax: Axes | None = None) -> Drawn:
    """Confusion matrix of the best combination, summed over its test folds."""
    if not results.has_confusion:
        raise ResultsError(f"the scores hold no confusion matrix ({', '.join(CONFUSION)})")
    figure, axes = _axes(ax, size=(5.6, 4.6), grid=False)
    best = results.complete.iloc[0]
    counts = results.confusion_of_best()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap=COLOUR_MAP, vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        axes.text(
            column, row, f"{counts[row, column]:,.0f}\n{share:.1%}", ha="center", va="center",
            fontsize=14, color=_ink(COLOUR_MAP(share)),
        )  # fmt: skip
    axes.set_xticks([0, 1], ["normal", "anomaly"])
    axes.set_yticks([0, 1], ["normal", "anomaly"], rotation=90, va="center")
    figure.colorbar(image, ax=axes, label="share of the true class")
    _name_axes(
        axes,
        xlabel="predicted",
        ylabel="true",
        title=f"{results.estimator}: best, id {best['id']}",
    )
    return figure, axes


def plot_folds(results: Results, *, ax: Axes | None = None) -> Drawn:
    """Scores of the ten best combinations fold by fold: how much of the order is chance."""
    figure, axes = _axes(ax)
    best = results.complete.head(TOP)
    for rank, (combination, row) in enumerate(best.iterrows()):
        own = results.fits[results.fits["combination"] == combination]
        for place, (_, fit) in enumerate(own.sort_values("fold").iterrows()):
            axes.plot(
                fit["score"], rank, ls="", alpha=0.85, ms=7, marker=MARKERS[place % MAX_SHAPES],
                color=PALETTE[place % len(PALETTE)],
                label=f"fold {fit['fold']:.0f}" if rank == 0 and place < MAX_SHAPES else None,
            )  # fmt: skip
        axes.plot([row["mean"]] * 2, [rank - 0.35, rank + 0.35], color="black", lw=2)
    axes.plot([], [], color="black", lw=2, label="mean")
    axes.set_yticks(range(len(best)), [f"id {name}" for name in best["id"]])
    axes.set_ylim(len(best) - 0.4, -0.6)
    title = f"{results.estimator}: the best combinations, fold by fold"
    _name_axes(axes, xlabel=results.score, ylabel="best on top", title=title)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, axes


def plot_space(results: Results, x: str, y: str, hue: str, *, ax: Axes | None = None) -> Drawn:
    """Two parameters against the mean score in three dimensions, coloured by a third."""
    if ax is None:
        figure = Figure(figsize=(8.0, 6.4), dpi=DPI)
        axes: Any = figure.add_subplot(projection="3d")
        figure.subplots_adjust(left=0, right=0.97, bottom=0.12, top=0.95)
    elif isinstance(ax, Axes3D):
        figure, axes = _figure_of(ax), ax
    else:
        raise ResultsError("plot_space: ax must be three-dimensional (projection='3d')")
    table = results.combinations
    columns = {name: _column(results, name) for name in (x, y)}
    points = {name: _coordinates(column) for name, column in columns.items()}
    size, raster = 2.5 * _dot(len(table)), len(table) > 2000
    for label, mask, colour, marker in _hues(_column(results, hue)):
        axes.scatter(
            points[x][mask], points[y][mask], table["mean"].to_numpy()[mask], s=size, color=colour,
            marker=marker, alpha=0.7, lw=0, label=label, rasterized=raster, depthshade=False,
        )  # fmt: skip
    for name, direction in ((x, "x"), (y, "y")):
        if columns[name].dtype != float:
            _word_ticks(axes, direction, list(columns[name].cat.categories))
        elif columns[name].nunique() <= 10 and (columns[name] % 1 == 0).all():
            getattr(axes, f"set_{direction}ticks")(sorted(columns[name].unique()))
    axes.view_init(elev=20, azim=-58)
    axes.set_box_aspect((1.25, 1.25, 0.9), zoom=1.05)
    title = f"{results.estimator}: {results.score} by {hue}"
    _name_axes(axes, xlabel=x, ylabel=y, zlabel=f"mean {results.score}", title=title)
    axes.legend(
        title=_plain(hue), loc="upper center", bbox_to_anchor=(0.52, 0.02), frameon=False,
        ncols=MAX_SHAPES, markerscale=math.sqrt(40 / size), columnspacing=1, handletextpad=0.2,
    )  # fmt: skip
    return figure, axes


def plot_lines(results: Results, x: str, hue: str, *, ax: Axes | None = None) -> Drawn:
    """Mean score over one parameter, one line per value of another, bars over the folds."""
    figure, axes = _axes(ax)
    values = _binned(_column(results, x))
    order = _in_order(values)
    fits = results.fits.assign(value=results.fits["combination"].map(values.astype(object)))
    places = np.asarray(_places(axes, order), dtype=float)
    masks = _hues(_column(results, hue))
    for rank, (label, mask, colour, marker) in enumerate(masks):
        own = fits[fits["combination"].isin(results.combinations.index[mask])]
        per_fold = own.groupby(["value", "fold"])["score"].mean().unstack().reindex(order)
        mean = per_fold.mean(axis=1)
        reach = np.vstack([mean - per_fold.min(axis=1), per_fold.max(axis=1) - mean])
        shift = (rank - (len(masks) - 1) / 2) * 0.02
        moved = places * 10**shift if axes.get_xscale() == "log" else places + shift
        axes.errorbar(
            moved, mean, reach, color=colour, marker=marker, capsize=3, lw=1.5, label=label
        )
    _name_axes(
        axes,
        xlabel=x,
        ylabel=results.score,
        title=f"{results.estimator}: {results.score} by {hue}",
    )
    _legend(axes, title=f"{hue} (bars: folds, low to high)")
    return figure, axes


# --- parts of figures -----------------------------------------------------------


def _axes(
    ax: Axes | None, *, size: tuple[float, float] = SIZE, grid: bool = True
) -> tuple[Figure, Axes]:
    if ax is None:
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        ax = figure.subplots()
    figure = _figure_of(ax)
    if grid:
        ax.grid(color="#dddddd", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def _figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ResultsError("ax: belongs to no figure")
    return figure


def _legend(axes: Axes, title: str | None = None) -> None:
    """Name what is drawn below the axes, where it hides nothing."""
    longest = max(map(len, axes.get_legend_handles_labels()[1]))
    legend = axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False,
        title=title and _plain(title), ncols=max(1, 100 // (longest + 6)),
    )  # fmt: skip
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([36])


def _column(results: Results, name: str) -> pd.Series:
    if name not in results.combinations:
        known = ", ".join(results.parameters)
        raise ResultsError(f"{results.estimator}: no parameter {name!r}; it has {known}")
    return results.combinations[name]


def _in_order(values: pd.Series) -> list[Any]:
    """Distinct values of a parameter, as they stand on an axis."""
    return sorted(values.unique()) if values.dtype == float else list(values.cat.categories)


def _places(axes: Axes, values: Sequence[Any]) -> Sequence[float]:
    """Where values lie on the x axis, set up for numbers or for words."""
    if not all(isinstance(value, float) for value in values):
        _word_ticks(axes, "x", [str(value) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
        return range(len(values))
    if len(values) > 2 and values[0] > 0 and values[-1] / values[0] >= 50 and _is_log(values):
        axes.set_xscale("log")
    elif all(value == int(value) for value in values):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return values


def _is_log(values: Sequence[float]) -> bool:
    """Whether numbers are spaced more evenly on a logarithmic axis than on a plain one."""
    plain, log = np.diff(values), np.diff(np.log(values))
    return bool(log.std() / log.mean() < plain.std() / plain.mean())


def _coordinates(column: pd.Series) -> np.ndarray:
    return (column if column.dtype == float else column.cat.codes).to_numpy(dtype=float)


def _word_ticks(axes: Any, direction: str, labels: list[str], *, most: int = MAX_POINTS) -> None:
    """Name places 0, 1, … on an axis, leaving out names that would run together."""
    step = math.ceil(len(labels) / most)
    cut = [label if len(label) <= 30 else f"{label[:29]}…" for label in labels[::step]]
    slanted = direction == "x" and sum(map(len, cut)) > 60
    style: dict[str, Any] = {"rotation": 25, "ha": "right"} if slanted else {}
    places = range(0, len(labels), step)
    getattr(axes, f"set_{direction}ticks")(places, [_plain(label) for label in cut], **style)


def _name_axes(axes: Axes, **texts: str) -> None:
    axes.set(**{part: _plain(text) for part, text in texts.items()})


def _plain(text: str) -> str:
    """Text as it stands: no dollar starts a formula, no underscore hides it in a legend."""
    return f"{' ' * text.startswith('_')}{text}".replace("$", r"\$")


def _write_cells(
    axes: Axes, cells: np.ma.MaskedArray, colours: Colormap, show: Callable[[float], str]
) -> None:
    low, high = cells.min(), cells.max()
    for (row, column), value in np.ndenumerate(cells.filled(math.nan)):
        if math.isfinite(value):
            ink = _ink(colours((value - low) / max(high - low, 1e-12)))
            axes.text(column, row, show(value), ha="center", va="center", fontsize=8, color=ink)


def _ink(background: Any) -> str:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = background[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _dot(count: int) -> float:
    return float(np.clip(20_000 / max(count, 1), 4, 22))


def _rank(places: np.ndarray, wanted: pd.Series) -> np.ndarray:
    """How many fits were done when each of these was: scores of others do not count."""
    return np.searchsorted(places, wanted.to_numpy(), side="right")


def _hues(column: pd.Series) -> list[tuple[str, np.ndarray, Any, str]]:
    """Label, rows, colour and marker of each value: words distinct, numbers in order."""
    if column.dtype != float:
        names = [name for name in column.cat.categories if (column == name).any()]
        return [
            (
                _plain(name),
                (column == name).to_numpy(),
                PALETTE[k % len(PALETTE)],
                MARKERS[k % MAX_SHAPES],
            )
            for k, name in enumerate(names)
        ]
    if column.nunique() > 10:
        bins = pd.qcut(column, 8, labels=False, duplicates="drop")
        column = column.groupby(bins).transform("median")
    values = sorted(column.unique())
    colours = COLOUR_MAP(np.linspace(0, 0.95, len(values)))
    return [
        (_short(value), (column == value).to_numpy(), colours[k], MARKERS[k % MAX_SHAPES])
        for k, value in enumerate(values)
    ]


# --- which figures ----------------------------------------------------------------


@dataclass(frozen=True)
class Plate:
    """A figure to draw: the ending of its file, what it shows, and how."""

    name: str
    caption: str
    draw: Callable[[], Drawn]


def original_plates(results: Results, kind: str) -> list[Plate]:
    """The original program's figures of an estimator: ``mlp`` or ``ada``.

    Raises
    ------
    ResultsError
        If the estimator has none of the parameters that they show.
    """
    count, size = "hidden_layer_sizes.count", "hidden_layer_sizes.size"
    spaces = {
        "mlp": [
            ("mlp_activation", size, count, "activation"),
            ("mlp_solver", size, count, "solver"),
        ],
        "ada": [("adaboost_depth", "learning_rate", "n_estimators", _depth(results))],
    }[kind]
    plates = [
        Plate(
            name, f"{x} × {y} × {results.score}, by {hue}: each point is a combination.",
            partial(plot_space, results, x, y, hue),
        )
        for name, x, y, hue in spaces
        if {x, y, hue} <= set(results.combinations)
    ]  # fmt: skip
    if kind == "mlp" and {"alpha", "learning_rate"} <= set(results.combinations):
        caption = f"alpha × {results.score}, by learning rate, with the spread over the folds."
        plates.append(
            Plate("mlp_alpha", caption, partial(plot_lines, results, "alpha", "learning_rate"))
        )
    if not plates:
        needed = " or ".join(", ".join(wanted[1:]) for wanted in spaces)
        raise ResultsError(f"{results.estimator}: the {kind} figures need {needed}")
    return plates


def _depth(results: Results) -> str:
    """The parameter with the depth of the trees, where the original had `base_estimator`."""
    names = [str(name) for name in results.combinations]
    named = [name for name in names if name.endswith("max_depth")]
    return (named or ["base_estimator"])[0]


def _original_plates_that_apply(results: Results) -> list[Plate]:
    varied = set(results.parameters)
    plates = []
    if {"hidden_layer_sizes.count", "hidden_layer_sizes.size"} & varied:
        plates += original_plates(results, "mlp")
    if {"learning_rate", "n_estimators"} <= varied and _depth(results) in results.combinations:
        plates += original_plates(results, "ada")
    return plates


def plates_of(results: Results, *, pairs: int = 6) -> list[Plate]:
    """Every figure that the tables of an estimator allow.

    Parameters
    ----------
    results : Results
        Joined tables.
    pairs : int, default=6
        Heat maps to draw at most; pairs of influential parameters come first.
    """
    plates = [
        Plate(
            "progress", "Best score so far, over the fits in log order.",
            partial(plot_progress, results),
        ),
        *(
            Plate(
                f"marginal.{name}",
                f"Effect of {name}: averaged over the other parameters with the spread over the "
                "folds, and the best combination with each value.",
                partial(plot_marginal, results, name),
            )
            for name in results.parameters
        ),
    ]  # fmt: skip
    ranked = sorted(pairs_of(range(len(results.parameters)), 2), key=sum)[:pairs]
    for first, second in ranked:
        x, y = results.parameters[first], results.parameters[second]
        caption = f"{x} and {y} together, averaged over the other parameters; the best is framed."
        plates.append(Plate(f"heatmap.{x}.{y}", caption, partial(plot_heatmap, results, x, y)))
    if (results.complete["seconds"] > 0).any():
        caption = "What a better score costs: prediction time, and the Pareto front."
        plates.append(Plate("cost", caption, partial(plot_cost, results)))
    if results.has_confusion:
        caption = "Confusion matrix of the best combination, summed over the test folds."
        plates.append(Plate("confusion", caption, partial(plot_confusion, results)))
    caption = (
        "The ten best combinations fold by fold: means closer than the folds scatter are a tie."
    )
    plates.append(Plate("folds", caption, partial(plot_folds, results)))
    return plates + _original_plates_that_apply(results)


# --- files ------------------------------------------------------------------------


def render(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a png, svg or pdf file, the same for the same figure."""
    buffer = io.BytesIO()
    dated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with mpl.rc_context({"svg.hashsalt": "anomaly"}):
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=dated)
    return buffer.getvalue()


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that takes its name only once it is whole and on the disk."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@dataclass
class _Album:
    """Figures on their way to files and into the report."""

    folder: Path
    kind: str
    files: list[Path] = field(default_factory=list)

    def add(self, plate: Plate, prefix: str = "") -> str:
        """Draw and write one figure; returns it as HTML."""
        figure, _ = plate.draw()
        content = render(figure, self.kind)
        name = re.sub(r"[^\w.-]", "_", f"{prefix}{plate.name}")
        path = self.folder / f"{name}.{self.kind}"
        _write_whole(path, content)
        self.files.append(path)
        image = content if self.kind == "png" else render(figure, "png")
        return _FIGURE.format(
            caption=html.escape(plate.caption), image=base64.b64encode(image).decode("ascii")
        )


def write_report(
    all_results: Sequence[Results], folder: str | os.PathLike[str], *, kind: str = "png",
    pairs: int = 6,
) -> list[Path]:  # fmt: skip
    """Write every figure, and one HTML page that holds them all.

    Parameters
    ----------
    all_results : sequence of Results
        Estimators of one run.
    folder : str or PathLike
        Where the files go; made if missing.
    kind : {"png", "svg", "pdf"}
        Format of the figure files. The page itself holds them as PNG.
    pairs : int, default=6
        Heat maps per estimator at most.

    Returns
    -------
    list of Path
        Files written, the page last.
    """
    album = _Album(Path(folder), kind)
    album.folder.mkdir(parents=True, exist_ok=True)
    parts = [_summary(all_results)]
    if len(all_results) > 1 and any((r.complete["seconds"] > 0).any() for r in all_results):
        caption = "All estimators: what a better score costs in prediction time."
        parts.append(album.add(Plate("cost", caption, partial(plot_cost, *all_results))))
    for results in all_results:
        parts.append(_section(results))
        parts += [album.add(p, f"{results.estimator}.") for p in plates_of(results, pairs=pairs)]
    run = html.escape(all_results[0].run)
    page = _PAGE.format(run=run, injected=html.escape(INJECTED), body="\n".join(parts))
    path = album.folder / "report.html"
    _write_whole(path, page.encode("utf-8"))
    return [*album.files, path]


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Tuning run {run}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; \
padding: 0 1rem; color: #1a1a1a; background: #fff; }}
table {{ border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child, td.text, th.text {{ text-align: left; }}
figure {{ margin: 1.5rem 0; }}
img {{ max-width: 100%; height: auto; }}
figcaption, .note {{ color: #555; font-size: .9rem; }}
.meaning {{ border-left: 4px solid #D55E00; padding-left: 1rem; }}
</style>
</head>
<body>
<h1>Tuning run {run}</h1>
<p class="meaning">{injected}</p>
{body}
</body>
</html>
"""
_FIGURE = """\
<figure>
<img alt="{caption}" src="data:image/png;base64,{image}">
<figcaption>{caption}</figcaption>
</figure>"""


def _summary(all_results: Sequence[Results]) -> str:
    score = all_results[0].score
    head = ["estimator", "fits", "combinations", "folds", f"best {score}", "sd over folds", "TPR",
            "FPR", "seconds to predict a fold", "best parameters"]  # fmt: skip
    rows = []
    for results in sorted(all_results, key=lambda r: -r.complete["mean"].iloc[0]):
        best = results.complete.iloc[0]
        rows.append([
            results.estimator, f"{len(results.fits):,}", f"{len(results.combinations):,}",
            f"{best['folds']}", f"{best['mean']:.4f}", f"{best['sd']:.4f}", *_rates(results),
            f"{best['seconds']:.2g}" if math.isfinite(best["seconds"]) else "",
            _parameters_text(results, best),
        ])  # fmt: skip
    note = (
        "The best of many combinations is a little too good by the luck of its folds: "
        "judge the chosen one on the held-out half."
    )
    return f'<h2>Best of each estimator</h2>\n{_table(head, rows)}\n<p class="note">{note}</p>'


def _rates(results: Results) -> list[str]:
    """True and false positive rate of the best combination, all folds together."""
    if not results.has_confusion:
        return ["", ""]
    (tn, fp), (fn, tp) = results.confusion_of_best()
    return [f"{hit / max(hit + rest, 1):.4f}" for hit, rest in ((tp, fn), (fp, tn))]


def _section(results: Results) -> str:
    head = ["id", results.score, "sd", "lowest fold", "highest fold", "parameters"]
    rows = [
        [row["id"], *(f"{row[name]:.4f}" for name in ("mean", "sd", "low", "high")),
         _parameters_text(results, row)]
        for _, row in results.complete.head(TOP).iterrows()
    ]  # fmt: skip
    notes = [*results.notes]
    cut_short = len(results.combinations) - len(results.complete)
    if cut_short:
        notes.append(f"{cut_short} combinations lack folds; none of them counts as best.")
    shown = "".join(f'<p class="note">{html.escape(note)}</p>\n' for note in notes)
    return f"<h2>{html.escape(results.estimator)}</h2>\n{shown}{_table(head, rows)}"


def _parameters_text(results: Results, row: pd.Series) -> str:
    return ", ".join(f"{name}={_label(row[name])}" for name in results.parameters)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        last = len(cells) - 1
        return "".join(
            f"<{tag}{' class=text' if k == last else ''}>{html.escape(str(cell))}</{tag}>"
            for k, cell in enumerate(cells)
        )

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table>\n<tr>{line(head, 'th')}</tr>\n{body}\n</table>"


# --- command line -----------------------------------------------------------------

_EPILOG = """\
Give the scores of a run, then the parameters of one or more of its estimators.
For each estimator are drawn, from whatever parameters it has:

  progress    best score so far, over the fits
  marginal    effect of each parameter, with the spread over the folds
  heatmap     pairs of parameters, the influential ones first
  cost        score against prediction time, with the Pareto front
  confusion   the best combination's confusion matrix
  folds       the ten best combinations, fold by fold

and, where the parameters are there, the original program's: layer size × layer
count × F1 by activation and by solver, alpha × F1 by learning rate, learning
rate × n_estimators × F1 by depth. report.html holds them all in one file.

examples:
  python beautify.py params/demo.out
  python process_output.py params/demo.scores.csv params/demo.params.*.csv
  python process_output.py params/demo.scores.csv \\
      params/demo.params.AdaBoostClassifier.csv --out plots --format svg

The original program's order of arguments draws its figures alone, into the
current folder: mlp_activation, mlp_solver and mlp_alpha, or adaboost_depth.

  python process_output.py mlp RUN.scores.csv RUN.params.MLPClassifier.csv
  python process_output.py ada RUN.scores.csv RUN.params.AdaBoostClassifier.csv
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="process_output.py",
        usage="process_output.py [mlp|ada] RUN.scores.csv RUN.params.CLASS.csv ... [options]",
        description="Plot the tables of a tuning run and write one report of it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="scores, then parameters")
    parser.add_argument(
        "--out", metavar="DIR", help="folder to write to (RUN.plots by the scores)"
    )
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the figures (png)")
    parser.add_argument(
        "--score", default="F1", help="column of the scores to plot, more is better (F1)"
    )
    parser.add_argument(
        "--pairs", type=int, default=6, metavar="N", help="heat maps per estimator at most (6)"
    )
    return parser


def _run(options: argparse.Namespace) -> list[Path]:
    kind = options.files[0] if options.files[0] in ("mlp", "ada") else None
    scores, *params = options.files[1:] if kind else options.files or [""]
    if not params or (kind and len(params) > 1):
        raise ResultsError("expected RUN.scores.csv and then RUN.params.CLASS.csv (see --help)")
    all_results = [read_results(scores, path, score=options.score) for path in params]
    if not kind:
        run = all_results[0].run
        folder = Path(options.out) if options.out else Path(scores).with_name(f"{run}.plots")
        return write_report(all_results, folder, kind=options.format, pairs=options.pairs)
    album = _Album(Path(options.out or "."), options.format)
    album.folder.mkdir(parents=True, exist_ok=True)
    for plate in original_plates(all_results[0], kind):
        album.add(plate)
    return album.files


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        files = _run(options)
    except OSError as error:
        print(f"process_output.py: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except ResultsError as error:
        print(f"process_output.py: error: {error}", file=sys.stderr)
        return 2
    for path in files:
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
