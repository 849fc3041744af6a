"""Our scorer follows the rules of the Numenta Anomaly Benchmark."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.special

from benchmarks import nab

# What the benchmark published for its detector "windowedGaussian" at its threshold 1:
# raw scores of a file for the three profiles, alarms inside windows and outside.
PUBLISHED = {
    "artificialNoAnomaly/art_daily_no_noise.csv": (0.0, 0.0, 0.0, 0, 0),
    "artificialNoAnomaly/art_daily_small_noise.csv": (0.0, 0.0, 0.0, 0, 0),
    "artificialNoAnomaly/art_noisy.csv": (0.0, 0.0, 0.0, 0, 0),
    "artificialWithAnomaly/art_daily_flatmiddle.csv": (-1.0, -1.0, -2.0, 0, 0),
    "artificialWithAnomaly/art_daily_jumpsup.csv": (-1.0, -1.0, -2.0, 0, 0),
    "artificialWithAnomaly/art_increase_spike_density.csv": (-1.0, -1.0, -2.0, 0, 0),
    "realAWSCloudwatch/ec2_cpu_utilization_24ae8d.csv": (
        -1.26667875935,
        -2.39490832077,
        -2.26667875935,
        2,
        11,
    ),
    "realAWSCloudwatch/ec2_cpu_utilization_5f5533.csv": (-2.0, -2.0, -4.0, 0, 0),
    "realAWSCloudwatch/ec2_cpu_utilization_825cc2.csv": (
        0.956537840284,
        0.956537840284,
        0.956537840284,
        36,
        0,
    ),
    "realAWSCloudwatch/ec2_cpu_utilization_c6585a.csv": (-1.32, -2.64, -1.32, 0, 12),
    "realAWSCloudwatch/ec2_disk_write_bytes_1ef3de.csv": (
        -4.19089678552,
        -9.31619217025,
        -4.19089678552,
        9,
        48,
    ),
    "realAWSCloudwatch/ec2_network_in_257a54.csv": (
        0.86067182427,
        0.86067182427,
        0.86067182427,
        4,
        0,
    ),
    "realAWSCloudwatch/elb_request_count_8c0756.csv": (
        -0.138449197924,
        -0.138449197924,
        -1.13844919792,
        1,
        0,
    ),
    "realAWSCloudwatch/iio_us-east-1_i-a2eb1cd9_NetworkIn.csv": (-2.0, -2.0, -4.0, 0, 0),
    "realAWSCloudwatch/rds_cpu_utilization_e47b3b.csv": (
        -0.138449197924,
        -0.138449197924,
        -1.13844919792,
        2,
        0,
    ),
    "realAdExchange/exchange-2_cpc_results.csv": (-1.0, -1.0, -2.0, 0, 0),
    "realAdExchange/exchange-3_cpc_results.csv": (
        2.50266326119,
        2.39266475507,
        2.50266326119,
        5,
        1,
    ),
    "realAdExchange/exchange-4_cpc_results.csv": (
        0.292288463428,
        -0.147680769569,
        -0.707711536572,
        3,
        4,
    ),
    "realKnownCause/ambient_temperature_system_failure.csv": (-2.0, -2.0, -4.0, 0, 0),
    "realKnownCause/ec2_request_latency_system_failure.csv": (
        2.02150685678,
        2.02150685678,
        2.02150685678,
        8,
        0,
    ),
    "realKnownCause/nyc_taxi.csv": (-5.0, -5.0, -10.0, 0, 0),
    "realKnownCause/rogue_agent_key_updown.csv": (
        -1.3964908955,
        -2.1748083231,
        -2.3964908955,
        1,
        8,
    ),
    "realTraffic/TravelTime_387.csv": (-1.79598133079, -2.45598133079, -3.79598133079, 1, 6),
    "realTraffic/occupancy_6005.csv": (-1.0, -1.0, -2.0, 0, 0),
    "realTraffic/speed_6005.csv": (0.832538201468, 0.832538201468, 0.832538201468, 1, 0),
    "realTraffic/speed_t4013.csv": (1.76631783122, 1.76631783122, 1.76631783122, 14, 0),
    "realTweets/Twitter_volume_AAPL.csv": (1.51399683626, -0.818874447425, 1.51399683626, 42, 24),
    "realTweets/Twitter_volume_CRM.csv": (0.763845764094, 0.763845764094, -0.236154235906, 10, 0),
    "realTweets/Twitter_volume_FB.csv": (0.119750278191, -1.53024917684, 0.119750278191, 6, 15),
    "realTweets/Twitter_volume_IBM.csv": (
        -0.799109479229,
        -3.39078756281,
        -0.799109479229,
        14,
        25,
    ),
    "realTweets/Twitter_volume_PFE.csv": (0.26557999349, -1.05441789301, -0.73442000651, 7, 12),
}
# Sums of the raw scores published for the benchmark's other 27 files, the windows of all
# 58 and the final scores.
PUBLISHED_REST = (-8.8627469935, -34.9795575694, -26.8627469935)
PUBLISHED_WINDOWS = 116
PUBLISHED_FINAL = (39.649523496, 20.867985825, 47.410027158)


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


def windowed_tails(values, size=6400, step=100):
    """The published detector: normal tail of a value under the mean and deviation of a
    window that grows to its size, then moves in steps; 12 digits as in result files."""
    shifted = values - np.median(values)  # keeps the sums of squares precise
    sums = np.concatenate([[0.0], np.cumsum(shifted)])
    squares = np.concatenate([[0.0], np.cumsum(shifted**2)])
    stop = np.arange(len(values))
    stop = np.where(stop > size, size + (stop - size) // step * step, stop)
    start = np.maximum(stop - size, 0)
    n = np.maximum(stop - start, 1)
    mean = (sums[stop] - sums[start]) / n
    variance = np.maximum((squares[stop] - squares[start]) / n - mean**2, 0.0)
    deviation = np.where(variance > 1e-20, np.sqrt(variance), 1e-6)
    tails = 0.5 * scipy.special.erfc(np.abs(shifted - mean) / deviation / 1.4142)
    scores = np.array([float(f"{1.0 - tail:.12g}") for tail in tails])
    scores[0] = 0.0
    return scores


def test_published_scores_of_every_file_and_of_the_whole_are_reproduced(shared_data):
    corpus = nab.read_folder(shared_data / "nab", shared_data / "nab" / "windows.json")
    assert len(corpus) == len(PUBLISHED)
    totals = np.array(PUBLISHED_REST)
    for series in corpus:
        scores = windowed_tails(series.values)
        alarms = (scores >= 1.0) & (np.arange(len(scores)) >= series.probation)
        *raw, inside, outside = PUBLISHED[series.name]
        assert (alarms & series.labels).sum() == inside
        assert (alarms & ~series.labels).sum() == outside
        found = []
        for weights in nab.PROFILES.values():
            thresholds, sums, _ = nab.sweep([series], [scores], *weights)
            found.append(sums[thresholds >= 1.0][-1])
        assert found == pytest.approx(raw, abs=1e-9), series.name
        totals += found
    for total, (_, miss), final in zip(
        totals, nab.PROFILES.values(), PUBLISHED_FINAL, strict=True
    ):
        assert nab.normalised(total, PUBLISHED_WINDOWS, miss) == pytest.approx(final, abs=1e-7)


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
