"""The main job on bundled data: what it tunes, classifies and lists."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from anomaly.loading import Catalogue, read_csv
from tests.conftest import ROOT

SCRIPT = ROOT / "examples" / "run.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["shuttle", "breast_cancer"])
def test_a_labelled_table_is_tuned_on_its_own_labels_and_classified_by_its_rows(
    example, name, tmp_path
):
    loaded = Catalogue().load(name)
    given = example.options(loaded)
    assert "--inject" not in given
    assert given.count("--classifier") >= 5
    (tmp_path / "records.csv").write_text(example.choose_records(name, loaded))
    records = read_csv(tmp_path / "records.csv").frame
    assert len(records) == 6
    assert loaded.label not in records


def test_sizes_are_tuned_on_injected_points(example):
    loaded = Catalogue().load("dimensions")
    assert example.options(loaded) == ["--inject", "1000"]
    assert example.choose_records("dimensions", loaded).startswith("class,length,width\n")


def test_pictures_are_counted_by_folder(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(example, "ROOT", tmp_path)
    (tmp_path / "results" / "one").mkdir(parents=True)
    for name in ("a.png", "b.png", "report.html"):
        (tmp_path / "results" / "one" / name).write_text("x")
    (tmp_path / "results" / "one" / "empty.lock").touch()
    example.list_files(0)
    listed = capsys.readouterr().out.split("\n")[2:]
    assert listed == [
        "  results/one/report.html  (1 bytes)",
        "  results/one/*.png  (2 pictures)",
        "",
    ]


def test_an_unknown_data_set_is_one_sentence():
    command = [sys.executable, str(SCRIPT), "--data", "shutle"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("run.py: error: ")
    assert done.stderr.count("\n") == 1
