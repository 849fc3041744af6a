"""process_output.py: tables of a run become figures and one report."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import make_moons
from sklearn.ensemble import AdaBoostClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier

import beautify
import process_output
from anomaly.tuning import tune

ROOT = Path(__file__).resolve().parent.parent
TREE = "sklearn.tree.DecisionTreeClassifier"


def fits():
    """(class, its parameters, classifier) of every candidate, as a tuning run has them."""
    for depth, rate, count in itertools.product((1, 2), (0.1, 0.5), (1, 3, 5)):
        tree = DecisionTreeClassifier(max_depth=depth)
        yield (
            "AdaBoostClassifier",
            {"estimator": f"{TREE}(max_depth={depth})", "learning_rate": rate,
             "n_estimators": count},
            AdaBoostClassifier(tree, learning_rate=rate, n_estimators=count, random_state=0),
        )  # fmt: skip
    layers, functions, solvers = ((), (4,), (4, 4), (8,)), ("relu", "tanh"), ("lbfgs", "adam")
    for sizes, function, solver, (alpha, rate) in itertools.product(
        layers, functions, solvers, ((1e-4, "constant"), (1e-5, "constant"), (1e-5, "adaptive"))
    ):
        params = {
            "activation": function, "alpha": alpha, "hidden_layer_sizes": sizes,
            "learning_rate": rate, "solver": solver,
        }  # fmt: skip
        yield "MLPClassifier", params, MLPClassifier(max_iter=5, random_state=0, **params)
    for neighbours, weights in itertools.product((1, 5, 9), ("uniform", "distance")):
        params = {"n_neighbors": neighbours, "weights": weights}
        yield "KNeighborsClassifier", params, KNeighborsClassifier(**params)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """Tables of real fits of three families on two folds."""
    folder = tmp_path_factory.mktemp("run")
    X, y = make_moons(120, noise=0.3, random_state=0)
    folds = list(StratifiedKFold(2, shuffle=True, random_state=0).split(X, y))
    scores, params = [], {}
    for number, (name, values, classifier) in enumerate(fits()):
        params.setdefault(name, []).append({"id": number, **values})
        for fold, (train, test) in enumerate(folds):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier.fit(X[train], y[train])
            matrix = confusion_matrix(y[test], classifier.predict(X[test]))
            tn, fp, fn, tp = (int(count) for count in matrix.ravel())
            f1 = 2 * tp / max(2 * tp + fp + fn, 1)
            scores.append(
                {"id": number, "fold": fold, "split": "test", "tn": tn, "fp": fp, "fn": fn,
                 "tp": tp, "F1": f1, "predict_seconds": 1e-4 * (1 + number % 7)}
            )  # fmt: skip
    pd.DataFrame(scores).to_csv(folder / "demo.scores.csv", sep=";", index=False)
    for name, table in params.items():
        path = folder / f"demo.params.{name}.csv"
        pd.DataFrame(table).to_csv(path, sep=";", index=False)
    return folder


def read(folder, name, **options):
    return process_output.read_results(
        folder / "demo.scores.csv", folder / f"demo.params.{name}.csv", **options
    )


@pytest.fixture(scope="session")
def boosting(run_folder):
    return read(run_folder, "AdaBoostClassifier")


@pytest.fixture(scope="session")
def perceptron(run_folder):
    return read(run_folder, "MLPClassifier")


def tables(folder, scores, params, name="X"):
    """Results of two small tables given as text."""
    (folder / "run.scores.csv").write_text(scores)
    (folder / f"run.params.{name}.csv").write_text(params)
    return process_output.read_results(
        folder / "run.scores.csv", folder / f"run.params.{name}.csv"
    )


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "process_output.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


# --- reading ----------------------------------------------------------------------


def test_scores_and_parameters_are_joined_by_id(run_folder, boosting):
    scores = pd.read_csv(run_folder / "demo.scores.csv", sep=";")
    params = pd.read_csv(run_folder / "demo.params.AdaBoostClassifier.csv", sep=";")
    assert len(boosting.combinations) == len(params) == 12
    for _, row in boosting.combinations.iterrows():
        own = scores[scores["id"] == int(row["id"])]["F1"]
        assert row["mean"] == pytest.approx(own.mean())
        assert row["sd"] == pytest.approx(own.std(ddof=0))
        assert (row["low"], row["high"], row["folds"]) == (own.min(), own.max(), 2)


def test_nested_estimator_is_opened_into_its_parameters(boosting):
    assert sorted(boosting.parameters) == ["estimator__max_depth", "learning_rate", "n_estimators"]
    assert set(boosting.combinations["estimator__max_depth"]) == {1.0, 2.0}


def test_equal_layers_become_a_count_and_a_size(perceptron):
    table = perceptron.combinations
    sizes, counts = table["hidden_layer_sizes.size"], table["hidden_layer_sizes.count"]
    assert set(zip(sizes, counts, strict=True)) == {(0, 0), (4, 1), (4, 2), (8, 1)}
    assert "hidden_layer_sizes" not in table


def test_unequal_layers_also_stay_as_they_are(tmp_path):
    scores = "id;fold;split;F1\n0;0;test;0.5\n1;0;test;0.6\n"
    results = tables(tmp_path, scores, "id;sizes\n0;(9, 3)\n1;[9, 9]\n")
    assert list(results.combinations["sizes"]) == ["(9, 3)", "[9, 9]"]


def test_parameters_come_in_order_of_influence(tmp_path):
    scores = "id;fold;split;F1\n" + "".join(
        f"{i};0;test;{0.1 * (i // 2) + 0.01 * (i % 2)}\n" for i in range(6)
    )
    params = "id;weak;strong\n" + "".join(f"{i};{i % 2};{i // 2}\n" for i in range(6))
    assert tables(tmp_path, scores, params).parameters == ["strong", "weak"]


def test_values_that_are_not_all_numbers_are_labels_with_none_last(tmp_path):
    scores = "id;fold;split;F1\n" + "".join(f"{i};0;test;0.{i + 1}\n" for i in range(5))
    params = "id;p\n0;\n1;10\n2;auto\n3;9\n4;nan\n"
    column = tables(tmp_path, scores, params).combinations["p"]
    assert list(column.cat.categories) == ["9", "10", "auto", "nan", "None"]


def test_training_scores_and_failed_fits_are_left_out_and_noted(tmp_path):
    scores = (
        "id;fold;split;F1;failed\n0;0;test;0.5;\n0;0;train;0.9;\n"
        "1;0;test;nan;did not converge\n1;1;test;0.4;\n"
    )
    results = tables(tmp_path, scores, "id;p\n0;1\n1;2\n")
    assert list(results.fits["score"]) == [0.5, 0.4]
    assert results.notes == [
        "1 scores on training data are left out.",
        "1 fits without a F1 (failed ones) are left out.",
    ]


def test_a_combination_that_lacks_folds_is_never_the_best(tmp_path):
    scores = "id;fold;split;F1\n0;0;test;0.5\n0;1;test;0.5\n1;0;test;0.9\n"
    results = tables(tmp_path, scores, "id;p\n0;1\n1;2\n")
    assert list(results.complete["id"]) == ["0"]
    assert "lack folds" in process_output._section(results)


@pytest.mark.parametrize("whole", ["", "80"])
def test_scores_of_fits_on_fewer_rows_are_left_out_and_noted(tmp_path, whole):
    scores = f"id;fold;split;F1;samples\n0;0;test;0.9;20\n1;0;test;0.5;20\n1;0;test;0.7;{whole}\n"
    results = tables(tmp_path, scores, "id;p\n0;1\n1;2\n")
    assert list(results.fits["score"]) == [0.7]
    assert results.notes[0].startswith("2 scores after fits on fewer rows")


def test_log_of_a_tuning_run_becomes_tables_and_a_best(tmp_path):
    X, y = make_moons(80, noise=0.3, random_state=0)
    trees = [DecisionTreeClassifier(max_depth=depth) for depth in (1, 2)]
    grid = {"estimator": trees, "learning_rate": [np.float64(0.1), 0.5], "n_estimators": [1, 3]}
    found = tune(AdaBoostClassifier(random_state=0), grid, X, y, cv=2, log=tmp_path / "run")
    (log,) = (tmp_path / "run").glob("*.out.tmp")
    report = beautify.tabulate(log)
    assert (report.entries, report.combinations, report.rejected) == (16, 8, 0)
    _, scores, params = report.files
    results = process_output.read_results(scores, params)
    best = results.complete.iloc[0]
    assert best["mean"] == pytest.approx(found.best_score_)
    assert best["estimator__max_depth"] == found.best_params_["estimator"].max_depth


ORIGINAL_SCORES = "id;tpr;fpr;f1;t\n" + "".join(
    f"{i};0.5;0.1;{0.3 + 0.05 * i};{0.001 * (i + 1)}\n" for i in range(8)
)


def test_repeated_lines_of_the_original_are_one_combination(tmp_path):
    params = "id;alpha;learning_rate\n" + "".join(
        f"{i};{10.0 ** -(4 + i // 4)};{'constant' if i % 4 < 2 else 'adaptive'}\n"
        for i in range(8)
    )
    results = tables(tmp_path, ORIGINAL_SCORES, params, "MLPClassifier")
    assert len(results.combinations) == 4
    assert list(results.combinations["folds"]) == [2] * 4
    assert list(results.combinations["mean"]) == pytest.approx([0.325, 0.425, 0.525, 0.625])
    assert "original program logged both alike" in results.notes[0]
    assert not results.has_confusion


def test_a_candidate_listed_twice_does_not_pass_for_more_folds(tmp_path):
    # Two lines are usual; the first candidate stands in the grid twice.
    params = "id;p\n" + "".join(f"{i};{max(0, i // 2 - 1)}\n" for i in range(8))
    results = tables(tmp_path, ORIGINAL_SCORES, params)
    assert list(results.complete["folds"]) == [2, 2, 2]
    assert results.complete["id"].iloc[0] == "6"
    assert set(results.fits["fold"]) == {0, 1}


def test_a_fit_logged_twice_does_not_pass_for_another_fold(tmp_path):
    scores = "id;fold;split;F1\n0;0;test;0.9\n0;0;test;0.9\n1;0;test;0.5\n1;1;test;0.5\n"
    assert list(tables(tmp_path, scores, "id;p\n0;1\n1;2\n").complete["id"]) == ["1"]


def test_both_names_of_a_tree_are_one_parameter(tmp_path):
    rows = "".join(
        f"{i};DecisionTreeClassifier(max_depth={i + 1});DecisionTreeClassifier(max_depth={i + 1})"
        f";{i + 1}\n"
        for i in range(8)
    )
    head = "id;base_estimator;estimator;estimator__max_depth\n"
    results = tables(tmp_path, ORIGINAL_SCORES, head + rows)
    assert len(results.parameters) == 1


def test_depth_alone_in_base_estimator_is_the_depth(tmp_path):
    params = "id;base_estimator;learning_rate;n_estimators\n" + "".join(
        f"{i};{2 + i % 2};0.{1 + i // 4};{1 + i % 4}\n" for i in range(8)
    )
    results = tables(tmp_path, ORIGINAL_SCORES, params, "AdaBoostClassifier")
    (plate,) = process_output.original_plates(results, "ada")
    assert plate.name == "adaboost_depth"
    assert plate.draw()[1].get_legend().get_title().get_text() == "base_estimator"


def test_estimator_without_parameters_has_its_other_figures(tmp_path):
    results = tables(tmp_path, "id;fold;split;F1\n0;0;test;0.5\n0;1;test;0.6\n", "id\n0\n")
    plates = process_output.plates_of(results)
    assert [plate.name for plate in plates] == ["progress", "folds"]
    for plate in plates:
        plate.draw()


def test_another_score_can_be_plotted_in_any_case(run_folder):
    assert read(run_folder, "AdaBoostClassifier", score="tp").score == "tp"
    with pytest.raises(process_output.ResultsError, match="of which more is better, found 'fpr'"):
        read(run_folder, "AdaBoostClassifier", score="fpr")


# --- figures against slow twins ------------------------------------------------------


def test_marginal_is_the_mean_over_the_others_with_the_folds_as_band(boosting):
    _, axes = process_output.plot_marginal(boosting, "n_estimators")
    mean, best = (line for line in axes.get_lines() if len(line.get_xdata()) == 3)
    band = axes.collections[0].get_paths()[0].vertices
    table, fits = boosting.combinations, boosting.fits
    for place, value in enumerate((1, 3, 5)):
        own = table[table["n_estimators"] == value]
        scored = fits[fits["combination"].isin(own.index)]
        folds = [scored[scored["fold"] == fold]["score"].mean() for fold in (0, 1)]
        assert mean.get_ydata()[place] == pytest.approx(np.mean(folds))
        assert best.get_ydata()[place] == pytest.approx(own["mean"].max())
        heights = band[band[:, 0] == value][:, 1]
        assert (min(heights), max(heights)) == pytest.approx((min(folds), max(folds)))


def test_heat_map_cells_are_means_over_the_others(boosting):
    _, axes = process_output.plot_heatmap(boosting, "n_estimators", "estimator__max_depth")
    cells = axes.get_images()[0].get_array()
    table = boosting.combinations
    for row, depth in enumerate((1, 2)):
        for column, count in enumerate((1, 3, 5)):
            own = table[
                (table["estimator__max_depth"] == depth) & (table["n_estimators"] == count)
            ]
            assert cells[row, column] == pytest.approx(own["mean"].mean())


def test_best_so_far_never_falls_and_ends_at_the_best(boosting):
    _, axes = process_output.plot_progress(boosting)
    (line,) = axes.get_lines()
    best, expected = -math.inf, []
    for _, row in boosting.combinations.sort_values("place").iterrows():
        best = max(best, row["mean"])
        expected.append(best)
    assert list(line.get_ydata())[:-1] == pytest.approx(expected)
    assert line.get_ydata()[-1] == boosting.complete["mean"].iloc[0]


points = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=30)


@given(points)
def test_pareto_front_is_what_nothing_dominates(pairs):
    table = pd.DataFrame(pairs, columns=["seconds", "mean"], dtype=float)
    front = process_output.pareto_front(table)
    undominated = {
        (s, m)
        for s, m in pairs
        if not any((t <= s and n >= m) and (t, n) != (s, m) for t, n in pairs)
    }
    assert set(front.itertuples(index=False, name=None)) == undominated


def test_confusion_of_the_best_is_the_sum_over_its_folds(run_folder, boosting):
    _, axes = process_output.plot_confusion(boosting)
    scores = pd.read_csv(run_folder / "demo.scores.csv", sep=";")
    own = scores[scores["id"] == int(boosting.complete["id"].iloc[0])]
    shown = [int(text.get_text().split("\n")[0]) for text in axes.texts]
    assert shown == [own[name].sum() for name in ("tn", "fp", "fn", "tp")]


def test_fold_figure_shows_ten_best_in_order(boosting):
    _, axes = process_output.plot_folds(boosting)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f"id {name}" for name in boosting.complete["id"].head(10)]


def test_three_dimensional_figure_shows_every_combination_once(perceptron):
    _, axes = process_output.plot_space(
        perceptron, "hidden_layer_sizes.size", "hidden_layer_sizes.count", "activation"
    )
    shown = sum(len(collection._offsets3d[2]) for collection in axes.collections)
    assert shown == len(perceptron.combinations)
    assert axes.get_zlabel() == "mean F1"


def test_many_values_are_binned_so_that_the_axes_stay_readable(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.uniform(size=(400, 2))
    scores = "id;fold;split;F1\n" + "".join(f"{i};0;test;{v[0]}\n" for i, v in enumerate(values))
    params = "id;p;q\n" + "".join(f"{i};{v[0]};{v[1]}\n" for i, v in enumerate(values))
    results = tables(tmp_path, scores, params)
    _, axes = process_output.plot_heatmap(results, "p", "q")
    assert axes.get_images()[0].get_array().shape == (20, 20)
    assert len(axes.get_xticks()) <= 12
    for plate in process_output.plates_of(results):
        plate.draw()


# --- manners of the figures -----------------------------------------------------------

PLOTS = {
    "marginal of numbers": lambda r, **ax: process_output.plot_marginal(r, "alpha", **ax),
    "marginal of words": lambda r, **ax: process_output.plot_marginal(r, "solver", **ax),
    "heatmap": lambda r, **ax: process_output.plot_heatmap(r, "alpha", "solver", **ax),
    "progress": process_output.plot_progress,
    "cost": process_output.plot_cost,
    "confusion": process_output.plot_confusion,
    "folds": process_output.plot_folds,
    "lines": lambda r, **ax: process_output.plot_lines(r, "alpha", "learning_rate", **ax),
}


@pytest.mark.parametrize("plot", PLOTS.values(), ids=PLOTS)
def test_plots_return_figure_and_axes_and_draw_where_told(perceptron, plot):
    before = dict(mpl.rcParams)
    figure, axes = plot(perceptron)
    assert isinstance(figure, Figure)
    assert isinstance(axes, Axes)
    own = Figure()
    left, right = own.subplots(1, 2)
    assert plot(perceptron, ax=right) == (own, right)
    assert not left.has_data()
    assert dict(mpl.rcParams) == before


def test_three_dimensional_plot_draws_where_told_and_refuses_flat_axes(boosting):
    names = ("learning_rate", "n_estimators", "estimator__max_depth")
    own = Figure()
    axes = own.add_subplot(projection="3d")
    assert process_output.plot_space(boosting, *names, ax=axes) == (own, axes)
    with pytest.raises(process_output.ResultsError, match="must be three-dimensional"):
        process_output.plot_space(boosting, *names, ax=own.add_subplot())


def test_unknown_parameter_is_named_with_the_known_ones(boosting):
    with pytest.raises(process_output.ResultsError, match=r"no parameter 'depth'; it has .*rate"):
        process_output.plot_marginal(boosting, "depth")


def test_the_script_never_imports_pyplot():
    code = "import sys, process_output; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_rendering_is_deterministic_in_every_format(boosting, kind, magic):
    first, second = (
        process_output.render(process_output.plot_progress(boosting)[0], kind) for _ in range(2)
    )
    assert first == second
    assert first.startswith(magic)


def test_figures_are_a_thousand_pixels_wide(boosting):
    image = process_output.render(process_output.plot_progress(boosting)[0], "png")
    assert int.from_bytes(image[16:20], "big") == 1000


# --- report and command --------------------------------------------------------------


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.tags = [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [v for k, v in attributes if k in ("src", "href", "data", "srcset")]


@pytest.fixture(scope="session")
def report(run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    params = sorted(run_folder.glob("demo.params.*.csv"))
    done = run(run_folder / "demo.scores.csv", *params, "--out", out)
    assert done.returncode == 0, done.stderr
    return done, out


def test_command_writes_a_figure_for_everything_of_every_estimator(report):
    done, out = report
    names = {path.name for path in out.iterdir()}
    assert [f"wrote {out / name}" for name in sorted(names)] == sorted(done.stdout.splitlines())
    for estimator in ("AdaBoostClassifier", "KNeighborsClassifier", "MLPClassifier"):
        for figure in ("progress", "cost", "confusion", "folds"):
            assert f"{estimator}.{figure}.png" in names
    assert {
        "cost.png",
        "report.html",
        "AdaBoostClassifier.marginal.learning_rate.png",
        "AdaBoostClassifier.heatmap.learning_rate.n_estimators.png",
        "AdaBoostClassifier.adaboost_depth.png",
        "MLPClassifier.mlp_activation.png",
        "MLPClassifier.mlp_solver.png",
        "MLPClassifier.mlp_alpha.png",
    } <= names | {name.replace("n_estimators.learning_rate", "learning_rate.n_estimators")
                  for name in names}  # fmt: skip


def test_report_is_one_file_that_needs_no_network(report):
    _, out = report
    page = (out / "report.html").read_text(encoding="utf-8")
    links = _Links()
    links.feed(page)
    assert links.sources
    assert all(source.startswith("data:image/png;base64,") for source in links.sources)
    assert not links.tags & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?://|url\(|@import", page)
    assert len(links.sources) == len(list(out.glob("*.png")))


def test_report_says_what_a_score_on_injected_labels_means(report):
    page = (report[1] / "report.html").read_text(encoding="utf-8")
    assert process_output.INJECTED in page
    for words in ("how well this kind of injected point", "little about real anomalies", "0.11"):
        assert words in process_output.INJECTED


def test_report_names_the_best_of_each_estimator(report, boosting):
    page = (report[1] / "report.html").read_text(encoding="utf-8")
    best = boosting.complete.iloc[0]
    row = next(line for line in page.splitlines() if "<tr><td>AdaBoostClassifier" in line)
    assert f"<td>{best['mean']:.4f}</td><td>{best['sd']:.4f}</td>" in row
    assert f"n_estimators={best['n_estimators']:.0f}" in row


def test_names_from_the_tables_are_escaped_in_the_report(tmp_path):
    scores = "id;fold;split;F1\n0;0;test;0.5\n1;0;test;0.6\n"
    results = tables(tmp_path, scores, "id;<b>/../p;_$\n0;<script>;1\n1;$x_{y$;2\n")
    files = process_output.write_report([results], tmp_path / "out")
    assert {path.parent for path in files} == {tmp_path / "out"}
    page = files[-1].read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_other_formats_keep_the_report_whole(run_folder, tmp_path, kind):
    scores = str(run_folder / "demo.scores.csv")
    params = str(run_folder / "demo.params.KNeighborsClassifier.csv")
    options = ["--format", kind, "--out", str(tmp_path), "--pairs", "0"]
    assert process_output.main([scores, params, *options]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {f".{kind}", ".html"}
    assert not list(tmp_path.glob("*heatmap*"))
    assert "data:image/png" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_a_folder_the_figures_lie_beside_the_scores(run_folder, tmp_path, monkeypatch):
    for path in run_folder.glob("demo.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    params = "demo.params.KNeighborsClassifier.csv"
    assert process_output.main(["demo.scores.csv", params]) == 0
    assert (tmp_path / "demo.plots" / "report.html").exists()


@pytest.mark.parametrize(
    ("kind", "name", "files"),
    [
        ("mlp", "MLPClassifier", ["mlp_activation.png", "mlp_alpha.png", "mlp_solver.png"]),
        ("ada", "AdaBoostClassifier", ["adaboost_depth.png"]),
    ],
)
def test_original_order_of_arguments_draws_here(
    run_folder, tmp_path, monkeypatch, kind, name, files
):
    scores, params = run_folder / "demo.scores.csv", run_folder / f"demo.params.{name}.csv"
    monkeypatch.chdir(tmp_path)
    assert process_output.main([kind, str(scores), str(params)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_a_failed_write_leaves_the_old_figure(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def refuse(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(process_output.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        process_output._write_whole(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"old"


def test_command_says_in_one_line_what_is_wrong(run_folder, tmp_path, capsys):
    scores, params = run_folder / "demo.scores.csv", run_folder / "demo.params.MLPClassifier.csv"
    other = tmp_path / "other.params.X.csv"
    other.write_text("id;p\n999;1\n")
    empty, binary = tmp_path / "empty.csv", tmp_path / "binary.csv"
    empty.write_text("")
    binary.write_bytes(b"\xff\xfe\0")
    wrong = {
        "No such file or directory": [tmp_path / "none", params],
        "are the two files swapped?": [params, scores],
        "shares no id with": [scores, other],
        "not a table": [scores, empty],
        "not a table (": [scores, binary],
        "expected RUN.scores.csv and then RUN.params.CLASS.csv": [scores],
        "the ada figures need": ["ada", scores, params],
        "no column 'accuracy'; it has id, fold": [scores, params, "--score", "accuracy"],
    }
    for message, arguments in wrong.items():
        assert process_output.main([str(argument) for argument in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("process_output.py: error: ")
        assert message in line


def test_help_teaches_the_figures_with_examples():
    done = run("--help")
    assert done.returncode == 0
    for text in ("marginal", "Pareto", "examples:", "mlp RUN.scores.csv", "report.html"):
        assert text in done.stdout
