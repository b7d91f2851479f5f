"""The number of micro-batches of an optimizer step, so that the activations of one fit in memory."""

from __future__ import annotations

from typing import Any

import torch

from lit_prune.config import Distill, Execution, resolve_precision
from lit_prune.models.model_family import anatomy_of
from lit_prune.models.shape import parameter_shapes
from lit_prune.parallel.group import world_size

_ACTIVATIONS = 2**30
"""Bytes of activations of a micro-batch on a CPU, at most."""
SHARE_OF_GPU = 0.25
"""Share of a GPU's memory that they may take."""


def micro_batches(distill: Distill, config: Any, execution: Execution) -> int:
    """Return the requested number of micro-batches of each rank, else the smallest whose activations fit in memory.

    `config` is that of the imitated model, or of the student if it imitates none: students are smaller, and all that
    imitate the same model read its cached outputs in the same parts.
    """
    if execution.grad_accum_steps:
        return execution.grad_accum_steps
    return fewest(distill, config, _room(execution), world_size(), execution.activation_checkpointing)


def fewest(distill: Distill, config: Any, num_bytes: float, devices: int, checkpointing: bool = False) -> int:
    """Return the smallest number of micro-batches of each device whose activations fit in so many bytes."""
    size = distill.seq_len * activation_bytes(config, resolve_precision(distill.precision), checkpointing)
    room, ours = max(1, int(num_bytes // size)), distill.batch_size // devices
    return next(n for n in range(1, ours + 1) if ours % n == 0 and ours // n <= room)


def activation_bytes(config: Any, precision: str, checkpointing: bool = False) -> int:
    """Estimate the bytes per token that the layers of a model keep for the backward pass.

    Each matrix keeps about its input and its output: half of them in two bytes with mixed precision, all in four
    otherwise. With `checkpointing` only the inputs of the layers are kept, and the rest for one layer at a time.
    """
    layers = f"{anatomy_of(config).layers}."
    shapes = [shape for name, shape in parameter_shapes(config).items() if name.startswith(layers) and len(shape) > 1]
    kept = sum(map(sum, shapes)) * (4 if precision == "32-true" else 3)
    if not checkpointing:
        return kept
    num_layers = config.num_hidden_layers
    return 4 * num_layers * config.hidden_size + kept // num_layers


def _room(execution: Execution) -> float:
    if execution.accelerator == "cpu" or not torch.cuda.is_available():
        return _ACTIVATIONS
    return SHARE_OF_GPU * torch.cuda.get_device_properties(0).total_memory
