"""Anomaly detectors that plug in as scikit-learn estimators.

Every estimator is a classifier whose second class is the anomaly; see
`anomaly.base.BaseDetector` for the contract.
"""

__version__ = "0.1.0"
