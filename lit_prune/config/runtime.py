"""How a run is carried out: flags that change neither a result nor its address. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from lit_prune.config.fields import Count, Natural, NonNegative


@dataclass(frozen=True)
class Execution:
    """How runs are carried out."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Where models run; auto takes a GPU where there is one."""
    grad_accum_steps: Count | None = None
    """Micro-batches a step is cut into; None: as few as keep the logits of one under a GiB. The step is the same to
    rounding. With more than one, alpha "dynamic" and ce_weight "balanced" each cost a second backward pass of the
    student and one more gradient in memory."""
    num_workers: Natural = 0
    """Processes that load data."""
    checkpoint_seconds: NonNegative = 30.0
    """Time between checkpoints: the most that an interruption costs."""
    log_every: Count = 10
    """Steps between rows of metrics.csv."""
    cache_teacher: bool = True
    """Cache teacher outputs on disk where two or more missing cells need the same ones and the disk has room. Results
    are bit for bit the same in float32. The cache is removed when its cells are computed."""
    keep_teacher_cache: bool = False
    """Keep the cache for later runs over the same data, and write one for a single cell too. It holds the states that
    the output head reads, the hidden states that are compared, or the logits of distill.top_k."""
    compile: bool = False
    """Compile the student's layers where no intermediate states are compared, which takes a minute or so for each
    shape: for long runs. Results agree to rounding."""
    cpu: Literal["auto", "plain"] = "plain" if os.environ.get("LIT_PRUNE_CPU") == "plain" else "auto"
    """On a processor: auto probes for the fastest attention and matrix products, keeps freed memory, and takes idle
    cores only; plain is PyTorch as it is. Results agree to rounding; env.json says what was used."""
    threads: Count | None = None
    """Threads of a process on a processor; None: one for each idle core."""
