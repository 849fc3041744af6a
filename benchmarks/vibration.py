"""Compare the vibration detectors on the simulated bearing, on seeds none was tuned on.

    python benchmarks/vibration.py
    python benchmarks/vibration.py --detectors residual,bands,ensemble --seeds 10

Each detector is fitted to 3,000 healthy samples (noise 2 %) and scores windows of
100 unseen ones. Columns: CPU seconds of fitting, CPU microseconds per window, healthy
windows that alarm per thousand, and the area under the ROC curve where the dynamics
moved 5, 10, 20 and 100 % of the way to broken; then the same with every fault rescaled
to the healthy amplitude. The row `level` (root mean square alone) is the plain approach;
the last line is the ensemble's area at 5 % over that of the level.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.autoencoder import ConvAutoencoder, LSTMAutoencoder
from anomaly.bands import BandDetector, VibrationEnsemble
from anomaly.lorenz import simulate
from anomaly.vibration import VibrationDetector

WINDOW = 100
LEVELS = (0.05, 0.1, 0.2, 1.0)


class Level:
    """Distance of a window's root mean square from the healthy one: the plain approach."""

    def fit(self, X: np.ndarray) -> Level:
        levels = self._levels(X.reshape(-1, WINDOW, X.shape[1]))
        self.mean, self.spread = levels.mean(axis=0), levels.std(axis=0)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        return (np.abs(self._levels(X) - self.mean) / self.spread).max(axis=1) - 3.0

    @staticmethod
    def _levels(windows: np.ndarray) -> np.ndarray:
        return 0.5 * np.log(np.mean(windows**2, axis=1))


DETECTORS: dict[str, Callable[[], Any]] = {
    "level": Level,
    "residual": VibrationDetector,
    "bands": BandDetector,
    "ensemble": VibrationEnsemble,
    "conv": lambda: ConvAutoencoder(random_state=0),
    "lstm": lambda: LSTMAutoencoder(random_state=0),
}


def recording(n_samples: int, fraction: float, seed: int) -> np.ndarray:
    """Begin somewhere on the attractor."""
    rng = np.random.default_rng(seed)
    start = tuple(rng.normal([2.0, 3.0, 20.0], 4.0))
    return simulate(n_samples + 500, fraction, noise=0.02, start=start, random_state=rng)[500:]


def measure(
    make: Callable[[], Any],
    healthy: np.ndarray,
    unseen: np.ndarray,
    faulty: list[np.ndarray],
) -> list[float]:
    """One row: times, false alarms, and the areas."""
    begun = time.process_time()
    detector = make().fit(healthy)
    fitted = time.process_time()
    calm = detector.decision_function(unseen)
    scored = time.process_time()
    row = [fitted - begun, 1e6 * (scored - fitted) / len(unseen), 1e3 * float((calm > 0).mean())]
    for windows in faulty:
        truth = np.repeat([0, 1], [len(calm), len(windows)])
        scores = np.concatenate([calm, detector.decision_function(windows)])
        row.append(float(roc_auc_score(truth, scores)))
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detectors", default=",".join(DETECTORS), help="names, comma between")
    parser.add_argument("--seeds", type=int, default=3, help="healthy recordings (3)")
    parser.add_argument("--windows", type=int, default=500, help="per test recording (500)")
    options = parser.parse_args()
    names = options.detectors.split(",")
    unknown = sorted(set(names) - set(DETECTORS))
    if unknown:
        parser.error(f"--detectors: {unknown[0]!r} is none of {', '.join(DETECTORS)}")
    unseen = recording(options.windows * WINDOW, 0.0, 10_001)
    faulty = [recording(options.windows * WINDOW, f, 10_002 + i) for i, f in enumerate(LEVELS)]
    rescaled = [
        (x - x.mean(axis=0)) / x.std(axis=0) * unseen.std(axis=0) + unseen.mean(axis=0)
        for x in faulty
    ]
    cut = [x.reshape(-1, WINDOW, 3) for x in [unseen, *faulty, *rescaled]]
    print(
        "detector   fit s  µs/window  alarms ‰ |  5 %   10 %   20 %  100 % |  … amplitude removed"
    )
    areas = {}
    for name in names:
        rows = [
            measure(DETECTORS[name], recording(3000, 0.0, 20_000 + seed), cut[0], cut[1:])
            for seed in range(options.seeds)
        ]
        fit, each, alarms, *found = np.mean(rows, axis=0)
        areas[name] = found[0]
        text = [" ".join(f"{area:.4f}" for area in part) for part in (found[:4], found[4:])]
        print(
            f"{name:9} {fit:6.2f} {each:10.1f} {alarms:9.2f} | {text[0]} | {text[1]}", flush=True
        )
    if {"ensemble", "level"} <= areas.keys():
        print(f"ensemble / level at 5 %: {areas['ensemble'] / areas['level']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
