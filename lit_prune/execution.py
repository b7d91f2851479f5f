"""How a run is carried out: flags that change neither a result nor its address. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """How runs are carried out."""

    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    accumulate: int | None = None
    """Micro-batches a step is cut into; None: as few as keep the logits of one under a GiB."""
    workers: int = 0
    """Processes that load data."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints: the most that an interruption costs."""
    log_every: int = 10
    """Steps between rows of metrics.csv."""


def share_the_machine() -> None:
    """Let threads that wait for each other sleep early; must come before torch is imported.

    OpenMP's threads spin by default. With one busy neighbour on two cores that made a distillation step 2.6 to 4.6
    times slower here than with this setting; on a quiet machine the two could not be told apart.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
