"""Time forward passes of models, which depend on shapes but not on weights or text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def seconds_in_turns(models: Sequence[Any], batch: int, seq_len: int, repeats: int) -> list[list[float]]:
    """Return the seconds of a pass of each model over [batch, seq_len] tokens, for each of `repeats` rounds.

    The logits are those of the last token; keys and values are not kept. Each model first runs once unmeasured.
    """
    passes = [_pass_of(model, token_ids(model, batch, seq_len)) for model in models]
    for run in passes:
        run()
    return [[_seconds(run) for run in passes] for _ in range(repeats)]


def token_ids(model: Any, batch: int, length: int) -> Tensor:
    """Return tokens [batch, length] on the model's device."""
    device = next(model.parameters()).device
    return (torch.arange(batch * length, device=device) % model.config.vocab_size).view(batch, length)


def wait_for(device: torch.device) -> None:
    """Return once all work on a device is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _pass_of(model: Any, ids: Tensor) -> Callable[[], None]:
    """Return a function that runs one forward pass and waits for it to finish."""

    @torch.inference_mode()
    def run() -> None:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
        wait_for(ids.device)

    return run


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
