"""The command line of parameters.py, and kill -9 at any moment."""

from __future__ import annotations

import ast
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import parameters
from anomaly.tuning import RunFolder
from anomaly.tuning.log import LogReader
from tests.test_tuning import lines_without_times

ROOT = Path(__file__).resolve().parent.parent
GRID = """
[adaboost]
n_estimators = {from = 1, to = 60}
learning_rate = [0.2, 0.5, 1.0]
estimator = "[sklearn.tree.DecisionTreeClassifier(max_depth=2)]"

[knn]
n_neighbors = [1, 3, 5]

["sklearn.naive_bayes.GaussianNB"]
var_smoothing = [1e-9, 1e-6]
"""

NAIVE = "sklearn.naive_bayes.GaussianNB"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with a labelled table and a grid."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"size": rng.normal(size=240), "kind": rng.choice(["a", "b"], 240), "bad": 0}
    )
    frame.loc[:79, "size"] += 1.5
    frame.loc[:79, "bad"] = 1
    frame.to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "grid.toml").write_text(GRID)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(run, *more):
    data = ["--data", "table.csv", "--label", "bad", "--grid", "grid.toml"]
    return [*data, "--cv", "3", "--classifier", "knn", "--run", run, *more]


def test_a_run_logs_merges_and_says_what_comes_next(place, capsys):
    assert parameters.main(arguments("first", "--classifier", "adaboost", "--seed", "3")) == 0
    out = capsys.readouterr().out
    assert "549 fits in params/first.out" in out
    assert "python beautify.py params/first.out" in out
    assert "first.scores.csv params/first.params.AdaBoostClassifier.csv" in out
    lines = (place / "params" / "first.out").read_text().splitlines()
    assert len(lines) == (60 * 3 + 3) * 3
    assert json.loads((place / "params/first/run.json").read_text())["job"]["seed"] == 3
    assert (place / "params/first/manifest.json").exists()


def test_the_next_commands_work_as_printed(place, capsys):
    assert parameters.main(arguments("next")) == 0
    printed = capsys.readouterr().out.split("next:\n")[1]
    for line in printed.splitlines():
        command = line.replace("python ", f"{sys.executable} {ROOT}/", 1).split()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    scores = pd.read_csv("params/next.scores.csv", sep=";")
    assert len(scores) == 9


def test_a_data_set_without_anomalies_gets_a_thousand(place, capsys):
    run = ["--data", "dimensions_small", "--grid", "grid.toml", "--cv", "2", "--run", "d"]
    assert parameters.main([*run, "--classifier", "knn"]) == 0
    entries = json.loads((place / "params/d/manifest.json").read_text())
    assert "uniform" in json.dumps(entries)
    folder = RunFolder(place / "params/d")
    reader = LogReader(folder)
    reader.refresh()
    assert len(reader.lines) == 6


def test_the_mean_of_the_best_is_judged_beside_them(place, capsys):
    assert parameters.main(arguments("mean", "--classifier", NAIVE, "--mean-of-best", "2")) == 0
    out = capsys.readouterr().out
    assert "mean of best 2" in out
    answer = json.loads((place / "params/mean/run.json").read_text())["answer"]
    assert set(answer) == {"knn", NAIVE, "mean of best 2"}
    assert "injected" not in out


def test_few_labels_are_read_where_rows_have_none(place, capsys):
    frame = pd.read_csv("table.csv")
    frame["bad"] = frame["bad"].where(frame.index % 4 == 0).astype("Int64")
    frame.to_csv("table.csv", index=False)
    assert parameters.main(arguments("few")) == 0
    assert parameters.main(arguments("all", "--unlabelled", "normal")) == 0
    judged = {}
    for run in ("few", "all"):
        lines = (place / f"params/{run}.out").read_text().splitlines()[:3]
        scores = [ast.literal_eval(line.split("\t")[1]) for line in lines]
        judged[run] = sum(score[n] for score in scores for n in ("tn", "fp", "fn", "tp"))
    assert judged == {"few": 30, "all": 120}


def test_a_run_on_injected_labels_says_what_they_mean(place, capsys):
    run = ["--data", "dimensions_small", "--grid", "grid.toml", "--cv", "2", "--run", "i"]
    assert parameters.main([*run, "--classifier", "knn"]) == 0
    assert "say little about real anomalies" in capsys.readouterr().out.replace("\n", " ")


def test_a_users_classifier_is_tuned_by_its_import_path(place, capsys):
    name = "sklearn.naive_bayes.GaussianNB"
    run = ["--data", "table.csv", "--label", "bad", "--grid", "grid.toml", "--run", "nb"]
    assert parameters.main([*run, "--cv", "3", "--classifier", name]) == 0
    lines = (place / "params/nb.out").read_text().splitlines()
    assert {ast.literal_eval(line.split("\t")[1])["estimator"] for line in lines} == {name}
    assert [ast.literal_eval(line.split("\t")[0]) for line in lines[:2]] == [
        {"var_smoothing": 1e-9},
        {"var_smoothing": 1e-6},
    ]


def test_folds_in_time_order_train_on_the_past_of_what_they_are_tried_on(place, capsys):
    job = parameters.DEFAULTS | {"data": "table.csv", "label": "bad", "order": "time", "cv": 2}
    rows = parameters.load(job)
    assert list(rows.train_rows) == sorted(rows.train_rows)
    assert max(rows.train_rows) < min(rows.test_rows)
    splits = list(parameters.folds(job).split(rows.xtrain))
    assert len(splits) == 2
    assert all(train.max() < test.min() for train, test in splits)


def test_stream_detectors_are_tuned_by_name_over_time(place, capsys):
    rng = np.random.default_rng(0)
    series = pd.DataFrame({"x": np.sin(np.arange(900) / 9) + rng.normal(0, 0.05, 900), "bad": 0})
    for spot in (380, 620, 860):
        series.loc[spot : spot + 3, ["x", "bad"]] = [9.0, 1]
    series.loc[::2, "x"] += 0.01
    series.to_csv("series.csv", index=False)
    Path("stream.toml").write_text("[tile]\nlearning_period = [60, 90]\n[htm]\nskip = [0.8]\n")
    given = ["--data", "series.csv", "--label", "bad", "--grid", "stream.toml", "--cv", "2"]
    names = ["--classifier", "tile", "--classifier", "htm"]
    assert parameters.main([*given, *names, "--order", "time", "--run", "t"]) == 0
    assert "TileDetector" in capsys.readouterr().out
    assert json.loads(Path("params/t/run.json").read_text())["job"]["order"] == "time"
    assert len(Path("params/t.out").read_text().splitlines()) == 6
    assert parameters.main(["evaluate", "t"]) == 0


def test_dry_run_counts_and_leaves_nothing_behind(place, capsys):
    assert parameters.main([*arguments("dry"), "--dry-run", "--n-jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "knn" in out
    assert "with 2 process(es)" in out
    assert not (place / "params").exists()


def test_merge_without_a_name_merges_every_run(place, capsys):
    for name in ("one", "two"):
        assert parameters.main(arguments(name)) == 0
    capsys.readouterr()
    assert parameters.main(["merge"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "9 fits in params/one.out",
        "9 fits in params/two.out",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--resume", "nine"], "there is no run 'nine' in params"),
        (["--resume", "fist"], "did you mean 'first'?"),
        (["--resume", "first", "--cv", "3"], "leave out --cv"),
        (["--run", "first"], "run 'first' exists; continue it with --resume first"),
        (["--run", "../up"], "a run has a plain name"),
        (["--classifier", "adabost"], "did you mean 'adaboost'?"),
        (["--grid", "nowhere.toml"], "grid 'nowhere.toml' cannot be read: No such file"),
        (["--data", "nothing"], "nothing is neither a file nor"),
        (["merge", "nine"], "there is no run 'nine'"),
        (["--data", "table.csv", "--label", "badd"], "badd"),
        (["--data", "table.csv", "--label", "kind"], "--anomalies VALUE"),
        (["--data", "dimensions_small", "--seed", "-3"], "must be 0 or more"),
        (["--run", ""], "a run has a plain name"),
        (["evaluate", "first", "--export", "nowhere/a.clf"], "there is no folder nowhere"),
        (["evaluate", "first", "--plot", "a.xyz"], "format of the plot must be one of"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_exit_code_2(place, capsys, given, message):
    folder = RunFolder(place / "params" / "first")
    folder.note(job={})
    assert parameters.main(given) == 2
    error = capsys.readouterr().err
    assert error.startswith("parameters.py: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("wrong", [["--n-jobs", "0"], ["--trials", "3"], ["--cv", "999"]])
def test_a_run_that_cannot_begin_leaves_its_name_free(place, capsys, wrong):
    assert parameters.main(arguments("mine", *wrong)) == 2
    assert capsys.readouterr().err.startswith("run mine: ")
    assert list(place.glob("params/*")) == []
    assert parameters.main(arguments("mine")) == 0


def test_a_run_with_fits_is_never_forgotten(place, capsys):
    assert parameters.main(arguments("kept")) == 0
    RunFolder(place / "params" / "kept").forget()
    assert parameters.main(["--resume", "kept"]) == 0


def test_the_next_command_names_the_folder_of_the_run(place, capsys):
    assert parameters.main(arguments("mine", "--folder", "my runs", "--n-jobs", "2")) == 0
    (command,) = [x for x in capsys.readouterr().out.splitlines() if "evaluate" in x]
    given = shlex.split(command)[2:-2]
    assert given == ["evaluate", "mine", "--n-jobs", "2", "--folder", "my runs"]
    assert parameters.main(given) == 0


def test_the_table_of_the_winners_cuts_no_parameter(place, capsys):
    assert parameters.main([*arguments("forest"), "--classifier", "adaboost"]) == 0
    capsys.readouterr()
    assert parameters.main(["evaluate", "forest"]) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert "cross-validated" in printed
    assert "DecisionTreeClassifier(max_depth=2)" in printed


def test_marks_and_labels_of_a_users_table_are_options(place, capsys):
    frame = pd.read_csv("table.csv")
    frame["size"] = [f"{4000 + 100 * x:,.1f}" for x in frame["size"]]
    frame["size"] = frame["size"].str.translate(str.maketrans(",.", " ,"))
    frame["bad"] = frame["bad"].map({0: "fine", 1: "broken"})
    frame.to_csv("table.csv", index=False, sep=";")
    marks = ["--decimal", ",", "--thousands", " ", "--anomalies", "broken"]
    assert parameters.main(arguments("marks", *marks)) == 0
    assert parameters.main(["--resume", "marks"]) == 0


def test_a_run_whose_file_of_hosts_is_not_there_leaves_its_name_free(place, capsys):
    dask = ["--backend", "dask", "--hosts", "nowhere.txt"]
    for _ in range(2):
        assert parameters.main(arguments("free", *dask)) == 2
        assert "nowhere.txt" in capsys.readouterr().err
    assert not Path("params/free").exists()


def test_the_next_commands_need_no_cluster(place, capsys):
    options = ["--backend", "dask", "--workers", "1", "--folder", "runs"]
    assert parameters.main(arguments("near", "--classifier", "knn", *options)) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "evaluate near --folder runs --export" in last


def test_changed_data_is_refused_on_resume(place, capsys):
    assert parameters.main(arguments("old")) == 0
    frame = pd.read_csv("table.csv")
    frame.loc[0, "size"] += 1e-9
    frame.to_csv("table.csv", index=False)
    capsys.readouterr()
    assert parameters.main(["--resume", "old"]) == 2
    error = capsys.readouterr().err
    assert "run 'old' cannot be continued: data was" in error


def test_help_teaches_with_examples(capsys):
    for given in (["--help"], ["merge", "--help"]):
        with pytest.raises(SystemExit) as caught:
            parameters.main(given)
        assert caught.value.code == 0
        assert "python parameters.py" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "n_jobs"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_ctrl_c_leaves_a_run_that_continues(place, number, n_jobs):
    jobs = ["--n-jobs", str(n_jobs)]
    command = [sys.executable, str(ROOT / "parameters.py"), *arguments("stop", *jobs)]
    command += ["--classifier", "adaboost"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: logged_keys(place / "params" / "stop"))
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    if process.returncode == 0:
        pytest.fail("the run was over before it could be stopped")
    assert process.returncode == 130
    assert "python parameters.py --resume stop" in error
    assert ("--n-jobs 2" in error) == (n_jobs == 2)
    assert "Traceback" not in error
    before = logged_keys(place / "params/stop")
    assert parameters.main(["--resume", "stop"]) == 0
    assert before <= logged_keys(place / "params/stop")
    assert len(logged_keys(place / "params/stop")) == 183 * 3


# A process that has everything imported, and forks one run after another.
DRIVER = """
import os, random, signal, sys, time
sys.path.insert(0, {root!r})
import parameters, sklearn.ensemble, sklearn.neighbors
random.seed(7)
null = os.open(os.devnull, os.O_WRONLY)
def start(arguments):
    child = os.fork()
    if child == 0:
        os.dup2(null, 1); os.dup2(null, 2)
        os._exit(parameters.main(arguments))
    return child
fresh, again = {fresh!r}, {again!r}
began = time.monotonic()
child = start({whole!r})
assert os.waitpid(child, 0)[1] == 0
took = time.monotonic() - began
kills = 0
while kills < {kills}:
    exists = os.path.exists("params/killed/run.json")
    child = start(again if exists else fresh)
    time.sleep(random.uniform(0.0, 0.25 * took))
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        assert status == 0, status
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    print(kills, flush=True)
    sys.stdin.readline()  # the log has been read
    if os.path.exists("params/killed.out"):  # it had ended: begin anew
        os.rename("params/killed", f"params/killed-{{kills}}")
        os.rename("params/killed.out", f"params/killed-{{kills}}.out")
child = start(again if os.path.exists("params/killed/run.json") else fresh)
assert os.waitpid(child, 0)[1] == 0
"""


def test_kill_9_at_20_random_moments_loses_no_fit_and_ends_with_the_same_bits(place):
    more = ["--classifier", "adaboost"]
    code = DRIVER.format(
        root=str(ROOT),
        whole=arguments("whole", *more),
        fresh=arguments("killed", *more),
        again=["--resume", "killed"],
        kills=20,
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        bufsize=1,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    seen: set[str] = set()
    said = []
    with driver as process:
        for line in process.stdout:
            said.append(line)
            now = logged_keys(place / "params/killed")
            assert seen <= now
            seen = set() if (place / "params/killed.out").exists() else now
            process.stdin.write("\n")
    assert process.returncode == 0, "".join(said)
    killed, whole = RunFolder(place / "params/killed"), RunFolder(place / "params/whole")
    assert killed.plan()["answer"] == whole.plan()["answer"]
    assert lines_without_times(killed) == lines_without_times(whole)
    lines = killed.merged.read_text().splitlines()
    assert len(lines) == len(whole.merged.read_text().splitlines()) == 183 * 3


def test_workers_end_when_their_parent_is_killed(place):
    command = [sys.executable, str(ROOT / "parameters.py"), *arguments("orphan", "--n-jobs", "2")]
    process = subprocess.Popen(
        [*command, "--classifier", "adaboost"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    folder = place / "params" / "orphan"
    wait_for(lambda: logged_keys(folder))
    process.kill()
    process.wait()
    workers = {int(path.name.split(".")[2].split("-")[0]) for path in folder.glob("*.out.tmp")}
    assert workers
    wait_for(lambda: not any(map(is_alive, workers)))
    assert parameters.main(["--resume", "orphan"]) == 0
    assert len(logged_keys(folder)) == 183 * 3


def logged_keys(path: Path) -> set[str]:
    if not path.exists():
        return set()
    reader = LogReader(RunFolder(path))
    reader.refresh()
    return set(reader.lines)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat")
        if state.exists():
            return state.read_text().rpartition(")")[2].split()[0] != "Z"
        os.kill(pid, 0)
    except (ProcessLookupError, FileNotFoundError):
        return False
    return True


def wait_for(condition, timeout_s=300.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("data", "oversampled"),
    [
        (["--data", "table.csv", "--label", "bad"], False),
        (["--data", "table.csv", "--label", "bad", "--grid", "mine.toml"], True),
        (["--data", "dimensions", "--inject", "50"], True),
    ],
)
def test_bundled_grids_add_no_made_anomalies_to_real_labels(place, monkeypatch, data, oversampled):
    (place / "mine.toml").write_text("[random_forest]\noversample = [1, 4]\n")
    seen = []
    monkeypatch.setattr(
        parameters, "show_estimates", lambda job, rows, grids, n_jobs: seen.append(grids)
    )
    assert parameters.main([*data, "--classifier", "random_forest", "--dry-run"]) == 0
    assert any("oversample" in part for part in seen[0]["random_forest"]) == oversampled
