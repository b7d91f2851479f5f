"""The language-model head: the map from last hidden states to logits, usable for a few tokens at a time.

The map is linear; in some families a scale or soft cap follows.

The logits are float32 even if the weights or autocast are bfloat16, whereas the model itself then rounds them to
bfloat16. A distillation gradient is a difference of two probabilities, and rounded logits make its error about three
times as large, more so as student and teacher come closer. A GPU multiplies bfloat16 factors with a float32 output; a
CPU, for which PyTorch has no such product, multiplies float32 factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.models.model_family import anatomy_of

Finish = Callable[[Tensor], Tensor]
"""The step after the linear map, logits [..., vocab] -> [..., vocab]."""


@dataclass(frozen=True)
class LMHead:
    """The map from last states to logits."""

    weight: Tensor
    """[vocab, width]; may be the embedding."""
    bias: Tensor | None = None
    """[vocab]."""
    finish: Finish | None = None

    def linear(self, states: Tensor) -> Tensor:
        """Return the product of states with the weight, plus the bias: [..., width] -> [..., vocab].

        The product is float32 even if the weight or autocast is bfloat16 or float16.
        """
        head = self.cast()
        with torch.autocast(head.weight.device.type, enabled=False):
            return _product(states.to(head.weight.dtype), head.weight, head.bias)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of last states, [..., width] -> [..., vocab], at least float32: see `linear`."""
        linear = self.linear(states)
        return linear if self.finish is None else self.finish(linear)

    def cast(self) -> LMHead:
        """Return the head in the dtype of the factors of its products, to cast once for many calls."""
        dtype = self.weight.dtype
        if not self.weight.is_cuda:
            dtype = torch.promote_types(dtype, torch.float32)
        elif torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
        if dtype == self.weight.dtype:
            return self
        return replace(self, weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))


def _product(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dtype not in (torch.bfloat16, torch.float16):
        return F.linear(states, weight, bias)
    if torch.is_grad_enabled():  # `out_dtype` has no backward
        return F.linear(states.float(), weight.float(), None if bias is None else bias.float())
    flat = torch.mm(states.flatten(0, -2), weight.t(), out_dtype=torch.float32)
    product = flat.unflatten(0, states.shape[:-1])
    return product if bias is None else product.add_(bias)


def head_of(model: Any) -> LMHead:
    """Return the head of a causal language model.

    Raises:
        ConfigError: if its family is not supported.
    """
    anatomy_of(model.config)
    linear = model.get_output_embeddings()
    return LMHead(linear.weight, linear.bias, _finish_of(model.config))


def _finish_of(config: Any) -> Finish | None:
    step = anatomy_of(config).after_head
    if step is None:
        return None
    name, kind = step
    value = getattr(config, name)
    return None if value is None or (value == 1 and kind != "cap") else partial(_STEPS[kind], value=value)


def _soften(logits: Tensor, value: float) -> Tensor:
    return torch.tanh(logits / value) * value


def _scale_down(logits: Tensor, value: float) -> Tensor:
    return logits / value


def _scale_up(logits: Tensor, value: float) -> Tensor:
    return logits * value


_STEPS = {"cap": _soften, "divide": _scale_down, "multiply": _scale_up}


def last_states(model: Any, input_ids: Tensor) -> Tensor:
    """Return the states that the head reads: token ids int64 [batch, seq] -> [batch, seq, width]."""
    states = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    assert isinstance(states, Tensor)
    return states
