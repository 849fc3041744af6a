"""`python -m production.purchases`: one run, a followed log, and a daemon that is killed."""

from __future__ import annotations

import io
import itertools
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from anomaly.errors import DataError
from anomaly.purchases import simulate
from production import purchase_state, purchases
from production.purchases import main
from tests.conftest import ROOT

COMMAND = [sys.executable, "-m", "production.purchases"]
DEADLINE_S = 60


@pytest.fixture(scope="module")
def made():
    return simulate(200, 2000, 8000, graph="power-law", n_anomalies=80, random_state=1)


@pytest.fixture
def logs(made, tmp_path):
    """A folder with the simulated logs and the flags of one uninterrupted run."""
    made.write(tmp_path)
    assert run(tmp_path, "expected.json") == 0
    assert len((tmp_path / "expected.json").read_bytes().splitlines()) > 80
    return tmp_path


def arguments(folder, output="out.json", *more, stream="stream_log.json"):
    stream = stream if stream == "-" else str(folder / stream)
    output = output if output == "-" else str(folder / output)
    return [f"--batch-log={folder / 'batch_log.json'}", "-s", stream, f"--output={output}", *more]


def run(folder, *args, **kwargs):
    return main(arguments(folder, *args, **kwargs))


def start(folder, *args, **kwargs):
    command = [*COMMAND, *arguments(folder, *args, **kwargs)]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "the daemon did not get there in time"
        time.sleep(0.02)


def wait_for_change(path, timeout_s):
    """Until a file was written again, or the time is over."""
    before = path.stat()[:] if path.exists() else None
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if path.exists() and path.stat()[:] != before:
            return
        time.sleep(0.005)


# ---- one run -------------------------------------------------------------------------------


def test_published_example(shared_data, tmp_path):
    folder = shared_data / "network"
    out = tmp_path / "flagged.json"
    names = ["-b", "batch_log.json", "-s", "stream_log.json"]
    names = [name if name.startswith("-") else str(folder / name) for name in names]
    assert main([*names, "-o", str(out)]) == 0
    assert out.read_bytes() == (folder / "flagged_purchases.json").read_bytes().rstrip() + b"\n"


def test_output_is_rewritten_and_empty_when_nothing_is_flagged(logs):
    (logs / "stream_log.json").write_bytes(b"")
    (logs / "out.json").write_text("old")
    assert run(logs) == 0
    assert (logs / "out.json").read_bytes() == b""


def test_line_ends_blank_lines_and_a_missing_last_newline_change_nothing(logs):
    for name in ("batch_log.json", "stream_log.json"):
        lines = (logs / name).read_bytes().splitlines()
        (logs / name).write_bytes(b"\r\n \r\n" + b"\r\n\r\n".join(lines))
    assert run(logs) == 0
    assert (logs / "out.json").read_bytes() == (logs / "expected.json").read_bytes()


def test_all_events_on_one_line_change_nothing(logs):
    for name in ("batch_log.json", "stream_log.json"):
        (logs / name).write_bytes((logs / name).read_bytes().replace(b"\n", b" "))
    assert run(logs) == 0
    assert (logs / "out.json").read_bytes() == (logs / "expected.json").read_bytes()


def test_small_blocks_change_nothing(logs, monkeypatch):
    monkeypatch.setattr(purchases, "BLOCK", 37)
    assert run(logs) == 0
    assert (logs / "out.json").read_bytes() == (logs / "expected.json").read_bytes()


def test_skipped_lines_are_told_with_their_numbers(logs, capsys):
    batch = (logs / "batch_log.json").read_text().splitlines()
    (logs / "batch_log.json").write_text("\n".join(["", *batch[:3], "oops", *batch[3:], "[]"]))
    with open(logs / "stream_log.json", "a") as file:
        file.write('{"event_type": "gift"}\n' * 7)
    assert run(logs, "out.json", "--report") == 0
    told = capsys.readouterr().err
    assert "batch log: skipped 1 × undecodable text, first on line 5\n" in told
    assert "batch log: skipped 1 × not an object, first on line 2004\n" in told
    assert "skipped 7 × unknown event type, first on line 8001, 8002, 8003, 8004, 8005, …" in told
    assert "stream log: 8007 lines, " in told
    assert "network: 200 users, " in told
    assert run(logs) == 0
    assert "lines, " not in capsys.readouterr().err


def test_batch_log_from_stdin(logs, monkeypatch):
    with open(logs / "batch_log.json", "rb") as file:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(file))
        out = ["-s", str(logs / "stream_log.json"), "-o", str(logs / "out.json")]
        assert main(["-b", "-", *out]) == 0
    assert (logs / "out.json").read_bytes() == (logs / "expected.json").read_bytes()


def test_a_failed_run_leaves_the_old_output(logs):
    (logs / "batch_log.json").write_text("{}")
    before = (logs / "expected.json").read_bytes()
    assert run(logs, "expected.json") == 2
    assert (logs / "expected.json").read_bytes() == before


def test_output_to_a_device_leaves_the_device(logs):
    assert main([*arguments(logs)[:3], "--output=/dev/null"]) == 0
    assert not os.path.isfile("/dev/null")


ERRORS = [
    ({"batch_log.json": ""}, [], "the batch log must start with an object like"),
    ({"batch_log.json": '{"T":"50"}'}, [], "D, the number of friendship steps, must be"),
    ({"batch_log.json": '{"D":"1","T":"1"}'}, [], "T, the number of purchases in a window, must"),
    ({}, ["-b", "absent.json"], "absent.json: No such file or directory"),
    ({}, ["-b", "."], ".: Is a directory"),
    ({}, ["-o", "absent/out.json"], "No such file or directory"),
    ({}, ["-b", "-", "-s", "-"], "only one of --batch-log and --stream-log can be -"),
    ({}, ["--sigma", "many"], "--sigma must be a number of nine digits at most, e.g. 2.5, got"),
    ({}, ["--sigma=-1"], "--sigma must be a number"),
    ({}, ["--sigma", "1e999999999"], "--sigma must be a number"),
    ({}, ["--sigma", "0.123456789"], "nine digits"),
    ({}, ["--sigma", "٣"], "--sigma must be a number"),
    ({}, ["--state", "state", "-o", "-"], "--state needs --output in a file"),
    ({}, ["--state", "state", "-b", "-"], "--state needs --batch-log in a file"),
    ({}, ["--state", "state", "-s", "."], "must be a file"),
    ({}, ["--snapshot-lines", "0"], "--snapshot-lines must be 1 or more"),
    ({}, ["-o", "stream_log.json"], "--output is the same file as --stream-log"),
]


@pytest.mark.parametrize(("files", "more", "message"), ERRORS, ids=range(len(ERRORS)))
def test_mistakes_are_told_in_one_line(logs, monkeypatch, capsys, files, more, message):
    monkeypatch.chdir(logs)
    for name, text in files.items():
        (logs / name).write_text(text)
    base = ["-b", "batch_log.json", "-s", "stream_log.json", "-o", "out.json"]
    assert main([*base, *more]) == 2
    told = capsys.readouterr().err
    assert told.startswith("purchases.py: error: ")
    assert message in told
    assert told.count("\n") == 1


def test_help_teaches_with_an_example(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "python -m production.purchases --batch-log=batch_log.json" in told
    assert '{"D":"3","T":"50"}' in told


# ---- a growing log -------------------------------------------------------------------------


def test_a_pipe_is_answered_at_once(logs):
    lines = (logs / "stream_log.json").read_bytes().splitlines(keepends=True)
    first = (logs / "expected.json").read_bytes().splitlines(keepends=True)[0]
    with start(logs, "-", stream="-") as process:
        process.stdin.write(b"".join(lines[:2000]))
        process.stdin.flush()
        assert process.stdout.readline() == first
        process.stdin.write(b"".join(lines[2000:]))
        process.stdin.close()
        out = process.stdout.read()
    assert process.returncode == 0
    assert first + out == (logs / "expected.json").read_bytes()


def test_a_closed_reader_ends_the_run_quietly(logs):
    with start(logs, "-") as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_follow_reads_what_is_added_until_it_is_told_to_stop(logs):
    expected = (logs / "expected.json").read_bytes()
    text = (logs / "stream_log.json").read_bytes()
    (logs / "stream_log.json").write_bytes(text[:100_000])
    with start(logs, "out.json", "--follow", "--report") as process:
        out = logs / "out.json"
        wait_for(lambda: out.exists() and out.stat().st_size > 1000)
        with open(logs / "stream_log.json", "ab") as file:
            file.write(text[100_000:])
        wait_for(lambda: out.stat().st_size == len(expected))
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert out.read_bytes() == expected
    assert b"stream log: 8000 lines" in told


# ---- the daemon ----------------------------------------------------------------------------


def test_the_daemon_survives_twenty_kills(logs):
    rng = random.Random(7)
    text = (logs / "stream_log.json").read_bytes()
    expected = (logs / "expected.json").read_bytes()
    cuts = [0, *sorted(rng.sample(range(len(text)), 19)), len(text)]
    (logs / "stream_log.json").write_bytes(b"")
    state = str(logs / "state")
    seen = set()
    for number, (before, after) in enumerate(itertools.pairwise(cuts)):
        with open(logs / "stream_log.json", "ab") as file:
            file.write(text[before:after])
        options = ["--follow", "--state", state, "--snapshot-lines", "20"]
        with start(logs, "out.json", *options) as process:
            if number % 2:  # amid the work; the others at any moment, the start-up included
                wait_for_change(logs / "state" / "snapshot", timeout_s=5)
                time.sleep(rng.uniform(0, 0.05))
            else:
                time.sleep(rng.uniform(0.2, 0.9))
            process.kill()
        out = logs / "out.json"
        written = out.read_bytes() if out.exists() else b""
        assert expected.startswith(written)
        seen.add(len(written))
    assert run(logs, "out.json", "--state", state, "--report") == 0
    assert (logs / "out.json").read_bytes() == expected
    assert len(seen) > 2  # some kills came in the middle of the work


class Killed(BaseException):
    pass


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_every_snapshot_loses_and_doubles_nothing(logs, monkeypatch, when):
    write = purchase_state.write_snapshot
    calls = itertools.count()

    def killed(*args):
        if when == "after":
            write(*args)
        if next(calls) % 2:
            raise Killed
        if when == "before":
            write(*args)

    monkeypatch.setattr(purchases, "write_snapshot", killed)
    monkeypatch.setattr(purchase_state, "BLOCK", 30_000)
    options = ["out.json", "--state", str(logs / "state"), "--snapshot-lines", "100"]
    kills = 0
    for _ in range(200):
        try:
            assert run(logs, *options) == 0
            break
        except Killed:
            kills += 1
    assert kills > 5
    assert (logs / "out.json").read_bytes() == (logs / "expected.json").read_bytes()


def test_standard_input_is_kept_in_a_journal(logs):
    """Each part ends with a purchase that is flagged, so that the test knows when to kill."""
    rng = random.Random(8)
    lines = (logs / "stream_log.json").read_bytes().splitlines(keepends=True)
    line = '{"event_type":"%s", "timestamp":"2030-01-01 00:00:00", %s}\n'
    mark = line % ("befriend", '"id1": "x", "id2": "y"') + 2 * (
        line % ("purchase", '"id": "x", "amount": "1.00"')
    )
    parts = [mark.encode()]
    for part, at in enumerate(range(0, len(lines), 2000)):
        shot = line % ("purchase", f'"id": "y", "amount": "{part + 2}.00"')
        parts.append(b"".join(lines[at : at + 2000]) + shot.encode())
    (logs / "stream_log.json").write_bytes(b"".join(parts))
    assert run(logs, "expected.json") == 0
    out = logs / "out.json"
    options = ["--state", str(logs / "state"), "--snapshot-lines", rng.choice(["300", "9999999"])]
    for number, part in enumerate(parts[1:]):
        with start(logs, "out.json", *options, stream="-") as process:
            process.stdin.write((parts[0] if number == 0 else b"") + part)
            process.stdin.flush()
            shown = f'"amount": "{number + 2}.00", "mean": "1.00"'.encode()
            wait_for(lambda shown=shown: out.exists() and shown in out.read_bytes())
            process.kill()
            process.stdin.close()
    with start(logs, "out.json", *options, stream="-") as process:
        _, told = process.communicate(b"", timeout=DEADLINE_S)
    assert process.returncode == 0, told
    assert out.read_bytes() == (logs / "expected.json").read_bytes()


def test_a_torn_journal_line_is_cut(tmp_path):
    (tmp_path / "journal-3").write_bytes(b"one\ntwo\nthr")
    (tmp_path / "journal-2").write_bytes(b"old")
    journal = purchase_state.Journal(tmp_path, 3)
    assert journal.read() == b"one\ntwo\n"
    assert [path.name for path in tmp_path.iterdir()] == ["journal-3"]
    journal.turn()
    assert journal.offset == 0
    journal.drop()
    journal.close()
    assert [path.name for path in tmp_path.iterdir()] == ["journal-4"]


def test_a_journal_that_was_not_read_to_its_end_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(purchase_state, "BLOCK", 4)
    (tmp_path / "journal-1").write_bytes(b"one\ntwo\n")
    journal = purchase_state.Journal(tmp_path, 1)
    assert journal.read() == b"one\n"
    journal.turn()
    assert journal.number == 1
    assert journal.read() == b"two\n"
    journal.close()


def test_a_torn_output_line_is_completed(logs):
    options = ["out.json", "--state", str(logs / "state")]
    text = (logs / "stream_log.json").read_bytes()
    (logs / "stream_log.json").write_bytes(b"")
    assert run(logs, *options) == 0
    (logs / "stream_log.json").write_bytes(text)
    (logs / "out.json").write_bytes((logs / "expected.json").read_bytes()[:1234])
    assert run(logs, *options) == 0
    assert (logs / "out.json").read_bytes() == (logs / "expected.json").read_bytes()


def test_line_numbers_and_counts_go_on_after_a_restart(logs, capsys):
    options = ["out.json", "--report", "--state", str(logs / "state")]
    assert run(logs, *options) == 0
    with open(logs / "stream_log.json", "a") as file:
        file.write("oops\n")
    capsys.readouterr()
    assert run(logs, *options) == 0
    told = capsys.readouterr().err
    assert "stream log: skipped 1 × undecodable text, first on line 8001\n" in told
    assert "batch log: 2001 lines" in told


def refusal(logs, capsys, *more, output="out.json"):
    assert run(logs, output, "--state", str(logs / "state"), *more) == 2
    told = capsys.readouterr().err
    assert told.startswith("purchases.py: error: ")
    assert told.count("\n") == 1
    return told


def test_a_state_that_does_not_fit_is_refused(logs, capsys):
    assert run(logs, "out.json", "--state", str(logs / "state")) == 0
    assert "(sigma changed)" in refusal(logs, capsys, "--sigma", "2")
    assert "(output changed)" in refusal(logs, capsys, output="other.json")
    snapshot = logs / "state" / "snapshot"
    good = snapshot.read_bytes()
    for bad in (b"", good[:-1], good.replace(b"purchases-1", b"purchases-9"), b"x" + good):
        snapshot.write_bytes(bad)
        assert "snapshot is damaged or of another version" in refusal(logs, capsys)
    snapshot.write_bytes(good)
    out = (logs / "out.json").read_bytes()
    (logs / "out.json").write_bytes(out[:-5])
    assert "is shorter than the" in refusal(logs, capsys)
    (logs / "out.json").write_bytes(out)
    stream = (logs / "stream_log.json").read_bytes()
    (logs / "stream_log.json").write_bytes(stream[:-5])
    assert "is not the log that was read" in refusal(logs, capsys)
    (logs / "stream_log.json").write_bytes(b" " + stream)
    assert "is not the log that was read" in refusal(logs, capsys)
    (logs / "stream_log.json").write_bytes(stream)
    with open(logs / "batch_log.json", "a") as file:
        file.write("\n")
    assert "(batch log changed)" in refusal(logs, capsys)


def test_output_changed_by_another_program_is_refused(logs, capsys):
    text = (logs / "stream_log.json").read_bytes()
    (logs / "stream_log.json").write_bytes(b"")
    assert run(logs, "out.json", "--state", str(logs / "state")) == 0
    (logs / "stream_log.json").write_bytes(text)
    (logs / "out.json").write_text("mine")
    assert "was changed by another program" in refusal(logs, capsys)


def test_two_daemons_cannot_share_a_state(logs, capsys):
    with purchase_state.locked(logs / "state"):
        assert "is in use by another process" in refusal(logs, capsys)


def test_a_log_that_shrinks_while_followed_is_an_error(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo")
    log = purchase_state.LogFile(path)
    assert log.read() == b"one\n"
    assert log.read() == b""
    path.write_bytes(b"")
    with pytest.raises(DataError, match="was shortened"):
        log.read()
    log.close()


def test_long_lines_are_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(purchase_state, "BLOCK", 8)
    path = tmp_path / "log"
    path.write_bytes(b"x" * 1000 + b"\ny\n")
    log = purchase_state.LogFile(path)
    assert log.read() == b"x" * 1000 + b"\ny\n"
    log.close()


def test_readme_example_runs_as_printed(tmp_path):
    """The commands under the heading of the README, in a folder of their own."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Purchases over a social network")[2].partition("\n## ")[0]
    commands = [block.partition("```")[0] for block in section.split("```sh\n")[1:]]
    assert len(commands) >= 2
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    environment["PATH"] = f"{os.path.dirname(sys.executable)}:{environment['PATH']}"
    for command in commands[:2]:
        done = subprocess.run(
            ["sh", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    shown = section.partition("```json\n")[2].partition("```")[0]
    assert (tmp_path / "flagged_purchases.json").read_text() == shown
