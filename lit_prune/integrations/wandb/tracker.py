"""Log each cell to Weights & Biases. The store holds the results; an error of W&B never ends a run."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
from lightning.pytorch.loggers import WandbLogger

from lit_prune.config.overrides import described
from lit_prune.config.renames import current_frame
from lit_prune.distill.budget import tokens_of_step
from lit_prune.pipeline.expand import Entry
from lit_prune.store.store import CHECKS

Mode = Literal["auto", "online", "offline", "disabled"]
_PATIENCE = 60
"""Seconds that the end of a run waits for W&B's server."""
Method = TypeVar("Method", bound=Callable[..., Any])

_STEP = "trainer/global_step"
_TAG = 64
"""Most characters of a tag; W&B refuses a run with a longer one."""


def _forgiving(method: Method) -> Method:
    """Wrap a method to print its first failure in one line and then do nothing."""

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.lost:
            return None
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            self.lost = True
            print(f"W&B is lost, the run goes on without it ({_reason(error)})", file=sys.stderr)
            return None

    return wrapped  # type: ignore[return-value]


class TolerantWandbLogger(WandbLogger):
    """A WandbLogger whose failures only stop the logging, and that logs each step once with all its metrics.

    W&B's step is the optimizer step, so that a resumed run continues: steps up to `known`, from an earlier part, are
    not logged again, and the part that completes an interrupted step logs it.
    """

    lost = False

    def __init__(self, run: Any, tokens: int, known: int = -1) -> None:
        super().__init__(experiment=run)
        self.tokens, self.known = tokens, known
        self._row: dict[str, Any] = {}

    @_forgiving
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step is None or step <= self.known:
            return
        if step != self._row.get(_STEP, step):
            self._log_row()
        self._row |= {**metrics, _STEP: step, "tokens": step * self.tokens}

    def _log_row(self) -> None:
        if self._row:
            self.experiment.log(self._row, step=self._row[_STEP])
        self._row = {}

    @_forgiving
    def log_hyperparams(self, params: Any) -> None:
        super().log_hyperparams(params)

    @_forgiving
    def save(self) -> None:
        super().save()

    @_forgiving
    def finalize(self, status: str) -> None:
        if status == "success":
            self._log_row()
        super().finalize(status)


class WandbTracker:
    """One W&B run per cell: id is the address, group the table; row, seed and all fields of the cell are its config.

    Terms are logged over trainer/global_step and tokens.
    """

    def __init__(self, table: str, mode: Mode, folder: Path) -> None:
        self.table, self.folder = table, folder
        self.mode = _mode(mode)
        self.lost = self.mode == "disabled"
        self._open_runs: dict[str, Any] = {}

    @contextmanager
    def logger(self, entry: Entry, folder: Path) -> Iterator[list[TolerantWandbLogger]]:
        """Yield the loggers of a cell's training run in `folder`, new or resumed: one, or none without W&B."""
        logger = self._open(entry, folder)
        try:
            yield [logger] if logger else []
        finally:
            self.lost = self.lost or bool(logger and logger.lost)

    @_forgiving
    def conclude(self, entry: Entry, result: dict[str, Any]) -> None:
        """Close the cell's run with its result, as summary and as a table of one row.

        A cell without retraining has no run before this.
        """
        import wandb

        if entry.key not in self._open_runs:
            self._start(entry)
        run = self._open_runs.pop(entry.key)
        run.summary.update(result)
        columns: list[str | int] = ["row", "seed", *result]
        run.log({"result": wandb.Table(columns=columns, data=[[entry.row, entry.seed, *result.values()]])})
        run.finish()

    def close(self) -> None:
        """Close the runs that a failure left open, independently of each other.

        After one timeout the server is not waited for again.
        """
        while self._open_runs:
            try:
                self._open_runs.popitem()[1].finish(exit_code=1)
            except TimeoutError:
                break
            except Exception:
                continue

    @_forgiving
    def _open(self, entry: Entry, folder: Path) -> TolerantWandbLogger:
        known = self._known(entry.key)
        run = self._start(entry)
        known = max(known, run.step - 1 if run.resumed else -1)
        logger = TolerantWandbLogger(run, tokens_of_step(entry.cell.distill), known)
        for step, metrics in _past(folder):
            logger.log_metrics(metrics, step)
            logger.known = max(logger.known, step - 1)
        return logger

    def _start(self, entry: Entry) -> Any:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        # Otherwise tables are staged in the home folder, apart from the runs.
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder / "data"))
        config = {"row": entry.row, "seed": entry.seed, "cell": described(entry.cell)}
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lit-prune"), id=entry.key, name=f"{entry.row} seed {entry.seed}",
            group=self.table, job_type=_job_type(entry), tags=[self.table, entry.row[:_TAG]], dir=str(self.folder),
            resume="allow", mode=self.mode, config=config, settings=_quiet(wandb),
            reinit="create_new",  # the run of a failed cell may still be open
        )  # fmt: skip
        self._open_runs[entry.key] = run
        run.define_metric(_STEP)
        run.define_metric("*", step_metric=_STEP, step_sync=True)
        return run

    def _known(self, address: str) -> int:
        """Return the last step of a cell in its offline runs, -1 if there are none.

        Each resumption adds a run; the newest with a step has the last one.
        """
        inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json"]
        for run in sorted(self.folder.glob(f"wandb/offline-run-*-{address}*"), reverse=True):
            result = subprocess.run([*inspect, str(run)], capture_output=True, text=True, timeout=60)
            step = json.loads(result.stdout)["step"] if result.returncode == 0 else None
            if step is not None:
                return step
        return -1


def _past(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the logged metrics of an interrupted retraining by step; W&B may lack them or have been off."""
    rows: dict[int, dict[str, float]] = {}
    for name, prefix in (("metrics.csv", ""), (CHECKS, "validation/")):
        if (folder / "last.ckpt").exists() and (folder / name).exists():
            for row in current_frame(pd.read_csv(folder / name)).to_dict("records"):
                logged = {f"{prefix}{k}": v for k, v in row.items() if k != "step" and not math.isnan(v)}
                rows.setdefault(int(row["step"]), {}).update(logged)
    return sorted(rows.items())


def _job_type(entry: Entry) -> str:
    """Return the job type of a run: a cell of the table, a reference, or a parent."""
    return "parent" if entry.parent else "reference" if entry.reference else "cell"


def _mode(mode: Mode) -> Any:
    """Return the mode: the requested one, else that of the environment, else online with a key and offline without."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    import wandb

    try:
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except Exception as error:
        print(f"W&B cannot be used online, runs are mirrored offline ({_reason(error)})", file=sys.stderr)
        return "offline"


def _quiet(wandb: Any) -> Any:
    """Return the settings of a cell's run; private ones (x_) occur only here."""
    # Without a timeout, the end of a run waits for an unreachable server indefinitely.
    return wandb.Settings(
        console="off", silent=True, init_timeout=20, finish_timeout=_PATIENCE, finish_timeout_raises=True,
        x_disable_stats=True, x_disable_machine_info=True,
    )  # fmt: skip


def _reason(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
