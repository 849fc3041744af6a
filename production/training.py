"""Trains a value detector from samples, in a process of its own.

The service starts it; it prints one JSON object a line: progress, or what failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np

from anomaly.errors import AnomalyError
from anomaly.value import ValueDetector


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        train(options.samples, options.model)
    except (AnomalyError, ValueError, OSError, MemoryError) as error:
        _say(failed=" ".join(str(error).split())[:400])
        return 2
    return 0


def train(samples: str, model: str) -> None:
    """Read windows and labels from an ``.npz`` file, train, save, load what was saved."""
    _say(progress=0.05, detail="reading samples")
    with np.load(samples, allow_pickle=False) as file:
        X, y = file["X"], file["y"]
    _say(progress=0.15, detail=f"training on {len(y)} windows")
    detector = ValueDetector().fit(X, y)
    _say(progress=0.9, detail="saving")
    detector.save(model)
    hits = ValueDetector.load(model).predict(X) == y
    _say(progress=1.0, detail=f"{hits.mean():.1%} of its own {len(y)} windows are judged alike")


def _say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="training.py",
        description="Train a value detector from windows and labels.",
        epilog="example: python -m production.training samples.npz models/1530608070706",
    )
    parser.add_argument("samples", help=".npz file with X (windows in rows) and y (1: anomaly)")
    parser.add_argument("model", help="model file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
