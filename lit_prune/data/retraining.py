"""The data of every training run: a seeded, sharded, exactly resumable stream of packed blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from lit_prune.config import ConfigError
from lit_prune.data.tokens import TokenSequences


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


class Part(NamedTuple):
    """One micro-batch."""

    sequences: tuple[int, ...]
    """Its blocks."""
    step: tuple[int, ...]
    """The blocks of its optimizer step, on all ranks."""


class StepSampler(Sampler[Part]):
    """The micro-batches of one rank, `size` sequences each, of steps of `batch` sequences.

    `mine` and `everyone` are the stream of this rank and of all ranks, from the same start. The length is that of the
    whole run, as of `SeededOrder`.
    """

    def __init__(self, mine: SeededOrder, everyone: SeededOrder, batch: int, size: int) -> None:
        self.mine, self.everyone, self.batch, self.size = mine, everyone, batch, size

    def __len__(self) -> int:
        return len(self.mine) // self.size

    def __iter__(self) -> Iterator[Part]:
        mine, everyone = iter(self.mine), iter(self.everyone)
        while step := tuple(itertools.islice(everyone, self.batch)):
            for _ in range(0, self.batch // self.mine.world, self.size):
                yield Part(tuple(itertools.islice(mine, self.size)), step)


class StepParts(Dataset[dict[str, Any]]):
    """Micro-batches {`input_ids`, `labels`: int64 [sequences, block], `mean_scored`: float}.

    `mean_scored` is the number of scored tokens of the optimizer step divided by its micro-batches on all ranks. A loss
    that is summed over a micro-batch and divided by it averages over micro-batches and ranks to the mean over the
    step's tokens, however unevenly these are spread.
    """

    def __init__(self, blocks: TokenSequences) -> None:
        self.blocks = blocks
        self._newest: tuple[tuple[int, ...], int] = ((), 0)

    def __getitem__(self, part: Part) -> dict[str, Any]:
        batch = default_collate([self.blocks[i] for i in part.sequences])
        scored = self._scored(part.step)
        return {**batch, "mean_scored": scored * len(part.sequences) / len(part.step)}

    def _scored(self, step: tuple[int, ...]) -> int:
        """Scored tokens of a step, counted at its first micro-batch."""
        if self._newest[0] != step:
            self._newest = step, sum(map(self.blocks.num_scored, step))
        return self._newest[1]


class RetrainingData(L.LightningDataModule):
    """The micro-batches of `StepParts` from the train split, for a given number of steps.

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
        self.blocks = TokenSequences(folder, "train", block)
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
                f"distill.batch_size: {self.batch} is no multiple of {world} devices x {self.accumulate} micro-batches"
            )
        stream = len(self.blocks), self.batch * self.steps, self.seed, self.start
        sampler = StepSampler(SeededOrder(*stream, rank, world), SeededOrder(*stream), self.batch, micro_batch)
        # Without a generator of its own the loader would draw from, and so shift, the global random state.
        return DataLoader(
            StepParts(self.blocks), batch_size=None, sampler=sampler, num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed), pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def state_dict(self) -> dict[str, int]:
        """Sequences consumed so far."""
        return {"position": self.trainer.global_step * self.batch if self.trainer else self.start}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on at the next unseen block."""
        self.start = state_dict["position"]
