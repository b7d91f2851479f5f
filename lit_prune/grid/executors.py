"""Choose the executor of a placement."""

from __future__ import annotations

import os

from lit_prune.config import Placement
from lit_prune.grid.job import Executor, Job
from lit_prune.grid.local import LocalExecutor, gpus_of

_CORES = 4
"""Cores of a worker by default."""


def executor_of(placement: Placement, job: Job) -> Executor:
    """Return the executor of a placement for a job.

    Raises:
        ConfigError: if the machine does not have what the placement needs.
    """
    if placement.on == "ray":
        from lit_prune.grid.ray import RayExecutor

        return RayExecutor(job, placement)
    if placement.on == "slurm":
        from lit_prune.grid.slurm import SlurmExecutor

        return SlurmExecutor(job, placement)
    gpus = gpus_of(job.execution.accelerator)
    jobs = placement.jobs or len(gpus) // job.execution.devices or max(1, (os.cpu_count() or 1) // _CORES)
    return LocalExecutor(job, jobs, gpus)
