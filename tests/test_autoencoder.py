"""Autoencoders of vibration, small enough to train in seconds, and frequency bands."""

from __future__ import annotations

import functools
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from anomaly import bearing, spike
from anomaly.autoencoder import ConvAutoencoder, LSTMAutoencoder, OnnxAutoencoder
from anomaly.bands import BandDetector, VibrationEnsemble, band_edges, band_powers
from anomaly.errors import DataError, ParameterError
from anomaly.lorenz import simulate
from anomaly.vibration import VibrationDetector
from production.classify import load
from production.devices import Device, Plan


def rig(n_samples: int, fraction: float = 0.0, *, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    start = tuple(rng.normal([2.0, 3.0, 20.0], 4.0))
    return simulate(n_samples + 500, fraction, noise=0.02, start=start, random_state=rng)[500:]


@pytest.fixture(scope="module")
def healthy():
    return rig(3000, seed=1)


@pytest.fixture(scope="module")
def windows():
    return rig(10_000, seed=2).reshape(-1, 100, 3)


@pytest.fixture(scope="module")
def broken():
    return rig(2000, 1.0, seed=3).reshape(-1, 100, 3)


@pytest.fixture(scope="module")
def fitted(healthy):
    return {
        "conv": ConvAutoencoder(epochs=30, random_state=0).fit(healthy),
        "lstm": LSTMAutoencoder(epochs=10, random_state=0).fit(healthy),
    }


@pytest.mark.parametrize("kind", ["conv", "lstm"])
def test_the_full_fault_is_seen_and_healthy_windows_are_not(kind, fitted, windows, broken):
    assert fitted[kind].predict(windows).mean() <= 0.02
    assert fitted[kind].predict(broken).all()


def test_a_slight_fault_is_ranked_above_healthy_windows(fitted, windows):
    slight = rig(5000, 0.1, seed=4).reshape(-1, 100, 3)
    scores = fitted["conv"].decision_function(np.concatenate([windows, slight]))
    assert roc_auc_score(np.repeat([0, 1], [100, 50]), scores) > 0.95


@pytest.mark.parametrize("cls", [ConvAutoencoder, LSTMAutoencoder])
def test_training_is_repeatable_and_leaves_the_global_seed_alone(cls, healthy, windows):
    import torch

    before = torch.random.get_rng_state()
    a, b = (cls(epochs=2, random_state=3).fit(healthy[:1000]) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(a.decision_function(windows), b.decision_function(windows))
    assert a.losses_ == b.losses_


@pytest.mark.parametrize("kind", ["conv", "lstm"])
def test_a_pickled_detector_scores_and_learns_on(kind, fitted, healthy, windows):
    restored = pickle.loads(pickle.dumps(fitted[kind]))
    np.testing.assert_allclose(
        restored.decision_function(windows), fitted[kind].decision_function(windows), atol=1e-6
    )
    assert len(restored.set_params(epochs=1).learn_window(healthy[:500])) > 0


@pytest.mark.parametrize("kind", ["conv", "lstm"])
@pytest.mark.filterwarnings("default")
def test_onnx_scores_equal_torch_and_need_no_torch(kind, fitted, windows, broken, tmp_path):
    path = fitted[kind].export_onnx(tmp_path / "bearing.onnx")
    both = np.concatenate([windows, broken])
    np.save(tmp_path / "windows.npy", both)
    code = (
        "import sys, numpy as np\n"
        "from anomaly.autoencoder import OnnxAutoencoder\n"
        f"scores = OnnxAutoencoder({str(path)!r}).decision_function("
        f"np.load({str(tmp_path / 'windows.npy')!r}))\n"
        "assert 'torch' not in sys.modules\n"
        f"np.save({str(tmp_path / 'scores.npy')!r}, scores)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    expected = fitted[kind].decision_function(both)
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected, atol=1e-5)
    loaded = OnnxAutoencoder(path)
    np.testing.assert_array_equal(loaded.predict(both), fitted[kind].predict(both))
    with pytest.raises(DataError, match=r"shape \(n_windows, 100, 3\) is needed"):
        loaded.decision_function(both[:, :50])


def test_explanation_names_the_channel_that_is_redrawn_worst(fitted, windows):
    odd = windows[:1].copy()
    odd[0, 40:50, 2] += 100.0
    (answer,) = fitted["conv"].explain(odd)
    assert answer["channel"] == 2
    assert 35 <= answer["sample"] <= 55


def test_the_original_has_the_published_form():
    original = LSTMAutoencoder.original(random_state=0)
    assert (
        original.get_params()
        | {
            "window_size": 10,
            "n_layers": 11,
            "n_units": 50,
            "loss": "mae",
            "batch_size": 72,
            "shuffle": False,
            "epochs": 50,
            "threshold": 0.1,
        }
        == original.get_params()
    )


def test_the_original_makes_five_losses_per_epoch_and_spikes_at_the_fault(healthy):
    small = LSTMAutoencoder.original(random_state=0, n_layers=1, epochs=10)
    for _ in range(4):
        losses = small.present(healthy)
    assert len(losses) == 5 * 10
    small.scaling = "healthy"
    assert small.present(rig(3000, 1.0, seed=5))[0] > 4 * np.mean(losses)
    assert len(small.losses_) == 250


def test_a_network_of_eleven_layers_trains_a_step():
    original = LSTMAutoencoder.original(random_state=0, epochs=1)
    assert len(original.present(rig(720, seed=6))) == 1
    assert len(original.network_.layers) == 1
    assert original.network_.layers[0].num_layers == 11


def test_scaling_by_the_window_is_blind_to_loudness(healthy):
    network = LSTMAutoencoder.original(random_state=0, n_layers=1, epochs=1)
    network.present(healthy)
    np.testing.assert_allclose(network._scale(healthy), network._scale(healthy * 10.0 + 3.0))


def test_the_experiment_is_one_command_that_ends_in_a_picture(tmp_path, capsys):
    path = tmp_path / "spike.png"
    assert spike.main(["--layers", "1", "--presentations", "1", "--out", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "first broken batch: loss" in capsys.readouterr().out
    assert spike.main(["--healthy", str(tmp_path / "none.csv")]) == 2
    assert capsys.readouterr().err.startswith("python -m anomaly.spike: error: ")


def test_a_network_in_a_file_goes_on_learning_in_the_runner_until_the_fault(
    tmp_path, healthy, monkeypatch
):
    np.savetxt(tmp_path / "h.csv", healthy, delimiter=",", header="x,y,z", comments="")
    monkeypatch.setitem(bearing.KINDS, "conv", functools.partial(ConvAutoencoder, epochs=20))
    arguments = [str(tmp_path / "h.csv"), str(tmp_path / "b.clf"), "--detector", "conv"]
    assert bearing.main(arguments) == 0
    detector = load(tmp_path / "b.clf").pipeline.steps[-1][1]
    device = Device.start("a", Plan(window=500, continuous=True), detector, fitted=True)
    calm, odd = device.feed(rig(500, seed=20)), device.feed(rig(500, 1.0, seed=21))
    assert [len(a["loss"]) > 0 for a in (*calm, *odd)] == [True, False]
    assert device.frozen


def test_an_unknown_device_is_named(healthy):
    with pytest.raises(ParameterError, match="auto, cpu or cuda is needed, got 'gpu'"):
        ConvAutoencoder(device="gpu", epochs=1).fit(healthy[:300])


# -- bands ------------------------------------------------------------------------------


def test_a_tone_lies_in_its_band_and_is_named_in_hertz(healthy):
    detector = BandDetector(rate_hz=100.0).fit(healthy)
    tone = rig(100, seed=7)[None].copy()
    tone[0, :, 1] += 30.0 * np.sin(2 * np.pi * 40.0 * np.arange(100) / 100.0)
    (answer,) = detector.explain(tone)
    low, high = answer["band_hz"]
    assert answer["channel"] == 1
    assert low <= 40.0 < high
    assert answer["decision"] == pytest.approx(detector.decision_function(tone)[0])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 100])
def test_bands_cover_all_frequencies_once(size):
    edges = band_edges(size, 5)
    assert edges[-1] == size // 2 + 1
    assert (np.diff(edges) > 0).all()
    assert band_powers(np.ones((2, size, 3)), 5, size).shape == (2, 3, len(edges) - 1)


def test_band_power_equals_the_obvious_sum():
    signal = np.random.default_rng(0).normal(size=20)
    tapered = (signal - signal.mean()) * np.hanning(20)
    t = np.arange(20)
    power = [abs(np.sum(tapered * np.exp(-2j * np.pi * k * t / 20))) ** 2 / 20 for k in range(11)]
    edges = band_edges(20, 3)
    expected = [np.mean(power[a:b]) for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(band_powers(signal[None, :, None], 3, 20)[0, 0], expected)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("level", [0.05, 0.1, 0.2, 1.0])
def test_the_ensemble_is_as_sharp_as_either_of_its_members(level, rescaled, healthy, windows):
    faulty = rig(10_000, level, seed=8)
    if rescaled:
        flat = windows.reshape(-1, 3)
        faulty = (faulty - faulty.mean(0)) / faulty.std(0) * flat.std(0) + flat.mean(0)
    both = np.concatenate([windows, faulty.reshape(-1, 100, 3)])
    truth = np.repeat([0, 1], [100, 100])
    residual, bands, ensemble = (
        roc_auc_score(truth, cls().fit(healthy).decision_function(both))
        for cls in (VibrationDetector, BandDetector, VibrationEnsemble)
    )
    assert ensemble >= max(residual, bands) - 0.025  # 100 windows tell no smaller difference


def test_the_ensemble_keeps_the_false_alarm_rate_and_explains(healthy):
    ensemble = VibrationEnsemble().fit(healthy)
    assert ensemble.predict(rig(60_000, seed=9).reshape(-1, 100, 3)).mean() <= 0.003
    answers = ensemble.explain(rig(300, 1.0, seed=10).reshape(3, 100, 3))
    assert all(answer["part"] in ("joint", "louder", "bands") for answer in answers)


def test_an_autoencoder_scores_a_stream_by_its_newest_window():
    healthy = simulate(600, noise=0.02, random_state=0)
    detector = ConvAutoencoder(window_size=20, epochs=1, random_state=0).fit(healthy)
    scores = [detector.score_one(sample) for sample in healthy[:25]]
    expected = detector.decision_function(healthy[None, 5:25])[0]
    assert scores[:19] == [0.0] * 19
    assert scores[-1] == pytest.approx(expected, abs=1e-5)
