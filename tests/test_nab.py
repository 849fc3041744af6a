"""Our scorer follows the rules of the Numenta Anomaly Benchmark."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from benchmarks import nab

# Raw standard scores that the benchmark published for one of its detectors, of
# files where it had no false alarm: score, labelled records after probation, all
# records, records after probation outside windows.
PUBLISHED = {
    "realAWSCloudwatch/ec2_network_in_257a54.csv": (0.855326299622, 403, 4032, 3025),
    "realAWSCloudwatch/elb_request_count_8c0756.csv": (1.70512381098, 402, 4032, 3026),
    "realAWSCloudwatch/rds_cpu_utilization_e47b3b.csv": (1.71242101575, 402, 4032, 3026),
    "realAdExchange/exchange-3_cpc_results.csv": (0.640916943935, 153, 1538, 1155),
}
HITS = {"realAdExchange/exchange-3_cpc_results.csv": 2}


def a_series(n=1000, windows=((400, 499), (700, 749))):
    return nab.Series("a.csv", np.zeros(n), np.arange(n) * 60.0, [""] * n, list(windows))


def slow_raw_score(series, scores, threshold, false_alarm, miss):
    """One threshold, straight from the rules."""

    def sigmoid(position):
        return -1.0 if position >= 3 else 2 / (1 + np.exp(5 * position)) - 1

    total, past = 0.0, None
    for first, last in series.windows:
        inside = [i for i in range(first, last + 1) if i >= series.probation]
        hits = [i for i in inside if scores[i] >= threshold]
        if hits:
            total += sigmoid(-(last - hits[0] + 1) / (last - first + 1)) / sigmoid(-1.0)
        elif inside:
            total -= miss
    for i in range(series.probation, len(scores)):
        for first, last in series.windows:
            if first <= i <= last:
                break
            if last < i:
                past = (last, last - first)
        else:
            if scores[i] >= threshold:
                position = 3.0 if past is None else (i - past[0]) / past[1]
                total += false_alarm * sigmoid(position)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_sweep_equals_the_rules_at_every_threshold(seed):
    rng = np.random.default_rng(seed)
    series = a_series(n=1000, windows=[(100, 199), (400, 430), (431, 460), (900, 999)])
    scores = rng.integers(0, 30, 1000) / 30.0
    for false_alarm, miss in nab.PROFILES.values():
        thresholds, totals, n_windows = nab.sweep([series], [scores], false_alarm, miss)
        assert n_windows == 4
        for threshold, total in zip(thresholds, totals, strict=True):
            expected = slow_raw_score(series, scores, threshold, false_alarm, miss)
            assert total == pytest.approx(expected, abs=1e-9)


def test_no_alarm_is_zero_and_first_records_of_windows_are_a_hundred():
    series = a_series()
    flat = nab.nab_scores([series], [np.zeros(1000)], threshold=0.5)
    assert [score for score, _ in flat.values()] == pytest.approx([0.0, 0.0, 0.0])
    perfect = np.zeros(1000)
    perfect[[400, 700]] = 1.0
    best = nab.nab_scores([series], [perfect])
    assert [score for score, _ in best.values()] == pytest.approx([100.0, 100.0, 100.0])


def test_alarms_in_probation_do_not_count():
    series = a_series()
    scores = np.zeros(1000)
    scores[:150] = 1.0
    assert nab.nab_scores([series], [scores], threshold=0.5)["standard"][0] == pytest.approx(0.0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_scores_of_single_files_are_reached_by_their_hits(shared_data, name):
    corpus = nab.read_folder(shared_data / "nab", shared_data / "nab" / "windows.json")
    series = next(s for s in corpus if s.name == name)
    score, labelled, records, outside = PUBLISHED[name]
    worth, window = nab.alarm_values(series)
    counted = window[series.probation :]
    assert len(series.values) == records
    assert (counted >= 0).sum() == labelled
    assert (counted < 0).sum() == outside
    hits = HITS.get(name, len(series.windows))
    missed = len(series.windows) - hits
    sums = [
        sum(values)
        for chosen in itertools.combinations(series.windows, hits)
        for values in itertools.product(*(worth[a : b + 1] for a, b in chosen))
    ]
    assert np.abs(np.array(sums) - missed - score).min() < 1e-9


def test_published_raw_total_normalises_to_the_published_score():
    assert nab.normalised(35.4320680226, 116, 1.0) == pytest.approx(65.27, abs=0.01)


def test_command_writes_result_files_and_scores_them(shared_data, tmp_path, capsys):
    data = ["--data", str(shared_data / "nab")]
    assert nab.main([*data, "--detector", "tile", "--jobs", "1", "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "random" in table
    assert "VUS-PR" in table
    assert nab.main([*data, "--score", str(tmp_path / "tile")]) == 0
    standard = float(capsys.readouterr().out.split()[1])
    assert standard > 70.0
    written = (tmp_path / "tile" / "realTweets" / "tile_Twitter_volume_FB.csv").read_text()
    assert written.startswith("timestamp,value,anomaly_score,label\n2015-02-26 21:42:53,")


def test_folder_without_series_is_a_message_and_not_a_traceback(tmp_path, capsys):
    (tmp_path / "windows.json").write_text('{"a/b.csv": []}')
    assert nab.main(["--data", str(tmp_path)]) == 2
    assert "holds none of the 1 files" in capsys.readouterr().err


def test_help_teaches_with_an_example(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nab.py", "--help"])
    with pytest.raises(SystemExit):
        nab.main(["--help"])
    assert "python benchmarks/nab.py --data" in capsys.readouterr().out
