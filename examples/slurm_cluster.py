"""A Dask cluster of SLURM jobs that a run places its roles on.

Needs ``pip install dask-jobqueue`` beside ``pdqn[dask]``. Run it on a host that the nodes reach,
and leave it running; the cluster ends with it:

    python examples/slurm_cluster.py > cluster.log &     # the log has the scheduler's address
    pdqn check --actors 512 --dask tcp://10.1.0.1:40123
    pdqn launch --actors 512 --dask tcp://10.1.0.1:40123 --bind 10.1.0.1

This follows the documentation of dask-jobqueue. It has not been run on a real SLURM cluster.
"""

from __future__ import annotations

import sys
import threading

from dask_jobqueue import SLURMCluster  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Start eight jobs of 64 cores each, print the scheduler's address, and wait."""
    cluster = SLURMCluster(
        cores=64,
        processes=1,
        memory="128GB",
        walltime="12:00:00",
        interface="ib0",
        python=sys.executable,
    )
    cluster.scale(jobs=8)
    print(cluster.scheduler_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
