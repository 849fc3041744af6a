"""Detectors of faults in vibration, on the Lorenz bearing they are measured on."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV

from anomaly import bearing
from anomaly.bands import BandDetector
from anomaly.errors import DataError
from anomaly.lorenz import AT_ONCE, STEP, Rig, between, main, simulate
from anomaly.vibration import VibrationDetector
from anomaly.waveform import cut, spans, tail_threshold

LEVELS = (0.05, 0.1, 0.2, 1.0)
FLOORS = (0.90, 0.98, 0.999, 0.999)


def rig(n_samples: int, fraction=0.0, *, seed: int, noise: float = 0.02) -> np.ndarray:
    """A recording that begins somewhere on the attractor."""
    rng = np.random.default_rng(seed)
    start = tuple(rng.normal([2.0, 3.0, 20.0], 4.0))
    return simulate(n_samples + 500, fraction, noise=noise, start=start, random_state=rng)[500:]


@pytest.fixture(scope="module")
def healthy():
    return rig(3000, seed=1)


@pytest.fixture(scope="module")
def unseen():
    return rig(60_000, seed=2).reshape(-1, 100, 3)


@pytest.fixture(scope="module")
def detector(healthy):
    return VibrationDetector().fit(healthy)


# -- the rig ---------------------------------------------------------------------


@pytest.mark.parametrize("state", ["healthy", "broken"])
def test_the_order_of_the_updates_reproduces_the_recordings_to_their_last_digit(
    state, shared_data
):
    recorded = np.loadtxt(shared_data / "vibration" / f"{state}.csv", delimiter=",", skiprows=1)
    a, b, c = between(0.0 if state == "healthy" else 1.0)
    x, y, z = recorded[:-1].T
    x = x + STEP * a * (y - x)
    y = y + STEP * (x * (b - z) - y)
    z = z + STEP * (x * y - c * z)
    # Ten significant digits were recorded; a step multiplies their rounding by at most 1 + 20.
    rounding = 10.0 ** (np.floor(np.log10(np.abs(recorded).max())) - 9) / 2
    assert np.abs(np.column_stack([x, y, z]) - recorded[1:]).max() < 20 * rounding


def test_simulation_follows_the_recording_while_rounding_has_not_grown(shared_data):
    recorded = np.loadtxt(shared_data / "vibration" / "healthy.csv", delimiter=",", skiprows=1)
    run = simulate(500, start=tuple(recorded[0]))
    np.testing.assert_allclose(run, recorded[1:501], atol=1e-6)


def test_position_is_kept_when_the_state_switches():
    switched = simulate(200, lambda number: 0.0 if number < 100 else 1.0)
    np.testing.assert_array_equal(switched[:100], simulate(100))
    np.testing.assert_array_equal(switched[100:], simulate(100, 1.0, start=tuple(switched[99])))


def test_noise_is_seeded_and_in_units_of_the_healthy_spread():
    noisy = simulate(20_000, noise=0.02, random_state=3)
    np.testing.assert_array_equal(noisy, simulate(20_000, noise=0.02, random_state=3))
    spread = simulate(20_000).std(axis=0)
    np.testing.assert_allclose((noisy - simulate(20_000)).std(axis=0) / spread, 0.02, rtol=0.1)


# -- windows -----------------------------------------------------------------------


@given(
    n=st.integers(1, 60),
    size=st.integers(1, 20),
    hop=st.one_of(st.none(), st.integers(1, 20)),
)
@settings(max_examples=60, deadline=None)
def test_windows_have_the_right_size_and_reach_both_ends(n, size, hop):
    bounds = spans(n, size, hop)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == n
    assert all(b - a == min(size, n) for a, b in bounds)
    windows = cut(np.arange(n)[:, None], size, hop)
    assert windows[:, 0, 0].tolist() == [a for a, _ in bounds]


def test_no_windows_no_threshold():
    with pytest.raises(DataError, match="at least 1 healthy window is needed"):
        tail_threshold([], 0.001)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 30, 1000])
def test_threshold_is_above_all_that_was_seen_and_tightens_with_their_number(n):
    scores = np.exp(np.random.default_rng(n).normal(size=n) * 0.1)
    threshold = tail_threshold(scores, 0.001)
    assert threshold >= scores.max()
    assert threshold >= tail_threshold(scores, 0.001, n_independent=1000)


# -- the detector --------------------------------------------------------------------


@pytest.mark.parametrize(("level", "floor"), list(zip(LEVELS, FLOORS, strict=True)))
def test_area_under_the_curve_reaches_its_floor_on_unseen_seeds(level, floor, detector, unseen):
    faulty = rig(20_000, level, seed=7).reshape(-1, 100, 3)
    scores = detector.decision_function(np.concatenate([unseen, faulty]))
    truth = np.repeat([0, 1], [len(unseen), len(faulty)])
    assert roc_auc_score(truth, scores) >= floor


def test_at_most_one_healthy_window_in_a_thousand_alarms(unseen):
    alarms = [
        VibrationDetector().fit(rig(3000, seed=seed)).predict(unseen).mean() for seed in range(8)
    ]
    assert np.mean(alarms) <= 0.001


def test_full_fault_is_seen_in_the_first_window_and_within_20_samples(detector):
    signal = rig(400, lambda number: 0.0 if number < 700 else 1.0, seed=5)
    assert detector.predict(cut(signal, 100)).tolist() == [0, 0, 1, 1]
    stream = clone(detector).fit(rig(3000, seed=1))
    scores = [stream.score_one(x) for x in signal]
    assert max(scores[:200]) <= 0
    assert next(i for i, score in enumerate(scores[200:]) if score > 0) < 20


def test_fault_rescaled_to_healthy_amplitude_is_still_seen(detector, healthy):
    faulty = rig(5000, 1.0, seed=6)
    rescaled = (faulty - faulty.mean(0)) / faulty.std(0) * healthy.std(0) + healthy.mean(0)
    assert detector.predict(rescaled.reshape(-1, 100, 3)).all()


def test_merely_louder_and_dead_signals_are_seen_and_named(detector):
    windows = rig(1000, seed=8).reshape(-1, 100, 3)
    louder = windows.copy()
    louder[:, :, 1] *= 6.0
    assert detector.predict(louder).mean() > 0.8
    dead = windows.copy()
    dead[:, :, 2] = detector.mean_[2] + np.random.default_rng(0).normal(size=(10, 100)) * 0.01
    assert detector.predict(dead).all()
    assert all(answer["channel"] == 2 for answer in detector.explain(dead))


def test_explanation_names_part_channel_and_sample(detector):
    window = rig(100, seed=9)[None].copy()
    window[0, 60, 1] += 40.0
    (answer,) = detector.explain(window)
    assert answer["part"] == "residual"
    assert answer["channel"] == 1
    assert answer["sample"] in (60, 61)  # the sample after a spike is mispredicted too
    assert sum(answer["channels"]) == pytest.approx(1.0)
    assert answer["decision"] == pytest.approx(detector.decision_function(window)[0])
    assert answer["decision"] == pytest.approx(np.log(max(answer["parts"].values())))


def test_noise_free_data_does_not_alarm_on_rounding():
    t = np.arange(6000)[:, None]
    tone = np.sin(2 * np.pi * t / 25.0 + np.array([[0.0, 1.0]]))
    detector = VibrationDetector().fit(tone[:3000])
    rounded = tone[3000:].round(9).reshape(-1, 100, 2)
    assert not detector.predict(rounded).any()
    assert max(detector.score_one(x) for x in tone[3000:4000]) <= 0


def test_a_still_channel_is_learnt_as_still():
    rng = np.random.default_rng(0)
    signal = np.column_stack([rng.normal(size=3000), np.full(3000, 5.0)])
    detector = VibrationDetector().fit(signal)
    windows = cut(signal[:500], 100)
    assert not detector.predict(windows).any()
    windows[:, :, 1] += rng.normal(size=windows.shape[:2])
    assert detector.predict(windows).all()


def test_stream_score_equals_the_batch_of_its_residuals(healthy):
    detector = VibrationDetector().fit(healthy)
    signal = rig(300, seed=11)
    streamed = [detector.score_one(x) for x in signal]
    levels = detector._smoothed(detector._scale(signal))
    expected = np.log(levels / detector.thresholds_["stream"])
    np.testing.assert_allclose(streamed[detector.order :], expected, rtol=1e-9)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e300])
@pytest.mark.parametrize("smoothing", [0.05, 1.0])
def test_a_glitch_of_one_sample_alarms_at_once_and_for_less_than_a_window(
    size, smoothing, healthy
):
    fitted = VibrationDetector(smoothing=smoothing).fit(healthy)
    signal = rig(300, seed=11)
    signal[150] = size
    one = pickle.loads(pickle.dumps(fitted))
    scores = np.array([one.score_one(x) for x in signal])
    np.testing.assert_allclose(fitted.score_many(signal), scores, rtol=1e-9)
    assert (scores[:150] <= 0).all()
    assert scores[150] > 0
    assert (scores[250:] <= 0).all()


@pytest.mark.parametrize("level", LEVELS)
def test_the_cap_delays_no_alarm(level, detector):
    signal = rig(1500, lambda number: 0.0 if number < 1000 else level, seed=18)
    capped = pickle.loads(pickle.dumps(detector)).score_many(signal)
    uncapped = detector._smoothed(detector._scale(signal)) / detector.thresholds_["stream"]
    assert (capped > 0).any()
    assert np.argmax(capped > 0) == detector.order + np.argmax(uncapped > 1)


@pytest.mark.parametrize("chunk", [1, 3, 8, 50])
def test_chunks_of_a_stream_score_as_its_samples(chunk, detector):
    signal = rig(200, lambda number: 0.0 if number < 600 else 1.0, seed=11)
    one, many = pickle.loads(pickle.dumps(detector)), pickle.loads(pickle.dumps(detector))
    one.reset_stream()
    many.reset_stream()
    chunks = [many.score_many(signal[i : i + chunk]) for i in range(0, 200, chunk)]
    np.testing.assert_allclose(
        np.concatenate(chunks), [one.score_one(x) for x in signal], rtol=1e-9
    )


def test_residual_equals_the_obvious_loop(detector):
    window = detector._scale(rig(30, seed=12))
    slow = []
    for t in range(detector.order, 30):
        lags = np.concatenate([*window[t - detector.order : t][::-1], [1.0]])
        slow.append((window[t] - lags @ detector.coefficients_) / detector.residual_scale_)
    np.testing.assert_allclose(detector._residuals(window[None])[0], slow, rtol=1e-9)


def test_samples_of_a_signal_get_the_answer_of_their_window(detector):
    signal = rig(250, seed=13)
    scores = detector.decision_function(signal)
    a, b, last = detector.decision_function(cut(signal, 100))
    np.testing.assert_allclose(scores, np.repeat([a, b, last], [100, 100, 50]))


def test_labelled_faults_are_not_learnt(healthy):
    signal = np.concatenate([healthy, rig(600, 1.0, seed=14)])
    y = np.repeat([0, 1], [3000, 600])
    labelled = VibrationDetector().fit(signal, y)
    np.testing.assert_array_equal(
        labelled.coefficients_, VibrationDetector().fit(healthy).coefficients_
    )
    assert labelled.predict(signal)[3000:].all()


def test_learns_itself_from_a_stream():
    detector = VibrationDetector(learn_size=3000)
    for x in rig(3000, seed=1):
        assert detector.process_one(x) == 0.0
    batch = VibrationDetector().fit(rig(3000, seed=1))
    np.testing.assert_array_equal(detector.coefficients_, batch.coefficients_)


def test_a_stream_in_progress_survives_pickling(healthy):
    detector = VibrationDetector().fit(healthy)
    signal = rig(60, seed=15)
    for x in signal[:30]:
        detector.score_one(x)
    restored = pickle.loads(pickle.dumps(detector))
    assert [detector.score_one(x) for x in signal[30:]] == [
        restored.score_one(x) for x in signal[30:]
    ]


def test_sits_in_a_grid(healthy):
    X = np.concatenate([rig(6000, seed=16), rig(6000, 1.0, seed=17)]).reshape(-1, 100, 3)
    y = np.repeat([0, 1], 60)
    search = GridSearchCV(VibrationDetector(), {"order": [2, 8]}, scoring="f1", cv=3).fit(X, y)
    assert search.best_score_ > 0.95


def test_wrong_number_of_channels_is_refused(detector):
    with pytest.raises(ValueError, match="X has 2 features, but VibrationDetector is expecting 3"):
        detector.predict(np.zeros((4, 100, 2)))


def test_no_healthy_sample_is_refused():
    with pytest.raises(DataError, match="at least one sample healthy"):
        VibrationDetector().fit(np.zeros((2, 100, 3)), [1, 1])


@pytest.mark.parametrize("odd", [[1.0, np.nan, 2.0], [1.0, np.inf, 2.0], [1.0, 2.0]])
def test_a_sample_that_is_no_sample_is_refused_and_leaves_no_trace(odd):
    healthy = simulate(3500, noise=0.02, random_state=0)[500:]
    detector, other = VibrationDetector().fit(healthy), VibrationDetector().fit(healthy)
    detector.score_many(healthy[:20])
    other.score_many(healthy[:20])
    for refused in (lambda: detector.score_one(odd), lambda: detector.score_many([odd])):
        with pytest.raises(DataError, match="X: samples"):
            refused()
    assert detector.score_one(healthy[20]) == other.score_one(healthy[20])
    with pytest.raises(DataError, match="finite"):
        VibrationDetector().learn_one([1.0, np.nan, 2.0])


def test_detectors_of_windows_score_and_learn_streams_too(healthy):
    stream = BandDetector(window_size=50)
    for sample in healthy[: stream.learn_size]:
        stream.learn_one(sample)
    batch = BandDetector(window_size=50).fit(healthy[: stream.learn_size])
    broken = simulate(120, 1.0, noise=0.02, random_state=5)
    scores = [stream.score_one(sample) for sample in broken]
    assert scores[:49] == [0.0] * 49
    windows = np.stack([broken[i - 49 : i + 1] for i in range(49, 120)])
    np.testing.assert_allclose(scores[49:], batch.decision_function(windows), rtol=1e-9)
    assert scores[-1] > 0
    again = pickle.loads(pickle.dumps(stream))
    assert again.score_one(broken[0]) == stream.score_one(broken[0])
    stream.reset_stream()
    assert stream.score_one(broken[0]) == 0.0


def test_a_detector_of_windows_refuses_what_is_no_sample(healthy):
    stream = BandDetector(window_size=50).fit(healthy)
    for odd in ([1.0, 2.0], [1.0, np.nan, 2.0], [np.inf, 0.0, 0.0]):
        with pytest.raises(DataError, match="X: samples"):
            stream.score_one(odd)


# -- the commands ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["1,2,3"] * 999, "at least 1000 samples are needed (10 windows), got 999"),
        (["1,2,3"] * 999 + ["1,,3"], "1 of 1000 lack one"),
        (["1,2,inf"] + ["1,2,3"] * 999, "every sample needs a finite number for x, y, z"),
        (["1,2,a"] * 1000, "line 2, column 'z': 'a' is not a number"),
    ],
)
def test_a_recording_with_gaps_or_too_short_is_refused(tmp_path, capsys, rows, text):
    (tmp_path / "healthy.csv").write_text("\n".join(["x,y,z", *rows]))
    assert bearing.main([str(tmp_path / "healthy.csv"), str(tmp_path / "bearing.clf")]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "bearing.clf").exists()


def test_a_long_recording_is_written_as_it_is_simulated(tmp_path, capsys):
    n_samples = 2 * AT_ONCE + 7
    seconds = str(n_samples / 100)
    assert (
        main(["--seconds", seconds, "--switch", "120=broken", "--csv", str(tmp_path / "a")]) == 0
    )
    values = np.loadtxt(tmp_path / "a", delimiter=",", skiprows=1)
    expected = Rig(0.0, [(120.0, 1.0)], noise=0.02).take(n_samples)
    np.testing.assert_array_equal(values, expected)
