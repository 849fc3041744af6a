"""The purchase network, held against `purchases_reference` and against each stated rule."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from sklearn.utils import estimator_checks

import anomaly
from anomaly._core import Network
from anomaly.errors import DataError, ParameterError
from anomaly.purchases import (
    COLUMNS,
    EventError,
    EventLog,
    PurchaseNetworkDetector,
    read_event,
    read_header,
    simulate,
)
from anomaly.purchases.events import read_amount, read_time
from anomaly.purchases.log import LogCounts, window_texts
from tests.purchases_reference import ReferenceNetwork, truncated

UNIT = 10**6  # of money: a millionth
MAX = 10**18
RANDOM_EVENTS = int(os.environ.get("ANOMALY_RANDOM_EVENTS", "30000"))


def network(degree=2, window=5, sigma=3):
    exact = Fraction(sigma)
    return Network(
        degree=degree, window=window, sigma_up=exact.numerator, sigma_down=exact.denominator
    )


def purchase(user, amount, second=1, **more):
    return {
        "event_type": "purchase",
        "timestamp": f"2017-06-13 11:33:{second:02d}",
        "id": user,
        "amount": amount,
        **more,
    }


def friends(one, other, kind="befriend"):
    return {"event_type": kind, "timestamp": "2017-06-13 11:33:01", "id1": one, "id2": other}


def text_of(*events):
    return "".join(json.dumps(event) + "\n" for event in events).encode()


# ---- equal to the reference ----------------------------------------------------------------

users = st.integers(0, 6).map(lambda n: str(n).encode())
amounts = st.one_of(
    st.integers(0, 8), st.integers(0, 10**9), st.sampled_from([0, 1, MAX - 1, MAX])
)
event = st.one_of(
    st.tuples(st.just("buy"), users, st.integers(-3, 3), amounts),
    st.tuples(st.just("befriend"), users, users),
    st.tuples(st.just("unfriend"), users, users),
)


def same_verdict(net, slow, user, amount):
    n, total, spread, flagged = slow.judge(user, amount)
    found = net.judge(user, amount)
    assert found[:4] == (n, total, spread, flagged)
    assert (found[4] > slow.sigma) == flagged
    counted = [(time, arrival, who, paid) for time, arrival, who, paid in sorted(net.counted())]
    assert counted == slow.counted(user)
    assert net.circle(user) == len(slow.circle(user))
    return flagged


@settings(max_examples=300, deadline=None)
@given(
    st.lists(event, max_size=80),
    st.integers(1, 5),
    st.integers(2, 7),
    st.sampled_from([Fraction(0), Fraction(1), Fraction(3, 2), Fraction(3)]),
)
def test_every_judgement_equals_the_reference(events, degree, window, sigma):
    net, slow = network(degree, window, sigma), ReferenceNetwork(degree, window, sigma)
    for kind, *fields in events:
        if kind == "buy":
            same_verdict(net, slow, fields[0], fields[2])
        getattr(net, kind)(*fields)
        getattr(slow, kind)(*fields)
    same_verdict(Network.load(net.save()), slow, b"0", 5)


def random_run(seed, n_events):
    """One random network: ties, late arrivals, repeated edges, self-loops, hubs."""
    rng = random.Random(seed)
    n_users, degree = rng.choice([3, 8, 30]), rng.choice([1, 2, 3, 4, 6])
    window = rng.choice([2, 3, 10, 50])
    sigma = rng.choice([Fraction(3), Fraction(3), Fraction(1), Fraction(5, 2)])
    net, slow = network(degree, window, sigma), ReferenceNetwork(degree, window, sigma)
    prices = rng.choice([range(1, 4), range(10**7), [MAX, MAX - 1, 1]])
    spread = rng.choice([0, 1, 20])
    hubs, flagged = rng.random() < 0.3, 0
    for second in range(n_events):
        one = str(rng.randrange(n_users)).encode()
        other = b"0" if hubs and rng.random() < 0.5 else str(rng.randrange(n_users)).encode()
        kind = rng.choices(["buy", "befriend", "unfriend"], [78, 20, rng.choice([2, 20])])[0]
        if kind == "buy":
            amount = rng.choice(prices) * rng.choice([1, 1, 1, 1, 30 if MAX not in prices else 1])
            flagged += same_verdict(net, slow, one, amount)
            time = second // 3 - rng.randint(0, spread)
            net.buy(one, time, amount)
            slow.buy(one, time, amount)
        else:
            getattr(net, kind)(one, other)
            getattr(slow, kind)(one, other)
    return flagged


def test_random_networks_equal_the_reference():
    """ANOMALY_RANDOM_EVENTS=1000000 runs the full million."""
    size = 200
    flagged = sum(random_run(seed, size) for seed in range(RANDOM_EVENTS // size))
    assert flagged > RANDOM_EVENTS // 1000


def test_a_larger_graph_takes_every_path_and_equals_the_reference():
    rng = random.Random(1)
    for degree in (2, 3, 4, 9):
        net, slow = network(degree, 20), ReferenceNetwork(degree, 20)
        for _ in range(1500):
            one = str(int(400 * rng.random() ** 3)).encode()
            other = str(rng.randrange(400)).encode()
            net.befriend(one, other)
            slow.befriend(one, other)
        for time in range(3000):
            user, amount = str(rng.randrange(400)).encode(), rng.randrange(1, 10**9)
            if time % 30 == 0:
                same_verdict(net, slow, user, amount)
            net.buy(user, time // 4, amount)
            slow.buy(user, time // 4, amount)


@pytest.mark.parametrize("n_friends", [8, 25, 70])
@pytest.mark.parametrize("hubs", [0.0, 0.3])
def test_dense_graphs_and_hubs_equal_the_reference(n_friends, hubs):
    """Marks of a part of a level decide here, and the users they miss."""
    rng = random.Random(n_friends)
    n_users = 300
    for degree in (2, 3, 4, 7):
        net, slow = network(degree, 15), ReferenceNetwork(degree, 15)

        def anybody():
            return str(rng.randrange(n_users)).encode()

        # an island and a tail stay far from, or out of reach of, the dense part
        edges = [(b"t%d" % i, b"t%d" % (i + 1)) for i in range(9)]
        edges += [(b"t0", b"0"), (b"i0", b"i1"), (b"i1", b"i2")]
        for _ in range(n_users * n_friends // 2):
            edges.append(
                (anybody(), b"%d" % rng.randrange(3) if rng.random() < hubs else anybody())
            )
        far = [b"t%d" % i for i in range(10)] + [b"i0", b"i1", b"i2"]
        for one, other in edges:
            net.befriend(one, other)
            slow.befriend(one, other)
        for time in range(1200):
            user = rng.choice(far) if rng.random() < 0.2 else anybody()
            if time % 12 == 0:
                same_verdict(net, slow, user, rng.randrange(100))
            net.buy(user, time // 4, time)
            slow.buy(user, time // 4, time)


def test_a_long_run_drops_dead_purchases_and_keeps_the_newest():
    rng = random.Random(2)
    net, kept = network(1, 4), {b"0": [], b"1": [], b"2": []}
    net.befriend(b"0", b"1")
    for time in range(40_000):
        user, amount = rng.choice([b"0", b"1", b"2"]), rng.randrange(100)
        late = time - rng.choice([0, 0, 500])
        net.buy(user, late, amount)
        kept[user] = sorted([*kept[user], (late, time, user, amount)])[-4:]
        if time % 100 == 0:
            net.judge(b"0", 1)
            assert sorted(net.counted()) == kept[b"1"]
    assert net.sizes() == (3, 1, 12)


# ---- the rules -----------------------------------------------------------------------------


def test_published_example(shared_data):
    folder = shared_data / "network"
    header, _, batch = (folder / "batch_log.json").read_bytes().partition(b"\n")
    degree, window, rest = read_header(header)
    net = network(degree, window)
    assert list(EventLog(net, judge=False).feed(rest + b"\n" + batch + b"\n")) == []
    stream = (folder / "stream_log.json").read_bytes() + b"\n"
    flagged = list(EventLog(net, judge=True).feed(stream))
    assert flagged == (folder / "flagged_purchases.json").read_bytes().splitlines()
    assert b'"mean": "29.10", "sd": "21.46"' in flagged[0]


def test_own_purchases_never_count_and_isolated_users_are_never_flagged():
    net = network()
    for amount in (1, 2, 3):
        net.buy(b"a", 1, amount)
    assert net.judge(b"a", MAX)[:4] == (0, 0, 0, False)
    assert net.judge(b"nobody", MAX)[:4] == (0, 0, 0, False)


def test_one_purchase_in_the_circle_never_flags():
    net = network()
    net.befriend(b"a", b"b")
    net.buy(b"a", 1, 10)
    assert net.judge(b"b", MAX)[3:] == (False, 0.0)


def test_repeated_befriend_needs_one_unfriend_and_loops_change_nothing():
    net = network(degree=1)
    net.befriend(b"a", b"b")
    net.befriend(b"b", b"a")
    net.befriend(b"a", b"a")
    assert net.circle(b"a") == net.circle(b"b") == 1
    net.unfriend(b"a", b"stranger")
    net.unfriend(b"a", b"a")
    assert net.circle(b"a") == 1
    net.unfriend(b"a", b"b")
    assert net.circle(b"a") == net.circle(b"b") == 0
    net.unfriend(b"a", b"b")


def test_ids_are_opaque():
    net = network(degree=1)
    net.befriend(b"1", b"x")
    assert (net.circle(b"1"), net.circle(b"01"), net.circle(b"")) == (1, 0, 0)
    net.befriend(b"", "ü\ud800".encode("utf-8", "surrogatepass"))
    assert net.circle(b"") == 1


def test_window_is_cut_inside_a_tie_by_arrival():
    net = network(degree=1, window=2)
    net.befriend(b"a", b"b")
    for amount in (1, 2, 3):
        net.buy(b"a", 7, amount)
    net.judge(b"b", 5)
    assert sorted(paid for *_, paid in net.counted()) == [2, 3]
    net.buy(b"a", 6, 9)  # late: older than all three
    net.judge(b"b", 5)
    assert sorted(paid for *_, paid in net.counted()) == [2, 3]


def test_a_purchase_of_the_future_counts():
    net = network(degree=1, window=2)
    net.befriend(b"a", b"b")
    for time in (100, 99, 98):
        net.buy(b"a", time, time)
    net.judge(b"b", 5)
    assert sorted(paid for *_, paid in net.counted()) == [99, 100]


def test_amount_exactly_at_the_limit_is_not_flagged():
    net = network(degree=1)
    net.befriend(b"a", b"b")
    for amount in (10 * UNIT, 20 * UNIT):  # mean 15, sd 5
        net.buy(b"a", 1, amount)
    assert net.judge(b"b", 30 * UNIT)[3:] == (False, 3.0)
    assert net.judge(b"b", 30 * UNIT + 1)[3]


def test_equal_amounts_have_no_spread_and_flag_anything_above():
    net = network(degree=1)
    net.befriend(b"a", b"b")
    for _ in range(3):
        net.buy(b"a", 1, UNIT // 10)
    assert net.judge(b"b", UNIT // 10)[3:] == (False, 0.0)
    assert net.judge(b"b", UNIT // 10 + 1)[3:] == (True, float("inf"))
    assert net.judge(b"b", 0)[3:] == (False, -float("inf"))


@settings(deadline=None)
@given(st.lists(st.integers(0, MAX), min_size=2, max_size=8), st.integers(0, MAX))
def test_huge_amounts_do_not_overflow(window, amount):
    for sigma in (Fraction(3), Fraction(2**31 - 1, 2**31 - 2), Fraction(1, 2**31 - 1)):
        net, slow = network(1, 8, sigma), ReferenceNetwork(1, 8, sigma)
        for twin in (net, slow):
            twin.befriend(b"a", b"b")
            for paid in window:
                twin.buy(b"a", 1, paid)
        same_verdict(net, slow, b"b", amount)


@given(st.lists(st.integers(0, MAX), min_size=1, max_size=9))
def test_mean_and_sd_are_truncated(window):
    n, total = len(window), sum(window)
    spread = n * sum(x * x for x in window) - total * total
    mean, sd = truncated(window)
    found = window_texts(n, total, spread)
    assert found == (f"{mean // 100}.{mean % 100:02d}", f"{sd // 100}.{sd % 100:02d}")


def test_native_network_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="degree >= 1"):
        Network(degree=0, window=2, sigma_up=3, sigma_down=1)
    with pytest.raises(ValueError, match="10\\*\\*18"):
        network().buy(b"a", 1, MAX + 1)
    with pytest.raises(ValueError, match="10\\*\\*18"):
        network().judge(b"a", -1)
    with pytest.raises(ValueError, match="offset"):
        network().feed(b"", 1, True)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_state_is_refused_or_harmless(data):
    net = network()
    for user in (b"a", b"b", b"c"):
        net.befriend(b"a", user)
        net.buy(user, 1, 5)
    saved = bytearray(net.save())
    at = data.draw(st.integers(0, len(saved) - 1))
    saved[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([len(saved), at]))
    try:
        loaded = Network.load(bytes(saved[:cut]))
    except (ValueError, MemoryError):
        return
    loaded.judge(b"a", 5)
    loaded.save()


# ---- events and logs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "millionths"),
    [
        ("16.83", 16830000), ("0", 0), ("-0.00", 0), (".5", 500000), ("7.", 7000000),
        ("1e3", 1000000000), ("0.000001", 1), ("1.10000000000", 1100000), (16.83, 16830000),
        (3, 3000000), (Decimal("2.5"), 2500000), (np.float64(0.1), 100000),
        (np.int64(4), 4000000), ("000000000000000000001", 1000000), (" 5 ", 5000000),
        ("1000000000000", MAX), (np.float32(0.1), 100000), ("1e12", MAX),
    ],
)  # fmt: skip
def test_amounts_are_read_exactly(value, millionths):
    assert read_amount(value) == millionths


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("abc", "non-numeric amount"), ("", "non-numeric amount"), ("1_000", "non-numeric amount"),
        ("１", "non-numeric amount"), (None, "non-numeric amount"), (True, "non-numeric amount"),
        ([], "non-numeric amount"), ("1,5", "non-numeric amount"), ("0x1", "non-numeric amount"),
        ("1e9999999999", "non-numeric amount"), ("NaN", "NaN amount"),
        (float("nan"), "NaN amount"), ("inf", "infinite amount"), ("-Infinity", "infinite amount"),
        ("-0.01", "negative amount"), (-3, "negative amount"),
        ("0.0000001", "amount finer than a millionth"), ("1000000000000.01", "amount too large"),
        ("1e999999999", "amount too large"), ("1e-999999999", "amount finer than a millionth"),
        ("9" * 10000, "amount too large"),
    ],
)  # fmt: skip
def test_amounts_that_are_none_are_named(value, kind):
    with pytest.raises(EventError) as raised:
        read_amount(value)
    assert raised.value.kind == kind


@pytest.mark.parametrize(
    "text",
    [
        "2017-02-29 00:00:00", "2017-6-13 11:33:01", "2017-06-13T11:33:01", "2017-06-13 24:00:00",
        "2017-06-13 11:33:60", "0000-01-01 00:00:00", "2017-06-13 11:33:01Z",
        "2017-13-01 00:00:00",
        "٢٠١٧-06-13 11:33:01", "", "2017-06-13 11:33", "2017-00-01 00:00:00",
        "2017-06-00 00:00:00",
        "1900-02-29 00:00:00", "2017-04-31 00:00:00",
    ],
)  # fmt: skip
def test_bad_timestamps_are_refused_natively_and_in_python(text):
    with pytest.raises(EventError, match="timestamp must be"):
        read_event(friends("a", "b") | {"timestamp": text})
    log = EventLog(network(), judge=False)
    assert list(log.feed(text_of(friends("a", "b") | {"timestamp": text}))) == []
    assert log.counts.skipped == {"bad timestamp": (1, [1])}


@settings(deadline=None)
@given(st.datetimes(min_value=datetime(1, 1, 1)))
def test_native_times_equal_datetime(moment):
    text = moment.replace(microsecond=0).isoformat(" ")
    net = network(degree=1)
    list(EventLog(net, judge=False).feed(text_of(friends("a", "b"))))
    line = text_of({"event_type": "purchase", "timestamp": text, "id": "a", "amount": "1"})
    assert net.feed(line, 0, False)[0] == 0  # read natively
    net.judge(b"b", 1)
    assert net.counted()[0][0] == read_time(text)


def test_timezones_and_sub_second_datetimes():
    assert read_time(datetime(1970, 1, 1, 0, 0, 0, 5)) == 5
    assert read_time(pd.Timestamp("1970-01-01 00:00:01")) == 10**6
    assert read_time(np.datetime64("1970-01-01T00:00:01")) == 10**6
    for value in (pd.Timestamp("2020-01-01", tz="UTC"), pd.NaT, 5, np.datetime64("NaT")):
        with pytest.raises(EventError, match="timestamp must be"):
            read_time(value)


MALFORMED = [
    (b"[1]\n", {"not an object": (1, [1])}),
    (b'"x" 5 null\n', {"not an object": (3, [1])}),
    (b"oops\n", {"undecodable text": (1, [1])}),
    (b'{"event_type":"gift"}\n', {"unknown event type": (1, [1])}),
    (b'{"event_type":["purchase"]}\n', {"unknown event type": (1, [1])}),
    (b"{}\n", {"missing key": (1, [1])}),
    (text_of({"event_type": "purchase", "timestamp": "x", "id": "1"}), {"missing key": (1, [1])}),
    (text_of(friends("a", "b") | {"id1": None}), {"bad id": (1, [1])}),
    (text_of(friends("a", "b") | {"id1": 1.5}), {"bad id": (1, [1])}),
    (text_of(purchase("a", "-1")), {"negative amount": (1, [1])}),
    (text_of(purchase("a", "NaN")), {"NaN amount": (1, [1])}),
    (text_of(purchase("a", float("nan"))), {"NaN amount": (1, [1])}),
    (text_of(purchase("a", "ten")), {"non-numeric amount": (1, [1])}),
    (text_of(purchase("a", {})), {"non-numeric amount": (1, [1])}),
    (b"[" * 200_000 + b"\n", {"undecodable text": (1, [1])}),
    (b"\xff\xfe\n", {"undecodable text": (1, [1])}),
    (b"\n \t\r\n\r\n", {}),
    (b"x\n" * 9, {"undecodable text": (9, [1, 2, 3, 4, 5])}),
]


@pytest.mark.parametrize(("text", "skipped"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_input_is_skipped_and_counted_by_kind(text, skipped):
    net = network()
    log = EventLog(net, judge=True)
    assert list(log.feed(text)) == []
    assert log.counts.skipped == skipped
    assert sum(log.counts.events.values()) == 0
    assert net.sizes() == (0, 0, 0)


def test_several_objects_on_a_line_are_read_up_to_the_undecodable_rest():
    net = network(degree=1)
    one, two = (text_of(friends("a", x)).strip() for x in "bc")
    log = EventLog(net, judge=True)
    list(log.feed(one + two + b" 5 " + one + b"\r\n" + two + b'{"torn' + one + b"\n"))
    assert log.counts.events["befriend"] == 4
    assert log.counts.skipped == {"not an object": (1, [1]), "undecodable text": (1, [2])}
    assert net.sizes()[:2] == (3, 2)


def test_the_text_before_a_broken_byte_is_read():
    net = network()
    log = EventLog(net, judge=True)
    list(log.feed(text_of(friends("a", "b")).strip() + b" \xff" + text_of(friends("c", "d"))))
    assert net.sizes()[:2] == (2, 1)
    assert log.counts.skipped == {"undecodable text": (1, [1])}


def test_numbers_and_unicode_are_read_as_written():
    net = network(degree=1)
    text = text_of(friends("ü", "b"), friends(7, "b")) + '{"id1":"ü","id2":"b",'.encode()
    list(EventLog(net, judge=True).feed(text + text_of(friends("x", "y"))[1:]))
    assert net.circle(b"b") == 2
    assert net.circle("ü".encode()) == net.circle(b"7") == 1


def flagged_line(line):
    net = network(degree=1)
    log = EventLog(net, judge=True)
    base = [friends("a", "b"), purchase("a", "10.00"), purchase("a", "20.00")]
    found = list(log.feed(text_of(*base) + line))
    assert log.counts.flagged == len(found) == 1
    return found[0].decode()


def test_flagged_lines_echo_every_field_in_order():
    line = b'{"z":"1","event_type":"purchase", "timestamp":"2017-06-13 11:33:02", "id": "b", '
    found = flagged_line(line + b'"amount": "99.999", "note": "hi"}\r\n')
    assert (
        found == line.decode() + '"amount": "99.999", "note": "hi", "mean": "15.00", "sd": "5.00"}'
    )


def test_flagged_lines_echo_nested_and_unicode_extras():
    extra = {"tags": ["é", {"n": 1}]}
    text = json.dumps(purchase("b", 99) | extra, ensure_ascii=False) + "\n"
    found = json.loads(flagged_line(text.encode()))
    assert found == purchase("b", 99) | extra | {"mean": "15.00", "sd": "5.00"}


def test_an_input_mean_gives_way_to_ours_at_the_end():
    text = '{"mean":"x","sd":1e500,"n":1.10,' + json.dumps(purchase("b", "99"))[1:] + "\n"
    found = flagged_line(text.encode())
    assert list(json.loads(found)) == ["n", *purchase("b", "99"), "mean", "sd"]
    assert '"n": 1.10' in found


def test_native_and_json_readers_agree():
    rng = random.Random(3)
    made = simulate(n_users=20, n_batch=0, n_stream=1500, n_anomalies=20, random_state=3)
    fields = [
        {k: v for k, v in row.items() if v is not None} for row in made.stream.to_dict("records")
    ]
    plain = text_of(*fields)
    odd = b"".join(
        text_of(row | rng.choice([{}, {"é": 1}, {"x": [1]}, {"x": "\n"}])) for row in fields
    )
    logs = [EventLog(network(2, 10), judge=True) for _ in range(2)]
    found = [
        [json.loads(line) for line in log.feed(text)]
        for log, text in zip(logs, (plain, odd), strict=True)
    ]
    stripped = [{k: v for k, v in row.items() if k not in ("é", "x")} for row in found[1]]
    assert found[0] == stripped
    assert len(stripped) > 10
    assert logs[0].network.save() == logs[1].network.save()


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b"oops", b"{}", b'{"D":"3"}', b'{"T":"50"}', b'{"D":"0","T":"50"}',
        b'{"D":"3","T":"1"}', b'{"D":"3.0","T":"50"}', b'{"D":"-1","T":"50"}',
        b'{"D":true,"T":"50"}', b'{"D":null,"T":"50"}', b'{"D":"","T":"50"}',
        '{"D":"３","T":"50"}'.encode(), b'{"D":"' + b"9" * 5000 + b'","T":"50"}', b"\xff",
    ],
)  # fmt: skip
def test_missing_or_wrong_settings_are_an_error(line):
    with pytest.raises(DataError, match=r"must (start with|be a whole number)"):
        read_header(line)


def test_settings_are_read_as_text_or_numbers():
    assert read_header(b'\xef\xbb\xbf {"D":"3", "T":"50"} {"x":1}\r') == (3, 50, b' {"x":1}\r')
    assert read_header(b'{"D":2,"T":5}') == (2, 5, b"")
    assert read_header(b'{"D":"99999999999","T":"50"}')[0] == 2**31 - 1


def test_counts_keep_first_lines_once_per_line():
    counts = LogCounts(lines=4)
    counts.skip("x")
    counts.skip("x")
    assert counts.skipped == {"x": (2, [4])}


# ---- the detector --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    return simulate(n_users=100, n_batch=3000, n_stream=600, random_state=0)


@pytest.fixture(scope="module")
def fitted(made):
    return PurchaseNetworkDetector(made.degree, made.window_size).fit(made.batch)


def test_detector_is_importable_from_the_package():
    assert anomaly.PurchaseNetworkDetector is PurchaseNetworkDetector
    assert "PurchaseNetworkDetector" in dir(anomaly)
    with pytest.raises(AttributeError, match="PurchaseNetworkDetectr"):
        anomaly.PurchaseNetworkDetectr  # noqa: B018


def test_predict_equals_a_log_run(made, fitted, tmp_path):
    made.write(tmp_path)
    header, _, batch = (tmp_path / "batch_log.json").read_bytes().partition(b"\n")
    net = network(*read_header(header)[:2])
    list(EventLog(net, judge=False).feed(batch))
    flagged = list(EventLog(net, judge=True).feed((tmp_path / "stream_log.json").read_bytes()))
    rows = made.stream[fitted.predict(made.stream) == 1]
    assert [json.loads(line)["amount"] for line in flagged] == rows["amount"].tolist()
    assert len(flagged) > 5


def test_predict_changes_nothing_and_repeats(made, fitted):
    before = fitted.network_.save()
    first = fitted.decision_function(made.stream)
    np.testing.assert_array_equal(first, fitted.decision_function(made.stream))
    assert fitted.network_.save() == before


def test_streaming_equals_predict(made, fitted):
    stream = copy.deepcopy(fitted)
    scores = []
    for row in made.stream.to_dict("records"):
        scores.append(stream.score_one(row))
        stream.learn_one(row)
    np.testing.assert_array_equal(np.array(scores) - 3, fitted.decision_function(made.stream))


def test_frames_arrays_and_dicts_are_the_same_events(made, fitted):
    expected = fitted.decision_function(made.stream)
    shuffled = made.stream[["amount", "id2", "id1", "timestamp", "event_type", "id"]]
    typed = made.stream.assign(
        timestamp=pd.to_datetime(made.stream["timestamp"]),
        amount=made.stream["amount"].astype(float),
    )
    rows = [r.dropna().to_dict() for _, r in made.stream.iterrows()]
    for X in (shuffled, typed, made.stream.to_numpy(), rows, tuple(rows)):
        np.testing.assert_array_equal(fitted.decision_function(X), expected)


def test_explain_tells_what_was_counted(made, fitted):
    row = made.stream[made.labels].iloc[0].to_dict()
    why = fitted.explain(row)
    assert why.window == len(why.purchases) == made.window_size
    assert [p["timestamp"] for p in why.purchases] == sorted(p["timestamp"] for p in why.purchases)
    paid = [p["amount"] for p in why.purchases]
    assert abs(sum(paid) / len(paid) - Decimal(why.mean)) < Decimal("0.01")
    assert row["id"] not in {p["id"] for p in why.purchases}
    assert why.score == fitted.score_one(row)
    assert why.flagged == (why.score > 3)
    with pytest.raises(DataError, match="must be purchase to be explained"):
        fitted.explain(friends("1", "2"))


def test_detector_pickles_copies_and_clones(made, fitted):
    expected = fitted.decision_function(made.stream)
    for twin in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(twin.decision_function(made.stream), expected)
        twin.learn_one(purchase("1", 5))
    np.testing.assert_array_equal(fitted.decision_function(made.stream), expected)
    assert not hasattr(clone(fitted), "network_")
    unfitted = pickle.loads(pickle.dumps(PurchaseNetworkDetector()))
    with pytest.raises(NotFittedError):
        unfitted.predict(made.stream)


def test_detector_takes_part_in_searches_over_time(made):
    search = GridSearchCV(
        PurchaseNetworkDetector(),
        {"degree": [1, 2], "sigma": [3, 6]},
        scoring="average_precision",
        cv=TimeSeriesSplit(2),
    )
    search.fit(made.stream, made.labels.astype(int))
    assert search.best_score_ > 0.5
    rows = made.stream.to_numpy()
    scores = cross_val_score(
        PurchaseNetworkDetector(), rows, made.labels.astype(int), cv=TimeSeriesSplit(2)
    )
    assert scores.min() > 0.9


def test_labels_name_the_classes(made):
    names = np.where(made.labels, "odd", "fine")
    detector = PurchaseNetworkDetector().fit(made.stream, names)
    assert list(detector.classes_) == ["fine", "odd"]
    assert set(detector.predict(made.stream)) == {"fine", "odd"}
    with pytest.raises(ValueError, match="labels"):
        PurchaseNetworkDetector().fit(made.stream, [0, 1])


def test_fit_starts_anew(made, fitted):
    again = copy.deepcopy(fitted).fit(made.batch)
    assert again.network_.save() == fitted.network_.save()


def test_probability_rises_with_the_decision(made, fitted):
    order = np.argsort(fitted.decision_function(made.stream))
    assert (np.diff(fitted.predict_proba(made.stream)[order, 1]) >= 0).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"degree": 0}, "degree"), ({"degree": 1.5}, "degree"),
        ({"window_size": 1}, "window_size"),
        ({"sigma": -1}, "sigma"), ({"sigma": Fraction(-1, 2)}, "sigma must be 0 or more"),
        ({"sigma": float("nan")}, "sigma"),
        ({"sigma": float("inf")}, "sigma"), ({"sigma": 0.1 + 0.2}, "nine digits"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_named_in_fit(parameters, message):
    detector = PurchaseNetworkDetector(**parameters)
    with pytest.raises((ParameterError, ValueError), match=message):
        detector.fit([])
    with pytest.raises((ParameterError, ValueError), match=message):
        detector.learn_one(purchase("a", 1))


def test_sigma_is_exact():
    for sigma in (2.5, Fraction(5, 2)):
        detector = PurchaseNetworkDetector(degree=1, sigma=sigma)
        detector.fit([friends("a", "b"), purchase("a", 10), purchase("a", 20)])
        assert detector.score_one(purchase("b", "27.5")) == 2.5
        assert detector.score_one(purchase("b", "27.500001")) > 2.5
        assert detector.predict([purchase("b", "27.5"), purchase("b", "27.500001")])[0] == 0


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((3, 4)), "6 columns event_type, timestamp"),
        (pd.DataFrame({"id": [1]}), "event_type and timestamp missing"),
        ([purchase("a", "1"), purchase("a", "x")], "row 1: amount must be a decimal number"),
        (pd.DataFrame([purchase(1.0, 1)]), "row 0: id must be text or a whole number, got 1.0"),
        ([{"event_type": "buy"}], "row 0: event_type must be purchase, befriend or unfriend"),
        ([purchase("a", 0.1 + 0.2)], "round it first"),
        (5, "X must be a DataFrame of events"),
    ],
)
def test_unreadable_tables_are_named(X, message):
    with pytest.raises(DataError, match=message):
        PurchaseNetworkDetector().fit(X)


def test_empty_input_is_allowed():
    detector = PurchaseNetworkDetector().fit([])
    assert detector.predict([]).shape == (0,)
    assert detector.predict(pd.DataFrame(columns=COLUMNS)).shape == (0,)
    assert detector.decision_function([purchase("a", 1)]).tolist() == [-3.0]


def test_scoring_before_learning_is_zero():
    assert PurchaseNetworkDetector().score_one(purchase("a", 1)) == 0.0


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable", "check_estimator_tags_renamed", "check_valid_tag_types",
        "check_estimator_repr", "check_no_attributes_set_in_init",
        "check_do_not_raise_errors_in_init_or_set_params", "check_mixin_order",
        "check_parameters_default_constructible", "check_get_params_invariance",
        "check_set_params",
    ],
)  # fmt: skip
def test_estimator_checks_that_need_no_array(check):
    """scikit-learn skips its checks for estimators whose rows are not points; these apply."""
    getattr(estimator_checks, check)("PurchaseNetworkDetector", PurchaseNetworkDetector())


# ---- the simulator -------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["uniform", "power-law"])
def test_simulation_keeps_the_mix_and_its_seed(graph):
    one, two = (simulate(500, 20_000, 100, graph=graph, random_state=4) for _ in range(2))
    pd.testing.assert_frame_equal(one.batch, two.batch)
    assert one.manifest == two.manifest
    shares = one.batch["event_type"].value_counts(normalize=True)
    assert abs(shares["purchase"] - 0.78) < 0.02
    assert abs(shares["befriend"] - 0.20) < 0.02
    assert abs(shares["unfriend"] - 0.02) < 0.005
    assert one.batch["timestamp"].is_monotonic_increasing
    assert one.labels.sum() == 10


def test_power_law_graph_has_hubs():
    def largest(graph):
        made = simulate(1000, 20_000, 50, graph=graph, n_anomalies=0, random_state=5)
        return pd.concat([made.batch["id1"], made.batch["id2"]]).value_counts().iloc[0]

    assert largest("power-law") > 5 * largest("uniform")


def test_simulation_writes_logs_and_manifest(made, tmp_path: Path):
    made.write(tmp_path / "run")
    lines = (tmp_path / "run" / "batch_log.json").read_text().splitlines()
    assert json.loads(lines[0]) == {"D": "2", "T": "50"}
    assert len(lines) == 3001
    manifest = anomaly.injection.Manifest.from_json((tmp_path / "run/manifest.json").read_text())
    assert manifest == made.manifest


def test_simulation_refuses_the_impossible():
    with pytest.raises(ParameterError, match="n_users must be 2"):
        simulate(1)
    with pytest.raises(ParameterError, match="graph must be uniform or power-law"):
        simulate(graph="hubs")
    with pytest.raises(ParameterError, match="n_anomalies must be at most"):
        simulate(n_stream=5)
