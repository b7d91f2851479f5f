"""The data of every training run: a seeded, sharded, exactly resumable stream of packed blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from lit_prune.config import ConfigError
from lit_prune.data.tokens import TokenBlocks


class SeededOrder(Sampler[int]):
    """Blocks in a fresh seeded permutation for each pass over the data, cut to the share of one rank.

    Position p of the stream is a pure function of (seed, p): pass p // num_blocks, place p % num_blocks. So a run is
    resumed by saying where it was, on any number of ranks or workers. The length is that of the whole run: Lightning
    compares it with the number of batches done since step 0.
    """

    def __init__(self, num_blocks: int, total: int, seed: int, start: int = 0, rank: int = 0, world: int = 1) -> None:
        self.num_blocks, self.total, self.seed, self.start = num_blocks, total, seed, start
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.total // self.world

    def __iter__(self) -> Iterator[int]:
        epoch, order = -1, np.empty(0, np.int64)
        for position in range(self.start + self.rank, self.total, self.world):
            if position // self.num_blocks != epoch:
                epoch = position // self.num_blocks
                order = np.random.default_rng([self.seed, epoch]).permutation(self.num_blocks)
            yield int(order[position % self.num_blocks])


class RetrainingData(L.LightningDataModule):
    """Batches {`input_ids`, `labels`: int64 [micro_batch, block]} of the train split, for a given number of steps.

    `batch` sequences make one optimizer step, over all ranks and accumulated micro-batches. The state in a checkpoint
    is the number of sequences consumed, taken from the trainer's step and not from the loader, which runs ahead.
    """

    def __init__(
        self,
        folder: Path,
        *,
        block: int,
        batch: int,
        steps: int,
        seed: int,
        accumulate: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.blocks = TokenBlocks(folder, "train", block)
        self.batch, self.steps, self.seed = batch, steps, seed
        self.accumulate, self.num_workers = accumulate, num_workers
        self.start = 0

    def train_dataloader(self) -> DataLoader[Any]:
        """The stream of this rank from where the run stands.

        Raises:
            ConfigError: `batch` cannot be cut evenly over ranks and accumulated micro-batches.
        """
        world = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        micro_batch, rest = divmod(self.batch, world * self.accumulate)
        if rest or not micro_batch:
            raise ConfigError(
                f"distill.batch: {self.batch} is no multiple of {world} devices x {self.accumulate} micro-batches"
            )
        order = SeededOrder(len(self.blocks), self.batch * self.steps, self.seed, self.start, rank, world)
        # Without a generator of its own the loader would draw from, and so shift, the global random state.
        return DataLoader(
            self.blocks, batch_size=micro_batch, sampler=order, num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed), pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def state_dict(self) -> dict[str, int]:
        """Sequences consumed so far."""
        return {"position": self.trainer.global_step * self.batch if self.trainer else self.start}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on at the next unseen block."""
        self.start = state_dict["position"]
