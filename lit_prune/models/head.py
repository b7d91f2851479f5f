"""How a causal language model turns its last states into logits: a linear map, and in some families a step behind it.

With this, whoever reads logits can make those of a few tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_prune.models.anatomy import anatomy_of

Finish = Callable[[Tensor], Tensor]
"""What follows the linear map, logits [..., vocab] -> [..., vocab]."""


@dataclass(frozen=True)
class Head:
    """The map from last states to logits."""

    weight: Tensor
    """[vocab, width]; may be the embedding."""
    bias: Tensor | None = None
    """[vocab]."""
    finish: Finish | None = None

    def linear(self, states: Tensor) -> Tensor:
        """What the linear map gives: [..., width] -> [..., vocab]."""
        return F.linear(states, self.weight, self.bias)

    def logits(self, states: Tensor) -> Tensor:
        """The model's logits of last states: [..., width] -> [..., vocab]."""
        linear = self.linear(states)
        return linear if self.finish is None else self.finish(linear)

    def cast(self) -> Head:
        """The head in the dtype that autocast, where it is on, computes in: cast once for many calls."""
        kind = self.weight.device.type
        if not torch.is_autocast_enabled(kind):
            return self
        dtype = torch.get_autocast_dtype(kind)
        return replace(self, weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))


def head_of(model: Any) -> Head:
    """The head of a causal language model.

    Raises:
        ConfigError: its family is not supported.
    """
    anatomy_of(model.config)
    linear = model.get_output_embeddings()
    return Head(linear.weight, linear.bias, _finish_of(model.config))


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
    """The states that the head reads: token ids int64 [batch, seq] -> [batch, seq, width]."""
    states = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
    assert isinstance(states, Tensor)
    return states
