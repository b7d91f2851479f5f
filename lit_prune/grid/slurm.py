"""Jobs of Slurm, submitted by submitit: one array for all tasks that are ready at a time."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError, Placement
from lit_prune.grid.environment import passed_on
from lit_prune.grid.job import Answer, Job, leave_on_sigterm
from lit_prune.grid.tasks import Task

LOGS = "slurm"
"""Folder in the store of scripts, logs and answers of jobs, a subfolder per run."""
_POLL = 0.5
_SECONDS = 5.0
"""Seconds between questions to the controller."""
_GRACE = 3
"""Answers of the controller without a job, after which a job that left no answer counts as dead."""


class SlurmExecutor:
    """Runs each task as a job with the cores and GPUs of one cell. Preempted jobs and jobs out of time are requeued."""

    def __init__(self, job: Job, placement: Placement) -> None:
        """Prepare for submission.

        Raises:
            ConfigError: if submitit or Slurm is missing here.
        """
        try:
            import submitit
        except ImportError:
            raise ConfigError("--on slurm: submitit is not installed (pip install 'lit-prune[slurm]')") from None
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigError("--on slurm: there is no sbatch here; run the command on a login node")
        threads = job.execution.threads or placement.cpus
        self._work = _Work(dataclasses.replace(job, execution=dataclasses.replace(job.execution, threads=threads)))
        gpus = placement.gpus
        if gpus is None:
            gpus = job.execution.devices if job.execution.accelerator == "gpu" else 0
        self._executor = submitit.SlurmExecutor(folder=Path(job.store) / LOGS / job.id, max_num_timeout=10**6)
        self._executor.update_parameters(
            job_name=f"lit-prune-{job.table}", time=placement.minutes, cpus_per_task=placement.cpus,
            array_parallelism=placement.jobs or 256, **({"gpus_per_node": gpus} if gpus else {}),
            setup=[f"export {name}={shlex.quote(value)}" for name, value in passed_on(threads).items()],
            additional_parameters={"requeue": True, **_options(placement.slurm)},
        )  # fmt: skip
        self._jobs: dict[str, tuple[Any, Task]] = {}
        self._unseen: dict[str, int] = {}
        self._asked = 0.0

    def start(self, tasks: list[Task]) -> None:
        """Submit the tasks as one array.

        Raises:
            ConfigError: if Slurm refuses it.
        """
        from submitit.core.utils import FailedJobError

        try:
            jobs = self._executor.map_array(self._work, tasks)
        except FailedJobError as error:
            raise ConfigError(f"--slurm: sbatch refused the jobs ({' '.join(str(error).split())})") from None
        self._jobs |= {job.job_id: (job, task) for job, task in zip(jobs, tasks, strict=True)}

    def ended(self, seconds: float) -> list[Answer]:
        """Return the tasks that have ended; wait for one for at most `seconds`."""
        until = time.monotonic() + seconds
        while True:
            done = [name for name, (job, _) in self._jobs.items() if job.paths.result_pickle.exists()]
            answers = [self._answer(name) for name in done] + self._lost()
            if answers or time.monotonic() >= until:
                return answers
            time.sleep(_POLL)

    def stop(self) -> None:
        """Cancel all jobs. Their tasks resume from their last checkpoints in a later run."""
        if self._jobs:
            subprocess.run(["scancel", *self._jobs], capture_output=True, check=False)

    def _answer(self, name: str) -> Answer:
        job, task = self._jobs.pop(name)
        error = job.exception()
        if error is None:
            return job.result()
        return Answer(task, "died", f"{str(error).strip().splitlines()[-1]}; {job.paths.stderr}")

    def _lost(self) -> list[Answer]:
        """Return the tasks whose jobs are no longer in the queue although they have left no answer."""
        if not self._jobs or time.monotonic() - self._asked < _SECONDS:
            return []
        self._asked = time.monotonic()
        arrays = ",".join(dict.fromkeys(name.partition("_")[0] for name in self._jobs))
        asked = subprocess.run(["squeue", "-h", "-r", "-j", arrays, "-o", "%i"], capture_output=True, text=True)
        if asked.returncode and "Invalid job id" not in asked.stderr:
            return []  # the controller is away
        queued = set(asked.stdout.split())
        self._unseen = {name: self._unseen.get(name, 0) + 1 for name in self._jobs if name not in queued}
        lost = [name for name, times in self._unseen.items() if times >= _GRACE]
        return [
            Answer(self._jobs.pop(name)[1], "died", f"job {name} left the queue without an answer") for name in lost
        ]


@dataclasses.dataclass(frozen=True)
class _Work:
    """What a job of Slurm runs."""

    job: Job

    def __call__(self, task: Task) -> Answer:
        """Compute a task in a process of its own."""
        from lit_prune.grid.worker import Worker

        leave_on_sigterm()  # scancel and preemption; submitit would ignore it
        try:
            worker = Worker(self.job)
        except ConfigError as error:
            return Answer(task, "invalid", str(error))
        with worker:
            return worker.run(task)

    def checkpoint(self, task: Task) -> Any:
        """Return what a job that is out of time runs when it is requeued: the same, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, task)


def _options(texts: tuple[str, ...]) -> dict[str, str]:
    """Return options of sbatch.

    Raises:
        ConfigError: if one has no value.
    """
    for text in texts:
        if "=" not in text:
            raise ConfigError(f"--slurm: must be OPTION=VALUE, got {text}")
    return dict(text.split("=", 1) for text in texts)
