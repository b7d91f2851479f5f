"""One measured run: its job, its data in a fixed order, its clocks and its memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lit_prune.data.retraining import SeededOrder
from lit_prune.data.tokens import TokenSequences

SEED = 0


@dataclass(frozen=True)
class Job:
    """The run of one process."""

    trainer: str
    """One of `TRAINERS`."""
    folder: str
    """Folder with teacher/ and student/ in Hugging Face layout, and tokens/."""
    switches: bool
    """Whether the process uses the CPU optimisations of lit_prune's commands; a peer only those outside the model, the
    allocator and the matmul library."""
    precision: str
    """32-true or bf16-mixed."""
    threads: int
    seq_len: int
    batch: int
    steps: int


@dataclass(frozen=True)
class Run:
    """The measurements of one process."""

    seconds: list[float]
    """Wall time of every step but the first."""
    cpu_seconds: list[float]
    """CPU time of all threads in every step but the first."""
    faults: float
    """Minor page faults per step."""
    losses: list[float]
    before: float
    """Resident MiB after loading both models."""
    peak: float
    """Peak resident MiB."""
    switched: dict[str, Any]
    """Effect of each optimisation of the process."""


class Meter:
    """Records clocks, page faults and the loss at the end of every step."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float, int]] = []
        self.losses: list[Tensor] = []

    def step(self, loss: Tensor) -> None:
        """Record the end of an optimizer step and its loss."""
        self.losses.append(loss.detach().clone())
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        self.marks.append((time.perf_counter(), time.process_time(), faults))

    def found(self, before: float, switched: dict[str, Any]) -> Run:
        """Return all measurements."""
        steps = list(zip(self.marks, self.marks[1:], strict=False))
        return Run(
            seconds=[b[0] - a[0] for a, b in steps],
            cpu_seconds=[b[1] - a[1] for a, b in steps],
            faults=sum(b[2] - a[2] for a, b in steps) / len(steps),
            losses=[loss.item() for loss in self.losses],
            before=before,
            peak=resident("VmHWM"),
            switched=switched,
        )


class InOrder(Dataset[dict[str, Tensor]]):
    """The sequences of a run in the order of lit_prune's training."""

    def __init__(self, job: Job) -> None:
        self.sequences = TokenSequences(Path(job.folder) / "tokens", "train", job.seq_len)
        self.order = list(SeededOrder(len(self.sequences), job.batch * job.steps, SEED))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.sequences[self.order[index]]


def resident(which: str) -> float:
    """Return a memory field of /proc/self/status in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(which))
