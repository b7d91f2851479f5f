"""The mirror of each cell in Weights & Biases. The store is the truth; losing the mirror never loses a run."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from lightning.pytorch.loggers import WandbLogger

from lit_prune.address import canonical
from lit_prune.grid import Entry

Mode = Literal["auto", "online", "offline", "disabled"]
Method = TypeVar("Method", bound=Callable[..., Any])


def _forgiving(method: Method) -> Method:
    """Report the first failure in one line, then stay silent."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.lost:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.lost = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"W&B is lost, the run goes on without it ({reason})", file=sys.stderr)
            return None

    return wrapped  # type: ignore[return-value]


class ForgivingWandbLogger(WandbLogger):
    """A WandbLogger whose failures end the mirroring and nothing else."""

    lost = False

    @_forgiving
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        super().log_metrics(metrics, step)

    @_forgiving
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams(params)

    @_forgiving
    def save(self) -> None:
        super().save()

    @_forgiving
    def finalize(self, status: str) -> None:
        super().finalize(status)


class Mirror:
    """One W&B run a cell: id = address, group = table, the grid's axes in its config, terms on trainer/global_step."""

    def __init__(self, table: str, mode: Mode, folder: Path) -> None:
        self.table, self.folder = table, folder
        self.mode = _mode(mode)
        self.lost = self.mode == "disabled"
        self._open_runs: dict[str, Any] = {}

    @contextmanager
    def logger(self, entry: Entry) -> Iterator[list[ForgivingWandbLogger]]:
        """The loggers of a cell's training run: one, or none where W&B is off or lost."""
        logger = self._open(entry)
        try:
            yield [logger] if logger else []
        finally:
            self.lost = self.lost or bool(logger and logger.lost)

    @_forgiving
    def conclude(self, entry: Entry, result: dict[str, Any]) -> None:
        """Close the cell's run with its result, as summary and as a table of one row."""
        import wandb

        run = self._open_runs.pop(entry.key, None)
        if run is None:
            return
        run.summary.update(result)
        columns: list[str | int] = ["row", "seed", *result]
        run.log({"result": wandb.Table(columns=columns, data=[[entry.row, entry.seed, *result.values()]])})
        run.finish()

    def close(self) -> None:
        """End the runs that were left open by a failure, each whatever becomes of the others."""
        while self._open_runs:
            with suppress(Exception):
                self._open_runs.popitem()[1].finish(exit_code=1)

    @_forgiving
    def _open(self, entry: Entry) -> ForgivingWandbLogger:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        # Otherwise tables are staged in the home folder, and do not travel with the runs.
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder / "data"))
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lit-prune"), id=entry.key, name=f"{entry.row} seed {entry.seed}",
            group=self.table, job_type="cell", tags=[self.table, entry.row], dir=str(self.folder), resume="allow",
            mode=self.mode, config={"grid": dict(entry.changes), "cell": canonical(entry.cell)}, settings=_quiet(wandb),
            reinit="create_new",  # cells in turns each have a run of their own
        )  # fmt: skip
        self._open_runs[entry.key] = run
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return ForgivingWandbLogger(experiment=run)


def _mode(mode: Mode) -> Any:
    """The mode to use: what was asked for, else what the environment says, else online with a key, offline without."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    import wandb

    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _quiet(wandb: Any) -> Any:
    """Settings of a cell's run; the private ones (x_) are kept here alone."""
    return wandb.Settings(
        console="off", silent=True, init_timeout=20, x_disable_stats=True, x_disable_machine_info=True
    )
