"""Durable streams: kill -9, cold streams, full disks, many clients."""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import threading
import time

import httpx2 as httpx
import pytest

from production.lanes import Batch, Lane, Lanes, Limits
from production.streams import Stream, StreamSettings
from production.strict import RequestError
from tests.service_process import ServiceProcess

KILLS = int(os.environ.get("ANOMALY_TEST_KILLS", "2"))
TILES = StreamSettings(detector="tiles")
NAMES = ("a", "b", "c")


def value_of(name: str, i: int) -> float:
    """A wave with its own noise, and something odd now and then."""
    noise = random.Random(f"{name}{i}").gauss(0, 0.1)
    return math.sin(i / 5 + ord(name)) + noise + (9 if i % 211 == 210 else 0)


def record_of(name: str, i: int) -> tuple[float, dict[str, float]]:
    return 1_600_000_000.0 + 60 * i, {"value": value_of(name, i)}


def undisturbed(name: str, n: int, settings: StreamSettings = TILES) -> list[dict]:
    """The oracle: the same stream, in memory, never interrupted."""
    stream = Stream("single", name, settings)
    answers = [stream.apply(stream.prepare([record_of(name, i)])[0]) for i in range(n)]
    return json.loads(json.dumps(answers))


def send(url: str, name: str, first: int, n: int) -> int:
    """Send some records; the number of the next one once they are acknowledged."""
    content = "\n".join(
        json.dumps({"timestamp": t, "value": v["value"]})
        for t, v in (record_of(name, i) for i in range(first, first + n))
    )
    reply = httpx.post(f"{url}/v1/streams/{name}/records", content=content, timeout=30)
    assert reply.status_code == 200, reply.text
    assert [json.loads(line)["seq"] for line in reply.text.splitlines()] == list(
        range(first + 1, first + n + 1)
    )
    return first + n


def feed(url: str, name: str, start: int, acknowledged: dict[str, int], seed: int) -> None:
    """Send batches and single records until the service dies."""
    rng = random.Random(seed)
    acknowledged[name] = start
    try:
        while acknowledged[name] < start + 3000:
            n = rng.choice([1, 1, 5, 40])
            acknowledged[name] = send(url, name, acknowledged[name], n)
    except httpx.TransportError:
        pass


def scores(url: str, name: str) -> list[dict]:
    reply = httpx.get(f"{url}/v1/streams/{name}/scores?limit=10000", timeout=30)
    return [json.loads(line) for line in reply.text.splitlines()]


@pytest.mark.parametrize("detector", ["tiles", "htm"])
def test_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path, detector):
    """Oracle: the same records in one process that nobody interrupts."""
    (tmp_path / "service.toml").write_text(
        "[limits]\nsnapshot_records = 30\nwarm_bytes = 100000\n"
        f'[streams]\ndetector = "{detector}"\n'
    )
    rng = random.Random(7)
    acknowledged = dict.fromkeys(NAMES, 0)
    for round_ in range(KILLS if detector == "tiles" else max(1, KILLS // 3)):
        with ServiceProcess(tmp_path, "--config", "service.toml") as service:
            for name in NAMES:  # what was on its way when it died is sent again
                back = max(0, acknowledged[name] - 3)
                acknowledged[name] = send(service.url, name, back, 10)
            clients = [
                threading.Thread(
                    target=feed, args=(service.url, name, acknowledged[name], acknowledged, round_)
                )
                for name in NAMES
            ]
            for client in clients:
                client.start()
            time.sleep(rng.uniform(0, 0.5))
            service.kill()
            for client in clients:
                client.join()
    with ServiceProcess(tmp_path, "--config", "service.toml") as service:
        for name in NAMES:
            send(service.url, name, acknowledged[name], 300)
        for name in NAMES:
            found = scores(service.url, name)
            assert found == undisturbed(name, len(found), StreamSettings(detector=detector))
            assert len(found) >= acknowledged[name] + 300
        assert service.terminate() == 0


def test_stop_drains_and_start_goes_on(tmp_path):
    lanes = Lanes(tmp_path)
    futures = [lanes.take(Batch("single", "a", [record_of("a", i)])) for i in range(50)]
    lanes.stop()
    said = [future.result()[0] for future in futures]
    lanes = Lanes(tmp_path)
    said += lanes.take(Batch("single", "a", [record_of("a", i) for i in range(50, 90)])).result()
    lanes.stop()
    assert [{k: a[k] for k in a if k != "status"} for a in said] == undisturbed(
        "a", 90, StreamSettings()
    )


def test_cold_streams_sleep_on_disk_and_wake_unchanged(tmp_path):
    lanes = Lanes(tmp_path, Limits(warm_bytes=1_000_000))
    names = [f"s{i}" for i in range(60)]
    for i in range(6):
        waiting = [
            lanes.take(Batch("single", name, [record_of("a", i)], settings=TILES))
            for name in names
        ]
        for future in waiting:
            future.result(30)
    awake = sum(len(lane._warm) for lane in lanes.lanes)
    kept = [lanes.answers("single", name, since=-math.inf, after=0, most=10) for name in names]
    lanes.stop()
    assert awake < len(names) / 2
    assert all(answers == undisturbed("a", 6) for answers in kept)


def test_two_clients_on_one_stream_are_put_in_one_order(tmp_path):
    lanes = Lanes(tmp_path)
    said: list[dict] = []

    def client(parity: int) -> None:
        for i in range(parity, 200, 2):
            said.extend(lanes.take(Batch("single", "a", [record_of("a", i)])).result(30))

    threads = [threading.Thread(target=client, args=(p,)) for p in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = lanes.answers("single", "a", since=-math.inf, after=0, most=1000)
    lanes.stop()
    assert [answer["seq"] for answer in kept] == list(range(1, 201))
    said.sort(key=lambda answer: answer["seq"])
    assert [{k: a[k] for k in a if k != "status"} for a in said] == kept


def limit_pages(lane: Lane, more: int) -> None:
    """Let the state file grow by so many pages at most."""

    def work() -> None:
        (pages,) = lane.journal.execute("PRAGMA page_count").fetchone()
        lane.journal.execute(f"PRAGMA max_page_count = {pages + more}")

    lane.submit(work).result(30)


def test_full_disk_is_a_clear_error_and_recovery_needs_no_restart(tmp_path):
    """SQLite's own page limit stands for the disk: the same error by the same path."""
    lanes = Lanes(tmp_path, Limits(snapshot_records=10))
    lane = lanes.of("single", "a")
    done = 0

    def send_one(i: int) -> dict:
        return lanes.take(Batch("single", "a", [record_of("a", i)], settings=TILES)).result(30)[0]

    for done in range(25):
        send_one(done)
    limit_pages(lane, 0)
    with pytest.raises(RequestError, match="nothing of this request") as caught:  # noqa: PT012
        while True:
            send_one(done + 1)
            done += 1
    assert caught.value.status == 503
    assert "full" in caught.value.detail
    limit_pages(lane, 1_000_000)
    for i in range(done + 1, done + 51):
        send_one(i)
    kept = lanes.answers("single", "a", since=-math.inf, after=0, most=10_000)
    lanes.stop()
    assert kept == undisturbed("a", done + 51)


def test_failed_request_leaves_its_neighbours_in_the_commit_alone(tmp_path):
    lanes = Lanes(tmp_path)
    lane, gate = lanes.of("single", "a"), threading.Event()
    lane.submit(gate.wait)
    futures = []
    for i in range(20):
        futures.append(lanes.take(Batch("single", "a", [record_of("a", i)], settings=TILES)))
        bad = [record_of("a", i), ("no date", {"value": 1.0})]
        futures.append(lanes.take(Batch("single", "a", bad, settings=TILES)))
    gate.set()
    for good, bad in zip(futures[::2], futures[1::2], strict=True):
        good.result(30)
        with pytest.raises(RequestError, match="record 2"):
            bad.result(30)
    kept = lanes.answers("single", "a", since=-math.inf, after=0, most=100)
    assert lanes.census.count == 1
    lanes.stop()
    assert kept == undisturbed("a", 20)


def test_records_that_are_too_old_to_be_known_are_not_learnt_again(tmp_path):
    lanes = Lanes(tmp_path, Limits(remembered=50, snapshot_records=20))
    lane = lanes.of("single", "a")
    first = [record_of("a", i) for i in range(200)]
    lanes.take(Batch("single", "a", first)).result(30)
    from production.journal import mark_exported

    lane.submit(lambda: mark_exported(lane.journal._base, 200)).result(30)
    lanes.take(Batch("single", "a", [record_of("a", i) for i in range(200, 230)])).result(30)
    [old] = lanes.take(Batch("single", "a", [record_of("a", 3)])).result(30)
    [known] = lanes.take(Batch("single", "a", [record_of("a", 220)])).result(30)
    seq = lanes.look("single", "a").result(30)["records"]
    lanes.stop()
    assert (old["status"], old["reason"]) == ("rejected", "late")
    assert (known["status"], known["seq"]) == ("duplicate", 221)
    assert seq == 230


def test_second_service_is_kept_out_of_the_state_folder(tmp_path):
    lanes = Lanes(tmp_path)
    with pytest.raises(RequestError, match="another service works in"):
        Lanes(tmp_path)
    lanes.stop()
    Lanes(tmp_path).stop()


def test_sender_of_a_body_too_long_gets_the_answer_and_not_a_broken_connection(tmp_path):
    with ServiceProcess(tmp_path) as service:
        line = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        closing = {"Connection": "close"}
        line.request("POST", "/v1/streams/long/records", b" " * 20_000_000, closing)
        reply = line.getresponse()
        assert reply.status == 413
        assert b"8388608 bytes" in reply.read()
        line.close()
