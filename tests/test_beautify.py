"""beautify.py: logs of this program and of the original become tables."""

from __future__ import annotations

import ast
import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import make_classification
from sklearn.ensemble import AdaBoostClassifier
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import ParameterGrid, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

import beautify

ROOT = Path(__file__).resolve().parent.parent

# A fit as the original program logged it, here with the estimator wrapped over
# lines as scikit-learn prints it when it is nested.
WRAPPED = """\
{'algorithm': 'SAMME.R', 'base_estimator': DecisionTreeClassifier(class_weight=None, \
criterion='gini', max_depth=4,
            max_features=None, max_leaf_nodes=None,
            min_impurity_split=None, splitter='best'), 'learning_rate': 0.6000000000000001, \
'n_estimators': 56, 'random_state': None, 'estimator': 'AdaBoostClassifier'}\t\
{'tpr': 0.9, 'fpr': 0.0, 'ppv': nan, 'f1': 0.9, 't': 0.003}
"""
PLAIN = (
    "{'activation': 'tanh', 'alpha': 1e-05, 'hidden_layer_sizes': [3, 3, 3], 'solver': 'lbfgs', "
    "'estimator': 'MLPClassifier'}\t{'tpr': 0.5, 'fpr': 0.1, 'f1': 0.4, 't': 0.002}\n"
)


def call_text(value) -> str:
    """A value as the house logs it: estimators as a call on their public path."""
    if isinstance(value, DecisionTreeClassifier):
        return f"sklearn.tree.DecisionTreeClassifier(max_depth={value.max_depth})"
    return repr(value)


def fit_line(estimator, path, params, fold, X, y, train, test) -> str:
    predicted = estimator.set_params(**params).fit(X[train], y[train]).predict(X[test])
    tn, fp, fn, tp = (int(n) for n in confusion_matrix(y[test], predicted).ravel())
    scores = {
        "estimator": path, "fold": fold, "split": "test", "seed": 0,
        "tn": tn, "fp": fp, "fn": fn, "tp": tp,
        "TPR": tp / (tp + fn), "FPR": fp / (fp + tn), "F1": 2 * tp / (2 * tp + fp + fn),
        "fit_seconds": 0.01, "predict_seconds": 0.001,
    }  # fmt: skip
    inner = ", ".join(f"{key!r}: {call_text(value)}" for key, value in params.items())
    return f"{{{inner}}}\t{scores!r}\n"


@pytest.fixture(scope="session")
def lines():
    """Log lines of real fits of two families, fold by fold."""
    X, y = make_classification(n_samples=200, weights=[0.8], random_state=0)
    folds = list(StratifiedKFold(2).split(X, y))
    grids = [
        (
            AdaBoostClassifier(random_state=0),
            "sklearn.ensemble.AdaBoostClassifier",
            {
                "estimator": [DecisionTreeClassifier(max_depth=d) for d in (1, 2)],
                "learning_rate": [np.float64(0.1), 0.5],
            },
        ),
        (
            KNeighborsClassifier(),
            "sklearn.neighbors.KNeighborsClassifier",
            {"n_neighbors": [1, 3], "metric_params": [None]},
        ),
    ]
    return [
        fit_line(estimator, path, params, fold, X, y, *halves)
        for fold, halves in enumerate(folds)
        for estimator, path, grid in grids
        for params in ParameterGrid(grid)
    ]


@pytest.fixture
def log(tmp_path, lines):
    path = tmp_path / "demo.out"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=";"))


def strict_json(path: Path):
    def refuse(name):
        raise AssertionError(f"bare {name} in JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "beautify.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# --- tables of a run ----------------------------------------------------------


def test_json_lists_are_parallel_and_in_log_order(log, lines):
    beautify.tabulate(log)
    data = strict_json(log.with_suffix(".json"))
    assert list(data) == ["params", "scores"]
    assert len(data["params"]) == len(data["scores"]) == len(lines)
    assert data["scores"] == [ast.literal_eval(line.split("\t")[1]) for line in lines]
    assert data["params"][0] == {
        "estimator": "sklearn.tree.DecisionTreeClassifier(max_depth=1)",
        "learning_rate": 0.1,
    }


def test_scores_start_with_id_fold_split_and_keep_every_score(log, lines):
    beautify.tabulate(log)
    table = rows(log.with_suffix(".scores.csv"))
    logged = [ast.literal_eval(line.split("\t")[1]) for line in lines]
    assert list(table[0])[:3] == ["id", "fold", "split"]
    assert set(table[0]) == {"id", *logged[0]}
    for row, scores in zip(table, logged, strict=True):
        assert {key: row[key] for key in scores} == {key: str(v) for key, v in scores.items()}


def test_id_is_the_parameter_combination_numbered_by_first_appearance(log, lines):
    report = beautify.tabulate(log)
    ids = [int(row["id"]) for row in rows(log.with_suffix(".scores.csv"))]
    assert ids == [*range(6), *range(6)]
    assert (report.entries, report.combinations, report.estimators) == (12, 6, 2)


def test_params_hold_one_row_per_id_and_one_column_per_parameter(log):
    beautify.tabulate(log)
    boosting = log.with_name("demo.params.AdaBoostClassifier.csv")
    neighbours = log.with_name("demo.params.KNeighborsClassifier.csv")
    assert boosting.read_text().splitlines() == [
        "id;estimator;learning_rate",
        "0;sklearn.tree.DecisionTreeClassifier(max_depth=1);0.1",
        "1;sklearn.tree.DecisionTreeClassifier(max_depth=1);0.5",
        "2;sklearn.tree.DecisionTreeClassifier(max_depth=2);0.1",
        "3;sklearn.tree.DecisionTreeClassifier(max_depth=2);0.5",
    ]
    assert rows(neighbours) == [
        {"id": "4", "metric_params": "", "n_neighbors": "1"},
        {"id": "5", "metric_params": "", "n_neighbors": "3"},
    ]


def test_order_of_keys_does_not_make_a_new_combination(tmp_path):
    log = tmp_path / "run.out"
    scores = "{'estimator': 'a.B', 'fold': %d}"
    log.write_text(f"{{'p': 1, 'q': 2}}\t{scores % 0}\n{{'q': 2, 'p': 1}}\t{scores % 1}\n")
    assert beautify.tabulate(log).combinations == 1


def test_values_of_another_type_make_a_new_combination(tmp_path):
    log = tmp_path / "run.out"
    for value in ("1", "1.0", "True", "'1'", "(1,)", "[1]"):
        with open(log, "a") as file:
            file.write(f"{{'p': {value}}}\t{{'estimator': 'a.B', 'fold': 0}}\n")
    assert beautify.tabulate(log).combinations == 6


def test_same_parameters_of_two_classes_are_two_combinations(tmp_path):
    log = tmp_path / "run.out"
    log.write_text(
        "{'C': 1}\t{'estimator': 'one.SVC', 'fold': 0}\n"
        "{'C': 1}\t{'estimator': 'two.SVC', 'fold': 0}\n"
    )
    beautify.tabulate(log)
    names = sorted(path.name for path in tmp_path.glob("*.params.*"))
    assert names == ["run.params.one.SVC.csv", "run.params.two.SVC.csv"]


def test_late_columns_leave_earlier_rows_empty(tmp_path):
    log = tmp_path / "run.out"
    log.write_text(
        "{'a': 1}\t{'estimator': 'x.Y', 'fold': 0, 'split': 'test', 'F1': 0.5}\n"
        "{'b': None}\t{'estimator': 'x.Y', 'fold': 0, 'split': 'test', 'F1': nan, "
        "'failed': 'did; not\\nconverge'}\n"
    )
    beautify.tabulate(log)
    scores = rows(tmp_path / "run.scores.csv")
    assert [row["failed"] for row in scores] == ["", "did; not\nconverge"]
    assert rows(tmp_path / "run.params.Y.csv") == [
        {"id": "0", "a": "1", "b": ""},
        {"id": "1", "a": "", "b": ""},
    ]
    assert strict_json(tmp_path / "run.json")["scores"][1]["F1"] == "nan"


def test_running_twice_gives_the_same_bytes(log):
    beautify.tabulate(log)
    first = {path.name: path.read_bytes() for path in log.parent.iterdir()}
    beautify.tabulate(log)
    assert {path.name: path.read_bytes() for path in log.parent.iterdir()} == first


# --- logs of the original -------------------------------------------------------


def test_original_log_keeps_one_row_per_entry_and_its_own_columns(tmp_path):
    log = tmp_path / "params-2018-06-04.out"
    log.write_text(PLAIN + PLAIN + WRAPPED)
    report = beautify.tabulate(log)
    scores = rows(tmp_path / "params-2018-06-04.scores.csv")
    assert [row["id"] for row in scores] == ["0", "1", "2"]
    assert list(scores[0]) == ["id", "tpr", "fpr", "f1", "t", "ppv"]
    perceptron = rows(tmp_path / "params-2018-06-04.params.MLPClassifier.csv")
    assert [row["id"] for row in perceptron] == ["0", "1"]
    assert perceptron[0]["hidden_layer_sizes"] == "[3, 3, 3]"
    assert report.combinations == 3


def test_wrapped_estimator_becomes_a_one_line_call(tmp_path):
    log = tmp_path / "run.out"
    log.write_text(WRAPPED + PLAIN)
    assert beautify.tabulate(log).rejected == 0
    (row,) = rows(tmp_path / "run.params.AdaBoostClassifier.csv")
    assert row["base_estimator"] == (
        "DecisionTreeClassifier(class_weight=None, criterion='gini', max_depth=4, "
        "max_features=None, max_leaf_nodes=None, min_impurity_split=None, splitter='best')"
    )
    assert row["random_state"] == ""


def test_wrapping_by_current_scikit_learn_is_read(tmp_path):
    tree = DecisionTreeClassifier(
        criterion="entropy", max_depth=3, min_samples_leaf=7, min_samples_split=9, random_state=1
    )
    assert "\n" in repr(tree)
    log = tmp_path / "run.out"
    log.write_text(f"{ ({'estimator': tree, 'n_estimators': 3}) }\t{{'f1': np.float64(0.5)}}\n")
    assert beautify.tabulate(log).rejected == 0
    assert strict_json(tmp_path / "run.json") == {
        "params": [{"estimator": " ".join(repr(tree).split()), "n_estimators": 3}],
        "scores": [{"f1": 0.5}],
    }


def test_both_names_of_the_tree_are_kept_and_the_class_is_inferred(tmp_path):
    log = tmp_path / "run.out"
    tree = "DecisionTreeClassifier(max_depth=2)"
    log.write_text(
        f"{{'base_estimator': {tree}, 'estimator': {tree}, 'learning_rate': 0.1, "
        "'n_estimators': 5}\t{'f1': np.float64(inf)}\n"
    )
    beautify.tabulate(log)
    (row,) = rows(tmp_path / "run.params.AdaBoostClassifier.csv")
    assert row["base_estimator"] == row["estimator"] == tree
    assert strict_json(tmp_path / "run.json")["scores"] == [{"f1": "inf"}]


def test_parameters_of_unknown_family_go_to_one_table(tmp_path):
    log = tmp_path / "run.out"
    log.write_text("{'p': 1}\t{'f1': 0.1}\n{'q': 2}\t{'f1': 0.2}\n")
    beautify.tabulate(log)
    assert rows(tmp_path / "run.params.Estimator.csv") == [
        {"id": "0", "p": "1", "q": ""},
        {"id": "1", "p": "", "q": "2"},
    ]


# --- damage -----------------------------------------------------------------------

# What several processes writing one file leave behind, and other malformed lines.
DAMAGED = [
    "6322021484{'estimator': 'A'}\t{'f1': 0.5}\n",
    "73681641}\n",
    " 0.5396825396825395, 't': 0.003}\n",
    "Parameters search from 2018-05-30\n",
    "{'p': 1}\t{'f1': 0.1}\t{'f1': 0.2}\n",
    "{'p': 1} {'f1': 0.1}\n",
    "{'p': 1}\t[0.1]\n",
    "{1: 1}\t{'f1': 0.1}\n",
    "{'p': open('x').read()}\t{'f1': 0.1}\n",
    "{'p': [x for x in ()]}\t{'f1': 0.1}\n",
    "{'p': 1, 'estimator': '../../etc'}\t{'f1': 0.1}\n",
    "{'p': unknown}\t{'f1': 0.1}\n",
    "{'p': " + "(" * 500 + ")" * 500 + "}\t{'f1': 0.1}\n",
    "{'p': " + "-" * 100_000 + "1}\t{'f1': 0.1}\n",
    "{'p': " + "9" * 10_000 + "}\t{'f1': 0.1}\n",
    "\0\0\0\n",
]


@pytest.mark.parametrize("damage", DAMAGED, ids=range(len(DAMAGED)))
def test_malformed_line_is_reported_kept_aside_and_stops_nothing(tmp_path, damage):
    log = tmp_path / "run.out"
    log.write_text(PLAIN + damage + WRAPPED)
    report = beautify.tabulate(log)
    assert report.entries == 2
    assert report.rejected == 1
    assert report.faults[0].startswith("line 2: ")
    kept = (tmp_path / "run.rejected").read_text()
    assert kept == f"# {report.faults[0]}\n{damage}"
    assert [row["id"] for row in rows(tmp_path / "run.scores.csv")] == ["0", "1"]


def test_line_of_wrong_bytes_is_rejected(tmp_path):
    log = tmp_path / "run.out"
    log.write_bytes(PLAIN.encode() + b"{'p': '\xff'}\t{'f1': 0.1}\n" + PLAIN.encode())
    report = beautify.tabulate(log)
    assert report.faults == ["line 2: not UTF-8 (invalid start byte at byte 7)"]


def test_endless_line_is_rejected_in_bounded_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(beautify, "MAX_ENTRY_BYTES", 1000)
    log = tmp_path / "run.out"
    log.write_text(PLAIN + "x" * 2500 + "\n" + PLAIN + "y" * 1500)
    report = beautify.tabulate(log)
    assert report.entries == 2
    assert "line 2: longer than 1000 bytes" in report.faults
    assert "x" * 1001 in (tmp_path / "run.rejected").read_text()


def test_wrapped_entry_that_never_ends_does_not_swallow_the_next(tmp_path):
    log = tmp_path / "run.out"
    head = WRAPPED.splitlines(keepends=True)[0]
    log.write_text(head + PLAIN)
    report = beautify.tabulate(log)
    assert (report.entries, report.rejected) == (1, 1)


@pytest.mark.parametrize("kept", [1, 40, -3, -2])
def test_torn_last_line_is_forgiven_and_counted(tmp_path, kept):
    log = tmp_path / "run.host.7.out.tmp"
    log.write_text(PLAIN + PLAIN[:kept])
    report = beautify.tabulate(log)
    assert (report.entries, report.rejected, report.torn) == (1, 0, 2)
    assert not (tmp_path / "run.host.7.rejected").exists()
    assert len(rows(tmp_path / "run.host.7.scores.csv")) == 1


def test_last_line_that_lacks_only_its_newline_counts(tmp_path):
    log = tmp_path / "run.out"
    log.write_text(PLAIN + PLAIN.rstrip("\n"))
    report = beautify.tabulate(log)
    assert (report.entries, report.torn) == (2, None)


def test_windows_line_ends_and_blank_lines_are_read(tmp_path):
    log = tmp_path / "run.out"
    log.write_bytes((WRAPPED + "\n" + PLAIN + "   \n" + PLAIN).replace("\n", "\r\n").encode())
    report = beautify.tabulate(log)
    assert (report.entries, report.rejected) == (3, 0)


def test_rejected_file_of_an_earlier_run_goes_when_the_log_is_mended(tmp_path):
    log = tmp_path / "run.out"
    log.write_text(PLAIN + "junk\n")
    beautify.tabulate(log)
    log.write_text(PLAIN)
    beautify.tabulate(log)
    assert not (tmp_path / "run.rejected").exists()


def test_failed_write_leaves_the_old_table(log, monkeypatch):
    beautify.tabulate(log)
    table = log.with_suffix(".scores.csv")
    before = table.read_bytes()

    def refuse(source, target):
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(beautify.os, "replace", refuse)
    with pytest.raises(OSError, match="No space left"):
        beautify.tabulate(log)
    assert table.read_bytes() == before
    assert not list(log.parent.glob(".*part"))


# --- values -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("np.float64(0.1)", 0.1),
        ("numpy.int64(-3)", -3),
        ("np.bool_(True)", True),
        ("np.True_", True),
        ("np.str_('relu')", "relu"),
        ("np.float32(inf)", math.inf),
        ("-inf", -math.inf),
        ("(3,)", (3,)),
        ("()", ()),
        ("{'a': [1, {2: None}]}", {"a": [1, {2: None}]}),
    ],
)
def test_literals_are_read_exactly(text, value):
    parsed = beautify.parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["nan", "np.float64(nan)", "np.nan", "NaN"])
def test_nan_is_read_in_every_spelling(text):
    assert math.isnan(beautify.parse(text))


def test_estimators_nest_and_print_on_one_line():
    text = "a.Bagging(estimator=b.Tree(max_depth=None, w={0: 1.0}), missing=nan, on=%s)"
    parsed = beautify.parse(text % "<function f at 0x7f>")
    assert repr(parsed) == text % "'<function f at 0x7f>'"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values))
def test_every_literal_survives_the_round_trip(params):
    assert repr(beautify.parse(repr(params))) == repr(params)


@given(values)
def test_json_is_strict_for_every_value(value):
    json.dumps(beautify.json_value(value), allow_nan=False)


@given(st.floats() | st.integers() | st.booleans() | st.tuples(st.integers()))
def test_cells_read_back_as_the_value(value):
    assert repr(beautify.parse(beautify.cell(value))) == repr(value)


# --- command line -----------------------------------------------------------------


def test_command_lists_what_it_wrote_and_what_it_rejected(log, lines):
    log.write_text(lines[0] + "junk\n" + lines[1] + lines[2][:50])
    done = run(log)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{log}: 2 fits, 2 parameter combinations, 1 estimator",
        f"wrote {log.with_name('demo.rejected')}",
        f"wrote {log.with_name('demo.json')}",
        f"wrote {log.with_name('demo.scores.csv')}",
        f"wrote {log.with_name('demo.params.AdaBoostClassifier.csv')}",
    ]
    assert done.stderr.splitlines() == [
        "rejected line 2: expected parameters, a tab and scores; found 1 field: junk",
        "left out line 4, the last, cut off while written",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        ("", "the log holds no finished fit"),
        ("junk\n", "no line is a fit; the first fault is line 1: expected parameters"),
    ],
)
def test_command_says_in_one_line_what_is_wrong(tmp_path, content, message):
    log = tmp_path / "run.out"
    if content is not None:
        log.write_text(content)
    done = run(log)
    assert done.returncode == 2
    assert done.stderr.startswith(f"beautify.py: error: {log}: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run.json").exists()


def test_help_teaches_the_formats_with_an_example():
    done = run("--help")
    assert done.returncode == 0
    for text in (
        "RUN.scores.csv",
        "RUN.rejected",
        "example:",
        "python beautify.py params/demo.out",
    ):
        assert text in done.stdout
