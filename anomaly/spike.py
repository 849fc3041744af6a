"""The published experiment: a network is shown a healthy bearing, then a broken one.

python -m anomaly.spike --out spike.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from anomaly.autoencoder import LSTMAutoencoder
from anomaly.errors import AnomalyError
from anomaly.loading import read_csv
from anomaly.lorenz import simulate

N_SAMPLES = 3000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 is success, 2 a mistake of the user."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        healthy = _signal(options.healthy, 0.0, options.seed)
        broken = _signal(options.broken, 1.0, options.seed + 1)
        detector = LSTMAutoencoder.original(
            n_layers=options.layers, scaling=options.scaling, random_state=options.seed
        )
        for number in range(options.presentations):
            losses = detector.present(healthy)
            print(f"healthy {number + 1}: loss {np.mean(losses):.4f}", flush=True)
        spike = detector.present(broken)
        _draw(detector.losses_, len(spike), options.out)
    except (AnomalyError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(
        f"first broken batch: loss {spike[0]:.4f}, {spike[0] / np.mean(losses):.1f} times the "
        f"mean of the last healthy presentation; alert above 0.1; {options.out}"
    )
    return 0


def _signal(path: str | None, fraction: float, seed: int) -> NDArray[np.float64]:
    if path is not None:
        return read_csv(path, columns=["x", "y", "z"]).frame[["x", "y", "z"]].to_numpy(float)
    return simulate(N_SAMPLES + 500, fraction, noise=0.02, random_state=seed)[500:]


def _draw(losses: list[float], n_broken: int, path: str) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(losses, linewidth=0.6)
    axes.axvline(len(losses) - n_broken, color="tab:red", linestyle="--", label="broken")
    axes.axhline(0.1, color="gray", linestyle=":", label="alert")
    axes.set(xlabel="batch", ylabel="loss (mean absolute error)")
    axes.legend()
    figure.savefig(path, dpi=100)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m anomaly.spike",
        description="Show the original LSTM autoencoder a healthy signal twenty times, then a "
        "broken one, and draw its losses. Eleven layers take minutes on a CPU.",
        epilog="example: python -m anomaly.spike --layers 2 --out spike.png",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--healthy", metavar="CSV", help="columns x, y, z; simulated by default")
    add("--broken", metavar="CSV", help="columns x, y, z; simulated by default")
    add("--layers", type=int, default=11)
    add("--presentations", type=int, default=20, help="of the healthy signal")
    add("--scaling", choices=("window", "healthy"), default="window", help="window: as published")
    add("--seed", type=int, default=0)
    add("--out", default="spike.png", help="picture")
    return parser


if __name__ == "__main__":
    sys.exit(main())
