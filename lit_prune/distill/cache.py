"""What a teacher shows of a whole run's data, computed once, kept on disk and read by any number of runs.

The states its head reads, which lose nothing; or the logits of its likeliest tokens, where only those are compared, and
the probability that the others have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.config import Distill
from lit_prune.distill.hidden_states import State, States
from lit_prune.distill.teacher import FrozenTeacher, ObservedOutput, TeacherOutput
from lit_prune.losses.chunked import Target, TopKTarget
from lit_prune.models.lm_head import LMHead, head_of
from lit_prune.store.atomic import preallocate


@dataclass(frozen=True)
class Part:
    """One file of a cache: a number or a vector for every position of every sequence."""

    name: str
    width: int
    dtype: torch.dtype


def parts_of(width: int, top_k: int | None, states: torch.dtype) -> tuple[Part, ...]:
    """The files of a cache: the states, or the `top_k` likeliest tokens and the probability that the others have."""
    if top_k is None:
        return (Part("states", width, states),)
    return (
        Part("logits", top_k, torch.float32),
        Part("ids", top_k, torch.int32),
        Part("missing_mass", 1, torch.float32),
    )


@dataclass(frozen=True)
class Cache:
    """The files in a folder, for `sequences` sequences of `block` tokens."""

    folder: Path
    parts: tuple[Part, ...]
    sequences: int
    block: int

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self._bytes(part) for part in self.parts)

    def open(self, write: bool = False) -> dict[str, Tensor]:
        """The files, mapped into memory: [sequences, block, width] each."""
        if write:
            self.folder.mkdir(parents=True, exist_ok=True)
            for part in self.parts:
                with (self.folder / part.name).open("wb") as file:  # all of it now: later a full disk would kill us
                    preallocate(file, self._bytes(part))
        return {part.name: self._map(part, write) for part in self.parts}

    def _bytes(self, part: Part) -> int:
        return self.sequences * self.block * part.width * part.dtype.itemsize

    def _map(self, part: Part, write: bool) -> Tensor:
        size = self.sequences, self.block, part.width
        path = str(self.folder / part.name)
        return torch.from_file(path, shared=write, size=math.prod(size), dtype=part.dtype).view(size)


class CachedTeacher:
    """A frozen teacher whose states or likeliest tokens are read from a cache; it makes no forward pass."""

    def __init__(self, teacher: nn.Module, cache: Cache) -> None:
        self.model, self.head = teacher.eval().requires_grad_(False), head_of(teacher)
        self._files = cache.open()

    def want(self, states: Iterable[State]) -> None:
        """Ask for states on the way, of which a cache has none.

        Raises:
            ValueError: any is asked for.
        """
        if asked := list(states):
            raise ValueError(f"a cached teacher shows no states on the way, and {asked} are asked for")

    def observe(self, input_ids: Tensor, position: int | None = None) -> TeacherOutput:
        """What the teacher showed of the batch at `position`, ids int64 [batch, seq]."""
        assert position is not None
        size = len(input_ids)
        rows = {name: file[position * size : (position + 1) * size] for name, file in self._files.items()}
        rows = {name: part.to(input_ids.device) for name, part in rows.items()}
        if "states" in rows:
            return ObservedOutput(rows["states"], {}, self.head)
        return TopKTeacherOutput(rows["logits"], rows["ids"])


@dataclass(frozen=True)
class TopKTeacherOutput:
    """The tokens a teacher holds likeliest, at every position of one micro-batch."""

    logits: Tensor
    """[batch, seq, k]."""
    ids: Tensor
    """int32 [batch, seq, k]."""
    states: States = dataclasses.field(default_factory=dict)

    def target(self, scored: Tensor, top_k: int | None) -> Target:
        """What the student's logits are compared with, at the positions `scored`, bool [batch, seq - 1].

        Raises:
            ValueError: another number of tokens is asked for than was kept.
        """
        if top_k != self.ids.shape[-1]:
            raise ValueError(f"the cache holds the {self.ids.shape[-1]} likeliest tokens, not {top_k}")
        return TopKTarget(self.logits[:, :-1][scored], self.ids[:, :-1][scored].long())


@torch.no_grad()
def write_cache(
    teaching: FrozenTeacher, batches: Iterable[dict[str, Tensor]], folder: Path, *,
    sequences: int, block: int, top_k: int | None, precision: str, device: torch.device, tell: Callable[[int], None],
) -> dict[str, Any]:  # fmt: skip
    """Keep what a teacher shows of `sequences` sequences, given in batches, calling `tell` with those done.

    Returns the description of the cache that `read_cache` takes, with the mean probability that a cache of likeliest
    tokens leaves out.
    """
    files: dict[str, Tensor] = {}
    done = 0
    teaching.model.to(device)
    for batch in batches:
        ids = batch["input_ids"].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            shown = teaching.observe(ids)
        assert isinstance(shown, ObservedOutput)
        if not files:
            cache = Cache(folder, parts_of(shown.last.shape[-1], top_k, shown.last.dtype), sequences, block)
            files = cache.open(write=True)
        for name, values in _contents(shown, top_k).items():
            files[name][done : done + len(ids)].copy_(values)
        done += len(ids)
        tell(done)
    missing = {"missing_mass": files["missing_mass"].mean().item()} if top_k else {}
    return {"sequences": sequences, "block": block, "parts": [_plain(part) for part in cache.parts], **missing}


def clear(folder: Path) -> None:
    """Remove what is left of a cache that was cut short."""
    for name in ("states", "logits", "ids", "missing_mass"):
        (folder / name).unlink(missing_ok=True)


def bytes_of(teacher: Any, sequences: int, distill: Distill) -> int:
    """Bytes that a cache of `sequences` sequences takes at the most."""
    parts = parts_of(teacher.config.hidden_size, distill.top_k, torch.float32)
    return Cache(Path(), parts, sequences, distill.seq_len).bytes


def read_cache(folder: Path, description: dict[str, Any]) -> Cache:
    """The cache in a folder, as `write_cache` described it."""
    parts = tuple(Part(part["name"], part["width"], getattr(torch, part["dtype"])) for part in description["parts"])
    return Cache(folder, parts, description["sequences"], description["block"])


def _plain(part: Part) -> dict[str, Any]:
    return {"name": part.name, "width": part.width, "dtype": str(part.dtype).removeprefix("torch.")}


def _contents(shown: ObservedOutput, top_k: int | None) -> dict[str, Tensor]:
    """What is kept of a micro-batch, a sequence at a time where logits are needed: they are large."""
    if top_k is None:
        return {"states": shown.last}
    found = [_likeliest(shown.head, states, top_k) for states in shown.last]
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def _likeliest(head: LMHead, states: Tensor, top_k: int) -> dict[str, Tensor]:
    """Of one sequence's states [seq, width]."""
    logits = head.logits(states)
    largest, ids = logits.topk(top_k)
    kept = (largest.double() - logits.double().logsumexp(-1, keepdim=True)).exp().sum(-1, keepdim=True)
    return {"logits": largest, "ids": ids, "missing_mass": (1 - kept).clamp_min(0)}
