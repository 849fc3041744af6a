"""The fits that a run is to make, known from its plan without its data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from anomaly.errors import AnomalyError
from anomaly.tuning.engine import Candidate, fit_key, make_space, plan_name, seeded
from anomaly.tuning.families import family
from anomaly.tuning.grids import grids_from_text


@dataclass(frozen=True)
class Expected:
    """The fits of one classifier of a run.

    Attributes
    ----------
    classifier : str
        As it was named for the run.
    candidates : list of Candidate
        Those that differ in effect; empty where ``trouble`` says why they are not known.
    total : int or None
        Lines of the log; None where the search itself decides.
    prefix : str or None
        Of the keys; None before the search has begun.
    folds : int
    splits : tuple of str
    trouble : str
    """

    classifier: str
    candidates: list[Candidate]
    total: int | None
    prefix: str | None
    folds: int
    splits: tuple[str, ...]
    trouble: str = ""

    def lines(self) -> Iterator[tuple[Candidate, int, str, str]]:
        """Candidate, fold, split and key of every line with all rows."""
        if self.prefix is None:
            return
        for candidate in self.candidates:
            for fold in range(self.folds):
                for split in self.splits:
                    key = fit_key(self.prefix, candidate.text, fold, split)
                    yield candidate, fold, split, key


def expected_fits(plan: Mapping[str, Any]) -> list[Expected]:
    """Fits of every classifier of a run, from its ``run.json``."""
    job = plan.get("job") or {}
    splits = ("test", "train") if job.get("train_scores") else ("test",)
    folds = int(job.get("cv", 5))
    grids = grids_from_text(job["grids"]) if job else {}
    found = []
    for name in job.get("classifier") or ():
        try:
            model = seeded(family(name).make(), job["seed"])
            candidates = make_space(model, grids[name]).distinct
        except (AnomalyError, KeyError) as error:  # a class that is not installed here, say
            found.append(Expected(name, [], None, None, folds, splits, str(error)))
            continue
        own = plan.get("plans", {}).get(plan_name(model))
        prefix = None if own is None else json.dumps(own, sort_keys=True)
        total = len(candidates) * folds * len(splits) if job.get("search") == "grid" else None
        found.append(Expected(name, candidates, total, prefix, folds, splits))
    return found
