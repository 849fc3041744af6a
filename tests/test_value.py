"""Value detectors: training, model files in Python and C, the native library."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.base import clone

from anomaly import _core
from anomaly.errors import ClassifierFileError, DataError, ParameterError
from anomaly.kpi_families import (
    MULTIPLES,
    SHIFTS,
    grid_injections,
    inject_windows,
    make_series,
    make_windows,
    step_sigma,
)
from anomaly.rate import RateDetector
from anomaly.value import ValueDetector, _payload, evaluate, main, measure, model_path
from anomaly.windows import history_groups, read_windows
from benchmarks import kpi
from tests.test_features import WINDOWS

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"n_estimators": 20, "max_depth": 3}


@pytest.fixture(scope="module")
def windows():
    return make_windows(400, window=40, random_state=3)[0]


@pytest.fixture(scope="module")
def trained(windows):
    changed, _ = inject_windows(windows[:40], 40, random_state=1)
    X = np.vstack([windows, changed])
    return ValueDetector(**SMALL).fit(X, np.repeat([0, 1], [len(windows), len(changed)]))


@pytest.fixture(scope="module")
def default():
    return ValueDetector.load(model_path())


# --- families and injections ---


def test_windows_are_made_again_from_their_seed():
    one, names = make_windows(20, 30, random_state=5)
    other, _ = make_windows(20, 30, random_state=5)
    assert one.tobytes() == other.tobytes()
    assert one.shape == (20, 153)
    assert len(set(names)) > 5
    assert np.isfinite(one).all()


def test_injections_change_the_end_of_a_window_only(windows):
    changed, sources = inject_windows(windows, 40, random_state=0)
    assert (changed[:, -1] != windows[sources, -1]).all()
    assert (changed[:, :-21] == windows[sources, :-21]).all()


def test_grid_injections_are_the_factors_and_the_shifts(windows):
    found = grid_injections(windows, 40)
    assert len(found) == len(MULTIPLES) + len(SHIFTS)
    assert (found["×0"] == 0).all()
    np.testing.assert_allclose(found["+8σ"] - windows[:, -1], 8 * step_sigma(windows, 40))


# --- the estimator ---


def test_training_finds_what_was_injected(trained, windows):
    fresh, _ = make_windows(300, window=40, random_state=77)
    found = evaluate(trained, fresh)
    assert found["joined"]["mult"] > found["three_sigma"]["mult"]
    assert found["joined"]["shift"] > found["three_sigma"]["shift"]
    assert found["false_alarms"] < 0.06


def test_prediction_is_a_probability_of_normal_below_15_percent(trained, windows):
    changed, _ = inject_windows(windows, 40, random_state=2)
    normal = trained.predict_proba(changed)[:, 0]
    flagged = trained.predict(changed)
    assert (flagged == (normal < 0.15)).all()
    assert 0 < flagged.sum() < len(flagged)


def test_the_same_seed_gives_the_same_model(trained, windows):
    X, y = windows[:60], np.repeat([0, 1], [50, 10])
    one, other = (ValueDetector(**SMALL, random_state=4).fit(X, y) for _ in range(2))
    assert one.model_ == other.model_


def test_normal_windows_alone_calibrate_the_shipped_trees(default, windows):
    detector = ValueDetector(false_alarm_rate=0.05).fit(windows)
    assert _payload(detector.model_) == _payload(default.model_)
    assert detector.predict(windows).mean() == pytest.approx(0.05, abs=0.01)
    few = ValueDetector().fit(windows[:20])
    assert few.calibration_ == default.calibration_


def test_head_weight_zero_is_the_training_free_score(windows):
    y = np.repeat([0, 1], [380, 20])
    detector = ValueDetector(**SMALL, head_weight=0.0).fit(windows, y)
    free = measure(windows, 40).parts.max(axis=1)
    order = np.argsort(free, kind="stable")
    assert (np.diff(detector.decision_function(windows)[order]) >= -1e-12).all()


def test_automatic_head_never_makes_it_worse(windows):
    y = np.repeat([0, 1], [380, 20])
    alone = ValueDetector(**SMALL, head_weight=0.0).fit(windows, y)
    joined = ValueDetector(**SMALL).fit(windows, y)
    fresh, _ = make_windows(300, window=40, random_state=9)
    changed, _ = inject_windows(fresh, 40, random_state=9)
    limits = [np.quantile(d.decision_function(fresh), 0.99) for d in (alone, joined)]
    found = [
        np.mean(d.decision_function(changed) > limit)
        for d, limit in zip((alone, joined), limits, strict=True)
    ]
    assert found[1] >= found[0] - 0.02


def test_explanation_names_value_bounds_and_parts(default):
    X = np.tile(np.random.default_rng(0).poisson(100.0, 903).astype(float), (2, 1))
    X[1, -1] = 400
    told = default.explain(X)
    assert told["value"].tolist() == [X[0, -1], 400.0]
    assert told["lower"].iloc[1] < told["expected"].iloc[1] < told["upper"].iloc[1] < 400
    assert (told.loc[1, ["step", "seasonal", "level", "global", "trees"]] > 1).all()
    assert told["probability"].iloc[1] > 0.85 > told["probability"].iloc[0]
    np.testing.assert_allclose(np.log(told["score"]), default.decision_function(X))


def test_rows_that_cannot_be_tested_are_named(default):
    X = np.ones((3, 903))
    X[1, -1] = np.nan
    with pytest.raises(DataError, match="row 1 cannot be tested: its last point is missing"):
        default.predict(X)


def test_window_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"X has 53 columns; window=180 needs 903"):
        ValueDetector(window=180).fit(np.ones((4, 53)))


def test_no_normal_window_is_refused():
    X = np.ones((3, 53))
    X[0, -1] = np.nan
    with pytest.raises(DataError, match="no usable window labelled normal"):
        ValueDetector(**SMALL).fit(X, [0, 1, 1])
    X[:, -1] = np.nan
    with pytest.raises(DataError, match="no window whose tested point"):
        ValueDetector(**SMALL).fit(X)


def test_groups_stay_on_one_side_of_a_split(windows):
    detector = ValueDetector(**SMALL)
    detector.window_ = 40
    rng = np.random.default_rng(0)
    samples = detector._samples(windows, np.zeros(len(windows), dtype=bool), rng)
    groups = np.arange(len(windows)) // 10
    for train, aside in detector._splits(samples, groups):
        assert not set(groups[samples.source[train]]) & set(groups[samples.source[aside]])


def test_a_pickled_and_a_cloned_detector_work(trained, windows):
    again = pickle.loads(pickle.dumps(trained))
    assert (again.decision_function(windows) == trained.decision_function(windows)).all()
    assert clone(trained).get_params() == trained.get_params()


def test_threads_do_not_change_scores(default):
    X, _ = make_windows(64, random_state=0)
    one = default.decision_function(X)
    default.n_jobs = 3
    try:
        assert (default.decision_function(X) == one).all()
    finally:
        default.n_jobs = 1
    results = [None] * 4

    def work(i):
        results[i] = default.decision_function(X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((result == one).all() for result in results)


# --- model files ---


@pytest.mark.parametrize("form", ["ubj", "json"])
def test_saved_models_load_and_equal_xgboost(trained, windows, tmp_path, form):
    wanted = trained.decision_function(windows)
    again = pickle.loads(pickle.dumps(trained))
    again.save(tmp_path / "model", format=form)
    loaded = ValueDetector.load(tmp_path / "model")
    assert _payload(loaded.model_)[1] == form
    np.testing.assert_allclose(loaded.decision_function(windows), wanted, rtol=1e-6)
    booster = xgboost.Booster()
    booster.load_model(bytearray(_payload(loaded.model_)[0]))
    features = measure(windows, 40).features
    features[::7, ::5] = np.nan
    probability = booster.predict(xgboost.DMatrix(features.astype(np.float32)))
    margins = loaded._margins(features)
    np.testing.assert_allclose(1 / (1 + np.exp(-margins)), probability, atol=1e-6)


def test_missing_features_go_the_learnt_way(default):
    rng = np.random.default_rng(0)
    booster = xgboost.Booster()
    booster.load_model(bytearray(_payload(default.model_)[0]))
    features = rng.normal(0, 3, (500, _core.VALUE_FEATURES))
    features[rng.random(features.shape) < 0.5] = np.nan
    wanted = booster.predict(xgboost.DMatrix(features.astype(np.float32)), output_margin=True)
    np.testing.assert_allclose(default._margins(features), wanted, atol=2e-6)


def reseal(model: bytes) -> bytes:
    import hashlib

    return model[:-32] + hashlib.sha256(model[:-32]).digest()


def test_damaged_and_foreign_files_are_refused(trained, tmp_path):
    model = bytearray(trained.model_)
    cases = {
        "empty": b"",
        "text": b"hello" * 100,
        "cut": bytes(model[:-1]),
        "bit": bytes(model[:5000]) + bytes([model[5000] ^ 1]) + bytes(model[5001:]),
    }
    for name, offset in {"container": 8, "features": 12, "count": 16, "format": 24}.items():
        other = bytearray(model)
        struct.pack_into("<I", other, offset, 99)
        cases[name] = reseal(bytes(other))
    other = bytearray(model)
    struct.pack_into("<d", other, 32, float("nan"))
    cases["constant"] = reseal(bytes(other))
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ClassifierFileError, match="not a sound value model"):
            ValueDetector.load(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("left_children", 10_000),
        ("left_children", 0),
        ("left_children", -2),
        ("left_children", 1.5),
        ("right_children", 1),
        ("split_indices", 72),
        ("split_indices", -1),
    ],
)
def test_trees_that_lead_nowhere_are_refused(trained, key, value):
    payload = _as_json(trained)
    tree = payload["learner"]["gradient_booster"]["model"]["trees"][0]
    assert tree["left_children"][0] == 1
    tree[key][0] = value
    with pytest.raises(ValueError, match="not a sound value model"):
        _core.value_load(_with_payload(trained, payload))


def test_a_cycle_in_a_tree_is_refused(trained):
    payload = _as_json(trained)
    tree = payload["learner"]["gradient_booster"]["model"]["trees"][0]
    inner = tree["left_children"].index(3)
    tree["left_children"][inner] = 1
    with pytest.raises(ValueError, match="not a sound value model"):
        _core.value_load(_with_payload(trained, payload))


@pytest.mark.parametrize("key", ["learner_model_param", "objective", "gradient_booster"])
def test_models_without_a_part_are_refused(trained, key):
    payload = _as_json(trained)
    del payload["learner"][key]
    with pytest.raises(ValueError, match="not a sound value model"):
        _core.value_load(_with_payload(trained, payload))


def test_unharmed_json_is_accepted(trained):
    _core.value_load(_with_payload(trained, _as_json(trained)))


def _as_json(detector):
    from anomaly.value import _converted

    return json.loads(_converted(_payload(detector.model_)[0], "json"))


def _with_payload(detector, payload):
    text = json.dumps(payload).encode()
    head = bytearray(detector.model_[:160])
    struct.pack_into("<II", head, 24, 0, len(text))
    return reseal(bytes(head) + text + bytes(32))


def test_task_ids_stay_in_the_folder(tmp_path):
    assert model_path("a.B-9_", tmp_path) == tmp_path / "a.B-9_"
    for bad in ("", "a/b", "..", ".", "x" * 65, "ä", "a b", "a\n", 5):
        with pytest.raises(ParameterError, match="task id must be 1 to 64"):
            model_path(bad, tmp_path)


# --- the shipped model ---


def test_shipped_model_beats_training_free_on_other_synthetic_windows(default):
    fresh, _ = make_windows(300, random_state=2024)
    found = evaluate(default, fresh)
    for kind in ("mult", "shift"):
        assert found["joined"][kind] >= found["training_free"][kind]


def test_shipped_model_is_the_recorded_one(default):
    import hashlib

    record = json.loads(model_path().with_name("value_default_model.json").read_text())
    assert record["sha256"] == hashlib.sha256(default.model_).hexdigest()
    assert record["synthetic"]["joined"]["mult"] > 0.85


def test_real_windows_reach_the_goals(default, shared_data):
    X, y = read_windows(shared_data / "kpi" / "labelled_windows.csv")
    assert X.shape == (150, 903)
    assert len(np.unique(history_groups(X))) < 75
    assert default.predict(X[y]).all()
    assert default.predict(X[~y]).mean() <= 0.04
    found = evaluate(default, X[~y])["joined"]
    assert found["mult"] >= 0.95
    assert found["shift"] >= 0.75
    for kind in ("×0", "×1.75", "×2", "×2.75", "×5", "×10"):
        assert found["each"][kind] >= 0.96


@pytest.mark.parametrize("window", WINDOWS)
def test_any_window_finds_a_jump(default, window):
    rng = np.random.default_rng(window)
    X = rng.poisson(1000, (4, 5 * window + 3)).astype(float)
    X[2:, -1] = 0, 10_000
    model = default.model_
    result, normal, codes = np.empty(4), np.empty(4), np.zeros(4, dtype=np.int32)
    _core.value_test(_core.value_load(model), X, window, result, normal, codes, 1)
    assert (normal[2:] < 0.15).all()
    assert window < 20 or (normal[:2] >= 0.15).all()


# --- in the workflow of tables ---


@pytest.fixture(scope="module")
def table(windows):
    X = windows[:60, -13 * 5 + 2 :]  # the last 63 columns, as windows of 12
    changed, _ = inject_windows(X, 12, random_state=0)
    names = [f"{day}{i}" for day, last in (("c", 25), ("b", 25), ("a", 13)) for i in range(last)]
    frame = pd.DataFrame(np.vstack([X, changed[:20]]), columns=names)
    frame["odd"] = np.repeat([0, 1], [60, len(frame) - 60])
    return frame


def test_detectors_sit_in_the_grids_of_a_table(table):
    from detector import Detector

    detector = Detector(table, label="odd", scaling="none").format(seed=0)
    tuned = detector.tune_parameters(
        ValueDetector(n_estimators=5), {"max_depth": [2, 3], "oversample": [1]}, cv=2
    )
    assert tuned.parameters["max_depth"] in (2, 3)
    rated = detector.tune_parameters(RateDetector(), {"n_sigma": [2.0, 4.0]}, cv=2)
    assert rated.parameters["n_sigma"] in (2.0, 4.0)


def test_detectors_sit_in_the_command_line_search(table, tmp_path):
    import parameters

    table.to_csv(tmp_path / "table.csv", index=False)
    grid = tmp_path / "grid.toml"
    grid.write_text("[value]\nn_estimators = [3, 5]\n\n[rate]\nn_sigma = [2.0, 3.0]\n")
    arguments = ["--data", str(tmp_path / "table.csv"), "--label", "odd", "--scaling", "none"]
    arguments += ["--classifier", "value", "--classifier", "rate", "--grid", str(grid)]
    arguments += ["--cv", "2", "--folder", str(tmp_path / "params"), "--run", "kpi"]
    assert parameters.main(arguments) == 0
    log = (tmp_path / "params" / "kpi.out").read_text()
    assert "anomaly.value.ValueDetector" in log
    assert "anomaly.rate.RateDetector" in log


# --- the command line ---


def write_csv(path, X, labels, window):
    full = 2 * window + 1
    lines = ["data_c,data_b,data_a,label"]
    for row, label in zip(X, labels, strict=True):
        parts = row[:full], row[full : 2 * full], row[2 * full :]
        text = ",".join('"' + ",".join(f"{v:g}" for v in part) + '"' for part in parts)
        lines.append(f"{text},{label}")
    path.write_text("\n".join(lines) + "\n")


def test_command_line_trains_from_a_csv_and_evaluates(windows, tmp_path, capsys):
    changed, _ = inject_windows(windows[:30], 40, random_state=5)
    labels = ["ok"] * 60 + ["bad"] * len(changed)
    write_csv(tmp_path / "w.csv", np.vstack([windows[:60], changed]), labels, 40)
    where = ["--csv", str(tmp_path / "w.csv"), "--anomaly", "bad"]
    where += ["--task", "logins", "--models", str(tmp_path / "models")]
    assert main(["train", *where, "--synthetic", "150"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["labelled_windows"] == 60 + len(changed)
    assert (tmp_path / "models" / "logins").is_file()
    assert main(["evaluate", *where]) == 0
    assert json.loads(capsys.readouterr().out)["anomalies_found"] > 0.3


def test_faults_on_the_command_line_are_one_line(tmp_path, capsys):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "y.csv").write_text('data_c,data_b,data_a,label\n"1,2","1","1",0\n')
    for arguments, text in [
        (["train"], "give --task ID or --out FILE"),
        (["train", "--task", "../x"], "task id must be 1 to 64"),
        (["train", "--out", "m", "--csv", str(tmp_path / "x.csv")], "no column data_c, data_b"),
        (["train", "--out", "m", "--csv", str(tmp_path / "y.csv")], "row 2: data_c, data_b and"),
        (["train", "--out", "m", "--csv", "/no/file"], "No such file"),
        (["evaluate"], "evaluate needs --csv"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("python -m anomaly.value: error: ")
        assert text in error


def test_help_shows_an_example():
    done = subprocess.run(
        [sys.executable, "-m", "anomaly.value", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert "--csv windows.csv" in done.stdout


def test_the_documented_python_runs(tmp_path):
    text = (ROOT / "docs" / "kpi.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[0 0 1]")
    assert done.stdout.endswith("0 0\n")
    assert (tmp_path / "my_model").is_file()


# --- the C library ---


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A copy of libdetect, built as a C user builds it."""
    folder = tmp_path_factory.mktemp("c") / "libdetect"
    shutil.copytree(ROOT / "libdetect", folder, ignore=shutil.ignore_patterns("build", "*.so"))
    model = ["MODEL=" + str(model_path())]
    done = subprocess.run(["make", "-C", folder, *model], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all checks passed" in done.stdout
    assert "warning" not in done.stderr
    return folder


def test_the_c_example_runs(library):
    done = subprocess.run(
        [library / "build" / "example", str(model_path())], capture_output=True, text=True
    )
    assert done.stdout.startswith("value: ret=0 result=0")
    assert "rate: ret=0 result=0" in done.stdout


def test_the_original_ctypes_example_runs(library):
    import ctypes
    from ctypes import POINTER, byref, c_double, c_float, c_int

    so = ctypes.CDLL(str(library / "libdetect.so"))
    if sys.platform == "linux":  # as the original has it: the handle is kept in an int
        handle = so.load_model(str(model_path()).encode())
        assert 0 < handle < 2**31
    else:
        so.load_model.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(so.load_model(str(model_path()).encode()))
    for kind, value, last in ((c_int, 1, 10), (c_double, 1.0, 0.9)):
        fields = [(f"data_{s}", POINTER(kind)) for s in "abc"]
        fields += [(f"len_{s}", c_int) for s in "abc"]
        data_type = type("Data", (ctypes.Structure,), {"_fields_": fields})
        a, b, c = [value] * 180 + [last], [value] * 361, [value] * 361
        arrays = [(kind * len(v))(*v) for v in (a, b, c)]
        data = data_type(*arrays, len(a), len(b), len(c))
        result, prob = c_int(), c_float()
        if kind is c_int:
            code = so.value_predict(handle, byref(data), byref(result), byref(prob))
        else:
            code = so.rate_predict(byref(data), byref(result), byref(prob))
        assert (code, result.value) == (0, 0)
        assert prob.value < 0.15


def test_c_and_python_give_the_same_probabilities(library, default):
    import ctypes

    so = ctypes.CDLL(str(library / "libdetect.so"))
    so.load_model.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(so.load_model(str(model_path()).encode()))
    X, _ = make_windows(50, random_state=8)
    probs = np.empty(50, dtype=np.float32)
    rows = ctypes.c_void_p(X.ctypes.data)
    out = ctypes.c_void_p(probs.ctypes.data)
    so.value_predict_batch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    so.value_predict_batch.argtypes += [ctypes.c_int, *[ctypes.c_void_p] * 3, ctypes.c_int]
    assert so.value_predict_batch(handle, rows, 50, 180, None, out, None, 2) == 0
    assert (probs == default.predict_proba(X)[:, 0].astype(np.float32)).all()


def test_contract_and_mutated_model_files_hold_under_sanitizers(trained, library, tmp_path):
    shipped = f"MODEL={model_path()}"
    done = subprocess.run(
        ["make", "-C", library, "sanitize", shipped, "FUZZ=20"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 mutants" in done.stdout
    assert "all checks passed" in done.stdout
    small = pickle.loads(pickle.dumps(trained))
    for form in ("ubj", "json"):
        small.save(tmp_path / form, format=form)
        fuzz = [library / "build" / "fuzz_sanitized", tmp_path / form, "500"]
        done = subprocess.run(fuzz, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "500 mutants" in done.stdout


def test_command_line_looks_at_the_target_before_it_trains(tmp_path, capsys):
    for out in (tmp_path, tmp_path / "none" / "model"):
        assert main(["train", "--out", str(out), "--synthetic", "12000"]) == 2
        assert f"--out must be a file in an existing folder, got {out}" in capsys.readouterr().err


def test_series_of_the_families_repeat_and_have_no_gaps():
    names = set()
    for seed in range(30):
        values, name = make_series(3, step=15, random_state=seed)
        assert values.shape == (288,)
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values, make_series(3, step=15, random_state=seed)[0])
        names.add(name)
    assert len(names) > 8


def test_segments_start_where_they_are_said_to():
    rng = np.random.default_rng(0)
    before = 100 + rng.normal(size=2880)
    after = before.copy()
    starts, kinds = kpi.put_segments(rng, after)
    assert len(starts) == len(kinds) == 3
    changed = np.flatnonzero(after != before)
    assert {*starts} <= {*changed}
    assert not {start - 1 for start in starts} & {*changed}
    assert 9 <= len(changed) <= 72


def test_segments_are_counted_for_three_methods(capsys):
    index = pd.date_range("2024-01-01", periods=2880, freq="5min")
    series = [pd.Series(make_series(10, random_state=i)[0], index) for i in range(3)]
    table = kpi.soon(series, seed=0)
    assert list(table.columns[0].cells) == ["3 sigma", "training-free", "shipped model"]
    assert "2484 normal points" in capsys.readouterr().out
