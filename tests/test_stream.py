"""The stream command: one line out per line in, resumable even after kill -9."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomaly import stream
from anomaly.errors import DataError
from anomaly.htm import HTMDetector
from anomaly.stream_ensemble import StreamEnsemble
from anomaly.stream_plot import LivePlot, plot_stream
from anomaly.tiles import TileDetector

ROOT = Path(__file__).resolve().parent.parent
PNG = b"\x89PNG\r\n\x1a\n"


def write_series(path, n=600, start=0):
    rng = np.random.default_rng(0)
    x = 10 * np.sin(np.arange(n) / 12.0) + rng.normal(size=n)
    x[n - 80] = 60.0
    times = pd.date_range("2024-01-01", periods=n, freq="5min").astype(str)
    frame = pd.DataFrame({"timestamp": times, "value": x})[start:]
    frame.to_csv(path, index=False)
    return frame


def command(*arguments):
    return [sys.executable, "-m", "anomaly.stream", "run", *map(str, arguments)]


def test_scores_are_those_of_the_detector(tmp_path):
    frame = write_series(tmp_path / "data.csv")
    out = tmp_path / "scores.csv"
    options = ["--time", "timestamp", "--learning-period", "100"]
    options += ["--out", str(out), "--plot", str(tmp_path / "out.png")]
    assert stream.main(["run", str(tmp_path / "data.csv"), *options]) == 0
    scores = pd.read_csv(out)
    expected = TileDetector(100).process_many(frame["value"], frame["timestamp"])
    assert list(scores.columns) == [
        "timestamp",
        "value",
        "predicted",
        "raw_score",
        "likelihood",
        "is_anomaly",
    ]
    assert scores["likelihood"].tolist() == expected.likelihood.tolist()
    assert scores["predicted"].tolist() == expected.predicted[:, 0].tolist()
    assert scores["timestamp"].tolist() == frame["timestamp"].tolist()
    assert scores["is_anomaly"][520] == 1
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("detector", ["tile", "htm", "ensemble"])
def test_stopped_run_continues_as_if_it_had_not_stopped(tmp_path, detector):
    frame = write_series(tmp_path / "whole.csv", n=260)
    small = ["--time", "timestamp", "--detector", detector]
    stream.main(["run", str(tmp_path / "whole.csv"), *small, "--out", str(tmp_path / "a.csv")])
    resumed = [*small, "--out", str(tmp_path / "b.csv"), "--state", str(tmp_path / "state")]
    growing = tmp_path / "growing.csv"
    for n in (0, 1, 130, 260):
        frame[:n].to_csv(growing, index=False)
        assert stream.main(["run", str(growing), *resumed]) == 0
    assert (tmp_path / "b.csv").read_text() == (tmp_path / "a.csv").read_text()


def test_killed_run_loses_and_doubles_no_line(tmp_path):
    frame = write_series(tmp_path / "whole.csv")
    options = ["--time", "timestamp", "--learning-period", "50", "--save-every", "20"]
    stream.main(
        ["run", str(tmp_path / "whole.csv"), *options, "--out", str(tmp_path / "expected.csv")]
    )
    data, out, state = (tmp_path / name for name in ("data.csv", "out.csv", "state"))
    options += ["--out", str(out), "--state", str(state)]
    frame[:0].to_csv(data, index=False)
    for start, stop in [(0, 215), (215, 430)]:
        process = subprocess.Popen(
            command(data, *options, "--follow"), cwd=ROOT, stderr=subprocess.PIPE
        )
        frame[start:stop].to_csv(data, mode="a", header=False, index=False)
        deadline = time.monotonic() + 60
        while not (out.exists() and out.read_text().count("\n") >= stop):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        with out.open("a") as file:
            file.write("torn")  # what a crash may leave
    frame[430:].to_csv(data, mode="a", header=False, index=False)
    assert stream.main(["run", str(data), *options]) == 0
    assert out.read_text() == (tmp_path / "expected.csv").read_text()


def test_stdin_is_scored_line_by_line(tmp_path):
    process = subprocess.Popen(
        command("-", "--value", "v"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    process.stdin.write("v\n1.5\n")
    process.stdin.flush()
    assert process.stdout.readline().startswith("timestamp,value,predicted")
    assert process.stdout.readline() == ",1.5,1.5,0.0,0.0,0\n"  # before stdin ends
    out, err = process.communicate("nan\n\n2.5\n", timeout=60)
    assert out == ",,1.5,0.0,0.0,0\n,2.5,1.5,0.0,0.0,0\n"
    assert err == "3 records, 0 anomalies\n"


def test_line_without_its_end_waits_when_following(tmp_path):
    data = tmp_path / "data.csv"
    data.write_text("value\n1\n2\n3")
    out = tmp_path / "out.csv"
    assert stream.main(["run", str(data), "--follow", "--idle", "0.2", "--out", str(out)]) == 0
    assert out.read_text().count("\n") == 3
    assert stream.main(["run", str(data), "--out", str(out)]) == 0
    assert out.read_text().count("\n") == 4


def test_last_line_of_stdin_needs_no_end(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("value\n1\n2"))
    assert stream.main(["run", "-", "--follow"]) == 0
    assert capsys.readouterr().out.count("\n") == 3


def test_tab_can_be_written_with_a_backslash(tmp_path, capsys):
    data = tmp_path / "data.csv"
    data.write_text("t\tvalue\n1\t5\n")
    assert stream.main(["run", str(data), "--separator", r"\t"]) == 0
    assert ",5.0,5.0," in capsys.readouterr().out
    with pytest.raises(SystemExit):
        stream.main(["run", str(data), "--separator", ";;"])
    assert "must be one character such as ; or" in capsys.readouterr().err


def test_picture_is_drawn_while_the_stream_pauses(tmp_path, monkeypatch):
    write_series(tmp_path / "data.csv", n=60)
    drawn = []
    monkeypatch.setattr(LivePlot, "draw", lambda plot: drawn.append(len(plot._rows)))
    live_plot = stream.LivePlot
    monkeypatch.setattr(
        stream, "LivePlot", lambda *a, **options: live_plot(*a, **{**options, "every_s": 0.2})
    )
    options = ["--follow", "--idle", "1", "--plot", str(tmp_path / "live.png")]
    arguments = ["run", str(tmp_path / "data.csv"), "--out", str(tmp_path / "out.csv"), *options]
    assert stream.main(arguments) == 0
    assert len(drawn) > 1  # one is that of the end
    assert drawn[0] == 60


def test_three_header_lines_of_the_original_are_understood(tmp_path):
    data = tmp_path / "data.csv"
    data.write_text(
        "timestamp,a,b\ndatetime,float,float\nT,,\n2016-12-1 0:00:00,1,5\n2016-12-1 0:14:00,2,6\n"
    )
    out = tmp_path / "out.csv"
    arguments = ["run", str(data), "--time", "timestamp", "--value", "a", "--value", "b"]
    assert stream.main([*arguments, "--out", str(out)]) == 0
    assert out.read_text() == (
        "timestamp,a,b,predicted_a,predicted_b,raw_score,likelihood,is_anomaly\n"
        "2016-12-1 0:00:00,1.0,5.0,1.0,5.0,0.0,0.0,0\n"
        "2016-12-1 0:14:00,2.0,6.0,1.0,5.0,0.0,0.0,0\n"
    )


def test_parameter_file_chooses_and_sets_the_detector(tmp_path):
    write_series(tmp_path / "data.csv", n=150)
    params = tmp_path / "params.json"
    found = {"learning_period": 60, "n_columns": 64, "n_active_columns": 8}
    params.write_text(json.dumps({"detector": "htm", "parameters": found}))
    out = tmp_path / "out.csv"
    data = str(tmp_path / "data.csv")
    assert stream.main(["run", data, "--params", str(params), "--out", str(out)]) == 0
    values = pd.read_csv(data)["value"].to_numpy()
    expected = HTMDetector(cells_per_column=1, **found).process_many(values)
    assert pd.read_csv(out)["raw_score"].tolist() == expected.raw_score.tolist()


def test_learning_period_reaches_the_members_of_the_ensemble():
    x = np.sin(np.arange(300) / 9.0)
    short = stream.make_detector("ensemble", {"learning_period": 80, "threshold": 0.4})
    expected = StreamEnsemble(
        [("tiles", TileDetector(80)), ("htm", HTMDetector(80, cells_per_column=1))],
        weights=(1.0, 0.75),
        threshold=0.4,
    )
    scores = short.process_many(x).likelihood
    assert scores.tolist() == expected.process_many(x).likelihood.tolist()
    assert scores[100:].any()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("value\n1\nhigh\n", [], "line 3: a value must be a number or empty, got 'high'"),
        ("v\n1\n", [], "no column 'value' in"),
        ("", [], "is empty: a header line is needed"),
        ("t,value\nnoon,1\n", ["--time", "t"], "line 2: timestamp must be a date and time"),
        ("t,value\n1\n", [], "line 2 has only 1 columns"),
        ("value\r1\r2\r", [], "the header line is no line of a CSV: new-line character"),
        ("value\n" + "1" * 2_000_000, [], "line 2 is longer than 1048576 characters"),
        ("value\n1\n", ["--learning-period", "0"], "'learning_period' parameter of TileDetector"),
    ],
)
def test_mistakes_are_one_line_with_the_place(tmp_path, capsys, content, arguments, message):
    data = tmp_path / "data.csv"
    data.write_text(content)
    assert stream.main(["run", str(data), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("anomaly.stream: error: ")
    assert error.count("\n") == 1


def test_state_that_does_not_fit_is_refused(tmp_path, capsys):
    data, state, out = (str(tmp_path / name) for name in ("data.csv", "state", "out.csv"))
    write_series(data, n=50)
    assert stream.main(["run", data, "--state", state, "--out", out]) == 0
    assert stream.main(["run", data, "--state", state, "--out", out, "--threshold", "0.6"]) == 2
    assert "give the same options or another state file" in capsys.readouterr().err
    content = Path(state).read_bytes()
    for bad in (b"", b"x" * 100, content[:200], content[:-10]):
        Path(state).write_bytes(bad)
        assert stream.main(["run", data, "--state", state, "--out", out]) == 2
        assert "cannot resume from" in capsys.readouterr().err


def test_shrunken_files_are_refused(tmp_path, capsys):
    data, state, out = (str(tmp_path / name) for name in ("data.csv", "state", "out.csv"))
    frame = write_series(data, n=50)
    assert stream.main(["run", data, "--state", state, "--out", out]) == 0
    frame[:10].to_csv(data, index=False)
    assert stream.main(["run", data, "--state", state, "--out", out]) == 2
    assert "has 10 records, but the state has seen 50" in capsys.readouterr().err
    Path(out).unlink()
    assert stream.main(["run", data, "--state", state, "--out", out]) == 2
    assert "is shorter than the state says" in capsys.readouterr().err


def test_several_fields_get_a_panel_each():
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(80, 2)), columns=["a", "b"])
    figure = plot_stream(TileDetector(20).process_many(X), title="two")
    assert len(figure.axes) == 3
    assert figure.axes[0].get_title() == "two"


def test_alarms_are_shaded_and_nothing_cannot_be_drawn():
    frame = TileDetector(20).process_many(np.r_[np.zeros(90), 9.0, 0.0]).to_frame()
    figure = plot_stream(frame)
    assert frame["is_anomaly"].sum() == 1
    assert len(figure.axes[0].patches) == 1
    with pytest.raises(DataError, match="nothing to draw"):
        plot_stream(frame[:0])


def test_live_plot_follows_into_a_file(tmp_path):
    detector = TileDetector(20)
    path = tmp_path / "live.png"
    with LivePlot(path, every_s=0.0, last=30) as plot:
        plot.add(detector.process_one(1.0, 60.0), 60.0)
        first = path.read_bytes()
        for t in range(2):
            plot.add(detector.process_one(float(t), 120.0 + t), 120.0 + t)
    assert first.startswith(PNG)
    assert path.read_bytes() != first


def test_extreme_values_and_clocks_are_drawn(tmp_path):
    values = [1.0, 1.7e308, -1.7e308, np.inf, np.nan, 5.0]
    clock = [0.0, 60.0, 1e300, np.inf, np.nan, -1e300]
    result = TileDetector(3).process_many(values, clock)
    assert result.to_frame()["timestamp"].isna().tolist() == [False, False, True, True, True, True]
    plot_stream(result, tmp_path / "block.png")
    with LivePlot(tmp_path / "live.png") as plot:
        for i, value in enumerate(values):
            plot.add(TileDetector(3).process_one(value), clock[i])
    for name in ("block.png", "live.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


def test_counts_below_one_are_refused(tmp_path, capsys):
    for option in ("--plot-last", "--save-every"):
        with pytest.raises(SystemExit):
            stream.main(["run", "data.csv", option, "0"])
        assert "must be a whole number of 1 or more, got '0'" in capsys.readouterr().err


def test_live_plot_in_a_window(monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "ion", lambda: None)
    with plt.rc_context(), LivePlot(every_s=0.0) as plot:
        plot.add(TileDetector(20).process_one([1.0, 2.0]))
        assert len(plot._figure.axes) == 3
        plt.close(plot._figure)


def test_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit):
        stream.main(["run", "--help"])
    assert "tail -n +1 -f sensor.csv | python -m anomaly.stream run -" in capsys.readouterr().out


def test_a_run_that_fails_leaves_the_old_scores_whole(tmp_path):
    data, out = tmp_path / "data.csv", tmp_path / "scores.csv"
    data.write_text("value\n1.0\n2.0\n3.0\n", encoding="utf-8")
    assert stream.main(["run", str(data), "--value", "value", "--out", str(out)]) == 0
    before = out.read_bytes()
    assert before.count(b"\n") == 4
    data.write_text("value\n1.0\nnot a number\n", encoding="utf-8")
    assert stream.main(["run", str(data), "--value", "value", "--out", str(out)]) == 2
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.csv", "scores.csv"]
