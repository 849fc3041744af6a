"""Purchases over a social network: is one out of line with what the buyer's circle spends?

`PurchaseNetworkDetector` judges events one by one or in frames, `EventLog`
reads logs of them, `simulate` makes some.
"""

from anomaly.purchases.detector import Explanation, PurchaseNetworkDetector
from anomaly.purchases.events import COLUMNS, EventError, read_event
from anomaly.purchases.log import EventLog, read_header
from anomaly.purchases.simulation import Simulation, simulate

__all__ = [
    "COLUMNS",
    "EventError",
    "EventLog",
    "Explanation",
    "PurchaseNetworkDetector",
    "Simulation",
    "read_event",
    "read_header",
    "simulate",
]
