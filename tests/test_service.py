"""The service over HTTP, in this process: interfaces, limits, faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sqlite3
import sys
import time
from dataclasses import asdict

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from anomaly.errors import AnomalyError, ParameterError
from anomaly.swarm import swarm
from production.api_kpi import EXAMPLE
from production.clock import moment_of, zone_of
from production.detectors import build
from production.lanes import Lanes
from production.service import _plainly, create_app, main
from production.settings import Bounds, Settings, read_settings
from production.streams import StreamSettings
from production.strict import RequestError, read_json

HTM = "/api/HTM/v1.0"
TILES = StreamSettings(detector="tiles")

# The original's examples: stream, seconds after 2016-12-1 0:00:00 as written, value.
ONE_FIELD = [
    (1, "0:00:10", 3855.0),
    (1, "0:00:20", 3865.0),
    (2, "0:00:30", 3875.0),
    (2, "0:00:40", 3885.0),
    (2, "0:00:40", 3895.0),
    (2, "0:00:50", 3995.0),
    (3, "0:01:10", 3205.0),
    (4, "0:01:20", 3325.0),
    (5, "0:01:30", 3425.0),
    (6, "0:01:40", 3435.0),
    *(
        (7, f"0:{minute:02}:50", value)
        for minute, value in enumerate(
            [3425.0, 3325.0, 3535.0, 3645.0, 3755.0, 3915.0, 4565.0, 43265.0, 3565.0], start=2
        )
    ),
    (8, "0:11:10", 35465.0),
]
MANY_FIELDS = [
    ("0:00:10", 3855.0, 3855.0),
    ("0:00:20", 3821.0, 3325.0),
    ("0:00:30", 3425.0, 3425.0),
    ("0:00:40", 3525.0, 3455.0),
    ("0:00:50", 3635.0, 3435.0),
    ("0:01:10", 4265.0, 3545.0),
    ("0:01:20", 6375.0, 3655.0),
    ("0:01:30", 6355.0, 7665.0),
    ("0:01:40", 7575.0, 5255.0),
    ("0:01:50", 7375.0, 6365.0),
    ("0:02:10", 8585.0, 6475.0),
    ("0:02:20", 8595.0, 7485.0),
    ("0:02:30", 3855.0, 5245.0),
    ("0:02:40", 3965.0, 7475.0),
    ("0:02:50", 9795.0, 8855.0),
]


def client_of(folder, **changes):
    options = {
        "state": folder / "state",
        "models": folder / "models",
        "database": f"sqlite:///{folder}/service.sqlite",
        "streams": TILES,
    }
    app = create_app(Settings(**{**options, **changes}))
    return TestClient(app, base_url="http://127.0.0.1:5000")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with client_of(tmp_path_factory.mktemp("service")) as found:
        yield found


def post_form(client, path, value):
    """As ``curl -d streamData='…'`` sends it: a form that is not quoted."""
    return client.post(
        path,
        content="streamData=" + json.dumps(value),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )


def lines(reply):
    return [json.loads(line) for line in reply.text.splitlines()]


def batch(values, start=0):
    """JSON Lines, one record a second."""
    return "\n".join(
        json.dumps({"timestamp": 1_600_000_000 + start + i, "value": v})
        for i, v in enumerate(values)
    )


# --- the original's interfaces


@pytest.mark.parametrize("detector", ["tiles", "htm"])
def test_every_example_of_the_original_is_answered(tmp_path, detector):
    with client_of(tmp_path, streams=StreamSettings(detector=detector)) as client:
        for name, at, value in ONE_FIELD:
            stamp = f"2016-12-1 {at}"
            reply = post_form(
                client,
                f"{HTM}/anomalyDetection/{name}",
                {"timestamp": stamp, "actualValue": value},
            )
            assert reply.status_code == 200, reply.text
            answer = reply.json()
            assert list(answer) == ["actualValue", "anomalyScore", "predictValue", "timestamp"]
            assert (answer["actualValue"], answer["timestamp"]) == (value, stamp)
            assert 0 <= answer["anomalyScore"] <= 1
        for at, a, c in MANY_FIELDS:
            fields = {"A": a, "B": 3855.0, "C": c}
            record = {
                name: {"timestamp": f"2016-12-1 {at}", "actualValue": value}
                for name, value in fields.items()
            }
            reply = post_form(client, f"{HTM}/multiAnomalyDetection/1", record)
            assert reply.status_code == 200, reply.text
            for name, value in fields.items():
                assert reply.json()[name]["actualValue"] == value
                assert reply.json()[name]["timestamp"] == f"2016-12-01 0{at}"


def test_first_record_of_a_stream_is_wholly_novel_and_expected_as_it_is(client):
    record = {"timestamp": "2016-12-1 0:00:20", "actualValue": 3865.0}
    path = f"{HTM}/anomalyDetection/first"
    expected = {
        "actualValue": 3865.0,
        "anomalyScore": 1.0,
        "predictValue": 3865.0,
        "timestamp": "2016-12-1 0:00:20",
    }
    assert post_form(client, path, record).json() == expected
    assert client.post(path, json=record).json() == expected  # sent again, as JSON
    assert client.post(path, data={"streamData": json.dumps(record)}).json() == expected
    assert client.post(path, files={"streamData": (None, json.dumps(record))}).json() == expected


def test_kpi_window_is_answered_in_the_originals_shape(client):
    reply = client.post("/PredictValue", json=EXAMPLE)
    assert reply.status_code == 200
    assert reply.json()["code"] == 0
    assert reply.json()["msg"] == "操作成功"
    assert reply.json()["data"]["ret"] == 0
    assert float(reply.json()["data"]["p"]) < 0.15
    rate = client.post("/PredictRate", json={**EXAMPLE, "dataA": "9,10,12,9,10,12,9,10,12,9,10.5"})
    assert rate.json()["data"]["ret"] == 1


def test_the_window_of_the_original_and_the_longest_are_tested(client):
    for window in (180, 10_080):
        wide = ",".join(["9.5", "10.25"] * window + ["9"])
        narrow = ",".join(["9.5", "10.25"] * (window // 2) + ["10"])
        asked = {**EXAMPLE, "window": window, "dataC": wide, "dataB": wide, "dataA": narrow}
        assert client.post("/PredictValue", json=asked).json()["data"]["ret"] == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"viewId": None}, "viewId"),
        ({"attrName": ""}, "attrName"),
        ({"window": 9}, "window must be 10 to 10080"),
        ({"window": 10_081}, "window must be 10 to 10080"),
        ({"window": "ten"}, "window"),
        ({"time": "yesterday"}, "time must be yyyy-MM-dd HH:mm:ss"),
        ({"time": "2018-13-17 17:28:00"}, "time"),
        ({"dataA": "1,2"}, "dataA length"),
        ({"dataB": "1,x"}, "dataB contains illegal numbers"),
        ({"dataC": ""}, "dataC can not be empty"),
        ({"dataC": EXAMPLE["dataC"].replace("9,", "nan,", 1)}, "dataC contains illegal numbers"),
        ({"attrId": " "}, "attrId can not be empty"),
        ({"taskId": "nobody"}, "taskId"),
        ({"taskId": "../../etc/passwd"}, "taskId"),
        ({"taskId": 7}, "taskId"),
    ],
)
def test_faulty_window_is_1002_and_names_the_field(client, change, named):
    reply = client.post("/PredictValue", json={**EXAMPLE, **change})
    assert reply.status_code == 200
    assert reply.json()["code"] == 1002
    assert named in reply.json()["msg"]


def test_wrong_method_is_1004(client):
    assert client.get("/PredictValue").json()["code"] == 1004


# --- our own


def test_batch_scores_are_those_of_single_records(client):
    values = [float(i % 7) for i in range(40)] + [99.0]
    [*answers] = lines(client.post("/v1/streams/batch/records", content=batch(values)))
    assert [a["seq"] for a in answers] == list(range(1, 42))
    for i, value in enumerate(values):
        [one] = lines(client.post("/v1/streams/single/records", content=batch([value], start=i)))
        assert {k: one[k] for k in one if k != "timestamp"} == {
            k: answers[i][k] for k in one if k != "timestamp"
        }


def test_sent_again_is_answered_with_the_first_result_and_not_learnt(client):
    content = batch([1.0, 2.0, 3.0])
    first = lines(client.post("/v1/streams/again/records", content=content))
    again = lines(client.post("/v1/streams/again/records", content=content))
    assert [{**a, "status": "duplicate"} for a in first] == again
    assert client.get("/v1/streams/again").json()["records"] == 3


def test_idempotency_key_returns_the_first_reply_and_refuses_another_body(client):
    headers = {"Idempotency-Key": "k1"}
    first = client.post("/v1/streams/keyed/records", content=batch([5.0]), headers=headers)
    client.post("/v1/streams/keyed/records", content=batch([6.0], start=1))
    again = client.post("/v1/streams/keyed/records", content=batch([5.0]), headers=headers)
    assert lines(again) == [{**lines(first)[0], "status": "duplicate"}]
    other = client.post("/v1/streams/keyed/records", content=batch([7.0]), headers=headers)
    assert other.status_code == 422
    assert other.headers["content-type"] == "application/problem+json"
    assert "Idempotency-Key" in other.json()["detail"]


def test_policy_of_a_stream_is_obeyed_and_counted(client):
    strict = {"detector": "tiles", "duplicates": "reject", "late": "reject", "future": "reject"}
    client.put("/v1/streams/policy", json=strict)
    client.post("/v1/streams/policy/records", content=batch([1.0, 2.0, 3.0]))
    ahead = json.dumps({"timestamp": time.time() + 10 * 86_400, "value": 1.0})
    sent = [batch([9.0], start=2), batch([9.0], start=-5), ahead]
    said = [lines(client.post("/v1/streams/policy/records", content=c))[0] for c in sent]
    assert [a["reason"] for a in said] == ["duplicate", "late", "future"]
    counts = client.get("/v1/streams/policy").json()["counts"]
    assert (counts["duplicate"], counts["late"], counts["future"]) == (1, 1, 1)
    assert client.get("/v1/streams/policy").json()["records"] == 3


def test_record_of_the_future_is_called_so_even_after_a_gap(client):
    client.post("/v1/streams/ahead/records", content=batch([1.0, 2.0, 3.0]))
    ahead = json.dumps({"timestamp": time.time() + 10 * 86_400, "value": 1.0})
    [answer] = lines(client.post("/v1/streams/ahead/records", content=ahead))
    assert answer["status"] == "future"
    counts = client.get("/v1/streams/ahead").json()["counts"]
    assert (counts["future"], counts["gap"]) == (1, 1)


def test_missing_id_is_called_missing(client):
    assert "taskId is missing" in client.post("/DeleteTrain", json={}).json()["msg"]


def test_gap_is_counted(client):
    stamps = [0, 1, 2, 3, 60, 61]
    content = "\n".join(json.dumps({"timestamp": 1000 + s, "value": 1.0}) for s in stamps)
    said = lines(client.post("/v1/streams/gap/records", content=content))
    assert [a["status"] for a in said].count("gap") == 1


def test_missing_value_is_skipped_and_shown_as_null(client):
    content = '{"timestamp": 1, "value": 1.5}\n{"timestamp": 2, "value": null}'
    said = lines(client.post("/v1/streams/holes/records", content=content))
    assert said[1]["value"] is None
    assert said[1]["is_anomaly"] is False


def test_fields_keep_their_names(client):
    path = "/v1/streams/fields/records"
    client.post(path, content='{"timestamp": 1, "values": {"a": 1, "b": 2}}')
    reply = client.post(path, content='{"timestamp": 2, "values": {"a": 1, "c": 2}}')
    assert reply.status_code == 422
    assert "'c'" in reply.json()["detail"]


def test_joint_stream_has_one_detector_for_all_fields(client):
    client.put("/v1/streams/joint?kind=multi", json={"detector": "tiles", "joint": True})
    content = '{"timestamp": 1, "values": {"a": 1, "b": 2}}'
    [answer] = lines(client.post("/v1/streams/joint/records", content=content))
    assert answer["prediction"] == {"a": 1.0, "b": 2.0}


def test_range_reaches_the_htm_detector_and_is_refused_by_tiles(client):
    sent = {"detector": "htm", "min": 0, "max": 100, "resolution": 0.5, "prediction_step": 3}
    assert client.put("/v1/streams/ranged", json=sent).status_code == 200
    reply = client.put("/v1/streams/ranged", json={"detector": "tiles", "min": 0, "max": 1})
    assert reply.status_code == 422
    assert "tiles takes no min, max" in reply.json()["detail"]


def test_detector_cannot_change_once_the_stream_has_learnt(client):
    client.post("/v1/streams/fixed/records", content=batch([1.0]))
    reply = client.put("/v1/streams/fixed", json={"detector": "htm"})
    assert reply.status_code == 409
    assert (
        client.put("/v1/streams/fixed", json={"detector": "tiles", "late": "reject"}).json()[
            "settings"
        ]["late"]
        == "reject"
    )


def test_scores_can_be_read_back_since_a_time_and_a_number(client):
    client.post("/v1/streams/read/records", content=batch([float(i) for i in range(10)]))
    all_of_them = lines(client.get("/v1/streams/read/scores"))
    assert len(all_of_them) == 10
    assert lines(client.get("/v1/streams/read/scores?since=1600000005")) == all_of_them[5:]
    since = "2020-09-13 12:26:45"
    assert lines(client.get("/v1/streams/read/scores", params={"since": since})) == all_of_them[5:]
    assert lines(client.get("/v1/streams/read/scores?after=8")) == all_of_them[8:]
    assert lines(client.get("/v1/streams/read/scores?newest=true&limit=2")) == all_of_them[8:]


def test_deleted_stream_is_gone_and_begins_anew(client):
    client.post("/v1/streams/gone/records", content=batch([1.0, 2.0]))
    assert client.delete("/v1/streams/gone").status_code == 204
    assert client.get("/v1/streams/gone").status_code == 404
    [answer] = lines(client.post("/v1/streams/gone/records", content=batch([1.0])))
    assert answer["seq"] == 1


def test_list_of_streams_is_paged(client):
    for i in range(5):
        client.post(f"/v1/streams/paged-{i}/records", content=batch([1.0]))
    first = client.get("/v1/streams?after=paged-&limit=3").json()
    rest = client.get("/v1/streams", params={"after": first["next"], "limit": 2}).json()
    assert [s["id"] for s in first["streams"] + rest["streams"]] == [
        f"paged-{i}" for i in range(5)
    ]


def test_metrics_count_records_and_refusals(client):
    client.post("/v1/streams/counted/records", content=batch([1.0]))
    client.post("/v1/streams/counted/records", content=batch([1.0]))
    client.post("/v1/streams/counted/records", content="{")
    text = client.get("/metrics").text
    for name in ("records_accepted", "rejected", "records_duplicate", "latency_seconds_bucket"):
        assert re.search(rf"^anomaly_{name}\S* [1-9]", text, re.MULTILINE), name


def test_every_call_has_an_example(client):
    page = client.get("/docs")
    assert page.status_code == 200
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method, call in methods.items():
            assert path in page.text
            if method in ("post", "put"):
                [*contents] = call["requestBody"]["content"].values()
                assert all("example" in content for content in contents), path


# --- strangers


JUNK = [
    b"",
    b"\x00\xff\xfe",
    b"null",
    b"[]",
    b'"text"',
    b"NaN",
    b"{",
    b'{"timestamp": NaN, "value": 1}',
    b'{"timestamp": 1, "value": Infinity}',
    b'{"timestamp": 1, "value": 1e999}',
    b'{"timestamp": 1, "value": -1e999}',
    b'{"timestamp": 1, "value": 1, "value": 2}',
    b'{"timestamp": 1, "value": "1"}',
    b'{"timestamp": 1, "value": true}',
    b'{"timestamp": true, "value": 1}',
    b'{"timestamp": "\\ud800", "value": 1}',
    b'{"timestamp": "\\u0000", "value": 1}',
    b'{"timestamp": "2016-02-30 00:00:00", "value": 1}',
    b'{"timestamp": "9999-12-31 23:59:59-23:59", "value": 1}',
    b'{"timestamp": "0001-01-01 00:00:00", "value": 1}',
    b'{"timestamp": -5, "value": 1}',
    b'{"timestamp": 1e300, "value": 1}',
    b'{"timestamp": 1, "value": ' + b"9" * 5000 + b"}",
    b'{"timestamp": 1, "value": {"a": 1}}',
    b'{"timestamp": 1, "values": {}}',
    b'{"timestamp": 1, "values": {"": 1}}',
    b'{"timestamp": 1, "values": 5}',
    b'{"timestamp": 1}',
    b'{"value": 1}',
    b'{"timestamp": 1, "value": 1, "extra": 1}',
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    json.dumps({"timestamp": 1, "values": {f"f{i}": 1 for i in range(65)}}).encode(),
]


@pytest.mark.parametrize("content", JUNK, ids=range(len(JUNK)))
def test_junk_is_refused_with_one_sentence(client, content):
    paths = ["/v1/streams/junk/records", "/PredictValue", f"{HTM}/anomalyDetection/junk"]
    for path in [*paths, f"{HTM}/multiAnomalyDetection/junk"]:
        for kind in ("application/json", "application/x-www-form-urlencoded"):
            reply = client.post(path, content=content, headers={"Content-Type": kind})
            if path == "/PredictValue" and reply.status_code == 200:
                assert reply.json()["code"] == 1002
                continue
            assert 400 <= reply.status_code < 500, (path, reply.text)
            assert "Traceback" not in reply.text
            assert len(reply.text) < 1500
    for path in ("junk", "junk/scores", "junk/scores?kind=single", "junk?kind=multi"):
        assert client.get(f"/v1/streams/{path}").status_code == 404


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=200))
def test_no_bytes_whatever_make_the_service_fail(client, content):
    for path in ("/v1/streams/fuzz/records", "/PredictRate", f"{HTM}/anomalyDetection/fuzz"):
        assert client.post(path, content=content).status_code < 500
    files = {"sample_file": ("s.csv", content)}
    assert client.post("/ImportSample", files=files).json()["code"] == 1003


@settings(max_examples=100, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.text(max_size=5) | st.integers(-(2**50), 2**50),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    )
)
def test_strict_json_reads_what_json_reads(value):
    text = json.dumps(value)
    if "\\u0000" in text:
        with pytest.raises(RequestError, match="NUL"):
            read_json(text)
    else:
        assert read_json(text) == json.loads(text)


@pytest.mark.parametrize("name", ["..", ".", "a b", "a%2Fb", "a" * 65, "ü", "a\x00"])
def test_ids_are_bounded_and_never_paths(client, name):
    from urllib.parse import quote

    reply = client.post(f"/v1/streams/{quote(name)}/records", content=batch([1.0]))
    assert 400 <= reply.status_code < 500


def test_limits_are_named(tmp_path):
    from production.lanes import Limits

    bounds = Bounds(body_bytes=2000, rows=3, fields=2)
    with client_of(tmp_path, bounds=bounds, limits=Limits(streams=2)) as client:
        long = client.post("/v1/streams/a/records", content=b" " * 3000)
        assert long.status_code == 413
        assert "2000 bytes" in long.json()["detail"]

        def pieces():
            for _ in range(30):
                yield b" " * 100

        assert client.post("/v1/streams/a/records", content=pieces()).status_code == 413
        rows = client.post("/v1/streams/a/records", content=batch([1.0] * 4))
        assert (rows.status_code, "3 records" in rows.text) == (413, True)
        fields = '{"timestamp": 1, "values": {"a": 1, "b": 2, "c": 3}}'
        wide = client.post("/v1/streams/a/records", content=fields)
        assert (wide.status_code, "2 fields" in wide.text) == (413, True)
        for name in ("a", "b"):
            assert client.post(f"/v1/streams/{name}/records", content=batch([1.0])).is_success
        full = client.post("/v1/streams/c/records", content=batch([1.0]))
        assert (full.status_code, "2 streams" in full.text) == (429, True)
        client.delete("/v1/streams/a")
        assert client.post("/v1/streams/c/records", content=batch([1.0])).is_success


def test_full_queue_is_503_with_retry_after(tmp_path):
    import threading

    from production.lanes import Lanes, Limits

    lanes = Lanes(tmp_path, Limits(queued=1))
    lane, gate = lanes.lanes[0], threading.Event()
    running = lane.submit(gate.wait)
    while lane.waiting.qsize():
        time.sleep(0.01)
    lane.submit(bool)
    with pytest.raises(RequestError, match="more than 1 requests wait") as caught:
        lane.submit(bool)
    gate.set()
    running.result(10)
    lanes.stop()
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)


# --- the door


TOKENS = {
    "r" * 16: frozenset({"read"}),
    "w" * 16: frozenset({"read", "write"}),
    "t" * 16: frozenset({"read", "write", "train"}),
}


def test_token_and_role_are_needed(tmp_path):
    with client_of(tmp_path, tokens=TOKENS, host="0.0.0.0") as client:

        def status(method, path, token, scheme="Bearer"):
            headers = {"Authorization": f"{scheme} {token}"} if token else {}
            return client.request(method, path, headers=headers, content=batch([1.0])).status_code

        assert status("GET", "/v1/streams", "") == 401
        assert status("GET", "/metrics", "x" * 16) == 401
        assert status("GET", "/v1/streams", "r" * 16) == 200
        assert status("POST", "/v1/streams/a/records", "r" * 16) == 403
        assert status("POST", "/v1/streams/a/records", "w" * 16) == 200
        assert client.get("/v1/streams", auth=("any", "r" * 16)).status_code == 200
        assert status("GET", "/v1/streams", "%%%", "Basic") == 401
        assert status("GET", "/healthz", "") == 200
        assert status("GET", "/docs", "") == 401
        assert "WWW-Authenticate" in client.get("/").headers


def test_open_door_is_refused_at_the_start(capsys, monkeypatch):
    monkeypatch.delenv("ANOMALY_TOKEN", raising=False)
    assert main(["--host", "0.0.0.0"]) == 2
    assert "a token is needed: set ANOMALY_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("ANOMALY_TOKEN", "short")
    assert main([]) == 2
    assert "16 characters" in capsys.readouterr().err


def test_pages_of_other_sites_cannot_speak_through_the_browser(client):
    for origin in ("http://evil.example", "null", "http://["):
        headers = {"Origin": origin}
        reply = client.post("/v1/streams/a/records", content=batch([1.0]), headers=headers)
        assert reply.status_code == 403
    for host in ("evil.example:5000", "[", ""):
        assert client.get("/v1/streams", headers={"Host": host}).status_code == 403
    same = client.post(
        "/v1/streams/a/records",
        content=batch([1.0]),
        headers={"Origin": "http://127.0.0.1:5000"},
    )
    assert same.status_code == 200


def test_settings_file_is_read_and_its_faults_named(tmp_path):
    path = tmp_path / "service.toml"
    path.write_text('port = 7000\n[bounds]\nrows = 5\n[streams]\ndetector = "tiles"\n')
    found = read_settings({"port": None}, path)
    assert (found.port, found.bounds.rows, found.streams.detector) == (7000, 5, "tiles")
    assert read_settings({"port": 1}, path).port == 1
    for text, named in (
        ("prt = 1", "'prt'"),
        ("port = true", "port must be int"),
        ("[bounds]\nrows = 0", "rows must be"),
        ("=", "toml"),
        ("\xff", "codec can't decode"),
        ("bounds = 3", "[bounds] must be a table, got 3"),
        ("[limits]\nstreams = 1.5", "streams must be a whole number above 0, got 1.5"),
        ("retention_days = -1", "retention_days must be above 0, got -1"),
    ):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ParameterError, match=re.escape(named)):
            read_settings({}, path)


def test_folders_and_drivers_that_cannot_be_used_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANOMALY_TOKEN", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    (tmp_path / "file").touch()
    for arguments, text in (
        (["--state", "file"], "--state file cannot be made a folder: File exists"),
        (["--models", "file/a"], "--models file/a cannot be made a folder: Not a directory"),
        (["--database", "postgresql://u@h/d"], "run: pip install 'anomaly[postgres]'"),
    ):
        assert main(arguments) == 2
        assert text in capsys.readouterr().err


def started(folder) -> list[dict]:
    """What the application tells its server of its start in this folder."""
    app = create_app(
        Settings(database="sqlite://", models=folder / "models", state=folder / "state")
    )
    told: list[dict] = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        told.append(message)

    with contextlib.suppress(AnomalyError, sqlite3.Error):
        asyncio.run(_plainly(app)({"type": "lifespan"}, receive, send))
    return told


def test_a_start_that_fails_says_why_in_one_line(tmp_path):
    lanes = Lanes(tmp_path / "state")
    reason = f"--state {tmp_path}/state: another service works in {tmp_path}/state; name another"
    assert started(tmp_path) == [
        {"type": "lifespan.startup.failed", "message": f"{reason} with --state"}
    ]
    lanes.stop()
    (tmp_path / "state" / "purchases.sqlite").write_text("no database" * 100)
    assert started(tmp_path) == [
        {
            "type": "lifespan.startup.failed",
            "message": f"--state {tmp_path}/state: file is not a database",
        }
    ]


# --- the clock


def test_repeated_hour_of_autumn_is_taken_in_order():
    berlin = zone_of("Europe/Berlin")
    first = moment_of("2024-10-27 02:30:00", berlin)
    last = moment_of("2024-10-27 02:59:00", berlin, after=first.instant)
    second = moment_of("2024-10-27 02:00:00", berlin, after=last.instant)
    assert second.instant - last.instant == 60
    assert moment_of("2024-10-27T02:00:00+01:00").instant == second.instant


@pytest.mark.parametrize(
    "text",
    ["2016-12-1 0:00:10", "2016-12-01T00:00:10Z", "2016-12-1 01:00:10.000+0100", 1480550410],
)
def test_writings_of_one_instant_are_one(text):
    assert moment_of(text).instant == 1480550410.0


# --- exported classifiers


def test_exported_classifier_is_listed_and_classifies(tmp_path, monkeypatch):
    import pandas as pd
    from sklearn.pipeline import make_pipeline
    from sklearn.tree import DecisionTreeClassifier

    from anomaly.encoding import RecordEncoder
    from anomaly.exported import export_classifier

    monkeypatch.delenv("ANOMALY_KEY", raising=False)
    records = pd.DataFrame(
        {"class": ["car"] * 3 + ["human"] * 3, "length": [4400.0, 4300, 300, 310, 290, 4500]}
    )
    pipeline = make_pipeline(RecordEncoder(), DecisionTreeClassifier(random_state=0))
    pipeline.fit(records, [0, 0, 1, 0, 0, 1])
    with client_of(tmp_path) as client:
        path = tmp_path / "models" / "sizes.clf"
        export_classifier(pipeline, path, probes=records)
        (tmp_path / "models" / "torn.clf").write_bytes(path.read_bytes()[:-5])
        sizes, torn = client.get("/v1/models").json()["models"]
        assert (sizes["model"], sizes["signed"]) == ("sizes", False)
        assert "refused" in torn
        sent = "\n".join(json.dumps(r) for r in records.to_dict("records") * 5)
        said = lines(client.post("/v1/classify/sizes", content=sent))
        assert [a["malicious"] for a in said] == [False, False, True, False, False, True] * 5
        for content, named in (
            ('{"class": "cart", "length": 1}', "did you mean 'car'"),
            ('{"class": "car"}', "length"),
            ('{"class": "car", "length": "x"}', "line 1"),
            ("[1]", "line 1"),
            ("", "no record"),
        ):
            reply = client.post("/v1/classify/sizes", content=content)
            assert (reply.status_code, named in reply.text) == (422, True), reply.text
        assert client.post("/v1/classify/nobody", content="{}").status_code == 404
        assert client.post("/v1/classify/torn", content="{}").status_code == 409
        monkeypatch.setenv("ANOMALY_KEY", "k" * 32)
        (tmp_path / "models" / "other.clf").write_bytes(path.read_bytes())
        unsigned = client.post("/v1/classify/other", content='{"class": "car", "length": 4400}')
        assert (unsigned.status_code, "refused" in unsigned.text) == (409, True)


# --- every call, with whatever a generator thinks of


def test_no_call_of_the_description_fails_with_500(tmp_path):
    import schemathesis

    @schemathesis.serializer("application/x-ndjson")
    def as_it_is(context, value):
        return value if isinstance(value, bytes) else json.dumps(value).encode()

    with client_of(tmp_path) as client:
        described = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        aside = {"/healthz", "/readyz", "/metrics", "/ImportSample"}  # the last has files: above
        for found in described.get_all_operations():
            operation = found.ok()
            if operation.path in aside:
                continue

            @settings(max_examples=8, deadline=None, derandomize=True)
            @given(case=operation.as_strategy())
            def try_it(case):
                sent = case.as_transport_kwargs(base_url="http://127.0.0.1:5000")
                sent.pop("cookies", None)
                if isinstance(sent.get("data"), bytes | str):
                    sent["content"] = sent.pop("data")
                reply = client.request(**sent)
                assert reply.status_code != 500, (sent, reply.text)

            try_it()


@pytest.mark.parametrize("detector", ["htm", "tile"])
def test_what_the_swarm_wrote_is_settings_of_a_stream(detector):
    frame = pd.DataFrame({"value": [0.0, 1.0, 3.0, 2.0] * 100})
    labels = [0] * 200 + [0, 0, 0, 1] * 50
    grid = {"deviation_scale": [2.0, 3.0]}
    found = swarm(frame, labels, detector=detector, grid=grid, random_state=5)
    held = build(asdict(StreamSettings.read(json.loads(json.dumps(found)))))
    assert {name: getattr(held, name) for name in found["parameters"]} == found["parameters"]


def test_streams_without_a_seed_are_refused():
    with pytest.raises(RequestError, match="random_state must be a whole number"):
        StreamSettings.read({"detector": "tiles", "parameters": {"random_state": None}})
