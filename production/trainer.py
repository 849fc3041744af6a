"""Runs training tasks one after the other, each in a worker process."""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from production.store import NEGATIVE, Store
from production.strict import RequestError

_log = logging.getLogger("anomaly.service")


class Trainer(threading.Thread):
    """A queue of tasks and the worker that is at work.

    Tasks that were under way when the service ended are begun anew.

    Parameters
    ----------
    store : Store
    models : Path
        Where a task's model is written under its id.
    scratch : Path
        Folder for samples on their way.
    """

    def __init__(self, store: Store, models: Path, scratch: Path) -> None:
        super().__init__(name="trainer", daemon=True)
        self.store, self.models, self.scratch = store, models, scratch
        self._tasks: queue.Queue[str | None] = queue.Queue()
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[str] | None = None
        self._current = ""
        self._ending = False
        scratch.mkdir(parents=True, exist_ok=True)

    def submit(self, task_id: str) -> None:
        """Queue a task that the store knows."""
        self._tasks.put(task_id)

    def cancel(self, task_id: str) -> None:
        """Stop a task if it is at work; one that waits is skipped once it is deleted."""
        with self._lock:
            if self._current == task_id and self._worker is not None:
                self._worker.kill()

    def run(self) -> None:
        self._requeue()
        while (task_id := self._tasks.get()) is not None:
            try:
                self._train(task_id)
            except RequestError as error:
                _log.error("task %s: %s", task_id, error)
                self._tasks.put(task_id)  # the database is gone: try again
                time.sleep(2)

    def stop(self) -> None:
        """Stop the worker and the queue; unfinished tasks wait for the next start."""
        with self._lock:
            self._ending = True
            if self._worker is not None:
                self._worker.kill()
        self._tasks.put(None)
        self.join(10)

    def _requeue(self) -> None:
        tasks = self.store.tables["tasks"]
        waiting = [tasks.c.status.in_(["queued", "running"])]
        for task in self.store.page("tasks", waiting, 1, 1000, "id")[0]:
            self.submit(task["id"])

    def _train(self, task_id: str) -> None:
        task = self.store.task(task_id)
        if task is None or self._ending:
            return
        self.store.update_task(task_id, status="running", progress=0.0, detail="starting")
        samples = self.store.samples(json.loads(task["selection"]))
        path = self.scratch / f"{task_id}.npz"
        try:
            _write_samples(path, samples)
            failed = self._work(task_id, path)
        except (ValueError, OSError) as error:
            failed = str(error)
        finally:
            path.unlink(missing_ok=True)
        if self._ending:
            return
        if failed:
            self.store.update_task(task_id, status="failed", detail=failed[:500], end_time=_now())
        else:
            self.store.update_task(task_id, status="done", progress=1.0, end_time=_now())

    def _work(self, task_id: str, samples: Path) -> str:
        """Run the worker; why it failed, or nothing."""
        command = [sys.executable, "-m", "production.training"]
        failed = "the worker ended without a word"
        with self._lock:
            if self._ending:
                return failed
            self._current = task_id
            self._worker = subprocess.Popen(
                [*command, str(samples), str(self.models / task_id)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"} | _without_tokens(),
                cwd=Path(__file__).resolve().parent.parent,
            )
        with self._worker as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                said = json.loads(line)
                failed = said.get("failed", failed)
                if "progress" in said:
                    self.store.update_task(
                        task_id, progress=said["progress"], detail=said["detail"][:500]
                    )
        code = worker.returncode
        with self._lock:
            self._worker, self._current = None, ""
        return "" if code == 0 else failed


def _write_samples(path: Path, samples: list[dict[str, Any]]) -> None:
    if not samples:
        raise ValueError("the samples were deleted")
    rows = [
        [float(n) for name in ("data_c", "data_b", "data_a") for n in sample[name].split(",")]
        for sample in samples
    ]
    labels = [sample["positive_or_negative"] == NEGATIVE for sample in samples]
    np.savez(path, X=np.array(rows), y=np.array(labels, dtype=np.int64))


def _without_tokens() -> dict[str, str]:
    return {name: "" for name in os.environ if name.startswith("ANOMALY_TOKEN")}


def _now() -> int:
    return int(time.time())
