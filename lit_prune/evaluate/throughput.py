"""Measure throughput on this machine, which depends on shapes but not on weights or text.

Times a prefill (whole sequences, no gradients, logits of the last token only), or a request: a prefill that keeps
keys and values, then greedy decoding. Models take turns, so that other load slows all of them alike.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_prune.config import ConfigError, ThroughputTest
from lit_prune.evaluate.memory import bytes_of_cache, bytes_of_weights, peak_of
from lit_prune.models.pass_time import seconds_in_turns, token_ids, wait_for
from lit_prune.models.positions import positions_of
from lit_prune.models.random_weights import random_model


@dataclass(frozen=True)
class Throughput:
    """Speed of one model: median and spread over the repeats."""

    tokens_per_second: float
    """Median."""
    iqr: float
    """Interquartile range, tokens/s."""


@dataclass(frozen=True)
class Speedup:
    """Throughputs of a student and its teacher, measured in turns."""

    student: Throughput
    teacher: Throughput

    @property
    def ratio(self) -> float:
        """Throughput of the student divided by the teacher's."""
        return self.student.tokens_per_second / self.teacher.tokens_per_second


def throughput(model: Any, batch: int, seq_len: int, repeats: int = 9) -> Throughput:
    """Return the throughput of a causal language model on [batch, seq_len] tokens: `repeats` passes after a warm-up.

    Raises:
        ConfigError: if a number is < 1, or `seq_len` exceeds the model's positions.
    """
    return _measured([model], batch, seq_len, repeats)[0]


def speedup(model: Any, teacher: Any, batch: int, seq_len: int, repeats: int = 9) -> Speedup:
    """Return the throughputs of a model and its teacher; passes alternate, so that other load slows both alike.

    Raises:
        ConfigError: as `throughput`.
    """
    return Speedup(*_measured([model, teacher], batch, seq_len, repeats))


@dataclass(frozen=True)
class Served:
    """Speed and memory of serving a request with one model."""

    prefill: Throughput
    """Prompt tokens per second."""
    decode: Throughput
    """New tokens per second, without the first, which the prefill yields."""
    whole: Throughput
    """New tokens per second of the whole request."""
    weights: int
    """Bytes of the weights."""
    cache: int
    """Bytes of keys and values at the end of the request."""
    peak: int
    """Peak bytes: weights, keys and values, and activations."""


class Reply(NamedTuple):
    """New tokens [batch, new], and the seconds of prefill and decoding."""

    tokens: Tensor
    prefill: float
    decode: float


def compare_requests(
    student: Any,
    teacher: Any,
    speed: ThroughputTest,
    device: torch.device,
    on_progress: Callable[[int], None] = lambda rounds: None,
) -> dict[str, Any]:
    """Serve requests in turns with models of two configs and random weights.

    Returns `speedups`; `memory_share`, the student's peak over the teacher's; and under `serving` a `Served` of each.
    `on_progress` is called with the number of finished rounds.

    Raises:
        ConfigError: if the request exceeds the positions of a model.
    """
    for config in (student, teacher):
        check_positions(speed, config)
    dtype = torch.bfloat16 if speed.precision == "bf16-true" else torch.float32
    models = [random_model(config, device, dtype) for config in (student, teacher)]
    ids = token_ids(models[0], speed.batch_size, speed.prompt_len)
    memory = [memory_of_request(model, ids, speed.max_new_tokens) for model in models]
    ours, theirs = replies_in_turns(models, ids, speed, on_progress)
    served = [
        _served(replies, speed, bytes_of_weights(model), cache, peak)
        for replies, model, (cache, peak) in zip((ours, theirs), models, memory, strict=True)
    ]
    return {
        **speedups(ours, theirs),
        "memory_share": served[0].peak / served[1].peak,
        "serving": {name: dataclasses.asdict(one) for name, one in zip(("student", "teacher"), served, strict=True)},
    }


def replies_in_turns(
    models: Sequence[Any], ids: Tensor, speed: ThroughputTest, on_progress: Callable[[int], None] = lambda rounds: None
) -> list[list[Reply]]:
    """Return the replies of each model to the same prompts, without the first, a warm-up.

    Every other round reverses the order of the models, so that none always follows another.
    """
    rounds = []
    for number in range(speed.num_repeats + 1):
        order = models if number % 2 else models[::-1]
        replies = [serve(model, ids, speed.max_new_tokens) for model in order]
        rounds.append(replies if number % 2 else replies[::-1])
        on_progress(number)
    return [list(replies) for replies in zip(*rounds[1:], strict=True)]


def speedups(student: Sequence[Reply], teacher: Sequence[Reply]) -> dict[str, float]:
    """Return the median ratio of teacher's to student's seconds: whole request, prefill and decoding."""
    pairs = list(zip(student, teacher, strict=True))
    return {
        "speedup": statistics.median((t.prefill + t.decode) / (s.prefill + s.decode) for s, t in pairs),
        "prefill_speedup": statistics.median(t.prefill / s.prefill for s, t in pairs),
        "decode_speedup": statistics.median(t.decode / s.decode for s, t in pairs),
    }


def check_positions(speed: ThroughputTest, config: Any) -> None:
    """Check that a request fits the positions of a model with this config.

    Raises:
        ConfigError: if it does not.
    """
    positions = positions_of(config)
    if positions is not None and speed.prompt_len + speed.max_new_tokens > positions:
        raise ConfigError(
            f"evaluation.throughput: prompt and new are {speed.prompt_len} + {speed.max_new_tokens} tokens, the "
            f"model has {positions} "
            "positions"
        )


@torch.inference_mode()
def serve(model: Any, ids: Tensor, num_new: int) -> Reply:
    """Read prompts [batch, prompt] and continue each greedily by `num_new` tokens, keeping keys and values."""
    start = _now(ids.device)
    token, cache = _read(model, ids)
    tokens, read = [token], _now(ids.device)
    for _ in range(num_new - 1):
        tokens.append(_next(model, tokens[-1], cache))
    return Reply(torch.cat(tokens, 1), read - start, _now(ids.device) - read)


@torch.inference_mode()
def memory_of_request(model: Any, ids: Tensor, num_new: int) -> tuple[int, int]:
    """Return the bytes of keys and values at the end of a request, and its peak bytes, weights included.

    The peak is at the prefill or at the last token, when the cache is largest.
    """
    reading = peak_of(lambda: _read(model, ids), ids.device)
    token, cache = _read(model, ids)
    for _ in range(num_new - 2):
        token = _next(model, token, cache)
    # On a copy: a release counts only if its allocation was in the same call.
    last = peak_of(lambda: _next(model, token, copy.deepcopy(cache)), ids.device)
    _next(model, token, cache)
    return bytes_of_cache(cache), bytes_of_weights(model) + max(reading, last)


def _measured(models: Sequence[Any], batch: int, seq_len: int, repeats: int) -> list[Throughput]:
    for name, number in (("batch", batch), ("seq_len", seq_len), ("repeats", repeats)):
        if number < 1:
            raise ConfigError(f"throughput: {name}: must be >= 1, got {number}")
    for model in models:
        positions = getattr(model.config, "max_position_embeddings", None) or seq_len
        if seq_len > positions:
            raise ConfigError(f"throughput: seq_len: must be <= {positions}, the positions of the model, got {seq_len}")
    seconds = seconds_in_turns(models, batch, seq_len, repeats)
    return [_summary([batch * seq_len / s for s in ours]) for ours in zip(*seconds, strict=True)]


def _read(model: Any, ids: Tensor) -> tuple[Tensor, Any]:
    """Return the most likely next tokens [batch, 1] after prompts, and the cache of keys and values."""
    found = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    return found.logits.argmax(-1), found.past_key_values


def _next(model: Any, token: Tensor, cache: Any) -> Tensor:
    """Return the most likely tokens [batch, 1] after `token` [batch, 1], and add its keys and values to the cache."""
    return model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)


def _now(device: torch.device) -> float:
    """Return the time in seconds after synchronising the device."""
    wait_for(device)
    return time.perf_counter()


def _served(replies: Sequence[Reply], speed: ThroughputTest, weights: int, cache: int, peak: int) -> Served:
    read, new = speed.batch_size * speed.prompt_len, speed.batch_size * speed.max_new_tokens
    return Served(
        prefill=_summary([read / reply.prefill for reply in replies]),
        decode=_summary([(new - speed.batch_size) / reply.decode for reply in replies]),
        whole=_summary([new / (reply.prefill + reply.decode) for reply in replies]),
        weights=weights, cache=cache, peak=peak,
    )  # fmt: skip


def _summary(speeds: Sequence[float]) -> Throughput:
    if len(speeds) == 1:
        return Throughput(speeds[0], 0.0)
    low, median, high = statistics.quantiles(speeds, n=4, method="inclusive")
    return Throughput(median, high - low)
