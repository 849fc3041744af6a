"""Work units: whole staged fits, each one picklable call from data to log records.

`evaluate_unit` is everything a back end needs: it takes the data of a search
and one unit, and returns the unit's records. It writes nothing and knows
nothing of processes.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.base import clone
from sklearn.ensemble import AdaBoostClassifier

from anomaly.injection import weight_options
from anomaly.tuning.folds import Folds, Prepared
from anomaly.tuning.literals import public_path, to_literal
from anomaly.tuning.scores import count, failed_scores, ratio_scores
from anomaly.tuning.staging import (
    is_stage_value,
    stage_shares,
    staged_labels,
    staged_parameter,
    without_repeated_checks,
)

OVERSAMPLE = "oversample"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """One candidate on one fold: its parameters as given, and the keys of its log lines."""

    params: dict[str, Any]
    keys: dict[str, str]  # split -> key of its line

    @property
    def name(self) -> str:
        """Identity of the fit: the key of its first line."""
        return next(iter(self.keys.values()))


@dataclass(frozen=True)
class Unit:
    """Fits of one fold that are run together.

    Attributes
    ----------
    classifier : estimator
        Bare classifier with its seed set.
    fold : int
    fits : tuple of Fit
        Candidates; when ``staged`` is set they differ in that parameter only.
    staged : str or None
        Parameter whose largest value is fitted for all.
    oversample : estimator or None
        Wrapper that injects rows into the training half.
    samples : int or None
        Training rows of a halving rung.
    name : str
        Same in every process that works on the run, whatever is done already.
    """

    classifier: Any
    fold: int
    fits: tuple[Fit, ...]
    staged: str | None = None
    oversample: Any = None
    samples: int | None = None
    name: str = ""

    def singles(self) -> list[Unit]:
        """One unit per fit."""
        return [replace(self, fits=(fit,), name=fit.name) for fit in self.fits]

    def without(self, done: Any) -> Unit | None:
        """The unit less the fits whose lines are all in ``done``; None if none is left."""
        left = tuple(fit for fit in self.fits if not all(k in done for k in fit.keys.values()))
        return replace(self, fits=left) if left else None


@dataclass
class Record:
    """One line of the log."""

    params: dict[str, Any]
    scores: dict[str, Any]
    key: str = field(default="")

    def __post_init__(self) -> None:
        self.key = self.key or str(self.scores.get("key", ""))


def evaluate_unit(data: Folds, unit: Unit) -> list[Record]:
    """Run a unit and return its records; an error of a fit is a record, too."""
    return list(run_unit(data, unit))


def run_unit(data: Folds, unit: Unit) -> Iterator[Record]:
    """Run a unit and yield each record as soon as its fit is finished."""
    if unit.staged is not None and len(unit.fits) > 1:
        try:
            records = list(_run_staged(data, unit))
        except (Exception, SystemExit) as error:
            # The largest value may fail where smaller ones do not.
            _log.warning(
                "%s: the staged fit failed and its candidates are fitted one by one: %s",
                public_path(type(unit.classifier)),
                _reason(error),
            )
            records = []
        if records:
            yield from records
            return
    for fit in unit.fits:
        yield from _run_plain(data, unit, fit)


def failed_records(unit: Unit, fit: Fit, seed: int | None, reason: str) -> Iterator[Record]:
    """Records of a fit that gave no answer."""
    for split in fit.keys:
        scores = failed_scores()
        yield _record(unit, fit, split, seed, scores, np.nan, np.nan, {"failed": reason})


def candidate_classifier(classifier: Any, params: dict[str, Any]) -> Any:
    """A fresh classifier with a candidate's parameters, as `GridSearchCV` makes it."""
    own = {name: value for name, value in params.items() if name != OVERSAMPLE}
    return clone(classifier).set_params(**{k: clone(v, safe=False) for k, v in own.items()})


def make_units(
    data: Folds,
    classifier: Any,
    fold: int,
    fits: Sequence[Fit],
    oversamplers: dict[Any, Any],
    samples: int | None = None,
) -> list[Unit]:
    """Group the fits of one fold into units.

    Candidates that are prefixes of one fit become one staged unit, the others
    a unit each (see `join_units`).
    """
    groups: dict[tuple[str, Any, str], list[Fit]] = {}
    units = []
    n_train = len(data.train_rows(fold, samples))
    for fit in fits:
        factor = fit.params.get(OVERSAMPLE, 1)
        parameter = staged_by(classifier, fit.params, n_train)
        if parameter is None:
            one = (fit,)
            units.append(
                Unit(classifier, fold, one, None, oversamplers[factor], samples, fit.name)
            )
        else:
            rest = _frozen(fit.params, (parameter, OVERSAMPLE))
            groups.setdefault((parameter, factor, rest), []).append(fit)
    for (parameter, factor, rest), group in groups.items():
        group.sort(key=lambda fit: fit.params[parameter])
        name = f"{public_path(type(classifier))} {fold} {samples} {parameter} {factor} {rest}"
        units.append(
            Unit(classifier, fold, tuple(group), parameter, oversamplers[factor], samples, name)
        )
    return units


def join_units(units: Sequence[Unit]) -> Unit:
    """One unit from several single ones of the same fold, to hand out small fits together."""
    return replace(units[0], fits=tuple(fit for unit in units for fit in unit.fits))


def can_join(first: Unit, other: Unit) -> bool:
    """Whether two units are single fits of the same rows."""
    return (
        first.staged is None
        and other.staged is None
        and (first.fold, first.samples) == (other.fold, other.samples)
        and first.oversample is other.oversample
    )


def staged_by(classifier: Any, params: dict[str, Any], n_train: int) -> str | None:
    """Parameter of a candidate that a staged fit can answer for, or None."""
    parameter = staged_parameter(classifier, n_train, params)
    return parameter if parameter in params and is_stage_value(params[parameter]) else None


def _frozen(params: dict[str, Any], without: Sequence[str]) -> str:
    return to_literal({k: params[k] for k in sorted(params) if k not in without})


def _run_plain(data: Folds, unit: Unit, fit: Fit) -> Iterator[Record]:
    seed = data.random_state
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fold = data.prepared(unit.fold, unit.oversample, unit.samples)
            # The fold has passed the check for nan and inf already.
            with config_context(assume_finite=fold.is_plain):
                begun = time.perf_counter()
                model = candidate_classifier(unit.classifier, fit.params)
                options = weight_options(model, fold.weights)
                model.fit(fold.X_train, fold.y_train, **options)
                fit_seconds = time.perf_counter() - begun
                answers = {}
                for split in fit.keys:
                    X, y = _half(fold, split)
                    begun = time.perf_counter()
                    labels = model.predict(X)
                    answers[split] = (
                        ratio_scores(count(labels == data.classes[1], y == data.classes[1])),
                        time.perf_counter() - begun,
                    )
        except (Exception, SystemExit) as error:  # a classifier may want to end the process
            yield from failed_records(unit, fit, seed, _reason(error))
            return
    more = _warned(caught)
    for split, (scores, seconds) in answers.items():
        yield _record(unit, fit, split, seed, scores, fit_seconds, seconds, more)


def _run_staged(data: Folds, unit: Unit) -> Iterator[Record]:
    """Fit the largest value, and read every candidate off it."""
    assert unit.staged is not None
    values = [int(fit.params[unit.staged]) for fit in unit.fits]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is not known which of the candidates would warn
        fold = data.prepared(unit.fold, unit.oversample, unit.samples)
        model = candidate_classifier(unit.classifier, unit.fits[-1].params)
        X_train = _as_tree_reads(model, fold.X_train, fold.is_plain)
        _check_params(model)
        if fold.is_plain:
            model = without_repeated_checks(model)
        with config_context(assume_finite=fold.is_plain, skip_parameter_validation=True):
            begun = time.perf_counter()
            model.fit(X_train, fold.y_train, **weight_options(model, fold.weights))
            fit_seconds = time.perf_counter() - begun
            answers = {
                split: _stage_scores(data, model, values, fold, split)
                for split in unit.fits[0].keys
            }
    for i, (fit, value) in enumerate(zip(unit.fits, values, strict=True)):
        fit_share, predict_share = stage_shares(model, value, values)
        for split in fit.keys:
            scores, seconds = answers[split][i]
            took = fit_seconds * fit_share, seconds * predict_share
            yield _record(unit, fit, split, data.random_state, scores, *took, {})


def _stage_scores(
    data: Folds, model: Any, values: Sequence[int], fold: Prepared, split: str
) -> list[tuple[dict[str, Any], float]]:
    """Scores of every prefix, and the seconds that all of them took."""
    X, y = _half(fold, split)
    truth = y == data.classes[1]
    begun = time.perf_counter()
    X = _as_tree_reads(model, X, fold.is_plain)
    scores = [
        ratio_scores(count(labels == data.classes[1], truth))
        for labels in staged_labels(model, values, X)
    ]
    seconds = time.perf_counter() - begun
    return [(each, seconds) for each in scores]


def _as_tree_reads(model: Any, X: Any, is_plain: bool) -> Any:
    """Rows in the type that trees convert them to, converted once for all trees."""
    if isinstance(model, AdaBoostClassifier) and is_plain:
        return np.ascontiguousarray(X, dtype=np.float32)
    return X


def _check_params(model: Any) -> None:
    """Check the parameters once, since the members of an ensemble are not checked again."""
    for estimator in (model, getattr(model, "estimator", None)):
        if estimator is not None and hasattr(estimator, "_parameter_constraints"):
            estimator._validate_params()


def _half(fold: Prepared, split: str) -> tuple[Any, NDArray[Any]]:
    return (fold.X_test, fold.y_test) if split == "test" else (fold.X_train, fold.y_train)


def _warned(caught: list[warnings.WarningMessage]) -> dict[str, Any]:
    names = sorted({warning.category.__name__ for warning in caught})
    return {"warned": ", ".join(names)} if names else {}


def _reason(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except Exception:  # the text of a foreign error may fail itself
        return type(error).__name__


def _record(
    unit: Unit,
    fit: Fit,
    split: str,
    seed: int | None,
    scores: dict[str, Any],
    fit_seconds: float,
    predict_seconds: float,
    more: dict[str, Any],
) -> Record:
    samples = {} if unit.samples is None else {"samples": unit.samples}
    # Says that the seconds are shares of one larger fit, whatever of it was left to do.
    staged = {} if unit.staged is None else {"staged": unit.staged}
    return Record(
        fit.params,
        {
            "estimator": public_path(type(unit.classifier)),
            "fold": unit.fold,
            "split": split,
            "seed": seed,
            **scores,
            "fit_seconds": round(float(fit_seconds), 6),
            "predict_seconds": round(float(predict_seconds), 6),
            **samples,
            **staged,
            **more,
            "key": fit.keys[split],
        },
        fit.keys[split],
    )
