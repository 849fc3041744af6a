"""The original's Python interface: answers, faults and their order, models by task id."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import anomaly
from anomaly.kpi_families import make_windows
from anomaly.value import ValueDetector, model_path


def request(window=180, last="458", **changes):
    rng = np.random.default_rng(0)
    c, b, a = (",".join(map(str, rng.poisson(50, n))) for n in (2 * window + 1,) * 2 + (window,))
    return {"window": window, "dataC": c, "dataB": b, "dataA": f"{a},{last}", **changes}


@pytest.fixture(scope="module")
def detect():
    return anomaly.Detect()


def test_values_are_tested(detect):
    full = {
        **request(last="458"),
        "viewId": "2012",
        "viewName": "登陆功能",
        "attrId": "19201",
        "taskId": "",
        "attrName": "ptlogin登陆请求总量",
        "time": "2018-10-17 17:28:00",
    }
    code, answer = detect.value_predict(full)
    assert code == 0
    assert list(answer) == ["ret", "p"]
    assert answer["ret"] == 0
    assert isinstance(answer["p"], str)
    assert float(answer["p"]) < 0.15
    code, answer = detect.value_predict(request(last="50"))
    assert (code, answer["ret"]) == (0, 1)
    assert float(answer["p"]) >= 0.15


def test_rates_are_tested(detect):
    data = request(last="49.5")
    assert detect.rate_predict(data)[1]["ret"] == 1
    assert detect.rate_predict({**data, "dataA": data["dataA"][:-4] + "0"})[1]["ret"] == 0
    del data["window"]
    assert detect.rate_predict(data)[0] == 0


def test_answers_equal_the_estimators(detect):
    X, _ = make_windows(20, random_state=4)
    normal = ValueDetector.load(model_path()).predict_proba(X)[:, 0]
    for row, wanted in zip(X, normal, strict=True):
        texts = [",".join(map(repr, part.tolist())) for part in np.split(row, [361, 722])]
        data = dict(zip(("dataC", "dataB", "dataA"), texts, strict=True))
        code, answer = detect.value_predict(data)
        assert code == 0
        assert float(answer["p"]) == pytest.approx(wanted, rel=1e-6)
        assert answer["ret"] == int(not wanted < 0.15)


@pytest.mark.parametrize("window", [10, 40, 300])
def test_any_window_will_do(detect, window):
    assert detect.value_predict(request(window))[0] == 0
    data = request(window)
    del data["window"]
    assert detect.value_predict(data)[0] == 0


LONG = request()["dataC"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dataA": None}, "missing parameter"),
        ({"dataB": None, "dataA": ""}, "missing parameter"),
        ({"dataC": None}, "missing parameter"),
        ({"dataA": ""}, "dataA can not be empty"),
        ({"dataB": "", "dataA": "x"}, "dataB can not be empty"),
        ({"dataC": " "}, "dataC can not be empty"),
        ({"dataA": "1,x"}, "dataA contains illegal numbers"),
        ({"dataA": "1,nan"}, "dataA contains illegal numbers"),
        ({"dataA": "1,,2"}, "dataA contains illegal numbers"),
        ({"dataA": [1, 2]}, "dataA contains illegal numbers"),
        ({"dataA": "\ud800"}, "dataA contains illegal numbers"),
        ({"dataB": "1;2", "dataC": "1"}, "dataB contains illegal numbers"),
        ({"dataC": "1e999", "dataA": "1"}, "dataC contains illegal numbers"),
        ({"dataC": "1", "dataB": "1", "dataA": "1"}, "dataC length does not match"),
        ({"dataB": "1", "dataA": "1"}, "dataB length does not match"),
        ({"dataA": "1"}, "dataA length does not match"),
        ({"dataA": LONG}, "dataA length does not match"),
        ({"window": 100}, "dataC length does not match"),
        ({"window": 9}, "window must be 10 to 100000"),
        ({"window": 10**9}, "window must be 10 to 100000"),
        ({"window": "x"}, "window contains illegal numbers"),
        ({"window": True}, "window contains illegal numbers"),
        ({"window": 180.5}, "window contains illegal numbers"),
    ],
)
def test_faults_are_found_in_order(detect, changes, text):
    data = {key: value for key, value in {**request(), **changes}.items() if value is not None}
    assert detect.value_predict(data) == (1002, text)
    assert detect.rate_predict(data) == (1002, text)


def test_what_is_no_request_is_a_missing_parameter(detect):
    for data in ({}, None, [], "x"):
        assert detect.value_predict(data) == (1002, "missing parameter")


def test_huge_numbers_are_illegal(detect):
    data = request(last="1e200")
    assert detect.value_predict(data) == (1002, "data contains illegal numbers")


def test_models_are_looked_up_by_task_id(tmp_path):
    shutil.copy(model_path(), tmp_path / "1530608070706")
    (tmp_path / "broken").write_bytes(b"x")
    detect = anomaly.Detect(models=tmp_path)
    assert detect.value_predict(request(taskId="1530608070706"))[0] == 0
    for task, text in [
        ("../1530608070706", "taskId is illegal"),
        (5, "taskId is illegal"),
        ("other", "taskId has no model: other"),
        ("broken", "taskId has no sound model: broken"),
    ]:
        code, answer = detect.value_predict(request(taskId=task))
        assert code == 1002
        assert answer.startswith(text)


def test_a_model_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    from anomaly import _core, detect

    reads = []

    class Counting:
        def __getattr__(self, name):
            if name == "value_load":
                reads.append(name)
            return getattr(_core, name)

    monkeypatch.setattr(detect, "_core", Counting())
    shutil.copy(model_path(), tmp_path / "m")
    tested = anomaly.Detect(models=tmp_path)
    answers = [tested.value_predict(request(taskId="m")) for _ in range(3)]
    assert len(reads) == 1
    ValueDetector.load(model_path()).save(tmp_path / "m", format="json")
    assert tested.value_predict(request(taskId="m")) == answers[0]
    assert len(reads) == 2


def test_models_folder_comes_from_the_environment(tmp_path, monkeypatch):
    shutil.copy(model_path(), tmp_path / "task")
    monkeypatch.setenv("ANOMALY_MODELS", str(tmp_path))
    assert anomaly.Detect().value_predict(request(taskId="task"))[0] == 0
