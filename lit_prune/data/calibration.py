"""Data of importance estimation: a seeded sample of the calibration split, without replacement."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lit_prune.config import ConfigError
from lit_prune.data.tokens import TokenSequences
from lit_prune.parallel.group import rank, world_size

BATCH_SIZE = 16
"""Sequences that are read at once, unless the caller says otherwise."""


class CalibrationData(L.LightningDataModule):
    """Batches {`input_ids`, `labels`: int64 [batch, seq_len]} of `num_sequences` different sequences of one split.

    Only full sequences are drawn, so no padding enters a score. Each rank reads its own share.

    Raises:
        ConfigError: if the split has fewer full sequences than requested.
    """

    def __init__(
        self, folder: Path, *, num_sequences: int, seq_len: int, seed: int, batch_size: int = BATCH_SIZE,
        num_workers: int = 0, split: str = "calibration",
    ) -> None:  # fmt: skip
        super().__init__()
        sequences = TokenSequences(folder, split, seq_len)  # type: ignore[arg-type]
        whole = sequences.num_whole
        if num_sequences > whole:
            raise ConfigError(
                f"{split}: must be <= {whole}, the sequences of {seq_len} tokens in this split, got {num_sequences}"
            )
        self.chosen = np.random.default_rng(seed).permutation(whole)[:num_sequences].tolist()
        self.sequences, self.batch_size, self.num_workers = sequences, batch_size, num_workers

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this rank's share, in the drawn order."""
        world = self.trainer.world_size if self.trainer else world_size()
        place = self.trainer.global_rank if self.trainer else rank()
        return DataLoader(
            Subset(self.sequences, self.chosen[place::world]), batch_size=self.batch_size, num_workers=self.num_workers
        )


def sample_sequences(batches: Iterable[dict[str, Tensor]], count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return `count` sequences drawn from all batches without replacement, as one batch; all if there are fewer."""
    rows = list(batches)
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    order = torch.randperm(len(joined["input_ids"]), generator=generator)[:count]
    return {name: ids[order.to(ids.device)] for name, ids in joined.items()}
