"""The Dask back end: real workers, and what becomes of a run when its parts die."""

from __future__ import annotations

import pandas as pd
import pytest
from sklearn.ensemble import AdaBoostClassifier

from anomaly.errors import MissingExtraError, ParameterError
from anomaly.tuning import Backend, RunFolder, tune
from tests.test_staging import blobs
from tests.test_tuning import GRID, lines_without_times

TIMES = ["fit_seconds", "predict_seconds"]


def search(classifier=None, grid=GRID, **changed):
    X, y = blobs(n=120)
    options = {"cv": 3, "refit": False} | changed
    return tune(classifier or AdaBoostClassifier(random_state=0), grid, X, y, **options)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two workers, with folders of their own."""
    folder = tmp_path_factory.mktemp("workers")
    with Backend("dask", workers=2, worker_folder=str(folder)).open() as place:
        yield place


def test_a_cluster_gives_the_bits_of_one_process(tmp_path, cluster):
    here = search(log=tmp_path / "here", train_scores=True)
    there = search(log=tmp_path / "there", train_scores=True, backend=cluster)
    pd.testing.assert_frame_equal(
        here.table.drop(columns=TIMES), there.table.drop(columns=TIMES), check_exact=True
    )
    assert lines_without_times(RunFolder(tmp_path / "there")) == lines_without_times(
        RunFolder(tmp_path / "here")
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "slurm"}, "backend must be one of loky, dask, got 'slurm'"),
        ({"name": "dask"}, "exactly one of scheduler, workers and hosts, got none"),
        ({"name": "dask", "workers": 0}, "workers must be at least 1, got 0"),
        ({"name": "dask", "workers": 1, "hosts": "h"}, "got workers, hosts"),
        ({"name": "dask", "workers": 1, "n_jobs": 2}, "n_jobs is for backend 'loky', got 2"),
        ({"workers": 2}, "workers: only for backend 'dask', got 'loky'"),
        ({"allow_version_skew": True}, "allow_version_skew: only for backend 'dask'"),
        ({"fit_timeout_s": 0}, "fit_timeout_s must be more than 0 seconds, got 0"),
    ],
)
def test_a_wrong_back_end_is_refused_by_name(options, message):
    with pytest.raises(ParameterError) as caught, Backend(**options).open():
        pass
    assert message in str(caught.value)


def test_without_dask_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'anomaly\[dask\]'"),
        Backend("dask", workers=1).open(),
    ):
        pass
