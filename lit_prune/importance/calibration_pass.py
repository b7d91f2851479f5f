"""The base class of all passes of a teacher over calibration data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lit_prune import cpu
from lit_prune.config import ConfigError, Execution, Precision, resolve_precision
from lit_prune.data.calibration import CalibrationData
from lit_prune.parallel.trainer import environments, trainer_options


class Pass(L.LightningModule):
    """Read every batch once. A subclass defines what to collect from a batch and how to sum it over ranks."""

    takes_gradients = False

    def __init__(self, model: Any, on_progress: Callable[[int], None]) -> None:
        super().__init__()
        self.model, self.on_progress, self.seen = model.eval(), on_progress, 0

    @abstractmethod
    def read(self, batch: dict[str, Tensor]) -> None:
        """Collect statistics from one batch {`input_ids`, `labels`: int64 [batch, seq]}."""

    @abstractmethod
    def add_up(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace each running sum by its `total`, the sum over all ranks."""

    @abstractmethod
    def found(self) -> dict[str, dict[str, Tensor]]:
        """Return the collected tensors by the name of the statistic; valid after the pass."""

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Read one batch and report the number of sequences that all ranks have seen by then."""
        self.read(batch)
        self.seen += len(batch["input_ids"])
        self.on_progress((self.seen - 1) * self.trainer.world_size + 1)

    def on_predict_end(self) -> None:
        """Sum the statistics over ranks."""
        self.seen = int(self._total(torch.tensor(self.seen, device=self.device)))
        self.add_up(self._total)

    def _total(self, sums: Tensor) -> Tensor:
        reduced = self.trainer.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(reduced, Tensor)
        return reduced


def stream(reader: Pass, data: CalibrationData, execution: Execution, precision: Precision = "32-true") -> None:
    """Run a pass over all calibration data. In a group of ranks, each reads its share, at least one sequence."""
    trainer = L.Trainer(
        **trainer_options(execution.accelerator), plugins=[*environments()], logger=False,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=not reader.takes_gradients, precision=resolve_precision(precision),
    )  # fmt: skip
    with cpu.plainly():
        trainer.predict(reader, datamodule=data, return_predictions=False)


def check_finite(what: str, statistics: Tensor) -> None:
    """Check that all values of a statistic are finite.

    Raises:
        ConfigError: if one is NaN or infinite; `what` names the statistic.
    """
    if not statistics.isfinite().all():
        raise ConfigError(f"teacher.model: {what} is NaN or infinite on the calibration data, so it scores nothing")
