"""Purchases over a social network: is one out of line with what the buyer's circle spends?

`PurchaseNetworkDetector` judges events one by one or in frames, `EventLog`
reads logs of them, `simulate` makes some.
"""

import importlib
from typing import TYPE_CHECKING, Any

from anomaly.purchases.events import COLUMNS, EventError, read_event
from anomaly.purchases.log import EventLog, make_network, read_header

if TYPE_CHECKING:
    from anomaly.purchases.detector import Explanation, PurchaseNetworkDetector
    from anomaly.purchases.simulation import Simulation, simulate

__all__ = [
    "COLUMNS",
    "EventError",
    "EventLog",
    "Explanation",
    "PurchaseNetworkDetector",
    "Simulation",
    "make_network",
    "read_event",
    "read_header",
    "simulate",
]

# Loaded on first use: a daemon that reads logs starts without scikit-learn and pandas.
_LAZY = {
    "Explanation": "detector",
    "PurchaseNetworkDetector": "detector",
    "Simulation": "simulation",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    """Import a lazy name on its first use."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"anomaly.purchases.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
