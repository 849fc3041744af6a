"""Parameters are found on later stretches, through the log, and used by the stream command."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from anomaly import stream, swarm
from anomaly.errors import DataError, ParameterError

SMALL = {"n_columns": [64], "n_active_columns": [8], "cells_per_column": [1]}


def a_frame(n=400):
    rng = np.random.default_rng(0)
    x = np.array([1.0, 5.0, 9.0, 4.0])[np.arange(n) % 4] + 0.1 * rng.normal(size=n)
    return pd.DataFrame({"value": x})


def test_the_candidate_that_predicts_best_is_found():
    grid = {**SMALL, "prediction_rate": [0.0, 0.05]}  # without a rate nothing is learnt
    found = swarm.swarm(a_frame(), grid=grid)
    assert found["parameters"]["prediction_rate"] == 0.05
    assert found["score"] > 0.6
    assert found["n_candidates"] == 2


def test_skill_is_the_share_predicted_better_than_by_the_last_value():
    frame = a_frame().assign(answer=np.arange(400) % 2)
    model = swarm.ForecastSkill(50, n_columns=64, n_active_columns=8, cells_per_column=1)
    model.fit(frame[:300])
    later = frame[300:]
    predicted = model._continued(later[["value"]]).predicted[:, 0]
    better = np.abs(predicted - later["value"]) < np.abs(
        frame["value"].shift()[300:] - later["value"]
    )
    assert ((model.predict(later) == later["answer"]) == better).all()


def test_labels_choose_by_alarms():
    frame = a_frame(600)
    labels = np.zeros(600, dtype=int)
    for at in (230, 380, 530):
        frame.loc[at, "value"] = 9.9
        labels[at] = 1
    found = swarm.swarm(frame, labels, detector="tile", grid={"range_scale": [0.05, 50.0]})
    assert found["parameters"]["range_scale"] == 0.05
    assert found["scoring"] == "F1 per record"


def test_command_writes_what_the_stream_command_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(swarm.GRIDS, ("htm", False, "small"), {**SMALL, "n_buckets": [10, 30]})
    data = tmp_path / "data.csv"
    lines = [
        f"2016-12-1 0:{i // 60 % 60:02d}:{i % 60:02d},{v}"
        for i, v in enumerate(a_frame()["value"])
    ]
    data.write_text("\n".join(["timestamp,a", "datetime,float", "T,", *lines]) + "\n")
    arguments = [str(data), "--time", "timestamp", "--field", "a", "--size", "small"]
    assert swarm.main(arguments) == 0
    assert "best of 2" in capsys.readouterr().out
    params = tmp_path / "data.params.json"
    assert json.loads(params.read_text())["detector"] == "htm"
    log = next((tmp_path / "data.params.run").glob("*.out*")).read_text()
    assert log.count("\n") == 6  # two candidates on three stretches
    assert "anomaly.swarm.ForecastSkill" in log
    assert swarm.main(arguments) == 0  # goes on, and finds all done
    run = ["run", str(data), "--time", "timestamp", "--value", "a", "--params", str(params)]
    assert stream.main([*run, "--out", str(tmp_path / "scores.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 400


def test_mistakes_are_named(tmp_path, capsys):
    with pytest.raises(ParameterError, match="tuning them needs labels"):
        swarm.swarm(a_frame(), detector="tile")
    with pytest.raises(
        ParameterError, match=r"size must be one of \['small', 'medium', 'large'\]"
    ):
        swarm.swarm(a_frame(), size="huge")
    with pytest.raises(DataError, match="50 records are too few for 3 folds: 80 are needed"):
        swarm.swarm(a_frame(50))
    with pytest.raises(DataError, match="labels must be 0 and 1, both, one per record"):
        swarm.swarm(a_frame(), np.zeros(400))
    assert swarm.main([str(tmp_path / "none.csv")]) == 2
    assert "anomaly.swarm: error: " in capsys.readouterr().err


@pytest.mark.parametrize("key", list(swarm.GRIDS), ids=str)
def test_every_grid_names_parameters_of_its_detector(key):
    stream.make_detector(key[0], {name: values[0] for name, values in swarm.GRIDS[key].items()})
