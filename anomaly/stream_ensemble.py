"""Several stream detectors on the same stream, as one."""

from __future__ import annotations

import math
from copy import copy
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.utils.metaestimators import _BaseComposition
from sklearn.utils.validation import check_is_fitted

from anomaly.base import StrOptions
from anomaly.errors import ParameterError
from anomaly.htm import HTMDetector
from anomaly.streaming import ManyStreams, StreamDetector
from anomaly.tiles import TileDetector

__all__ = ["DEFAULT_WEIGHTS", "StreamEnsemble"]

DEFAULT_WEIGHTS = (1.0, 0.75)  # of tiles and HTM


class StreamEnsemble(_BaseComposition, StreamDetector):
    """Let several stream detectors judge each record together.

    It is there for detectors that see different things: other learning periods or
    tile sizes, fields of their own. The default members do what a `TileDetector`
    does, with alarms of an `HTMDetector` only where those are strong; on the
    benchmark in docs/streams.md that adds nothing to the tiles alone.

    Parameters
    ----------
    estimators : list of (str, StreamDetector) or None, default=None
        The members and their names; None means a `TileDetector` and an
        `HTMDetector` with one cell per column. They are used as patterns and
        stay as they are. What is predicted is the prediction of the first.
    combine : {"mean", "maximum"}, default="maximum"
        The largest of the weighted likelihoods, or their mean. The mean alarms only
        where most members do in the same record, which detectors of different kinds
        rarely do.
    weights : list of float or None, default=None
        Weight of each member; None means equal ones, and 1 and 0.75 for the default
        members. In the maximum a likelihood is multiplied by the member's weight
        relative to the largest: with 0.75 only one of 2/3 and more is an alarm.
    threshold : float, default=0.5
        Likelihood from which a record is an anomaly.
    learning : bool, default=True
        False freezes what was learnt.

    Examples
    --------
    >>> from anomaly.stream_ensemble import StreamEnsemble
    >>> from anomaly.tiles import TileDetector
    >>> salts = [(f"salt{i}", TileDetector(200, random_state=i)) for i in range(3)]
    >>> ensemble = StreamEnsemble(salts)
    >>> for t in range(1000):
    ...     _ = ensemble.process_one([0.0, 1.0, 4.0, 1.0][t % 4])
    >>> ensemble.process_one(9.0).is_anomaly
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "threshold": StreamDetector._parameter_constraints["threshold"],
        "learning": ["boolean"],
        "estimators": [list, tuple, None],
        "combine": [StrOptions({"mean", "maximum"})],
        "weights": ["array-like", None],
    }

    def __init__(
        self,
        estimators: Any = None,
        *,
        combine: str = "maximum",
        weights: Any = None,
        threshold: float = 0.5,
        learning: bool = True,
    ) -> None:
        self.estimators = estimators
        self.combine = combine
        self.weights = weights
        self.threshold = threshold
        self.learning = learning

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of the ensemble and, if ``deep``, of its members."""
        found: dict[str, Any] = self._get_params("estimators", deep=deep)
        return found

    def set_params(self, **params: Any) -> Self:
        """Set parameters; ``name__parameter`` reaches a member."""
        self._set_params("estimators", **params)
        return self

    def predict_one(self, steps: int = 1) -> Any:
        """What the first member expects so many records ahead.

        Parameters
        ----------
        steps : int, default=1
            For an `HTMDetector` one of its ``prediction_steps``.

        Returns
        -------
        Forecast, float or tuple of float
            As the first member's own ``predict_one``.
        """
        check_is_fitted(self)
        first: Any = copy(self._members()[0][1])  # the member itself is only a pattern
        first._stream, first.n_features_in_ = self._stream.parts[0], self.n_features_in_
        return first.predict_one(steps)

    def _members(self) -> list[tuple[str, StreamDetector]]:
        if self.estimators is None:
            return [("tiles", TileDetector()), ("htm", HTMDetector(cells_per_column=1))]
        members = list(self.estimators)
        for member in members:
            if not (isinstance(member, tuple | list) and isinstance(member[-1], StreamDetector)):
                raise ParameterError(
                    f"estimators must be (name, stream detector) pairs, got {member!r}"
                )
        if not members:
            raise ParameterError("estimators must hold at least one detector, got none")
        self._validate_names([name for name, _ in members])
        return members

    def _member_weights(self, n_members: int) -> list[float]:
        try:
            weights = [1.0] * n_members if self.weights is None else [*map(float, self.weights)]
        except (TypeError, ValueError):
            weights = []
        if self.estimators is None and self.weights is None:
            weights = list(DEFAULT_WEIGHTS)
        if len(weights) != n_members or not (min(weights) >= 0 and 0 < sum(weights) < math.inf):
            raise ParameterError(
                f"weights must be {n_members} numbers of 0 or more, not all 0, "
                f"got {self.weights!r}"
            )
        whole = max(weights) if self.combine == "maximum" else sum(weights)
        return [weight / whole for weight in weights]

    def _new_stream(self, n_fields: int) -> Any:
        members = self._members()
        weights = self._member_weights(len(members))
        streams = []
        for _, member in members:
            member._validate_params()
            streams.append(member._new_stream(n_fields))
        return _JudgedTogether(streams, weights=weights, combine=self.combine)


class _JudgedTogether(ManyStreams):
    def _process(self, *block: Any) -> None:
        values, seconds, mode, scores, raw, strengths, expected = block
        answers = [[np.empty_like(a) for a in (scores, raw, strengths)] for _ in self.parts]
        ignored = np.empty_like(expected)
        for i, (part, (likelihood, novelty, strength)) in enumerate(
            zip(self.parts, answers, strict=True)
        ):
            due = ignored if i else expected
            part.process(values, seconds, mode, likelihood, novelty, strength, due)
        for i, to in enumerate((scores, raw)):
            to[...] = self._combined(np.stack([answer[i] for answer in answers]))
        # strength s is likelihood s / (1 + s)
        likely = self._combined(np.stack([a[2] / (1.0 + a[2]) for a in answers]))
        strengths[...] = likely / (1.0 - likely)

    def _combined(self, answers: Any) -> Any:
        weights = np.array(self.settings["weights"])
        if self.settings["combine"] == "maximum":
            return (answers.T * weights).T.max(axis=0)
        return np.tensordot(weights, answers, axes=1)
