"""Values as one-line Python literals, and back, without ever evaluating text.

The notation of logs and grids: Python literals, numpy scalars as
``np.float64(0.1)``, ``nan`` and ``inf`` as bare names, and estimators as a call
on their public dotted path, ``sklearn.tree.DecisionTreeClassifier(max_depth=2)``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from anomaly.errors import ParameterError

# Packages whose estimators a text may name. Reading a log or a grid never
# imports anything else, unless the caller allows it.
PACKAGES = frozenset({"anomaly", "sklearn", "xgboost"})

_NUMPY_SCALARS = frozenset(
    f"{kind}{bits}"
    for kind, sizes in {
        "int": (8, 16, 32, 64),
        "uint": (8, 16, 32, 64),
        "float": (16, 32, 64),
    }.items()
    for bits in sizes
) | {"bool_", "str_"}
_paths: dict[Any, str] = {}
_NAMES = {"nan": float("nan"), "inf": float("inf")}
# An entry of a dict of numbers and plain texts: name, float, int, text.
_ENTRY = re.compile(
    r"'(\w+)': (?:"
    r"(-?(?:\d+\.\d+(?:e[+-]?\d+)?|\d+e[+-]?\d+|inf)|nan)"
    r"|(-?(?:0|[1-9]\d{0,17}))"
    r"|'([^'\\\r\n]*)'"
    r")(?:, |}\Z)",
    re.ASCII,
)


def to_literal(value: Any) -> str:
    """Write a value as a one-line literal that `from_literal` reads back exactly.

    Raises
    ------
    ParameterError
        If the value, or one inside it, has no such notation.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from anomaly.tuning.literals import to_literal
    >>> to_literal({"estimator": DecisionTreeClassifier(max_depth=2), "alpha": np.float64(0.1)})
    "{'estimator': sklearn.tree.DecisionTreeClassifier(max_depth=2), 'alpha': np.float64(0.1)}"
    >>> to_literal((1, float("nan"), None))
    '(1, nan, None)'
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return repr(value)
    if kind is dict:
        return "{" + ", ".join(f"{to_literal(k)}: {to_literal(v)}" for k, v in value.items()) + "}"
    if kind is list:
        return "[" + ", ".join(map(to_literal, value)) + "]"
    if kind is tuple:
        return "(" + ", ".join(map(to_literal, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, np.generic):
        return _scalar_literal(value)
    if isinstance(value, BaseEstimator):
        changed = changed_params(value)
        return (
            f"{public_path(kind)}({', '.join(f'{k}={to_literal(v)}' for k, v in changed.items())})"
        )
    raise ParameterError(
        f"a value of type {kind.__module__}.{kind.__qualname__} cannot be written to a log; "
        "allowed: None, bool, int, float, str, tuple, list, dict, numpy scalars and estimators; "
        f"got {value!r}"
    )


def _scalar_literal(value: np.generic) -> str:
    name = {"bool": "bool_", "str": "str_"}.get(type(value).__name__, type(value).__name__)
    if name not in _NUMPY_SCALARS:
        raise ParameterError(
            f"a numpy scalar of type {name} cannot be written to a log; allowed: "
            f"{', '.join(sorted(_NUMPY_SCALARS))}"
        )
    # A shorter float is read back through float64, which holds it exactly.
    return f"np.{name}({value.item()!r})"


def changed_params(estimator: BaseEstimator) -> dict[str, Any]:
    """Constructor arguments that differ from their defaults, in order of the signature.

    Examples
    --------
    >>> from sklearn.svm import SVC
    >>> from anomaly.tuning.literals import changed_params
    >>> changed_params(SVC(C=10.0, gamma="scale"))
    {'C': 10.0}
    """
    params = estimator.get_params(deep=False)
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(type(estimator).__init__).parameters.items()
    }
    ordered = [n for n in defaults if n in params] + [n for n in params if n not in defaults]
    return {
        name: params[name]
        for name in ordered
        if not (name in defaults and _is_same(params[name], defaults[name]))
        # Classes that take **kwargs (XGBoost) list many unset arguments.
        and not (name not in defaults and params[name] is None)
    }


def _is_same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    if type(value) is not type(default) or isinstance(value, BaseEstimator | np.ndarray):
        return False
    return bool(value == default) or (value != value and default != default)


def public_path(cls: type[Any]) -> str:
    """Shortest dotted path under which a class can be imported.

    Examples
    --------
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> from anomaly.tuning.literals import public_path
    >>> DecisionTreeClassifier.__module__, public_path(DecisionTreeClassifier)
    ('sklearn.tree._classes', 'sklearn.tree.DecisionTreeClassifier')
    """
    if cls not in _paths:
        _paths[cls] = _find_path(cls)
    return _paths[cls]


def _find_path(cls: Any) -> str:
    parts, name = str(cls.__module__).split("."), str(cls.__qualname__)
    for length in range(1, len(parts) + 1):
        module = importlib.import_module(".".join(parts[:length]))
        if getattr(module, name, None) is cls:
            return f"{module.__name__}.{name}"
    return f"{cls.__module__}.{name}"


def import_class(path: str, packages: frozenset[str] | None = PACKAGES) -> type[BaseEstimator]:
    """Estimator class at a dotted path.

    Parameters
    ----------
    path : str
        E.g. ``"sklearn.svm.LinearSVC"``.
    packages : frozenset of str or None
        Top-level packages that may be imported; None allows any.

    Raises
    ------
    ParameterError
        If the package is not allowed, the path does not exist or names something
        other than an estimator.
    """
    module, _, name = path.rpartition(".")
    if packages is not None and module.partition(".")[0] not in packages:
        raise ParameterError(
            f"{path!r} is outside the packages that may be named here: "
            f"{', '.join(sorted(packages))}"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ParameterError(
            f"{path!r} cannot be imported ({error}); expected package.module.Class"
        ) from error
    if not (inspect.isclass(found) and hasattr(found, "get_params") and hasattr(found, "fit")):
        raise ParameterError(f"{path!r} is not an estimator class with fit and get_params")
    return found


def from_literal(text: str, packages: frozenset[str] = PACKAGES) -> Any:
    """Read a value that `to_literal` wrote. Nothing in the text is evaluated.

    Parameters
    ----------
    text : str
    packages : frozenset of str
        Packages whose estimators may be named.

    Raises
    ------
    ParameterError
        If the text is not in the notation.

    Examples
    --------
    >>> from anomaly.tuning.literals import from_literal
    >>> from_literal("{'alpha': np.float64(0.1), 'sizes': (5, 5), 'tol': -inf}")
    {'alpha': np.float64(0.1), 'sizes': (5, 5), 'tol': -inf}
    >>> from_literal("[sklearn.tree.DecisionTreeClassifier(max_depth=2)]")
    [DecisionTreeClassifier(max_depth=2)]
    >>> from_literal("os.system('true')")
    Traceback (most recent call last):
        ...
    anomaly.errors.ParameterError: 'os.system' is outside the packages that may be named here: \
anomaly, sklearn, xgboost
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ParameterError(f"not a Python literal: {text[:80]!r}") from error
    return _value(tree.body, packages)


def entries_from_literal(text: str) -> dict[str, Any]:
    """Read a dict that `to_literal` wrote, several times faster if it is one of numbers and texts.

    Raises
    ------
    ParameterError
        If the text is not a dict in the notation.

    Examples
    --------
    >>> from anomaly.tuning.literals import entries_from_literal
    >>> entries_from_literal("{'fold': 0, 'F1': 0.5, 'PPV': nan}")
    {'fold': 0, 'F1': 0.5, 'PPV': nan}
    """
    text = text.strip()
    entries = _plain_entries(text)
    value = from_literal(text) if entries is None else entries
    if not isinstance(value, dict):
        raise ParameterError(f"not a dict: {text[:80]!r}")
    return value


def _plain_entries(text: str) -> dict[str, Any] | None:
    """The dict, or None if it holds anything that is not plain."""
    entries: dict[str, Any] = {}
    at = 1
    for found in _ENTRY.finditer(text, at):
        if found.start() != at:
            return None
        at = found.end()
        name, real, whole, string = found.groups()
        if real is not None:
            entries[name] = float(real)
        else:
            entries[name] = string if whole is None else int(whole)
    closed = text.startswith("{") and text.endswith("}") and at == len(text)
    return entries if entries and closed else None


def _value(node: ast.expr, packages: frozenset[str]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.Name) and node.id in _NAMES:
        return _NAMES[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = _value(node.operand, packages)
        if type(number) in (int, float):
            return -number
    if isinstance(node, ast.Tuple):
        return tuple(_value(item, packages) for item in node.elts)
    if isinstance(node, ast.List):
        return [_value(item, packages) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {
            _value(key, packages): _value(item, packages)
            for key, item in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    if isinstance(node, ast.Call):
        return _called(node, packages)
    raise ParameterError(f"not allowed in a literal: {ast.unparse(node)[:80]!r}")


def _called(node: ast.Call, packages: frozenset[str]) -> Any:
    path = ast.unparse(node.func)
    module, _, name = path.rpartition(".")
    if module in ("np", "numpy") and name in _NUMPY_SCALARS:
        if len(node.args) != 1 or node.keywords:
            raise ParameterError(f"{path} takes one value: {ast.unparse(node)[:80]!r}")
        return getattr(np, name)(_value(node.args[0], packages))
    cls = import_class(path, packages)
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ParameterError(
            f"an estimator takes named arguments only: {ast.unparse(node)[:80]!r}"
        )
    arguments = {str(k.arg): _value(k.value, packages) for k in node.keywords}
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ParameterError(f"{path} cannot be made: {error}") from error
