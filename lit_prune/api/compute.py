"""Compute cells for a caller in Python. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Literal

from lit_prune.config import Execution, Placement
from lit_prune.pipeline.expand import Entry
from lit_prune.progress import ProgressOf
from lit_prune.store import Store

os.environ.setdefault("WANDB_SILENT", "true")  # read when wandb is imported

from lit_prune.grid.driver import Driver
from lit_prune.grid.executors import executor_of
from lit_prune.grid.job import Job
from lit_prune.integrations.wandb.tracker import WandbTracker
from lit_prune.models.silence import quiet
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.runner import Runner
from lit_prune.pipeline.schedule import planned_steps
from lit_prune.store.activity import Published

Wandb = Literal["auto", "online", "offline", "disabled"]


def compute(
    missing: Sequence[Entry], store: Store, execution: Execution, progress: ProgressOf, wandb: Wandb, name: str,
    begin: Callable[[], None] = lambda: None, *, debug: bool = False, keep_students: bool = False,
    placement: Placement | None = None,
) -> int:  # fmt: skip
    """Validate and compute cells; return how many failed. `begin` is called in between.

    `debug` raises the first failure instead of recording it. With `keep_students` the pruned student of every cell
    is in the store afterwards. With a `placement`, worker processes compute the cells.

    Raises:
        ConfigError: if a cell is invalid, before any is computed.
    """
    quiet()
    store.check_writable()
    tracker = WandbTracker(name, wandb, store.mirror)
    with progress(planned_steps(store, missing)) as display, Published(store, display) as bar:
        runner = Runner(store, execution, bar, tracker, debug=debug, keep_students=keep_students)
        bar.say(f"checking {len(missing)} cells")
        runner.check(entry.cell for entry in missing)
        begin()
        try:
            if placement is not None and placement.workers:
                entries = [entry for wave in runner.expect(missing) for entry in wave]
                job = Job(tuple(entries), str(store.root.resolve()), execution, wandb, name)
                return Driver(runner, executor_of(placement, job), entries).run()
            failed = runner.run(missing)
            for entry in missing if keep_students and not failed else ():
                artifacts.student(entry.cell, runner.ctx)
            return failed
        finally:
            tracker.close()
