"""Tuning one classifier: candidates, folds, log, resume, workers, and the answer."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline

import anomaly
from anomaly.errors import DataError, ParameterError
from anomaly.injection import OversampleClassifier
from anomaly.outlier import as_classifier
from anomaly.tuning import progress as reporting
from anomaly.tuning.backend import Backend, LocalPlace, Place, opened
from anomaly.tuning.families import effective_params, family
from anomaly.tuning.folds import Folds, describe
from anomaly.tuning.literals import public_path, to_literal
from anomaly.tuning.log import LogReader, RunFolder
from anomaly.tuning.scores import scorer
from anomaly.tuning.units import (
    OVERSAMPLE,
    Fit,
    Unit,
    candidate_classifier,
    evaluate_unit,
    make_units,
    staged_by,
)
from anomaly.tuning.workers import Outcome, one_thread

Grid = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]]

# A unit that another process holds is looked at again after this long.
_BUSY_S = 0.2


@dataclass(frozen=True)
class Candidate:
    """One combination of parameters.

    Attributes
    ----------
    number : int
        Place among all candidates.
    params : dict
    text : str
        Its effective parameters as a literal; candidates of the same text are
        fitted once.
    """

    number: int
    params: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Space:
    """All candidates of a classifier.

    Attributes
    ----------
    classifier : estimator
    grids : list of mapping
    candidates : list of Candidate
        In the order of scikit-learn's `ParameterGrid`.
    distinct : list of Candidate
        The first of each set of equivalent ones.
    """

    classifier: Any
    grids: list[Mapping[str, Sequence[Any]]]
    candidates: list[Candidate]
    distinct: list[Candidate]


@dataclass
class TuningResult:
    """What a search found.

    Attributes
    ----------
    best_estimator_ : estimator
        Refitted on all rows, with preparation and oversampling inside; None if
        ``refit=False``.
    best_params_ : dict
        The winner's parameters; the first of equals in order of the grid.
    best_score_ : float
        Its mean score over the folds.
    table : DataFrame
        One row per candidate that was fitted, in order of the grid: ``params``,
        ``mean_score``, ``std_score``, ``rank``, one ``fold_<k>`` per fold (nan
        where a search dropped it), ``fit_seconds`` and ``predict_seconds``
        (means over folds).
    n_candidates_, n_distinct_ : int
        Candidates of the grid, and how many of them differ in effect.
    n_fits_, n_resumed_ : int
        Fits that the answer rests on, and how many of them came from the log.
    """

    best_estimator_: Any
    best_params_: dict[str, Any]
    best_score_: float
    table: pd.DataFrame
    n_candidates_: int
    n_distinct_: int
    n_fits_: int
    n_resumed_: int


def tune(
    classifier: Any,
    grid: Grid,
    X: Any,
    y: ArrayLike,
    *,
    prepare: Any = None,
    cv: Any = 5,
    scoring: str = "f1",
    n_jobs: int = 1,
    backend: Any = None,
    random_state: int | None = 0,
    search: str = "grid",
    search_options: Mapping[str, Any] | None = None,
    log: str | os.PathLike[str] | RunFolder | None = None,
    progress: Any = None,
    oversampler: Any = None,
    train_scores: bool = False,
    refit: bool = True,
) -> TuningResult:
    """Find the best parameters of a classifier by cross-validation.

    Candidates that are prefixes of one fit (members of an ensemble, numbers of
    neighbours) are read off that fit; the scores are those of separate fits to
    the last bit. With ``log``, every finished fit is on disk before the next
    begins, and the same call continues where a killed one ended.

    Parameters
    ----------
    classifier : estimator or str
        Bare classifier, the name of a family, or an import path.
    grid : mapping or list of mappings
        Parameter names to lists of values, as for scikit-learn's
        `ParameterGrid`. The key ``oversample`` multiplies the injected rows of
        the training halves.
    X : array-like or DataFrame of shape (n_samples, n_features)
    y : array-like of shape (n_samples,)
        1 or True is the anomaly.
    prepare : transformer, optional
        Encoding and scaling, fitted inside each fold.
    cv : int, splitter or iterable of (train, test)
        As for `GridSearchCV`.
    scoring : {"f1", "accuracy", "balanced_accuracy", "precision", "recall"}
    n_jobs : int
        Worker processes of this machine; -1 for one per processor.
    backend : Backend, optional
        Where the fits run, instead of ``n_jobs``: a description, which is opened
        and closed here, or what `Backend.open` gave.
    random_state : int or None
        Seed of the classifier, when it has none of its own, and of injection.
    search : {"grid", "racing", "halving", "optuna"}
    search_options : mapping, optional
        See `anomaly.tuning.searches`.
    log : path or RunFolder, optional
        Folder of the run.
    progress : None, bool or reporter
        None shows a bar on a terminal only; True also prints a line a minute
        elsewhere.
    oversampler : OversampleClassifier, optional
        How to inject when the grid has ``oversample``; by default uniformly,
        with the categories that ``prepare`` names or those that are no numbers.
    train_scores : bool
        Also score, and log, the training half of every fold.
    refit : bool

    Returns
    -------
    TuningResult

    Raises
    ------
    ParameterError
        For a wrong option, and for a log that belongs to other data, folds,
        seeds or library versions; every difference is named.
    DataError
        For labels of one class only, or if no candidate could be fitted.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from anomaly.tuning import tune
    >>> X, y = make_classification(200, class_sep=2.0, random_state=0)
    >>> result = tune("knn", {"n_neighbors": [1, 3, 5, 7]}, X, y, cv=3)
    >>> result.best_params_, round(result.best_score_, 3)
    ({'n_neighbors': 5}, 0.985)
    """
    from anomaly.tuning.searches import find_search

    run_search = find_search(search)
    model = seeded(
        family(classifier).make() if isinstance(classifier, str) else classifier, random_state
    )
    space = make_space(model, grid)
    data = Folds(X, y, prepare=prepare, cv=cv, random_state=random_state)
    with opened(backend, n_jobs) as place, one_thread():
        evaluator = Evaluator(
            data,
            space,
            scoring=scoring,
            place=place,
            log=log,
            oversampler=oversampler,
            train_scores=train_scores,
            reporter=reporting.choose(progress),
        )
        try:
            run_search(evaluator, dict(search_options or {}))
            evaluator.close()
        except BaseException:
            evaluator.close(kill=True)
            raise
        return _result(evaluator, oversampler, refit)


@dataclass(frozen=True)
class Estimate:
    """What a grid search would cost.

    Attributes
    ----------
    n_candidates, n_distinct, n_fits, n_units : int
        Candidates, those that differ in effect, their fits over all folds, and
        the (staged) fits that are really made.
    seconds : float
        Expected time of one process, from a sample of the units.
    """

    n_candidates: int
    n_distinct: int
    n_fits: int
    n_units: int
    seconds: float


def estimate(
    classifier: Any,
    grid: Grid,
    X: Any,
    y: ArrayLike,
    *,
    prepare: Any = None,
    cv: Any = 5,
    random_state: int | None = 0,
    oversampler: Any = None,
    budget_s: float = 3.0,
) -> Estimate:
    """Estimate the cost of a grid search by running a random sample of its units.

    Parameters
    ----------
    classifier, grid, X, y, prepare, cv, random_state, oversampler
        As for `tune`.
    budget_s : float
        Seconds after which no further unit is begun.

    Returns
    -------
    Estimate
    """
    model = family(classifier).make() if isinstance(classifier, str) else classifier
    model = seeded(model, random_state)
    data = Folds(X, y, prepare=prepare, cv=cv, random_state=random_state)
    evaluator = Evaluator(data, make_space(model, grid), oversampler=oversampler)
    distinct, n_folds = evaluator.distinct, evaluator.n_folds
    fits = [Fit(candidate.params, {"test": str(candidate.number)}) for candidate in distinct]
    units = make_units(data, model, 0, fits, evaluator._oversamplers)
    took: list[float] = []
    with one_thread():
        for number in np.random.default_rng(0).permutation(len(units)):
            begun = time.perf_counter()
            evaluate_unit(data, units[number])
            took.append(time.perf_counter() - begun)
            if sum(took) > budget_s:
                break
    n_units = len(units) * n_folds
    seconds = float(np.mean(took)) * n_units
    counts = len(evaluator.space.candidates), len(distinct), len(distinct) * n_folds
    return Estimate(*counts, n_units, seconds)


def seeded(classifier: Any, random_state: int | None) -> Any:
    """Copy of a classifier, or of an outlier detector as one, with the seed set if it has none."""
    copy = as_classifier(clone(classifier))
    if random_state is not None and copy.get_params(deep=False).get("random_state", 0) is None:
        copy.set_params(random_state=random_state)
    return copy


def make_space(classifier: Any, grid: Grid) -> Space:
    """All candidates of a grid.

    Raises
    ------
    ParameterError
        For a parameter that the classifier does not have, and for values that
        cannot be written to a log.
    """
    try:
        combinations = list(ParameterGrid(grid))
    except (TypeError, ValueError) as error:
        raise ParameterError(f"grid: {error}") from None
    _check_names(classifier, combinations)
    candidates = [
        Candidate(number, params, to_literal(effective_params(classifier, params)))
        for number, params in enumerate(combinations)
    ]
    first: dict[str, Candidate] = {}
    for candidate in candidates:
        first.setdefault(candidate.text, candidate)
    grids = [grid] if isinstance(grid, Mapping) else list(grid)
    return Space(classifier, grids, candidates, list(first.values()))


def _check_names(classifier: Any, combinations: Iterable[Mapping[str, Any]]) -> None:
    names = {name for params in combinations for name in params} - {OVERSAMPLE}
    known = set(classifier.get_params(deep=False))
    for name in sorted(names):
        if name.partition("__")[0] not in known:
            nested = f"estimator__{name}"
            meant = f", did you mean {nested!r}?" if nested in classifier.get_params() else ""
            raise ParameterError(
                f"{type(classifier).__name__} has no parameter {name!r}{meant or ';'} it has "
                f"{', '.join(sorted(known))}; every grid may also have {OVERSAMPLE!r}"
            )


def library_versions(classifier: Any) -> dict[str, str]:
    """Versions that a result may depend on."""
    libraries = {"numpy", "scikit-learn", "scipy"}
    package = public_path(type(classifier)).partition(".")[0]
    if package not in ("anomaly", "sklearn"):
        libraries |= set(importlib.metadata.packages_distributions().get(package, []))
    found = {
        "anomaly": anomaly.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
    return found | {name: importlib.metadata.version(name) for name in sorted(libraries)}


class Evaluator:
    """Answers "what does this candidate score on that fold?", from the log or by a fit.

    Searches ask it and nothing else.

    Attributes
    ----------
    data : Folds
    space : Space
    distinct : list of Candidate
        Those of the space that differ in effect.
    n_folds : int
    """

    def __init__(
        self,
        data: Folds,
        space: Space,
        *,
        scoring: str = "f1",
        place: Place | None = None,
        log: str | os.PathLike[str] | RunFolder | None = None,
        oversampler: Any = None,
        train_scores: bool = False,
        reporter: reporting.Progress | None = None,
    ) -> None:
        self.data = data
        self.space = space
        self.classifier = space.classifier
        self.distinct = space.distinct
        self.n_folds = len(data)
        self._score = scorer(scoring)
        self._splits = ("test", "train") if train_scores else ("test",)
        self._oversamplers = _oversamplers(space.candidates, oversampler, data)
        self._folder = log if isinstance(log, RunFolder) or log is None else RunFolder(log)
        self._plan = self._make_plan()
        self._prefix = json.dumps(self._plan, sort_keys=True)
        self._reader = None if self._folder is None else LogReader(self._folder)
        if self._folder is not None:
            self._folder.agree(plan_name(self.classifier), self._plan)
        place = place or LocalPlace(Backend())
        self._workers = place.workers(data, self._folder, library_versions(self.classifier))
        self._reporter = reporter or reporting.Silent()
        if self._folder is not None:
            name, where = place.backend.name, place.describe()
            self._reporter = reporting.Heartbeat(self._folder.path, self._reporter, name, where)
        self._scores: dict[str, dict[str, Any]] = {}
        self._best = math.nan
        self._started = False
        self.n_resumed = 0

    def evaluate(
        self,
        candidates: Sequence[Candidate],
        folds: Sequence[int],
        samples: int | None = None,
        still_to_come: int = 0,
    ) -> NDArray[np.float64]:
        """Scores of candidates on folds.

        Parameters
        ----------
        candidates : sequence of Candidate
        folds : sequence of int
        samples : int or None
            Training rows to use; None for all.
        still_to_come : int
            Fits that the search expects after these, for the time left.

        Returns
        -------
        ndarray of shape (len(candidates), len(folds))
            nan where the fit failed.
        """
        wanted = {c.text: c for c in candidates}
        missing = self._missing(list(wanted.values()), folds, samples, still_to_come)
        total = self._done + len(missing) + still_to_come
        self._run(missing, samples, total)
        rows = [[self._score(self.scores(c, fold, samples)) for fold in folds] for c in candidates]
        return np.array(rows, dtype=float).reshape(len(candidates), len(folds))

    def scores(
        self, candidate: Candidate, fold: int, samples: int | None = None
    ) -> dict[str, Any]:
        """Logged scores of a candidate's test half of a fold; KeyError if not evaluated."""
        return self._scores[self._key(candidate, fold, "test", samples)]

    def is_evaluated(self, candidate: Candidate, fold: int) -> bool:
        """Whether a candidate has been scored on a fold with all rows."""
        return self._key(candidate, fold, "test", None) in self._scores

    def n_anomalies(self, fold: int) -> int:
        """Anomalies in the test half of a fold."""
        return int(
            np.count_nonzero(self.data.y[self.data.splits[fold][1]] == self.data.classes[1])
        )

    def staged_names(self, grid: Mapping[str, Sequence[Any]]) -> set[str]:
        """Parameters of one grid that staged fits answer for."""
        n_train = len(self.data.train_rows(0))
        smallest = next(iter(ParameterGrid(grid)))
        parameter = staged_by(self.classifier, smallest, n_train)
        return set() if parameter is None else {parameter}

    def by_grid(self) -> Iterator[tuple[int, Candidate]]:
        """Every candidate with the number of its grid, equivalents included."""
        candidates = iter(self.space.candidates)
        for number, grid in enumerate(self.space.grids):
            for _ in range(len(ParameterGrid(grid))):
                yield number, next(candidates)

    def close(self, kill: bool = False) -> None:
        """Stop workers and progress."""
        if self._started:
            self._reporter.stop()
        self._workers.close(kill)

    @property
    def _done(self) -> int:
        return len(self._scores)

    def _make_plan(self) -> dict[str, Any]:
        oversampler = next((o for o in self._oversamplers.values() if o is not None), None)
        if oversampler is not None:
            oversampler = clone(oversampler).set_params(oversample=1)
        return {
            **self.data.fingerprint(),
            "classifier": describe(self.classifier),
            "oversampler": describe(oversampler),
            "seed": self.data.random_state,
            "versions": library_versions(self.classifier),
        }

    def _key(self, candidate: Candidate, fold: int, split: str, samples: int | None) -> str:
        return fit_key(self._prefix, candidate.text, fold, split, samples)

    def _missing(
        self,
        candidates: Sequence[Candidate],
        folds: Sequence[int],
        samples: int | None,
        still_to_come: int,
    ) -> list[tuple[int, Fit]]:
        """Fits that neither this process nor the log has, after reading the log."""
        asked = []
        for fold in folds:
            for candidate in candidates:
                keys = {s: self._key(candidate, fold, s, samples) for s in self._splits}
                if not all(key in self._scores for key in keys.values()):
                    asked.append((fold, Fit(candidate.params, keys)))
        before = self._done
        if not self._started:
            self._workers.prepare()
        missing = self._take_from_log(asked)
        self.n_resumed += self._done - before
        if not self._started:
            total = self._done + len(missing) + still_to_come
            self._reporter.start(type(self.classifier).__name__, total, self._done)
            self._started = True
        return missing

    def _take_from_log(self, fits: Sequence[tuple[int, Fit]]) -> list[tuple[int, Fit]]:
        if self._reader is None:
            return list(fits)
        self._reader.refresh()
        missing = []
        for fold, fit in fits:
            if all(key in self._reader for key in fit.keys.values()):
                for key in fit.keys.values():
                    self._scores[key] = self._reader.scores(key)
            else:
                missing.append((fold, fit))
        return missing

    def _run(self, missing: list[tuple[int, Fit]], samples: int | None, total: int) -> None:
        """Run fits until all are done, here or by other processes on the same run."""
        while missing:
            units = self._units(missing, samples)
            busy = False
            for outcome in self._workers.run(units):
                self._take(outcome, total)
                busy = busy or outcome.busy is not None
            missing = [
                m for m in missing if not all(k in self._scores for k in m[1].keys.values())
            ]
            missing = self._take_from_log(missing)
            if missing and busy:
                time.sleep(_BUSY_S)

    def _units(self, missing: Sequence[tuple[int, Fit]], samples: int | None) -> deque[Unit]:
        units: list[Unit] = []
        for fold in dict.fromkeys(fold for fold, _ in missing):
            fits = [fit for at, fit in missing if at == fold]
            units += make_units(
                self.data, self.classifier, fold, fits, self._oversamplers, samples
            )
        return deque(units)

    def _take(self, outcome: Outcome, total: int) -> None:
        for record in outcome.records:
            self._scores[record.key] = record.scores
            if record.scores["split"] == "test":
                score = self._score(record.scores)
                if not score <= self._best and not math.isnan(score):
                    self._best = score
        self._reporter.advance(len(outcome.records), total, self._best, outcome.host)


def fit_key(prefix: str, text: str, fold: int, split: str, samples: int | None = None) -> str:
    """Key of a line of the log: of a plan's JSON, a candidate's text, and where it is tried."""
    named = f"{prefix}\n{text}\n{fold} {split} {samples}"
    return hashlib.sha256(named.encode()).hexdigest()[:16]


def plan_name(classifier: Any) -> str:
    """What is tuned, whatever its seed."""
    params = classifier.get_params(deep=False)
    unseeded = (
        clone(classifier).set_params(random_state=None) if "random_state" in params else classifier
    )
    return describe(unseeded)


def _oversamplers(candidates: Iterable[Candidate], prototype: Any, data: Folds) -> dict[Any, Any]:
    """The wrapper that injects, for every factor of the grid."""
    factors = {candidate.params.get(OVERSAMPLE, 1) for candidate in candidates}
    found: dict[Any, Any] = {1: None}
    if factors == {1}:
        return found
    if prototype is None:
        prototype = OversampleClassifier(
            None, categorical=_categories(data), random_state=data.random_state
        )
    for factor in factors - {1}:
        found[factor] = clone(prototype).set_params(oversample=factor)
    return found


def _categories(data: Folds) -> list[Any] | None:
    named = getattr(data.prepare, "categorical", None)
    if isinstance(named, str) or named is None:
        X = data.X
        named = list(X.select_dtypes(exclude="number")) if isinstance(X, pd.DataFrame) else None
    return None if named is None else list(named)


def _result(evaluator: Evaluator, oversampler: Any, refit: bool) -> TuningResult:
    table = _table(evaluator)
    complete = table.dropna(subset=["mean_score"])
    if complete.empty:
        raise DataError(f"no candidate could be fitted; {_first_failure(evaluator)}")
    best = complete.iloc[int(np.argmax(complete["mean_score"].to_numpy()))]
    params = dict(best["params"])
    return TuningResult(
        best_estimator_=_refit(evaluator, params) if refit else None,
        best_params_=params,
        best_score_=float(best["mean_score"]),
        table=table,
        n_candidates_=len(evaluator.space.candidates),
        n_distinct_=len(evaluator.distinct),
        n_fits_=evaluator._done,
        n_resumed_=evaluator.n_resumed,
    )


def _table(evaluator: Evaluator) -> pd.DataFrame:
    folds = range(evaluator.n_folds)
    rows = []
    for candidate in evaluator.space.candidates:
        known = [f for f in folds if evaluator.is_evaluated(candidate, f)]
        if not known:
            continue
        scores = [evaluator.scores(candidate, f) for f in known]
        row: dict[str, Any] = {"params": candidate.params}
        row |= {f"fold_{f}": math.nan for f in folds}
        row |= {f"fold_{f}": evaluator._score(s) for f, s in zip(known, scores, strict=True)}
        row |= {
            name: float(np.mean([s[name] for s in scores]))
            for name in ("fit_seconds", "predict_seconds")
        }
        rows.append(row)
    names = [f"fold_{f}" for f in folds]
    columns = [
        "params",
        "mean_score",
        "std_score",
        "rank",
        *names,
        "fit_seconds",
        "predict_seconds",
    ]
    if not rows:
        return pd.DataFrame(columns=columns)
    table = pd.DataFrame(rows)
    by_fold = table[names].to_numpy()
    table["mean_score"] = np.average(by_fold, axis=1)
    table["std_score"] = by_fold.std(axis=1)
    table["rank"] = table["mean_score"].rank(ascending=False, method="min", na_option="bottom")
    table["rank"] = table["rank"].astype(int)
    return table[columns]


def _first_failure(evaluator: Evaluator) -> str:
    for scores in evaluator._scores.values():
        if "failed" in scores:
            return f"the first one failed with {scores['failed']}"
    return "the grid is empty"


def _refit(evaluator: Evaluator, params: dict[str, Any]) -> Any:
    data = evaluator.data
    model = candidate_classifier(evaluator.classifier, params)
    if data.prepare is not None:
        model = Pipeline([("prepare", clone(data.prepare)), ("classifier", model)])
    oversampler = evaluator._oversamplers[params.get(OVERSAMPLE, 1)]
    if oversampler is not None:
        model = clone(oversampler).set_params(estimator=model)
    return model.fit(data.X, data.y)
