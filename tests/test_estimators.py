"""One test finds every estimator by itself and holds it to scikit-learn's checks."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import warnings

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

import anomaly
from anomaly.tiles import TileDetector

# Constructor arguments that make an estimator small enough to be checked, or
# that it needs. Keep entries in alphabetical order.
ARGUMENTS: dict[str, dict] = {
    "ConvAutoencoder": {"window_size": 8, "n_filters": 4, "epochs": 2, "random_state": 0},
    "BudgetDetector": {
        "estimator": LogisticRegression(),
        "false_alarm_rate": 0.4,
        "calibration_size": 0.5,
        "random_state": 0,
    },
    "FewLabelsDetector": {"n_trees": 10},
    "MeanOfBestDetector": {
        "candidates": [("line", LogisticRegression()), ("bayes", GaussianNB())],
        "n_best": 1,
    },
    "HTMDetector": {"learning_period": 10, "n_columns": 64, "n_active_columns": 8},
    "MultiHTMDetector": {"learning_period": 10, "n_columns": 64, "n_active_columns": 8},
    "LSTMAutoencoder": {"window_size": 5, "n_units": 4, "epochs": 2, "random_state": 0},
    "OversampleClassifier": {
        "estimator": DecisionTreeClassifier(random_state=0),
        "oversample": 3,
        "random_state": 0,
    },
    "StreamEnsemble": {
        "estimators": [
            ("first", TileDetector(learning_period=10)),
            ("second", TileDetector(learning_period=10, random_state=1)),
        ]
    },
    "TileDetector": {"learning_period": 10},
    "ValueDetector": {"n_estimators": 20},
}

# Checks an estimator cannot pass, each with the reason. Keep alphabetical.
_OF_A_STREAM = {
    "check_classifiers_one_label": "one label, whatever it says, cannot make all that comes odd",
    "check_methods_sample_order_invariance": "records of a stream are scored in their order",
    "check_methods_subset_invariance": "a record's score depends on the records before it",
}
_OF_A_SIGNAL = {
    "check_methods_sample_order_invariance": "rows are a time series: shuffled, it is another one",
    "check_methods_subset_invariance": "a row gets the answer of its window, cut from all rows",
}
_OF_A_WINDOW = {
    "check_classifiers_train": "an anomaly needs a probability of 0.85, as in the C library",
    "check_estimators_pickle": "it takes away tested points themselves, which leaves no question",
}
EXEMPTIONS: dict[str, dict[str, str]] = {
    "RateDetector": {
        **_OF_A_WINDOW,
        "check_classifiers_one_label": "nothing is learnt: a row is judged by its own history",
    },
    "HTMDetector": _OF_A_STREAM,
    "MultiHTMDetector": _OF_A_STREAM,
    "StreamEnsemble": _OF_A_STREAM,
    "TileDetector": _OF_A_STREAM,
    "ValueDetector": _OF_A_WINDOW,
    "BandDetector": _OF_A_SIGNAL,
    "ConvAutoencoder": _OF_A_SIGNAL,
    "LSTMAutoencoder": _OF_A_SIGNAL,
    "VibrationDetector": _OF_A_SIGNAL,
    "VibrationEnsemble": _OF_A_SIGNAL,
}

# Classes that are estimators by inheritance only.
NOT_CHECKED = {
    "BaseDetector": "the abstract contract itself",
    "ForecastSkill": "a question to the tuning engine: its last column holds the answers",
    "StreamDetector": "the abstract contract of streams",
    "WindowDetector": "the abstract contract of windows",
}


def estimator_classes() -> list[type]:
    found = {}
    for module in pkgutil.walk_packages(anomaly.__path__, "anomaly."):
        if module.name.endswith("__main__"):
            continue
        for name, member in inspect.getmembers(importlib.import_module(module.name)):
            if (
                inspect.isclass(member)
                and issubclass(member, BaseEstimator)
                and member.__module__.startswith("anomaly.")
                and not name.startswith("_")
                and name not in NOT_CHECKED
            ):
                found[name] = member
    return [found[name] for name in sorted(found)]


def make(cls: type) -> BaseEstimator:
    return cls(**ARGUMENTS.get(cls.__name__, {}))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("cls", estimator_classes(), ids=lambda c: c.__name__)
def test_estimator_passes_scikit_learns_checks(cls):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            make(cls), expected_failed_checks=EXEMPTIONS.get(cls.__name__, {}), on_fail=None
        )
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    assert failed == {}


@pytest.mark.parametrize("cls", estimator_classes(), ids=lambda c: c.__name__)
def test_exempted_checks_exist_and_have_a_reason(cls):
    for check, reason in EXEMPTIONS.get(cls.__name__, {}).items():
        assert check.startswith("check_")
        assert len(reason) > 20


@pytest.mark.parametrize("cls", estimator_classes(), ids=lambda c: c.__name__)
def test_second_class_is_the_anomaly(cls):
    estimator = make(cls)
    if not isinstance(estimator, ClassifierMixin):
        return
    if not get_tags(estimator).input_tags.two_d_array:
        return  # rows are events, not points; the area's own test holds it to the contract
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(80, 4)), rng.normal(size=(20, 4)) * 0.5 + 7.0])
    y = np.repeat([0, 1], [80, 20])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = clone(estimator).fit(X, y)
        assert list(fitted.classes_) == [0, 1]
        probability = fitted.predict_proba(X)[:, 1]
        if hasattr(fitted, "decision_function"):
            decision = fitted.decision_function(X)
            order = np.argsort(decision, kind="stable")
            assert (np.diff(probability[order]) >= -1e-9).all()
