"""Ratios of a confusion matrix, with every 0/0 defined."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from anomaly.errors import DataError


class Ratios(NamedTuple):
    """Ratios of a confusion matrix; 0/0 is 0, as in scikit-learn's ``zero_division=0``."""

    TPR: float
    FPR: float
    TNR: float
    FNR: float
    PPV: float
    F1: float


def ratios_from_counts(tn: int, fp: int, fn: int, tp: int) -> Ratios:
    """Ratios from the four counts of a binary confusion matrix.

    Examples
    --------
    >>> from anomaly.metrics import ratios_from_counts
    >>> ratios_from_counts(tn=90, fp=10, fn=5, tp=15).F1
    0.6666666666666666
    >>> ratios_from_counts(tn=4, fp=0, fn=0, tp=0).TPR
    0.0
    """
    return Ratios(
        TPR=_share(tp, tp + fn),
        FPR=_share(fp, fp + tn),
        TNR=_share(tn, tn + fp),
        FNR=_share(fn, fn + tp),
        PPV=_share(tp, tp + fp),
        F1=_share(2 * tp, 2 * tp + fp + fn),
    )


def confusion_ratios(matrix: ArrayLike) -> Ratios:
    """Ratios of a confusion matrix ``[[tn, fp], [fn, tp]]``.

    Parameters
    ----------
    matrix : array-like of shape (2, 2)
        Rows are the truth (normal, anomaly), columns the prediction.

    Returns
    -------
    Ratios
        Named tuple ``TPR, FPR, TNR, FNR, PPV, F1``; each 0/0 is 0.

    Raises
    ------
    DataError
        If the matrix is not 2 × 2 or has a negative count.

    Examples
    --------
    >>> from anomaly.metrics import confusion_ratios
    >>> confusion_ratios([[90, 10], [5, 15]]).TPR
    0.75
    """
    counts = np.asarray(matrix)
    if counts.shape != (2, 2) or (counts < 0).any():
        raise DataError(
            f"matrix must be [[tn, fp], [fn, tp]] with counts of at least 0, got {matrix!r}"
        )
    (tn, fp), (fn, tp) = counts.tolist()
    return ratios_from_counts(tn, fp, fn, tp)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
