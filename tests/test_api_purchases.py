"""Purchase networks over HTTP: the same flags as a log run, through restarts and faults."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import threading

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient

from anomaly.purchases import EventLog, make_network, simulate
from production import purchase_store
from production.service import create_app
from production.settings import Bounds, Settings
from tests.service_process import ServiceProcess

KILLS = max(1, int(os.environ.get("ANOMALY_TEST_KILLS", "2")) // 2)


def client_of(folder, **changes):
    options = {
        "state": folder / "state",
        "models": folder / "models",
        "database": f"sqlite:///{folder}/service.sqlite",
    }
    return TestClient(create_app(Settings(**{**options, **changes})), base_url="http://127.0.0.1")


@pytest.fixture
def client(tmp_path):
    with client_of(tmp_path) as found:
        yield found


def event(kind="purchase", **fields):
    return {"event_type": kind, "timestamp": "2026-03-01 09:00:00", **fields}


def text_of(*events):
    return "".join(json.dumps(one) + "\n" for one in events)


def answers(reply):
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.text.splitlines()]


HISTORY = text_of(
    event("befriend", id1="ann", id2="bob"),
    *(event(id="ann", amount=amount) for amount in ("16.83", "59.28", "11.20")),
)
SUSPECT = text_of(event(id="bob", amount="1601.83"))


def test_published_example_is_flagged(client):
    assert client.put("/v1/purchases/shop", json={"degree": 1}).status_code == 200
    assert answers(client.post("/v1/purchases/shop?judge=false", content=HISTORY)) == [
        {"event": i, "status": "applied"} for i in (1, 2, 3, 4)
    ]
    [found] = answers(client.post("/v1/purchases/shop", content=SUSPECT))
    score = found.pop("score")
    assert score == pytest.approx(73.3, abs=0.1)
    assert found == {
        "event": 1, "status": "judged", "flagged": True, "window": 3, "mean": "29.10",
        "sd": "21.46",
    }  # fmt: skip
    told = client.get("/v1/purchases/shop").json()
    assert (told["events"], told["flagged"], told["users"], told["purchases_kept"]) == (5, 1, 2, 4)
    assert client.get("/v1/purchases").json() == {"networks": ["shop"]}


def test_flags_are_those_of_a_log_run_through_restarts_and_snapshots(tmp_path, monkeypatch):
    monkeypatch.setattr(purchase_store, "SNAPSHOT_EVENTS", 700)
    made = simulate(n_users=60, n_batch=1000, n_stream=1200, random_state=3)
    made.write(tmp_path / "logs")
    batch = (tmp_path / "logs" / "batch_log.json").read_bytes().split(b"\n", 1)[1]
    stream = (tmp_path / "logs" / "stream_log.json").read_bytes().splitlines()
    network = make_network(2, 50)
    list(EventLog(network, judge=False).feed(batch))
    expected = list(EventLog(network, judge=True).feed(b"\n".join([*stream, b""])))
    flagged = []
    for start in range(0, len(stream), 300):
        with client_of(tmp_path) as client:
            if start == 0:
                client.put("/v1/purchases/a", json={"degree": 2, "window_size": 50})
                answers(client.post("/v1/purchases/a?judge=false", content=batch))
            part = stream[start : start + 300]
            reply = client.post("/v1/purchases/a", content=b"\n".join(part))
            flagged += [
                f'{line.decode()[:-1]}, "mean": "{a["mean"]}", "sd": "{a["sd"]}"}}'.encode()
                for line, a in zip(part, answers(reply), strict=True)
                if a.get("flagged")
            ]
    assert flagged == expected
    assert expected


def test_kill_at_any_moment_loses_no_answered_batch_and_applies_none_twice(tmp_path):
    """Oracle: the same events through the log reader, in one process that nobody interrupts."""
    simulate(n_users=60, n_batch=0, n_stream=2000, random_state=4).write(tmp_path)
    lines = (tmp_path / "stream_log.json").read_bytes().splitlines()
    batches = [b"\n".join(lines[i : i + 20]) for i in range(0, len(lines), 20)]
    small = "from production import purchase_store; purchase_store.SNAPSHOT_EVENTS = 100"
    rng = random.Random(3)
    texts: list[str] = []
    for left in reversed(range(KILLS + 1)):
        with ServiceProcess(tmp_path, before=small) as service:
            killer = threading.Timer(rng.uniform(0, 0.03), service.kill)
            last = len(texts) + rng.randrange(5, 25) if left else len(batches)
            with contextlib.suppress(httpx.TransportError):
                send_batches(service.url, batches[:last], texts)
                if left:
                    killer.start()
                send_batches(service.url, batches, texts)
            if left:
                killer.join()
    flagged = [
        f'{line.decode()[:-1]}, "mean": "{a["mean"]}", "sd": "{a["sd"]}"}}'.encode()
        for line, a in zip(lines, map(json.loads, "".join(texts).splitlines()), strict=True)
        if a.get("flagged")
    ]
    assert flagged == list(
        EventLog(make_network(2, 50), judge=True).feed(b"\n".join([*lines, b""]))
    )
    assert flagged


def send_batches(url, batches, texts):
    """Send batches that were not answered yet, and two that were; keep the answers."""
    with httpx.Client(base_url=url, timeout=30) as client:
        client.put("/v1/purchases/a", json={"degree": 2, "window_size": 50})
        for number in range(max(0, len(texts) - 2), len(batches)):
            key = {"Idempotency-Key": f"batch-{number}"}
            reply = client.post("/v1/purchases/a", content=batches[number], headers=key)
            assert reply.status_code == 200, reply.text
            if number == len(texts):
                texts.append(reply.text)
            assert reply.text == texts[number]


def test_a_fault_in_a_line_refuses_the_batch_and_names_the_line(client):
    client.put("/v1/purchases/shop", json={})
    for bad, status, part in [
        (event(id="ann", amount="-1"), 422, "line 5: amount must not be negative"),
        (event(id="x" * 300, amount="1"), 422, "line 5: an id must have 256 bytes"),
        (event("marry", id1="a", id2="b"), 422, "line 5: event_type must be"),
        (["ann"], 422, "line 5: an event must be a JSON object"),
    ]:
        reply = client.post("/v1/purchases/shop", content=HISTORY + json.dumps(bad))
        assert (reply.status_code, part in reply.json()["detail"]) == (status, True), reply.text
        assert reply.headers["content-type"] == "application/problem+json"
    assert client.post("/v1/purchases/shop", content=HISTORY + "{").status_code == 400
    assert client.post("/v1/purchases/shop", content="\n").status_code == 422
    assert client.get("/v1/purchases/shop").json()["events"] == 0


def test_ids_settings_and_sizes_are_bounded(tmp_path, monkeypatch):
    with client_of(tmp_path, bounds=Bounds(rows=3)) as client:
        assert client.put("/v1/purchases/a%20b", json={}).status_code == 422
        assert client.put("/v1/purchases/..%2Fa", json={}).status_code in (404, 405, 422)
        for bad in ({"degree": 0}, {"window_size": 1}, {"sigma": -1}, {"D": 3}, {"sigma": "x"}):
            assert client.put("/v1/purchases/a", json=bad).status_code == 422, bad
        assert client.post("/v1/purchases/a", content=SUSPECT).status_code == 404
        assert client.get("/v1/purchases/a").status_code == 404
        client.put("/v1/purchases/a", json={"degree": 3})
        assert client.put("/v1/purchases/a", json={"degree": 3}).status_code == 200
        assert client.put("/v1/purchases/a", json={"degree": 2}).status_code == 409
        assert client.post("/v1/purchases/a", content=HISTORY).status_code == 413
        monkeypatch.setattr(purchase_store, "NETWORKS", 1)
        assert client.put("/v1/purchases/b", json={}).status_code == 429
        monkeypatch.setattr(purchase_store, "ROOM", 0)
        assert client.post("/v1/purchases/a", content=SUSPECT).status_code == 429
        assert client.delete("/v1/purchases/a").status_code == 204
        assert client.get("/v1/purchases/a").status_code == 404


def test_a_batch_sent_again_with_its_key_is_applied_once(tmp_path):
    key = {"Idempotency-Key": "k1"}
    with client_of(tmp_path) as client:
        client.put("/v1/purchases/a", json={})
        first = answers(client.post("/v1/purchases/a", content=HISTORY, headers=key))
    with client_of(tmp_path) as client:
        assert answers(client.post("/v1/purchases/a", content=HISTORY, headers=key)) == first
        assert client.post("/v1/purchases/a", content=SUSPECT, headers=key).status_code == 422
        assert client.get("/v1/purchases/a").json()["events"] == 4


def test_what_cannot_be_written_is_not_applied(client, monkeypatch):
    client.put("/v1/purchases/a", json={"degree": 1})
    answers(client.post("/v1/purchases/a", content=HISTORY))
    store = client.app.state.purchases
    real = store._base

    class Full:
        in_transaction = False

        def execute(self, statement, arguments=()):
            if statement.startswith("INSERT"):
                real.execute("ROLLBACK")
                raise sqlite3.OperationalError("database or disk is full")
            return real.execute(statement, arguments)

    monkeypatch.setattr(store, "_base", Full())
    reply = client.post("/v1/purchases/a", content=SUSPECT)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    monkeypatch.setattr(store, "_base", real)
    [found] = answers(client.post("/v1/purchases/a", content=SUSPECT))
    assert (found["flagged"], found["window"]) == (True, 3)
    assert client.get("/v1/purchases/a").json()["purchases_kept"] == 4


def test_batches_of_many_clients_at_once_are_all_applied(client):
    client.put("/v1/purchases/a", json={})
    threads = [
        threading.Thread(
            target=client.post, args=("/v1/purchases/a",), kwargs={"content": HISTORY}
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get("/v1/purchases/a").json()["purchases_kept"] == 24
    assert client.get("/v1/purchases/a").json()["events"] == 32


def test_a_token_that_may_only_read_cannot_send_events(tmp_path):
    tokens = {"r" * 16: frozenset({"read"})}
    with client_of(tmp_path, tokens=tokens) as client:
        headers = {"Authorization": "Bearer " + "r" * 16}
        assert client.put("/v1/purchases/a", json={}, headers=headers).status_code == 403
        assert client.get("/v1/purchases", headers=headers).status_code == 200
        assert client.get("/v1/purchases").status_code == 401
