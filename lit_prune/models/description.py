"""The format in which families of decoders are described: names of their parts and axes of their parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from lit_prune.config import ConfigError

Axis = str | tuple[str, ...] | None
"""The units along one dimension: "hidden", "neuron", "head" (query heads) or "kv_group". Each unit has an equal number
of entries; a tuple means axes laid end to end; None means a dimension that is never cut, and so does "rank", the one
between the factors of a linear."""

TRANSFORMED = "lit_prune_"
"""Prefix of the model types that `lit_prune.models.transformed` registers; the family's own type follows."""

Axes = tuple[Axis, ...]
"""The axis of each dimension of a parameter."""


@dataclass(frozen=True)
class ModelFamily:
    """Description of a family: the axis of each dimension of each parameter, and the names of its parts.

    Module names are relative to the model for parts that exist once, and relative to the layer for parts of a layer.
    """

    axes: dict[str, Axes]
    """Parameter name suffix -> axis of each dimension; the longest matching suffix counts."""
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    input_norm: str | None = "input_layernorm"
    """Norm whose output the attention reads; None if it reads the residual stream directly."""
    mlp_norm: str | None = "post_attention_layernorm"
    """Norm whose output the MLP reads; None if it reads the residual stream directly."""
    attention_input: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    """Linears of the queries, keys and values, in this order, or the one fused linear."""
    attention_output: str = "self_attn.o_proj"
    """Linear whose input is the concatenated outputs of the heads."""
    mlp: str | None = "mlp"
    """The MLP module; None if its linears are direct children of the layer."""
    mlp_input: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    """Linears of the neurons before their activation and, in a gated MLP, of the factors that multiply them after it;
    or the one fused linear."""
    activation: str | None = "mlp.act_fn"
    """Module that applies the activation function to the neurons; None if the family has no such module."""
    mlp_output: str = "mlp.down_proj"
    """Linear whose input is the neurons after their activation."""
    hidden: tuple[str, ...] = ("hidden_size",)
    """Config fields with the width of the residual stream; all must be equal."""
    neurons: str = "intermediate_size"
    """Config field with the width of the MLP."""
    whole_heads: bool = False
    """Whether the config requires hidden_size to be a multiple of num_attention_heads."""
    tied_width: bool = False
    """Whether hidden_size must equal num_attention_heads times the head width."""
    norm: Literal["rms", "layer"] = "rms"
    """Kind of the norms of the residual stream: RMSNorm, or LayerNorm, which subtracts the mean first."""
    norm_offset: float = 0.0
    """Constant that the norms add to their weight before they multiply by it."""
    after_head: tuple[str, Literal["cap", "divide", "multiply"]] | None = None
    """Config field with the number by which the logits are soft-capped, divided or multiplied, and which of these."""
    wide_norms: dict[str, str] = field(default_factory=dict)
    """Norm over all heads jointly -> linear whose output it normalises."""
    only: dict[str, Any] = field(default_factory=dict)
    """Config fields with the values they must have; with others, models differ from the description."""

    @property
    def query(self) -> str | None:
        """Linear of the queries; None if it is fused with keys and values."""
        return self.attention_input[0] if len(self.attention_input) > 1 else None

    @property
    def sublayers(self) -> dict[str, tuple[str, ...]]:
        """The sub-layers of a layer, by the names that `skip` of transformers' `per_layer_config` has for them.

        Each has the names of its modules and of the norm that it alone reads.
        """
        own = self.input_norm != self.mlp_norm
        mlp = (self.mlp,) if self.mlp else (*self.mlp_input, self.mlp_output)
        attention = (self.attention_output.rpartition(".")[0],)
        parts = {"attention": (attention, self.input_norm), "mlp": (mlp, self.mlp_norm)}
        return {kind: (*modules, *((norm,) if own and norm else ())) for kind, (modules, norm) in parts.items()}

    def sublayer_of(self, name: str) -> str | None:
        """Return the sub-layer of a parameter by its name relative to the layer; None if it is in none of them."""
        found = (kind for kind, parts in self.sublayers.items() if name.startswith(tuple(f"{part}." for part in parts)))
        return next(found, None)

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
        """Return whether a parameter is the weight matrix of a linear module in a layer.

        Embeddings, the head and norms of single heads have a dimension that is never cut.
        """
        axes = self.axes_of(name)
        return len(axes) == 2 and all(axes)

    def layer_of(self, name: str) -> tuple[int | None, str]:
        """Return the layer index of a parameter or module, None outside layers, and its name relative to the layer."""
        match = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", name)
        return (int(match[1]), match[2]) if match else (None, name)
