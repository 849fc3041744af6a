"""Made-up networks: friend graphs, event logs and anomalies that are known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from anomaly.errors import ParameterError
from anomaly.files import write_aside
from anomaly.injection import Injection, Manifest
from anomaly.purchases.events import COLUMNS

MIX = {"purchase": 0.78, "befriend": 0.20, "unfriend": 0.02}
"""Shares of the event types."""

GRAPHS = ("uniform", "power-law")

_KINDS = np.array(list(MIX))
_EVENTS_PER_SECOND = 5
_START = np.datetime64("2017-06-13T11:33:01", "s")
_POPULARITY = 0.8  # weight of the k-th user is k to minus this


@dataclass(frozen=True)
class Simulation:
    """Events of a made-up network.

    Attributes
    ----------
    batch, stream : DataFrame
        Columns as in `anomaly.purchases.COLUMNS`, all text, None where a field
        does not belong to the event.
    manifest : Manifest
        The injected anomalies by their row in ``stream``.
    degree, window_size : int
        For the header of the batch log.
    """

    batch: pd.DataFrame
    stream: pd.DataFrame
    manifest: Manifest
    degree: int
    window_size: int

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Which rows of ``stream`` are injected anomalies."""
        return self.manifest.labels(len(self.stream))

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write ``batch_log.json``, ``stream_log.json`` and ``manifest.json``.

        Parameters
        ----------
        folder : path
            Made if it is missing.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        with write_aside(target / "batch_log.json") as file:
            header = {"D": str(self.degree), "T": str(self.window_size)}
            file.write(json.dumps(header) + "\n")
            file.writelines(_lines(self.batch))
        with write_aside(target / "stream_log.json") as file:
            file.writelines(_lines(self.stream))
        with write_aside(target / "manifest.json") as file:
            file.write(self.manifest.to_json() + "\n")


def simulate(
    n_users: int = 1000,
    n_batch: int = 10_000,
    n_stream: int = 1000,
    *,
    graph: str = "uniform",
    n_anomalies: int = 10,
    degree: int = 2,
    window_size: int = 50,
    random_state: int | None = None,
) -> Simulation:
    """Make up a network with known anomalies.

    Parameters
    ----------
    n_users : int, default=1000
        2 or more.
    n_batch, n_stream : int
        Events, 78 % purchases, 20 % befriend and 2 % unfriend.
    graph : {"uniform", "power-law"}, default="uniform"
        Whether friends are drawn evenly, or from few hubs and many others.
    n_anomalies : int, default=10
        Stream purchases whose amount is raised to 15 to 40 robust standard
        deviations above the median of all amounts.
    degree, window_size : int
        Settings written into the batch log.
    random_state : int or None, default=None
        Seed.

    Returns
    -------
    Simulation

    Raises
    ------
    ParameterError
        If there are fewer purchases in the stream than anomalies to inject.

    Examples
    --------
    >>> from anomaly.purchases import PurchaseNetworkDetector, simulate
    >>> made = simulate(n_users=100, n_batch=3000, n_stream=500, random_state=0)
    >>> detector = PurchaseNetworkDetector(made.degree, made.window_size).fit(made.batch)
    >>> flagged = detector.predict(made.stream) == 1
    >>> int((flagged & made.labels).sum()), int(made.labels.sum())
    (9, 10)
    """
    if n_users < 2:
        raise ParameterError(f"n_users must be 2 or more, got {n_users}")
    if graph not in GRAPHS:
        raise ParameterError(f"graph must be {' or '.join(GRAPHS)}, got {graph!r}")
    seed = np.random.SeedSequence(random_state)
    rng = np.random.default_rng(seed)
    n = n_batch + n_stream
    kinds = rng.choice(_KINDS, size=n, p=list(MIX.values()))
    pairs = _pairs(kinds, n_users, graph, rng)
    spend = np.exp(rng.normal(3.0, 0.3, n_users))
    buyers = rng.integers(0, n_users, n)
    amounts = np.round(spend[buyers] * np.exp(rng.normal(0.0, 0.4, n)), 2)
    is_purchase = kinds == "purchase"
    manifest = _inject(amounts, is_purchase, n_batch, n_anomalies, seed, rng)
    gaps = rng.poisson(1 / _EVENTS_PER_SECOND, n)
    times = np.char.replace(np.datetime_as_string(_START + np.cumsum(gaps)), "T", " ")
    bought = [f"{amount:.2f}" for amount in amounts.tolist()]
    nothing = np.full(n, None, dtype=object)
    fields = {
        "event_type": kinds.astype(object),
        "timestamp": times.astype(object),
        "id": np.where(is_purchase, _names(buyers), nothing),
        "amount": np.where(is_purchase, np.array(bought, dtype=object), nothing),
        "id1": np.where(is_purchase, nothing, _names(pairs[:, 0])),
        "id2": np.where(is_purchase, nothing, _names(pairs[:, 1])),
    }
    events = pd.DataFrame({name: pd.Series(fields[name], dtype=object) for name in COLUMNS})
    stream = events.iloc[n_batch:].reset_index(drop=True)
    return Simulation(events.iloc[:n_batch], stream, manifest, degree, window_size)


def _names(users: NDArray[np.int64]) -> NDArray[np.object_]:
    return np.array([str(user) for user in (users + 1).tolist()], dtype=object)


def _pairs(
    kinds: NDArray[np.str_], n_users: int, graph: str, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Two users per event; unfriends (in place in ``kinds``) undo an earlier befriend."""
    weights = np.ones(n_users)
    if graph == "power-law":
        weights = rng.permutation(np.arange(1.0, n_users + 1.0) ** -_POPULARITY)
    edges = np.cumsum(weights) / weights.sum()
    pairs = np.searchsorted(edges, rng.random((len(kinds), 2)), side="right")
    pairs = np.minimum(pairs, n_users - 1)
    same = pairs[:, 0] == pairs[:, 1]
    pairs[same, 1] = (pairs[same, 0] + 1) % n_users
    made = np.flatnonzero(kinds == "befriend")
    undone = np.flatnonzero(kinds == "unfriend")
    earlier = np.searchsorted(made, undone)
    kinds[undone[earlier == 0]] = "befriend"
    undone, earlier = undone[earlier > 0], earlier[earlier > 0]
    pairs[undone] = pairs[made[(rng.random(len(undone)) * earlier).astype(np.int64)]]
    return pairs


def _inject(
    amounts: NDArray[np.float64],
    is_purchase: NDArray[np.bool_],
    n_batch: int,
    n_anomalies: int,
    seed: np.random.SeedSequence,
    rng: np.random.Generator,
) -> Manifest:
    """Raise some amounts of the stream, in place."""
    candidates = np.flatnonzero(is_purchase[n_batch:])
    if n_anomalies > len(candidates):
        raise ParameterError(
            f"n_anomalies must be at most the {len(candidates)} purchases of the stream, "
            f"got {n_anomalies}"
        )
    if n_anomalies == 0:
        return Manifest()
    rows = np.sort(rng.choice(candidates, size=n_anomalies, replace=False))
    normal = amounts[is_purchase]
    median = np.median(normal)
    scale = 1.4826 * np.median(np.abs(normal - median))
    magnitudes = rng.uniform(15.0, 40.0, n_anomalies)
    amounts[n_batch + rows] = np.round(median + magnitudes * scale, 2)
    entropy = seed.entropy
    return Manifest(
        (
            Injection(
                "overspend",
                ("amount",),
                tuple(magnitudes.round(3).tolist()),
                entropy if isinstance(entropy, int) else 0,
                rows=tuple(rows.tolist()),
            ),
        )
    )


def _lines(events: pd.DataFrame) -> Iterator[str]:
    """Each event as a line of a log."""
    columns = [events[name].tolist() for name in COLUMNS]
    for kind, time, user, amount, one, other in zip(*columns, strict=True):
        start = f'{{"event_type":"{kind}", "timestamp":"{time}", '
        if kind == "purchase":
            yield f'{start}"id": "{user}", "amount": "{amount}"}}\n'
        else:
            yield f'{start}"id1": "{one}", "id2": "{other}"}}\n'
