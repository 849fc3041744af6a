"""Carries the answers of streams from their state files to the database, in batches."""

from __future__ import annotations

import json
import logging
import threading
import time
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from production.journal import connect, mark_exported
from production.lanes import Lane, Lanes
from production.store import Store, result_row
from production.strict import RequestError

_log = logging.getLogger("anomaly.service")

_BATCH = 1000


class Exporter(threading.Thread):
    """Reads what is new in each lane and notes how far it got.

    While the database is gone the state files keep everything; nothing has to be
    restarted when it comes back.

    Parameters
    ----------
    lanes : Lanes
    store : Store
    days, rows : float or int or None
        How long and how many results are kept.
    """

    def __init__(
        self, lanes: Lanes, store: Store, days: float | None = None, rows: int | None = None
    ) -> None:
        super().__init__(name="exporter", daemon=True)
        self.lanes, self.store, self.days, self.rows = lanes, store, days, rows
        self.fault = ""
        self.pause_s = 0.5
        self._end = threading.Event()

    def run(self) -> None:
        swept = 0.0
        while not self._end.wait(self.pause_s if not self.fault else 2.0):
            try:
                self.carry()
                if time.monotonic() - swept > 60:
                    self.store.retain(self.days, self.rows)
                    swept = time.monotonic()
                self.fault = ""
            except (SQLAlchemyError, RequestError, OSError) as error:
                if not self.fault:
                    _log.error("results wait in the state files: %s", error)
                self.fault = " ".join(str(error).split())[:300]

    def carry(self) -> int:
        """Carry all there is; how many records that were."""
        return sum(self._carry_lane(lane) for lane in self.lanes.lanes)

    def _carry_lane(self, lane: Lane) -> int:
        carried = 0
        base = connect(lane.journal.path, read_only=True)
        try:
            while True:
                rows = base.execute(
                    "SELECT number, kind, id, r.seq, instant, answer FROM records r"
                    " LEFT JOIN streams USING (stream) WHERE number > coalesce("
                    "(SELECT value FROM meta WHERE name = 'exported'), 0)"
                    " ORDER BY number LIMIT ?",
                    (_BATCH,),
                ).fetchall()
                if not rows:
                    return carried
                self.store.add_results(self._results(rows))
                last = rows[-1][0]
                lane.submit(partial(mark_exported, lane.journal._base, last)).result(60)
                carried += len(rows)
        finally:
            base.close()

    def _results(self, rows: list[Any]) -> list[dict[str, Any]]:
        now = time.time()
        return [
            result_row(kind, name, instant, json.loads(answer), now)
            for _, kind, name, _, instant, answer in rows
        ]

    def lag(self) -> int:
        """Records that the database does not have yet, about."""
        total = 0
        for lane in self.lanes.lanes:
            base = connect(lane.journal.path, read_only=True)
            try:
                (n,) = base.execute(
                    "SELECT coalesce(max(number), 0) - coalesce("
                    "(SELECT value FROM meta WHERE name = 'exported'), 0) FROM records"
                ).fetchone()
            finally:
                base.close()
            total += max(0, int(n))
        return total

    def stop(self) -> None:
        """Carry what is left, if the database lets, and end."""
        self._end.set()
        self.join()
        try:
            self.carry()
        except (SQLAlchemyError, RequestError, OSError) as error:
            _log.warning("results stay in the state files until the next start: %s", error)
