"""The MQTT runner: its core alone, and with a real Mosquitto that restarts and dies."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly import bearing, lorenz
from anomaly.broker import parse
from anomaly.errors import DataError, ParameterError
from anomaly.lorenz import simulate
from anomaly.vibration import VibrationDetector
from production.devices import REMEMBERED, Device, Plan, parse_samples
from production.mqtt import (
    Inbox,
    Item,
    Route,
    Runner,
    Settings,
    Watch,
    iot_2,
    levels,
    main,
    metrics_text,
    read_settings,
)
from production.mqtt_journal import Journal, Record, StateError
from production.results import Results, draw

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 100


@pytest.fixture(scope="module")
def recording():
    """30 s healthy, 10 s broken."""
    schedule = lambda number: 0.0 if number < 3500 else 1.0  # noqa: E731
    return simulate(4500, schedule, noise=0.02, random_state=1)[500:]


@pytest.fixture(scope="module")
def detector():
    return VibrationDetector().fit(simulate(3500, noise=0.02, random_state=0)[500:])


@pytest.fixture(scope="module")
def detector_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    lorenz.main(["--seconds", "30", "--csv", str(folder / "healthy.csv")])
    assert bearing.main([str(folder / "healthy.csv"), str(folder / "bearing.clf")]) == 0
    return folder / "bearing.clf"


def fed(device: Device, signal_: np.ndarray, chunk: int) -> list[dict]:
    return [
        answer
        for start in range(0, len(signal_), chunk)
        for answer in device.feed(signal_[start : start + chunk])
    ]


# -- messages -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "expected", "marked"),
    [
        ('{"x": 1, "y": 2}', [[1, 2]], False),
        ('{"d": {"x": 1.5, "y": 2}, "ts": "now"}', [[1.5, 2]], True),
        ('{"x": [1, 3], "y": [2, 4], "seq": 9}', [[1, 2], [3, 4]], True),
        ('[{"x": 1, "y": 2}, {"x": 3, "y": 4}]', [[1, 2], [3, 4]], False),
        ('{"d": [{"x": 1, "y": 2, "more": null}]}', [[1, 2]], False),
    ],
)
def test_messages_of_every_shape_are_read(message, expected, marked):
    samples, was_marked = parse_samples(message.encode(), ["x", "y"])
    assert samples.tolist() == expected
    assert was_marked == marked


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "at least one sample"),
        (b"3", "an object of fields is needed, got int"),
        (b'{"x": 1}', "field 'y' is missing; fields that came: 'x'"),
        (b'{"x": 1, "y": "2"}', "'y' must be finite numbers, got '2'"),
        (b'{"x": 1, "y": true}', "'y' must be finite numbers, got True"),
        (b'{"x": 1, "y": NaN}', "'y' must be finite numbers, got nan"),
        (b'{"x": [1, 2], "y": [1]}', "equally many values, one at least, got 2, 1"),
        (b'{"x": [], "y": []}', "equally many values"),
        (b'{"x": 1' + b"0" * 400 + b', "y": 1}', "'x' must be finite numbers"),
        (b" " * (1 << 20) + b"{}", "at most 1048576 bytes"),
    ],
)
def test_a_message_that_is_not_samples_is_refused_in_one_sentence(message, text):
    with pytest.raises(DataError) as caught:
        parse_samples(message, ["x", "y"])
    assert text in str(caught.value)


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_samples_or_refused(payload):
    with contextlib.suppress(DataError):
        parse_samples(payload, ["x"])


# -- devices ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 100, 250, 4000])
def test_answers_do_not_depend_on_how_samples_are_packed(chunk, detector, recording):
    device = Device.start("a", Plan(window=WINDOW), detector, fitted=True)
    answers = fed(device, recording, chunk)
    windows = [answer for answer in answers if answer["event"] == "window"]
    expected = detector.decision_function(recording.reshape(-1, WINDOW, 3))
    np.testing.assert_allclose([w["score"] for w in windows], expected, rtol=1e-9)
    assert [w["sequence"] for w in windows] == list(range(1, 41))
    assert [w["anomaly"] for w in windows] == [False] * 30 + [True] * 10
    alarm = next(answer for answer in answers if answer["event"] == "alarm")
    assert 3000 <= alarm["sample"] < 3020


def test_alarms_do_not_depend_on_how_samples_are_packed(detector, recording):
    glitched = recording[:1500].copy()
    glitched[[450, 1020], 1] = 1e6
    told = [
        fed(Device.start("a", Plan(window=WINDOW), detector, fitted=True), glitched, chunk)
        for chunk in (1, 70, 1500)
    ]
    for answers in told:
        assert [a["sample"] for a in answers if a["event"] == "alarm"] == [450, 1020]
        assert [a["event"] for a in answers] == [a["event"] for a in told[0]]


@pytest.mark.parametrize("at", [300, 350, 399])
def test_a_glitch_alarms_once(at, detector, recording):
    glitched = recording[:1500].copy()
    glitched[at] = 1e6
    device = Device.start("a", Plan(window=WINDOW), detector, fitted=True)
    answers = fed(device, glitched, 10)
    assert [a["sample"] for a in answers if a["event"] == "alarm"] == [at]
    assert [a["anomaly"] for a in answers if a["event"] == "window"] == [
        number == 3 for number in range(15)
    ]
    assert device.status()["state"] == "healthy"


def test_an_alarm_lasts_while_the_stream_is_loud_after_its_window(detector, recording):
    slow = copy.deepcopy(detector).set_params(smoothing=0.001)
    device = Device.start("a", Plan(window=WINDOW), slow, fitted=True)
    glitched = recording[:1000].copy()
    glitched[399] = 1e6
    answers = fed(device, glitched[:600], 10)
    assert [a["sample"] for a in answers if a["event"] == "alarm"] == [399]
    assert [a["anomaly"] for a in answers if a["event"] == "window"][3:] == [True, False, False]
    assert device.status()["state"] == "alarm"


def test_sliding_windows_start_a_hop_apart(detector, recording):
    device = Device.start("a", Plan(window=300, hop=50, stream=False), detector, fitted=True)
    windows = fed(device, recording[:1000], 33)
    assert [w["first_sample"] for w in windows] == list(range(0, 701, 50))
    assert all(w["last_sample"] - w["first_sample"] == 299 for w in windows)


def test_first_windows_are_learnt_and_said_so(recording):
    device = Device.start("a", Plan(window=1000, learn=2), VibrationDetector(), fitted=False)
    assert device.status()["state"] == "learning"
    answers = fed(device, recording, 300)
    assert answers[0] == {"event": "learnt", "device": "a", "samples": 2000}
    windows = [answer for answer in answers if answer["event"] == "window"]
    assert [w["first_sample"] for w in windows] == [2000, 3000]
    assert [w["anomaly"] for w in windows] == [False, True]
    alone = VibrationDetector().fit(recording[:2000])
    np.testing.assert_array_equal(device.detector.coefficients_, alone.coefficients_)


def test_a_fault_freezes_continuous_learning_until_reset(detector, recording):
    class Learning(VibrationDetector):
        def learn_window(self, window):
            self.__dict__.setdefault("taken", []).append(window)
            return [0.1]

    learning = Learning().fit(simulate(3500, noise=0.02, random_state=0)[500:])
    device = Device.start("a", Plan(window=500, continuous=True), learning, fitted=True)
    answers = [a for a in fed(device, recording, 100) if a["event"] == "window"]
    assert [len(a["loss"]) for a in answers] == [1] * 6 + [0, 0]
    assert device.status() | {"frozen": True, "state": "alarm"} == device.status()
    fed(device, recording[:500], 100)
    assert device.frozen
    device.reset()
    (answer,) = [a for a in fed(device, recording[500:1000], 100) if a["event"] == "window"]
    assert answer["loss"] == [0.1]


def test_only_marked_or_redelivered_messages_are_duplicates(detector):
    device = Device.start("a", Plan(), detector, fitted=True)
    assert not device.is_duplicate(b"rest", False, 1, False)
    assert not device.is_duplicate(b"rest", False, 2, False)
    assert not device.is_duplicate(b"rest", False, 3, True)
    assert device.is_duplicate(b"rest", False, 2, True)
    assert not device.is_duplicate(b"marked", True, 4, False)
    assert device.is_duplicate(b"marked", True, 5, False)
    assert device.status()["duplicates"] == 2
    for i in range(REMEMBERED + 10):
        device.is_duplicate(b"%d" % i, True, 0, False)
    assert len(device._seen) == REMEMBERED


def test_memory_is_flat_over_a_compressed_hour(detector):
    import pickle

    device = Device.start("a", Plan(window=3000), detector, fitted=True)
    minute = simulate(6000, noise=0.02, random_state=3)
    sizes = []
    for number in range(60):
        for start in range(0, 6000, 100):
            device.is_duplicate(b"%d %d" % (number, start), True, 0, False)
            device.feed(minute[start : start + 100])
        sizes.append(len(pickle.dumps(device)))
    assert device.received == 360_000
    # All that grows is the history of scores, 1,000 at most, and the duplicates remembered.
    assert sizes[-1] - sizes[-10] < 200 * 10 + 4 * 60 * 60 * 10
    assert sizes[-1] < 300_000


# -- routes and settings ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("a/+/c", "a/b/c", ["b"]),
        ("a/+/c", "a/b/d", None),
        ("a/#", "a/b/c", ["b", "c"]),
        ("a/b", "a/b", []),
        ("a/b", "a/b/c", None),
        ("a/+", "a", None),
    ],
)
def test_topic_filters_match_like_the_brokers(pattern, topic, expected):
    assert levels(pattern, topic) == expected


def test_answers_within_the_subscription_are_refused():
    with pytest.raises(ParameterError, match="the runner would hear its own answers"):
        Route(subscribe="plant/#", publish="plant/{device}/anomaly")
    with pytest.raises(ParameterError, match="may stand in braces"):
        Route(subscribe="a/+", publish="b/{name}")


def test_the_iot_2_preset_uses_the_original_topics(detector_file, recording):
    plan = Plan(window=WINDOW)
    route = Route(**{**vars(iot_2()), "plan": plan, "detector": str(detector_file)})
    watch = Watch([route])
    topic = "iot-2/type/0.16.2/id/lorenz/evt/osc/fmt/json"
    sent = []
    for x, y, z in recording[2900:3100].tolist():
        message = json.dumps({"x": x, "y": y, "z": z}).encode()
        sent += watch.apply(Record(topic, message))
    topics = {message.topic for message in sent}
    assert "iot-2/type/0.16.2/id/lorenz/evt/status/fmt/json" in topics
    assert "iot-2/type/0.16.2/id/lorenz/evt/alert/fmt/json" in topics
    assert watch.devices["0.16.2/lorenz"].alarm
    (state,) = watch.apply(Record("iot-2/type/0.16.2/id/lorenz/cmd/to_healthy/fmt/json", b""))
    assert state.message["state"] == "healthy"
    assert state.retain


def test_a_toml_file_describes_many_devices(tmp_path, detector_file):
    (tmp_path / "runner.toml").write_text(
        f"""
        [broker]
        url = "mqtt://broker.example:1884"
        version = "5"
        [runner]
        client_id = "hall-3"
        when_full = "drop"
        [[watch]]
        subscribe = "hall-3/+/vibration"
        publish = "hall-3/{{device}}/anomaly"
        detector = "{detector_file}"
        window = 500
        [[watch]]
        preset = "iot-2"
        fields = ["a", "b"]
        learn = 3
        """
    )
    settings_ = read_settings(tmp_path / "runner.toml")
    assert (settings_.broker.host, settings_.broker.port) == ("broker.example", 1884)
    assert settings_.routes[0].plan.window == 500
    assert settings_.routes[1].plan == Plan(fields=("a", "b"), learn=3)
    assert len(Watch(settings_.routes).routes) == 2


def test_the_file_for_deployment_is_read():
    settings_ = read_settings(ROOT / "docs" / "deploy" / "anomaly-mqtt.toml")
    assert [route.plan.window for route in settings_.routes] == [500, 3000]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[[watch]]\nsubscibe = 'a'", "unknown key 'subscibe'"),
        ("[[watch]]\nsubscibe = 'a'", "did you mean 'subscribe'?"),
        ("[[watch]]\nwindow = 3", "subscribe is missing"),
        ("[broker]\nurl = 'mqtt://x'", "at least one [[watch]] is needed"),
        ("[[watch", "not TOML"),
        ("[[watch]]\npreset = 'aws'", "preset must be 'iot-2', got 'aws'"),
        ("[broker]\nurl='http://x'\n[[watch]]\nsubscribe='a'", "a URL like mqtt://"),
        ("[runner]\nwhen_full='block'\n[[watch]]\nsubscribe='a'", "must be hold or drop"),
        ("[[watch]]\nsubscribe='a'\nwindow=5\nhop=6", "hop 1 to window"),
        ("[[watch]]\nsubscribe='a'\nwindow='x'", "window must be a whole number, got 'x'"),
        ("[[watch]]\nsubscribe='a'\nwindow=true", "window must be a whole number, got True"),
        ("[[watch]]\nsubscribe='a'\nfields='xyz'", "fields must be a list of strings"),
        ("[[watch]]\nsubscribe=3", "subscribe must be a string, got 3"),
        ("[[watch]]\nsubscribe='a+/b'", "subscribe: a topic filter is needed"),
        ("[[watch]]\nsubscribe='a/#/b'", "subscribe: a topic filter is needed"),
        ("[[watch]]\nsubscribe=''", "subscribe: a topic filter is needed"),
        ("[[watch]]\nsubscribe='a'\nreset='b/#c'", "reset: a topic filter is needed"),
        ("[[watch]]\nsubscribe='a/+'\npublish='b/{1}'", "one of {0}, {1}, … for each +"),
        ("[[watch]]\nsubscribe='a/+'\npublish='b/#'", "a topic without + and # is needed"),
        ("watch = 3", "watch must be tables [[watch]], got 3"),
        ("broker = 3", "a table of keys is needed, got 3"),
        ("watch = [3]", "a table of keys is needed, got 3"),
        ("[broker]\nurl = 3\n[[watch]]\nsubscribe='a'", "url must be a string, got 3"),
        ("[runner]\ninbox = '9'\n[[watch]]\nsubscribe='a'", "inbox must be a whole number"),
        ("[runner]\nmetrics_port=70000\n[[watch]]\nsubscribe='a'", "0 to 65535, got 70000"),
        ("[runner]\nsync = 1\n[[watch]]\nsubscribe='a'", "sync must be true or false"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, error):
    (tmp_path / "runner.toml").write_text(text)
    with pytest.raises(ParameterError) as caught:
        read_settings(tmp_path / "runner.toml")
    assert error in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "runner.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ParameterError, match="not TOML"):
        read_settings(tmp_path / "runner.toml")


def test_files_that_cannot_be_opened_are_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    for option, path, error in (
        ("--store", tmp_path / "none" / "a.db", "unable to open"),
        ("--state", tmp_path / "file", "a folder is needed"),
        ("--health", tmp_path / "none" / "a.json", "No such file or directory"),
    ):
        assert main(["--subscribe", "a/+", option, str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line
        assert error in line


def test_a_taken_port_of_the_metrics_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        runner = Runner(Settings(parse("mqtt://localhost"), (Route("a/+"),), metrics_port=port))
        with pytest.raises(ParameterError, match=f"metrics_port: {port} cannot be opened"):
            runner.run()


def test_a_window_shorter_than_the_detectors_is_refused(detector_file):
    for detector in (None, str(detector_file)):
        with pytest.raises(ParameterError, match=r"judges 100 samples at once.* got 99"):
            Watch([Route("a/+", detector=detector, plan=Plan(window=99))])


def test_learning_from_too_little_is_refused():
    with pytest.raises(ParameterError, match=r"learn=3 windows of 300; learn=4 is enough"):
        Watch([Route("a/+", plan=Plan(window=300, learn=3))])
    assert Watch([Route("a/+", plan=Plan(window=300, learn=4))]).devices == {}


def test_the_command_line_reports_mistakes_without_a_traceback(tmp_path, capsys):
    assert main(["--subscribe", "a/+", "--detector", str(tmp_path / "none.clf")]) == 2
    assert main([]) == 2
    assert main(["--config", str(tmp_path / "none.toml")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert all(line.startswith("python -m production.mqtt: error: ") for line in errors)
    assert len(errors) == 3


def test_secrets_come_from_the_environment_only():
    broker = parse("mqtts://b", environment={"MQTT_USERNAME": "u", "MQTT_PASSWORD": "hush"})
    assert (broker.port, broker.tls, broker.password) == (8883, True, "hush")
    assert "hush" not in repr(broker)
    with pytest.raises(ParameterError, match="set MQTT_USERNAME and MQTT_PASSWORD"):
        parse("mqtt://u:p@b")


def test_metrics_name_counters_and_gauges():
    text = metrics_text({"messages": 3, "inbox": 1})
    assert "anomaly_mqtt_messages_total 3\n" in text
    assert "# TYPE anomaly_mqtt_inbox gauge\n" in text


# -- inbox, journal, results --------------------------------------------------------------


def recovered(folder: Path) -> tuple:
    with contextlib.closing(Journal(folder)) as journal:
        return journal.recover()


def item(i: int) -> Item:
    return Item(Record("t", b"%d" % i, i), 1, 1)


def test_a_full_inbox_drops_the_oldest_and_counts_it():
    inbox = Inbox(3, "drop")
    lost = [inbox.put(item(i)) for i in range(5)]
    assert [x.record.mid for x in lost if x] == [0, 1]
    assert [x.record.mid for x in inbox.take(0)] == [2, 3, 4]
    assert inbox.dropped == 2


def test_a_full_inbox_that_holds_takes_nothing_until_the_connection_is_renewed():
    inbox = Inbox(2, "hold")
    assert [inbox.put(item(i)) for i in range(4)] == [None] * 4
    assert [x.record.mid for x in inbox.take(0)] == [0, 1]
    inbox.put(item(4))
    assert inbox.take(0) == []  # 2 and 3 come first
    inbox.renew()
    inbox.put(item(2))
    assert [x.record.mid for x in inbox.take(0)] == [2]
    assert inbox.held == 3


def test_a_journal_gives_back_what_was_appended_since_the_snapshot(tmp_path):
    journal = Journal(tmp_path / "state")
    assert journal.recover() == (None, [])
    records = [Record("a/ü", b"\x00" * i, i, i % 2 == 1) for i in range(5)]
    journal.append(records[:2])
    journal.snapshot({"taken": 2})
    journal.append(records[2:])
    journal.close()
    again = Journal(tmp_path / "state", sync=True)
    assert again.recover() == ({"taken": 2}, records[2:])
    again.append(records[:1])
    again.close()
    assert recovered(tmp_path / "state")[1] == [*records[2:], records[0]]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_journal_gives_back_all_whole_records(tmp_path, cut):
    journal = Journal(tmp_path / "state")
    journal.recover()
    records = [Record("topic", b"payload-%d" % i, i) for i in range(3)]
    journal.append(records)
    journal.close()
    path = tmp_path / "state" / "journal-1"
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    size = len(data) // 3
    assert recovered(tmp_path / "state")[1] == records[: (len(data) - cut) // size]


def test_a_damaged_snapshot_is_refused_and_not_unpickled(tmp_path):
    journal = Journal(tmp_path / "state")
    journal.recover()
    journal.snapshot([1, 2, 3])
    journal.close()
    path = tmp_path / "state" / "snapshot"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(StateError, match="damaged"):
        recovered(tmp_path / "state")
    path.write_bytes(b"short")
    with pytest.raises(StateError, match="not a snapshot"):
        recovered(tmp_path / "state")


def test_a_state_folder_open_to_others_is_refused(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(StateError, match="writable by no other"):
        Journal(tmp_path / "state")


def test_a_second_runner_in_a_state_folder_is_refused(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(StateError, match="another runner works in it"):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_a_full_disk_is_named_and_what_was_taken_stays(tmp_path):
    journal = Journal(tmp_path)
    journal.recover()
    records = [Record("topic", b"payload-%d" % i, i) for i in range(3)]
    journal.append(records)
    with journal._file, open("/dev/full", "ab", buffering=0) as full:
        journal._file = full
        with pytest.raises(StateError, match="cannot be written: No space left on device"):
            journal.append(records)
    journal.close()
    assert recovered(tmp_path)[1] == records


def test_results_are_one_row_per_window_however_often_written(tmp_path, detector, recording):
    answers = fed(Device.start("a", Plan(window=WINDOW), detector, True), recording, 100)
    results = Results(tmp_path / "r.db")
    results.write(answers)
    results.write(answers)
    rows = results._connection.execute("select device, sequence, anomaly from vibration")
    assert rows.fetchall() == [("a", i, int(i > 30)) for i in range(1, 41)]
    results.close()


def test_a_picture_is_drawn_inside_its_folder_whatever_the_device_is_called(
    tmp_path, detector, recording
):
    device = Device.start("../../x", Plan(window=WINDOW), detector, fitted=True)
    assert draw(device, tmp_path) is None
    fed(device, recording, 500)
    path = draw(device, tmp_path)
    assert path.parent == tmp_path
    assert path.read_bytes().startswith(b"\x89PNG")


# -- with a broker ---------------------------------------------------------------------------


class Mosquitto:
    """A broker of our own on a free port."""

    def __init__(self, folder: Path, security: str = "allow_anonymous true\n") -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\n{security}max_queued_messages 0\n"
            "max_inflight_messages 100\n"
            f"persistence true\npersistence_location {folder}/\nautosave_on_changes true\n"
            "autosave_interval 1\n" + ("user root\n" if os.getuid() == 0 else "")
        )
        self.process = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        binary = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [binary, "-c", str(self.folder / "mosquitto.conf")], stdout=log, stderr=log
            )
        wait_for(self._answers, "Mosquitto answers")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, how: int = signal.SIGTERM) -> None:
        self.process.send_signal(how)
        self.process.wait(20)


def wait_for(condition, what: str, timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, f"waited {timeout_s:.0f} s in vain: {what}"
        time.sleep(0.02)


@pytest.fixture
def broker(tmp_path):
    if not (shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")):
        pytest.skip("mosquitto is absent: install the system package of this name")
    folder = tmp_path / "mosquitto"
    folder.mkdir()
    mosquitto = Mosquitto(folder)
    mosquitto.start()
    yield mosquitto
    mosquitto.stop(signal.SIGKILL)


class Listener:
    """Hears everything the runner says, through restarts too."""

    def __init__(self, mosquitto: Mosquitto, topic: str = "plant/+/anomaly/#") -> None:
        self.heard: list[tuple[str, dict]] = []
        broker_ = parse(mosquitto.url)
        self.client = broker_.client("listener", persistent=True)
        self.client.on_connect = lambda client, *_: client.subscribe(
            [(topic, 1), ("anomaly/#", 1)]
        )
        self.client.on_message = self._hear
        subscribed = threading.Event()
        self.client.on_subscribe = lambda *_: subscribed.set()
        broker_.connect(self.client, persistent=True)
        self.client.loop_start()
        wait_for(subscribed.is_set, "the listener subscribes")

    def _hear(self, _client, _data, message) -> None:
        text = message.payload.decode()
        self.heard.append((message.topic, json.loads(text) if text[:1] == "{" else text))

    def windows(self) -> dict[int, dict]:
        return {
            m["sequence"]: m
            for _, m in self.heard
            if isinstance(m, dict) and m.get("event") == "window"
        }

    def runner_says(self, word: str) -> bool:
        return ("anomaly/anomaly/runner", word) in self.heard

    def stop(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def listener(broker):
    heard = Listener(broker)
    yield heard
    heard.stop()


class Sender(threading.Thread):
    """A device that sends 10 samples per message, ten times its real speed."""

    def __init__(self, mosquitto: Mosquitto, samples: np.ndarray, pause_s: float = 0.01) -> None:
        super().__init__(daemon=True)
        self.samples, self.pause_s = samples, pause_s
        broker_ = parse(mosquitto.url)
        self.client = broker_.client("device", persistent=True)
        broker_.connect(self.client, persistent=True)
        self.delivered = 0
        self.client.on_publish = self._count
        self.client.loop_start()
        wait_for(self.client.is_connected, "the device connects")

    def _count(self, *_) -> None:
        self.delivered += 1

    def run(self) -> None:
        for start in range(0, len(self.samples), 10):
            while not self.client.is_connected():  # a client that returns sends its queue late
                time.sleep(0.3)
            message = lorenz.payload(self.samples[start : start + 10], start)
            self.client.publish("plant/p1/vibration", message, qos=1)
            time.sleep(self.pause_s)

    def finish(self) -> None:
        self.join()
        wait_for(lambda: self.delivered == len(self.samples) // 10, "all is delivered")
        self.client.disconnect()
        self.client.loop_stop()


def route(detector_file: Path, **plan) -> Route:
    return Route(
        subscribe="plant/+/vibration",
        publish="plant/{device}/anomaly",
        detector=str(detector_file),
        plan=Plan(window=WINDOW, **plan),
    )


@contextlib.contextmanager
def running(settings_: Settings):
    runner = Runner(settings_)
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        wait_for(lambda: runner.connected, "the runner connects")
        time.sleep(0.2)
        yield runner
    finally:
        runner.stopping.set()
        thread.join()


def assert_every_window_once(windows: dict[int, dict], detector_file: Path, samples) -> None:
    from production.classify import load

    assert sorted(windows) == list(range(1, len(samples) // WINDOW + 1))
    expected = (
        load(detector_file).pipeline.steps[-1][1].decision_function(samples.reshape(-1, WINDOW, 3))
    )
    found = [windows[number]["score"] for number in sorted(windows)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_device_is_watched_from_sample_to_answer(
    broker, listener, detector_file, recording, tmp_path
):
    settings_ = Settings(
        parse(broker.url),
        (route(detector_file),),
        state=str(tmp_path / "state"),
        store=str(tmp_path / "r.db"),
        plot=str(tmp_path / "plots"),
        health=str(tmp_path / "health.json"),
        metrics_port=0,
    )
    with running(settings_) as runner:
        sender = Sender(broker, recording, pause_s=0.0)
        runner._client.publish("plant/p2/vibration", "no samples")
        sender.start()
        sender.finish()
        wait_for(lambda: len(listener.windows()) == 40, "40 answers")
        port = runner.metrics_port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            assert b"anomaly_mqtt_samples_total 4000\n" in answer.read()
    assert_every_window_once(listener.windows(), detector_file, recording)
    (alarm,) = [m for _, m in listener.heard if isinstance(m, dict) and m.get("event") == "alarm"]
    assert 3000 <= alarm["sample"] < 3020
    assert json.loads((tmp_path / "health.json").read_text())["connected"] == 1
    assert runner.watch.counts["refused"] == 1
    assert (tmp_path / "plots" / "p1.png").exists()
    late = Listener(broker)
    late.client.subscribe("plant/p1/anomaly/state")
    wait_for(lambda: any(t == "plant/p1/anomaly/state" for t, _ in late.heard), "retained state")
    late.stop()


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_a_broker_restart_under_load_loses_and_doubles_nothing(
    broker, listener, detector_file, recording, tmp_path, version
):
    settings_ = Settings(
        parse(broker.url, version=version),
        (route(detector_file),),
        state=str(tmp_path / "state"),
    )
    with running(settings_) as runner:
        sender = Sender(broker, recording)
        sender.start()
        wait_for(lambda: runner.watch.counts["samples"] > 1000, "some samples")
        broker.stop()
        time.sleep(0.5)
        broker.start()
        sender.finish()
        wait_for(lambda: len(listener.windows()) == 40, "40 answers")
        assert runner.watch.counts["samples"] == 4000
    assert_every_window_once(listener.windows(), detector_file, recording)


def test_a_killed_broker_is_found_again_and_nothing_counts_twice(
    broker, listener, detector_file, recording, tmp_path
):
    settings_ = Settings(parse(broker.url), (route(detector_file),), state=str(tmp_path / "state"))
    with running(settings_) as runner:
        sender = Sender(broker, recording)
        sender.start()
        wait_for(lambda: runner.watch.counts["samples"] > 1000, "some samples")
        broker.stop(signal.SIGKILL)
        broker.start()
        sender.finish()
        wait_for(lambda: runner.watch.counts["samples"] > 3500, "nearly all samples")
        time.sleep(0.5)
        assert runner.watch.counts["samples"] <= 4000


def start_runner(broker: Mosquitto, detector_file: Path, folder: Path) -> subprocess.Popen:
    command = [
        *(sys.executable, "-m", "production.mqtt", "--broker", broker.url),
        *("--subscribe", "plant/+/vibration", "--publish", "plant/{device}/anomaly"),
        *("--detector", str(detector_file), "--window", str(WINDOW)),
        *("--state", str(folder / "state")),
    ]
    with (folder / "runner.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def test_a_runner_killed_again_and_again_loses_and_doubles_nothing(
    broker, listener, detector_file, recording, tmp_path
):
    runner = start_runner(broker, detector_file, tmp_path)
    wait_for(lambda: listener.runner_says("watching"), "the runner watches")
    sender = Sender(broker, recording)
    sender.start()
    for seen in (5, 15):
        wait_for(lambda seen=seen: len(listener.windows()) >= seen, f"{seen} answers")
        runner.kill()
        runner.wait()
        wait_for(lambda: listener.runner_says("lost"), "the last will")
        runner = start_runner(broker, detector_file, tmp_path)
    sender.finish()
    wait_for(lambda: len(listener.windows()) == 40, "40 answers")
    runner.terminate()
    assert runner.wait(30) == 0
    assert_every_window_once(listener.windows(), detector_file, recording)
    again = [m for _, m in listener.heard if isinstance(m, dict) and m.get("event") == "window"]
    for message in again:
        same = listener.windows()[message["sequence"]]
        assert message["score"] == pytest.approx(same["score"])
    state, records = recovered(tmp_path / "state")
    assert state["devices"]["p1"].received == 4000
    assert records == []


@pytest.mark.parametrize(("version", "inbox"), [("3.1.1", 1000), ("5", 1000)])
def test_a_stalled_worker_stops_acknowledging_and_loses_nothing(
    broker, listener, detector_file, recording, tmp_path, version, inbox
):
    settings_ = Settings(
        parse(broker.url, version=version),
        (route(detector_file),),
        state=str(tmp_path / "state"),
        inbox=inbox,
    )
    with running(settings_) as runner:
        taken, stall = runner._take, threading.Event()

        def stalled(items):
            if items and not stall.is_set():
                stall.set()
                time.sleep(2.0)
            taken(items)

        runner._take = stalled
        sender = Sender(broker, recording, pause_s=0.0)
        sender.start()
        sender.finish()
        wait_for(lambda: len(listener.windows()) == 40, "40 answers")
        assert runner.inbox.held == runner.inbox.dropped == 0
        assert runner.watch.counts["samples"] == 4000
    assert_every_window_once(listener.windows(), detector_file, recording)


# -- with a broker that asks who comes ----------------------------------------------------

# paho leaves the socket of a failed handshake to the garbage collector.
unclosed = pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning")


def certificates(folder: Path) -> None:
    """Two authorities, `ca` and `stranger`; `server` and `client` are vouched for by `ca`."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is absent: install the system package of this name")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "stranger"):
        out = ("-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2")
        openssl("req", "-x509", *key, *out, "-subj", f"/CN={name}")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", "request", "-subj", f"/CN={name}")
        sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", "request", *sign, "-out", f"{name}.pem", "-days", "2")


@pytest.fixture
def guarded(tmp_path):
    """Start a broker with a security section; it is stopped after the test."""
    if not (shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")):
        pytest.skip("mosquitto is absent: install the system package of this name")
    started = []

    def start(security: str) -> Mosquitto:
        mosquitto = Mosquitto(tmp_path, security)
        mosquitto.start()
        started.append(mosquitto)
        return mosquitto

    yield start
    for mosquitto in started:
        mosquitto.stop(signal.SIGKILL)


@pytest.fixture
def certified(guarded, tmp_path):
    """URL of a broker that lets in only who shows a certificate of its authority."""
    certificates(tmp_path)
    files = {"cafile": "ca.pem", "certfile": "server.pem", "keyfile": "server.key"}
    lines = "".join(f"{name} {tmp_path / file}\n" for name, file in files.items())
    mosquitto = guarded(f"{lines}require_certificate true\nuse_identity_as_username true\n")
    return f"mqtts://127.0.0.1:{mosquitto.port}"


def present(monkeypatch, folder: Path, ca: str = "ca", client: str | None = "client") -> None:
    monkeypatch.setenv("MQTT_CA_FILE", str(folder / f"{ca}.pem"))
    if client is not None:
        monkeypatch.setenv("MQTT_CERT_FILE", str(folder / f"{client}.pem"))
        monkeypatch.setenv("MQTT_KEY_FILE", str(folder / f"{client}.key"))


@contextlib.contextmanager
def refused(url: str, caplog):
    """A runner that is not let in, with the lines it has said of it."""
    runner = Runner(Settings(parse(url), (Route("plant/+/vibration"),)))
    thread = threading.Thread(target=runner.run)
    thread.start()

    def lines() -> list[str]:
        return [r.getMessage() for r in caplog.records if r.name == "production.mqtt"]

    try:
        wait_for(lines, "the runner says why")
        yield runner, lines
    finally:
        runner.stopping.set()
        thread.join()


@pytest.mark.parametrize("version", ["3.1.1", "5"])
def test_a_client_certificate_opens_an_encrypted_broker(certified, tmp_path, monkeypatch, version):
    present(monkeypatch, tmp_path)
    broker_ = parse(certified, version=version)
    heard = []
    with running(Settings(broker_, (Route("plant/+/vibration", "answers/{device}"),))):
        client = broker_.client("")
        client.on_connect = lambda client, *_: client.subscribe("anomaly/#", qos=1)
        client.on_message = lambda _client, _data, message: heard.append(message.payload)
        broker_.connect(client)
        client.loop_start()
        wait_for(lambda: b"watching" in heard, "the runner is heard over TLS")
        client.disconnect()
        client.loop_stop()
    out = ["--mqtt", certified, "--seconds", "0.2"]
    assert lorenz.main(out) == 0


@unclosed
@pytest.mark.parametrize(
    ("ca", "client", "why"),
    [
        ("stranger", "client", "certificate verify failed"),
        ("ca", None, "does it want TLS or a certificate"),
        ("ca", "stranger", "does it want TLS or a certificate"),
    ],
)
def test_a_wrong_certificate_is_said_in_one_line_and_tried_again(
    certified, tmp_path, monkeypatch, caplog, ca, client, why
):
    present(monkeypatch, tmp_path, ca, client)
    with refused(certified, caplog) as (runner, lines):
        time.sleep(1.5)  # a second try and perhaps a third
        assert not runner.connected
        (line,) = lines()
        assert why in line
        assert line.endswith("trying again")
    del runner
    gc.collect()


@unclosed
def test_a_rig_with_the_wrong_authority_says_why(certified, tmp_path, monkeypatch, capsys):
    present(monkeypatch, tmp_path, "stranger")
    monkeypatch.setattr(lorenz, "CONNECT_S", 0.5)
    assert lorenz.main(["--mqtt", certified]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "certificate verify failed" in line
    gc.collect()


def test_a_wrong_password_is_said_in_one_line_and_tried_until_it_is_right(
    guarded, tmp_path, monkeypatch, caplog
):
    def set_password(password: str) -> None:
        arguments = ["-b", "-c", str(tmp_path / "passwords"), "bearing", password]
        subprocess.run(["mosquitto_passwd", *arguments], check=True, capture_output=True)

    if not shutil.which("mosquitto_passwd"):
        pytest.skip("mosquitto_passwd is absent: install the system package mosquitto")
    set_password("another")
    mosquitto = guarded(f"allow_anonymous false\npassword_file {tmp_path / 'passwords'}\n")
    monkeypatch.setenv("MQTT_USERNAME", "bearing")
    monkeypatch.setenv("MQTT_PASSWORD", "hush-hush")
    with refused(mosquitto.url, caplog) as (runner, lines):
        time.sleep(1.5)
        (line,) = lines()
        assert "refused the connection: Not authorized; trying again" in line
        assert "hush-hush" not in caplog.text
        set_password("hush-hush")
        mosquitto.process.send_signal(signal.SIGHUP)
        wait_for(lambda: runner.connected, "the right password lets the runner in")
    assert lorenz.main(["--mqtt", mosquitto.url, "--seconds", "0.1"]) == 0


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"MQTT_CA_FILE": "none.pem"}, "MQTT_CA_FILE: [Errno 2] No such file"),
        ({"MQTT_KEY_FILE": "none.key"}, "MQTT_KEY_FILE is set without its MQTT_CERT_FILE"),
        ({"MQTT_CA_FILE": __file__}, "no usable certificates in MQTT_CA_FILE="),
    ],
)
def test_unusable_certificate_files_are_named(variables, error, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["--broker", "mqtts://127.0.0.1:1", "--subscribe", "a/+"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert error in line


def test_a_broker_that_is_not_there_is_said_in_one_line(caplog):
    with refused("mqtt://127.0.0.1:1", caplog) as (_, lines):
        time.sleep(1.5)
        (line,) = lines()
        assert "Connection refused; trying again" in line


# -- the rig ------------------------------------------------------------------------------


def test_a_word_in_the_topic_is_not_a_command():
    rig = lorenz.Rig(1.0)
    topics = {"commands": "switch/press/vibration/cmd/+", "confirm": ""}
    for command, expected in (("other", 1.0), ("to_healthy", 0.0), ("switch", 1.0)):
        topic = f"switch/press/vibration/cmd/{command}"
        lorenz._obey(rig, None, SimpleNamespace(topic=topic), topics)
        assert rig.fraction == expected


def test_the_rig_publishes_and_obeys(broker):
    heard = Listener(broker, "iot-2/#")
    arguments = ["--mqtt", broker.url, "--preset", "iot-2:0.16.2/lorenz", "--seconds", "3"]
    device = threading.Thread(target=lorenz.main, args=[[*arguments, "--batch", "20"]])
    device.start()
    wait_for(lambda: len(heard.heard) >= 2, "first samples")
    heard.client.publish("iot-2/type/0.16.2/id/lorenz/cmd/switch/fmt/json", "{}", qos=1)
    confirm = "iot-2/type/0.16.2/id/lorenz/evt/switch_confirm/fmt/json"
    wait_for(lambda: (confirm, {"state": 1.0}) in heard.heard, "the switch is confirmed")
    heard.client.publish("iot-2/type/0.16.2/id/lorenz/cmd/to_healthy/fmt/json", "{}", qos=1)
    wait_for(lambda: (confirm, {"state": 0.0}) in heard.heard, "healthy again")
    device.join()

    def numbers():
        return [m["seq"] for topic, m in heard.heard if "/osc/" in topic]

    wait_for(lambda: len(numbers()) == 15, "all samples are heard")
    assert numbers() == list(range(0, 300, 20))
    heard.stop()


def test_the_rig_without_a_broker_says_so(capsys, monkeypatch):
    monkeypatch.setattr(lorenz, "CONNECT_S", 0.2)
    assert lorenz.main(["--mqtt", "mqtt://127.0.0.1:1"]) == 2
    assert "within 0 s: [Errno 111] Connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--state", "broke"], "must be healthy, broken or 0 to 1, got 'broke'"),
        (["--switch", "soon=broken"], "SECONDS=STATE is needed, got 'soon=broken'"),
        (["--rate", "0"], "rate must be above 0"),
        (["--rate", "inf"], "seconds, rate: must be finite"),
        (["--seconds", "nan"], "seconds, rate: must be finite"),
        (["--batch", "0", "--mqtt", "mqtt://x"], "batch: must be 1 at least, got 0"),
        (["--topic", "a/+", "--mqtt", "mqtt://127.0.0.1:1"], "a name without + and #"),
        (["--preset", "iot-2:a/#", "--mqtt", "mqtt://127.0.0.1:1"], "iot-2:TYPE/ID is needed"),
        (["--mqtt", "http://x"], "a URL like mqtt://localhost:1883"),
    ],
)
def test_the_rig_names_mistakes(arguments, error, capsys):
    assert lorenz.main(arguments) == 2
    assert error in capsys.readouterr().err


def test_the_rig_writes_what_the_simulation_says(tmp_path):
    path = tmp_path / "b.csv"
    arguments = ["--noise", "0", "--seconds", "2", "--switch", "1=broken", "--csv", str(path)]
    assert lorenz.main(arguments) == 0
    written = np.loadtxt(path, delimiter=",", skiprows=1)
    np.testing.assert_array_equal(written, simulate(200, lambda n: float(n >= 100)))
