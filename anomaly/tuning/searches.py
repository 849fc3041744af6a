"""Ways through a grid. All share the log, resume and staged fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from anomaly.errors import ParameterError

if TYPE_CHECKING:
    from anomaly.tuning.engine import Evaluator

Search = Callable[["Evaluator", dict[str, Any]], None]


def grid(evaluator: Evaluator, options: dict[str, Any]) -> None:
    """Score every candidate on every fold."""
    evaluator.evaluate(evaluator.distinct, range(evaluator.n_folds))


SEARCHES: dict[str, tuple[Search, frozenset[str]]] = {
    "grid": (grid, frozenset()),
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
