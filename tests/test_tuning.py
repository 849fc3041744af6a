"""The tuning engine: literals, log, claims, resume, workers, searches."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator
from sklearn.datasets import make_classification
from sklearn.ensemble import AdaBoostClassifier, IsolationForest, RandomForestClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

from anomaly.density import KernelDensityClassifier
from anomaly.encoding import RecordEncoder
from anomaly.errors import DataError, ParameterError
from anomaly.injection import OversampleClassifier
from anomaly.outlier import OutlierClassifier, best_threshold
from anomaly.tuning import RunFolder, estimate, family, tune
from anomaly.tuning.engine import make_space
from anomaly.tuning.families import FAMILIES
from anomaly.tuning.folds import Folds
from anomaly.tuning.grids import grids_from_text, grids_to_text, load_grids, parse_grids
from anomaly.tuning.literals import (
    entries_from_literal,
    from_literal,
    public_path,
    to_literal,
)
from anomaly.tuning.log import LogReader, LogWriter, format_line, parse_line
from anomaly.tuning.progress import Silent
from anomaly.tuning.units import Fit, Record, Unit, evaluate_unit, make_units
from anomaly.tuning.workers import UnitRunner
from detector import Detector
from tests.deadly import Deadly, Quitter
from tests.test_staging import blobs

GRID = {"n_estimators": [1, 3, 6], "learning_rate": [0.5, 1.0]}


def quick(**changed):
    X, y = blobs(n=120)
    options = {"cv": 3, "refit": False} | changed
    return tune(AdaBoostClassifier(random_state=0), GRID, X, y, **options)


def lines_without_times(folder: RunFolder) -> set[str]:
    """The lines of a run, times set to 0."""
    reader = LogReader(folder)
    reader.refresh()
    found = set()
    for line in reader.lines.values():
        record = parse_line(line.decode())
        record.scores |= {"fit_seconds": 0.0, "predict_seconds": 0.0}
        found.add(format_line(record))
    return found


# Literals -----------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.floats().map(np.float64),
    st.floats(width=32).map(np.float32),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.integers(0, 255).map(np.uint8),
    st.booleans().map(np.bool_),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    max_leaves=8,
)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, BaseEstimator):
        return same(a.get_params(), b.get_params())
    if isinstance(a, float | np.floating) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, float | np.floating):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return a == b


PLAIN = st.one_of(st.integers(), st.floats(), st.text(st.characters(codec="ascii")))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.one_of(PLAIN, PLAIN, PLAIN, SCALARS), max_size=6))
def test_entries_are_read_as_any_literal_is(entries):
    text = to_literal(entries)
    assert same(entries_from_literal(text), from_literal(text))
    assert same(entries_from_literal(text + "\n"), entries)


@settings(max_examples=200, deadline=None)
@given(st.text("{}',: \\n0123456789.e-+nafi\"", max_size=40).map("{{'a': 1, 'b': {}".format))
def test_entries_are_no_more_than_the_notation_allows(text):
    try:
        expected = from_literal(text)
    except ParameterError:
        with pytest.raises(ParameterError):
            entries_from_literal(text)
    else:
        assert same(entries_from_literal(text), expected)


@settings(max_examples=80, deadline=None)
@given(VALUES)
def test_every_value_survives_the_round_trip_on_one_line(value):
    text = to_literal(value)
    assert "\n" not in text
    assert "\t" not in text
    assert same(from_literal(text), value)


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeClassifier(max_depth=np.int64(3), class_weight={0: 1.0, 1: np.float64(2)}),
        AdaBoostClassifier(DecisionTreeClassifier(max_depth=2), learning_rate=float("inf")),
        Pipeline([("scale", StandardScaler()), ("classify", SVC(C=10.0, gamma="auto"))]),
        MLPClassifier(hidden_layer_sizes=(5, 5)),
        XGBClassifier(n_estimators=3, missing=float("nan")),
        RecordEncoder(categorical=["class"]),
        OversampleClassifier(GaussianNB(), oversample=4),
    ],
    ids=lambda e: type(e).__name__,
)
def test_estimators_survive_the_round_trip(estimator):
    text = to_literal({"estimator": estimator})
    assert "\n" not in text
    back = from_literal(text)["estimator"]
    assert to_literal(back) == to_literal(estimator)
    assert same(back, estimator) or isinstance(estimator, Pipeline)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("os.system(command='true')", "'os.system' is outside the packages"),
        ("__import__('os')", "'__import__' is outside the packages"),
        ("sklearn.datasets.load_iris()", "is not an estimator class"),
        ("sklearn.svm.NoSuch()", "cannot be imported"),
        ("sklearn.svm.SVC(1.0)", "takes named arguments only"),
        ("sklearn.svm.SVC(nonsense=1)", "sklearn.svm.SVC cannot be made"),
        ("np.float64(1, 2)", "np.float64 takes one value"),
        ("[x for x in (1, 2)]", "not allowed in a literal"),
        ("{**{}}", "not allowed in a literal"),
        ("1 +", "not a Python literal"),
        ("(" * 500, "not a Python literal"),
        ("b'bytes'", "not allowed in a literal"),
    ],
)
def test_a_text_that_is_no_literal_is_refused_and_never_run(text, message):
    with pytest.raises(ParameterError) as caught:
        from_literal(text)
    assert message in str(caught.value)


def test_a_value_without_notation_is_refused():
    with pytest.raises(ParameterError, match=r"cannot be written to a log"):
        to_literal({"weights": len.__call__})
    with pytest.raises(ParameterError, match="complex128"):
        to_literal(np.complex128(1))


def test_public_path_of_a_house_estimator():
    assert public_path(RecordEncoder) == "anomaly.encoding.RecordEncoder"


# The log ------------------------------------------------------------------------


def a_record(number):
    key = f"{number:016x}"
    return Record({"n": number}, {"fold": 0, "F1": 0.5, "key": key}, key)


def test_a_line_is_whole_and_in_the_file_before_the_next(tmp_path):
    folder = RunFolder(tmp_path / "run")
    writer = LogWriter(folder)
    for number in range(3):
        writer.write(a_record(number))
        (path,) = folder.files()
        assert path.read_text().count("\n") == number + 1
        assert path.read_text().endswith("}\n")
    assert path.name == f"run.{os.uname().nodename}.{os.getpid()}.out.tmp"
    writer.close()


def test_merge_joins_only_the_files_of_its_run(tmp_path):
    folder, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run2")
    for number, target in enumerate((folder, folder, other)):
        writer = LogWriter(target)
        writer.write(a_record(number))
        writer.close()
    (folder.path / "run2.host.1.out.tmp").write_text("foreign\n")
    report = folder.merge()
    assert (report.lines, report.malformed) == (2, 0)
    assert folder.merged.read_text().count("\n") == 2
    assert (folder.path / "run2.host.1.out.tmp").exists()
    assert len(other.files()) == 1


def test_merge_forgives_a_torn_last_line_and_counts_what_it_drops(tmp_path):
    folder = RunFolder(tmp_path / "run")
    good = format_line(a_record(1))
    (folder.path / "run.h.1.out.tmp").write_text(good + "garbage\n" + good[: len(good) // 2])
    (folder.path / "run.h.2.out.tmp").write_text(good + format_line(a_record(2)))
    report = folder.merge()
    assert (report.lines, report.repeated, report.torn, report.malformed) == (2, 1, 1, 1)
    assert str(report).endswith("(dropped: 1 repeated, 1 torn, 1 malformed)")
    assert folder.merge().lines == 2
    assert folder.files() == [folder.merged]


def test_merge_keeps_the_file_of_a_process_that_still_writes(tmp_path):
    folder = RunFolder(tmp_path / "run")
    writer = LogWriter(folder)
    writer.write(a_record(1))
    assert folder.merge().lines == 1
    writer.write(a_record(2))
    writer.close()
    report = folder.merge()
    assert (report.lines, report.repeated) == (2, 1)


def test_merge_that_dies_before_the_merged_file_is_in_place_deletes_nothing(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "run")
    writer = LogWriter(folder)
    writer.write(a_record(1))
    writer.close()

    def die(*paths):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(OSError, match="no space"):
        folder.merge()
    monkeypatch.undo()
    assert len(folder.files()) == 1
    assert folder.merge().lines == 1


def test_a_file_left_by_a_process_of_the_same_number_is_not_continued(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for number in (1, 2):
        writer = LogWriter(folder)
        writer.write(a_record(number))
        writer.close()
    assert len(folder.files()) == 2


@pytest.mark.parametrize("name", ["a b", "", ".hidden", "-x"])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path, name):
    with pytest.raises(ParameterError, match="name of a run"):
        RunFolder(tmp_path / "x" / name if name else "/")


def _hold(path, name, ready):
    with RunFolder(path).claim(name) as mine:
        ready.put(mine)
        time.sleep(60)


def test_a_claim_holds_between_processes_and_ends_with_kill_9(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    folder = RunFolder(tmp_path / "run")
    process = context.Process(target=_hold, args=(str(folder.path), "unit", ready))
    process.start()
    assert ready.get(timeout=300) is True
    with folder.claim("unit") as mine:
        assert not mine
    with folder.claim("another unit") as mine:
        assert mine
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with folder.claim("unit") as mine:
        assert mine


def test_a_batch_leaves_out_what_others_hold_and_what_is_in_the_log(tmp_path):
    X, y = blobs(n=120)
    data, folder = Folds(X, y, cv=3), RunFolder(tmp_path / "run")
    fits = [Fit({"max_depth": d}, {"test": f"{d:016x}"}) for d in (1, 2, 3, 4)]
    batch = Unit(DecisionTreeClassifier(random_state=0), 0, tuple(fits))
    writer = LogWriter(folder)
    for record in evaluate_unit(data, Unit(batch.classifier, 0, (fits[1],))):
        writer.write(record)
    context = multiprocessing.get_context("spawn")
    ready = context.Queue()
    process = context.Process(target=_hold, args=(str(folder.path), fits[2].name, ready))
    process.start()
    assert ready.get(timeout=300) is True
    runner = UnitRunner(data, folder)
    outcome = runner.run(batch)
    assert [record.params["max_depth"] for record in outcome.records] == [1, 4]
    assert outcome.busy is not None
    assert outcome.busy.fits == (fits[2],)
    process.kill()
    process.join()
    again = runner.run(batch)
    assert [record.params["max_depth"] for record in again.records] == [3]
    assert again.busy is None


# Resume ---------------------------------------------------------------------------


def test_the_log_holds_one_line_per_candidate_and_fold(tmp_path):
    result = quick(log=tmp_path / "run", train_scores=True)
    folder = RunFolder(tmp_path / "run")
    reader = LogReader(folder)
    reader.refresh()
    records = [parse_line(line.decode()) for line in reader.lines.values()]
    assert len(records) == result.n_fits_ == 6 * 3 * 2
    names = "estimator fold split seed tn fp fn tp TPR FPR TNR FNR PPV F1 fit_seconds"
    assert list(records[0].scores)[:16] == [*names.split(), "predict_seconds"]
    assert {r.scores["split"] for r in records} == {"test", "train"}
    assert {r.scores["estimator"] for r in records} == {"sklearn.ensemble.AdaBoostClassifier"}
    assert list(records[0].params) == ["learning_rate", "n_estimators"]


def test_a_second_call_takes_every_fit_from_the_log(tmp_path):
    first = quick(log=tmp_path / "run")
    second = quick(log=tmp_path / "run")
    assert (first.n_resumed_, second.n_resumed_) == (0, 18)
    pd.testing.assert_frame_equal(first.table, second.table)


@pytest.mark.parametrize("cut", [0, 1, 5, 11, 17])
def test_resume_ends_with_the_same_log_and_answer(tmp_path, cut):
    whole = quick(log=tmp_path / "whole")
    quick(log=tmp_path / "cut")
    folder = RunFolder(tmp_path / "cut")
    (path,) = folder.files()
    lines = path.read_text().splitlines(keepends=True)
    torn = lines[cut][: len(lines[cut]) // 2]
    path.write_text("".join(lines[:cut]) + torn)
    resumed = quick(log=tmp_path / "cut")
    assert resumed.n_resumed_ == cut
    assert resumed.best_params_ == whole.best_params_
    assert resumed.best_score_ == whole.best_score_
    assert lines_without_times(folder) == lines_without_times(RunFolder(tmp_path / "whole"))


def test_resume_after_merge_takes_every_fit_from_the_merged_log(tmp_path):
    quick(log=tmp_path / "run")
    RunFolder(tmp_path / "run").merge()
    assert quick(log=tmp_path / "run").n_resumed_ == 18


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"random_state": 1}, "seed was 0, is 1"),
        ({"cv": 4}, "folds was"),
        ({"prepare": StandardScaler()}, "prepare was None, is sklearn.preprocessing"),
    ],
)
def test_a_changed_search_is_refused_with_the_difference_named(tmp_path, changed, named):
    quick(log=tmp_path / "run")
    with pytest.raises(ParameterError, match="cannot be continued") as caught:
        quick(log=tmp_path / "run", **changed)
    assert named in str(caught.value)


def test_changed_data_and_versions_are_refused_together(tmp_path, monkeypatch):
    quick(log=tmp_path / "run")
    monkeypatch.setattr("anomaly.__version__", "99.0")
    X, y = blobs(n=120)
    X[0, 0] += 1e-9
    with pytest.raises(ParameterError) as caught:
        tune(AdaBoostClassifier(random_state=0), GRID, X, y, cv=3, log=tmp_path / "run")
    assert "data was" in str(caught.value)
    assert "anomaly was" in str(caught.value)
    assert "is 99.0" in str(caught.value)


def test_the_fingerprint_sees_any_changed_cell_and_column():
    frame = pd.DataFrame({"class": ["a", "b"] * 10, "size": np.arange(20.0)})
    y = np.arange(20) % 4 == 0
    first = Folds(frame, y, cv=2).fingerprint()["data"]
    assert first == Folds(frame.copy(), y, cv=2).fingerprint()["data"]
    for changed in (
        frame.assign(size=np.arange(20.0) + 1e-12 * (np.arange(20) == 3)),
        frame.rename(columns={"size": "length"}),
        frame.assign(**{"class": ["a", "c"] * 10}),
    ):
        assert Folds(changed, y, cv=2).fingerprint()["data"] != first
    assert Folds(frame, np.arange(20) % 4 == 1, cv=2).fingerprint()["data"] != first


# Units and workers ----------------------------------------------------------------


def test_a_unit_is_one_picklable_call():
    X, y = blobs(n=120)
    data = Folds(X, y, cv=3, prepare=StandardScaler())
    space = make_space(AdaBoostClassifier(random_state=0), GRID)
    fits = [Fit(c.params, {"test": f"{c.number:016x}"}) for c in space.distinct]
    units = make_units(data, space.classifier, 0, fits, {1: None})
    assert [len(unit.fits) for unit in units] == [3, 3]
    here = evaluate_unit(data, units[0])
    there = evaluate_unit(pickle.loads(pickle.dumps(data)), pickle.loads(pickle.dumps(units[0])))
    drop = ("fit_seconds", "predict_seconds")
    assert [{k: v for k, v in r.scores.items() if k not in drop} for r in here] == [
        {k: v for k, v in r.scores.items() if k not in drop} for r in there
    ]


def test_several_processes_give_the_bits_of_one(tmp_path):
    one = quick(log=tmp_path / "one")
    two = quick(log=tmp_path / "two", n_jobs=2)
    assert two.table.drop(columns=["fit_seconds", "predict_seconds"]).equals(
        one.table.drop(columns=["fit_seconds", "predict_seconds"])
    )
    assert lines_without_times(RunFolder(tmp_path / "one")) == lines_without_times(
        RunFolder(tmp_path / "two")
    )


def test_a_dead_worker_loses_only_its_own_fit(tmp_path):
    X, y = blobs(n=60)
    marks = tmp_path / "marks"
    result = tune(
        Deadly(marks=str(marks)),
        {"value": list(range(8))},
        X,
        y,
        cv=[(np.arange(40), np.arange(40, 60))],
        n_jobs=2,
        log=tmp_path / "run",
        refit=False,
    )
    assert np.isnan(result.table["mean_score"]).tolist() == [v == 3 for v in range(8)]
    fitted = marks.read_text().split()
    assert sorted(v for v in fitted if v != "3") == ["0", "1", "2", "4", "5", "6", "7"]
    reader = LogReader(RunFolder(tmp_path / "run"))
    reader.refresh()
    failed = [reader.scores(key) for key in reader.lines if "failed" in reader.scores(key)]
    assert [scores["failed"] for scores in failed] == [
        "the worker process died 3 times in this fit"
    ]


def test_a_fit_that_wants_to_quit_or_has_no_words_is_logged(tmp_path):
    X, y = blobs(n=60)
    grid = {"value": list(range(7))}
    result = tune(Quitter(), grid, X, y, cv=2, log=tmp_path / "run", refit=False)
    assert np.isnan(result.table["mean_score"]).tolist() == [v in (3, 5) for v in range(7)]
    text = "".join(sorted(lines_without_times(RunFolder(tmp_path / "run"))))
    assert text.count("'failed': 'SystemExit: 3'") == 2
    assert text.count("'failed': 'SilentError'") == 2


def _tune_in_process(path):
    quick(log=path)


def test_several_processes_share_one_run(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_tune_in_process, args=(str(tmp_path / "run"),)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    folder = RunFolder(tmp_path / "run")
    whole = quick(log=tmp_path / "whole")
    assert lines_without_times(folder) == lines_without_times(RunFolder(tmp_path / "whole"))
    report = folder.merge()
    assert (report.lines, report.repeated) == (whole.n_fits_, 0)


class Interrupted(Silent):
    def advance(self, fits, total, best, host=""):
        raise KeyboardInterrupt


def test_the_state_of_a_run_stands_in_its_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        quick(log=tmp_path / "run", progress=Interrupted())
    path = tmp_path / "run" / "progress.json"
    state = json.loads(path.read_text())
    assert (state["state"], state["total"], state["best"]) == ("stopped", 18, None)
    result = quick(log=tmp_path / "run")
    state = json.loads(path.read_text())
    assert (state["state"], state["done"], state["total"]) == ("ended", 18, 18)
    assert state["resumed"] == result.n_resumed_ > 0
    assert state["hosts"][state["host"]]["fits"] == 18 - state["resumed"]
    assert (state["backend"], state["pid"]) == ("loky", os.getpid())


# Candidates, grids, families ---------------------------------------------------------


def test_equivalent_candidates_are_fitted_once(tmp_path):
    X, y = blobs(n=60)
    grid = {
        "hidden_layer_sizes": [(), (2,)],
        "activation": ["relu", "tanh"],
        "solver": ["lbfgs"],
        "learning_rate": ["constant", "adaptive"],
        "max_iter": [20],
    }
    result = tune(MLPClassifier(), grid, X, y, cv=2, log=tmp_path / "run", refit=False)
    assert (result.n_candidates_, result.n_distinct_, result.n_fits_) == (8, 3, 6)
    assert len(result.table) == 8
    search = GridSearchCV(MLPClassifier(random_state=0), grid, cv=2, scoring="f1")
    with pytest.warns(UserWarning, match="Maximum iterations|lbfgs"):
        search.fit(X, y)
    np.testing.assert_array_equal(
        result.table["mean_score"], search.cv_results_["mean_test_score"]
    )
    assert result.best_params_ == search.best_params_


def test_parameters_that_crammer_and_singer_ignore_change_nothing():
    X, y = blobs(n=80)
    fitted = [
        LinearSVC(multi_class="crammer_singer", random_state=0, **more).fit(X, y).coef_
        for more in ({}, {"penalty": "l1", "dual": False, "loss": "squared_hinge"})
    ]
    np.testing.assert_array_equal(*fitted)


def test_the_original_grids_have_their_published_size(pytestconfig):
    grids = load_grids(pytestconfig.rootpath / "params" / "original.toml")
    sizes = {}
    for name, grid in grids.items():
        space = make_space(family(name).make(), grid)
        sizes[name] = len(space.candidates), len(space.distinct)
    assert sizes == {"adaboost": (7128, 7128), "mlp": (26460, 11775), "linear_svc": (48, 48)}
    assert grids["adaboost"][0]["learning_rate"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def test_the_small_grids_cover_every_family(pytestconfig):
    grids = load_grids(pytestconfig.rootpath / "params" / "small.toml")
    assert set(grids) == set(FAMILIES)
    for name, grid in grids.items():
        assert make_space(family(name).make(), grid).candidates
    assert to_literal(grids_from_text(grids_to_text(grids))) == to_literal(grids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[knn]\nn_neighbors = 5", "knn.n_neighbors must be a list of values, got 5"),
        ("[knn]\nn_neighbors = []", "must hold at least one value"),
        ("[knn]\nn_neighbors = {from = 1}", "got the keys from"),
        ("[knn]\nn_neighbors = {from = 1, to = 9, step = 0}", "must grow"),
        ("[knn]\nn_neighbors = {from = 0, to = 9, times = 2}", "must grow"),
        ("[knn]\nn_neighbors = {from = 1, to = 1e9}", "more than 100000 values"),
        (
            "[mlp]\nhidden_layer_sizes = {layers = 2, size = [1, 2]}",
            "layers must be [least, most]",
        ),
        ('[knn]\nweights = "os.getcwd()"', "'os.getcwd' is outside"),
        ("knn = 5", "'knn' must be a table"),
    ],
)
def test_a_wrong_grid_is_refused_by_name(text, message):
    with pytest.raises(ParameterError) as caught:
        parse_grids(text)
    assert message in str(caught.value)


def test_the_density_classifier_reaches_its_published_score_on_the_dimensions():
    rows = Detector.from_catalogue("dimensions")
    rows.inject(1000)
    rows.format(0)
    found = rows.pipeline(KernelDensityClassifier()).fit(rows.xtrain, rows.ytrain.astype(int))
    assert f1_score(rows.ytest, found.predict(rows.xtest)) >= 0.96


def test_the_density_classifier_treats_columns_of_zeros_and_ones_as_categories():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 400)
    X = np.column_stack([1 - kind, kind, rng.normal(size=400) + 8 * kind])
    y = np.zeros(400, dtype=int)
    X[:40, :2] = X[:40, 1::-1]  # true sizes under the other name
    y[:40] = 1
    found = KernelDensityClassifier().fit(X, y)
    assert found.groups_ == [(0.0, 1.0), (1.0, 0.0)]
    assert f1_score(y, found.predict(X)) > 0.95
    assert found.predict([[1.0, 1.0, 0.0]]).tolist() == [1]


def test_several_tables_are_several_grids():
    grids = parse_grids(
        "[[rbf_svc]]\nC = {from = 1, to = 100, times = 10}\n[[rbf_svc]]\nkernel = ['linear']"
    )
    assert grids == {"rbf_svc": [{"C": [1, 10, 100]}, {"kernel": ["linear"]}]}


def test_every_family_fits_and_predicts():
    X, y = blobs(n=600)  # enough for the promise of the budget detector
    for one in FAMILIES.values():
        assert set(np.unique(one.make().fit(X, y).predict(X))) <= {0, 1}


def test_the_outlier_adapter_refuses_what_is_no_detector():
    with pytest.raises(ParameterError, match="must be an outlier detector with decision_function"):
        OutlierClassifier(GaussianNB()).fit(*blobs(n=60))


def test_the_threshold_is_the_one_with_the_best_f1():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.integers(0, 12, 40).astype(float)
        truth = rng.random(40) < 0.3
        truth[0] = True
        cuts = np.append(np.unique(scores), -1.0)
        slow = max(f1_score(truth, scores > cut, zero_division=0) for cut in cuts)
        assert f1_score(truth, scores > best_threshold(scores, truth)) == slow


def test_an_unknown_parameter_is_refused_before_anything_is_fitted():
    X, y = blobs(n=60)
    with pytest.raises(ParameterError, match="KNeighborsClassifier has no parameter 'k'"):
        tune("knn", {"k": [1]}, X, y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scoring": "roc_auc"}, "scoring must be one of f1, accuracy"),
        ({"search": "magic"}, "search must be one of grid, racing, halving, optuna"),
        ({"search_options": {"margin": 1}}, "search 'grid' has no option 'margin'"),
        ({"n_jobs": 0}, "n_jobs must be at least 1"),
        ({"cv": 1}, "cv must be at least 2"),
        ({"cv": "five"}, "cv must be an int, a splitter"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, message):
    X, y = blobs(n=60)
    with pytest.raises(ParameterError) as caught:
        tune("knn", {"n_neighbors": [1]}, X, y, **options)
    assert message in str(caught.value)


def test_labels_of_one_class_are_refused():
    with pytest.raises(DataError, match="tuning needs rows of both classes"):
        tune("knn", {"n_neighbors": [1]}, np.zeros((10, 2)), np.zeros(10))


def test_a_search_where_nothing_could_be_fitted_says_why():
    X, y = blobs(n=60)
    with pytest.raises(DataError, match="no candidate could be fitted; the first one failed with"):
        tune("knn", {"n_neighbors": [-1]}, X, y, cv=2)


def test_folds_in_order_of_time():
    X, y = blobs(n=120)
    result = tune("knn", {"n_neighbors": [1, 3]}, X, y, cv=TimeSeriesSplit(3), refit=False)
    search = GridSearchCV(
        family("knn").make(), {"n_neighbors": [1, 3]}, cv=TimeSeriesSplit(3), scoring="f1"
    ).fit(X, y)
    np.testing.assert_array_equal(
        result.table["mean_score"], search.cv_results_["mean_test_score"]
    )


def test_oversampling_equals_the_wrapper_in_grid_search():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"class": rng.choice(["a", "b"], 150), "size": rng.normal(size=150)})
    y = (rng.random(150) < 0.2).astype(int)
    grid = {"n_estimators": [2, 5], "oversample": [1, 3]}
    result = tune(RandomForestClassifier(), grid, frame, y, prepare=RecordEncoder(), cv=3)
    inner = Pipeline([("e", RecordEncoder()), ("c", RandomForestClassifier(random_state=0))])
    search = GridSearchCV(
        OversampleClassifier(inner, categorical=["class"], random_state=0),
        {"oversample": [1, 3], "estimator__c__n_estimators": [2, 5]},
        cv=3,
        scoring="f1",
    ).fit(frame, y)
    expected = {
        (p["estimator__c__n_estimators"], p["oversample"]): score
        for p, score in zip(
            search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
        )
    }
    for params, score in zip(result.table["params"], result.table["mean_score"], strict=True):
        assert score == expected[params["n_estimators"], params["oversample"]]
    np.testing.assert_array_equal(result.best_estimator_.predict(frame), search.predict(frame))


def test_an_estimate_counts_what_grid_search_would_do():
    X, y = blobs(n=120)
    cost = estimate(AdaBoostClassifier(), GRID, X, y, cv=3, budget_s=0.1)
    assert (cost.n_candidates, cost.n_fits, cost.n_units) == (6, 18, 6)
    assert cost.seconds > 0


# Searches ---------------------------------------------------------------------------

SEARCHES = [
    ("racing", {"margin": 1.0}),
    ("halving", {"factor": 2}),
    ("optuna", {"n_trials": 2}),
]


@pytest.mark.parametrize(("search", "options"), SEARCHES)
def test_a_search_resumes_to_the_same_answer(tmp_path, search, options):
    def run(name):
        X, y = blobs(n=400, overlap=2.5)
        return tune(
            AdaBoostClassifier(random_state=0),
            {"n_estimators": [1, 2, 4, 8, 16], "learning_rate": [0.1, 0.5, 1.0]},
            X,
            y,
            cv=3,
            search=search,
            search_options=options,
            log=tmp_path / name,
            refit=False,
        )

    whole = run("whole")
    run("cut")
    (path,) = RunFolder(tmp_path / "cut").files()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 3]))
    resumed = run("cut")
    assert resumed.n_resumed_ > 0
    assert resumed.best_params_ == whole.best_params_
    assert resumed.best_score_ == whole.best_score_
    assert lines_without_times(RunFolder(tmp_path / "cut")) == lines_without_times(
        RunFolder(tmp_path / "whole")
    )


@pytest.mark.parametrize(("search", "options"), SEARCHES)
def test_a_search_scores_its_winner_as_the_grid_does(search, options):
    X, y = blobs(n=300)
    run = {"cv": 3, "refit": False}
    grid = tune("knn", {"n_neighbors": list(range(1, 12))}, X, y, **run)
    found = tune(
        "knn",
        {"n_neighbors": list(range(1, 12))},
        X,
        y,
        search=search,
        search_options=options,
        **run,
    )
    row = [p == found.best_params_ for p in grid.table["params"]].index(True)
    assert found.best_score_ == grid.table["mean_score"][row]


def test_racing_drops_what_lags_and_keeps_the_winner():
    X, y = blobs(n=400, overlap=3.0)
    grid = {"n_neighbors": [1, 5, 9, 200, 250]}
    race = tune("knn", grid, X, y, cv=5, search="racing", refit=False)
    full = tune("knn", grid, X, y, cv=5, refit=False)
    assert race.best_params_ == full.best_params_
    assert race.n_fits_ < full.n_fits_
    assert race.table["fold_4"].isna().tolist()[3:] == [True, True]


def test_optuna_walks_several_grids():
    X, y = blobs(n=120)
    grids = [{"kernel": ["linear"], "C": [0.1, 1.0]}, {"kernel": ["rbf"], "gamma": [0.1, 1.0]}]
    result = tune(
        SVC(), grids, X, y, cv=2, search="optuna", search_options={"n_trials": 12}, refit=False
    )
    assert len(result.table) == 4


def test_a_unit_without_done_fits_is_none():
    unit = Unit(None, 0, (Fit({}, {"test": "a"}), Fit({}, {"test": "b"})))
    assert [fit.name for fit in unit.without({"a"}).fits] == ["b"]
    assert unit.without({"a", "b"}) is None


def test_an_outlier_detector_is_tuned_as_a_classifier():
    X, y = make_classification(200, class_sep=3.0, weights=[0.9], random_state=0)
    grid = {"estimator__n_estimators": [20]}
    path = tune("sklearn.ensemble.IsolationForest", grid, X, y, cv=3)
    assert path.best_score_ == tune("isolation_forest", grid, X, y, cv=3).best_score_
    assert path.best_score_ == tune(IsolationForest(), grid, X, y, cv=3).best_score_
    assert set(path.best_estimator_.predict(X)) <= {0, 1}
    with pytest.raises(ParameterError, match="did you mean 'estimator__n_estimators'"):
        tune(IsolationForest(), {"n_estimators": [20]}, X, y, cv=3)
