"""Throughput of forward passes on this machine. Weights and text do not matter to it, shapes do.

What is timed is a prefill: whole sequences, no gradients, logits of the last token only.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_prune.config import ConfigError


@dataclass(frozen=True)
class Throughput:
    """Speed of one model: the median over the repeats, and their spread."""

    tokens_per_second: float
    """Median."""
    iqr: float
    """Distance between the quartiles, tokens/s."""


@dataclass(frozen=True)
class Speedup:
    """A student's throughput beside its teacher's, measured in turns."""

    student: Throughput
    teacher: Throughput

    @property
    def ratio(self) -> float:
        """How many times as fast as the teacher the student is."""
        return self.student.tokens_per_second / self.teacher.tokens_per_second


def throughput(model: Any, batch: int, block: int, repeats: int = 9) -> Throughput:
    """Throughput of a causal language model on [batch, block] tokens, over `repeats` passes after one of warm-up.

    Raises:
        ConfigError: less than one of something, or more tokens than the model has positions.
    """
    return _measured([model], batch, block, repeats)[0]


def speedup(model: Any, teacher: Any, batch: int, block: int, repeats: int = 9) -> Speedup:
    """Throughput of a model and of its teacher, pass by pass in turns, so that what slows the machine slows both.

    Raises:
        ConfigError: as `throughput`.
    """
    return Speedup(*_measured([model, teacher], batch, block, repeats))


def random_model(config: Any, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """A model of a Hugging Face config with random weights, made where it shall run.

    The caller's random state stays as it is.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(), torch.device(device):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()


def _measured(models: Sequence[Any], batch: int, block: int, repeats: int) -> list[Throughput]:
    for name, number in (("batch", batch), ("block", block), ("repeats", repeats)):
        if number < 1:
            raise ConfigError(f"throughput: {name}: {number} asked for, at least 1 is needed")
    passes = [_pass_of(model, batch, block) for model in models]
    for run in passes:
        run()
    seconds = [[_seconds(run) for run in passes] for _ in range(repeats)]
    return [_summary([batch * block / s for s in ours]) for ours in zip(*seconds, strict=True)]


def _pass_of(model: Any, batch: int, block: int) -> Callable[[], None]:
    """A forward pass of a model that returns once it is computed."""
    positions = getattr(model.config, "max_position_embeddings", None) or block
    if block > positions:
        raise ConfigError(f"throughput: block: {block} tokens asked for, the model has {positions} positions")
    device = next(model.parameters()).device
    ids = (torch.arange(batch * block, device=device) % model.config.vocab_size).view(batch, block)

    @torch.inference_mode()
    def run() -> None:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return run


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _summary(speeds: Sequence[float]) -> Throughput:
    if len(speeds) == 1:
        return Throughput(speeds[0], 0.0)
    low, median, high = statistics.quantiles(speeds, n=4, method="inclusive")
    return Throughput(median, high - low)
