"""Anomalies, samples, training, results: on SQLite, PostgreSQL and MariaDB alike."""

from __future__ import annotations

import fcntl
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from anomaly.errors import ParameterError
from anomaly.kpi_families import inject_windows, make_windows
from production.api_kpi import EXAMPLE
from production.lanes import Batch, Lanes
from production.settings import Settings
from production.store import Store
from production.streams import StreamSettings
from tests.test_service import batch, client_of, lines

URLS = {
    "sqlite": "",
    "postgresql": os.environ.get(
        "ANOMALY_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/test"
    ),
    "mariadb": os.environ.get("ANOMALY_TEST_MARIADB", "mariadb://root@127.0.0.1:3306/test"),
}
TABLES = ("results", "promotions", "tasks", "samples", "anomalies", "anomaly_schema")
WINDOW = 20


def empty(url: str) -> None:
    engine = Store(url).engine
    with engine.begin() as connection:
        for table in TABLES:
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
    engine.dispose()


@pytest.fixture(params=list(URLS))
def url(request, tmp_path):
    """A fresh database; real servers are skipped where there are none."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/store.sqlite"
        return
    lock = Path(tempfile.gettempdir()) / f"anomaly-test-{request.param}.lock"
    with lock.open("w") as turn:  # workers of one run take turns
        fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            empty(URLS[request.param])
        except ParameterError as error:
            pytest.skip(f"no {request.param} server: {error}")
        yield URLS[request.param]
        empty(URLS[request.param])


@pytest.fixture
def client(url, tmp_path):
    with client_of(tmp_path, database=url) as found:
        yield found


def samples_csv(n: int, seed: int = 0) -> bytes:
    """Half normal windows, half with something injected, as the interface takes them."""
    X, _ = make_windows(2 * n, WINDOW, random_state=seed)
    odd = inject_windows(X[:n], WINDOW, random_state=seed)[0][: n // 2]
    text = io.StringIO()
    rows = [(x, "positive") for x in X[n + n // 2 :]] + [(x, "negative") for x in odd]
    pd.DataFrame(
        [
            {
                "view_name": "登陆功能",
                "view_id": "2012",
                "attr_name": f"metric {i % 3}",
                "attr_id": str(i % 3),
                "source": "imported" if i % 2 else "lab",
                "train_or_test": "train",
                "positive_or_negative": label,
                "window": WINDOW,
                "data_c": ",".join(f"{v:.6g}" for v in x[: 2 * WINDOW + 1]),
                "data_b": ",".join(f"{v:.6g}" for v in x[2 * WINDOW + 1 : 4 * WINDOW + 2]),
                "data_a": ",".join(f"{v:.6g}" for v in x[4 * WINDOW + 2 :]),
                "data_time": 1_530_000_000 + i,
            }
            for i, (x, label) in enumerate(rows)
        ]
    ).to_csv(text, index=False)
    return text.getvalue().encode()


def upload(client, content: bytes):
    return client.post("/ImportSample", files={"sample_file": ("samples.csv", content)}).json()


def ask(client, path: str, **form):
    reply = client.post(path, json=form)
    assert reply.status_code == 200, reply.text
    return reply.json()


def finished(client, task_id: str) -> dict:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        [task] = ask(client, "/QueryTrain", taskId=task_id)["data"]["taskList"]
        if task["status"] in ("done", "failed"):
            return task
        time.sleep(0.2)
    raise AssertionError(task)


def test_anomalies_are_stored_searched_and_marked(client):
    for i in range(3):
        asked = {**EXAMPLE, "attrId": f"a{i}", "attrName": f"名 {i}"}
        assert client.post("/PredictValue", json=asked).json()["data"]["ret"] == 0
    found = ask(client, "/SearchAnomaly", requestPage=1, itemPerPage=2)["data"]
    assert (found["totalCount"], len(found["anomalyList"])) == (3, 2)
    [one] = ask(client, "/SearchAnomaly", attrId="名 1")["data"]["anomalyList"]
    assert one["dataA"][-1] == "458"
    assert float(one["p"]) < 0.15
    number = one["id"]
    assert ask(client, "/SearchAnomaly", id=number)["data"]["totalCount"] == 1
    assert ask(client, "/SearchAnomaly", beginTime=one["time"] + 1)["data"]["totalCount"] == 0
    assert ask(client, "/UpdateAnomaly", id=number, markFlag=2)["code"] == 0
    [sample] = ask(client, "/QuerySample")["data"]["sampleList"]
    assert (sample["positiveOrNegative"], sample["window"]) == ("negative", 10)
    ask(client, "/UpdateAnomaly", id=number, markFlag=1)
    [sample] = ask(client, "/QuerySample")["data"]["sampleList"]
    assert sample["positiveOrNegative"] == "positive"
    ask(client, "/UpdateAnomaly", id=number, markFlag=0)
    assert ask(client, "/QuerySample")["data"]["sampleList"] == []
    assert ask(client, "/UpdateAnomaly", id=10**6, markFlag=1)["code"] == 1002


def test_samples_are_imported_queried_changed_counted_and_downloaded(client):
    assert upload(client, samples_csv(20))["data"]["totalCount"] == 20
    found = ask(client, "/QuerySample", source="lab", requestPage=1, itemPerPage=100)["data"]
    assert found["totalCount"] == 10
    assert found["sampleList"][0]["viewName"] == "登陆功能"
    numbers = [sample["id"] for sample in found["sampleList"]]
    changed = ask(
        client, "/UpdateSample", idList=numbers[:2], data={"source": "new", "viewId": ""}
    )
    assert changed["data"]["count"] == 2
    assert ask(client, "/QueryTrainSource")["data"]["source"] == ["imported", "lab", "new"]
    [count] = ask(client, "/CountSample", positiveOrNegative="positive")["data"]["count"]
    assert count == {"total_count": 10, "positive_count": 10, "negative_count": 0}
    content = client.get(f"/DownloadSample?id={numbers[0]},{numbers[1]}").content
    assert upload(client, content)["data"]["totalCount"] == 2
    assert ask(client, "/DeleteSample", id=numbers[0])["data"]["count"] == 1
    assert ask(client, "/QuerySample")["data"]["totalCount"] == 21


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "no sample"),
        (b"a,b\n1,2\n", "line 2: 2 cells"),
        (b"\xff\xfe", "not UTF-8"),
        (samples_csv(2).replace(b"negative", b"neither"), "positive_or_negative must be"),
        (samples_csv(2).replace(b",20,", b",21,"), "data_c must hold 43 numbers"),
        (samples_csv(2).replace(b"train", b"tr\0in", 2), "line"),
    ],
)
def test_faulty_upload_is_1003_and_names_the_line(tmp_path, content, named):
    with client_of(tmp_path) as client:
        found = upload(client, content)
        assert found["code"] == 1003
        assert named in found["msg"]


def test_training_promotion_and_roll_back(client):
    upload(client, samples_csv(40))
    first = ask(client, "/Train", trainOrTest=["train"])["data"]["taskId"]
    task = finished(client, first)
    assert (task["status"], task["progress"]) == ("done", 1.0), task
    asked = {**EXAMPLE, "window": WINDOW}
    X, _ = make_windows(1, WINDOW, random_state=3)
    for name, part in zip(
        ("dataC", "dataB", "dataA"), np.split(X[0], [2 * WINDOW + 1, 4 * WINDOW + 2]), strict=True
    ):
        asked[name] = ",".join(f"{v:.6g}" for v in part)
    shipped = client.post("/PredictValue", json=asked).json()["data"]["p"]
    own = client.post("/PredictValue", json={**asked, "taskId": first}).json()["data"]["p"]
    assert own != shipped

    def all_use() -> str:
        return client.post("/PredictValue", json=asked).json()["data"]["p"]

    assert client.post("/v1/promotion", json={"taskId": first}).json()["taskId"] == first
    assert all_use() == own
    assert ask(client, "/DeleteTrain", taskId=first)["code"] == 1002
    assert client.post("/v1/promotion", json={"rollback": True}).json()["taskId"] == ""
    assert all_use() == shipped
    again = client.post("/v1/promotion", json={"rollback": True})
    assert again.status_code == 409
    assert client.post("/v1/promotion", json={"taskId": "../x"}).status_code == 422
    assert client.post("/v1/promotion", json={"taskId": "77"}).status_code == 422
    assert ask(client, "/DeleteTrain", taskId=first)["code"] == 0
    assert client.post("/PredictValue", json={**asked, "taskId": first}).json()["code"] == 1002


def test_training_needs_samples_of_both_classes(tmp_path):
    with client_of(tmp_path) as client:
        assert ask(client, "/Train")["code"] == 2004
        upload(client, samples_csv(40))
        one_class = ask(client, "/Train", positiveOrNegative="positive")
        assert one_class["code"] == 2004
        assert "both classes" in one_class["msg"]


def test_results_of_streams_arrive_and_read_back_with_pandas(client, url):
    values = [float(i % 5) for i in range(300)] + [99.0]
    client.put("/v1/streams/r", json={"detector": "tiles", "parameters": {"learning_period": 50}})
    said = lines(client.post("/v1/streams/r/records", content=batch(values)))
    client.post("/v1/streams/m/records", content='{"timestamp": 5, "values": {"a": 1, "b": null}}')
    client.app.state.exporter.carry()
    store = client.app.state.store
    frame = pd.read_sql("SELECT * FROM results WHERE stream = 'r' ORDER BY seq", store.engine)
    assert frame["value"].tolist() == values
    assert frame["score"].tolist() == [a["score"] for a in said]
    assert frame["is_anomaly"].astype(bool).tolist() == [a["is_anomaly"] for a in said]
    many = pd.read_sql("SELECT fields FROM results WHERE stream = 'm'", store.engine)
    assert json.loads(many["fields"][0])["values"] == {"a": 1.0, "b": None}
    odd = ask(client, "/SearchAnomaly", kind="stream", itemPerPage=500)["data"]
    assert odd["totalCount"] == sum(a["is_anomaly"] for a in said) > 0
    assert odd["anomalyList"][0]["explanation"].startswith("value is 99")
    store.retain(None, 10)
    assert len(pd.read_sql("SELECT seq FROM results", store.engine)) <= 10
    client.delete("/v1/streams/r")
    assert ask(client, "/SearchAnomaly", kind="stream")["data"]["totalCount"] == 0


def test_results_stored_before_a_crash_and_not_noted_are_stored_once(url, tmp_path):
    from production.exporter import Exporter

    store, lanes = Store(url), Lanes(tmp_path / "state")
    settings = StreamSettings(detector="tiles", parameters={"learning_period": 5})
    given = [(float(i), {"value": 99.0 if i == 180 else float(i % 5)}) for i in range(200)]
    lanes.take(Batch("single", "a", given, settings=settings)).result(30)
    exporter = Exporter(lanes, store)
    assert exporter.carry() == 200
    lane = lanes.of("single", "a")
    lane.submit(lambda: lane.journal.execute("DELETE FROM meta")).result(30)
    assert exporter.carry() == 200
    with store.transaction() as connection:
        for table in ("results", "anomalies"):
            rows = store.tables[table]
            n = connection.execute(sa.select(sa.func.count()).select_from(rows)).scalar_one()
            assert n == (200 if table == "results" else n)
        keys = sa.select(store.tables["anomalies"].c.seq)
        found = connection.execute(keys).scalars().all()
        assert len(found) == len(set(found)) > 0
    lanes.stop()
    store.close()


def test_gone_database_is_a_clear_error_and_comes_back_without_restart(tmp_path):
    """The tables are taken away and put back: every statement fails meanwhile."""
    with client_of(tmp_path) as client:
        base = tmp_path / "service.sqlite"
        store = client.app.state.store
        renames = [("anomalies", "gone_a"), ("results", "gone_r")]
        with store.engine.begin() as connection:
            for name, away in renames:
                connection.execute(sa.text(f"ALTER TABLE {name} RENAME TO {away}"))
        reply = client.post("/PredictValue", json=EXAMPLE)
        assert reply.status_code == 503
        assert reply.json()["code"] == 1001
        assert "Retry-After" in reply.headers
        said = lines(client.post("/v1/streams/a/records", content=batch([1.0, 2.0])))
        assert [a["status"] for a in said] == ["scored", "scored"]
        with pytest.raises(sa.exc.SQLAlchemyError):
            client.app.state.exporter.carry()
        with store.engine.begin() as connection:
            for name, away in renames:
                connection.execute(sa.text(f"ALTER TABLE {away} RENAME TO {name}"))
        assert client.post("/PredictValue", json=EXAMPLE).json()["code"] == 0
        client.app.state.exporter.carry()
        assert len(pd.read_sql("SELECT * FROM results", store.engine)) == 2
        assert base.exists()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_connections_cut_by_the_server_are_made_anew(url, tmp_path):
    with client_of(tmp_path, database=url) as client:
        assert client.post("/PredictValue", json=EXAMPLE).json()["code"] == 0
        other = Store(url)
        with other.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        other.close()
        assert client.post("/PredictValue", json=EXAMPLE).json()["code"] == 0
        assert ask(client, "/SearchAnomaly")["data"]["totalCount"] == 2


def test_unreachable_database_is_named_at_the_start(tmp_path):
    for url in ("postgresql://nobody@127.0.0.1:1/x", "no url", "oracle://x", "mysql+nope://x"):
        with pytest.raises(ParameterError, match="--database"):
            Store(url)
    assert Settings().database.startswith("sqlite:///")


def test_unfinished_training_goes_on_after_a_restart(tmp_path):
    with client_of(tmp_path) as client:
        upload(client, samples_csv(40))
        client.app.state.trainer.stop()
        task_id = ask(client, "/Train")["data"]["taskId"]
    with client_of(tmp_path) as client:
        assert finished(client, task_id)["status"] == "done"
