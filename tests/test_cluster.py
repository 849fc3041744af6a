"""The Dask back end: real workers, and what becomes of a run when its parts die."""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import distributed
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import AdaBoostClassifier
from sklearn.svm import SVC

import parameters
from anomaly.errors import MissingExtraError, ParameterError
from anomaly.tuning import Backend, RunFolder, cluster, tune
from anomaly.tuning.cluster import ClusterLostError
from anomaly.tuning.fitter import FitProcess
from anomaly.tuning.folds import Folds
from anomaly.tuning.log import LogReader
from anomaly.tuning.progress import Silent
from anomaly.tuning.units import Fit, make_units
from tests.deadly import Deadly, Quitter, Regicide, Slow, SlowTree
from tests.nursery import Nursery
from tests.test_staging import blobs
from tests.test_tuning import lines_without_times

ROOT = Path(__file__).resolve().parent.parent
TIMES = ["fit_seconds", "predict_seconds"]
STAGED = (
    AdaBoostClassifier(random_state=0),
    {"n_estimators": [1, 3, 6, 9], "learning_rate": [0.1 * i for i in range(1, 9)]},
)
PLAIN = (SVC(random_state=0), {"C": [0.1 * i for i in range(1, 31)]})
ONE_FOLD = [(np.arange(80), np.arange(80, 120))]


class Team:
    """A scheduler and its workers, one thread each."""

    def __init__(self, nursery: Nursery) -> None:
        self.nursery = nursery
        self.scheduler, self.address = nursery.start("scheduler")
        self.workers: list[int] = []

    def add(self, *options: object) -> int:
        pid, _ = self.nursery.start("worker", self.address, *options)
        self.workers.append(pid)
        return pid

    def kill(self, pid: int) -> None:
        self.workers.remove(pid)
        self.nursery.kill(pid)

    def kill_all(self) -> None:
        for pid in list(self.workers):
            self.kill(pid)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    """Starts schedulers and workers cheaply."""
    one = Nursery(ROOT, tmp_path_factory.mktemp("nursery"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def shared_team(nursery):
    return Team(nursery)


@pytest.fixture
def pair(shared_team):
    """A scheduler with two workers, those that earlier tests have left alive."""
    while len(shared_team.workers) < 2:
        shared_team.add()
    return shared_team


@pytest.fixture(scope="module")
def place(shared_team, tmp_path_factory):
    """The shared team, open for several searches."""
    store = tmp_path_factory.mktemp("shared-store")
    with on(shared_team, store).open() as one:
        yield one


@pytest.fixture
def team(nursery):
    """A scheduler of its own, without workers."""
    one = Team(nursery)
    yield one
    one.kill_all()
    if one.scheduler in nursery.pids:
        nursery.kill(one.scheduler)


@pytest.fixture
def store(tmp_path):
    """Folder of the workers for their lines."""
    return tmp_path / "store"


class At(Silent):
    """Does something once, when so many fits are done."""

    def __init__(self, fits, act):
        self.fits, self.act, self.done = fits, act, 0

    def advance(self, fits, total, best, host=""):
        self.done += fits
        if self.act is not None and self.done >= self.fits:
            act, self.act = self.act, None
            act()


def search(what=STAGED, **changed):
    X, y = blobs(n=120)
    return tune(*what, X, y, **({"cv": 3, "refit": False} | changed))


def on(team, store, **options):
    return Backend("dask", scheduler=team.address, worker_folder=str(store), **options)


def assert_same(found, expected, path, expected_path):
    """The same table, and the same lines, each once; times aside."""
    pd.testing.assert_frame_equal(
        found.table.drop(columns=TIMES), expected.table.drop(columns=TIMES), check_exact=True
    )
    folder = RunFolder(path)
    assert lines_without_times(folder) == lines_without_times(RunFolder(expected_path))
    assert folder.merge().repeated == 0
    assert len(folder.merged.read_text().splitlines()) == expected.n_fits_


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process on this machine finds: result and folder of two searches."""
    place = tmp_path_factory.mktemp("alone")
    return {
        name: (search(what, log=place / name), place / name)
        for name, what in (("staged", STAGED), ("plain", PLAIN))
    }


def test_a_cluster_gives_the_bits_of_one_process(tmp_path, pair, place, alone):
    assert place.describe().startswith(f"Dask scheduler {pair.address}, dashboard http://")
    for name, what in (("staged", STAGED), ("plain", PLAIN)):
        found = search(what, log=tmp_path / name, backend=place)
        assert_same(found, alone[name][0], tmp_path / name, alone[name][1])


def test_a_search_resumes_on_a_worker_with_two_threads_and_back(tmp_path, store, team, alone):
    expected, expected_path = alone["plain"]
    log = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search(PLAIN, log=log, progress=At(20, interrupt))
    team.add(2)
    with pytest.raises(KeyboardInterrupt):
        search(PLAIN, log=log, progress=At(20, interrupt), backend=on(team, store))
    found = search(PLAIN, log=log)
    assert found.n_resumed_ >= 40
    assert_same(found, expected, log, expected_path)


def interrupt():
    raise KeyboardInterrupt


# Deaths -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["staged", "plain"])
def test_workers_killed_at_10_random_moments_change_nothing(tmp_path, pair, place, alone, name):
    expected, expected_path = alone[name]
    chance = random.Random(name)

    def kill_one():
        pair.kill(chance.choice(pair.workers))
        pair.add()

    for number in range(10):
        log = tmp_path / f"run{number}"
        moment = At(chance.randrange(expected.n_fits_ - 20), kill_one)
        what = STAGED if name == "staged" else PLAIN
        found = search(what, log=log, backend=place, progress=moment)
        assert_same(found, expected, log, expected_path)


def test_a_search_waits_when_all_workers_are_gone(tmp_path, store, team, alone, caplog):
    def kill_all():
        team.kill_all()
        threading.Timer(2.0, team.add).start()

    threading.Timer(1.0, team.add).start()  # it begins without any, too
    caplog.set_level(logging.WARNING, "anomaly.tuning.cluster")
    log = tmp_path / "run"
    found = search(STAGED, log=log, backend=on(team, store), progress=At(30, kill_all))
    assert_same(found, alone["staged"][0], log, alone["staged"][1])
    assert f"no workers at {team.address}; waiting for some" in caplog.text


def test_a_lost_scheduler_is_one_sentence_and_its_run_continues(
    tmp_path, store, team, nursery, alone
):
    team.add()
    log = tmp_path / "run"
    lose = At(20, lambda: nursery.kill(team.scheduler))
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        pytest.raises(ClusterLostError, match=f"scheduler at {team.address} is gone"),
    ):
        search(PLAIN, log=log, backend=on(team, store), progress=lose)
    found = search(PLAIN, log=log)
    assert found.n_resumed_ >= 20
    assert_same(found, alone["plain"][0], log, alone["plain"][1])


GRID = """
["sklearn.svm.SVC"]
C = {from = 0.1, to = 12.0, step = 0.1}
"""


def test_a_killed_client_continues_with_the_lines_that_workers_have_kept(
    tmp_path, store, pair, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    X, y = blobs(n=160)
    pd.DataFrame(X).assign(bad=y).to_csv("table.csv", index=False)
    Path("grid.toml").write_text(GRID)
    options = ["--data", "table.csv", "--label", "bad", "--grid", "grid.toml", "--cv", "3"]
    options += ["--classifier", "sklearn.svm.SVC"]
    assert parameters.main([*options, "--run", "whole"]) == 0
    there = ["--backend", "dask", "--scheduler", pair.address, "--worker-folder", str(store)]
    command = [sys.executable, str(ROOT / "parameters.py"), *options, "--run", "killed", *there]
    with open("said", "w") as said:
        client = subprocess.Popen(command, stdout=said, stderr=said)
    wait_for(lambda: len(keys(tmp_path / "params/killed")) > 20)
    client.kill()
    client.wait()
    for path in Path("params/killed").glob("*.out.tmp"):
        path.unlink()  # as if the disk of the client were lost with it
    assert Path("params/killed/progress.json").exists()
    assert "dashboard http://" in Path("said").read_text()
    capsys.readouterr()
    assert parameters.main(["--resume", "killed", *there]) == 0
    killed, whole = (RunFolder(tmp_path / "params" / name) for name in ("killed", "whole"))
    assert lines_without_times(killed) == lines_without_times(whole)
    assert killed.plan()["answer"] == whole.plan()["answer"]
    state = json.loads(Path("params/killed/progress.json").read_text())
    assert (state["state"], state["done"], state["total"]) == ("ended", 360, 360)
    assert state["resumed"] > 20
    assert (state["backend"], state["format"]) == ("dask", 1)
    assert set(state["hosts"]) == {socket.gethostname()}
    assert list(store.iterdir()) == []


def test_the_command_line_says_how_a_run_continues_without_its_scheduler(
    tmp_path, monkeypatch, capsys
):
    def lose(*arguments):
        raise ClusterLostError("the Dask scheduler at tcp://x:1 is gone")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parameters, "tune_one", lose)
    options = ["--classifier", "knn", "--run", "lost", "--fit-timeout", "60", "--n-jobs", "2"]
    assert parameters.main(options) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    again = "python parameters.py --resume lost --n-jobs 2 --fit-timeout 60.0"
    assert said == (
        "parameters.py: error: the Dask scheduler at tcp://x:1 is gone; "
        f"continue, on this or any --backend: {again}"
    )


# Joining, leaving, standing still --------------------------------------------------------


def slow(marks, values, seconds=0.05):
    return Slow(marks=str(marks), seconds=seconds), {"value": values}


def fitted_by(marks):
    """Process numbers of the workers below which fits were made."""
    return {int(line.split()[0]) for line in marks.read_text().splitlines()}


def test_a_worker_that_comes_late_gets_work_and_a_refused_one_none(tmp_path, store, team, caplog):
    caplog.set_level(logging.WARNING, "anomaly.tuning.cluster")
    marks = tmp_path / "marks"
    team.add(1, "skewed")
    right = {team.add()}

    class UntilAllWork(Silent):
        def advance(self, fits, total, best, host=""):
            if len(right) < 2:
                right.add(team.add())
            elif fitted_by(marks) >= right:
                raise KeyboardInterrupt

    what = slow(marks, list(range(4, 3000)))
    with pytest.raises(KeyboardInterrupt):
        search(what, cv=ONE_FOLD, backend=on(team, store), progress=UntilAllWork())
    assert fitted_by(marks) == right
    assert "host refused" in caplog.text


def test_the_units_of_a_worker_that_stands_still_are_done_by_another(
    tmp_path, store, team, alone, monkeypatch
):
    monkeypatch.setattr(cluster, "_STRAGGLES_S", 0.5)
    monkeypatch.setattr(cluster, "_END_S", 0.5)
    stopped = team.add()
    team.add()
    stop = At(1, lambda: team.nursery.kill(stopped, signal.SIGSTOP))
    log = tmp_path / "run"
    found = search(STAGED, log=log, backend=on(team, store), progress=stop)
    assert_same(found, alone["staged"][0], log, alone["staged"][1])


# Fits that crash or hang --------------------------------------------------------------


def failures(folder):
    reader = LogReader(RunFolder(folder))
    reader.refresh()
    found = [reader.scores(key) for key in reader.lines]
    return [scores["failed"] for scores in found if "failed" in scores]


def test_a_fit_that_kills_its_process_is_logged_and_takes_nothing_along(
    tmp_path, pair, place, monkeypatch
):
    monkeypatch.setattr(cluster, "_STRAGGLES_S", 600)  # counts every try below
    marks = tmp_path / "marks"
    what = Deadly(marks=str(marks)), {"value": list(range(8))}
    before = list(pair.workers)
    result = search(what, cv=ONE_FOLD, log=tmp_path / "run", backend=place)
    assert np.isnan(result.table["mean_score"]).tolist() == [v == 3 for v in range(8)]
    reason = "the worker process died 3 times in this fit (SIGKILL)"
    assert failures(tmp_path / "run") == [reason]
    assert marks.read_text().split().count("3") == 3
    assert pair.workers == before


def test_the_way_a_process_ends_is_the_reason_not_how_it_is_put_away():
    data = Folds(*blobs(n=60), cv=2)
    fits = [Fit({"value": 7}, {"test": "0" * 16})]
    [unit] = make_units(data, Quitter(), 0, fits, {1: None})
    answer = FitProcess(pickle.dumps(data), "").run(pickle.dumps(unit), None, None)
    # Python itself ends like this after KeyboardInterrupt; a kill would be SIGKILL.
    assert (answer.end, answer.why) == ("died", "SIGINT")


def hanging(tmp_path):
    return slow(tmp_path / "marks", list(range(8)), 0.0)


@pytest.mark.parametrize("where", ["dask", "loky"])
def test_a_fit_over_its_time_limit_is_logged_and_the_rest_goes_on(tmp_path, store, team, where):
    team.add()
    backend = on(team, store, fit_timeout_s=8) if where == "dask" else Backend(fit_timeout_s=8)
    result = search(hanging(tmp_path), cv=ONE_FOLD, log=tmp_path / "run", backend=backend)
    assert np.isnan(result.table["mean_score"]).tolist() == [v == 3 for v in range(8)]
    assert failures(tmp_path / "run") == ["time limit of 8 s"]
    again = search(hanging(tmp_path), cv=ONE_FOLD, log=tmp_path / "run")
    assert again.n_resumed_ == 8  # the limit is no part of the run


def test_a_staged_fit_over_its_time_limit_is_tried_candidate_by_candidate(tmp_path):
    what = AdaBoostClassifier(SlowTree(max_depth=1), random_state=0), {"n_estimators": [1, 2, 100]}
    result = search(what, cv=ONE_FOLD, log=tmp_path / "run", backend=Backend(fit_timeout_s=5))
    assert np.isnan(result.table["mean_score"]).tolist() == [False, False, True]
    assert failures(tmp_path / "run") == ["time limit of 5 s"]


def test_a_fit_that_takes_its_worker_along_is_given_up(tmp_path, store, team, monkeypatch):
    monkeypatch.setattr(cluster, "LOSSES", 1)
    monkeypatch.setattr(cluster, "_STRAGGLES_S", 600)
    marks = tmp_path / "marks"
    what = Regicide(marks=str(marks)), {"value": [4, 5, 6, 7]}
    for _ in range(3):  # one more than it may kill
        team.add()
    result = search(what, cv=ONE_FOLD, log=tmp_path / "run", backend=on(team, store))
    assert np.isnan(result.table["mean_score"]).tolist() == [False, True, False, False]
    assert failures(tmp_path / "run") == ["its worker was lost 2 times in this fit"]


# Versions -----------------------------------------------------------------------------


def test_a_host_with_other_code_is_refused_by_name(tmp_path, store, team):
    team.add(1, "skewed")
    text = f"{socket.gethostname()} has code of anomaly 000000000000 .here [0-9a-f]+.; install"
    with pytest.raises(ParameterError, match=f"every host was refused: {text}"):
        search(backend=on(team, store))


def test_a_host_whose_skew_is_allowed_is_recorded(tmp_path, store, team):
    team.add(1, "skewed")
    backend = on(team, store, allow_version_skew=True)
    search(log=tmp_path / "run", backend=backend)
    folder = RunFolder(tmp_path / "run")
    noted = folder.plan()["version_skew"]
    assert list(noted) == [socket.gethostname()]
    assert noted[socket.gethostname()].startswith("code of anomaly 000000000000 (here ")
    reader = LogReader(folder)
    reader.refresh()
    assert {reader.scores(key)["skew"] for key in reader.lines} == set(noted.values())


# Options ------------------------------------------------------------------------------


def test_a_cluster_on_this_machine_is_started_and_stopped(tmp_path, store, alone):
    backend = Backend("dask", workers=1, worker_folder=str(store))
    found = search(STAGED, log=tmp_path / "run", backend=backend)
    assert_same(found, alone["staged"][0], tmp_path / "run", alone["staged"][1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "slurm"}, "backend must be one of loky, dask, got 'slurm'"),
        ({"name": "dask"}, "exactly one of scheduler, workers and hosts, got none"),
        ({"name": "dask", "workers": 0}, "workers must be at least 1, got 0"),
        ({"name": "dask", "workers": 1, "hosts": "h"}, "got workers, hosts"),
        ({"name": "dask", "workers": 1, "n_jobs": 2}, "n_jobs is for backend 'loky', got 2"),
        ({"workers": 2}, "workers: only for backend 'dask', got 'loky'"),
        ({"allow_version_skew": True}, "allow_version_skew: only for backend 'dask'"),
        ({"fit_timeout_s": 0}, "fit_timeout_s must be more than 0 seconds, got 0"),
    ],
)
def test_a_wrong_back_end_is_refused_by_name(options, message):
    with pytest.raises(ParameterError) as caught, Backend(**options).open():
        pass
    assert message in str(caught.value)


def test_an_address_without_a_scheduler_is_refused():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(ParameterError, match=f"no Dask scheduler answers at {address}"),
        Backend("dask", scheduler=address).open(),
    ):
        pass


@pytest.mark.parametrize("address", ["host", "http://host:80", "tcp://host:x"])
def test_what_is_no_address_is_refused_before_dask_waits_for_it(address, monkeypatch):
    monkeypatch.setattr(distributed, "Client", None)
    with (
        pytest.raises(ParameterError, match=f"at {address}: .*an address is tcp://host:8786"),
        Backend("dask", scheduler=address).open(),
    ):
        pass


def test_without_dask_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'anomaly\[dask\]'"),
        Backend("dask", workers=1).open(),
    ):
        pass


def keys(path):
    if not path.exists():
        return set()
    reader = LogReader(RunFolder(path))
    with contextlib.suppress(FileNotFoundError):
        reader.refresh()
    return set(reader.lines)


def wait_for(condition, timeout_s=300.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
