"""The production script; oracle: the loaded classifier, record by record."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import AdaBoostClassifier
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier

from anomaly.encoding import RecordEncoder
from anomaly.errors import ClassifierFileError, DataError
from anomaly.exported import ExportedClassifier, export_classifier
from production import classify
from production.classify import Tally, classify_rows, inspect, load, main

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "production" / "classify.py"


def make_records(n, seed=0):
    rng = np.random.default_rng(seed)
    car = rng.random(n) < 0.5
    return pd.DataFrame(
        {
            "class": np.where(car, "car", "human"),
            "length": np.where(car, rng.uniform(3500, 5000, n), rng.uniform(200, 400, n)).round(1),
            "width": np.where(car, rng.uniform(1500, 2000, n), rng.uniform(300, 600, n)).round(1),
        }
    )


def fit(missing="error", n=300):
    records = make_records(n)
    odd = np.arange(n) % 4 == 0
    records.loc[odd, "length"] = np.random.default_rng(1).uniform(500, 3000, odd.sum())
    classifier = AdaBoostClassifier(DecisionTreeClassifier(max_depth=3), n_estimators=5)
    return make_pipeline(RecordEncoder(), classifier).fit(records, odd.astype(int)), records


PIPELINE, RECORDS = fit()
FUN = ExportedClassifier(PIPELINE)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.delenv("ANOMALY_KEY", raising=False)
    return export_classifier(PIPELINE, tmp_path / "anomaly_classifier.clf", probes=RECORDS)


def run(arguments, cwd, stdin=None, env=None, check=0):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


def csv_text(frame, **options):
    return frame.to_csv(index=False, **options)


def expected_rows(frame):
    labels = ["01"[FUN(*record)] for record in frame.to_numpy(dtype=object)]
    return [[*map(str, r), label] for r, label in zip(frame.to_numpy(), labels, strict=True)]


# ---- load and inspect


def test_load_gives_the_function_and_its_header(path):
    fun = load(path)
    assert fun("car", 4500, 1800) is False
    assert fun("human", 2000.0, 500.0) is True
    assert fun.header == {k: v for k, v in inspect(path).items() if k != "signed"}


def test_load_names_the_file_it_refuses(path, tmp_path):
    data = path.read_bytes()
    cut = tmp_path / "cut.clf"
    cut.write_bytes(data[:-1])
    with pytest.raises(ClassifierFileError, match=r"cut\.clf: not an exported classifier, or its"):
        load(cut)
    with pytest.raises(ClassifierFileError, match=r"cut\.clf: not an exported"):
        inspect(cut)
    with pytest.raises(ClassifierFileError, match="larger than 100 bytes"):
        load(path, max_bytes=100)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.clf")


def test_load_unpickles_the_bytes_it_verified(path, monkeypatch):
    """The file is opened once: swapping it between check and use gains nothing."""
    opened = []
    real = open
    monkeypatch.setattr(
        "builtins.open", lambda file, *a, **k: (opened.append(file), real(file, *a, **k))[1]
    )
    load(path)
    assert [Path(f) for f in opened if str(f).endswith(".clf")] == [path]


def test_load_checks_the_key(tmp_path, monkeypatch):
    path = export_classifier(PIPELINE, tmp_path / "c.clf", probes=RECORDS, key="secret")
    monkeypatch.delenv("ANOMALY_KEY", raising=False)
    with pytest.raises(ClassifierFileError, match="set its key in ANOMALY_KEY"):
        load(path)
    assert load(path, "secret")("car", 4500, 1800) is False
    monkeypatch.setenv("ANOMALY_KEY", "secret")
    assert load(path)("car", 4500, 1800) is False
    monkeypatch.setenv("ANOMALY_KEY", "wrong")
    assert inspect(path)["signed"] is True


def test_inspect_unpickles_nothing(path, monkeypatch, capsys):
    monkeypatch.setattr("anomaly.exported.pickle.loads", None)
    assert main(["inspect", str(path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["format"] == "anomaly classifier"
    assert shown["signed"] is False
    assert len(shown["probes"]) == 16


# ---- the stream


def stream(text, **options):
    return list(classify_rows(FUN, io.StringIO(text, newline=""), **options))


@pytest.mark.parametrize("chunk_size", [1, 7, 4096])
def test_a_stream_is_answered_as_the_function_answers(chunk_size):
    records = make_records(100, seed=3)
    rows = stream(csv_text(records), chunk_size=chunk_size)
    assert rows[0] == ["class", "length", "width", "malicious"]
    assert rows[1:] == expected_rows(records)


def test_columns_in_any_order_and_others_are_carried_along():
    rows = stream("id;width;note;length;class\n7;1800;a,b;4500;car\n8;500;;2000;human\n")
    assert rows == [
        ["id", "width", "note", "length", "class", "malicious"],
        ["7", "1800", "a,b", "4500", "car", "0"],
        ["8", "500", "", "2000", "human", "1"],
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separator_is_found_and_spaces_and_bom_are_forgiven(separator):
    text = "\ufeffclass,length,width\r\n car , 4500 ,1800\r\n\r\n".replace(",", separator)
    assert stream(text)[1][-1] == "0"
    assert len(stream(text)) == 2


def test_decimal_comma():
    assert stream("class;length;width\ncar;4500,5;1800,0\n", decimal=",")[1][-1] == "0"
    with pytest.raises(DataError, match=r"line 2: length: a number is needed, got '4\.500,5'"):
        stream("class;length;width\ncar;4.500,5;1800\n", decimal=",")


HEADER = "class,length,width\n"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("truck,4500,1800", "class: unknown category 'truck'; allowed: 'car', 'human'"),
        ("car,long,1800", "length: a number is needed, got 'long'"),
        ("car,4_500,1800", "length: a number is needed, got '4_500'"),
        ("car,inf,1800", "length: a finite number is needed, got infinity"),
        ("car,1e999,1800", "length: a finite number is needed"),
        ("car,1e300,1800", "length: the value is too large"),
        ("car,,1800", "length: value is missing"),
        ("car,NaN,1800", "length: value is missing"),
        (",4500,1800", "class: value is missing"),
        ("NA,4500,1800", "class: value is missing"),
        ("car,4500", "2 cells, but the header has 3"),
        ("car,4500,1800,1", "4 cells, but the header has 3"),
    ],
)
def test_a_bad_record_is_named_by_line_and_handled_as_told(line, fault):
    text = f"{HEADER}car,4500,1800\n{line}\nhuman,2000,500\n"
    with pytest.raises(DataError) as error:
        stream(text)
    assert str(error.value).startswith(f"line 3: {fault}")
    told, tally = [], Tally()
    rows = stream(text, bad="skip", report=told.append, tally=tally)
    assert [row[-1] for row in rows[1:]] == ["0", "1"]
    assert told[0].startswith(f"line 3: {fault}")
    assert tally == Tally(records=3, malicious=1, bad=1)
    marked = stream(text, bad="mark")
    assert marked[0][-2:] == ["malicious", "problem"]
    assert [row[3] for row in marked[1:]] == ["0", "", "1"]
    assert marked[2][4].startswith(fault)
    assert {len(row) for row in marked} == {5}


def test_records_before_a_bad_one_are_answered_first():
    rows = classify_rows(FUN, io.StringIO(f"{HEADER}car,4500,1800\ncar,x,1\n"), chunk_size=1)
    assert next(rows)[-1] == "malicious"
    assert next(rows) == ["car", "4500", "1800", "0"]
    with pytest.raises(DataError, match="line 3"):
        next(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: a header"),
        ("\n", "line 1: a header"),
        (
            "class,length\ncar,1\n",
            "line 1: the header has no width; needed are class, length, wid",
        ),
        ("class,length,width,width\ncar,1,2,3\n", "line 1: the header repeats width"),
        ('class,length,width\n"car,1,2\n', "line 2: unexpected end of data"),
    ],
)
def test_a_wrong_file_is_refused_with_the_line(text, message):
    with pytest.raises(DataError, match=message):
        stream(text)


def test_missing_values_follow_the_exported_policy():
    fun = ExportedClassifier(PIPELINE, missing="malicious")
    text = f"{HEADER}car,,1800\ncar,4500,1800\n"
    rows = list(classify_rows(fun, io.StringIO(text)))
    assert [row[-1] for row in rows[1:]] == ["1", "0"]


def test_numeric_categories_are_matched_by_their_text():
    records = RECORDS.assign(**{"class": (RECORDS["class"] == "car").astype(int)})
    pipeline = make_pipeline(RecordEncoder(categorical=["class"]), DecisionTreeClassifier())
    fun = ExportedClassifier(pipeline.fit(records, np.arange(len(records)) % 4 == 0))
    rows = list(classify_rows(fun, io.StringIO(f"{HEADER}1,4500,1800\n")))
    assert rows[1][-1] == "01"[fun(1, 4500.0, 1800.0)]


@settings(max_examples=100, deadline=None)
@given(
    st.text(alphabet='car,;\n"\r\t 0.5e-+hum\0', max_size=60), st.sampled_from(["stop", "mark"])
)
def test_any_text_is_answered_or_refused_by_line(body, bad):
    try:
        rows = stream(HEADER + body, bad=bad)
    except DataError as error:
        assert str(error).startswith("line ")  # noqa: PT017
    else:
        assert {len(row) for row in rows} == {5 if bad == "mark" else 4}


# ---- the command


def test_the_script_runs_from_any_folder(path, tmp_path):
    records = make_records(20, seed=4)
    (tmp_path / "records.csv").write_text(csv_text(records))
    arguments = [SCRIPT, path.name, "--csv", "records.csv"]
    done = run(arguments, tmp_path, env={"PYTHONPATH": ""})
    assert list(csv.reader(io.StringIO(done.stdout)))[1:] == expected_rows(records)
    assert done.stderr.startswith("20 records: ")
    module = run(["-m", "production.classify", path, "--csv", tmp_path / "records.csv"], ROOT)
    assert module.stdout == done.stdout


def test_one_record_on_the_command_line(path, capsys):
    assert main([str(path), "car", "4500", "1800"]) == 0
    assert main([str(path), "human", "2000", "500"]) == 0
    assert capsys.readouterr().out == "normal\nmalicious\n"
    assert main([str(path), "truck", "1", "2"]) == 2
    assert "classify.py: error: class: unknown category 'truck'" in capsys.readouterr().err
    assert main([str(path), "car"]) == 2
    assert "expected the 3 values class, length, width, got 1" in capsys.readouterr().err


def test_stdin_and_gz(path, tmp_path, capsys):
    text = csv_text(make_records(10, seed=5))
    from_stdin = run([SCRIPT, path, "--csv", "-"], tmp_path, stdin=text).stdout
    packed = tmp_path / "records.csv.gz"
    packed.write_bytes(gzip.compress(text.encode("utf-8-sig")))
    assert main([str(path), "--csv", str(packed)]) == 0
    assert capsys.readouterr().out == from_stdin
    packed.write_bytes(packed.read_bytes()[:-9])
    assert main([str(path), "--csv", str(packed)]) == 2
    assert "error:" in capsys.readouterr().err


def test_output_file_is_whole_or_absent(path, tmp_path, capsys):
    records, out = tmp_path / "records.csv", tmp_path / "labels.csv"
    records.write_text(f"{HEADER}car,4500,1800\ntruck,1,1\n")
    command = [str(path), "--csv", str(records), "--out", str(out)]
    assert main(command) == 2
    assert "classify.py: error: line 3: class: unknown category" in capsys.readouterr().err
    assert not out.exists()
    assert main([*command, "--bad", "skip"]) == 0
    assert "classify.py: line 3: class: unknown" in capsys.readouterr().err
    assert out.read_text() == "class,length,width,malicious\ncar,4500,1800,0\n"
    assert {p.name for p in tmp_path.iterdir()} == {path.name, records.name, out.name}


def test_user_errors_have_no_traceback(path, tmp_path, capsys):
    damaged = tmp_path / "damaged.clf"
    damaged.write_bytes(b"x" + path.read_bytes()[1:])
    (tmp_path / "binary.csv").write_bytes(b"class,length,width\n\xff\xfe,1,2\n")
    for arguments, message in [
        ([damaged, "a"], "SHA-256 does not match"),
        ([tmp_path / "absent.clf", "a"], "No such file"),
        ([path, "--csv", tmp_path / "absent.csv"], "No such file"),
        ([path, "--csv", tmp_path / "binary.csv"], "utf-8"),
    ]:
        assert main(list(map(str, arguments))) == 2
        assert message in capsys.readouterr().err
    for options in ([], ["car", "--csv", "-"], ["--csv", "-", "--chunk", "0"]):
        with pytest.raises(SystemExit) as stopped:
            main([str(path), *options])
        assert stopped.value.code == 2
    run([SCRIPT, damaged, "a"], tmp_path, check=2)


def test_a_line_without_end_is_refused(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(classify, "MAX_LINE", 1000)
    (tmp_path / "long.csv").write_text(HEADER + "x" * 5000)
    assert main([str(path), "--csv", str(tmp_path / "long.csv")]) == 2
    assert "line 2: longer than 1000 characters" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"]])
def test_help_teaches_with_an_example(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    assert "classify anomaly_classifier.clf" in capsys.readouterr().out.replace(
        "classify.py", "classify"
    ).replace("classify inspect", "classify")


def test_each_record_is_answered_as_it_arrives(path, tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path), "--csv", "-", "--chunk", "1"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        with process:
            process.stdin.write(f"{HEADER}car,4500,1800\n")
            process.stdin.flush()
            assert process.stdout.readline() == "class,length,width,malicious\n"
            assert process.stdout.readline() == "car,4500,1800,0\n"  # stdin is still open
            process.stdin.close()
    finally:
        watchdog.cancel()


def test_a_reader_that_leaves_early_is_no_error(path, tmp_path):
    (tmp_path / "records.csv").write_text(csv_text(make_records(5000)))
    done = subprocess.run(
        f"{sys.executable} {SCRIPT} {path.name} --csv records.csv | head -1",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "class,length,width,malicious\n"
    assert done.stderr == ""


MEASURE = """
import io, resource, sys
from production.classify import classify_rows, load
fun = load(sys.argv[1])
def lines(n):
    yield "class,length,width\\n"
    for i in range(n):
        yield f"car,{4000 + i % 500},{1700 + i % 100}\\n"
def peak(n):
    for _ in classify_rows(fun, lines(n)): pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
peak(10_000)
print(peak(10_000), peak(60_000))
"""


def test_memory_does_not_grow_with_the_stream(path, tmp_path):
    done = run(["-c", MEASURE, path], ROOT)
    before, after = map(int, done.stdout.split())
    assert after - before < 5 * (1024 if sys.platform == "linux" else 1 << 20)
