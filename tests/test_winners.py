"""``parameters.py evaluate``: the winners of a run, judged and exported."""

from __future__ import annotations

import json
import pickle

import pytest

import parameters
from tests.test_detector import records

GRID = """
[knn]
n_neighbors = [1, 3]
[logistic_regression]
C = [1.0]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("params")
    records(200).to_csv(folder / "table.csv", index=False)
    (folder / "grid.toml").write_text(GRID, encoding="utf-8")
    given = ["--data", str(folder / "table.csv"), "--inject", "80", "--cv", "3", "--run", "first"]
    chosen = ["--classifier", "knn", "--classifier", "logistic_regression"]
    grid = ["--grid", str(folder / "grid.toml"), "--folder", str(folder)]
    assert parameters.main([*given, *chosen, *grid]) == 0
    return folder


def test_winners_are_judged_on_the_held_out_half_and_stored(run, capsys):
    assert parameters.main(["evaluate", "first", "--folder", str(run)]) == 0
    assert "held-out" in capsys.readouterr().out
    stored = json.loads((run / "first" / "evaluation.json").read_text(encoding="utf-8"))
    assert [entry["classifier"] for entry in stored] == ["knn", "logistic_regression"]
    scores = [entry["cross_validated"] for entry in stored]
    assert scores == sorted(scores, reverse=True)
    (tn, fp), (fn, tp) = stored[0]["matrix"]
    assert stored[0]["held_out"]["F1"] == 2 * tp / (2 * tp + fp + fn)
    assert tn + fp + fn + tp == sum(row["rows"] for row in stored[0]["by_type"])


def test_evaluation_fits_nothing_that_the_log_holds(run):
    lines = (run / "first.out").read_bytes()
    assert parameters.main(["evaluate", "first", "--folder", str(run)]) == 0
    assert (run / "first.out").read_bytes() == lines
    assert list((run / "first").glob("*.out.tmp")) == []


def test_the_best_winner_is_exported_and_plotted(run):
    clf, picture = run / "best.clf", run / "best.svg"
    command = ["evaluate", "first", "--folder", str(run), "--export", str(clf)]
    assert parameters.main([*command, "--plot", str(picture)]) == 0
    with open(clf, "rb") as file:
        fun = pickle.load(file)
    assert fun("human", 4500.0, 1800.0)
    assert not fun("car", 4500.0, 1800.0)
    assert "<svg" in picture.read_text(encoding="utf-8")


def test_unknown_run_is_named_without_a_traceback(run, capsys):
    assert parameters.main(["evaluate", "frist", "--folder", str(run)]) == 2
    assert "did you mean 'first'?" in capsys.readouterr().err


def test_unknown_format_of_a_plot_is_named(run, capsys):
    given = ["evaluate", "first", "--folder", str(run), "--plot", str(run / "best.docx")]
    assert parameters.main(given) == 2
    assert "'docx'" in capsys.readouterr().err
    assert not (run / "best.docx").exists()
