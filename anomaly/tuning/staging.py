"""One fit that answers for many candidates.

An ensemble of m members is the first m members of a larger one, and k nearest
neighbours are the first k of more. So one fit with the largest value answers
for every smaller value, and the answers are those of separate fits to the
last bit. Where that is not certain (no fixed seed, early stopping, warm
start), `staged_parameter` says so and the candidates are fitted one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import AdaBoostClassifier
from sklearn.tree import DecisionTreeClassifier

from anomaly.tuning.literals import public_path

Labels = NDArray[Any]
Predictor = Callable[[Any, Sequence[int], NDArray[Any]], Iterator[Labels]]


@dataclass(frozen=True)
class Stages:
    """How the candidates of one class are read off one fit.

    Attributes
    ----------
    parameter : str
        The parameter whose smaller values are prefixes.
    predict : callable ``(model, values, X) -> iterator of labels``
        Labels that a model fitted with each of the ascending ``values`` would
        predict, from a model fitted with the largest.
    is_exact : callable ``(params) -> bool``
        Whether these parameters make prefixes exact.
    proportional : bool
        Whether a smaller value would have taken its proportional share of the fit.
    """

    parameter: str
    predict: Predictor
    is_exact: Callable[[dict[str, Any]], bool]
    proportional: bool = True


def staged_parameter(
    classifier: Any, n_train: int, changed: Mapping[str, Any] | None = None
) -> str | None:
    """Name of the parameter of a classifier that one fit can answer for.

    Parameters
    ----------
    classifier : estimator
    n_train : int
        Number of training rows.
    changed : mapping, optional
        Parameters of a candidate, in place of the classifier's own.

    Returns
    -------
    str or None
        None where candidates must be fitted one by one.

    Examples
    --------
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from anomaly.tuning.staging import staged_parameter
    >>> staged_parameter(RandomForestClassifier(random_state=0), 100)
    'n_estimators'
    >>> staged_parameter(RandomForestClassifier(), 100) is None
    True
    """
    stages = STAGES.get(public_path(type(classifier)))
    if stages is None:
        return None
    params = classifier.get_params(deep=False) | dict(changed or {}) | {"n_train": n_train}
    return stages.parameter if stages.is_exact(params) else None


def without_repeated_checks(classifier: Any) -> Any:
    """A twin that fits the same members, but does not check the same rows for each of them.

    Only for rows that are finite, and float32 for trees.
    """
    if type(classifier) is not AdaBoostClassifier:
        return classifier
    return _PlainAdaBoost(**classifier.get_params(deep=False))


def staged_labels(model: Any, values: Sequence[int], X: NDArray[Any]) -> Iterator[Labels]:
    """Labels of ``X`` by each prefix of a model fitted with the largest of ``values``."""
    return _stages_of(model).predict(model, values, X)


def stage_shares(model: Any, value: int, values: Sequence[int]) -> tuple[float, float]:
    """Shares of the staged fit and of the staged prediction to book on one value."""
    if _stages_of(model).proportional:
        return value / values[-1], value / values[-1]
    return 1.0, 1.0 / len(values)


def _stages_of(model: Any) -> Stages:
    cls = AdaBoostClassifier if isinstance(model, _PlainAdaBoost) else type(model)
    return STAGES[public_path(cls)]


def is_stage_value(value: Any) -> bool:
    """Whether a value can be one stage of a larger fit."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _has_seed(params: dict[str, Any]) -> bool:
    return isinstance(params["random_state"], Integral) and not params.get("warm_start", False)


# AdaBoost ---------------------------------------------------------------------


def _adaboost_is_exact(params: dict[str, Any]) -> bool:
    base = params["estimator"]
    # Another base estimator may draw from a generator that the prefix shares.
    return _has_seed(params) and (base is None or type(base) is DecisionTreeClassifier)


def _adaboost(model: Any, values: Sequence[int], X: NDArray[Any]) -> Iterator[Labels]:
    """Running sum of the weighted votes, in the order in which the model adds them."""
    if len(model.classes_) == 1:
        for _ in values:
            yield model.classes_.take(np.zeros(len(X), dtype=int))
        return
    fitted = len(model.estimators_)
    wanted = [min(value, fitted) for value in values]
    votes = np.empty((fitted, len(X)))
    for row, tree, weight in zip(votes, model.estimators_, model.estimator_weights_, strict=False):
        is_second = tree.predict(X) == model.classes_[1]
        np.multiply(np.where(is_second, 1.0, -1.0), weight, out=row)
    np.cumsum(votes, axis=0, out=votes)
    for value, used in zip(values, wanted, strict=True):
        weights = np.zeros(value)
        weights[:used] = model.estimator_weights_[:used]
        share = votes[used - 1] / weights.sum()
        yield model.classes_.take(share + share > 0)


class _PlainTree(DecisionTreeClassifier):
    """A tree that takes its rows as they are."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        return super().fit(X, y, sample_weight, check_input=False)

    def predict(self, X: Any) -> Any:
        return super().predict(X, check_input=False)


class _PlainAdaBoost(AdaBoostClassifier):
    """Makes the trees of `AdaBoostClassifier`, with the same seeds, without cloning."""

    def _make_estimator(self, append: bool = True, random_state: Any = None) -> Any:
        if not hasattr(self, "_tree_params"):
            self._tree_params = self.estimator_.get_params(deep=False)
        # As scikit-learn draws the seed of a member.
        seed = random_state.randint(np.iinfo(np.int32).max)
        tree = _PlainTree(**self._tree_params | {"random_state": seed})
        if append:
            self.estimators_.append(tree)
        return tree


# Gradient boosting -----------------------------------------------------------------


def _pick_stages(stages: Iterator[Any], values: Sequence[int]) -> Iterator[Any]:
    """Items number ``values`` (from 1, ascending) of an iterator, the last for larger ones."""
    done, item = 0, None
    for value in values:
        while done < value:
            following = next(stages, None)
            if following is None:
                break
            done, item = done + 1, following
        yield item


def _gradient_boosting(model: Any, values: Sequence[int], X: NDArray[Any]) -> Iterator[Labels]:
    for raw in _pick_stages(model.staged_decision_function(X), values):
        yield model.classes_.take((raw[:, 0] >= 0).astype(int))


def _histogram_is_exact(params: dict[str, Any]) -> bool:
    early = params["early_stopping"]
    stops = params["n_train"] > 10_000 if early == "auto" else early
    return _has_seed(params) and not stops


def _histogram(model: Any, values: Sequence[int], X: NDArray[Any]) -> Iterator[Labels]:
    return _pick_stages(model.staged_predict(X), values)


# XGBoost ------------------------------------------------------------------------


def _xgboost_is_exact(params: dict[str, Any]) -> bool:
    return (
        isinstance(params["random_state"], Integral)
        and params.get("early_stopping_rounds") is None
        and params.get("booster") in (None, "gbtree")
        and params.get("num_parallel_tree") in (None, 1)
        and params.get("callbacks") is None
        and params.get("base_margin") is None
    )


def _xgboost(model: Any, values: Sequence[int], X: NDArray[Any]) -> Iterator[Labels]:
    """Add the rounds between two values to the margin of the smaller one."""
    margin, done = None, 0
    for value in values:
        between: dict[str, Any] = {"iteration_range": (done, value), "base_margin": margin}
        chance = model.predict_proba(X, **between)[:, 1]
        margin = model.predict(X, output_margin=True, **between)
        done = value
        yield np.asarray(model.classes_).take(chance > 0.5)


# Forests ----------------------------------------------------------------------------


def _forest(model: Any, values: Sequence[int], X: NDArray[Any]) -> Iterator[Labels]:
    total = np.zeros((len(X), len(model.classes_)))
    done = 0
    rows = np.asarray(X, dtype=np.float32)
    for value in values:
        for tree in model.estimators_[done:value]:
            total += tree.predict_proba(rows, check_input=False)
        done = value
        yield model.classes_.take(np.argmax(total / value, axis=1), axis=0)


# Nearest neighbours -----------------------------------------------------------------


def _neighbours_is_exact(params: dict[str, Any]) -> bool:
    # With that many neighbours "auto" goes over from a tree to brute force.
    keeps_method = params["algorithm"] != "auto" or (
        is_stage_value(params["n_neighbors"]) and params["n_neighbors"] < params["n_train"] // 2
    )
    return params["weights"] in ("uniform", "distance") and keeps_method


def _neighbours(model: Any, values: Sequence[int], X: NDArray[Any]) -> Iterator[Labels]:
    """First k of the largest value's neighbours, asked anew where equal distances matter."""
    # The brute-force search works in blocks, whose rounding may depend on k.
    is_tree = model._fit_method in ("kd_tree", "ball_tree")
    distance, index = model.kneighbors(X) if is_tree else (None, None)
    for value in values:
        smaller = copy.copy(model).set_params(n_neighbors=value)
        if distance is None or index is None:
            yield smaller.predict(X)
            continue
        near, who = distance[:, :value].copy(), index[:, :value].copy()
        tied = np.flatnonzero(_is_order_open(distance, value, model.weights))
        if len(tied):
            near[tied], who[tied] = smaller.kneighbors(X[tied])
        yield _vote(smaller, near, who, X)


def _is_order_open(distance: NDArray[Any], value: int, weights: str) -> NDArray[np.bool_]:
    """Rows where a search for fewer neighbours may order equal distances otherwise."""
    first = 0 if weights == "distance" else value - 1
    near = distance[:, first : value + 1]
    return np.asarray((near[:, 1:] == near[:, :-1]).any(axis=1))


def _vote(model: Any, distance: NDArray[Any], index: NDArray[Any], X: NDArray[Any]) -> Labels:
    """Labels by scikit-learn's own vote over neighbours that are already known."""
    if model.weights == "uniform" and len(model.classes_) == 2:
        ones = np.count_nonzero(model._y[index], axis=1)
        return model.classes_.take(2 * ones > index.shape[1])
    model.kneighbors = lambda X, return_distance=True: (
        (distance, index) if return_distance else index
    )
    return model.predict(X)


STAGES: dict[str, Stages] = {
    "sklearn.ensemble.AdaBoostClassifier": Stages("n_estimators", _adaboost, _adaboost_is_exact),
    "sklearn.ensemble.GradientBoostingClassifier": Stages(
        "n_estimators",
        _gradient_boosting,
        lambda params: _has_seed(params) and params["n_iter_no_change"] is None,
    ),
    "sklearn.ensemble.HistGradientBoostingClassifier": Stages(
        "max_iter", _histogram, _histogram_is_exact
    ),
    "xgboost.XGBClassifier": Stages("n_estimators", _xgboost, _xgboost_is_exact),
    "sklearn.ensemble.RandomForestClassifier": Stages("n_estimators", _forest, _has_seed),
    "sklearn.ensemble.ExtraTreesClassifier": Stages("n_estimators", _forest, _has_seed),
    "sklearn.neighbors.KNeighborsClassifier": Stages(
        "n_neighbors", _neighbours, _neighbours_is_exact, proportional=False
    ),
}
