"""The data of a search: rows, labels, folds, and each fold's prepared halves."""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.model_selection import StratifiedKFold, check_cv
from sklearn.utils import check_array, column_or_1d

from anomaly.errors import DataError, ParameterError
from anomaly.tuning.literals import to_literal

# Prepared folds kept per process; a search visits its folds one after another.
_KEPT = 6


@dataclass(frozen=True)
class Prepared:
    """One fold, encoded and ready to fit.

    Attributes
    ----------
    X_train, X_test : ndarray
    y_train, y_test : ndarray
    weights : ndarray or None
        Weights of the training rows, if injected rows share that of the labelled ones.
    is_plain : bool
        Whether all values are finite as float64 and as float32, so that
        scikit-learn need not look again for every candidate.
    """

    X_train: Any
    y_train: NDArray[Any]
    X_test: Any
    y_test: NDArray[Any]
    is_plain: bool
    weights: NDArray[np.float64] | None = None


class Folds:
    """Rows, labels and folds of a search, fit to be sent to other processes.

    Parameters
    ----------
    X : array-like or DataFrame of shape (n_samples, n_features)
    y : array-like of shape (n_samples,)
        Two classes; the larger label, 1 or True is the anomaly.
    prepare : transformer or None
        Fitted inside each fold.
    cv : int, splitter or iterable of (train, test)
        As for scikit-learn; an int means stratified folds in the order of rows.
    random_state : int or None
        Seed of injected rows and of the sample of a halving rung.
    """

    def __init__(
        self,
        X: Any,
        y: ArrayLike,
        *,
        prepare: Any = None,
        cv: Any = 5,
        random_state: int | None = 0,
    ) -> None:
        self.X = (
            X
            if isinstance(X, pd.DataFrame)
            else check_array(X, dtype=None, ensure_all_finite=False)
        )
        self.y, self.classes = _binary(y, len(self.X))
        self.prepare = prepare
        self.random_state = random_state
        self.splits = _splits(cv, self.X, self.y)
        self._prepared: OrderedDict[tuple[Any, ...], Prepared] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_prepared": OrderedDict()}

    def __len__(self) -> int:
        return len(self.splits)

    def train_rows(self, fold: int, samples: int | None = None) -> NDArray[np.intp]:
        """Rows a fold trains on: all of them, or a seeded stratified sample."""
        train = self.splits[fold][0]
        if samples is None or samples >= len(train):
            return train
        seed = [0 if self.random_state is None else self.random_state, fold]
        order = np.random.default_rng(seed).permutation(len(train))
        # Ranks within each class, as shares: taking the smallest keeps the classes' shares.
        share = np.empty(len(train))
        for label in self.classes:
            members = order[self.y[train][order] == label]
            share[members] = (np.arange(len(members)) + 0.5) / max(len(members), 1)
        return train[np.sort(np.argsort(share, kind="stable")[:samples])]

    def prepared(self, fold: int, oversample: Any = None, samples: int | None = None) -> Prepared:
        """One fold after injection and encoding, kept for the next candidate.

        Parameters
        ----------
        fold : int
        oversample : OversampleClassifier or None
            Adds freshly injected rows to the training half.
        samples : int or None
            Number of training rows to use.
        """
        wanted = (fold, None if oversample is None else to_literal(oversample), samples)
        if wanted in self._prepared:
            self._prepared.move_to_end(wanted)
            return self._prepared[wanted]
        made = self._prepare(fold, oversample, samples)
        self._prepared[wanted] = made
        while len(self._prepared) > _KEPT:
            self._prepared.popitem(last=False)
        return made

    def _prepare(self, fold: int, oversample: Any, samples: int | None) -> Prepared:
        train, test = self.train_rows(fold, samples), self.splits[fold][1]
        X_train, X_test = _rows(self.X, train), _rows(self.X, test)
        y_train, weights = self.y[train], None
        if oversample is not None:
            added = clone(oversample).set_params(estimator=_Keep()).fit(X_train, y_train)
            X_train, y_train, weights = added.estimator_.rows_
        if self.prepare is not None:
            transformer = clone(self.prepare)
            X_train = transformer.fit_transform(X_train, y_train)
            X_test = transformer.transform(X_test)
        plain = _is_plain(X_train, X_test)
        return Prepared(X_train, y_train, X_test, self.y[test], plain, weights)

    def fingerprint(self) -> dict[str, str]:
        """Digests of rows and labels, of the folds, and of the preparation."""
        return {
            "data": fingerprint_rows(self.X, self.y),
            "folds": _digest(*(part.astype("<i8").tobytes() for s in self.splits for part in s)),
            "prepare": describe(self.prepare),
        }


def fingerprint_rows(X: Any, y: NDArray[Any]) -> str:
    """Digest that changes when any cell, label, type or name of a column changes."""
    return _digest(*_data_bytes(X), y.tobytes(), str(y.dtype).encode())


class _Keep(ClassifierMixin, BaseEstimator):
    """Keeps the rows that a wrapper would have fitted its classifier on."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> _Keep:
        self.rows_ = X, np.asarray(y), sample_weight
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        return np.repeat(self.classes_[:1], len(X))


def describe(estimator: Any) -> str:
    """One line that changes when an estimator's parameters change."""
    try:
        return to_literal(estimator)
    except ParameterError:
        return f"{type(estimator).__name__} {_digest(pickle.dumps(estimator))}"


def _binary(y: ArrayLike, n_samples: int) -> tuple[NDArray[Any], NDArray[Any]]:
    labels = column_or_1d(y)
    if len(labels) != n_samples:
        raise DataError(f"y has {len(labels)} labels, X has {n_samples} rows")
    if labels.dtype == bool:
        labels = labels.astype(np.int64)
    classes = np.unique(labels)
    if len(classes) != 2:
        raise DataError(
            "tuning needs rows of both classes (0 normal, 1 anomaly), "
            f"y holds {classes.tolist()}; inject anomalies first if there are none"
        )
    return labels, classes


def _splits(cv: Any, X: Any, y: NDArray[Any]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    if isinstance(cv, int) and not isinstance(cv, bool):
        rarest = int(np.unique(y, return_counts=True)[1].min())
        if not 2 <= cv <= rarest:
            raise ParameterError(
                f"cv must be at least 2 and at most the rows of the rarest class ({rarest}), "
                f"got {cv}"
            )
        cv = StratifiedKFold(cv)
    try:
        splitter = check_cv(cv, y, classifier=True)
    except ValueError as error:
        raise ParameterError(
            f"cv must be an int, a splitter or (train, test) pairs: {error}"
        ) from None
    return [(np.asarray(a), np.asarray(b)) for a, b in splitter.split(X, y)]


def _rows(X: Any, rows: NDArray[np.intp]) -> Any:
    return X.iloc[rows] if isinstance(X, pd.DataFrame) else X[rows]


def _is_plain(*arrays: Any) -> bool:
    limit = np.finfo(np.float32).max
    return all(
        isinstance(array, np.ndarray)
        and array.dtype.kind in "fiu"
        and bool((np.abs(array) < limit).all())
        for array in arrays
    )


def _data_bytes(X: Any) -> Sequence[bytes]:
    if isinstance(X, pd.DataFrame):
        names = [
            f"{name}:{'text' if dtype.kind == 'O' else dtype}" for name, dtype in X.dtypes.items()
        ]
        hashed = pd.util.hash_pandas_object(X, index=False).to_numpy()
        return [repr(names).encode(), hashed.tobytes()]
    if X.dtype == object:
        hashed = pd.util.hash_pandas_object(pd.DataFrame(X), index=False).to_numpy()
        return [repr(X.shape).encode(), hashed.tobytes()]
    return [repr((X.shape, X.dtype.str)).encode(), np.ascontiguousarray(X).tobytes()]


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]
