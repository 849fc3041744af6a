"""The detector: rows in, halves out, one path for tuning, evaluation and prediction."""

from __future__ import annotations

import pickle
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import AdaBoostClassifier, IsolationForest, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeClassifier

import detector as detector_module
from anomaly.ensemble import EnsembleDetector
from anomaly.errors import DataError
from anomaly.files import write_aside
from detector import Detector, confusion_ratios
from production.classify import load
from tests.conftest import ROOT


def records(n: int = 120, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    names = np.array(["car", "human", "moto"])[rng.integers(0, 3, n)]
    centre = {"car": (4500.0, 1800.0), "human": (1000.0, 430.0), "moto": (2100.0, 800.0)}
    sizes = np.array([centre[name] for name in names]) * rng.normal(1, 0.06, (n, 2))
    return pd.DataFrame({"class": names, "length": sizes[:, 0], "width": sizes[:, 1]})


def prepared(n: int = 120, odd: int = 60) -> Detector:
    detector = Detector(records(n))
    detector.inject(odd, "uniform", random_state=1)
    return detector.format(seed=3)


# -- rows ---------------------------------------------------------------------


def test_missing_rows_are_dropped_and_counted():
    frame = records(10)
    frame.loc[[2, 5], "length"] = np.nan
    detector = Detector(frame)
    assert len(detector.frame) == 8
    assert detector.report == {"rows": 10, "missing": 2, "duplicates": 0, "kept": 8}


def test_first_of_equal_rows_is_kept_and_flagged():
    frame = pd.concat([records(5), records(5).head(2)], ignore_index=True)
    detector = Detector(frame)
    assert detector.frame["duplicate"].tolist() == [True, True, False, False, False]
    assert detector.report["duplicates"] == 2


def test_duplicates_are_kept_on_request_and_still_flagged():
    frame = pd.concat([records(5), records(5).head(2)], ignore_index=True)
    detector = Detector(frame, duplicates="keep")
    assert len(detector.frame) == 7
    assert detector.frame["duplicate"].sum() == 4


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        ([0, 1, 0], [False, True, False]),
        ([True, False, False], [True, False, False]),
        (["bad", "good", "good"], [False, True, True]),
        ([1, 2, 1], [False, True, False]),
    ],
)
def test_second_value_of_the_label_is_the_anomaly(values, odd):
    frame = records(3).assign(state=values)
    detector = Detector(frame, label="state")
    assert detector.frame["odd"].tolist() == odd
    assert "state" not in detector.features


@pytest.mark.parametrize(
    ("label", "values", "message"),
    [
        ("stat", [0, 1, 0], "label must be a column of .*, got 'stat'"),
        ("state", ["a", "b", "c"], "state must have two values .*, got 3"),
        ("state", ["a", "a", "a"], r"state must have two values .*, got \['a'\]"),
        ("state", [0, None, 1], "state: every row needs a label, 1 are missing"),
    ],
)
def test_unusable_labels_are_refused_by_name(label, values, message):
    with pytest.raises(ValueError, match=message):
        Detector(records(3).assign(state=values), label=label)


def test_odd_points_come_as_sequences_mappings_or_frames():
    detector = Detector(records(10))
    detector.append_odd_points([("car", 1.0, 2.0)])
    detector.append_odd_points([{"width": 4.0, "length": 3.0, "class": "moto"}])
    detector.append_odd_points(pd.DataFrame({"class": ["car"], "length": [5.0], "width": [6.0]}))
    added = detector.frame.tail(3)
    assert added["odd"].all()
    assert added["length"].tolist() == [1.0, 3.0, 5.0]
    assert set(added["origin"]) == {"appended"}


@pytest.mark.parametrize(
    "point",
    [("car", 1.0), {"class": "car", "length": 1.0}, ("car", 1.0, np.inf), ("car", 1.0, "x")],
)
def test_unfit_odd_points_are_refused(point):
    with pytest.raises(ValueError, match="must"):
        Detector(records(10)).append_odd_points([point])


def test_manifest_names_the_rows_that_were_injected():
    detector = Detector(records(50))
    detector.inject(10, "uniform", random_state=1)
    detector.inject(5, "class_swap", random_state=2)
    rows = sorted(row for entry in detector.manifest.entries for row in entry.rows)
    assert rows == list(range(50, 65))
    assert detector.frame.loc[rows, "odd"].all()
    assert not detector.frame.drop(index=rows)["odd"].any()
    assert detector.frame["origin"].value_counts().to_dict() == {
        "record": 50,
        "uniform": 10,
        "class_swap": 5,
    }


def test_rows_without_a_label_are_taken_for_normal_on_request(tmp_path):
    frame = records(12).assign(state=[1, 0, None, np.nan] * 3)
    frame.loc[0, "length"] = np.nan
    frame.to_csv(tmp_path / "few.csv", index=False)
    options = {"label": "state", "unlabelled": "normal"}
    for detector in (
        Detector(frame, **options),
        Detector.from_csv(tmp_path / "few.csv", **options),
    ):
        assert detector.report["unlabelled"] == 6
        counts = detector.frame["origin"].value_counts().to_dict()
        assert counts == {"unlabelled": 6, "record": 3, "label": 2}  # one has no length
        assert not detector.frame.loc[detector.frame["origin"] == "unlabelled", "odd"].any()


# -- halves -------------------------------------------------------------------


@given(n=st.integers(20, 80), odd=st.integers(4, 40), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_halves_are_disjoint_stratified_and_together_whole(n, odd, seed):
    detector = Detector(records(n))
    detector.inject(odd, "uniform", random_state=seed)
    detector.format(seed=seed)
    train, test = set(detector.train_rows), set(detector.test_rows)
    assert not train & test
    assert len(train | test) == len(detector.frame) - detector.report["contradictions"]
    assert abs(int(detector.ytrain.sum()) - int(detector.ytest.sum())) <= 4


def test_halves_share_no_equal_row():
    detector = prepared(400, 200)
    both = pd.concat([detector.xtrain, detector.xtest])
    assert not both.duplicated().any()


def test_a_shared_row_would_be_noticed():
    detector = prepared()
    both = pd.concat([detector.xtrain, detector.xtest, detector.xtrain.head(1)])
    assert both.duplicated().any()


def test_same_seed_gives_the_same_halves():
    first, second = prepared(), prepared()
    pd.testing.assert_frame_equal(first.xtrain, second.xtrain)
    other = prepared().format(seed=4)
    assert not first.xtrain.equals(other.xtrain)


def test_time_order_holds_out_the_end():
    frame = records(20).assign(state=[0, 1] * 10)
    detector = Detector(frame, label="state").format(order="time", test_size=0.25)
    assert list(detector.train_rows) == list(range(15))
    assert list(detector.test_rows) == list(range(15, 20))


def test_an_injected_row_that_equals_a_record_is_left_out():
    detector = Detector(records(40))
    detector.append_odd_points(detector.frame.loc[:3, detector.features])
    detector.inject(10, "uniform", random_state=0)
    detector.format(seed=1)
    assert detector.report["contradictions"] == 4
    assert len(detector.xtrain) + len(detector.xtest) == 50


# -- classifiers --------------------------------------------------------------


def test_classify_returns_matrix_seconds_and_the_fitted_pipeline():
    detector = prepared()
    matrix, seconds, fitted = detector.classify(RandomForestClassifier(20, random_state=0))
    assert matrix.sum() == len(detector.xtest)
    assert seconds > 0
    flagged = fitted.predict(detector.xtest).astype(bool)
    assert int((flagged & detector.ytest.to_numpy()).sum()) == matrix[1, 1]
    assert confusion_ratios(matrix).F1 > 0.6


def test_classify_before_format_says_what_to_do():
    with pytest.raises(ValueError, match=r"call format\(\) first"):
        Detector(records(20)).classify(LogisticRegression())


def test_tuning_evaluation_and_prediction_run_the_same_path():
    detector = prepared()
    tuned = detector.tune_parameters(
        LogisticRegression(), {"C": [0.1, 10.0]}, cv=3, scoring="f1", progress=False
    )
    assert set(tuned.parameters) == {"C"}
    assert 0 <= tuned.score <= 1
    evaluation = detector.evaluate()
    singly = [detector.predict(*row) for row in detector.xtest.itertuples(index=False, name=None)]
    together = tuned.estimator.predict(detector.xtest).astype(bool)
    assert singly == together.tolist()
    assert evaluation.matrix[:, 1].sum() == sum(singly)


def test_rare_category_in_one_half_only_is_no_surprise():
    frame = pd.concat(
        [records(60), pd.DataFrame({"class": ["tank"], "length": [7000.0], "width": [3500.0]})],
        ignore_index=True,
    )
    detector = Detector(frame)
    detector.inject(30, "uniform", random_state=0)
    for seed in range(6):
        detector.format(seed=seed).classify(DecisionTreeClassifier(random_state=0))
        assert detector.predict("tank", 7000.0, 3500.0) in (True, False)


def test_evaluation_is_broken_down_by_type_of_injection():
    detector = Detector(records(200))
    detector.inject(40, "uniform", random_state=1)
    detector.inject(40, "class_swap", random_state=2)
    detector.format(seed=0).classify(RandomForestClassifier(20, random_state=0))
    by_type = detector.evaluate().by_type
    assert set(by_type.index) == {"record", "uniform", "class_swap"}
    assert by_type["rows"].sum() == len(detector.xtest)
    assert by_type.loc["class_swap", "share"] > 0.8


# -- export -------------------------------------------------------------------


def test_exported_function_answers_as_the_detector_does(tmp_path):
    detector = prepared()
    detector.classify(
        AdaBoostClassifier(DecisionTreeClassifier(max_depth=4), n_estimators=10, random_state=0)
    )
    path = detector.export(tmp_path / "anomaly_classifier.clf")
    with open(path, "rb") as file:
        fun = pickle.load(file)
    rows = list(detector.xtest.head(40).itertuples(index=False, name=None))
    assert [bool(fun(*row)) for row in rows] == [detector.predict(*row) for row in rows]


def test_class_codes_do_not_depend_on_the_hash_seed():
    code = (
        "from tests.test_detector import prepared\n"
        "from sklearn.tree import DecisionTreeClassifier\n"
        "d = prepared()\n"
        "fitted = d.classify(DecisionTreeClassifier(random_state=0)).classifier\n"
        "print(fitted[0].transform(d.xtest).tobytes().hex()[:4000])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(ROOT)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_evaluation_reports_ranking_beside_chance(tmp_path):
    detector = prepared()
    detector.classify(RandomForestClassifier(20, random_state=0))
    evaluation = detector.evaluate()
    report = evaluation.report
    assert report is evaluation.report
    ranking = report.tables["Ranking"]
    assert list(ranking.index) == ["score", "random score"]
    scores = detector.best_clf.predict_proba(detector.xtest)[:, 1]
    assert ranking.loc["score", "AUROC"] == pytest.approx(roc_auc_score(detector.ytest, scores))
    assert set(report.tables["By type"].index) == {"record", "uniform"}
    assert "injected" in report.notes[0]
    assert report.to_html(tmp_path / "r.html").stat().st_size > 10_000


def test_real_labels_get_no_note_about_injection():
    frame = records(80).assign(state=[0, 0, 0, 1] * 20)
    detector = Detector(frame, label="state").format(seed=0)
    detector.classify(RandomForestClassifier(5, random_state=0))
    assert detector.evaluate().report.notes == []


def test_a_report_says_that_unlabelled_rows_count_as_normal():
    frame = records(80).assign(state=[1, None, None, None] * 20)
    detector = Detector(frame, label="state", unlabelled="normal").format(seed=0)
    detector.classify(RandomForestClassifier(5, random_state=0))
    assert "without a label count as normal" in detector.evaluate().report.notes[0]


def test_several_families_are_tuned_and_averaged():
    detector = prepared()
    families = {"knn": {"n_neighbors": [1, 5]}, "logistic_regression": {"C": [0.1, 1.0]}}
    tuned = detector.tune_parameters(families, cv=3, n_best=2)
    assert set(tuned.parameters) == set(families)
    assert tuned.estimator is detector.best_clf
    one = {"class": "human", "length": 2500.0, "width": 1000.0}
    expected = bool(tuned.estimator.predict(pd.DataFrame([one]))[0])
    assert detector.predict(class_="human", length=2500.0, width=1000.0) == expected


def test_families_and_a_grid_do_not_go_together():
    with pytest.raises(ValueError, match="a mapping of families to grids"):
        prepared().tune_parameters({"knn": {}}, {"n_neighbors": [1]})
    with pytest.raises(ValueError, match="give a classifier and its grid"):
        prepared().tune_parameters(LogisticRegression())


@pytest.mark.parametrize("name", ["ensemble", "few_labels", "mean_of_best", "budget"])
def test_detectors_of_tables_are_tuned_and_exported_by_name(name, tmp_path):
    detector = prepared(240, 40)
    options = {
        "ensemble": {"mode": ["light"]},
        "few_labels": {"n_trees": [5]},
        "mean_of_best": {"n_best": [1], "candidates": [[("line", LogisticRegression())]]},
        "budget": {"false_alarm_rate": [0.2], "estimator": [LogisticRegression()]},
    }
    detector.tune_parameters(name, options[name], cv=2)
    fun = load(detector.export(tmp_path / "a.clf"))
    flags = detector.best_clf.predict(detector.xtest).astype(bool)
    assert fun(detector.xtest).tolist() == flags.tolist()


# -- plots --------------------------------------------------------------------


def test_plots_return_figure_and_axes_and_touch_no_global_style():
    before = dict(mpl.rcParams)
    detector = prepared()
    detector.classify(DecisionTreeClassifier(max_depth=4, random_state=0))
    for draw in (detector.plot, detector.plot_decision_boundaries):
        figure, ax = draw()
        assert ax.get_xlabel() == "width"
        assert ax.get_ylabel() == "length"
        again, same = draw(ax=ax)
        assert same is ax
        assert again is figure
    assert dict(mpl.rcParams) == before


def test_plot_needs_two_numeric_features():
    with pytest.raises(ValueError, match="two numeric features"):
        Detector(records(20)[["class", "length"]]).plot()


def test_unknown_plot_column_is_named():
    with pytest.raises(ValueError, match=r"column must be one of .*'height'"):
        Detector(records(20)).plot(x="height")


# -- command line -------------------------------------------------------------


def test_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit, match="0"):
        detector_module.main(["--help"])
    assert "python detector.py" in capsys.readouterr().out


def test_command_line_loads_injects_fits_plots_and_exports(tmp_path, capsys):
    source = tmp_path / "records.csv"
    records(200).to_csv(source, index=False)
    picture, clf = tmp_path / "records.png", tmp_path / "records.clf"
    command = [str(source), "--inject", "100", "--classifier", "extra_trees"]
    status = detector_module.main([*command, "--plot", str(picture), "--export", str(clf)])
    assert status == 0
    assert picture.stat().st_size > 1000
    assert clf.stat().st_size > 1000
    shown = capsys.readouterr().out
    assert "F1" in shown
    assert "Scores on injected anomalies say" in shown


def test_command_line_lists_unusual_rows_where_nothing_is_labelled(tmp_path, capsys):
    frame = records(150)
    frame.loc[7, "width"] = 9e4
    frame.to_csv(tmp_path / "plain.csv", index=False)
    assert detector_module.main([str(tmp_path / "plain.csv")]) == 0
    shown = capsys.readouterr().out
    assert "no labels: the most unusual rows" in shown
    first = next(line for line in shown.splitlines() if line.startswith("│"))
    assert first.split()[1] == "7"
    assert "width" in first
    assert detector_module.main([str(tmp_path / "plain.csv"), "--report", "r.html"]) == 2
    assert "a report needs anomalies" in capsys.readouterr().err


def test_a_listing_names_rows_as_the_file_counts_them(tmp_path, capsys):
    frame = records(150)
    frame.loc[2, "width"] = np.nan
    frame.loc[5] = frame.loc[4]
    frame.loc[9, "width"] = 9e4
    frame.to_csv(tmp_path / "plain.csv", index=False)
    assert detector_module.main([str(tmp_path / "plain.csv")]) == 0
    shown = capsys.readouterr().out
    first = next(line for line in shown.splitlines() if line.startswith("│"))
    assert first.split()[1] == "9"
    assert "1 left out for missing or infinite cells, 1 left out for repeating" in shown
    ids = frame.set_axis([f"id{i}" for i in range(150)], axis=0)
    detector = Detector(ids).format()
    detector.classify(EnsembleDetector(random_state=0))
    assert detector.unusual(1).index.tolist() == ["id9"]


def test_a_listing_of_many_columns_shows_the_one_to_blame(tmp_path, capsys):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(120, 30))).add_prefix("x").assign(still=1.0)
    frame.loc[3, "x17"] = 500.0
    frame["name"] = [f"n{i}" for i in range(120)]
    frame.to_csv(tmp_path / "many.csv", index=False)
    assert detector_module.main([str(tmp_path / "many.csv")]) == 0
    shown = capsys.readouterr().out
    first = next(line for line in shown.splitlines() if line.startswith("│"))
    assert first.split()[1::2][0] == "3"
    assert "x17" in first
    assert "500" in first
    assert "the same in every row: still" in shown
    assert "almost never the same twice, better left out: name" in shown


def test_rows_that_are_left_out_for_want_of_a_label_are_counted(tmp_path, capsys):
    state = np.where(np.arange(150) < 60, (np.arange(150) < 12).astype(float), np.nan)
    records(150).assign(state=state).to_csv(tmp_path / "few.csv", index=False)
    command = [str(tmp_path / "few.csv"), "--label", "state"]
    assert detector_module.main(command) == 0
    assert "90 rows have no label; --unlabelled normal keeps" in capsys.readouterr().out
    assert detector_module.main([*command, "--unlabelled", "normal"]) == 0
    assert "have no label" not in capsys.readouterr().out


def test_columns_without_a_value_are_named(tmp_path, capsys):
    records(40).assign(empty=np.nan).to_csv(tmp_path / "hollow.csv", index=False)
    assert detector_module.main([str(tmp_path / "hollow.csv")]) == 2
    assert "none is left: empty 40 of 40 rows" in capsys.readouterr().err


def test_no_feature_is_blamed_where_none_makes_a_difference():
    class Indifferent(EnsembleDetector):
        def explain(self, X):
            shares = super().explain(X)
            return shares * 0 - np.arange(1, shares.shape[1] + 1)

    detector = Detector(records(60)).format()
    detector.classify(Indifferent(random_state=0))
    assert set(detector.unusual(3)["because"]) == {""}


def test_a_promise_is_shown(tmp_path, capsys):
    frame = records(800)
    frame.to_csv(tmp_path / "plain.csv", index=False)
    assert detector_module.main([str(tmp_path / "plain.csv"), "--classifier", "budget"]) == 0
    assert (
        "threshold: at most 1% of normal rows are expected to raise an alarm"
        in capsys.readouterr().out
    )


@pytest.mark.filterwarnings("ignore:1 constant column is left out")
def test_a_column_that_never_varies_is_never_the_reason():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(200, 4)), columns=list("abcd"))
    frame.iloc[:15] += 4  # unusual in every column at once
    frame["still"] = 1.0
    detector = Detector(frame).format()
    detector.classify(EnsembleDetector(random_state=0))
    assert "still" not in set(detector.unusual(15)["because"])


def test_command_line_writes_a_report_of_few_labels(tmp_path, capsys):
    frame = records(150).assign(state=np.where(np.arange(150) < 12, 1.0, np.nan))
    frame.to_csv(tmp_path / "few.csv", index=False)
    arguments = [
        *(str(tmp_path / "few.csv"), "--label", "state", "--unlabelled", "normal"),
        *("--classifier", "few_labels", "--report", str(tmp_path / "report.html")),
    ]
    assert detector_module.main(arguments) == 0
    assert "report.html" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.csv"], "absent.csv"),
        (["dimensions", "--classifier", "magic"], "magic"),
        (["dimensions", "--inject", "100", "--strategy", "magic"], "magic"),
    ],
)
def test_command_line_names_what_is_wrong_without_a_traceback(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        sys.exit(detector_module.main(arguments))
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("a,b,faulty\n", ["--label", "faulty"], "at least 2 rows of a kind"),
        ("a,b\n1,2\n2,3\n", [], "minimum of 2"),
        (
            "a,faulty\n1,0\n2,0\n3,1\n4,1\n",
            ["--label", "faulty", "--classifier", "knn"],
            "n_neigh",
        ),
        ("a,faulty\n1,ok\n2,bad\n", ["--label", "faulty"], "--anomalies VALUE"),
        ("a,b\n1,2\n", ["--inject", "3", "--seed", "-1"], "0 or more"),
        ("a,b\n1,2\n", ["--export", "nowhere/a.clf"], "there is no folder nowhere"),
        ("a,b\n1,2\n", ["--plot", "a.xyz"], "format of the plot must be one of"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(tmp_path, monkeypatch, capsys, text, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text(text)
    assert detector_module.main(["table.csv", *given]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("detector.py: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert printed.out == ""


def test_marks_and_labels_of_a_file_are_options(tmp_path, capsys):
    rows = [f"{1 + i % 9} {100 + i},5;{'broken' if i % 4 == 0 else 'fine'}" for i in range(80)]
    (tmp_path / "table.csv").write_text("\n".join(["size;state", *rows]))
    marks = ["--decimal", ",", "--thousands", " ", "--label", "state", "--anomalies", "broken"]
    assert detector_module.main([str(tmp_path / "table.csv"), *marks]) == 0
    assert "label" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_is_named_itself(tmp_path):
    lost = tmp_path / "nowhere" / "table.csv"
    with pytest.raises(FileNotFoundError, match=r"nowhere/table\.csv'$"), write_aside(lost):
        pass


def test_an_outlier_detector_is_fitted_as_a_classifier():
    detector = prepared()
    matrix = detector.classify(IsolationForest(random_state=0)).matrix
    assert matrix[0, 0] > matrix[0, 1], "normal rows are not flagged"


def test_rows_with_an_infinite_size_are_dropped_like_missing_ones():
    frame = records(10)
    frame.loc[[2, 5], "length"] = [np.inf, -np.inf]
    assert len(Detector(frame).frame) == 8


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ([[1, 2]], "must be a DataFrame, got list"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), r"\['a'\] occur more than once"),
    ],
)
def test_what_is_no_table_of_named_columns_is_refused(frame, message):
    with pytest.raises(DataError, match=message):
        Detector(frame)
