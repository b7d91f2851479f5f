"""Data of every training run: a seeded, sharded, exactly resumable stream of packed sequences."""

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
from lit_prune.data.domains import DomainShares
from lit_prune.data.tokens import TokenSequences


class SeededOrder(Sampler[int]):
    """Indices of sequences in a new seeded permutation for each epoch, limited to the share of one rank.

    Position p of the stream depends only on (seed, p): epoch p // num_sequences, index p % num_sequences within it. So
    a run can resume from its position, with any number of ranks or workers. The length is that of the whole run, since
    Lightning compares it with the number of batches since step 0.
    """

    def __init__(
        self, num_sequences: int, total: int, seed: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.num_sequences, self.total, self.seed, self.start = num_sequences, total, seed, start
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.total // self.world

    def __iter__(self) -> Iterator[int]:
        epoch, order = -1, np.empty(0, np.int64)
        for position in range(self.start + self.rank, self.total, self.world):
            if position // self.num_sequences != epoch:
                epoch = position // self.num_sequences
                order = np.random.default_rng([self.seed, epoch]).permutation(self.num_sequences)
            yield int(order[position % self.num_sequences])


class Part(NamedTuple):
    """One micro-batch."""

    sequences: tuple[int, ...]
    """Indices of its sequences."""
    step: tuple[int, ...]
    """Indices of all sequences of its optimizer step, on all ranks."""


class StepSampler(Sampler[Part]):
    """The micro-batches of one rank, `size` sequences each, of steps of `batch` sequences.

    `mine` and `everyone` are the streams of this rank and of all ranks, from the same start. The length is that of the
    whole run, as in `SeededOrder`.
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


class DomainSampler(Sampler[Part]):
    """Micro-batches as `StepSampler`, of steps whose sequences are drawn by domain, from the step `start` on."""

    def __init__(
        self, shares: DomainShares, steps: int, start: int, size: int, rank: int = 0, world: int = 1
    ) -> None:  # fmt: skip
        self.shares, self.num_steps, self.start, self.size = shares, steps, start, size
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.num_steps * self.shares.batch_size // (self.world * self.size)

    def __iter__(self) -> Iterator[Part]:
        for step in self.shares.steps(self.start, self.num_steps):
            mine = step[self.rank :: self.world]
            for first in range(0, len(mine), self.size):
                yield Part(mine[first : first + self.size], step)


class StepParts(Dataset[dict[str, Any]]):
    """Micro-batches {`input_ids`, `labels`: int64 [sequences, seq_len], `mean_scored`: float}.

    `mean_scored` is the mean number of scored tokens per micro-batch of the optimizer step, over all ranks. Divide the
    summed loss of a micro-batch by it: the mean over micro-batches and ranks is then the mean over the tokens of the
    step, even if these are distributed unevenly.
    """

    def __init__(self, sequences: TokenSequences) -> None:
        self.sequences = sequences
        self._newest: tuple[tuple[int, ...], int] = ((), 0)

    def __getitem__(self, part: Part) -> dict[str, Any]:
        batch = default_collate([self.sequences[i] for i in part.sequences])
        scored = self._scored(part.step)
        return {**batch, "mean_scored": scored * len(part.sequences) / len(part.step)}

    def _scored(self, step: tuple[int, ...]) -> int:
        """Return the number of scored tokens of a step, cached for its later micro-batches."""
        if self._newest[0] != step:
            self._newest = step, sum(map(self.sequences.num_scored, step))
        return self._newest[1]


class RetrainingData(L.LightningDataModule):
    """Micro-batches of `StepParts` from the train split, for a given number of steps.

    An optimizer step has `batch_size` sequences over all ranks and accumulated micro-batches. The checkpoint state is
    the number of consumed sequences, computed from the trainer's step because the loader prefetches. With `by_domain`
    the sequences are drawn by shares of the domains, at first those in the split. They may change between steps, so the
    loader then has no workers, which would draw ahead.

    Raises:
        ConfigError: if `by_domain` is set and the text has no domains.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seq_len: int,
        batch_size: int,
        max_steps: int,
        seed: int,
        grad_accum_steps: int = 1,
        num_workers: int = 0,
        by_domain: bool = False,
    ) -> None:
        super().__init__()
        self.sequences = TokenSequences(folder, "train", seq_len)
        self.batch_size, self.max_steps, self.seed = batch_size, max_steps, seed
        self.grad_accum_steps, self.num_workers = grad_accum_steps, 0 if by_domain else num_workers
        self.start = 0
        self.shares: DomainShares | None = None
        if by_domain:
            members = self.sequences.members()
            sizes = [len(ours) / len(self.sequences) for ours in members]
            self.shares = DomainShares(members, sizes, batch_size, seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this rank from the current position of the run.

        Raises:
            ConfigError: if `batch_size` is not a multiple of ranks times accumulated micro-batches.
        """
        world = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        micro_batch, rest = divmod(self.batch_size, world * self.grad_accum_steps)
        if rest or not micro_batch:
            raise ConfigError(
                f"distill.batch_size: must be a multiple of {world} devices x {self.grad_accum_steps} micro-batches, "
                f"got {self.batch_size}"
            )
        sampler: Sampler[Part]
        if self.shares is None:
            stream = len(self.sequences), self.batch_size * self.max_steps, self.seed, self.start
            sampler = StepSampler(SeededOrder(*stream, rank, world), SeededOrder(*stream), self.batch_size, micro_batch)
        else:
            sampler = DomainSampler(
                self.shares, self.max_steps, self.start // self.batch_size, micro_batch, rank, world
            )  # fmt: skip
        # Its own generator: otherwise the loader would draw from the global random state and change it.
        return DataLoader(
            StepParts(self.sequences), batch_size=None, sampler=sampler, num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed), pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return the number of sequences consumed so far, and the shares of the domains so far."""
        position = self.trainer.global_step * self.batch_size if self.trainer else self.start
        return {"position": position} | ({} if self.shares is None else {"shares": self.shares.history})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the next unseen sequence."""
        self.start = state_dict["position"]
        if self.shares is not None:
            self.shares.history = state_dict["shares"]
