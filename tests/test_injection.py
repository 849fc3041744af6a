"""Injection: exact maths, honest manifests, and a classifier trained on more of it."""

from __future__ import annotations

import itertools
import json
import pickle

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier

from anomaly.errors import DataError, ParameterError
from anomaly.injection import (
    SERIES_STRATEGIES,
    STRATEGIES,
    Injection,
    Manifest,
    OversampleClassifier,
    inject,
    inject_series,
    robust_scale,
)


@pytest.fixture(scope="module")
def normal() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    classes = np.repeat(["car", "human", "moto"], [60, 30, 10])
    centre = pd.Series(classes).map({"car": 4600.0, "human": 900.0, "moto": 2100.0}).to_numpy()
    return pd.DataFrame(
        {
            "class": classes,
            "length": centre + rng.normal(0, 100, 100),
            "width": centre / 3 + rng.normal(0, 40, 100),
            "doors": rng.integers(0, 5, 100),
        }
    )


def make(normal, strategy, n=50, seed=1, **options):
    return inject(normal, n, strategy, categorical=["class"], random_state=seed, **options)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "mix"])
def test_the_same_seed_makes_the_same_rows(normal, strategy):
    first, manifest = make(normal, strategy)
    again, same = make(normal, strategy)
    pd.testing.assert_frame_equal(first, again)
    assert manifest == same
    other, _ = make(normal, strategy, seed=2)
    assert not first.equals(other)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "mix"])
def test_rows_have_the_columns_of_the_frame_and_no_gaps(normal, strategy):
    before = normal.copy()
    rows, manifest = make(normal, strategy)
    pd.testing.assert_frame_equal(normal, before)
    assert list(rows.columns) == list(normal.columns)
    assert rows.index.tolist() == list(range(50))
    assert rows["class"].dtype == normal["class"].dtype
    assert not rows.isna().any(axis=None)
    assert set(rows["class"]) <= set(normal["class"])
    assert (rows["doors"] == rows["doors"].round()).all()
    assert sorted(r for entry in manifest.entries for r in entry.rows) == list(range(50))


def test_each_entry_of_a_mix_can_be_made_again_from_its_seed(normal):
    rows, manifest = make(normal, "mix", n=40)
    assert [entry.type for entry in manifest.entries] == list(STRATEGIES)
    for entry in manifest.entries:
        again, _ = make(normal, entry.type, n=len(entry.rows), seed=entry.seed)
        part = rows.iloc[list(entry.rows)].reset_index(drop=True)
        pd.testing.assert_frame_equal(part, again)


def test_uniform_fills_the_bounding_box(normal):
    rows, _ = make(normal, "uniform", n=4000)
    for column in ("length", "width"):
        low, high = normal[column].min(), normal[column].max()
        assert rows[column].between(low, high).all()
        counts = np.histogram(rows[column], bins=4, range=(low, high))[0]
        assert counts == pytest.approx(1000, abs=120)
    assert rows["class"].value_counts().to_numpy() == pytest.approx(4000 / 3, abs=150)


def test_class_swap_keeps_the_sizes_of_a_row_and_changes_its_class(normal):
    rows, manifest = make(normal, "class_swap", n=200)
    sizes = dict(zip(normal["length"], normal["class"], strict=True))
    assert all(sizes[x] != c for x, c in zip(rows["length"], rows["class"], strict=True))
    assert min(manifest.entries[0].magnitude) > 3


def test_class_swap_reaches_every_other_class_alike(normal):
    rows, _ = make(normal, "class_swap", n=3000)
    source = rows["length"].map(dict(zip(normal["length"], normal["class"], strict=True)))
    counts = pd.crosstab(source, rows["class"])
    assert counts.loc["car", "human"] == pytest.approx(counts.loc["car", "moto"], rel=0.15)


def test_marginal_shuffle_draws_every_cell_from_its_column(normal):
    rows, _ = make(normal, "marginal_shuffle", n=200)
    for column in normal:
        assert set(rows[column]) <= set(normal[column])
    wide = rows[(rows["length"] > 4000) & (rows["width"] < 500)]
    assert len(wide) > 0


def test_local_noise_lies_exactly_that_many_sigma_from_a_row_of_its_class(normal):
    frame = normal.drop(columns="doors")
    rows, _ = make(frame, "local_noise", n=40, strength=2.5)
    for row in rows.itertuples(index=False):
        members = frame[frame["class"] == row[0]][["length", "width"]].to_numpy()
        scaled = (np.array(row[1:]) - members) / robust_scale(members)
        assert np.abs(np.linalg.norm(scaled, axis=1) - 2.5).min() < 1e-9


def test_scaling_multiplies_one_number(normal):
    frame = normal.drop(columns="doors")
    rows, _ = make(frame, "scaling", n=60, factor=10.0)
    for row in rows.itertuples(index=False):
        ratio = np.array(row[1:]) / frame[["length", "width"]].to_numpy()
        exact = np.isclose(ratio, 1, rtol=1e-12, atol=0)
        moved = np.isclose(ratio, 10, rtol=1e-12) | np.isclose(ratio, 0.1, rtol=1e-12)
        assert ((exact.sum(axis=1) == 1) & (moved.sum(axis=1) == 1)).any()


def test_cluster_is_tight_and_of_one_class(normal):
    rows, _ = make(normal, "cluster", n=100)
    assert rows["class"].nunique() == 1
    members = normal[normal["class"] == rows["class"][0]]
    scale = robust_scale(members[["length"]])[0]
    assert rows["length"].std() == pytest.approx(0.1 * scale, rel=0.3)


def test_extreme_puts_one_number_outside_the_range(normal):
    rows, _ = make(normal, "extreme", n=100, strength=4.0)
    numbers = normal.drop(columns="class")
    outside = (rows[numbers.columns] < numbers.min()) | (rows[numbers.columns] > numbers.max())
    assert (outside.sum(axis=1) == 1).all()


def test_mix_shares_by_the_largest_remainder(normal):
    _, manifest = make(normal, {"uniform": 2.0, "extreme": 1.0, "scaling": 1.0}, n=10)
    assert {e.type: len(e.rows) for e in manifest.entries} == {
        "uniform": 5,
        "extreme": 3,
        "scaling": 2,
    }


def test_mix_leaves_class_swap_out_where_nothing_can_be_swapped(normal):
    _, manifest = inject(normal[["length"]], 12, "mix", random_state=0)
    assert {entry.type for entry in manifest.entries} == set(STRATEGIES) - {"class_swap"}
    with pytest.raises(ParameterError, match="'class_swap' needs a categorical column"):
        inject(normal[["length"]], 3, "class_swap", random_state=0)


def test_whole_numbers_stay_whole():
    frame = pd.DataFrame({"count": [1.0, 2.0, 7.0, np.nan], "size": [0.5, 1.5, 2.5, 3.5]})
    for strategy in ("uniform", "local_noise", "extreme", "cluster"):
        rows, _ = inject(frame, 30, strategy, random_state=0)
        filled = rows["count"].dropna()
        assert (filled == filled.round()).all()


def test_the_duplicate_flag_is_no_feature(normal):
    rows, _ = make(normal.assign(duplicate=False), "uniform", n=5)
    assert list(rows.columns) == list(normal.columns)


def test_no_rows_make_an_empty_manifest(normal):
    rows, manifest = make(normal, "mix", n=0)
    assert rows.shape == (0, 4)
    assert len(manifest) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "unifrom"}, "strategy must be one of uniform, class_swap"),
        ({"n": -1}, "n must be a whole number of 0 or more, got -1"),
        ({"n": 1.5}, "n must be a whole number"),
        ({"strategy": {"uniform": 0.0}}, "weight of 'uniform' must be positive"),
        ({"strategy": []}, "strategy names no strategy"),
        ({"strategy": "scaling", "factor": 1.0}, "factor must be positive and not 1"),
        ({"strategy": "uniform", "strength": 1.0}, "takes no such option"),
        ({"strategy": "mix", "strength": 1.0}, "only for one strategy"),
        ({"categorical": ["klass"]}, "there is no column 'klass'"),
        ({"random_state": "x"}, "random_state must be"),
        ({"random_state": -1}, "random_state must be 0 or more"),
    ],
)
def test_a_wrong_argument_is_named(normal, arguments, message):
    with pytest.raises(ValueError, match=message):
        inject(**{"frame": normal, "n": 3, **arguments})


def test_rows_that_cannot_be_used_are_refused(normal):
    with pytest.raises(DataError, match="no normal rows"):
        inject(normal.iloc[:0], 3)
    with pytest.raises(DataError, match="no numeric column"):
        inject(normal[["class"]], 3)
    with pytest.raises(DataError, match="infinite"):
        inject(normal.assign(width=np.inf), 3)
    with pytest.raises(DataError, match="'width' holds no number"):
        inject(normal.assign(width=np.nan), 3)


def test_every_kind_of_random_state_leaves_a_seed_behind(normal):
    for state in (None, np.random.RandomState(0), np.random.default_rng(0), np.int64(3)):
        rows, manifest = inject(normal, 4, random_state=state)
        again, _ = inject(normal, 4, random_state=manifest.entries[0].seed)
        pd.testing.assert_frame_equal(rows, again)


numbers = st.floats(-1e9, 1e9, allow_subnormal=False)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers, st.sampled_from("ab")), min_size=1, max_size=12),
    st.sampled_from([*STRATEGIES, "mix"]),
    st.integers(0, 20),
)
def test_any_table_gets_finite_rows_and_a_full_manifest(table, strategy, n):
    frame = pd.DataFrame(table, columns=["x", "y", "c"])
    if strategy == "class_swap" and frame["c"].nunique() < 2:
        return
    rows, manifest = inject(frame, n, strategy, random_state=0)
    assert len(rows) == n
    assert np.isfinite(rows[["x", "y"]].to_numpy()).all()
    assert (manifest.types(n) != "").all()
    assert Manifest.from_json(manifest.to_json()) == manifest


# ---------------------------------------------------------------- series


@pytest.fixture
def wave() -> np.ndarray:
    rng = np.random.default_rng(0)
    return 50 + 10 * np.sin(np.arange(200) * 2 * np.pi / 20) + rng.normal(0, 1, 200)


def change(series, type, **options):
    options = {"span": (40, 60), "random_state": 3, **options}
    return inject_series(series, type, **options)


@pytest.mark.parametrize("type", SERIES_STRATEGIES)
def test_a_series_changes_inside_the_span_only(wave, type):
    before = wave.copy()
    after, manifest = change(wave, type, period=20)
    np.testing.assert_array_equal(wave, before)
    np.testing.assert_array_equal(after[:40], wave[:40])
    np.testing.assert_array_equal(after[60:], wave[60:])
    assert (after[40:60] != wave[40:60]).any()
    entry = manifest.entries[0]
    scale = robust_scale(wave[:, None])[0]
    assert entry.span == (40, 60)
    assert entry.magnitude[0] == pytest.approx(np.abs(after - wave).max() / scale)


def test_series_maths_is_as_documented(wave):
    s, x = robust_scale(wave[:, None])[0], wave[40:60]
    steps = np.arange(1, 21) / 20
    for type, direction, expected in [
        ("spike", "up", x + 4 * s),
        ("level_shift", "down", x - 4 * s),
        ("trend", "up", x + 4 * s * steps),
        ("multiply", "both", 4 * x),
    ]:
        after, _ = change(wave, type, strength=4, direction=direction)
        np.testing.assert_allclose(after[40:60], expected, rtol=1e-14)
    np.testing.assert_array_equal(change(wave, "dropout")[0][40:60], 0.0)
    np.testing.assert_array_equal(change(wave, "stuck")[0][40:60], wave[40])
    shifted, _ = change(wave, "seasonal_shift", period=20)
    np.testing.assert_array_equal(shifted[40:60], wave[30:50])
    early, _ = change(wave, "seasonal_shift", period=20, span=(5, 15))
    np.testing.assert_array_equal(early[5:15], np.concatenate([wave[15:20], wave[0:5]]))
    burst, _ = change(wave, "noise_burst", span=(0, 200), strength=2)
    assert (burst - wave).std() == pytest.approx(2 * s, rel=0.2)


def test_dropout_can_take_values_away(wave):
    after, manifest = change(wave, "dropout", fill=float("nan"))
    assert np.isnan(after[40:60]).all()
    assert np.isnan(manifest.entries[0].magnitude[0])
    assert json.loads(manifest.to_json())[0]["magnitude"] == [None]
    assert np.isnan(Manifest.from_json(manifest.to_json()).entries[0].magnitude[0])


def test_an_injection_is_made_again_from_its_seed_and_span(wave):
    after, manifest = inject_series(wave, "noise_burst", length=10, random_state=5)
    entry = manifest.entries[0]
    again, _ = inject_series(wave, "noise_burst", span=entry.span, random_state=entry.seed)
    np.testing.assert_array_equal(after, again)


@pytest.mark.parametrize("kind", ["frame", "series", "column", "table"])
def test_a_series_comes_back_as_its_kind(wave, kind):
    given = {
        "frame": pd.DataFrame({"a": wave, "b": wave}, index=pd.RangeIndex(100, 300)),
        "series": pd.Series(wave, name="load", index=pd.RangeIndex(100, 300)),
        "column": wave,
        "table": np.column_stack([wave, wave]),
    }[kind]
    after, manifest = change(given, "spike", span=(3, 4))
    assert type(after) is type(given)
    assert after.shape == given.shape
    if kind in ("frame", "series"):
        assert after.index.equals(given.index)
    names = {"frame": ("a", "b"), "series": ("load",), "column": ("0",), "table": ("0", "1")}
    assert manifest.entries[0].columns == names[kind]


def test_only_the_columns_named_change(wave):
    frame = pd.DataFrame({"a": wave, "b": wave})
    after, manifest = change(frame, "level_shift", columns=["b"])
    pd.testing.assert_series_equal(after["a"], frame["a"])
    assert manifest.entries[0].columns == ("b",)


def test_several_injections_find_room_of_their_own(wave):
    after, manifest = inject_series(wave, "level_shift", n=5, length=20, random_state=0)
    spans = sorted(entry.span for entry in manifest.entries)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert ((after != wave) == manifest.labels(200)).all()


def test_overlap_is_refused_unless_merging_is_asked_for(wave):
    first, manifest = change(wave, "level_shift")
    with pytest.raises(
        ParameterError, match=r"span \(50, 70\) meets .*'level_shift' at \(40, 60\)"
    ):
        change(first, "stuck", span=(50, 70), manifest=manifest)
    merged, both = change(first, "stuck", span=(50, 70), manifest=manifest, overlap="merge")
    assert [entry.type for entry in both.entries] == ["level_shift+stuck"]
    assert both.entries[0].span == (40, 70)
    assert [part.span for part in both.entries[0].parts] == [(40, 60), (50, 70)]
    assert (merged[50:70] == first[50]).all()
    assert Manifest.from_json(both.to_json()) == both
    assert both.shifted(5).entries[0].parts[1].span == (55, 75)


def test_injections_into_different_columns_do_not_meet(wave):
    frame = pd.DataFrame({"a": wave, "b": wave})
    _, manifest = change(frame, "stuck", columns=["a"])
    _, both = change(frame, "multiply", columns=["b"], manifest=manifest)
    assert both.types(200)[50] == "stuck+multiply"


def test_no_room_left_is_an_error(wave):
    with pytest.raises(ParameterError, match="no room is left for a span of 90"):
        inject_series(wave, "stuck", n=3, length=90, random_state=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "spikes"}, "type must be one of spike"),
        ({"span": (190, 210)}, "span must lie within the 200 points"),
        ({"span": (5, 5)}, "span must lie within"),
        ({"n": 2}, "1 where a span is given"),
        ({"length": 0}, "length must be 1 to 200"),
        ({"type": "seasonal_shift"}, "needs a period"),
        ({"overlap": "ignore"}, "overlap must be"),
        ({"direction": "left"}, "direction must be"),
        ({"columns": ["x"]}, "there is no 'x'"),
    ],
)
def test_a_wrong_series_argument_is_named(wave, options, message):
    with pytest.raises(ValueError, match=message):
        inject_series(wave, **{"type": "spike", "span": (1, 2), **options})


def test_a_series_of_words_is_refused():
    with pytest.raises(DataError, match="a series must hold numbers"):
        inject_series(["a", "b"], "spike")


# ---------------------------------------------------------------- manifest


@given(
    st.lists(
        st.builds(
            Injection,
            type=st.text(),
            columns=st.lists(st.text()).map(tuple),
            magnitude=st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
            seed=st.integers(0, 2**64),
            rows=st.none() | st.lists(st.integers(0, 99)).map(tuple),
            span=st.none() | st.tuples(st.integers(0, 99), st.integers(0, 99)),
        )
    )
)
def test_any_manifest_survives_json(entries):
    manifest = Manifest(tuple(entries))
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"type": "spike"}]', "5"])
def test_a_torn_manifest_is_refused(text):
    with pytest.raises(DataError, match="not a manifest"):
        Manifest.from_json(text)


def test_a_manifest_of_another_table_is_refused(normal):
    _, manifest = make(normal, "uniform", n=5)
    assert manifest.shifted(10).labels(15).tolist() == [False] * 10 + [True] * 5
    with pytest.raises(DataError, match="names position 10, there are 10"):
        manifest.shifted(10).types(10)


# ---------------------------------------------------------------- oversampling


@pytest.fixture(scope="module")
def labelled(normal):
    odd, _ = make(normal, "uniform", n=20)
    X = pd.concat([normal, odd], ignore_index=True)
    return X, np.repeat([0, 1], [100, 20])


def pipeline():
    encoder = make_column_transformer((OneHotEncoder(), ["class"]), remainder="passthrough")
    return make_pipeline(encoder, DecisionTreeClassifier(random_state=0))


class Recorder(LogisticRegression):
    """Remembers what it was fitted on."""

    def fit(self, X, y):
        self.X_, self.y_ = X, y
        return super().fit(X, y)


def test_the_rows_added_are_those_of_inject(labelled):
    X, y = labelled
    X = X.drop(columns="class")
    model = OversampleClassifier(Recorder(max_iter=10_000), 4, random_state=7).fit(X, y)
    expected, _ = inject(X[y == 0], 60, random_state=7)
    fitted = model.estimator_
    assert fitted.y_.tolist() == [0] * 100 + [1] * 80
    np.testing.assert_array_equal(fitted.X_[120:].to_numpy(), expected.to_numpy())
    assert model.manifest_.entries[0].rows == tuple(range(120, 180))
    np.testing.assert_array_equal(model.decision_function(X), fitted.decision_function(X))
    np.testing.assert_array_equal(model.predict_proba(X), fitted.predict_proba(X))


def test_the_anomalies_keep_their_weight_as_a_class(labelled):
    X, y = labelled
    X = X.drop(columns="class")
    tree = DecisionTreeClassifier(max_depth=1, random_state=0)
    model = OversampleClassifier(tree, 5, random_state=0).fit(X, y)
    assert model.estimator_.tree_.weighted_n_node_samples[0] == pytest.approx(120)
    root = model.estimator_.tree_.value[0, 0]
    assert root / root.sum() == pytest.approx([100 / 120, 20 / 120])
    plain = clone(model).set_params(reweight=False).fit(X, y)
    assert plain.estimator_.tree_.weighted_n_node_samples[0] == 200
    inside = OversampleClassifier(make_pipeline(tree), 5, random_state=0).fit(X, y)
    np.testing.assert_array_equal(inside.predict_proba(X), model.predict_proba(X))


def test_a_classifier_without_weights_is_trained_without(labelled):
    X, y = labelled
    X = X.drop(columns="class")
    model = OversampleClassifier(KNeighborsClassifier(), 3, random_state=0).fit(X, y)
    assert model.estimator_.n_samples_fit_ == 160


def test_oversampling_happens_before_encoding(labelled):
    X, y = labelled
    model = OversampleClassifier(pipeline(), 3, "mix", random_state=0).fit(X, y)
    assert len(model.manifest_.labels(160)) == 160
    assert model.score(X, y) == 1
    assert clone(model).fit(X, y).manifest_ == model.manifest_
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), model.predict(X))


def test_oversample_is_tuned_in_a_grid(labelled):
    X, y = labelled
    grid = {"oversample": [1, 4], "estimator__decisiontreeclassifier__max_depth": [2, None]}
    search = GridSearchCV(OversampleClassifier(pipeline(), random_state=0), grid, cv=2).fit(X, y)
    assert set(search.best_params_) == set(grid)


def test_an_array_with_categories_keeps_its_kind(labelled):
    X, y = labelled
    encoder = make_column_transformer((OneHotEncoder(), [0]), remainder="passthrough")
    model = OversampleClassifier(
        make_pipeline(encoder, DecisionTreeClassifier(random_state=0)), 2, random_state=0
    )
    table = X.to_numpy(dtype=object)
    assert model.fit(table, y).score(table, y) == 1


def test_one_means_no_change_and_any_number_of_classes(labelled):
    X = labelled[0][["length", "width"]]
    model = OversampleClassifier(DecisionTreeClassifier(random_state=0)).fit(X, np.arange(120) % 3)
    assert model.classes_.tolist() == [0, 1, 2]
    assert len(model.manifest_) == 0
    with pytest.raises(ValueError, match="Only binary classification"):
        model.set_params(oversample=2).fit(X, np.arange(120) % 3)


def test_what_the_classifier_lacks_the_wrapper_lacks():
    model = OversampleClassifier(DecisionTreeClassifier())
    assert hasattr(model, "predict_proba")
    assert not hasattr(model, "decision_function")


def test_oversample_below_one_is_refused(labelled):
    X, y = labelled
    with pytest.raises(ValueError, match="'oversample' parameter"):
        OversampleClassifier(pipeline(), 0.5).fit(X, y)
