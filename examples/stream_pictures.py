"""Draw the pictures of docs/streams.md: a daily rhythm with three kinds of anomaly.

python examples/stream_pictures.py docs/pictures
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anomaly.htm import HTMDetector
from anomaly.stream_plot import plot_stream
from anomaly.tiles import TileDetector


def a_stream() -> pd.Series:
    """Four weeks of ten-minute records; a flat night, a fast day and one huge value."""
    rng = np.random.default_rng(0)
    t = np.arange(4032)
    x = 50 + 20 * np.sin(2 * np.pi * t / 144) + 6 * np.sin(2 * np.pi * t / 72)
    x += rng.normal(size=len(t))
    x[2200:2290] = 50 + rng.normal(size=90)
    x[2900:2980] = 50 + 20 * np.sin(2 * np.pi * t[2900:2980] / 20)
    x[3600] = 110.0
    return pd.Series(x, index=pd.date_range("2024-01-01", periods=len(t), freq="10min"))


def main(folder: str) -> None:
    stream = a_stream()
    for name, detector in (
        ("tiles", TileDetector(600)),
        ("htm", HTMDetector(600, cells_per_column=1)),
    ):
        result = detector.process_many(stream)
        print(name, "alarms at records", np.flatnonzero(result.is_anomaly).tolist())
        plot_stream(result, Path(folder) / f"streams-{name}.png", title=type(detector).__name__)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
