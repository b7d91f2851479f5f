"""Where a decoder of each family keeps its prunable parts: data, read by importance, surgery and distillation.

Nothing here computes. A llama-like family is one line in FAMILIES.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lit_prune.config import ConfigError

Axes = tuple[str | None, ...]

_LLAMA: dict[str, Axes] = {
    "embed_tokens.weight": (None, "hidden"),
    "q_proj.weight": ("head", "hidden"),
    "k_proj.weight": (None, "hidden"),
    "v_proj.weight": (None, "hidden"),
    "o_proj.weight": ("hidden", "head"),
    "gate_proj.weight": ("neuron", "hidden"),
    "up_proj.weight": ("neuron", "hidden"),
    "down_proj.weight": ("hidden", "neuron"),
    "layernorm.weight": ("hidden",),
    "model.norm.weight": ("hidden",),
    "lm_head.weight": (None, "hidden"),
}
_BIASES: dict[str, Axes] = {
    "q_proj.bias": ("head",), "k_proj.bias": (None,), "v_proj.bias": (None,), "o_proj.bias": ("hidden",),
    "gate_proj.bias": ("neuron",), "up_proj.bias": ("neuron",), "down_proj.bias": ("hidden",),
}  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """One family: the axis that each dimension of each parameter belongs to, and the names of its modules."""

    axes: dict[str, Axes]
    """Parameter name suffix -> axis of each dimension; None is never cut. "head" counts head_dim entries a head."""
    blocks: str = "model.layers"
    final_norm: str = "model.norm"
    input_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    attention_output: str = "self_attn.o_proj"
    """Linear whose input is the heads' outputs, side by side."""
    mlp_output: str = "mlp.down_proj"
    """Linear whose input is the neurons after their activation."""
    whole_heads: bool = False
    """The config demands that hidden_size is a multiple of num_attention_heads."""

    def axes_of(self, name: str) -> Axes:
        """The axis of each dimension of a parameter."""
        for suffix, axes in self.axes.items():
            if name.endswith(suffix):
                return axes
        raise ConfigError(f"teacher.model: parameter {name} is not described in lit_prune/models/anatomy.py")


FAMILIES = {
    "llama": Anatomy(_LLAMA | _BIASES, whole_heads=True),
    "mistral": Anatomy(_LLAMA),
    "qwen2": Anatomy(_LLAMA | _BIASES),
    "qwen3": Anatomy(_LLAMA | _BIASES | {"q_norm.weight": (None,), "k_norm.weight": (None,)}),
}


def anatomy_of(config: Any) -> Anatomy:
    """The anatomy of a Hugging Face config.

    Raises:
        ConfigError: the family has no description.
    """
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"teacher.model: family {config.model_type!r} is not supported; supported are {', '.join(FAMILIES)} "
            "(a llama-like family is one line in lit_prune/models/anatomy.py)"
        )
    return FAMILIES[config.model_type]


def head_dim_of(config: Any) -> int:
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks, first to last."""
    return list(model.get_submodule(anatomy_of(model.config).blocks).children())
