"""From recordings to pictures to a detector file for the live runner.

    python examples/vibration.py --out vibration

Without ``--healthy`` and ``--broken`` (CSV files with columns x, y, z) the bearing
is simulated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly import bearing, lorenz
from anomaly.bands import VibrationEnsemble
from anomaly.loading import read_csv
from anomaly.waveform import cut

RATE_HZ = 100.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--healthy", help="CSV file")
    parser.add_argument("--broken", help="CSV file")
    parser.add_argument("--out", type=Path, default=Path("vibration"), help="folder")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    paths = {"healthy": options.healthy, "broken": options.broken}
    for state, path in paths.items():
        if path is None:
            paths[state] = str(out / f"{state}.csv")
            lorenz.main(["--state", state, "--seconds", "35", "--csv", paths[state]])
    signals = {state: load(path)[-3000:] for state, path in paths.items()}
    draw_signals(signals, out / "signals.png")
    draw_scores(signals, out / "scores.png")
    code = bearing.main([paths["healthy"], str(out / "bearing.clf")])
    print(f"pictures: {out / 'signals.png'}, {out / 'scores.png'}")
    print(
        "next: python -m production.mqtt --subscribe 'plant/+/vibration' "
        f"--publish 'plant/{{device}}/anomaly' --detector {out / 'bearing.clf'} --window 100"
    )
    return code


def load(path: str) -> np.ndarray:
    return read_csv(path, columns=["x", "y", "z"]).frame[["x", "y", "z"]].to_numpy(float)


def draw_signals(signals: dict[str, np.ndarray], path: Path) -> None:
    """Time and frequency domain, healthy beside broken."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(2, 2, sharey="row")
    for (state, signal), (time, frequency) in zip(signals.items(), grid.T, strict=True):
        time.plot(np.arange(len(signal)) / RATE_HZ, signal, linewidth=0.5, label=list("xyz"))
        time.set(title=state, xlabel="seconds", ylabel="signal")
        power = np.abs(np.fft.rfft(signal - signal.mean(axis=0), axis=0)) ** 2 / len(signal)
        hertz = np.fft.rfftfreq(len(signal), 1.0 / RATE_HZ)
        frequency.semilogy(hertz[1:], power[1:], linewidth=0.5)
        frequency.set(xlabel="hertz", ylabel="power")
        time.legend(loc="upper right")
    figure.savefig(path, dpi=100)


def draw_scores(signals: dict[str, np.ndarray], path: Path) -> None:
    """Score of each window and sample, fitted to the first healthy half, the switch marked."""
    healthy, broken = signals["healthy"], signals["broken"]
    half = len(healthy) // 2
    detector = VibrationEnsemble().fit(healthy[:half])
    watched = np.concatenate([healthy[half:], broken[:half]])
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(detector.score_many(watched), linewidth=0.6, label="stream")
    windows = detector.decision_function(cut(watched, 100))
    axes.step(np.arange(len(windows)) * 100, windows, where="post", label="windows of 100")
    axes.axvline(len(healthy) - half, color="tab:red", linestyle="--", label="switch to broken")
    axes.axhline(0.0, color="gray", linestyle=":", label="threshold")
    axes.set(xlabel="sample", ylabel="score (log ratio to threshold)")
    axes.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
