"""A worker: computes the tasks of a job that it is given, by the code that a single process runs. Imports torch."""

from __future__ import annotations

import dataclasses
import os
from types import TracebackType

from lit_prune import cpu
from lit_prune.config import ConfigError
from lit_prune.grid.job import Answer, Job, code
from lit_prune.grid.tasks import Task
from lit_prune.pipeline.work import attention_shape
from lit_prune.store import Locked
from lit_prune.store.activity import Published

os.environ.setdefault("WANDB_SILENT", "true")  # read when wandb is imported

from lit_prune.integrations.wandb.tracker import WandbTracker
from lit_prune.models.silence import quiet
from lit_prune.pipeline.runner import Runner
from lit_prune.progress import Silent


class Worker:
    """Computes tasks of one job, one after another."""

    def __init__(self, job: Job) -> None:
        """Prepare for a job.

        Raises:
            ConfigError: if this process runs other code than the driver.
        """
        if code() != job.code:
            raise ConfigError(
                f"the worker on {os.uname().nodename} has other source files of lit_prune than the command "
                f"(digest {code()}, not {job.code}); start the command again"
            )
        quiet()
        cpu.choose(job.execution)
        cpu.prepare(attention_shape(entry.cell for entry in job.entries))
        self._progress = Published(job.opened(), Silent())
        self._tracker = WandbTracker(job.table, job.wandb, job.opened().mirror)
        # The driver removes students and caches, since it alone knows which cells are left.
        self._runner = Runner(job.opened(), job.execution, self._progress, self._tracker, keep_students=True)
        self._runner.expect(job.entries)

    def __enter__(self) -> Worker:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tracker.close()
        self._progress.__exit__(kind, error, trace)

    def run(self, task: Task) -> Answer:
        """Compute a task unless another process holds it. A failure is recorded in the store."""
        self._progress.begin(task.name, task.title)
        try:
            if task.stage == "cell":
                return Answer(task, self._runner.attempt(task.entry))
            dataclasses.replace(self._runner.ctx, entry=task.entry).get(task.stage, task.entry.cell)
            return Answer(task, "done")
        except Locked:
            return Answer(task, "busy")
        except ConfigError as error:
            return Answer(task, "invalid", str(error))
        except Exception:  # `Context.claim` has recorded it
            return Answer(task, "failed")
        finally:
            self._progress.end()
