"""How a run is carried out: flags that change neither a result nor its address. No torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from lit_prune.config.fields import Count, Natural, NonNegative


@dataclass(frozen=True)
class Placement:
    """Where the cells of a table are computed."""

    on: Literal["here", "local", "ray", "slurm"] = "here"
    """here computes in this process; local starts worker processes on this machine, each with one GPU or its share of
    the cores; ray runs the cells as tasks of a Ray cluster (extra ray); slurm submits them as array jobs (extra
    slurm)."""
    jobs: Count | None = None
    """Cells that are computed at a time; alone it implies --on local. Default with local: one per GPU, or one per four
    cores; with ray and slurm: as many as the cluster has room for."""
    cpus: Count = 4
    """ray and slurm: cores of a cell, and its threads unless --threads is given."""
    gpus: Natural | None = None
    """ray and slurm: GPUs of a cell. Default: --devices if the Ray cluster has GPUs, or with --accelerator gpu, else
    0."""
    address: str | None = None
    """ray only: address of the cluster; auto is the one of which this machine is a node. Default: RAY_ADDRESS, else a
    cluster of this machine alone, which the command starts."""
    minutes: Count = 240
    """slurm only: time limit of a job. A job that reaches it is requeued and resumes."""
    slurm: tuple[str, ...] = ()
    """slurm only: OPTION=VALUE of sbatch, e.g. partition=gpu or constraint=h100; may be given several times."""

    @property
    def workers(self) -> bool:
        """Whether other processes compute the cells."""
        return self.on != "here" or self.jobs is not None


OF_CLUSTERS = {
    "cpus": ("ray", "slurm"), "gpus": ("ray", "slurm"), "address": ("ray",), "minutes": ("slurm",), "slurm": ("slurm",),
}  # fmt: skip
"""Field of `Placement` -> places where it has an effect."""


@dataclass(frozen=True)
class Execution:
    """How runs are carried out."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Device of the models; auto uses a GPU if there is one."""
    devices: Count = 1
    """GPUs of one machine, or processes on a CPU, that calibrate and train a model together. They divide the sequences
    equally. Results agree up to rounding, without dropout. With more than one, teacher outputs are not cached."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several devices hold the models that train: ddp keeps a copy on each; fsdp (FSDP2) divides weights,
    gradients and optimizer state by the number of devices. Results agree up to rounding."""
    grad_accum_steps: Count | None = None
    """Micro-batches per step; default: the fewest whose activations stay below about 1 GiB on a CPU, or a quarter of
    the memory of a GPU. Results agree up to rounding. With more than one, alpha "dynamic" and ce_weight "balanced"
    each cost a second backward pass of the student and one more gradient in memory."""
    activation_checkpointing: bool = False
    """Keep only the inputs of the layers for the backward pass and compute the rest again, which takes another forward
    pass of the trained model. Results are the same."""
    num_workers: Natural = 0
    """Processes that load data."""
    checkpoint_seconds: NonNegative = 30.0
    """Seconds between checkpoints, which is the most work that an interruption loses."""
    log_every: Count = 10
    """Steps between rows of metrics.csv."""
    cache_teacher: bool = True
    """Cache teacher outputs on disk if two or more missing cells need the same ones and the disk has space. In float32
    the results are the same bit for bit. The cache is removed when its cells are computed."""
    keep_teacher_cache: bool = False
    """Keep the cache for later runs over the same data, and write one for a single cell too. It holds the input of the
    output head and the hidden states that are compared, or the logits of distill.top_k."""
    compile: bool = False
    """Compile the student's layers with torch.compile if no hidden states are compared. Compiling takes about a minute
    per shape, so it pays for long runs only. Results agree up to rounding."""
    cpu: Literal["auto", "plain"] = "plain" if os.environ.get("LIT_PRUNE_CPU") == "plain" else "auto"
    """CPU optimisations: auto probes for the fastest attention and matrix products, keeps freed memory, and uses idle
    cores only; plain turns all of them off. Results agree up to rounding; env.json says what was used."""
    threads: Count | None = None
    """Threads of the process on a CPU; default: one per idle core."""
