"""Tuning: families, grids, staged fits, and a log that survives any crash."""

from anomaly.tuning.backend import Backend
from anomaly.tuning.engine import TuningResult, estimate, tune
from anomaly.tuning.families import FAMILIES, Family, family
from anomaly.tuning.log import RunFolder

__all__ = [
    "FAMILIES",
    "Backend",
    "Family",
    "RunFolder",
    "TuningResult",
    "estimate",
    "family",
    "tune",
]
