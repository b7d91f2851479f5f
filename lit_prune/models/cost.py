"""What training costs in FLOPs, from Hugging Face configs alone: no weight is made.

A multiplication and the addition that goes with it are two. Norms, activation functions, softmax, losses and the
optimizer's arithmetic are left out: they are lost beside the products of matrices.
"""

from __future__ import annotations

from typing import Any

from lit_prune.models.anatomy import anatomy_of, head_dim_of
from lit_prune.models.shape import meta_model

BACKWARD = 2
"""Backward over forward: each product has the gradients of both its factors to give."""


def num_multiplied(config: Any) -> int:
    """Parameters that every token is multiplied by: all matrices but those looked up, and the head, tied or not."""
    anatomy = anatomy_of(config)
    inside = sum(p.numel() for name, p in meta_model(config).named_parameters() if anatomy.is_linear(name))
    return inside + config.vocab_size * config.hidden_size


def forward_flops(config: Any, block: int, *, causal: bool = True) -> float:
    """FLOPs a token of a forward pass over sequences of `block` tokens, the head included.

    Attention counts the positions a token may look at; without `causal` it counts masked ones too, as kernels that
    skip nothing do (see `minitron_step`).
    """
    layers, own = range(config.num_hidden_layers), config.is_heterogeneous
    heads = [(config.per_layer_config[i] if own else config).num_attention_heads for i in layers]
    seen = [_attended(block, window, causal) for window in _windows(config)]
    attention = sum(4 * n * head_dim_of(config) * positions for n, positions in zip(heads, seen, strict=True))
    return 2 * num_multiplied(config) + attention


def training_flops(student: Any, block: int, teacher: Any = None, *, causal: bool = True) -> float:
    """FLOPs a token of training a student, and of its teacher's forward pass where it has one."""
    own = (1 + BACKWARD) * forward_flops(student, block, causal=causal)
    return own if teacher is None else own + forward_flops(teacher, block, causal=causal)


def minitron_step(student: Any, teacher: Any = None, *, batch: int = 1152, block: int = 4096) -> float:
    """FLOPs of an optimizer step as the paper counts them: attention to masked positions included (Minitron, 4.1)."""
    return batch * block * training_flops(student, block, teacher, causal=False)


def _windows(config: Any) -> list[int | None]:
    """Positions each block's attention reaches back over; None is all of them."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in types]


def _attended(block: int, window: int | None, causal: bool) -> float:
    """Positions a token attends to, itself included, in the mean over a sequence."""
    reach = min(window or block, block)
    return (reach * (reach + 1) / 2 + (block - reach) * reach) / block if causal else reach
