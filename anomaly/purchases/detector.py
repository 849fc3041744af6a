"""The detector: events in, one by one or in frames; flags, scores and reasons out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly._core import Network
from anomaly.base import BaseDetector, Interval
from anomaly.errors import DataError
from anomaly.purchases.events import COLUMNS, DECIMALS, Event, EventError, read_event
from anomaly.purchases.log import apply_event, exact_sigma, make_network, window_texts


@dataclass(frozen=True)
class Explanation:
    """Why a purchase is flagged, or not.

    Attributes
    ----------
    flagged : bool
    score : float
        Standard deviations above the mean of the window; 0 with fewer than two
        purchases, infinite off a window whose amounts are all equal.
    circle_size : int
        Users at distance 1 to ``degree`` of the buyer.
    window : int
        Purchases counted, ``window_size`` at most.
    mean, sd : str
        Of the window, truncated to two decimals, as the log of flagged
        purchases shows them.
    purchases : list of dict
        The purchases counted, oldest first: ``id``, ``timestamp``, ``amount``.
    """

    flagged: bool
    score: float
    circle_size: int
    window: int
    mean: str
    sd: str
    purchases: list[dict[str, Any]]


class PurchaseNetworkDetector(BaseDetector):
    """Flag a purchase that is out of line with what the buyer's circle spends.

    The circle of a user is everybody at 1 to ``degree`` friendship steps, the
    user excluded. A purchase is anomalous when its amount is above mean +
    ``sigma`` · sd of the newest ``window_size`` purchases of the circle taken
    together, sd being the population standard deviation. Fewer than two
    purchases never flag. The comparison is exact: money is an integer number
    of millionths, and ``sigma`` the decimal number it is written as.

    An event is a mapping with ``event_type`` (``purchase``, ``befriend``,
    ``unfriend``), ``timestamp`` (``YYYY-MM-DD HH:MM:SS`` or a datetime) and
    ``id`` and ``amount``, or ``id1`` and ``id2``. A table of events has these
    as columns; an array has the columns in the order of `anomaly.purchases.COLUMNS`.
    Purchases are ordered by timestamp, then by arrival.

    Parameters
    ----------
    degree : int, default=2
        Friendship steps that make a circle, 1 or more.
    window_size : int, default=50
        Purchases of the circle that are compared with, 2 or more.
    sigma : float or Fraction, default=3
        Standard deviations above the mean from which on a purchase is flagged.

    Attributes
    ----------
    classes_ : ndarray of shape (2,)
    n_features_in_ : int
        6, the fields of an event.
    sigma_ : Fraction
        ``sigma`` as it is compared.
    network_ : anomaly._core.Network
        Friendships and the newest purchases of each user.

    Notes
    -----
    After the purchase-anomaly challenge of the Insight data engineering
    programme. An object serves one thread at a time.

    Examples
    --------
    >>> from anomaly.purchases import PurchaseNetworkDetector
    >>> detector = PurchaseNetworkDetector(degree=1, window_size=50)
    >>> def event(kind, **fields):
    ...     return {"event_type": kind, "timestamp": "2017-06-13 11:33:01", **fields}
    >>> detector.learn_one(event("befriend", id1="ann", id2="bob"))
    >>> for amount in ("16.83", "59.28", "11.20"):
    ...     detector.learn_one(event("purchase", id="ann", amount=amount))
    >>> suspect = event("purchase", id="bob", amount="1601.83")
    >>> round(detector.score_one(suspect), 1)
    73.3
    >>> why = detector.explain(suspect)
    >>> why.flagged, why.circle_size, why.window, why.mean, why.sd
    (True, 1, 3, '29.10', '21.46')
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "degree": [Interval(Integral, 1, None, closed="left")],
        "window_size": [Interval(Integral, 2, None, closed="left")],
        "sigma": [Fraction, Interval(Real, 0, None, closed="left")],
    }

    network_: Network
    sigma_: Fraction

    def __init__(self, degree: int = 2, window_size: int = 50, sigma: float = 3) -> None:
        self.degree = degree
        self.window_size = window_size
        self.sigma = sigma

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Build the network from a history of events, in the order they are listed.

        Parameters
        ----------
        X : DataFrame, array of shape (n_events, 6) or sequence of mappings
        y : array-like of shape (n_events,), default=None
            Names the classes; not learnt from.

        Raises
        ------
        DataError
            Naming the row and field of an event that cannot be read.
        """
        self._start()
        events = list(_events(X))
        self._encode_labels(y, len(events))
        for event in events:
            apply_event(self.network_, event)
        return self

    def learn_one(self, event: Mapping[str, Any]) -> None:
        """Take one event into the network.

        Parameters
        ----------
        event : mapping
            A flagged purchase, too, belongs into the history.
        """
        read = read_event(event)
        if not hasattr(self, "network_"):
            self._start()
        apply_event(self.network_, read)

    def score_one(self, event: Mapping[str, Any]) -> float:
        """How many standard deviations a purchase is above its circle's mean.

        Parameters
        ----------
        event : mapping
            Not learnt.

        Returns
        -------
        float
            Above ``sigma`` exactly when the purchase is flagged; 0 for a window of
            fewer than two purchases and for other events; infinite where the
            window has no spread.
        """
        read = read_event(event)
        if not hasattr(self, "network_"):
            self._start()
        return _score(self.network_, read)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Score of each event less ``sigma``: above 0 is flagged.

        Each event is judged after the ones before it in ``X`` have been applied
        to a copy of the network; the detector itself does not change.

        Parameters
        ----------
        X : DataFrame, array of shape (n_events, 6) or sequence of mappings

        Returns
        -------
        ndarray of shape (n_events,)
        """
        check_is_fitted(self)
        network = Network.load(self.network_.save())
        scores = []
        for event in _events(X):
            scores.append(_score(network, event))
            apply_event(network, event)
        return np.array(scores, dtype=np.float64) - float(self.sigma_)

    def explain(self, event: Mapping[str, Any]) -> Explanation:
        """What a purchase is compared with.

        Parameters
        ----------
        event : mapping
            A purchase; not learnt.
        """
        check_is_fitted(self, "network_")
        read = read_event(event)
        if read.kind != "purchase":
            raise DataError(f"event_type must be purchase to be explained, got {read.kind!r}")
        verdict = self.network_.judge(read.ids[0], read.amount)
        count, total, spread, flagged, score = verdict
        purchases = [
            {
                "id": user.decode("utf-8", "surrogatepass"),
                "timestamp": datetime(1970, 1, 1) + timedelta(microseconds=time),
                "amount": Decimal(amount).scaleb(-DECIMALS),
            }
            for time, _, user, amount in sorted(self.network_.counted())
        ]
        mean, sd = window_texts(count, total, spread)
        circle = self.network_.circle(read.ids[0])
        return Explanation(flagged, score, circle, count, mean, sd, purchases)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # Rows are events that act on those after them, not points of a space.
        tags.input_tags.two_d_array = False
        tags.input_tags.dict = True
        tags.input_tags.string = True
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "network_" in state:
            state["network_"] = state["network_"].save()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "network_" in state:
            state["network_"] = Network.load(state["network_"])
        super().__setstate__(state)

    def _start(self) -> None:
        self._validate_params()
        self.network_ = make_network(self.degree, self.window_size, self.sigma)
        self.sigma_ = exact_sigma(self.sigma)
        self.n_features_in_ = len(COLUMNS)
        self.classes_ = np.array([0, 1])


def _score(network: Network, event: Event) -> float:
    if event.kind != "purchase":
        return 0.0
    return float(network.judge(event.ids[0], event.amount)[4])


def _events(X: Any) -> Iterator[Event]:
    """Events of a table or sequence, each checked; an error names its row."""
    for row, fields in enumerate(_mappings(X)):
        try:
            yield read_event(fields)
        except EventError as error:
            raise EventError(error.kind, f"row {row}: {error}") from None


def _mappings(X: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(X, pd.DataFrame):
        names = [name for name in COLUMNS if name in X.columns]
        missing = [name for name in ("event_type", "timestamp") if name not in names]
        if missing:
            raise DataError(
                f"a table of events needs the columns {', '.join(COLUMNS)}; "
                f"{' and '.join(missing)} missing from {list(X.columns)[:20]}"
            )
        columns = [X[name] for name in names]
        yield from _rows(names, columns)
    elif isinstance(X, Sequence) and all(isinstance(event, Mapping) for event in X):
        yield from X
    else:
        array = np.asarray(X, dtype=object)
        if array.ndim != 2 or array.shape[1] != len(COLUMNS):
            raise DataError(
                "X must be a DataFrame of events, a sequence of mappings or an array with "
                f"the {len(COLUMNS)} columns {', '.join(COLUMNS)}, got shape {array.shape}"
            )
        yield from _rows(list(COLUMNS), [pd.Series(column) for column in array.T])


def _rows(names: list[str], columns: list[pd.Series]) -> Iterator[Mapping[str, Any]]:
    """Rows without the fields that are missing values."""
    present = [column.notna().to_numpy() for column in columns]
    values = [column.tolist() for column in columns]
    for row in range(len(values[0])):
        yield {
            name: value[row]
            for name, value, there in zip(names, values, present, strict=True)
            if there[row]
        }
