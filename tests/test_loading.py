"""Loading: any form of CSV gives the same table, every loss is counted, every fault is named."""

from __future__ import annotations

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

from anomaly import loading
from anomaly.errors import DataError, ParameterError
from anomaly.loading import Catalogue, read_csv

ROOT = Path(__file__).resolve().parent.parent
SIZES = "class,length,width\ncar,4500.5,1800\nhuman,930,1080\n"


def read(text: str | bytes, **options):
    return read_csv(io.BytesIO(text.encode() if isinstance(text, str) else text), **options)


# ---------------------------------------------------------------- any form, one table

floats = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**9), 10**9).map(float),
    st.none(),
)
words = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="\ufeff"),
    min_size=1,
    max_size=6,
).filter(lambda w: loading._number(w, ".", None) is None and loading._number(w, ",", None) is None)
tables = st.lists(st.tuples(floats, floats, words), min_size=1, max_size=12)
forms = st.fixed_dictionaries(
    {
        "separator": st.sampled_from(";\t|,"),
        "decimal": st.sampled_from(".,"),
        "thousands": st.sampled_from([None, " ", "\u00a0", "\u202f", "'"]),
        "mark": st.booleans(),
        "packed": st.booleans(),
        "quoted": st.booleans(),
        "line_end": st.sampled_from(["\n", "\r\n"]),
    }
).filter(lambda f: f["separator"] != f["decimal"])


def written_number(value: float | None, form) -> str:
    if value is None:
        return ""
    text = repr(value)
    whole, point, rest = text.partition(".")
    if form["thousands"] and whole.lstrip("-").isdigit():
        whole = f"{int(whole):,}".replace(",", form["thousands"])
        whole = f"-{whole}" if text.startswith("-0") else whole
    return whole + (form["decimal"] if point else "") + rest


def written(table, form) -> bytes:
    import csv

    out = io.StringIO()
    style = csv.QUOTE_ALL if form["quoted"] else csv.QUOTE_MINIMAL
    writer = csv.writer(
        out, delimiter=form["separator"], lineterminator=form["line_end"], quoting=style
    )
    writer.writerow(["x", "y", "name"])
    writer.writerows([written_number(x, form), written_number(y, form), w] for x, y, w in table)
    data = out.getvalue().encode("utf-8-sig" if form["mark"] else "utf-8")
    return gzip.compress(data, 1) if form["packed"] else data


def options_of(form):
    return {key: form[key] for key in ("separator", "decimal", "thousands")}


@settings(max_examples=80, deadline=None)
@given(tables, forms)
def test_a_table_survives_every_form(table, form):
    loaded = read(written(table, form), **options_of(form), categorical=["name"], missing="keep")
    expected = pd.DataFrame(table, columns=["x", "y", "name"])
    for column in ("x", "y"):
        wanted = expected[column].to_numpy(dtype=np.float64)
        np.testing.assert_array_equal(loaded.frame[column].to_numpy(), wanted)
    words = [None if w in loading.MISSING_CELLS else w for w in expected["name"]]
    got = [None if pd.isna(w) else w for w in loaded.frame["name"]]
    assert got == words
    assert loaded.report.rows_read == len(table)
    assert sum(loaded.report.missing.values()) == expected[["x", "y"]].isna().sum().sum() + sum(
        w is None for w in words
    )


cells = st.one_of(
    st.sampled_from(["", " ", "NA", "nan", "1", "-2.5", "1e3", " 4 ", "inf", "-Infinity", "x",
                     "a b", "1,5", "1 000", "+7", ".5", "5.", "1e999", "0x1", "1_0", "True",
                     "false", "--1", "é"]),
    st.floats().map(repr),
    st.text("0123456789.,-+eE xN", max_size=6),
)  # fmt: skip


def outcome(reader, layout):
    try:
        return reader(layout)
    except DataError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(cells, min_size=2, max_size=3), min_size=1, max_size=6),
    st.sampled_from([{}, {"decimal": ","}, {"thousands": " "}]),
    st.booleans(),
)
def test_the_fast_reader_never_differs_from_the_plain_one(rows, form, third_is_text):
    text = "a;b;c\n" + "\n".join(";".join(row) for row in rows) + "\n"
    source = loading._Source(io.StringIO(text))
    options = loading._Options(
        ";", form.get("decimal", "."), form.get("thousands"), "utf-8", None,
        ["c"] if third_is_text else [], {}, None, None, None, None, (), "keep",
    )  # fmt: skip
    layout = loading._plan(source, options)
    fast, plain = outcome(loading._read, layout), outcome(loading._read_rows, layout)
    if isinstance(plain, str) or isinstance(fast, str):
        assert isinstance(fast, str)
        assert fast == plain
    else:
        pd.testing.assert_frame_equal(fast, plain)


@pytest.mark.parametrize("separator", [";", "\t", ",", "|"])
def test_the_separator_is_found(separator):
    loaded = read(SIZES.replace(",", separator))
    assert loaded.report.separator == separator
    assert loaded.frame["length"].tolist() == [4500.5, 930.0]


def test_decimal_commas_do_not_look_like_separators():
    loaded = read("a;b\n1,5;2,25\n-3,0;4\n", decimal=",")
    assert loaded.frame["a"].tolist() == [1.5, -3.0]


def test_a_single_column_needs_no_separator():
    assert read("a\n1\n2\n").frame["a"].tolist() == [1.0, 2.0]


def test_utf_16_is_known_by_its_mark():
    assert read(SIZES.encode("utf-16")).frame["width"].tolist() == [1800.0, 1080.0]


def test_gzip_is_known_by_content_not_by_name(tmp_path):
    path = tmp_path / "sizes.csv"
    path.write_bytes(gzip.compress(SIZES.encode()))
    assert len(read_csv(path).frame) == 2


def test_standard_input_is_a_dash():
    code = "from anomaly.loading import read_csv; print(read_csv('-').report)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=SIZES,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout == "<stdin>: 2 rows of 2\n"


def test_a_pipe_is_read_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(SIZES,))
    writer.start()
    assert len(read_csv(path).frame) == 2
    writer.join()


def test_more_rows_than_a_block_read_as_one_table(monkeypatch):
    text = "k,a\n" + "".join(f"w{i % 7},{i}\n" for i in range(1000))
    whole = read(text)
    monkeypatch.setattr(loading, "CHUNK_ROWS", 64)
    pd.testing.assert_frame_equal(read(text).frame, whole.frame)


# ---------------------------------------------------------------- columns


def test_header_names_that_repeat_are_told_apart():
    loaded = read("a,b,a,a.1,a\n1,2,3,4,5\n")
    assert list(loaded.frame) == ["a", "b", "a.2", "a.1", "a.3", "duplicate"]
    assert loaded.report.renamed == {"a.2": "a", "a.3": "a"}
    assert loaded.frame.iloc[0, :5].tolist() == [1, 2, 3, 4, 5]


def test_columns_without_a_name_are_left_out_and_counted():
    loaded = read(",a,b,\n1,2,3,\n2,4,5,\n")
    assert list(loaded.frame) == ["a", "b", "duplicate"]
    assert loaded.report.unnamed == 2


def test_columns_are_picked_renamed_and_converted():
    loaded = read(SIZES, columns={"width": "w", "length": "l"}, units={"w": 0.001})
    assert list(loaded.frame) == ["w", "l", "duplicate"]
    assert loaded.frame["w"].tolist() == [1.8, 1.08]


def test_the_class_comes_first_and_the_label_last():
    text = "y,size,kind\nno,1,a\nyes,2,b\n"
    loaded = read(text, class_column="kind", label="y")
    assert list(loaded.frame) == ["class", "size", "y", "duplicate"]
    assert (loaded.label, loaded.categorical) == ("y", ("class",))
    assert loaded.frame["y"].tolist() == [0, 1]
    assert read(text, label="kind", anomalies=["b"]).frame["kind"].tolist() == [0, 1]


def test_a_constant_class_is_added():
    loaded = read("a\n1\n2\n", class_value="car")
    assert loaded.frame["class"].tolist() == ["car", "car"]
    assert loaded.categorical == ("class",)


def test_a_column_of_mostly_words_is_text_and_of_mostly_numbers_is_not():
    assert read("a\nx\ny\n1\n").categorical == ("a",)
    with pytest.raises(DataError, match="line 4, column 'a': 'x' is not a number"):
        read("a\n1\n2\nx\n")
    assert read("a\n1\n2\nx\n", categorical=["a"]).frame["a"].tolist() == ["1", "2", "x"]


@pytest.mark.parametrize(
    ("test", "kept"),
    [
        ({"column": "a", "above": 2}, [3.0, 4.0]),
        ({"column": "a", "at_least": 2}, [2.0, 3.0, 4.0]),
        ({"column": "a", "below": 2}, [1.0]),
        ({"column": "a", "at_most": 2}, [1.0, 2.0]),
        ({"column": "a", "equals": 3}, [3.0]),
        ({"column": "a", "not_equals": 3}, [1.0, 2.0, 4.0]),
        ({"column": "k", "equals": "x"}, [1.0, 3.0]),
        ({"column": "k", "one_of": ["y", "z"]}, [2.0]),
        ({"column": "k", "none_of": ["y"]}, [1.0, 3.0]),
    ],
)
def test_filters_keep_the_rows_that_pass(test, kept):
    loaded = read("k,a\nx,1\ny,2\nx,3\n,4\n", columns={"a": "v"}, units={"v": 1}, filters=[test])
    assert loaded.frame["v"].tolist() == kept
    assert loaded.report.rows_filtered == 4 - len(kept)


# ---------------------------------------------------------------- losses


def test_missing_and_infinite_cells_are_counted_dropped_or_kept():
    text = "k,a,b\nx,1,2\n,2,inf\ny,NA,-1e999\nz,?,4\n"
    dropped = read(text)
    assert dropped.frame["k"].tolist() == ["x"]
    assert dropped.report.missing == {"k": 1, "a": 2}
    assert dropped.report.infinite == {"b": 2}
    assert dropped.report.rows_dropped == 3
    kept = read(text, missing="keep")
    assert (kept.report.missing, kept.report.infinite) == ({"k": 1, "a": 2}, {"b": 2})
    assert kept.report.rows_dropped == 0
    assert kept.frame.isna().sum().to_dict() == {"k": 1, "a": 2, "b": 2, "duplicate": 0}


def test_rows_with_too_few_cells_have_missing_ones():
    loaded = read("a,b\n1,2\n3\n", missing="keep")
    assert loaded.report.missing == {"b": 1}


def test_repeated_rows_are_flagged_but_for_the_first():
    loaded = read("a,b\n1,2\n1,3\n1,2\n1,2\n")
    assert loaded.frame["duplicate"].tolist() == [False, False, True, True]
    assert loaded.report.duplicates == 2


def test_the_report_prints_every_finding():
    loaded = read(
        "a,a,k,\n1,2,u\n1,2,u\n,3,u\n1,inf,u\n5,6,v\n", filters=[{"column": "k", "equals": "u"}]
    )
    assert str(loaded.report).splitlines() == [
        "<stream>: 2 rows of 5",
        "  1 rows filtered out",
        "  2 rows dropped for missing or infinite cells",
        "  missing cells: a 1",
        "  infinite cells: a.1 1",
        "  1 rows repeat an earlier one",
        "  header 'a' occurs again; read as 'a.1'",
        "  1 columns without a name left out",
    ]
    assert json.loads(json.dumps(loaded.report.to_dict()))["rows_dropped"] == 2


def test_a_header_alone_is_an_empty_table():
    loaded = read("a,b\n")
    assert loaded.frame.shape == (0, 3)
    assert loaded.report.rows_read == 0


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "<stream>: empty, not even a header line"),
        ("a,b\n1,2\n\n3,x1\n", {}, "<stream>, line 4, column 'b': 'x1' is not a number"),
        ('a,b\n1,"u\nv"\n7,"w"\nz,"w"\n', {}, "<stream>, line 5, column 'a': 'z' is not a number"),
        ("a;b\n1;1,5\n", {}, "column 'b': '1,5' is not a number; did you mean decimal=','?"),
        ("a;b\n1;1 500\n", {}, "'1 500' is not a number; did you mean thousands=' '?"),
        ("a;b\n1;2.5\n", {"decimal": ","}, "'2.5' is not a number; did you mean decimal='.'?"),
        ("a,b\n1,2\n3,4,5\n", {}, "line 3: 3 cells under 2 headers; the first too many is '5'"),
        ("a,b\n1,2,9\n3,4,5\n", {"columns": ["a"]}, "line 2: 3 cells under 2 headers"),
        ('a,b\n1,2\n3,"4\n5,6\n', {}, "<stream>: unexpected end of data"),
        ("a,b\n1,2\n", {"columns": ["aa"]}, "no column 'aa', only 'a', 'b'; did you mean 'a'?"),
        ("a,b\n1,2\n", {"label": "y"}, "there is no column 'y'"),
        ("a,b\n1,2\n", {"units": {"c": 1}}, "there is no column 'c'"),
        ("a,b\n1,2\n", {"filters": [{"column": "c", "equals": 1}]}, "there is no column 'c'"),
        ("a,b\n1,2\n", {"categorical": ["c"]}, "there is no column 'c'"),
        ("a,b\n1,2\n", {"columns": {"a": "x", "b": "x"}}, "two columns would be called 'x'"),
        ("a,duplicate\n1,2\n", {}, "'duplicate' is kept for the flag"),
        ("class,b\nu,2\n", {"class_value": "v"}, "given and a column is called 'class'"),
        ("a,y\n1,good\n2,bad\n", {"label": "y"}, "'y' holds 'bad', 'good'; say with anomalies "),
    ],
)  # fmt: skip
def test_a_fault_in_the_data_is_named(text, options, message):
    with pytest.raises(DataError) as caught:
        read(text, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": ";;"}, "separator must be one character, got ';;'"),
        ({"decimal": ";"}, "decimal must be '.' or ',', got ';'"),
        ({"thousands": "."}, "thousands must be one character other than the decimal mark"),
        ({"separator": ",", "decimal": ","}, "separator must differ"),
        ({"missing": "ignore"}, "missing must be 'drop' or 'keep', got 'ignore'"),
        ({"class_column": "a", "class_value": "b"}, "exclude each other"),
        ({"columns": "length"}, "columns must be a list or a mapping"),
        ({"encoding": "utf-9"}, "encoding 'utf-9' is not known"),
        ({"units": {"class": 2.0}}, "holds text and takes no factor"),
        ({"filters": [{"column": "length", "over": 3}]}, "names a column and one of equals"),
        ({"filters": [{"column": "length", "one_of": 3}]}, "one_of takes a list of values, got 3"),
        ({"filters": [{"column": "class", "above": 3}]}, "the column holds text"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ParameterError) as caught:
        read(SIZES, **options)
    assert message in str(caught.value)


def test_a_fault_is_named_in_a_column_that_filters_alone_use():
    with pytest.raises(DataError, match="line 3, column 'a': 'x'"):
        read("a,b\n1,2\nx,3\n", columns=["b"], filters=[{"column": "a", "above": 0}])


def test_bytes_of_another_encoding_are_refused():
    latin = "größe\n1\n".encode("latin-1")
    with pytest.raises(DataError, match=r"not utf-8 text .* pass encoding="):
        read(latin)
    assert next(iter(read(latin, encoding="latin-1").frame)) == "größe"
    late = b"a,b\n" + b"1,2\n" * 5000 + "3,ö\n".encode("latin-1")
    with pytest.raises(DataError, match="not utf-8 text"):
        read(late)


def test_torn_gzip_is_refused():
    packed = gzip.compress(b"a,b\n" + os.urandom(3000).hex().encode())
    for torn in (packed[:-9], packed[:30], packed[:-3] + b"xyz"):
        with pytest.raises(DataError, match="gzip data is damaged or cut off"):
            read(torn)


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_csv(tmp_path / "none.csv")


def test_something_else_than_a_file_is_refused():
    with pytest.raises(ParameterError, match=r"source must be a path, .* got int"):
        read_csv(3)


# ---------------------------------------------------------------- catalogue


def catalogue(tmp_path, text: str) -> Catalogue:
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "sizes.csv").write_text("Typ;Länge;bad\nu;1 000,5;j\nv;2,5;n\n")
    path = tmp_path / "catalogue.toml"
    path.write_text(text)
    return Catalogue(path)


SIZED = """
[sizes]
file = "data/sizes.csv"
separator = ";"
decimal = ","
thousands = " "
[sizes.columns.class]
from = "Typ"
type = "text"
[sizes.columns.length]
from = "Länge"
factor = 10.0
[sizes.columns.bad]
type = "label"
anomalies = ["j"]
"""


def test_a_users_catalogue_reads_the_same_way(tmp_path):
    loaded = catalogue(tmp_path, SIZED).load("sizes")
    assert loaded.frame.to_dict("list") == {
        "class": ["u", "v"],
        "length": [10005.0, 25.0],
        "bad": [1, 0],
        "duplicate": [False, False],
    }
    assert (loaded.label, loaded.categorical) == ("bad", ("class",))
    assert loaded.report.source == "sizes"


def test_a_group_joins_its_files_and_flags_duplicates_over_all(tmp_path):
    found = catalogue(tmp_path, '[all]\nparts = ["sizes", "sizes"]\n' + SIZED)
    loaded = found.load("all")
    assert found.names() == ["all", "sizes"]
    assert loaded.frame["duplicate"].tolist() == [False, False, True, True]
    assert (loaded.report.rows_read, loaded.report.duplicates) == (4, 2)
    assert [part.duplicates for part in loaded.report.parts] == [0, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a", "not TOML"),
        ("a = 1", "'a' must be a table, got 1"),
        ('[a]\nfile = "x"', "[a]: 'columns' is missing"),
        (SIZED.replace("separator", "seperator"), "there is no key 'seperator', only 'title', "),
        (SIZED.replace("separator", "seperator"), "did you mean 'separator'?"),
        (SIZED.replace("factor", "faktor"), "column 'length': there is no key 'faktor'"),
        (SIZED.replace('"label"', '"flag"'), "there is no type 'flag'"),
        (SIZED + "[sizes.columns.worse]\ntype = 'label'", "one column at most has type 'label'"),
        (SIZED + "[all]\nparts = ['size']", "no data set 'size', only 'sizes', 'all'"),
        (SIZED + "[all]\nparts = ['sizes']\n[more]\nparts = ['all']", "'all' is a group itself"),
    ],
)  # fmt: skip
def test_a_faulty_catalogue_is_refused(tmp_path, text, message):
    with pytest.raises(DataError) as caught:
        catalogue(tmp_path, text)
    assert message in str(caught.value)


def test_an_unknown_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no data set 'size', only 'sizes'; did you mean"):
        catalogue(tmp_path, SIZED).load("size")


def test_parts_of_a_group_must_have_the_same_columns(tmp_path):
    text = SIZED + '[other]\nfile = "data/sizes.csv"\nseparator = ";"\n[other.columns.Typ]\n'
    text += 'type = "text"\n[all]\nparts = ["sizes", "other"]\n'
    with pytest.raises(DataError, match="all: 'other' has the columns"):
        catalogue(tmp_path, text).load("all")


# ---------------------------------------------------------------- size

MILLION = """
import resource, sys
import numpy as np, pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from anomaly.injection import inject
from anomaly.loading import read_csv
loaded = read_csv(sys.argv[1])
frame = loaded.frame.drop(columns="duplicate")
odd, manifest = inject(frame, 20_000, "mix", random_state=0)
X = pd.concat([frame, odd], ignore_index=True)
X["class"] = X["class"].astype("category")
y = np.repeat([0, 1], [len(frame), len(odd)])
model = HistGradientBoostingClassifier(max_iter=3, categorical_features="from_dtype")
model.fit(X, y).predict(X)
unit = 1 if sys.platform == "darwin" else 1024
print(len(frame), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


def test_a_million_rows_load_inject_and_classify_within_4_gb(tmp_path):
    rng = np.random.default_rng(0)
    block = pd.DataFrame(rng.normal(size=(10_000, 4)), columns=list("abcd"))
    block.insert(0, "class", rng.choice(["car", "human", "motorcycle"], 10_000))
    path = tmp_path / "million.csv"
    text = block.to_csv(index=False, header=False)
    with open(path, "w") as file:
        file.write("class,a,b,c,d\n")
        for _ in range(100):
            file.write(text)
    done = subprocess.run(
        [sys.executable, "-c", MILLION, str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows, peak = map(int, done.stdout.split())
    assert rows == 1_000_000
    assert peak < 4e9
