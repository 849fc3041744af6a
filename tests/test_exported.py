"""The exported callable and its trailer; oracle: the fitted pipeline's own predict."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from xgboost import XGBClassifier

from anomaly import exported
from anomaly.encoding import RecordEncoder
from anomaly.errors import ClassifierFileError, DataError, ParameterError
from anomaly.exported import ExportedClassifier, export_classifier, unpack, verify
from anomaly.injection import OversampleClassifier
from anomaly.threshold import BudgetDetector
from anomaly.tiles import TileDetector

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"car": (4500, 1800), "human": (300, 500), "motorcycle": (2100, 800)}


def make_records(n=400, seed=0):
    rng = np.random.default_rng(seed)
    names = rng.choice(list(SIZES), n)
    frame = pd.DataFrame(
        {
            "class": names,
            "length": [rng.normal(SIZES[name][0], 100) for name in names],
            "width": [rng.normal(SIZES[name][1], 50) for name in names],
        }
    )
    odd = rng.random(n) < 0.25
    frame.loc[odd, "length"] = rng.uniform(100, 6000, odd.sum())
    return frame, odd.astype(int)


X, Y = make_records()
CLASSIFIERS = {
    "adaboost": AdaBoostClassifier(DecisionTreeClassifier(max_depth=4), n_estimators=8),
    "extra trees": ExtraTreesClassifier(n_estimators=5, random_state=0),
    "forest": RandomForestClassifier(n_estimators=5, random_state=0),
    "gradient boosting": GradientBoostingClassifier(n_estimators=8),
    "histogram boosting": HistGradientBoostingClassifier(max_iter=8),
    "linear svc": LinearSVC(),
    "logistic": LogisticRegression(),
    "mlp": MLPClassifier((8,), max_iter=30, random_state=0),
    "nearest centroid": NearestCentroid(),
    "neighbours": KNeighborsClassifier(),
    "ridge": RidgeClassifier(),
    "svc": SVC(),
    "tree": DecisionTreeClassifier(random_state=0),
    "xgboost": XGBClassifier(n_estimators=8, n_jobs=1),
}
NATIVE = {"adaboost", "extra trees", "forest", "gradient boosting", "histogram boosting", "tree"}


def fit(classifier, **encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few iterations
        return make_pipeline(RecordEncoder(**encoder), classifier).fit(X, Y)


PIPELINES = {name: fit(classifier) for name, classifier in CLASSIFIERS.items()}


@pytest.fixture
def pipeline():
    return PIPELINES["adaboost"]


@pytest.fixture
def path(tmp_path, pipeline):
    return export_classifier(pipeline, tmp_path / "anomaly_classifier.clf", probes=X)


# ---- answers


@pytest.mark.parametrize("name", PIPELINES)
def test_answers_are_those_of_the_pipeline_in_every_form(name):
    fun = ExportedClassifier(PIPELINES[name])
    records, _ = make_records(150, seed=1)
    expected = PIPELINES[name].predict(records) == 1
    assert (fun(records) == expected).all()
    assert (fun(records[["width", "class", "length"]]) == expected).all()
    for record, answer in zip(records.head(25).to_dict("records"), expected, strict=False):
        assert fun(*record.values()) is bool(answer)
        assert fun(record) is bool(answer)
        assert fun(pd.Series(record)) is bool(answer)
        assert fun(class_=record["class"], length=record["length"], width=record["width"]) is bool(
            answer
        )
    assert fun.is_native == (name in NATIVE)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(SIZES)),
            st.floats(-1e30, 1e30) | st.integers(0, 5000),
            st.floats(0, 3000),
        ),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(["adaboost", "forest", "logistic", "mlp", "svc"]),
)
def test_one_record_and_a_frame_agree(records, name):
    fun = ExportedClassifier(PIPELINES[name])
    frame = pd.DataFrame(records, columns=["class", "length", "width"])
    assert fun(frame).tolist() == [fun(*record) for record in records]


def test_records_on_the_boundary_get_one_answer():
    fun = ExportedClassifier(PIPELINES["logistic"])
    model = PIPELINES["logistic"][-1]
    encoder = PIPELINES["logistic"][0]
    width = X["width"].mean()
    rest = model.intercept_[0] + model.coef_[0, 0] + model.coef_[0, 4] * 0.0
    length = encoder.mean_[1] - rest / model.coef_[0, 3] * encoder.scale_[1]
    lengths = length + np.arange(-40, 40) * np.spacing(length)
    frame = pd.DataFrame({"class": "car", "length": lengths, "width": width})
    assert set(fun(frame)) == {True, False}
    assert fun(frame).tolist() == [fun(*record) for record in frame.to_numpy(dtype=object)]


@pytest.mark.parametrize("name", ["forest", "adaboost", "logistic"])
def test_threshold_moves_the_boundary(name):
    pipeline = PIPELINES[name]
    scores = (
        pipeline.decision_function(X)
        if hasattr(pipeline, "decision_function")
        else pipeline.predict_proba(X)[:, 1]
    )
    threshold = float(np.quantile(scores, 0.9))
    fun = ExportedClassifier(pipeline, threshold=threshold)
    assert (fun(X) == (scores > threshold)).all()
    assert fun(X).tolist() == [fun(*record) for record in X.to_numpy(dtype=object)]


def test_threshold_needs_scores():
    silent = make_pipeline(PIPELINES["tree"][0], _Silent(np.array([0, 1])))
    assert ExportedClassifier(silent)("car", 4500, 1800) is False
    with pytest.raises(ParameterError, match="has no scores"):
        ExportedClassifier(silent, threshold=1.0)


class _Silent:
    """A classifier that has labels and nothing else."""

    def __init__(self, classes):
        self.classes_ = classes

    def fit(self, X, y=None):
        return self

    def predict(self, X):
        return np.repeat(self.classes_[0], len(X))


def test_other_steps_between_encoder_and_classifier_run_too():
    pipeline = make_pipeline(RecordEncoder(), StandardScaler(), DecisionTreeClassifier()).fit(X, Y)
    fun = ExportedClassifier(pipeline)
    assert not fun.is_native
    assert (fun(X) == pipeline.predict(X)).all()


def test_pipeline_fitted_on_arrays_numbers_its_fields():
    pipeline = make_pipeline(RecordEncoder(), DecisionTreeClassifier()).fit(X.to_numpy(), Y)
    fun = ExportedClassifier(pipeline)
    assert fun.columns == ("x0", "x1", "x2")
    assert fun("car", 4500.0, 1800.0) is bool(pipeline.predict([["car", 4500.0, 1800.0]])[0])
    renamed = X.set_axis(["x0", "x1", "x2"], axis=1)
    assert (fun(renamed) == pipeline.predict(X.to_numpy())).all()


@pytest.mark.parametrize("labels", [(False, True), ("fine", "odd")])
def test_second_class_is_malicious_whatever_its_name(labels):
    names = np.array(labels)[Y]
    pipeline = make_pipeline(RecordEncoder(), DecisionTreeClassifier()).fit(X, names)
    assert (ExportedClassifier(pipeline)(X) == (pipeline.predict(X) == labels[1])).all()


def test_oversampling_is_taken_off(tmp_path):
    outside = OversampleClassifier(
        make_pipeline(RecordEncoder(), DecisionTreeClassifier(max_depth=3)), oversample=2,
        random_state=0,
    ).fit(X, Y)  # fmt: skip
    fun = ExportedClassifier(outside)
    assert fun.is_native
    assert (fun(X) == outside.predict(X)).all()
    inside = make_pipeline(
        RecordEncoder(),
        OversampleClassifier(DecisionTreeClassifier(max_depth=3), oversample=2, random_state=0),
    ).fit(X, Y)
    assert ExportedClassifier(inside).is_native
    assert (ExportedClassifier(inside)(X) == inside.predict(X)).all()
    assert b"OversampleClassifier" not in pickle.dumps(fun)


# ---- refusals


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (("truck", 1.0, 1.0), "class: unknown category 'truck'; allowed: 'car', 'human', 'motor"),
        (("humna", 1.0, 1.0), "did you mean 'human'?"),
        (("car", None, 1.0), "length: value is missing"),
        (("car", 1.0, float("nan")), "width: value is missing"),
        ((None, 1.0, 1.0), "class: value is missing"),
        (("car", float("inf"), 1.0), "length: a finite number is needed, got infinity"),
        (("car", "4500", 1.0), "length: a number is needed, got '4500'"),
        (("car", 1e300, 1.0), "length: the value is too large for this classifier"),
        ((["car"], 1.0, 1.0), "class: a category is needed"),
    ],
)
@pytest.mark.parametrize("name", ["adaboost", "histogram boosting", "mlp"])
def test_a_bad_value_is_named_for_one_record_and_for_a_frame(name, record, message):
    if record[1] == 1e300 and name != "adaboost":
        return  # these compare doubles
    fun = ExportedClassifier(PIPELINES[name])
    with pytest.raises(ValueError) as one:
        fun(*record)
    assert message in str(one.value)
    columns = {
        column: pd.Series([good, value], dtype=object)
        for column, good, value in zip(fun.columns, ("car", 4500.0, 1800.0), record, strict=True)
    }
    with pytest.raises(ValueError) as batch:
        fun(pd.DataFrame(columns))
    assert str(batch.value).startswith(message.partition(":")[0] if ":" in message else "class")
    if "category is needed" not in message:
        assert "row 1" in str(batch.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("car", 1.0), "expected the 3 values class, length, width, got 2 by position and 0 by n"),
        (("car", 1.0), "; width is missing"),
        (("car", 1.0, 2.0, 3.0), "got 4 by position"),
        ((), "got 0 by position"),
        (({"class": "car", "length": 1.0},), "fields are class, length, width; missing width"),
        (
            ({"class": "car", "length": 1.0, "wdith": 1.0},),
            "missing width; unknown 'wdith'",
        ),
        (({"class": "car", "length": 1.0, "width": 1.0, "id": 7},), "unknown 'id'"),
        ((pd.DataFrame({"class": ["car"], "length": [1.0]}),), "missing width"),
        ((X.assign(id=1),), "unknown 'id'"),
        ((pd.concat([X, X[["width"]]], axis=1),), "repeated 'width'"),
    ],
)
def test_a_missing_or_extra_field_is_named(pipeline, arguments, message):
    with pytest.raises(DataError) as error:
        ExportedClassifier(pipeline)(*arguments)
    assert message in str(error.value)


def test_position_and_name_do_not_mix(pipeline):
    with pytest.raises(DataError, match="2 by position and 1 by name"):
        ExportedClassifier(pipeline)("car", 1.0, width=2.0)


def test_no_records_get_no_answers(pipeline):
    assert ExportedClassifier(pipeline)(X.head(0)).tolist() == []


@pytest.mark.parametrize(
    ("pipeline", "options", "message"),
    [
        (DecisionTreeClassifier(), {}, "first step is a RecordEncoder"),
        (make_pipeline(StandardScaler(), SVC()), {}, "first step is a RecordEncoder"),
        (make_pipeline(RecordEncoder(), SVC()), {}, "two classes are needed, got None"),
        (PIPELINES["tree"], {"missing": "ignore"}, "must be one of error, malicious, fill, pass"),
        (PIPELINES["tree"], {"missing": "pass"}, r"RecordEncoder\(missing='keep'\)"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_refused(pipeline, options, message):
    with pytest.raises(ParameterError, match=message):
        ExportedClassifier(pipeline, **options)


# ---- missing values


HOLES = [("car", None, 1800.0), (None, 4500.0, 1800.0), ("car", 4500.0, float("nan"))]


@pytest.mark.parametrize("name", ["adaboost", "mlp"])
def test_missing_values_can_be_malicious(name):
    fun = ExportedClassifier(PIPELINES[name], missing="malicious")
    records = [*HOLES, ("car", 4500.0, 1800.0)]
    frame = pd.DataFrame(records, columns=list(fun.columns))
    assert fun(frame).tolist() == [True, True, True, fun(*records[-1])]
    assert [fun(*record) for record in HOLES] == [True] * 3
    assert fun(*records[-1]) is False
    with pytest.raises(DataError, match="unknown category"):
        fun("truck", None, 1.0)


@pytest.mark.parametrize("name", ["adaboost", "mlp"])
def test_missing_values_can_be_filled(name):
    fun = ExportedClassifier(PIPELINES[name], missing="fill")
    common, length, width = PIPELINES[name][0].fill_values_
    assert common == X["class"].mode()[0]
    assert length == X["length"].median()
    filled = [("car", length, 1800.0), (common, 4500.0, 1800.0), ("car", 4500.0, width)]
    expected = [fun(*record) for record in filled]
    assert [fun(*record) for record in HOLES] == expected
    assert fun(pd.DataFrame(HOLES, columns=list(fun.columns))).tolist() == expected
    with pytest.raises(DataError, match="missing width"):
        fun({"class": "car", "length": 1.0})  # a missing field is no missing value


@pytest.mark.parametrize(
    "classifier",
    [RandomForestClassifier(5, random_state=0), HistGradientBoostingClassifier(max_iter=5)],
    ids=lambda c: type(c).__name__,
)
def test_missing_values_can_be_passed_on(classifier):
    holes = X.copy()
    holes.loc[::7, "length"] = np.nan
    holes.loc[::11, "class"] = None
    pipeline = make_pipeline(RecordEncoder(missing="keep"), classifier).fit(holes, Y)
    fun = ExportedClassifier(pipeline, missing="pass")
    expected = pipeline.predict(holes) == 1
    assert (fun(holes) == expected).all()
    assert [fun(*r) for r in holes.to_numpy(dtype=object)] == expected.tolist()
    strict = ExportedClassifier(pipeline)
    with pytest.raises(DataError, match="length, row 0: value is missing"):
        strict(holes[["class", "length", "width"]].assign(**{"class": "car"}))


@pytest.mark.parametrize("classifier", [AdaBoostClassifier(n_estimators=3), LogisticRegression()])
def test_passing_on_what_the_classifier_cannot_take_is_refused(classifier):
    pipeline = fit(classifier, missing="keep")
    with pytest.raises(ParameterError, match="the classifier takes no missing values"):
        ExportedClassifier(pipeline, missing="pass")


def test_any_index_of_a_frame_will_do():
    fun = ExportedClassifier(PIPELINES["forest"], missing="fill")
    odd = X.head(6).set_axis([3, 3, 0, -1, 3, 0]).assign(length=[None, 1.0, 2.0, None, 5.0, 9e3])
    assert fun(odd).tolist() == fun(odd.reset_index(drop=True)).tolist()


# ---- the file


def test_the_original_script_runs_anywhere(path, tmp_path, pipeline):
    script = tmp_path / "original.py"
    script.write_text(
        "import pickle\n"
        f"fun = pickle.load(open({path.name!r}, 'rb'))\n"
        "class_, length, width = 'car', 4500, 1800\n"
        "print('malicious' if fun(class_, length, width) else 'non-malicious')\n"
        "print('malicious' if fun('human', 4500, 500) else 'non-malicious')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["non-malicious", "malicious"]


def test_the_header_repeats_the_promise_of_a_threshold(tmp_path):
    records = pd.DataFrame(np.random.default_rng(0).normal(size=(400, 2)), columns=["a", "b"])
    budget = BudgetDetector(alarms_per_day=2, rows_per_day=50, random_state=0)
    fitted = make_pipeline(RecordEncoder(), budget).fit(records)
    path = export_classifier(fitted, tmp_path / "budget.clf", probes=records)
    promise = fitted[-1].threshold_.promise
    assert verify(path.read_bytes()).header["classifier"]["promise"] == promise


def test_the_header_describes_the_classifier(tmp_path, pipeline):
    path = export_classifier(
        pipeline,
        tmp_path / "c.clf",
        probes=X,
        threshold=np.float64(0.25),
        missing="fill",
        scores={"F1": np.float64(0.95), "folds": np.array([0.9, 1.0]), "PPV": float("nan")},
        fingerprint={"rows": np.int64(400), "sha256": "ab"},
    )
    header = verify(path.read_bytes()).header
    assert header["format_version"] == 1
    assert header["schema"] == [
        {"name": "class", "kind": "category", "allowed": ["car", "human", "motorcycle"]},
        {"name": "length", "kind": "number"},
        {"name": "width", "kind": "number"},
    ]
    assert header["scores"] == {"F1": 0.95, "folds": [0.9, 1.0], "PPV": None}
    assert header["training"] == {"rows": 400, "sha256": "ab"}
    assert header["classifier"]["class"] == "AdaBoostClassifier"
    assert header["classifier"]["parameters"]["n_estimators"] == "8"
    assert (header["threshold"], header["missing"], header["native"]) == (0.25, "fill", True)
    assert set(header["requires"]) == {"scikit-learn"}
    assert len(header["probes"]) == 16
    assert {probe["malicious"] for probe in header["probes"]} == {True, False}
    json.dumps(header, allow_nan=False)


def test_probes_are_sixteen_even_if_one_answer_is_rare(tmp_path, pipeline):
    records = X[pipeline.predict(X) == 0]
    only = export_classifier(pipeline, tmp_path / "a.clf", probes=records)
    assert len(verify(only.read_bytes()).header["probes"]) == 16
    rare = pd.concat([records, X[pipeline.predict(X) == 1].head(2)])
    mixed = export_classifier(pipeline, tmp_path / "b.clf", probes=rare)
    answers = [probe["malicious"] for probe in verify(mixed.read_bytes()).header["probes"]]
    assert (len(answers), sum(answers)) == (16, 2)
    few = export_classifier(pipeline, tmp_path / "c.clf", probes=X.head(3))
    assert len(verify(few.read_bytes()).header["probes"]) == 3
    with pytest.raises(ParameterError, match="at least one record"):
        export_classifier(pipeline, tmp_path / "d.clf", probes=X.head(0))
    assert not (tmp_path / "d.clf").exists()


def test_library_of_the_classifier_is_required_too(tmp_path):
    path = export_classifier(PIPELINES["xgboost"], tmp_path / "c.clf", probes=X)
    assert set(verify(path.read_bytes()).header["requires"]) == {"scikit-learn", "xgboost"}


def test_same_classifier_same_bytes(tmp_path, pipeline):
    first = export_classifier(pipeline, tmp_path / "a.clf", probes=X).read_bytes()
    assert export_classifier(pipeline, tmp_path / "b.clf", probes=X).read_bytes() == first


def test_export_refuses_wrong_options(tmp_path, pipeline):
    with pytest.raises(ParameterError, match="format: must be pickle or skops, got 'joblib'"):
        export_classifier(pipeline, tmp_path / "c.clf", probes=X, format="joblib")
    with pytest.raises(ParameterError, match="key: must not be empty"):
        export_classifier(pipeline, tmp_path / "c.clf", probes=X, key="")
    with pytest.raises(ParameterError, match="in the header, got"):
        export_classifier(pipeline, tmp_path / "c.clf", probes=X, scores={"F1": object()})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["pickle", "skops"])
@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_written_can_be_read_and_answers_the_same(tmp_path, name, format):
    path = export_classifier(PIPELINES[name], tmp_path / "c.clf", probes=X, format=format)
    contents = verify(path.read_bytes())
    fun = unpack(contents)
    assert (fun(X) == ExportedClassifier(PIPELINES[name])(X)).all()
    assert fun.header == contents.header
    assert (format == "pickle") == contents.payload.startswith(b"\x80\x05")


def test_skops_holds_no_pickle_and_only_trusted_types(tmp_path, pipeline, monkeypatch):
    path = export_classifier(pipeline, tmp_path / "c.clf", probes=X, format="skops")
    monkeypatch.setattr(exported.pickle, "loads", None)
    contents = verify(path.read_bytes())
    assert unpack(contents)("human", 4500, 500) is True
    monkeypatch.setattr(exported, "_TRUSTED", frozenset())
    with pytest.raises(ClassifierFileError, match=r"types not trusted: sklearn.tree._tree.Tree"):
        unpack(contents)
    assert unpack(contents, trusted=["sklearn.tree._tree.Tree"])("car", 4500, 1800) is False
    with pytest.raises(ClassifierFileError, match="types not trusted"):
        export_classifier(pipeline, tmp_path / "d.clf", probes=X, format="skops")


# ---- keys


def test_a_signed_file_needs_its_key(tmp_path, pipeline, monkeypatch):
    monkeypatch.delenv("ANOMALY_KEY", raising=False)
    path = export_classifier(pipeline, tmp_path / "c.clf", probes=X, key="secret")
    data = path.read_bytes()
    assert verify(data, "secret").signed
    assert verify(data, b"secret").signed
    with pytest.raises(ClassifierFileError, match="is signed; set its key in ANOMALY_KEY"):
        verify(data)
    with pytest.raises(ClassifierFileError, match="another key, or altered"):
        verify(data, "other")
    assert verify(data, check_signature=False).header["format_version"] == 1
    monkeypatch.setenv("ANOMALY_KEY", "secret")
    assert verify(data).signed
    assert b"secret" not in data


def test_a_key_demands_a_signature(path, monkeypatch):
    with pytest.raises(ClassifierFileError, match="is not signed, and a key was given"):
        verify(path.read_bytes(), "secret")
    monkeypatch.setenv("ANOMALY_KEY", "secret")
    with pytest.raises(ClassifierFileError, match="is not signed"):
        verify(path.read_bytes())


def test_the_key_of_the_environment_signs(tmp_path, pipeline, monkeypatch):
    monkeypatch.setenv("ANOMALY_KEY", "secret")
    path = export_classifier(pipeline, tmp_path / "c.clf", probes=X)
    assert verify(path.read_bytes(), "secret").signed
    monkeypatch.setenv("ANOMALY_KEY", "")
    assert not verify(export_classifier(pipeline, path, probes=X).read_bytes()).signed


def test_a_signature_cannot_be_taken_off_or_forged(tmp_path, pipeline):
    data = export_classifier(pipeline, tmp_path / "c.clf", probes=X, key="secret").read_bytes()
    contents = verify(data, "secret")
    header = data[len(contents.payload) : -exported._FOOTER.size]
    unsigned = exported._sealed(contents.payload, header, None)
    forged = exported._sealed(contents.payload, header, b"guess")
    for altered in (unsigned, forged):
        with pytest.raises(ClassifierFileError):
            verify(altered, "secret")


# ---- damage


@pytest.fixture
def no_unpickling(monkeypatch):
    def refuse(*_):
        raise AssertionError("unpickled before it was verified")

    monkeypatch.setattr(exported.pickle, "loads", refuse)


@pytest.mark.parametrize("key", [None, "secret"])
def test_every_flipped_bit_is_found_before_unpickling(tmp_path, pipeline, key, no_unpickling):
    data = export_classifier(pipeline, tmp_path / "c.clf", probes=X, key=key).read_bytes()
    footer = range(len(data) - exported._FOOTER.size - 300, len(data))
    positions = {*np.linspace(0, len(data) - 1, 400).astype(int).tolist(), *footer}
    for position in positions:
        altered = bytearray(data)
        altered[position] ^= 1 << (position % 8)
        with pytest.raises(ClassifierFileError):
            unpack(verify(bytes(altered), key))


def test_every_truncation_and_addition_is_found(path, no_unpickling):
    data = path.read_bytes()
    cuts = {*range(300), *np.linspace(0, len(data) - 1, 400).astype(int).tolist()}
    for cut in cuts:
        with pytest.raises(ClassifierFileError):
            verify(data[:cut])
        with pytest.raises(ClassifierFileError):
            verify(data[: len(data) - cut] if cut else data + b"\0")
        with pytest.raises(ClassifierFileError):
            verify(data[cut + 1 :])
    with pytest.raises(ClassifierFileError):
        verify(b"\0" + data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused_in_one_sentence(data):
    with pytest.raises(ClassifierFileError) as error:
        verify(data)
    assert "\n" not in str(error.value)


class Bomb:
    """Unpickling this leaves a mark."""

    fell = False

    def __reduce__(self):
        return (exec, ("import tests.test_exported as t; t.Bomb.fell = True",))


def test_a_foreign_pickle_is_never_run(path, pipeline):
    bomb = pickle.dumps(Bomb())
    with pytest.raises(ClassifierFileError, match="not an exported classifier"):
        verify(bomb)
    data = path.read_bytes()
    n = len(verify(data).payload)
    with pytest.raises(ClassifierFileError):
        verify(bomb + data[n:])
    padded = bomb.ljust(n, b"\0") + data[n:]
    with pytest.raises(ClassifierFileError, match="SHA-256 does not match"):
        verify(padded)
    assert not Bomb.fell


def resealed(path, data=None, **changes):
    """A file with a sound trailer and other contents."""
    contents = verify(path.read_bytes())
    header = json.dumps({**contents.header, **changes}).encode()
    return exported._sealed(data or contents.payload, header, None)


def test_another_version_is_refused_and_named(path):
    skewed = verify(resealed(path, requires={"scikit-learn": "0.24.2"}))
    with pytest.raises(
        ClassifierFileError, match=r"made with scikit-learn 0.24.2, but here it is"
    ):
        unpack(skewed)
    assert unpack(skewed, skew="accept")("car", 4500, 1800) is False
    with pytest.raises(ParameterError, match="skew: must be refuse or accept"):
        unpack(skewed, skew="maybe")
    absent = verify(resealed(path, requires={"no-such-library": "1"}))
    with pytest.raises(ClassifierFileError, match="no-such-library 1, but here it is absent"):
        unpack(absent)


def test_another_format_is_refused_and_named(path, monkeypatch):
    monkeypatch.setattr(exported, "FORMAT_VERSION", 2)
    with pytest.raises(ClassifierFileError, match="written in format 1, but this version reads"):
        verify(path.read_bytes())


def test_a_probe_with_another_answer_is_refused(path):
    probes = verify(path.read_bytes()).header["probes"]
    probes[3]["malicious"] = not probes[3]["malicious"]
    with pytest.raises(ClassifierFileError, match="1 of 16 probe records get another answer"):
        unpack(verify(resealed(path, probes=probes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": []}, "names other fields"),
        ({"schema": None}, "header is incomplete"),
        ({"requires": ["scikit-learn"]}, "header is incomplete"),
        ({"payload": "joblib"}, "unknown contents 'joblib'"),
        ({"payload": "skops"}, "cannot be loaded here"),
        ({"probes": [{"record": {"class": "truck"}, "malicious": True}]}, "cannot be loaded here"),
        ({"probes": [1]}, "cannot be loaded here"),
    ],
)
def test_a_wrong_header_is_refused(path, changes, message):
    with pytest.raises(ClassifierFileError, match=message):
        unpack(verify(resealed(path, **changes)))


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (pickle.dumps([1]), "something else than a classifier"),
        (b"\x80\x05garbage", "cannot be loaded here: "),
        (b"cno_such_module\nthing\n.", "cannot be loaded here: ModuleNotFoundError"),
    ],
)
def test_other_contents_are_refused(path, payload, message):
    with pytest.raises(ClassifierFileError, match=message):
        unpack(verify(resealed(path, data=payload)))


def test_a_header_that_is_no_json_is_refused(path):
    with pytest.raises(ClassifierFileError, match="its header is not JSON"):
        verify(exported._sealed(b"x", b"{", None))
    with pytest.raises(ClassifierFileError, match="its header is incomplete"):
        verify(exported._sealed(b"x", b"[]", None))


def test_nothing_is_written_that_disagrees_with_the_pipeline(tmp_path, pipeline, monkeypatch):
    monkeypatch.setattr(
        ExportedClassifier, "_decide", lambda self, frame: np.ones(len(frame), dtype=bool)
    )
    with pytest.raises(ClassifierFileError):
        export_classifier(pipeline, tmp_path / "c.clf", probes=X)
    assert list(tmp_path.iterdir()) == []


def test_repr_names_classifier_and_fields(pipeline):
    assert repr(ExportedClassifier(pipeline)) == (
        "<AdaBoostClassifier of (class, length, width), true if malicious>"
    )


def test_stream_detectors_are_refused(tmp_path):
    pipeline = make_pipeline(RecordEncoder(), TileDetector(20)).fit(X, Y)
    with pytest.raises(ParameterError, match="TileDetector judges a record by those before it"):
        export_classifier(pipeline, tmp_path / "c.clf", probes=X)
    assert list(tmp_path.iterdir()) == []
