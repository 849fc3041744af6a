"""Tune on the nodes of a SLURM cluster; what stands after -- goes to parameters.py.

python examples/slurm.py --jobs 4 --queue short -- --data table.csv --label faulty --run big

Start it on a login node, in a folder that the nodes see, with a Python that they see, too
(``tmux`` keeps it when you log out). Each job brings one worker per core. When the run ends, or
this program is killed, the jobs end; to go on, start it again with ``-- --resume big``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import parameters
from anomaly.errors import require
from anomaly.tuning.hosts import client_keys

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="jobs at a time (default 2)")
    parser.add_argument("--cores", type=int, default=8, help="of a job (default 8)")
    parser.add_argument("--memory", default="16GB", help="of a job (default 16GB)")
    parser.add_argument("--walltime", default="04:00:00", help="of a job (default 4 hours)")
    parser.add_argument("--queue", help="partition")
    parser.add_argument("--account")
    parser.add_argument("--interface", help="network that the nodes reach this one on, e.g. ib0")
    parser.add_argument("options", nargs="+", metavar="-- OPTIONS", help="of parameters.py")
    given = parser.parse_args()

    require("dask_jobqueue", extra="dask")
    import dask
    from dask_jobqueue import SLURMCluster
    from distributed import Security

    # With a key for this run nobody else on the network can send work to the nodes. The jobs
    # read it from a folder that only this user can see.
    secrets = Path.home() / ".cache/anomaly/slurm"
    secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
    security = Security.temporary()
    with (
        dask.config.set(client_keys(security)),
        SLURMCluster(
            cores=given.cores,
            processes=given.cores,
            memory=given.memory,
            walltime=given.walltime,
            queue=given.queue,
            account=given.account,
            interface=given.interface,
            security=security,
            shared_temp_directory=str(secrets),
            job_script_prologue=[f"export {name}=1" for name in ONE_THREAD],
            death_timeout=300,
            worker_extra_args=["--memory-limit", "0"],  # fits run below the workers
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
            log_directory=os.path.abspath("slurm-logs"),
        ) as cluster,
    ):
        # A job that ends at its wall time is followed by another.
        cluster.adapt(minimum_jobs=given.jobs, maximum_jobs=given.jobs)
        where = ["--backend", "dask", "--scheduler", cluster.scheduler_address]
        return parameters.main([*given.options, *where])


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    sys.exit(main())
