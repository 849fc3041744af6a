"""Anomaly detectors that plug in as scikit-learn estimators.

Every estimator is a classifier whose second class is the anomaly; see
`anomaly.base.BaseDetector` for the contract.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Names of the package that live in modules too heavy to load with it.
_LAZY = {
    "Detect": "anomaly.detect",
    "PurchaseNetworkDetector": "anomaly.purchases",
}


def __getattr__(name: str) -> Any:
    """Import a lazy name on its first use."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
