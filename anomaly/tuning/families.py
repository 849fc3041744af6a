"""The classifier families that can be tuned by name, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from anomaly.errors import ParameterError
from anomaly.outlier import as_classifier
from anomaly.tuning.literals import import_class, public_path

Params = dict[str, Any]


def _mlp(params: Params) -> Params:
    """Only gradient descent has a schedule; without hidden layers nothing is activated."""
    if params["solver"] != "sgd":
        for name in ("learning_rate", "power_t", "momentum", "nesterovs_momentum"):
            params.pop(name)
    hidden = params["hidden_layer_sizes"]
    if isinstance(hidden, tuple | list) and len(hidden) == 0:
        params.pop("activation")
    return params


def _linear_svc(params: Params) -> Params:
    """Crammer and Singer's method has one form: it ignores penalty, loss and dual."""
    if params["multi_class"] == "crammer_singer":
        for name in ("penalty", "loss", "dual"):
            params.pop(name)
    return params


def _svc(params: Params) -> Params:
    """Each kernel reads its own parameters."""
    read = {"linear": (), "rbf": ("gamma",), "sigmoid": ("gamma", "coef0")}
    if params["kernel"] in read:
        for name in {"gamma", "coef0", "degree"} - set(read[params["kernel"]]):
            params.pop(name)
    return params


_SAME: dict[str, Callable[[Params], Params]] = {
    "sklearn.neural_network.MLPClassifier": _mlp,
    "sklearn.svm.LinearSVC": _linear_svc,
    "sklearn.svm.SVC": _svc,
}


@dataclass(frozen=True)
class Family:
    """A classifier that can be tuned by name.

    Attributes
    ----------
    name : str
    path : str
        Dotted path of its class.
    settings : dict
        Constructor arguments that the family sets; a string value that is a
        dotted path is the estimator of that class with its defaults.
    """

    name: str
    path: str
    settings: Params = field(default_factory=dict)

    def make(self) -> Any:
        """A new classifier of the family; an outlier detector is made one."""
        settings = {
            name: import_class(value)() if isinstance(value, str) and "." in value else value
            for name, value in self.settings.items()
        }
        return as_classifier(import_class(self.path, None)(**settings))


def _outlier(name: str, path: str) -> Family:
    return Family(name, "anomaly.outlier.OutlierClassifier", {"estimator": path})


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("adaboost", "sklearn.ensemble.AdaBoostClassifier"),
        Family("mlp", "sklearn.neural_network.MLPClassifier", {"max_iter": 1000}),
        Family("linear_svc", "sklearn.svm.LinearSVC"),
        Family("rbf_svc", "sklearn.svm.SVC"),
        Family("random_forest", "sklearn.ensemble.RandomForestClassifier"),
        Family("extra_trees", "sklearn.ensemble.ExtraTreesClassifier"),
        Family("gradient_boosting", "sklearn.ensemble.GradientBoostingClassifier"),
        Family("hist_gradient_boosting", "sklearn.ensemble.HistGradientBoostingClassifier"),
        Family("xgboost", "xgboost.XGBClassifier"),
        Family("knn", "sklearn.neighbors.KNeighborsClassifier"),
        Family("logistic_regression", "sklearn.linear_model.LogisticRegression"),
        Family("kernel_density", "anomaly.density.KernelDensityClassifier"),
        Family("ensemble", "anomaly.ensemble.EnsembleDetector"),
        Family("few_labels", "anomaly.few_labels.FewLabelsDetector"),
        Family("mean_of_best", "anomaly.voting.MeanOfBestDetector"),
        Family("budget", "anomaly.threshold.BudgetDetector"),
        Family("value", "anomaly.value.ValueDetector"),
        Family("rate", "anomaly.rate.RateDetector"),
        Family("tile", "anomaly.tiles.TileDetector"),
        Family("htm", "anomaly.htm.HTMDetector", {"cells_per_column": 1, "prediction_steps": ()}),
        _outlier("isolation_forest", "sklearn.ensemble.IsolationForest"),
        _outlier("local_outlier_factor", "sklearn.neighbors.LocalOutlierFactor"),
        _outlier("one_class_svm", "sklearn.svm.OneClassSVM"),
        _outlier("elliptic_envelope", "sklearn.covariance.EllipticEnvelope"),
    )
}


def family(name: str) -> Family:
    """Family by its name, or by the import path of any classifier.

    Raises
    ------
    ParameterError
        If there is none, with what was probably meant.

    Examples
    --------
    >>> from anomaly.tuning.families import family
    >>> family("knn").make()
    KNeighborsClassifier()
    >>> family("sklearn.naive_bayes.GaussianNB").make()
    GaussianNB()
    >>> family("adabost")
    Traceback (most recent call last):
        ...
    anomaly.errors.ParameterError: unknown classifier 'adabost', did you mean 'adaboost'? Known: \
adaboost, mlp, linear_svc, rbf_svc, random_forest, extra_trees, gradient_boosting, \
hist_gradient_boosting, xgboost, knn, logistic_regression, kernel_density, ensemble, few_labels, \
mean_of_best, budget, value, rate, tile, htm, isolation_forest, local_outlier_factor, \
one_class_svm, elliptic_envelope; or an import path, package.module.Class
    """
    if name in FAMILIES:
        return FAMILIES[name]
    if "." in name:
        import_class(name, None)
        return Family(name, name)
    near = get_close_matches(name, FAMILIES, n=1)
    meant = f", did you mean {near[0]!r}?" if near else "."
    raise ParameterError(
        f"unknown classifier {name!r}{meant} Known: {', '.join(FAMILIES)}; "
        "or an import path, package.module.Class"
    )


def effective_params(classifier: Any, params: Params) -> Params:
    """Parameters of a candidate less those that change nothing beside the others.

    Candidates of equal effective parameters are fitted once.

    Examples
    --------
    >>> from sklearn.neural_network import MLPClassifier
    >>> from anomaly.tuning.families import effective_params
    >>> effective_params(MLPClassifier(), {"solver": "adam", "learning_rate": "adaptive"})
    {'solver': 'adam'}
    >>> effective_params(MLPClassifier(), {"solver": "sgd", "learning_rate": "adaptive"})
    {'solver': 'sgd', 'learning_rate': 'adaptive'}
    """
    same = _SAME.get(public_path(type(classifier)))
    if same is None:
        return params
    try:
        kept = same(classifier.get_params(deep=False) | params)
    except KeyError:
        return params
    return {name: value for name, value in params.items() if name in kept}
