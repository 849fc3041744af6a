"""How far a run is, and copying it back, over a real SSH server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import parameters
from anomaly.errors import ParameterError
from anomaly.tuning import probe, status, tune
from anomaly.tuning.addresses import parse_address
from anomaly.tuning.log import LogReader, LogWriter, RunFolder
from anomaly.tuning.units import Record
from tests.sshd import Client, Server
from tests.test_tuning import lines_without_times

GRID = """
[knn]
n_neighbors = [1, 3, 5, 7]

[adaboost]
n_estimators = {from = 1, to = 9}
"""
# An ssh that is gone after so many bytes have come.
WIRE = """#!{python}
import os, subprocess, sys
there = subprocess.Popen("{ssh}".split() + sys.argv[1:], stdout=subprocess.PIPE)
left = 100_000
while left > 0 and (text := os.read(there.stdout.fileno(), min(left, 65536))):
    os.write(1, text)
    left -= len(text)
there.kill()
"""
FITS = (4 + 9) * 3


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A host to reach over SSH; ``server.ssh`` is the command that reaches it."""
    folder = tmp_path_factory.mktemp("ssh")
    client = Client(folder / "home")
    server = Server(folder / "server", client)
    server.ssh = f"{client.ssh} -p {server.port}"
    yield server
    server.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder in which the run ``first`` has been tuned."""
    folder = tmp_path_factory.mktemp("there")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.normal(size=90), "bad": 0})
    frame.loc[:29, "size"] += 1.5
    frame.loc[:29, "bad"] = 1
    frame.to_csv(folder / "table.csv", index=False)
    (folder / "grid.toml").write_text(GRID)
    given = ["--data", str(folder / "table.csv"), "--label", "bad", "--cv", "3"]
    given += ["--grid", str(folder / "grid.toml"), "--folder", str(folder / "params")]
    names = ["--classifier", "knn", "--classifier", "adaboost"]
    assert parameters.main([*given, *names, "--run", "first"]) == 0
    return folder


@pytest.fixture
def there(finished, tmp_path):
    """A copy of the finished run that a test may change, in a folder with an odd name."""
    folder = tmp_path / "the server; its $HOME"
    shutil.copytree(finished / "params", folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def cut(there, lines):
    """Leave a run as one that was killed after so many lines, the next one torn."""
    text = (there / "first.out").read_bytes().splitlines(keepends=True)
    (there / "first.out").unlink()
    (there / "first/first.big.77.out.tmp").write_bytes(b"".join(text[:lines]) + text[lines][:40])
    run = json.loads((there / "first/run.json").read_text())
    del run["answer"]
    (there / "first/run.json").write_text(json.dumps(run))
    killed = subprocess.Popen(["true"])
    killed.wait()
    beat = json.loads((there / "first/progress.json").read_text())
    beat |= {"state": "running", "pid": killed.pid}
    (there / "first/progress.json").write_text(json.dumps(beat))
    return text


def fetch(server, there, *more, ssh=None):
    address = f"127.0.0.1:{there}/first"
    return parameters.main(["fetch", address, "--ssh", ssh or server.ssh, *more])


# Status -------------------------------------------------------------------------------


def test_a_finished_run_has_all_its_fits_and_its_best(finished, capsys):
    given = ["status", "first", "--folder", str(finished / "params"), "--json"]
    assert parameters.main(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "finished"
    assert {s["classifier"]: (s["done"], s["total"]) for s in found["searches"]} == {
        "knn": (12, 12),
        "adaboost": (27, 27),
    }
    answer = json.loads((finished / "params/first/run.json").read_text())["answer"]
    for search in found["searches"]:
        assert search["best_score"] == pytest.approx(answer[search["classifier"]]["score"])
        assert search["best_params"] == answer[search["classifier"]]["params"]
    assert found["missing"] == {}
    assert found["others"] == 0


def test_a_killed_run_is_stopped_and_what_lacks_is_counted(there, capsys):
    cut(there, 20)
    assert parameters.main(["status", "first", "--folder", str(there)]) == 0
    out = capsys.readouterr().out
    assert "first: stopped" in out
    assert "left" not in out
    found = status.summarise("first", status.probe_here(str(there), "first"))
    assert sum(search.done for search in found.searches) == 20
    # Two candidates of nine have all folds.
    assert [(s.best_folds, s.best_score is None) for s in found.searches] == [
        (0, True),
        (3, False),
    ]
    assert "(3 folds)" in out
    assert sum(found.missing.values()) == FITS - 20


def test_a_run_is_running_while_a_process_of_it_lives(there):
    lines = cut(there, 20)
    folder = RunFolder(there / "first")
    writer = LogWriter(folder)
    record = Record({}, {"fit_seconds": 0.25, "predict_seconds": 0.25, "key": "0" * 16})
    writer.write(record)
    found = status.summarise("first", status.probe_here(str(there), "first"))
    assert found.state == "running"
    assert list(found.hosts.values()) == [2.0]
    assert found.left_s == pytest.approx((FITS - 20) / 2)
    assert found.others == 1
    writer.close()
    assert status.summarise("first", status.probe_here(str(there), "first")).state == "stopped"
    assert len(lines) == FITS


def test_a_run_whose_process_was_killed_is_stopped_at_once(there):
    cut(there, 20)
    sleeper = subprocess.Popen(["sleep", "60"])
    path = there / "first/progress.json"
    beat = json.loads(path.read_text()) | {"state": "running", "pid": sleeper.pid, "when": 0}
    path.write_text(json.dumps(beat))
    assert status.summarise("first", status.probe_here(str(there), "first")).state == "running"
    path.write_text(json.dumps(beat | {"state": "ended"}))  # the next search has not begun
    assert status.summarise("first", status.probe_here(str(there), "first")).state == "running"
    path.write_text(json.dumps(beat))
    sleeper.kill()
    sleeper.wait()
    assert status.summarise("first", status.probe_here(str(there), "first")).state == "stopped"
    path.write_text(json.dumps(beat | {"host": "elsewhere"}))
    assert status.summarise("first", status.probe_here(str(there), "first")).state == "stopped"
    path.write_text(json.dumps(beat | {"host": "elsewhere", "when": time.time()}))
    found = status.summarise("first", status.probe_here(str(there), "first"))
    assert found.state == "running"
    assert found.place == beat["place"]


def test_a_run_from_python_ends_with_its_search(tmp_path, finished):
    frame = pd.read_csv(finished / "table.csv")
    grid = {"n_neighbors": [1, 3]}
    tune("knn", grid, frame[["size"]], frame["bad"], cv=2, log=tmp_path / "mine", refit=False)
    found = status.summarise("mine", status.probe_here(str(tmp_path), "mine"))
    assert (found.state, found.searches, found.others) == ("finished", [], 4)


def test_failed_fits_are_counted_by_their_reason(there):
    lines = cut(there, 3)
    with open(there / "first/first.big.78.out.tmp", "wb") as file:
        for line in lines[3:5]:
            text = line.decode().replace("'key'", "'failed': \"MemoryError: it's full\", 'key'")
            file.write(text.encode())
    found = status.summarise("first", status.probe_here(str(there), "first"))
    assert found.failed == {"MemoryError: it's full": 2}


def test_status_changes_nothing(there, capsys):
    def everything():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in there.parent.rglob("*")}

    cut(there, 20)
    before = everything()
    assert parameters.main(["status", "first", "--folder", str(there)]) == 0
    assert parameters.main(["status", "second", "--folder", str(there)]) == 2
    assert everything() == before
    assert "there is no run 'second'" in capsys.readouterr().err


def test_status_over_ssh_is_that_of_the_host(server, there, capsys):
    cut(there, 20)
    assert parameters.main(["status", "first", "--folder", str(there), "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    address = f"127.0.0.1:{there}/first"
    assert parameters.main(["status", address, "--ssh", server.ssh, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == here


def test_status_over_ssh_says_what_is_not_there(server, there, capsys):
    address = f"127.0.0.1:{there}/second"
    assert parameters.main(["status", address, "--ssh", server.ssh]) == 2
    assert "127.0.0.1: there is no run 'second'" in capsys.readouterr().err
    python = ["--python", "/no/python"]
    assert parameters.main(["status", address, "--ssh", server.ssh, *python]) == 2
    assert "/no/python" in capsys.readouterr().err
    assert parameters.main(["status", address, "--ssh", server.ssh.replace("-p", "-p 1 -p")]) == 2
    assert "127.0.0.1: " in capsys.readouterr().err


def test_the_probe_needs_the_standard_library_only(there):
    text = Path(probe.__file__).read_text()
    command = [sys.executable, "-I", "-S", "-", str(there / "first")]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(probe.MARK)


# Fetch --------------------------------------------------------------------------------


def test_a_fetched_run_is_the_run(server, there, here, capfd):
    assert fetch(server, there) == 0
    assert "python parameters.py evaluate first" in capfd.readouterr().out
    got, sent = here / "params", there
    assert sorted((got / "first.out").read_bytes().splitlines()) == sorted(
        (sent / "first.out").read_bytes().splitlines()
    )
    assert RunFolder(got / "first").plan() == RunFolder(sent / "first").plan()
    assert (got / "first/manifest.json").exists()
    assert sorted(p.name for p in got.iterdir()) == ["first", "first.out"]
    before = (got / "first.out").read_bytes()
    assert fetch(server, there) == 0
    assert (got / "first.out").read_bytes() == before
    assert parameters.main(["evaluate", "first"]) == 0


def test_a_run_under_way_is_fetched_again_later(server, there, here, capfd):
    lines = cut(there, 20)
    assert fetch(server, there) == 1
    out = capfd.readouterr().out
    assert "missing: 12 of knn, 7 of adaboost" in out
    assert "python parameters.py fetch '127.0.0.1:" in out
    assert "python parameters.py --resume first" in out
    (there / "first/first.big.77.out.tmp").write_bytes(b"".join(lines[:30]))
    (there / "first/first.big.78.out.tmp").write_bytes(b"".join(lines[25:]))
    assert fetch(server, there) == 0
    assert sorted((here / "params/first.out").read_bytes().splitlines(True)) == sorted(lines)


def test_a_run_fetched_half_way_is_finished_here(server, there, here, finished, capfd):
    cut(there, 20)
    assert fetch(server, there) == 1
    assert parameters.main(["--resume", "first"]) == 0
    mine, theirs = RunFolder(here / "params/first"), RunFolder(finished / "params/first")
    assert lines_without_times(mine) == lines_without_times(theirs)


def test_fits_made_here_outlive_a_fetch(server, there, here, finished, capfd):
    shutil.copytree(finished / "params", here / "params")
    cut(there, 5)
    assert fetch(server, there) == 0
    assert len((here / "params/first.out").read_bytes().splitlines()) == FITS


def test_an_interrupted_copy_goes_on_where_it_was(server, there, here, tmp_path, capfd):
    rng = np.random.default_rng(0)
    lines = cut(there, 20)
    made = [
        f"{{}}\t{{'estimator': 'a.B', 'key': '{rng.bytes(8).hex()}'}}\n".encode()
        for _ in range(30_000)
    ]
    (there / "first/first.big.79.out.tmp").write_bytes(b"".join(made))
    wire = tmp_path / "ssh-that-breaks"
    wire.write_text(WIRE.format(python=sys.executable, ssh=server.ssh))
    wire.chmod(0o755)
    assert fetch(server, there, ssh=str(wire)) == 2
    assert "the same command continues" in capfd.readouterr().err
    assert not (here / "params/first").exists()
    waiting = list((here / "params").glob(".fetch-first-*/first/.rsync-partial/*"))
    assert [path.name for path in waiting] == ["first.big.79.out.tmp"]
    assert fetch(server, there) == 1
    reader = LogReader(RunFolder(here / "params/first"))
    reader.refresh()
    assert set(reader.lines.values()) == {*made, *lines[:20]}


def test_a_run_of_another_plan_is_never_overwritten(server, there, here, finished, capfd):
    shutil.copytree(finished / "params", here / "params")
    path = here / "params/first/run.json"
    plan = json.loads(path.read_text())
    plan["job"]["seed"] = 7
    plan["plans"]["rows"]["data"] = "0" * 16
    path.write_text(json.dumps(plan))
    before = path.read_bytes(), (here / "params/first.out").read_bytes()
    assert fetch(server, there) == 2
    error = capfd.readouterr().err
    assert "seed was 7, is 0; data was 0000000000000000, is " in error
    assert "fetch it into another --folder" in error
    assert (path.read_bytes(), (here / "params/first.out").read_bytes()) == before


def test_links_on_the_other_side_are_not_followed(server, there, here, tmp_path, capfd):
    secret = tmp_path / "secret"
    secret.write_text("{}\t{'estimator': 'x', 'key': '0000000000000000'}\n")
    (there / "first/first.x.1.out.tmp").symlink_to(secret)
    assert fetch(server, there) == 0
    assert b"0000000000000000" not in (here / "params/first.out").read_bytes()


def test_what_is_not_there_is_said(server, there, here, capfd):
    shutil.rmtree(there / "first")
    assert fetch(server, there) == 2
    assert "there is no run 'first'" in capfd.readouterr().err
    shutil.rmtree(there)
    assert fetch(server, there) == 2
    assert "No such file" in capfd.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "-oProxyCommand=sh:params/first",
        "ann@-oProxyCommand=sh:params/first",
        "-l@host:params/first",
        "host:params/-first",
        "host:params/a b",
        "host:params/..",
        "host:",
        "host:params/x;reboot",
        "ho st:params/first",
        "host;reboot:params/first",
        "host:~bob/params/first",
        "host:pa\nrams/first",
        ":params/first",
    ],
)
def test_no_address_is_an_option_or_a_command(text, here, capsys):
    with pytest.raises(ParameterError, match=r"host:path/RUN|in full"):
        parse_address(text)
    assert parameters.main(["fetch", "--", text]) == 2


@pytest.mark.parametrize(
    ("text", "host", "folder", "run"),
    [
        ("ann@big:anomaly/params/first", "ann@big", "anomaly/params", "first"),
        ("big:first", "big", ".", "first"),
        ("big:/first", "big", "/", "first"),
        ("big:~/p/first/", "big", "p", "first"),
        ("[::1]:a b; c/first", "[::1]", "a b; c", "first"),
    ],
)
def test_addresses_are_read(text, host, folder, run):
    found = parse_address(text)
    assert (found.host, found.folder, found.run) == (host, folder, run)


@pytest.mark.parametrize(("missing", "package"), [("rsync", "rsync"), ("ssh", "openssh-client")])
def test_a_program_that_is_missing_is_named_with_its_package(
    missing, package, here, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in {"rsync", "ssh"} - {missing}:
        os.symlink(shutil.which(program), folder / program)
    monkeypatch.setenv("PATH", str(folder))
    assert parameters.main(["fetch", "big:params/first"]) == 2
    error = capsys.readouterr().err
    assert f"{missing} is not installed; run: apt-get install {package} (Debian)" in error
