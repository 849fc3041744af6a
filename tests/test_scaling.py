"""The benchmarks of back ends: the simulated cluster, the rule of batches, equal work."""

from __future__ import annotations

import pytest

pytest.importorskip("distributed", exc_type=ImportError)

from benchmarks import cluster, scaling
from benchmarks.cluster import Costs, batch_of_rule, fits_of_log, simulate, smallest_batch

FREE = Costs(0, 0, 0, 0, 0, 0, 0)


def test_without_costs_every_worker_is_busy_all_the_time():
    assert simulate(7, 3, [0.1], FREE, tasks=50).efficiency == pytest.approx(1)


def test_one_worker_loses_its_own_cost_of_a_task():
    costs = Costs(network=0.001, worker_task=0.01, heartbeat=0)
    found = simulate(1, 10, [0.01], costs, tasks=2000)
    assert found.efficiency == pytest.approx(0.1 / 0.11, rel=1e-3)


def test_without_a_task_in_waiting_a_worker_waits_for_the_way_there_and_back():
    costs = Costs(0.001, 0.0001, 0.002, 0.0002, 0.01, 0, 0.003)
    found = simulate(1, 10, [0.01], costs, depth=1, tasks=2000)
    way = 0.001 + 10 * 0.0001 + 0.002 + 10 * 0.0002 + 4 * 0.003
    assert found.efficiency == pytest.approx(0.1 / (0.11 + way), rel=1e-3)


@pytest.mark.parametrize(
    ("costs", "busy"),
    [
        (Costs(0, 0, 0.002, 0.0001, 0, 0, 0), "scheduler"),
        (Costs(0.002, 0.0001, 0, 0, 0, 0, 0), "client"),
    ],
)
def test_too_many_workers_share_what_the_slowest_part_lets_through(costs, busy):
    found = simulate(100, 10, [0.001], costs, tasks=50)
    assert found.efficiency == pytest.approx(0.01 / (100 * 0.003), rel=2e-2)
    assert getattr(found, busy) == pytest.approx(1, abs=1e-2)


def test_drawn_times_have_the_mean_of_the_given_ones():
    mixed = simulate(4, 20, [0.001, 0.009], FREE, tasks=100)
    assert mixed.efficiency == pytest.approx(1)
    slow = Costs(0, 0, 0.2, 0, 0, 0, 0)
    found = simulate(10, 20, [0.001, 0.009], slow, tasks=100)
    assert found.efficiency == pytest.approx(0.1 / 2.0, rel=0.05)


@pytest.mark.parametrize(("n_workers", "seconds"), [(1, 0.0025), (30, 0.0025), (300, 0.1)])
def test_the_rule_keeps_workers_busy_wherever_some_batch_would(n_workers, seconds):
    costs = Costs()
    assert smallest_batch(n_workers, [seconds], costs, 0.9) is not None
    batch = batch_of_rule(n_workers, seconds)
    assert simulate(n_workers, batch, [seconds], costs).efficiency >= 0.9


def test_a_staged_fit_is_one_unit_of_work(tmp_path):
    line = "{{'n': {}}}\t{{'estimator': 'a.B', 'fold': 0, {}'fit_seconds': {}, "
    line += "'predict_seconds': 0.5, 'key': '{:016x}'}}\n"
    staged = [line.format(i, "'staged': 'n', ", i, i) for i in (1, 2)]
    single = [line.format(i, "", i, i) for i in (3, 4)]
    path = tmp_path / "run.out"
    path.write_text("".join(staged + single))
    assert fits_of_log(path) == {"B": ([4.0, 3.5, 4.5], pytest.approx(4 / 3))}


def test_bare_loop_and_search_make_the_same_fits():
    work = scaling.make_work(300, 10)
    expected = scaling.fit_many(work.data, work.fits)
    with scaling.ours(work, 1, "loky") as ready, ready() as run:
        scores = run()
    assert scores.T.ravel().tolist() == [each["F1"] for each in expected]


def test_costs_are_measured_on_a_real_scheduler_with_real_workers():
    with (
        cluster.cluster(2) as (address, scheduler),
        cluster.Backend(name="dask", scheduler=address).open() as place,
        cluster.fixed_batch(5),
    ):
        client_s, scheduler_s = cluster.one_search(place, scheduler, batch=5, n_tasks=8)
    assert client_s > 0
    assert scheduler_s >= 0
