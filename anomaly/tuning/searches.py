"""Ways through a grid. All share the log, resume and staged fits.

========  ==========================================================================
grid      every candidate on every fold
racing    fold by fold; a candidate that lags too far behind the leader is dropped
halving   small samples of the training rows first; the best third goes on
optuna    tree-structured Parzen estimator (extra ``optuna``); every trial scores all
          candidates that one staged fit answers for
========  ==========================================================================

Every decision follows from scores alone, so a search that continues from its log
takes the same way again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly.errors import ParameterError, require

if TYPE_CHECKING:
    from anomaly.tuning.engine import Candidate, Evaluator

Search = Callable[["Evaluator", dict[str, Any]], None]

# Fewest training rows of the first rung of halving.
_LEAST_SAMPLES = 100


def grid(evaluator: Evaluator, options: dict[str, Any]) -> None:
    """Score every candidate on every fold."""
    evaluator.evaluate(evaluator.distinct, range(evaluator.n_folds))


def racing(evaluator: Evaluator, options: dict[str, Any]) -> None:
    """Score fold by fold, and drop what lags too far behind the leader.

    A candidate is dropped when its mean lags the best mean by more than
    ``margin`` standard errors of a score on the anomalies seen so far.

    Options: ``margin`` (default 2).
    """
    margin = _number(options, "margin", 2.0, least=0.0)
    alive = evaluator.distinct
    seen: list[np.ndarray] = []
    anomalies = 0
    for fold in range(evaluator.n_folds):
        later = (evaluator.n_folds - fold - 1) * len(alive)
        seen.append(evaluator.evaluate(alive, [fold], still_to_come=later)[:, 0])
        anomalies += evaluator.n_anomalies(fold)
        means = np.nan_to_num(np.mean(seen, axis=0), nan=-math.inf)
        best = float(means.max())
        if not math.isfinite(best):
            continue
        error = math.sqrt(max(best * (1 - best), 0.0) / max(anomalies, 1))
        kept = np.flatnonzero(means >= best - margin * error)
        alive = [alive[i] for i in kept]
        seen = [scores[kept] for scores in seen]


def halving(evaluator: Evaluator, options: dict[str, Any]) -> None:
    """Score all candidates on a sample of the training rows, and the best on larger ones.

    Each rung trains on ``factor`` times as many rows and keeps the best
    1/``factor`` of the candidates; the last rung trains on all rows.

    Options: ``factor`` (default 3).
    """
    factor = _number(options, "factor", 3.0, least=1.5)
    n_train = min(len(evaluator.data.train_rows(fold)) for fold in range(evaluator.n_folds))
    alive, folds = evaluator.distinct, range(evaluator.n_folds)
    most_rungs = math.log(max(n_train / _LEAST_SAMPLES, 1.0), factor)
    rungs = math.floor(min(math.log(len(alive), factor), most_rungs) + 1e-9)
    for rung in range(rungs, 0, -1):
        samples = round(n_train / factor**rung)
        later = sum(len(alive) / factor**k for k in range(1, rung + 1)) * len(folds)
        means = evaluator.evaluate(alive, folds, samples, still_to_come=round(later)).mean(axis=1)
        order = np.argsort(-np.nan_to_num(means, nan=-math.inf), kind="stable")
        kept = np.sort(order[: math.ceil(len(alive) / factor)])
        alive = [alive[i] for i in kept]
    evaluator.evaluate(alive, folds)


def optuna(evaluator: Evaluator, options: dict[str, Any]) -> None:
    """Let a tree-structured Parzen estimator choose what to score.

    A trial chooses the parameters that are not staged, and scores every stage.

    Options: ``n_trials`` (default 10).
    """
    library = require("optuna", extra="optuna")
    n_trials = int(_number(options, "n_trials", 10, least=1))
    space = _Space(evaluator)
    loud = library.logging.get_verbosity()
    library.logging.set_verbosity(library.logging.WARNING)
    try:
        seed = evaluator.data.random_state
        study = library.create_study(
            direction="maximize", sampler=library.samplers.TPESampler(seed=seed)
        )
        for number in range(n_trials):
            trial = study.ask()
            chosen = space.choose(trial)
            later = (n_trials - number - 1) * len(chosen) * evaluator.n_folds
            folds = range(evaluator.n_folds)
            means = evaluator.evaluate(chosen, folds, still_to_come=later).mean(axis=1)
            best = np.nan_to_num(means, nan=-1.0).max()
            study.tell(trial, float(best))
    finally:
        library.logging.set_verbosity(loud)


class _Space:
    """The grid as a space of choices; staged parameters are not chosen."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.grids = evaluator.space.grids
        self.groups: dict[tuple[int, str], list[Candidate]] = {}
        self.values: list[dict[str, list[Any]]] = []
        for table in self.grids:
            staged = evaluator.staged_names(table)
            self.values.append({n: list(v) for n, v in sorted(table.items()) if n not in staged})
        for number, candidate in evaluator.by_grid():
            rest = {name: candidate.params[name] for name in self.values[number]}
            self.groups.setdefault((number, repr(rest)), []).append(candidate)

    def choose(self, trial: Any) -> list[Candidate]:
        """Candidates of a trial: the chosen parameters with every stage."""
        number = 0
        if len(self.grids) > 1:
            number = trial.suggest_categorical("grid", list(range(len(self.grids))))
        rest = {}
        for name, values in self.values[number].items():
            place = f"{number} {name}"
            if all(isinstance(v, Real) and not isinstance(v, bool) for v in values):
                ascending = sorted(values)
                rest[name] = ascending[trial.suggest_int(place, 0, len(values) - 1)]
            else:
                rest[name] = values[trial.suggest_categorical(place, list(range(len(values))))]
        return self.groups[number, repr(rest)]


def _number(options: dict[str, Any], name: str, default: float, least: float) -> float:
    value = options.get(name, default)
    if not isinstance(value, Real) or isinstance(value, bool) or not float(value) >= least:
        raise ParameterError(f"{name} must be a number of at least {least:g}, got {value!r}")
    return float(value)


SEARCHES: dict[str, tuple[Search, frozenset[str]]] = {
    "grid": (grid, frozenset()),
    "racing": (racing, frozenset({"margin"})),
    "halving": (halving, frozenset({"factor"})),
    "optuna": (optuna, frozenset({"n_trials"})),
}


def find_search(name: str) -> Search:
    """Search by its name, refusing options that it does not have.

    Raises
    ------
    ParameterError
        If there is none of that name.
    """
    if name not in SEARCHES:
        raise ParameterError(f"search must be one of {', '.join(SEARCHES)}, got {name!r}")
    run, allowed = SEARCHES[name]

    def checked(evaluator: Evaluator, options: dict[str, Any]) -> None:
        for option in options:
            if option not in allowed:
                has = ", ".join(sorted(allowed)) or "none"
                raise ParameterError(f"search {name!r} has no option {option!r}; it has {has}")
        run(evaluator, options)

    return checked
