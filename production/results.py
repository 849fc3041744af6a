"""Answers of a runner in an SQLite database, and as pictures."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from anomaly.errors import ParameterError
from production.devices import Device

__all__ = ["Results", "draw"]

_TABLE = """create table if not exists vibration (
    device text not null, sequence integer not null, time real not null,
    first_sample integer not null, last_sample integer not null,
    score real not null, threshold real not null, anomaly integer not null,
    explanation text, primary key (device, sequence))"""


class Results:
    """Table ``vibration``: one row per window, however often it is written.

    Examples
    --------
    ``pandas.read_sql("select * from vibration", sqlite3.connect("results.db"))``
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False)
            with self._connection as connection:
                connection.execute("pragma journal_mode=wal")
                connection.execute(_TABLE)
        except sqlite3.Error as error:
            raise ParameterError(f"store: {path}: {error}") from None

    def write(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Write answers about windows; others are passed over."""
        now = time.time()
        rows = [
            (
                *(a[name] for name in ("device", "sequence")),
                now,
                *(a[name] for name in ("first_sample", "last_sample", "score", "threshold")),
                int(a["anomaly"]),
                json.dumps(a["explanation"]),
            )
            for a in answers
            if a["event"] == "window"
        ]
        if rows:
            with self._connection as connection:
                connection.executemany(
                    "insert or replace into vibration values (?,?,?,?,?,?,?,?,?)", rows
                )

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def draw(device: Device, folder: str | Path) -> Path | None:
    """Draw the last window and the scores of a device; None before its first answer."""
    from matplotlib.figure import Figure

    if device.last_window is None:
        return None
    figure = Figure(figsize=(9, 6), layout="constrained")
    signal, scores = figure.subplots(2, 1)
    signal.plot(device.last_window, linewidth=0.8, label=device.plan.fields)
    signal.set(title=f"{device.name}: last window", xlabel="sample", ylabel="signal")
    signal.legend(loc="upper right")
    numbers, values = np.array(device.history).T
    scores.plot(numbers, values, marker=".", color="black", linewidth=0.8)
    scores.axhline(0.0, color="tab:red", linestyle="--", label="threshold")
    scores.set(xlabel="window", ylabel="score (log ratio)")
    scores.legend(loc="upper left")
    # A name may hold anything; quoted, it is one file in this folder.
    name = quote(device.name, safe="") or "device"
    path = Path(folder) / f"{name.replace('.', '%2E')}.png"
    figure.savefig(path, dpi=100)
    return path
