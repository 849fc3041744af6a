"""RecordEncoder: oracle is a loop over rows with `encode_one`, and scikit-learn's encoders."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

from anomaly.encoding import RecordEncoder
from anomaly.errors import DataError, ParameterError


@pytest.fixture
def records():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "class": rng.choice(["human", "car", "bus"], 50),
            "length": rng.normal(4000, 300, 50),
            "doors": rng.integers(2, 6, 50),
            "tall": rng.random(50) < 0.5,
        }
    )


def rows_of(frame):
    return [list(row) for row in frame.itertuples(index=False, name=None)]


@pytest.mark.parametrize("encoding", ["onehot", "ordinal"])
@pytest.mark.parametrize("scaling", ["standard", "none"])
def test_one_row_and_a_batch_agree_bit_for_bit(records, encoding, scaling):
    encoder = RecordEncoder(encoding=encoding, scaling=scaling).fit(records)
    batch = encoder.transform(records)
    one = np.array([encoder.encode_one(row) for row in rows_of(records)])
    assert batch.tobytes() == one.tobytes()
    assert batch.dtype == np.float64
    assert len(encoder.get_feature_names_out()) == batch.shape[1]


def test_encoding_equals_scikit_learns(records):
    numbers = StandardScaler().fit_transform(records[["length", "doors"]].astype(float))
    onehot = OneHotEncoder(sparse_output=False).fit_transform(records[["class"]])
    ours = RecordEncoder().fit(records[["class", "length", "doors"]])
    assert np.allclose(
        ours.transform(records[["class", "length", "doors"]]), np.column_stack([onehot, numbers])
    )
    ordinal = RecordEncoder(encoding="ordinal").fit_transform(records[["class"]])
    assert (ordinal == OrdinalEncoder().fit_transform(records[["class"]])).all()


def test_array_list_and_frame_agree(records):
    array = records.to_numpy(dtype=object)
    from_frame = RecordEncoder().fit_transform(records)
    assert (RecordEncoder().fit_transform(array) == from_frame).all()
    assert (RecordEncoder().fit_transform(array.tolist()) == from_frame).all()


@pytest.mark.parametrize("dtype", ["category", "string", "object", "str"])
def test_dtype_of_a_category_column_does_not_matter(records, dtype):
    expected = RecordEncoder().fit_transform(records)
    typed = records.astype({"class": dtype})
    assert (RecordEncoder().fit_transform(typed) == expected).all()


def test_codes_do_not_depend_on_row_order_or_hash_seed(records):
    shuffled = records.sample(frac=1, random_state=1)
    assert RecordEncoder().fit(records).categories_ == RecordEncoder().fit(shuffled).categories_
    code = (
        "import pandas as pd; from anomaly.encoding import RecordEncoder;"
        "f = pd.DataFrame({'c': list('qwertyuiop')});"
        "print(RecordEncoder(encoding='ordinal').fit_transform(f).ravel().tolist())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_numbers_as_categories(records):
    encoder = RecordEncoder(categorical=["doors"], scaling="none").fit(
        records[["doors", "length"]]
    )
    assert encoder.categories_ == {"doors": (2, 3, 4, 5)}
    assert encoder.encode_one([3, 4000.0]) == [0.0, 1.0, 0.0, 0.0, 4000.0]
    by_position = RecordEncoder(categorical=[0], scaling="none").fit(records[["doors", "length"]])
    assert by_position.categories_ == encoder.categories_


def test_mixed_types_as_categories_have_an_order():
    frame = pd.DataFrame({"code": ["a", 2, "b", 1]})
    assert RecordEncoder().fit(frame).categories_ == {"code": (1, 2, "a", "b")}


def test_constant_column_is_only_shifted():
    assert RecordEncoder().fit_transform([[0.1], [0.1], [0.1]]).tolist() == [[0.0]] * 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["truck", 1.0, 2, True], "class: unknown category 'truck'; allowed: 'bus', 'car', 'hum"),
        (["hunan", 1.0, 2, True], "did you mean 'human'?"),
        ([None, 1.0, 2, True], "class: value is missing"),
        ([["car"], 1.0, 2, True], "class: a category is needed, got"),
        (["car", np.nan, 2, True], "length: value is missing"),
        (["car", pd.NA, 2, True], "length: value is missing"),
        (["car", np.inf, 2, True], "length: a finite number is needed"),
        (["car", 10**400, 2, True], "length: a finite number is needed"),
        (["car", "4000", 2, True], "length: a number is needed, got '4000'"),
        (["car", {}, 2, True], "length: float"),
    ],
)
def test_bad_value_is_named(records, row, message):
    encoder = RecordEncoder().fit(records)
    with pytest.raises(DataError) as one:
        encoder.encode_one(row)
    assert message in str(one.value)
    frame = pd.DataFrame(np.array([None] * 4, dtype=object)[None, :], columns=records.columns)
    for name, value in zip(records.columns, row, strict=True):
        frame[name] = pd.Series([value], dtype=object)
    with pytest.raises(DataError) as batch:
        encoder.transform(frame)
    name, _, rest = message.partition(":")
    assert rest in str(batch.value)
    assert str(batch.value).startswith((name, "class"))


def test_bad_row_of_a_batch_is_named(records):
    encoder = RecordEncoder().fit(records)
    records.loc[7, "class"] = "truck"
    with pytest.raises(DataError, match="class, row 7: unknown category 'truck'"):
        encoder.transform(records)
    records.loc[7, "class"] = "car"
    records.loc[8, "length"] = -np.inf
    with pytest.raises(DataError, match="length, row 8: a finite number"):
        encoder.transform(records)


def test_kept_missing_values_become_nan(records):
    records.loc[3, "class"] = None
    records.loc[4, "length"] = np.nan
    encoder = RecordEncoder(missing="keep").fit(records)
    batch = encoder.transform(records)
    one = np.array([encoder.encode_one(row) for row in rows_of(records)])
    assert np.isnan(batch[3, :3]).all()
    assert np.isnan(batch[4, 3])
    assert np.array_equal(batch, one, equal_nan=True)
    with pytest.raises(DataError, match="class, row 3: value is missing"):
        RecordEncoder().fit(records)
    with pytest.raises(DataError, match="infinity"):
        encoder.encode_one(["car", np.inf, 2, True])


def test_fill_values_are_median_and_most_frequent():
    frame = pd.DataFrame({"class": ["b", "a", "b"], "size": [1.0, 5.0, 2.0]})
    assert RecordEncoder().fit(frame).fill_values_ == ("b", 2.0)


def test_unknown_column_and_duplicate_names_raise(records):
    with pytest.raises(ParameterError, match="no column 'clas'; the columns are 'class'"):
        RecordEncoder(categorical=["clas"]).fit(records)
    twice = pd.DataFrame([[1.0, 2.0]], columns=["a", "a"])
    with pytest.raises(DataError, match="column names must differ, got a, a"):
        RecordEncoder().fit(twice)
    with pytest.raises(DataError, match="every value is missing"):
        RecordEncoder(missing="keep").fit(pd.DataFrame({"a": [np.nan, np.nan]}))


def test_values_too_large_to_scale_are_refused():
    X = [[1e308], [-1e308], [1e308]]
    with pytest.raises(DataError, match="x0: values are too large to be scaled"):
        RecordEncoder().fit(X)
    assert RecordEncoder(scaling="none").fit_transform(X).tolist() == X


def test_survives_clone_and_pickle(records):
    encoder = RecordEncoder(encoding="ordinal").fit(records)
    again = pickle.loads(pickle.dumps(encoder))
    assert (again.transform(records) == encoder.transform(records)).all()
    assert again.encode_one(rows_of(records)[0]) == encoder.encode_one(rows_of(records)[0])
    assert clone(encoder).encoding == "ordinal"


@given(
    st.lists(st.floats(-1e150, 1e150), min_size=2, max_size=30).filter(lambda v: len(set(v)) > 1),
    st.sampled_from(["none", "standard"]),
)
def test_any_finite_numbers_agree_with_the_loop(values, scaling):
    X = np.array(values)[:, None]
    encoder = RecordEncoder(scaling=scaling).fit(X)
    batch = encoder.transform(X)
    one = np.array([encoder.encode_one([value]) for value in values])
    assert batch.tobytes() == one.tobytes()


def test_categories_given_beforehand_are_known_though_unseen():
    records = pd.DataFrame({"class": ["car", "car"], "length": [1.0, 2.0]})
    encoder = RecordEncoder(categories={"class": ["moto", "car"]}).fit(records)
    assert encoder.categories_ == {"class": ("car", "moto")}
    assert encoder.encode_one(["moto", 1.5]) == [0.0, 1.0, 0.0]


def test_a_value_outside_the_given_categories_is_refused_in_fit():
    records = pd.DataFrame({"class": ["car", "tank"], "length": [1.0, 2.0]})
    with pytest.raises(ValueError, match="class, row 1: unknown category 'tank'"):
        RecordEncoder(categories={"class": ["moto", "car"]}).fit(records)
