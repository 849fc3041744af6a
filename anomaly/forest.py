"""Fitted tree ensembles of scikit-learn as native code, with the same answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import (
    AdaBoostClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier
from sklearn.utils import get_tags

from anomaly import _core
from anomaly.errors import DataError

__all__ = ["NativeForest", "RefusedValueError", "compile_forest"]

# How sums become a label; the numbers of forest_rule in libdetect/forest.h.
_ABOVE, _AT_LEAST, _LARGER = 0, 1, 2


class RefusedValueError(DataError):
    """A value that the ensemble cannot take, at ``row`` and ``column``."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__(
            f"row {row}, column {column}: the value is infinite, too large or missing, "
            "and this classifier takes finite numbers only"
        )
        self.row = row
        self.column = column


class NativeForest:
    """A fitted two-class tree ensemble, evaluated by `libdetect`.

    Made by `compile_forest`. Labels and scores are those of the ensemble it was
    made from: label 1 is ``classes_[1]``, the score is its ``decision_function``
    where it has one, else ``predict_proba(X)[:, 1]``.

    Attributes
    ----------
    n_trees, n_features : int
    """

    def __init__(self, core: Any, n_trees: int, n_features: int) -> None:
        self._core = core
        self.n_trees = n_trees
        self.n_features = n_features

    def decide(self, X: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Label and score rows.

        Parameters
        ----------
        X : ndarray of float64 of shape (n_samples, n_features)

        Returns
        -------
        labels : ndarray of bool of shape (n_samples,)
        scores : ndarray of float64 of shape (n_samples,)

        Raises
        ------
        RefusedValueError
            A value is infinite (also after rounding to float32 where the
            ensemble does that), or NaN where the ensemble takes none.
        """
        X = np.ascontiguousarray(X, dtype=np.float64)
        labels = np.empty(len(X), dtype=np.uint8)
        scores = np.empty(len(X))
        refused = self._core.evaluate(X, scores, labels)
        if refused >= 0:
            raise RefusedValueError(*divmod(refused, self.n_features))
        return labels.view(np.bool_), scores

    def decide_one(self, row: list[float]) -> tuple[bool, float]:
        """Label and score one row, as `decide` does, in microseconds."""
        decision = self._core.evaluate_one(row)
        if decision is None:
            self.decide(np.array([row]))  # raises
        return decision


def compile_forest(classifier: Any) -> NativeForest | None:
    """Turn a fitted two-class ensemble into native code.

    Takes `DecisionTreeClassifier`, `ExtraTreeClassifier`,
    `RandomForestClassifier`, `ExtraTreesClassifier`, `AdaBoostClassifier` over
    decision trees, `GradientBoostingClassifier` and
    `HistGradientBoostingClassifier` without categorical features.

    Returns
    -------
    NativeForest, or None for any other classifier

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from anomaly.forest import compile_forest
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> classifier = RandomForestClassifier(n_estimators=10, random_state=0).fit(X, y)
    >>> forest = compile_forest(classifier)
    >>> labels, scores = forest.decide(X)
    >>> bool((labels == classifier.predict(X)).all())
    True
    >>> forest.decide_one(X[0].tolist())
    (False, 0.1)
    """
    compiler = _COMPILERS.get(type(classifier))
    if compiler is None or len(np.atleast_1d(classifier.classes_)) != 2:
        return None
    return compiler(classifier)


def _compile_tree(classifier: Any) -> NativeForest | None:
    if classifier.n_outputs_ != 1:
        return None
    return _assemble(
        [_table(classifier.tree_)],
        classifier,
        start=(0.0, 0.0),
        rule=_LARGER,
        allow_nan=_takes_nan(classifier),
    )


def _compile_forest(classifier: Any) -> NativeForest | None:
    if classifier.n_outputs_ != 1:
        return None
    trees = classifier.estimators_
    return _assemble(
        [_table(tree.tree_) for tree in trees],
        classifier,
        start=(0.0, 0.0),
        divisor=len(trees),
        rule=_LARGER,
        allow_nan=_takes_nan(trees[0]),
    )


def _compile_adaboost(classifier: Any) -> NativeForest | None:
    tables = []
    total = float(np.sum(classifier.estimator_weights_))
    for tree, weight in zip(classifier.estimators_, classifier.estimator_weights_, strict=False):
        if type(tree) not in (DecisionTreeClassifier, ExtraTreeClassifier):
            return None
        if not np.array_equal(tree.classes_, classifier.classes_):
            return None
        table = _table(tree.tree_)
        second = table["values"][:, 1] > table["values"][:, 0]
        table["values"] = np.where(second, weight, -weight)[:, None]
        tables.append(table)
    if not total > 0.0:
        return None
    return _assemble(tables, classifier, divisor=total, factor=2.0, rule=_ABOVE)


def _compile_gradient_boosting(classifier: Any) -> NativeForest | None:
    constant = classifier.init is None or classifier.init_ == "zero"
    if not constant or classifier.estimators_.shape[1] != 1:
        return None
    nowhere = np.zeros((1, classifier.n_features_in_), dtype=np.float32)
    start = float(classifier._raw_predict_init(nowhere)[0, 0])
    tables = [_table(tree.tree_) for tree in classifier.estimators_[:, 0]]
    for table in tables:
        table["values"] = classifier.learning_rate * table["values"]
    return _assemble(tables, classifier, start=(start,), rule=_AT_LEAST)


def _compile_hist_gradient_boosting(classifier: Any) -> NativeForest | None:
    tables = []
    for (predictor,) in classifier._predictors:
        nodes = predictor.nodes
        if nodes["is_categorical"].any():
            return None
        leaf = nodes["is_leaf"].astype(bool)
        tables.append(
            {
                "feature": np.where(leaf, -1, nodes["feature_idx"]),
                "threshold": nodes["num_threshold"],
                "left": nodes["left"].astype(np.int64),
                "right": nodes["right"].astype(np.int64),
                "nan_left": nodes["missing_go_to_left"],
                "values": nodes["value"][:, None],
            }
        )
    if getattr(classifier, "_preprocessor", None) is not None:
        return None
    start = float(np.ravel(classifier._baseline_prediction)[0])
    return _assemble(
        tables, classifier, start=(start,), rule=_ABOVE, as_float=False, allow_nan=True
    )


def _table(tree: Any) -> dict[str, NDArray[Any]]:
    """Nodes of one scikit-learn tree; every node has its row of values."""
    leaf = tree.children_left < 0
    return {
        "feature": np.where(leaf, -1, tree.feature),
        "threshold": tree.threshold,
        "left": tree.children_left,
        "right": tree.children_right,
        "nan_left": np.asarray(tree.missing_go_to_left),
        "values": tree.value[:, 0, :],
    }


def float_cut(threshold: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest double that, rounded to float32, is at most the threshold.

    scikit-learn's trees round each value to float32 before they compare it;
    comparing the value itself with this cut gives the same branch.

    Examples
    --------
    >>> import numpy as np
    >>> from anomaly.forest import float_cut
    >>> (cut,) = float_cut(np.array([0.1]))
    >>> above = np.nextafter(cut, 1.0)
    >>> float(np.float32(cut)) <= 0.1, float(np.float32(above)) <= 0.1
    (True, False)
    """
    with np.errstate(over="ignore"):
        low = threshold.astype(np.float32)
        low = np.where(low > threshold, np.nextafter(low, np.float32(-np.inf)), low)
        high = np.nextafter(low, np.float32(np.inf))
    middle = (low.astype(np.float64) + high.astype(np.float64)) / 2
    even = low.view(np.uint32) % 2 == 0  # halfway, rounding goes to the even mantissa
    return np.where(even, middle, np.nextafter(middle, -np.inf))


def _takes_nan(tree: Any) -> bool:
    return bool(get_tags(tree).input_tags.allow_nan) and tree.monotonic_cst is None


def _assemble(
    tables: list[dict[str, NDArray[Any]]],
    classifier: Any,
    *,
    rule: int,
    start: tuple[float, ...] = (0.0,),
    divisor: float = 1.0,
    factor: float = 1.0,
    as_float: bool = True,
    allow_nan: bool = False,
) -> NativeForest:
    """Join the trees into one list of nodes; children and leaves shift by their tree's place."""
    sizes = [len(table["feature"]) for table in tables]
    roots = np.cumsum([0, *sizes[:-1]])
    shift = np.repeat(roots, sizes)
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    leaf = joined["feature"] < 0
    itself = np.arange(len(leaf))
    threshold = joined["threshold"].astype(np.float64)
    core = _core.Forest(
        feature=np.where(leaf, 0, joined["feature"]).astype(np.int32),
        threshold=float_cut(threshold) if as_float else threshold,
        left=np.where(leaf, itself, joined["left"] + shift).astype(np.int32),
        right=np.where(leaf, itself, joined["right"] + shift).astype(np.int32),
        nan_left=joined["nan_left"].astype(np.uint8),
        values=np.ascontiguousarray(joined["values"], dtype=np.float64),
        roots=roots.astype(np.int32),
        n_features=int(classifier.n_features_in_),
        start=start,
        divisor=float(divisor),
        factor=factor,
        rule=rule,
        check_as_float=as_float,
        allow_nan=allow_nan,
    )
    return NativeForest(core, len(tables), int(classifier.n_features_in_))


_COMPILERS = {
    AdaBoostClassifier: _compile_adaboost,
    DecisionTreeClassifier: _compile_tree,
    ExtraTreeClassifier: _compile_tree,
    ExtraTreesClassifier: _compile_forest,
    GradientBoostingClassifier: _compile_gradient_boosting,
    HistGradientBoostingClassifier: _compile_hist_gradient_boosting,
    RandomForestClassifier: _compile_forest,
}
