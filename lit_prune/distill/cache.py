"""Cache teacher outputs on disk: computed once for the data of a run and read by any number of runs.

The cache holds the states before the head, `4 * width` bytes per token in float32 instead of `4 * vocab` for logits,
and each hidden state that is compared. On reading, the head is applied to the same chunks of tokens as without a cache,
so the logits are bitwise equal. If only the `top_k` largest logits are compared, the cache holds these instead.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_prune.data.tokens import IGNORED
from lit_prune.distill.hidden_states import State, States
from lit_prune.distill.teacher import FrozenTeacher, HeadOutput, TeacherOutput
from lit_prune.losses.chunked import tokens_at_once
from lit_prune.losses.targets import Target, TopKTarget
from lit_prune.models.lm_head import head_of
from lit_prune.store.atomic import preallocate

if TYPE_CHECKING:
    from torchmetrics import MeanMetric

_LAST, _LOGITS, _IDS = "last", "top_k.logits", "top_k.ids"


class DiskFull(RuntimeError):
    """The cache does not fit on the disk."""


@dataclass(frozen=True)
class Contents:
    """What a cache holds, or what runs need from it."""

    sequences: int
    """Number of sequences, from the first of the run's data on."""
    states: frozenset[State] = frozenset()
    """Hidden states that are compared."""
    top_k: int | None = None
    """Number of largest logits per token; None if the states before the head are kept, from which all follow."""

    def __or__(self, other: Contents) -> Contents:
        """Return contents that serve the runs of both."""
        top_k = self.top_k if self.top_k == other.top_k else None
        return Contents(max(self.sequences, other.sequences), self.states | other.states, top_k)

    def serves(self, need: Contents) -> bool:
        """Return whether a cache with these contents has everything that `need` names."""
        return self | need == self


@dataclass(frozen=True)
class Part:
    """A file of a cache, with one vector per token."""

    name: str
    width: int
    dtype: str


@dataclass(frozen=True)
class Cache:
    """A folder of cached outputs for sequences of `seq_len` tokens."""

    folder: Path
    contents: Contents
    seq_len: int
    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        """Total size of the files in bytes."""
        return sum(self._bytes(part) for part in self.parts)

    @property
    def plain(self) -> dict[str, Any]:
        """All fields but the folder, as plain data for JSON."""
        return {
            "sequences": self.contents.sequences, "states": sorted(map(list, self.contents.states)),
            "top_k": self.contents.top_k, "seq_len": self.seq_len, "bytes": self.num_bytes,
            "parts": [asdict(part) for part in self.parts],
        }  # fmt: skip

    @classmethod
    def read(cls, folder: Path, plain: Mapping[str, Any]) -> Cache:
        """Return the cache in a folder, from its description `plain`."""
        states = frozenset((kind, index) for kind, index in plain["states"])
        contents = Contents(plain["sequences"], states, plain["top_k"])
        return cls(folder, contents, plain["seq_len"], tuple(Part(**part) for part in plain["parts"]))

    def allocate(self) -> dict[str, Tensor]:
        """Create the files and map them for writing: part -> [sequences, seq_len, width].

        Raises:
            OSError: if the disk is full; without this check, a write to the map would kill the process.
        """
        for part in self.parts:
            with (self.folder / part.name).open("wb") as file:
                preallocate(file, self._bytes(part))
        return self.map(shared=True)

    def map(self, *, shared: bool = False) -> dict[str, Tensor]:
        """Map the files into memory. They stay readable when the folder is removed."""
        found = {}
        for part in self.parts:
            size = self.contents.sequences, self.seq_len, part.width
            path, dtype = str(self.folder / part.name), getattr(torch, part.dtype)
            found[part.name] = torch.from_file(path, shared=shared, size=math.prod(size), dtype=dtype).view(size)
        return found

    def _bytes(self, part: Part) -> int:
        return self.contents.sequences * self.seq_len * part.width * getattr(torch, part.dtype).itemsize


class CachedTeacher:
    """A frozen teacher whose outputs are read from a cache, without a forward pass."""

    def __init__(self, model: nn.Module, cache: Cache) -> None:
        self.model, self.head = model.eval().requires_grad_(False), head_of(model)
        self.origin = f"{cache.folder.parent.name}/{cache.folder.name}"
        self._files = cache.map()

    def observe(self, input_ids: Tensor, position: int | None, states: Collection[State]) -> TeacherOutput:
        """Return the cached output for the micro-batch at `position`, ids int64 [batch, seq]."""
        assert position is not None
        rows = slice(position * len(input_ids), (position + 1) * len(input_ids))

        def read(name: str) -> Tensor:
            # A copy, aligned like the output of a forward pass: in some kernels rounding depends on alignment.
            return self._files[name][rows].to(input_ids.device, copy=True)

        found = {state: read(_file_of(state)) for state in states}
        if _LAST in self._files:
            return HeadOutput(read(_LAST), found, self.head)
        return TopKOutput(read(_LOGITS), read(_IDS), found)


@dataclass(frozen=True)
class TopKOutput:
    """The largest logits of a teacher at every position of one micro-batch."""

    logits: Tensor
    """[batch, seq, k]."""
    ids: Tensor
    """int32 [batch, seq, k]."""
    states: States = field(default_factory=dict)

    def target(self, scored: Tensor, top_k: int | None) -> Target:
        """Return the target of the student's logits at the positions `scored`, bool [batch, seq - 1].

        Raises:
            ValueError: if `top_k` is not the number of logits in the cache.
        """
        if top_k != self.ids.shape[-1]:
            raise ValueError(f"top_k: must be {self.ids.shape[-1]}, the number of logits in the cache, got {top_k}")
        return TopKTarget(self.logits[:, :-1][scored], self.ids[:, :-1][scored].long())


@torch.no_grad()
def write_cache(
    teacher: FrozenTeacher, batches: Iterable[dict[str, Tensor]], folder: Path, contents: Contents, *,
    seq_len: int, precision: str, device: torch.device, share_of_disk: float, on_progress: Callable[[int], None],
) -> dict[str, Any]:  # fmt: skip
    """Write the outputs for the micro-batches of a run to `folder`.

    `on_progress` is called with the number of finished sequences.

    Returns the description for `Cache.read`. If only the largest logits are kept, it includes `missing_mass`, the mean
    total probability of all other tokens.

    Raises:
        DiskFull: if the cache needs more than `share_of_disk` of the free space. Nothing is left in the folder.
    """
    from torchmetrics import MeanMetric  # takes as long to import as torch, and a reader does not need it

    teacher.model.to(device)
    files: dict[str, Tensor] = {}
    missing_mass = MeanMetric()
    done = 0
    for batch in batches:
        ids, labels = batch["input_ids"].to(device), batch["labels"].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            output = teacher.observe(ids, None, contents.states)
            values = {_file_of(state): value for state, value in output.states.items()}
            if contents.top_k is None:
                values[_LAST] = output.last
            else:
                values |= _largest(output, labels, contents.top_k, missing_mass)
        if not files:
            cache = Cache(folder, contents, seq_len, tuple(map(_part, values, values.values())))
            files = _allocated(cache, share_of_disk)
        for name, value in values.items():
            files[name][done : done + len(ids)].copy_(value)
        done += len(ids)
        on_progress(done)
    return cache.plain | ({"missing_mass": missing_mass.compute().item()} if contents.top_k else {})


def _part(name: str, value: Tensor) -> Part:
    return Part(name, value.shape[-1], str(value.dtype).removeprefix("torch."))


def _file_of(state: State) -> str:
    """Return the file name of a hidden state, such as output.3."""
    kind, index = state
    return f"{kind}.{index}"


def _allocated(cache: Cache, share: float) -> dict[str, Tensor]:
    free = shutil.disk_usage(cache.folder).free
    if cache.num_bytes > share * free:
        raise DiskFull(f"{cache.num_bytes >> 20} MiB are needed, the store has {free >> 20} MiB left")
    try:
        return cache.allocate()
    except OSError as error:
        for part in cache.parts:
            (cache.folder / part.name).unlink(missing_ok=True)
        raise DiskFull(f"{cache.num_bytes >> 20} MiB are needed ({error.strerror})") from error


def _largest(output: HeadOutput, labels: Tensor, top_k: int, missing_mass: MeanMetric) -> dict[str, Tensor]:
    """Return the largest logits of a micro-batch, computed as in a run: for scored tokens only, in the same chunks."""
    scored = labels[:, 1:] != IGNORED
    target = output.target(scored, None)
    chunk = tokens_at_once(len(output.head.weight), labels.is_cuda)
    found = []
    for start in range(0, int(scored.sum()), chunk):
        logits, _ = target.logits(slice(start, start + chunk))
        largest, ids = logits.topk(top_k)
        kept = (largest.double() - logits.double().logsumexp(-1, keepdim=True)).exp().sum(-1)
        missing_mass.update((1 - kept).clamp_min(0).cpu())
        found.append((largest, ids.int()))
    shape = *labels.shape, top_k
    values = {_LOGITS: labels.new_zeros(shape, dtype=torch.float32), _IDS: labels.new_zeros(shape, dtype=torch.int32)}
    for name, pieces in zip(values, zip(*found, strict=True), strict=False):
        values[name][:, :-1][scored] = torch.cat(pieces)
    return values
