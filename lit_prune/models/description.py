"""What is written down about a family of decoders: the names of its parts, and the axes of its parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_prune.config import ConfigError

Axis = str | tuple[str, ...] | None
"""What the entries of one dimension belong to: "hidden", "neuron", "head" (query heads) or "kv_group", each with as
many entries as the dimension has room for; a tuple is laid end to end; None is never cut."""

Axes = tuple[Axis, ...]
"""The axis of each dimension of a parameter."""


@dataclass(frozen=True)
class ModelFamily:
    """One family: the axis that each dimension of each parameter belongs to, and the names of its parts.

    Modules are named from the model for what it has once, and from the layer for what each layer has.
    """

    axes: dict[str, Axes]
    """Parameter name suffix -> axis of each dimension; the longest suffix that fits counts."""
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    input_norm: str | None = "input_layernorm"
    """Norm whose output the attention reads; None where it reads the residual stream as it is."""
    mlp_norm: str | None = "post_attention_layernorm"
    """Norm whose output the MLP reads; None where it reads the residual stream as it is."""
    attention_input: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    """Linears whose outputs are the queries, the keys and the values, or the one whose output is all three."""
    attention_output: str = "self_attn.o_proj"
    """Linear whose input is the heads' outputs, side by side."""
    mlp: str | None = "mlp"
    """Module whose input the MLP reads; None where its linears lie in the layer itself."""
    mlp_input: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """Linears whose outputs are the neurons before their activation and, in a gated MLP, what these are multiplied by
    after it; or the one whose output is both."""
    activation: str | None = "mlp.act_fn"
    """Module whose input is the neurons before their activation; None where there is no such module."""
    mlp_output: str = "mlp.down_proj"
    """Linear whose input is the neurons after their activation."""
    hidden: tuple[str, ...] = ("hidden_size",)
    """Names in the config of the width of the residual stream; all must be the same number."""
    neurons: str = "intermediate_size"
    """Name in the config of the width of the MLP."""
    whole_heads: bool = False
    """The config demands that hidden_size is a multiple of num_attention_heads."""
    tied_width: bool = False
    """The heads together are as wide as the residual stream: hidden_size is num_attention_heads head widths."""
    norm: Literal["rms", "layer"] = "rms"
    """What the norms of the residual stream are: RMSNorm, or LayerNorm, which subtracts the mean first."""
    norm_offset: float = 0.0
    """What the norms add to their weight before they multiply by it."""
    after_head: tuple[str, Literal["cap", "divide", "multiply"]] | None = None
    """Name in the config of the number by which the logits of the head's linear map are soft-capped, divided or
    multiplied."""
    wide_norms: dict[str, str] = field(default_factory=dict)
    """Norm over all heads together -> linear whose output it normalises."""
    only: dict[str, Any] = field(default_factory=dict)
    """Settings of the config without which a model of the family is built in another way than described."""

    @property
    def query(self) -> str | None:
        """Linear whose output is the queries; None where they are fused with keys and values."""
        return self.attention_input[0] if len(self.attention_input) > 1 else None

    @property
    def gated(self) -> bool:
        """Whether the neurons are multiplied by the output of another linear after their activation."""
        return len(self.mlp_input) > 1 or isinstance(self.axes_of(f"{self.mlp_input[0]}.weight")[0], tuple)

    def axes_of(self, name: str) -> Axes:
        """Return the axis of each dimension of a parameter.

        Raises:
            ConfigError: if it is not described.
        """
        suffixes = [suffix for suffix in self.axes if name.endswith(suffix)]
        if not suffixes:
            raise ConfigError(f"teacher.model: parameter {name} is not described in lit_prune/models/families.py")
        return self.axes[max(suffixes, key=len)]

    def is_linear(self, name: str) -> bool:
        """Return whether a parameter is the matrix of a linear module of a layer.

        Embeddings, the head and norms of single heads have a dimension that is never cut.
        """
        axes = self.axes_of(name)
        return len(axes) == 2 and all(axes)

    def layer_of(self, name: str) -> tuple[int | None, str]:
        """Return the layer that a parameter or module of the model lies in, if any, and its name there."""
        match = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", name)
        return (int(match[1]), match[2]) if match else (None, name)
