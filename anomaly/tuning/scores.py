"""Scores of a fold from its four counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.errors import ParameterError
from anomaly.metrics import ratios_from_counts

Counts = tuple[int, int, int, int]


def count(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Counts:
    """Count true negatives, false positives, false negatives and true positives.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.tuning.scores import count
    >>> count(np.array([True, True, False]), np.array([True, False, False]))
    (1, 1, 0, 1)
    """
    tp = int(np.count_nonzero(predicted & truth))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return len(truth) - tp - fp - fn, fp, fn, tp


def ratio_scores(counts: Counts) -> dict[str, Any]:
    """Counts and their ratios under the names, and in the order, of the log."""
    tn, fp, fn, tp = counts
    named = {"tn": tn, "fp": fp, "fn": fn, "tp": tp}
    return named | ratios_from_counts(tn, fp, fn, tp)._asdict()


def failed_scores() -> dict[str, Any]:
    """Scores of a fit that gave no answer: every count and ratio is nan."""
    names = ("tn", "fp", "fn", "tp", "TPR", "FPR", "TNR", "FNR", "PPV", "F1")
    return dict.fromkeys(names, math.nan)


def _accuracy(scores: dict[str, Any]) -> float:
    counts = [scores[name] for name in ("tn", "fp", "fn", "tp")]
    return float((scores["tn"] + scores["tp"]) / sum(counts))


SCORINGS: dict[str, Callable[[dict[str, Any]], float]] = {
    "f1": lambda scores: scores["F1"],
    "accuracy": _accuracy,
    "balanced_accuracy": lambda scores: (scores["TNR"] + scores["TPR"]) / 2,
    "precision": lambda scores: scores["PPV"],
    "recall": lambda scores: scores["TPR"],
}


def scorer(name: str) -> Callable[[dict[str, Any]], float]:
    """Function from logged scores to the number that a search maximises.

    Raises
    ------
    ParameterError
        If the score cannot be computed from the four counts.
    """
    try:
        return SCORINGS[name]
    except (KeyError, TypeError):
        raise ParameterError(
            f"scoring must be one of {', '.join(SCORINGS)}, got {name!r}"
        ) from None
