"""Where the fits of a search run: on this machine, or on a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from anomaly.errors import ParameterError, require
from anomaly.tuning.folds import Folds
from anomaly.tuning.log import RunFolder
from anomaly.tuning.workers import LocalWorkers, Workers

BACKENDS = ("loky", "dask")


@dataclass(frozen=True)
class Backend:
    """How to run the fits of a search.

    Attributes
    ----------
    name : {"loky", "dask"}
        Processes of this machine, or workers of a Dask cluster (extra ``dask``).
    n_jobs : int
        Processes of loky; -1 for one per processor.
    scheduler : str or None
        Address of a Dask scheduler that runs, as ``tcp://host:8786``.
    workers : int or None
        Workers of a Dask cluster on this machine, started and stopped with the search.
    hosts : str or None
        File of hosts on which a Dask cluster is started over SSH (`anomaly.tuning.hosts`).
    fit_timeout_s : float or None
        Seconds after which a fit is stopped and logged as failed.
    allow_version_skew : bool
        Whether hosts with other library versions work, too; they are recorded.
    worker_folder : str or None
        Folder on every worker's own disk for the lines of its fits, kept until
        the run has ended; by default below ``~/.local/state/anomaly``.

    Examples
    --------
    >>> from anomaly.tuning import Backend, tune
    >>> from sklearn.datasets import make_classification
    >>> X, y = make_classification(200, class_sep=2.0, random_state=0)
    >>> with Backend(fit_timeout_s=60).open() as place:
    ...     result = tune("knn", {"n_neighbors": [1, 3, 5]}, X, y, cv=3, backend=place)
    >>> result.best_params_
    {'n_neighbors': 5}
    """

    name: str = "loky"
    n_jobs: int = 1
    scheduler: str | None = None
    workers: int | None = None
    hosts: str | None = None
    fit_timeout_s: float | None = None
    allow_version_skew: bool = False
    worker_folder: str | None = None

    def check(self) -> None:
        """Refuse what cannot be.

        Raises
        ------
        ParameterError
            Naming the option.
        """
        if self.name not in BACKENDS:
            raise ParameterError(
                f"backend must be one of {', '.join(BACKENDS)}, got {self.name!r}"
            )
        if self.fit_timeout_s is not None and not self.fit_timeout_s > 0:
            raise ParameterError(
                f"fit_timeout_s must be more than 0 seconds, got {self.fit_timeout_s!r}"
            )
        ways = {n: getattr(self, n) for n in ("scheduler", "workers", "hosts")}
        given = [name for name, value in ways.items() if value is not None]
        if self.name == "loky":
            for name in ("allow_version_skew", "worker_folder"):
                given += [name] if getattr(self, name) else []
            if given:
                raise ParameterError(f"{', '.join(given)}: only for backend 'dask', got 'loky'")
            n_processes(self.n_jobs)
            return
        if len(given) != 1:
            raise ParameterError(
                "backend 'dask' needs exactly one of scheduler, workers and hosts, "
                f"got {', '.join(given) or 'none'}"
            )
        if self.n_jobs != 1:
            raise ParameterError(
                f"n_jobs is for backend 'loky', got {self.n_jobs!r} with 'dask'; "
                "its processes are those of the cluster (workers)"
            )
        if self.workers is not None and not (isinstance(self.workers, int) and self.workers >= 1):
            raise ParameterError(f"workers must be at least 1, got {self.workers!r}")

    @contextmanager
    def open(self) -> Iterator[Place]:
        """Start what is to be started, for one search or several, and stop it after."""
        self.check()
        if self.name == "loky":
            yield LocalPlace(self)
            return
        from anomaly.tuning.cluster import open_cluster

        with open_cluster(self) as cluster:
            yield cluster


class Place(Protocol):
    """An open back end: it makes the workers of one search after another."""

    backend: Backend

    def workers(self, data: Folds, folder: RunFolder | None, versions: dict[str, str]) -> Workers:
        """Workers for the units of one search.

        ``versions`` are those of the libraries that every host must have.
        """

    def describe(self) -> str:
        """Where fits run, and where to watch them, in one line."""


class LocalPlace:
    """Processes of this machine."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def workers(self, data: Folds, folder: RunFolder | None, versions: dict[str, str]) -> Workers:
        """Workers for the units of one search."""
        n_jobs = n_processes(self.backend.n_jobs)
        return LocalWorkers(data, folder, n_jobs, self.backend.fit_timeout_s)

    def describe(self) -> str:
        """Where fits run."""
        return f"{n_processes(self.backend.n_jobs)} process(es) of this machine"


@contextmanager
def opened(backend: Any, n_jobs: int) -> Iterator[Place]:
    """An open back end from a description, an open one, or None for this machine."""
    if backend is None:
        backend = Backend(n_jobs=n_jobs)
    elif n_jobs != 1:
        raise ParameterError(f"give n_jobs={n_jobs} to the Backend, or no backend")
    if not isinstance(backend, Backend):
        yield backend
        return
    with backend.open() as place:
        yield place


def check_address(address: str) -> None:
    """Refuse what is no address of a Dask scheduler, at once.

    Dask's own client refuses it, too, and then waits a minute for its end.

    Raises
    ------
    ParameterError
        Naming the address.
    """
    if address.startswith("inproc://"):
        return
    try:
        require("distributed.comm", "dask").get_address_host_port(address)
    except ValueError as error:
        raise ParameterError(
            f"no Dask scheduler answers at {address}: {error}; an address is tcp://host:8786"
        ) from None


def n_processes(n_jobs: int) -> int:
    """Number of processes that ``n_jobs`` means.

    Examples
    --------
    >>> from anomaly.tuning.backend import n_processes
    >>> n_processes(3)
    3
    """
    if n_jobs == -1:
        return os.cpu_count() or 1
    if not isinstance(n_jobs, int) or n_jobs < 1:
        raise ParameterError(
            f"n_jobs must be at least 1, or -1 for all processors, got {n_jobs!r}"
        )
    return n_jobs
