"""How a run is carried out: flags that change neither a result nor its address. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Execution:
    """How runs are carried out."""

    accelerator: str = "auto"
    """Lightning's accelerator: auto, cpu, gpu."""
    devices: str = "auto"
    """Number of devices, or auto for all; several train data-parallel."""
    accumulate: int | None = None
    """Micro-batches a step is cut into; None: as few as keep the logits of one under a GiB."""
    workers: int = 0
    """Processes that load data."""
    checkpoint_seconds: float = 30.0
    """Time between checkpoints: the most that an interruption costs."""
    log_every: int = 10
    """Steps between rows of metrics.csv."""
