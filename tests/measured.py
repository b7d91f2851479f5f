"""Evidence about a small model, measured on sequences given as they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from lit_prune.config import EVIDENCE, Execution
from lit_prune.data.calibration import CalibrationData
from lit_prune.importance.collect import measure
from lit_prune.importance.criteria import CalibrationStats
from lit_prune.importance.layer_ablation import removal_losses

CPU = Execution(accelerator="cpu")


class Sequences(CalibrationData):
    """Calibration data of given sequences, int64 [seq] each, in batches of a given size; all tokens are labels."""

    def __init__(self, ids: Iterable[torch.Tensor], batch: int) -> None:
        super(CalibrationData, self).__init__()
        self.rows, self.batch = [{"input_ids": row, "labels": row} for row in ids], batch

    def predict_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=self.batch)


def quietly(seen: int) -> None:
    """For those who need not hear how far a pass is."""


def evidence_of(
    model: Any, ids: torch.Tensor, folder: Path, names: Iterable[str] = EVIDENCE, batch: int = 4
) -> CalibrationStats:
    """What passes over sequences [sequences, seq] say about a model; the files go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.safetensors" for name in names}
    count = measure(model, Sequences(ids, batch), paths, CPU, quietly) if paths else len(ids)
    return CalibrationStats(
        model=model, statistics={name: load_file(path) for name, path in paths.items()}, count=count, seed=0,
        removal_losses=lambda length: removal_losses(model, Sequences(ids, batch), length, CPU, quietly),
    )  # fmt: skip
