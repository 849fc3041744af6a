"""The benchmark on tables: what it reads, prints and survives."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pandas as pd
import pytest

from tests.conftest import ROOT


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tabular():
    return script("tabular")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(120, 3)), np.arange(120) < 12
    X[y] += 4
    np.savez(tmp_path / "one.npz", X=X, y=y.astype(int))
    frame = pd.DataFrame(X, columns=list("abc")).assign(label=y.astype(int))
    frame.to_csv(tmp_path / "two.csv", index=False)
    return tmp_path


def test_npz_and_csv_tables_are_read_alike(tabular, folder):
    for one, two in zip(
        tabular.read_table(folder / "one.npz"), tabular.read_table(folder / "two.csv"), strict=True
    ):
        assert one == pytest.approx(two)


def test_text_columns_become_numbers_and_incomplete_rows_are_left_out(tabular, folder):
    frame = pd.read_csv(folder / "two.csv")
    frame.insert(1, "kind", np.where(np.arange(120) % 2, "u", "v"))
    frame.loc[50, "kind"] = None
    frame.to_csv(folder / "two.csv", index=False)
    X, y = tabular.read_table(folder / "two.csv")
    assert X.shape == (119, 5)
    assert set(X[:, 3:].sum(axis=1)) == {1.0}
    assert y.sum() == 12


@pytest.mark.parametrize(
    ("labels", "message"),
    [("yes", "bad.csv: labels must be 0 and 1"), (0, "bad.csv: at least 4 rows of each label")],
)
def test_a_table_without_usable_labels_is_named(tabular, tmp_path, capsys, labels, message):
    pd.DataFrame({"a": range(9), "label": labels}).to_csv(tmp_path / "bad.csv", index=False)
    assert tabular.main(["--data", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_it_prints_means_and_paired_intervals(tabular, folder, capsys):
    given = [
        "--data",
        str(folder),
        "--repeats",
        "1",
        "--jobs",
        "1",
        "--out",
        str(folder / "o.csv"),
    ]
    names = ["isolation forest", "5 neighbours"]
    assert tabular.main([*given, "--detectors", *names]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert "[" in out
    written = pd.read_csv(folder / "o.csv")
    assert set(written["table"]) == {"one", "two"}
    assert len(written) == 4


def test_a_detector_that_fails_does_not_end_the_run(tabular, folder, monkeypatch):
    def fail(X, y, rows, seed):
        raise ValueError("no")

    monkeypatch.setattr(tabular, "detectors", lambda labels: {"bad": fail})
    result = tabular.measure(folder / "one.npz", "none", 1.0, "bad", 0)
    assert result["failed"] == "ValueError: no"


def test_a_run_stopped_midway_goes_on(tabular, folder, monkeypatch):
    out = folder / "o.csv"
    given = ["--data", str(folder), "--repeats", "2", "--jobs", "1", "--out", str(out)]
    given += ["--detectors", "isolation forest"]
    assert tabular.main(given) == 0
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text("".join(lines[:3]) + lines[3][:20])  # two results, and one cut short
    measured = []
    measure = tabular.measure
    monkeypatch.setattr(tabular, "measure", lambda *job: measured.append(job) or measure(*job))
    assert tabular.main(given) == 0
    assert len(measured) == 2
    columns = ["table", "seed", "AUROC", "AP"]
    resumed, expected = (
        pd.read_csv(path)[columns].sort_values(columns, ignore_index=True)
        for path in (out, io.StringIO(whole))
    )
    pd.testing.assert_frame_equal(resumed, expected)


def test_the_same_rows_may_be_fitted_and_scored(tabular, folder, monkeypatch):
    seen = []

    def remember(X, y, rows, seed):
        seen.append((X, rows))
        return rows[:, 0]

    monkeypatch.setattr(tabular, "detectors", lambda labels: {"any": remember})
    tabular.measure(folder / "one.npz", tabular.SAME_ROWS, 1.0, "any", 0)
    assert seen[0][0].shape == (120, 3)
    assert np.array_equal(*seen[0])


def test_paired_interval_is_of_the_differences(tabular):
    mean, low, high = tabular.paired_interval(pd.Series([0.9, 0.8]), pd.Series([0.8, 0.7]))
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))


def test_an_empty_folder_is_refused(tabular, tmp_path, capsys):
    assert tabular.main(["--data", str(tmp_path)]) == 2
    assert "error: no .npz or .csv tables" in capsys.readouterr().err


def test_made_anomalies_of_a_kind_deviate_as_the_kind_says():
    made = script("made_tables")
    rng = np.random.default_rng(0)
    rows = rng.multivariate_normal([0.5, 0.5], [[0.01, 0.009], [0.009, 0.01]], 400)
    mixture = made.GaussianMixture(1, random_state=0).fit(rows)
    normal, _ = mixture.sample(1000)
    odd = {kind: made.anomalies(kind, mixture, normal, 300) for kind in made.KINDS}
    assert all(rows.shape == (300, 2) for rows in odd.values())
    assert odd["local"].std(axis=0) == pytest.approx(np.sqrt(5) * normal.std(axis=0), rel=0.2)
    assert odd["cluster"].mean(axis=0) == pytest.approx([2.5, 2.5], abs=0.1)
    assert abs(np.corrcoef(odd["dependency"].T)[0, 1]) < 0.2 < np.corrcoef(normal.T)[0, 1]
    middle = (normal.min(axis=0) + normal.max(axis=0)) / 2
    assert (np.abs(odd["global"] - middle) <= 0.55 * np.ptp(normal, axis=0)).all()


def test_made_tables_of_classes_have_one_anomaly_in_twenty():
    tables = list(script("made_tables").class_tables())
    assert len(tables) == 16
    for _, X, y in tables:
        assert len(X) == len(y)
        assert 0.04 < y.mean() < 0.06
