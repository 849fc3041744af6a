"""Scoring by parts; oracle: one table read once from its beginning to its end."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import AdaBoostClassifier
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier

from anomaly.encoding import RecordEncoder
from anomaly.errors import ClassifierFileError, DataError, MissingExtraError, ParameterError
from anomaly.exported import ExportedClassifier, export_classifier
from anomaly.kpi_families import make_windows
from anomaly.value import ValueDetector, model_path
from anomaly.windows import read_windows
from production import batch, scoring, workers
from production.batch import Options, score_tables
from production.classify import classify_rows, main
from production.judges import judge_of
from production.manifest import MANIFEST
from production.meters import Meter
from production.parts import look_over, parts_of, stretches
from production.places import Stored, clean, find
from production.workers import Cluster, Here, Processes
from tests.deadly_record import DeadlyRecord

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "production" / "classify.py"
HEADER = "class,length,width\n"


def make_records(n, seed=0):
    rng = np.random.default_rng(seed)
    car = rng.random(n) < 0.5
    length = np.where(car, rng.uniform(3500, 5000, n), rng.uniform(200, 400, n))
    length[rng.random(n) < 0.1] = 2000
    width = np.where(car, rng.uniform(1500, 2000, n), rng.uniform(300, 600, n))
    return pd.DataFrame(
        {
            "class": np.where(car, "car", "human"),
            "length": length.round(1),
            "width": width.round(1),
        }
    )


RECORDS = make_records(300)
ODD = (RECORDS["length"] == 2000).astype(int)
PIPELINE = make_pipeline(
    RecordEncoder(), AdaBoostClassifier(DecisionTreeClassifier(max_depth=3), n_estimators=5)
).fit(RECORDS, ODD)
FUN = ExportedClassifier(PIPELINE)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("ANOMALY_KEY", raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return export_classifier(PIPELINE, folder / "m.clf", probes=RECORDS, key=None)


def score(model, inputs, out, make=Here, tell=lambda text: None, meter=None, **options):
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    asked = Options(tuple(map(str, inputs)), str(out), **options)
    return score_tables(Path(model).read_bytes(), asked, make, tell=tell, meter=meter)


def whole(path, **options):
    """What the table as one stream gives, as text."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = list(file)
    separator = max(",;\t", key=lines[0].count)
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(
        classify_rows(FUN, lines, **options)
    )
    return text.getvalue()


def joined(out, pattern="*.csv"):
    """Parts in the order of their names, the header once."""
    texts = [path.read_text() for path in sorted(Path(out).rglob(pattern))]
    return texts[0] + "".join(text[text.index("\n") + 1 :] for text in texts[1:])


def contents(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(Path(out).rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


# ---- cutting


def parts_for(path, part_size, separator=None):
    source = Stored(str(path), path.name, path.stat().st_size, "")
    found = [look_over(stretch) for stretch in stretches(source, part_size, separator)]
    return parts_of(source, "csv", found)


def rows_of(path, parts):
    """Rows of all parts, read as scoring reads them, the header once."""
    rows = []
    for part in parts:
        with open(path, "rb") as file, scoring._lines_of_part(file, part) as lines:
            own = list(csv.reader(lines, strict=True))
        rows += own if part is parts[0] else own[1:]
    return [row for row in rows if row]


CELLS = st.one_of(
    st.sampled_from(
        ["car", "", "4500", "1.5", '"a,b"', '"say ""hi"""', '""', "naïve", "日本", "\x85"]
    ),
    st.sampled_from(['"line\nbreak"', '5" pipe', '"cr\rlf"', "\ufeff", "\u2028"]),
    st.text(alphabet='ab",; \t\0é', max_size=4),
)
LINES = st.lists(st.lists(CELLS, min_size=1, max_size=4).map(",".join), max_size=30)


@settings(max_examples=300, deadline=None)
@given(
    lines=LINES,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    has_mark=st.booleans(),
    has_end=st.booleans(),
    part_size=st.integers(1, 60),
)
def test_parts_of_any_text_hold_the_rows_that_the_whole_holds(
    tmp_path_factory, lines, end, has_mark, has_end, part_size
):
    text = "\ufeff" * has_mark + end.join(["class,length,note", *lines]) + end * has_end
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(text.encode())
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            expected = [row for row in csv.reader(file, strict=True) if row]
        except csv.Error:
            return
    parts = parts_for(path, part_size)
    assert rows_of(path, parts) == expected
    assert [part.name for part in parts] == sorted(part.name for part in parts)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.sampled_from(
            ["car,4500,1800", "car,x,1", "human,300", "", '"car","2000","1,8"', "human,2000,500"]
        ),
        min_size=1,
        max_size=25,
    ),
    end=st.sampled_from(["\n", "\r\n"]),
    part_size=st.integers(1, 80),
)
def test_parts_name_the_lines_that_the_whole_names(tmp_path_factory, rows, end, part_size):
    path = tmp_path_factory.getbasetemp() / "lines.csv"
    path.write_bytes(end.join(["class,length,width", *rows]).encode())
    parts = parts_for(path, part_size)
    expected, told = [], []
    whole(path, bad="mark", report=expected.append)
    for part in parts:
        with open(path, "rb") as file, scoring._lines_of_part(file, part) as lines:
            for _ in classify_rows(
                FUN, lines, bad="mark", lines_before=part.before, report=told.append
            ):
                pass
    assert told == expected


def test_plain_text_is_cut_and_a_line_break_in_a_cell_forbids_it(tmp_path):
    plain, broken = tmp_path / "plain.csv", tmp_path / "broken.csv"
    plain.write_text(HEADER + '"car",4500,1800\n' * 100)
    broken.write_text(HEADER + "car,4500,1800\n" * 99 + '"ca\nr",4500,1800\n')
    assert len(parts_for(plain, 200)) == 8
    assert len(parts_for(broken, 200)) == 1
    assert [part.size for part in parts_for(broken, 200)] == [broken.stat().st_size]


@pytest.mark.parametrize(
    "text", ["", "\n", "class,length", "class\rcar\r", '"cla\nss"\ncar\n' * 9]
)
def test_a_table_without_a_plain_header_is_not_cut(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert len(parts_for(path, 1)) == 1


def test_a_line_without_end_is_not_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("production.parts.MAX_LINE", 100)
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "x" * 5000)
    assert len(parts_for(path, 50)) == 1


# ---- equality


@pytest.mark.parametrize("bad", ["skip", "mark"])
def test_parts_are_the_bytes_of_the_whole(model, tmp_path, bad):
    frame = make_records(500, seed=1).assign(note='a "b", é')
    frame.insert(0, "id", range(500))
    frame.loc[[3, 300, 499], "length"] = np.nan
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False, sep=";", lineterminator="\r\n")
    told = []
    run = score(model, path, tmp_path / "out", bad=bad, part_size=3000, tell=told.append)
    assert run.n_parts > 5
    assert joined(run.options.out) == whole(path, bad=bad)
    assert [re.search(r"line \d+", text)[0] for text in told] == ["line 5", "line 302", "line 501"]
    assert re.search(r"500 records: \d+ malicious, 3 bad; (\d+) of \1 parts done", run.summary())


def test_stop_names_file_and_line_and_keeps_what_is_done(model, tmp_path):
    path = tmp_path / "t.csv"
    lines = [HEADER, *["car,4500,1800\n"] * 300]
    path.write_text("".join([*lines, "truck,1,1\n", *lines[1:]]))
    run = score(model, path, tmp_path / "out", part_size=1000)
    assert len(run.failed) == 1
    assert f"{path}: line 302: class: unknown category 'truck'" in run.failed[0][1]
    assert 0 < run.n_done < run.n_parts
    path.write_text("".join([*lines, "car,4500,1800\n", *lines[1:]]))
    assert not score(model, path, tmp_path / "out", part_size=1000).failed
    assert joined(tmp_path / "out") == whole(path)


def test_columns_and_chunks(model, tmp_path):
    frame = make_records(50).assign(id=range(50))
    frame.to_csv(tmp_path / "t.csv", index=False)
    score(model, tmp_path / "t.csv", tmp_path / "out", columns=("id", "class"), chunk_size=7)
    kept = pd.read_csv(tmp_path / "out" / "t.csv")
    assert list(kept.columns) == ["id", "class", "malicious"]
    assert kept["malicious"].tolist() == FUN(frame[["class", "length", "width"]]).tolist()
    run = score(model, tmp_path / "t.csv", tmp_path / "other", columns=("nothing",))
    assert "asked for are nothing, it has class, length, width, id" in run.failed[0][1]


def test_gz_in_and_out(model, tmp_path):
    text = make_records(200).to_csv(index=False)
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "t2.csv.gz").write_bytes(gzip.compress(text.encode()))
    score(model, tmp_path / "t2.csv.gz", tmp_path / "out")
    assert (tmp_path / "out" / "t2.csv").read_text() == whole(tmp_path / "t.csv")
    score(model, tmp_path / "t.csv", tmp_path / "gz", format="csv.gz", part_size=1000)
    texts = [
        gzip.decompress(p.read_bytes()).decode() for p in sorted((tmp_path / "gz").glob("*.gz"))
    ]
    assert len(texts) > 2
    assert texts[0] + "".join(t.partition("\n")[2] for t in texts[1:]) == whole(tmp_path / "t.csv")
    torn = tmp_path / "torn.csv.gz"
    torn.write_bytes(gzip.compress(text.encode())[:-9])
    run = score(model, torn, tmp_path / "torn")
    assert "torn.csv.gz: " in run.failed[0][1]
    assert contents(tmp_path / "torn") == {}


# ---- Parquet


def parquet(path, frame, rows=100):
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, row_group_size=rows)


def test_parquet_by_row_groups_equals_the_frame(model, tmp_path):
    frame = make_records(1000, seed=2).assign(id=range(1000), when=pd.Timestamp("2024-01-01"))
    parquet(tmp_path / "t.parquet", frame)
    run = score(model, tmp_path / "t.parquet", tmp_path / "out", part_size=6000)
    assert run.n_parts > 2
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]
    found = pa.concat_tables(tables)
    assert found.schema.field("malicious").type == pa.int8()
    assert found.schema.field("when") == pq.read_schema(tmp_path / "t.parquet").field("when")
    expected = frame.assign(malicious=FUN(frame[["class", "length", "width"]]).astype("int8"))
    assert found.to_pydict() == pa.Table.from_pandas(expected).to_pydict()


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_bad_rows_of_parquet_are_named_by_row(model, tmp_path, format):
    frame = make_records(300)
    frame.loc[[5, 250], "class"] = ["truck", None]
    parquet(tmp_path / "t.parquet", frame)
    told = []
    source, size = tmp_path / "t.parquet", 2500
    score(
        *(model, source, tmp_path / "m"),
        bad="mark",
        part_size=size,
        tell=told.append,
        format=format,
    )
    assert [re.search(r"row \d+: class: [a-z]+", text)[0] for text in told] == [
        "row 6: class: unknown",
        "row 251: class: value",
    ]
    read = pd.read_csv if format == "csv" else pd.read_parquet
    marked = pd.concat([read(path) for path in sorted((tmp_path / "m").glob(f"*.{format}"))])
    assert np.flatnonzero(marked["malicious"].isna()).tolist() == [5, 250]
    assert np.flatnonzero(marked["problem"].notna()).tolist() == [5, 250]
    run = score(model, source, tmp_path / "s", part_size=size)
    assert "row 6: class: unknown category 'truck'" in run.failed[0][1]
    score(model, source, tmp_path / "k", bad="skip", part_size=size)
    kept = pd.concat(
        [pd.read_parquet(path) for path in sorted((tmp_path / "k").glob("*.parquet"))]
    )
    sound = frame.drop([5, 250])
    assert kept["malicious"].astype(bool).tolist() == FUN(sound).tolist()


def test_csv_to_parquet_carries_text_and_adds_numbers(model, tmp_path):
    (tmp_path / "t.csv").write_text(
        f"id,{HEADER}007,car,4500,1800\n008,car,,1\n009,human,2000,500\n"
    )
    score(model, tmp_path / "t.csv", tmp_path / "out", bad="mark", format="parquet")
    found = pq.read_table(tmp_path / "out" / "t.parquet").to_pydict()
    assert found["id"] == ["007", "008", "009"]
    assert found["malicious"] == [0, None, 1]
    assert found["problem"][1].startswith("length: value is missing")


def test_a_file_that_is_no_parquet_is_refused_by_name(model, tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing")
    run = score(model, tmp_path / "t.parquet", tmp_path / "out")
    assert "t.parquet: " in run.failed[0][1]


# ---- windows


def write_windows(path, X, window):
    span = 2 * window + 1
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "data_c", "data_b", "data_a"])
        for i, row in enumerate(X):
            cells = [row[:span], row[span : 2 * span], row[2 * span :]]
            writer.writerow(
                [i, *(",".join("" if v != v else repr(float(v)) for v in c) for c in cells)]
            )


def test_windows_by_parts_equal_the_detector(tmp_path):
    X, _ = make_windows(60, 180, random_state=3)
    X[::7, -1] *= 5
    X[3, 10:20] = np.nan
    path = tmp_path / "w.csv"
    write_windows(path, X, 180)
    run = score(model_path(), path, tmp_path / "out", columns=("id",), part_size=100_000)
    assert run.n_parts > 3
    found = pd.read_csv(io.StringIO(joined(tmp_path / "out")))
    detector = ValueDetector.load(model_path())
    rows, _ = read_windows(path)
    assert found["anomaly"].tolist() == detector.predict(rows).tolist()
    assert found["anomaly"].sum() > 5
    assert found["score"].tolist() == detector.decision_function(rows).tolist()


def test_bad_windows_are_named_by_line(tmp_path, capsys):
    X, _ = make_windows(4, 180, random_state=3)
    X[1, -1] = np.nan
    path = tmp_path / "w.csv"
    write_windows(path, X, 180)
    with path.open("a") as file:
        file.write('9,"1,2","1,2","1,x"\n10,"1,2","1,2","1,2"\n')
    assert main([str(model_path()), "--windows", str(path), "--bad", "skip"]) == 0
    output = capsys.readouterr()
    assert "line 3: cannot be tested: its last point is missing" in output.err
    assert "line 6: data_a: could not convert string to float: 'x'" in output.err
    assert "line 7: data_c, data_b and data_a hold 2, 2 and 2 numbers" in output.err
    assert "6 records: 0 anomaly, 3 bad" in output.err
    assert len(output.out.splitlines()) == 4


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.floats(), st.just("")), min_size=1, max_size=9))
def test_numbers_of_windows_are_read_as_float_reads_them(values):
    from production.judges import _numbers

    text = ",".join(map(str, values))
    expected = np.array([float(v) if v != "" else np.nan for v in values])
    found = _numbers("data_a", text)
    np.testing.assert_array_equal(found, expected)
    known = ~np.isnan(expected)
    assert np.signbit(found[known]).tolist() == np.signbit(expected[known]).tolist()


def test_windows_of_parquet_may_be_lists(tmp_path):
    X, _ = make_windows(5, 180, random_state=4)
    table = {"data_c": X[:, :361], "data_b": X[:, 361:722], "data_a": X[:, 722:]}
    pq.write_table(pa.table({k: list(v) for k, v in table.items()}), tmp_path / "w.parquet")
    score(model_path(), tmp_path / "w.parquet", tmp_path / "out", columns=())
    found = pq.read_table(tmp_path / "out" / "w.parquet").to_pydict()
    assert found["score"] == ValueDetector.load(model_path()).decision_function(X).tolist()


def test_decimal_commas_are_refused_for_windows():
    with pytest.raises(ParameterError, match="decimal: windows hold numbers with a point"):
        judge_of(ValueDetector.load(model_path()), ",")


# ---- a second run


def write_tables(folder, n=3, rows=300):
    folder.mkdir(exist_ok=True)
    for i in range(n):
        make_records(rows, seed=i).to_csv(folder / f"t{i}.csv", index=False)
    return folder


def test_a_second_run_does_what_is_new_changed_or_lost(model, tmp_path):
    data, out = write_tables(tmp_path / "data"), tmp_path / "out"
    first = score(model, data, out, part_size=2000)
    assert (first.kept, first.n_done) == (0, first.n_parts)
    again = score(model, data, out, part_size=2000)
    assert (again.kept, again.n_fresh) == (first.n_parts, 0)
    before = contents(out)
    (out / "t0-00001.csv").unlink()
    (out / "t0-00002.csv").write_text("torn")
    make_records(100, seed=9).to_csv(data / "t1.csv", index=False)
    make_records(50, seed=8).to_csv(data / "t9.csv", index=False)
    third = score(model, data, out, part_size=2000)
    after = contents(out)
    assert {k: v for k, v in after.items() if k[:2] == "t0"} == {
        k: v for k, v in before.items() if k[:2] == "t0"
    }
    assert joined(out, "t1*") == whole(data / "t1.csv")
    assert joined(out, "t9*") == whole(data / "t9.csv")
    assert not third.failed
    (data / "t9.csv").unlink()
    score(model, data, out, part_size=2000)
    assert joined(out, "t9*") == after["t9.csv"].decode()


def test_parts_of_a_table_that_shrank_are_removed(model, tmp_path):
    data, out = write_tables(tmp_path / "data", n=1), tmp_path / "out"
    assert score(model, data, out, part_size=1000).n_parts > 3
    make_records(5, seed=9).to_csv(data / "t0.csv", index=False)
    score(model, data, out, part_size=1000)
    assert list(contents(out)) == ["t0.csv"]


def test_another_model_or_option_is_refused_by_name(model, tmp_path):
    data, out = write_tables(tmp_path / "data", n=1), tmp_path / "out"
    score(model, data, out)
    other = export_classifier(PIPELINE, tmp_path / "o.clf", probes=RECORDS, missing="malicious")
    with pytest.raises(
        ParameterError, match=r"another model \(SHA-256 \w{12}…, now \w{12}…\).*--st"
    ):
        score(other, data, out)
    with pytest.raises(ParameterError, match="with --bad 'stop', now 'skip'; give another --out"):
        score(model, data, out, bad="skip")
    with pytest.raises(ParameterError, match="with --columns not given, now"):
        score(model, data, out, columns=("class",))
    (out / "mine.txt").write_text("keep")
    assert score(model, data, out, bad="skip", start_over=True).kept == 0
    assert set(contents(out)) == {"t0.csv", "mine.txt"}


def test_files_of_others_are_not_written_over(model, tmp_path):
    data = write_tables(tmp_path / "data", n=1)
    before = contents(data)
    with pytest.raises(ParameterError, match=r"t0\.csv exists, and no earlier run has listed it"):
        score(model, data / "t0.csv", data)
    assert contents(data) == before
    assert not (data / MANIFEST).exists()
    (data / "sub").mkdir()
    (data / "sub" / "t0.csv").write_text(HEADER)
    with pytest.raises(ParameterError, match=r"would both be scored to t0\.csv"):
        score(model, [data / "t0.csv", data / "sub" / "t0.csv"], tmp_path / "out")


def test_folders_patterns_and_outputs_among_inputs(model, tmp_path):
    data = write_tables(tmp_path / "data", n=2)
    (data / "day=1").mkdir()
    (data / "day=1" / "t0.csv").write_text(HEADER + "car,4500,1800\n")
    (data / "_hidden.csv").write_text("x")
    (data / "readme.md").write_text("x")
    for _ in range(2):
        run = score(model, data, data / "scored")
        assert set(contents(data / "scored")) == {"t0.csv", "t1.csv", "day=1/t0.csv"}
    assert run.kept == 3
    score(model, f"{data}/day=*/*.csv", tmp_path / "p")
    assert set(contents(tmp_path / "p")) == {"day=1/t0.csv"}
    with pytest.raises(DataError, match=r"nothing\*\.csv: no such file"):
        score(model, f"{data}/nothing*.csv", tmp_path / "p")
    (tmp_path / "t.csv.zst").write_text("x")
    with pytest.raises(DataError, match=r"of compressed files only \.gz is read"):
        score(model, tmp_path / "t.csv.zst", tmp_path / "p")


def test_a_file_that_changes_while_it_is_scored_is_refused(model, tmp_path, monkeypatch):
    data = write_tables(tmp_path / "data", n=1)
    real = scoring.classify_rows

    def meddle(*arguments, **options):
        yield from real(*arguments, **options)
        with (data / "t0.csv").open("a") as file:
            file.write("car,4500,1800\n")

    monkeypatch.setattr(scoring, "classify_rows", meddle)
    run = score(model, data, tmp_path / "out")
    assert "t0.csv: the file was changed during the run" in run.failed[0][1]
    assert contents(tmp_path / "out") == {}


def test_two_runs_on_one_folder_are_refused(model, tmp_path):
    data = write_tables(tmp_path / "data", n=1)
    with batch._alone(str(tmp_path / "out")), pytest.raises(ParameterError, match="another run"):
        score(model, data, tmp_path / "out")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"format": 9}', '{"format": 1, "model": "M", "options": {}, "inputs": [{}]}'],
)
def test_a_foreign_manifest_is_refused(model, tmp_path, text):
    data, out = write_tables(tmp_path / "data", n=1), tmp_path / "out"
    score(model, data, out)
    plain = json.loads((out / MANIFEST).read_text())
    text = text.replace('"M"', json.dumps(plain["model"])).replace(
        "{}, ", json.dumps(plain["options"]) + ", "
    )
    (out / MANIFEST).write_text(text)
    with pytest.raises(ParameterError, match="no list of scored parts of this version"):
        score(model, data, out)


@pytest.mark.parametrize("start_over", [True, False])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(model, tmp_path, start_over):
    data, out = write_tables(tmp_path / "data", n=1), tmp_path / "out"
    score(model, data, out)
    text = (out / MANIFEST).read_text().replace('"name": "t0.csv",', '"name": "../data/t0.csv",')
    (out / MANIFEST).write_text(text)
    with pytest.raises(ParameterError, match=r"part '\.\./data/t0\.csv'"):
        score(model, data, out, start_over=start_over)
    assert (data / "t0.csv").exists()


# ---- kills


def start(arguments, cwd):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(found, process, timeout_s=300):
    end = time.monotonic() + timeout_s
    while not found() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


def test_kill_9_at_any_moment_leaves_whole_parts_and_the_next_run_ends_the_same(model, tmp_path):
    data = write_tables(tmp_path / "data", n=2, rows=30_000)
    expected = tmp_path / "expected"
    score(model, data, expected, part_size=200_000)
    wanted, out = contents(expected), tmp_path / "out"
    arguments = [
        model,
        "--csv",
        data,
        "--out",
        out,
        "--part-size",
        "200000",
        "--backend",
        "serial",
    ]
    moments = [
        lambda: list(out.glob(".t*.part")),  # within the first part
        lambda: len(list(out.glob("t*"))) >= 2,  # right after a part was renamed
        lambda: len(list(out.glob("t*"))) >= 4 and list(out.glob(".t*.part")),
    ]
    torn = []
    for moment in moments:
        process = start(arguments, tmp_path)
        wait_for(moment, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        torn += list(out.glob(".t*.part"))
        assert contents_of_parts(out).items() <= wanted.items()
    assert torn
    (out / ".other.12345678.part").write_text("not ours")
    process = start(arguments, tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert re.search(r"6 of 6 parts done|8 of 8 parts done", output), output
    assert contents(out) == {**wanted, ".other.12345678.part": b"not ours"}


def test_terminate_ends_the_processes_and_leaves_nothing_torn(model, tmp_path):
    data, out = write_tables(tmp_path / "data", n=2, rows=30_000), tmp_path / "out"
    process = start(
        [model, "--csv", data, "--out", out, "--part-size", "200000", "--n-jobs", "1"], tmp_path
    )
    wait_for(lambda: list(out.glob("t*")) and list(out.glob(".t*.part")), process)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "classify.py: interrupted; run the same command again to go on\n"
    assert list(out.glob(".*.part")) == []
    assert score(model, data, out, part_size=200_000).kept > 0


def contents_of_parts(out):
    return {name: data for name, data in contents(out).items() if not name.startswith(".")}


def test_processes_give_the_same_and_survive_a_kill_of_one(model, tmp_path):
    data = write_tables(tmp_path / "data", n=2, rows=20_000)
    score(model, data, tmp_path / "expected", part_size=100_000)
    made = []

    def make(content):
        made.append(Processes(content, 2))
        return made[0]

    class Killer(Meter):
        killed = 0

        def advance(self, size, records):
            if records and not self.killed:
                pool = made[0]._pools[0]
                self.killed = next(iter(pool._processes))
                os.kill(self.killed, signal.SIGKILL)

    killer = Killer()
    run = score(model, data, tmp_path / "out", make, meter=killer, part_size=100_000)
    assert killer.killed
    assert not run.failed
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.fixture
def deadly(tmp_path):
    pipeline = make_pipeline(RecordEncoder(), DeadlyRecord()).fit(RECORDS, ODD)
    return export_classifier(pipeline, tmp_path / "deadly.clf", probes=RECORDS)


def test_a_part_that_kills_its_workers_is_reported_and_the_others_are_done(deadly, tmp_path):
    data = write_tables(tmp_path / "data", n=3, rows=20)
    (data / "t1.csv").write_text(HEADER + "car,1e9,1\n")
    run = score(deadly, data, tmp_path / "out", lambda model: Processes(model, 1))
    assert run.failed == [("t1.csv", "killed its worker 3 times (out of memory?); given up")]
    assert set(contents(tmp_path / "out")) == {"t0.csv", "t2.csv"}


# ---- Dask


@pytest.fixture(scope="module")
def dask_cluster(model):
    cluster = Cluster(Path(model).read_bytes(), n_workers=2)
    cluster.close, close = lambda kill=False: None, cluster.close
    yield cluster
    close()


def test_dask_gives_the_same_and_survives_a_kill_of_a_worker(dask_cluster, model, tmp_path):
    data = write_tables(tmp_path / "data", n=2, rows=20_000)
    score(model, data, tmp_path / "expected", part_size=100_000)
    killed = []

    class Killer(Meter):
        def advance(self, size, records):
            if records and not killed:
                killed.append(next(iter(dask_cluster._client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

    run = score(
        *(model, data, tmp_path / "out", lambda content: dask_cluster),
        part_size=100_000,
        meter=Killer(),
    )
    assert killed
    assert not run.failed
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_part_that_kills_dask_workers_is_reported(deadly, dask_cluster, tmp_path, monkeypatch):
    data = write_tables(tmp_path / "data", n=2, rows=20)
    (data / "t0.csv").write_text(HEADER + "car,1e9,1\n")
    content = Path(deadly).read_bytes()
    monkeypatch.setattr(
        dask_cluster, "_model", dask_cluster._client.submit(workers._as_it_is, content)
    )
    scheduler = dask_cluster._cluster.scheduler
    assert scheduler.allowed_failures == workers.DEATHS - 1
    monkeypatch.setattr(scheduler, "allowed_failures", 0)  # the first death is enough here
    run = score(deadly, data, tmp_path / "out", lambda model: dask_cluster)
    assert run.failed == [("t0.csv", "killed its worker 3 times (out of memory?); given up")]
    assert set(contents(tmp_path / "out")) == {"t1.csv"}


@pytest.fixture
def foreign_cluster(tmp_path):
    """A scheduler and a worker as processes; the scheduler, and its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "distributed.cli.dask_"]
    started, log = [], (tmp_path / "dask.log").open("w+")

    def launch(kind, *arguments):
        command = [*program[:2], program[2] + kind, *arguments]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        )
        return started[-1]

    place = tmp_path / "scheduler.json"
    try:
        scheduler = launch(
            *("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
            *("--scheduler-file", str(place)),
        )
        wait_for(lambda: place.exists() and place.read_text().endswith("}"), scheduler)
        address = json.loads(place.read_text())["address"]
        launch("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        yield scheduler, address
    finally:
        for process in started:
            process.kill()
            process.wait()
        log.close()


def test_a_killed_client_and_a_killed_scheduler_lose_no_part(foreign_cluster, model, tmp_path):
    scheduler, address = foreign_cluster
    data, out = write_tables(tmp_path / "data", n=2, rows=20_000), tmp_path / "out"
    score(model, data, tmp_path / "expected", part_size=100_000)
    client = start(
        [
            *(model, "--csv", data, "--out", out, "--part-size", "100000"),
            *("--backend", "dask", "--scheduler", address),
        ],
        tmp_path,
    )
    wait_for(lambda: len(list(out.glob("t*"))) >= 2, client)
    client.kill()
    client.communicate()
    assert len(list(out.glob("t*"))) < 8

    class Killer(Meter):
        def advance(self, size, records):
            scheduler.kill()

    with pytest.raises(ParameterError, match="the Dask scheduler is gone; run the same command"):
        score(
            *(model, data, out, lambda content: Cluster(content, address)),
            part_size=100_000,
            meter=Killer(),
        )
    assert score(model, data, out, part_size=100_000).kept > 0
    assert contents_of_parts(out) == contents(tmp_path / "expected")


def test_a_part_that_is_not_where_it_was_written_stops_the_run(model, tmp_path):
    class Elsewhere(Here):
        def run(self, task, settings, jobs):
            for job, ended in super().run(task, settings, jobs):
                Path(settings.out, job.name).unlink()
                yield job, ended

    data = write_tables(tmp_path / "data", n=1)
    with pytest.raises(ParameterError, match=r"wrote .*t0\.csv, but it is not here: with a path"):
        score(model, data, tmp_path / "out", Elsewhere)


def test_a_scheduler_that_does_not_answer_is_refused(model, monkeypatch):
    with pytest.raises(ParameterError, match="no Dask scheduler answers at nonsense://x"):
        Cluster(b"", scheduler="nonsense://x")


# ---- trust


def test_the_model_is_verified_where_it_is_used(model, tmp_path, monkeypatch):
    content = Path(model).read_bytes()
    asked = Options(("x",), str(tmp_path)).settings(content)
    part = parts_of(Stored(str(tmp_path / "t.csv"), "t.csv", 1, ""), "csv")[0]
    monkeypatch.setattr("anomaly.exported.pickle.loads", None)  # nothing is unpickled
    scoring._judges.clear()
    with pytest.raises(ClassifierFileError, match="the model was altered on its way"):
        scoring.score_part(content[:-1] + b"x", asked, part)
    monkeypatch.setenv("ANOMALY_KEY", "secret")
    with pytest.raises(ClassifierFileError, match=r"on .*: the file is not signed, and a key was"):
        scoring.score_part(content, asked, part)


def test_the_key_of_a_signed_model_comes_from_the_environment_of_the_worker(
    dask_cluster, tmp_path, monkeypatch
):
    path = export_classifier(PIPELINE, tmp_path / "s.clf", probes=RECORDS, key="secret")
    data = write_tables(tmp_path / "data", n=1)
    monkeypatch.setenv("ANOMALY_KEY", "secret")
    signed = dask_cluster._client.submit(workers._as_it_is, path.read_bytes())
    monkeypatch.setattr(dask_cluster, "_model", signed)
    with pytest.raises(
        ClassifierFileError, match=r"on .*: the file is signed; set its key in ANOM"
    ):
        score(path, data, tmp_path / "out", lambda model: dask_cluster)
    scoring._judges.clear()
    assert not score(path, data, tmp_path / "out").failed


def test_workers_of_another_version_are_refused(model, tmp_path, monkeypatch):
    data = write_tables(tmp_path / "data", n=1)
    monkeypatch.setattr(scoring.anomaly, "__version__", "9.9")
    with pytest.raises(
        ClassifierFileError, match=r"has anomaly 9\.9, but the run was started with"
    ):
        score(model, data, tmp_path / "out")


# ---- addresses


def test_a_bucket_is_read_and_written(model, tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    text = make_records(300).to_csv(index=False)
    (tmp_path / "t.csv").write_text(text)
    store.pipe_file("/bucket/day=1/t.csv", text.encode())
    parquet(tmp_path / "u.parquet", make_records(50))
    store.pipe_file("/bucket/u.parquet", (tmp_path / "u.parquet").read_bytes())
    try:
        for expected in (0, 4):
            run = score(model, "memory://bucket", "memory://scored", part_size=2000)
            assert (run.kept, run.n_parts) == (expected, 4)
        names = sorted(store.find("/scored"))
        texts = [store.cat_file(name).decode() for name in names if name.endswith(".csv")]
        assert texts[0] + "".join(t.partition("\n")[2] for t in texts[1:]) == whole(
            tmp_path / "t.csv"
        )
        assert names[-1] == "/scored/u.parquet"
        store.pipe_file("/bucket/u.parquet", b"changed")
        run = score(model, "memory://bucket/*.parquet", "memory://scored", part_size=2000)
        assert "memory://bucket/u.parquet: " in run.failed[0][1]
    finally:
        store.rm("/", recursive=True)


def test_a_tree_that_is_no_store_gets_files_put_aside_and_renamed(model, tmp_path):
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    class Other(LocalFileSystem):
        protocol = "other"
        moved = ()

        @classmethod
        def _strip_protocol(cls, path):
            return str(path).removeprefix("other://").rstrip("/")

        def mv(self, path1, path2, **options):
            Other.moved += ((Path(path1).name, Path(path2).name),)
            super().mv(path1, path2, **options)

    fsspec.register_implementation("other", Other, clobber=True)
    data, out = write_tables(tmp_path / "data", n=1), tmp_path / "out"
    for n in (300, 20):
        out.mkdir(exist_ok=True)
        (out / ".t0.csv.0123abcd.part").write_text("left by a kill")
        make_records(n).to_csv(data / "t0.csv", index=False)
        run = score(model, f"other://{data}", f"other://{out}", part_size=5000)
        assert not run.failed
        assert joined(out) == whole(data / "t0.csv")
    asides = {old for old, _ in Other.moved}
    assert all(re.fullmatch(r"\..+\.[0-9a-f]{8}\.part", old) for old in asides)
    assert {new for _, new in Other.moved} >= {MANIFEST, "t0-00000.csv", "t0.csv"}
    # The first run did not know yet that it would own t0.csv; the second one did.
    assert {path.name for path in out.iterdir()} == {MANIFEST, "t0.csv"}


def test_a_planning_fault_leaves_the_list_of_an_earlier_run_as_it_was(model, tmp_path):
    data, out = write_tables(tmp_path / "data", n=2), tmp_path / "out"
    score(model, data / "t0.csv", out)
    make_records(50).to_csv(data / "t0.csv", index=False)
    (out / "t1.csv").write_text("mine")
    for _ in range(2):
        with pytest.raises(ParameterError, match=r"t1\.csv exists"):
            score(model, data, out)
    (out / "t1.csv").unlink()
    assert score(model, data, out).n_done == 2


def test_file_addresses_are_paths(model, tmp_path):
    data = write_tables(tmp_path / "data", n=1)
    score(model, f"file://{data}/*.csv", f"file://{tmp_path}/out")
    assert joined(tmp_path / "out") == whole(data / "t0.csv")


def test_addresses_with_a_password_or_without_a_library_are_refused():
    with pytest.raises(ParameterError, match="ftp://…@host/x: leave the password") as error:
        clean("ftp://me:hidden@host/x")
    assert "hidden" not in str(error.value)
    with pytest.raises(ParameterError, match="in one another"):
        clean("zip://a::s3://b")
    with pytest.raises(MissingExtraError, match=r"oss:// needs another library; run: pip install"):
        find("oss://host/x")
    with pytest.raises(ParameterError, match="nosuch"):
        find("nosuch://host/x")


# ---- the command


def test_the_command_scores_a_folder_and_sums_up(model, tmp_path, capsys):
    data = write_tables(tmp_path / "data", n=2)
    command = [str(model), "--csv", f"{data}/*.csv", "--out", f"{tmp_path}/out/"]
    assert main([*command, "--n-jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "600 records: " in shown
    assert "2 of 2 parts done, 0 of them before this run" in shown
    assert (tmp_path / "out" / "t1.csv").read_text() == whole(data / "t1.csv")
    assert main(command) == 0
    assert "2 of 2 parts done, 2 of them before this run" in capsys.readouterr().out
    (data / "t0.csv").write_text(HEADER + "truck,1,1\n")
    assert main([*command, "--backend", "serial"]) == 2
    assert "t0.csv: line 2: class: unknown category" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data"], "--out FOLDER is needed"),
        (["data", "--out", "file.csv"], "--out: a folder is needed for these tables"),
        (["-", "--out", "o/"], "stdin cannot be scored part by part"),
        (["data", "--out", "o", "--workers", "2"], "are for --backend dask"),
        (
            ["data", "--out", "o", "--backend", "dask", "--workers", "2", "--scheduler", "x"],
            "either --scheduler ADDRESS or --workers N",
        ),
        (["data", "--out", "o", "--n-jobs", "0"], "--n-jobs: -1, or a number of processes"),
        (["data", "--out", "o", "--backend", "serial", "--n-jobs", "2"], "--n-jobs: -1, or"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    model, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    write_tables(tmp_path / "data", n=1)
    (tmp_path / "file.csv").write_text("x")
    assert main([str(model), "--csv", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "1X", "-3MB", "x"])
def test_a_part_size_that_is_none_is_refused(model, size, capsys):
    with pytest.raises(SystemExit):
        main([str(model), "--csv", "data", "--out", "o", f"--part-size={size}"])
    assert "a size such as 128MB is needed" in capsys.readouterr().err
