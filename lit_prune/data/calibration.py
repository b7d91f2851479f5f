"""The data of importance estimation: a seeded sample of the calibration split, each block read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Subset

from lit_prune.config import ConfigError
from lit_prune.data.tokens import TokenSequences


class CalibrationData(L.LightningDataModule):
    """Batches {`input_ids`, `labels`: int64 [batch, block]} of `samples` different blocks of one split.

    Only whole blocks are drawn, so that no filling enters a score. Each rank reads its own share.

    Raises:
        ConfigError: fewer whole blocks in the split than asked for.
    """

    def __init__(
        self, folder: Path, *, samples: int, block: int, seed: int, batch: int = 16, num_workers: int = 0,
        split: str = "calibration",
    ) -> None:  # fmt: skip
        super().__init__()
        blocks = TokenSequences(folder, split, block)  # type: ignore[arg-type]
        whole = blocks.num_whole
        if samples > whole:
            raise ConfigError(f"{split}: {samples} sequences of {block} tokens asked for, the corpus has {whole}")
        self.chosen = np.random.default_rng(seed).permutation(whole)[:samples].tolist()
        self.blocks, self.batch, self.num_workers = blocks, batch, num_workers

    def predict_dataloader(self) -> DataLoader[Any]:
        """The share of this rank, in the drawn order."""
        world = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        return DataLoader(
            Subset(self.blocks, self.chosen[rank::world]), batch_size=self.batch, num_workers=self.num_workers
        )
