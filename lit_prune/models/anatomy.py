"""Where a decoder of each family keeps its prunable parts: data, read by importance, surgery and distillation.

Nothing here computes. A family built like Llama is one line in FAMILIES.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from lit_prune.config import ConfigError

Axis = str | tuple[str, ...] | None
"""What the entries of one dimension belong to: "hidden", "neuron", "head" (query heads) or "kv_group", each with as
many entries as the dimension has room for; a tuple is laid end to end; None is never cut."""

Axes = tuple[Axis, ...]
"""The axis of each dimension of a parameter."""

_LLAMA: dict[str, Axes] = {
    "embed_tokens.weight": (None, "hidden"),
    "q_proj.weight": ("head", "hidden"),
    "k_proj.weight": ("kv_group", "hidden"),
    "v_proj.weight": ("kv_group", "hidden"),
    "o_proj.weight": ("hidden", "head"),
    "gate_proj.weight": ("neuron", "hidden"),
    "up_proj.weight": ("neuron", "hidden"),
    "down_proj.weight": ("hidden", "neuron"),
    "layernorm.weight": ("hidden",),
    "model.norm.weight": ("hidden",),
    "lm_head.weight": (None, "hidden"),
}
_BIASES: dict[str, Axes] = {
    "q_proj.bias": ("head",), "k_proj.bias": ("kv_group",), "v_proj.bias": ("kv_group",), "o_proj.bias": ("hidden",),
    "gate_proj.bias": ("neuron",), "up_proj.bias": ("neuron",), "down_proj.bias": ("hidden",),
}  # fmt: skip
_HEAD_NORMS: dict[str, Axes] = {"q_norm.weight": (None,), "k_norm.weight": (None,)}
_WIDE_NORMS: dict[str, Axes] = {"q_norm.weight": ("head",), "k_norm.weight": ("kv_group",)}
_LAYER_NORM_BIASES: dict[str, Axes] = {"layernorm.bias": ("hidden",), "model.norm.bias": ("hidden",)}
_FUSED: dict[str, Axes] = {
    "qkv_proj.weight": (("head", "kv_group", "kv_group"), "hidden"),
    "gate_up_proj.weight": (("neuron", "neuron"), "hidden"),
}
_PHI: dict[str, Axes] = {
    "self_attn.dense.weight": ("hidden", "head"), "self_attn.dense.bias": ("hidden",),
    "fc1.weight": ("neuron", "hidden"), "fc1.bias": ("neuron",),
    "fc2.weight": ("hidden", "neuron"), "fc2.bias": ("hidden",),
    "lm_head.bias": (None,),
}  # fmt: skip
_GPT_NEOX: dict[str, Axes] = {
    "embed_in.weight": (None, "hidden"),
    "query_key_value.weight": ("head", "hidden"), "query_key_value.bias": ("head",),  # q, k, v of each head together
    "attention.dense.weight": ("hidden", "head"), "attention.dense.bias": ("hidden",),
    "dense_h_to_4h.weight": ("neuron", "hidden"), "dense_h_to_4h.bias": ("neuron",),
    "dense_4h_to_h.weight": ("hidden", "neuron"), "dense_4h_to_h.bias": ("hidden",),
    "layernorm.weight": ("hidden",), "layernorm.bias": ("hidden",),
    "final_layer_norm.weight": ("hidden",), "final_layer_norm.bias": ("hidden",),
    "lm_head.weight": (None, "hidden"),
}  # fmt: skip
_GPT2: dict[str, Axes] = {  # its linears are stored as [in, out]
    "wte.weight": (None, "hidden"), "wpe.weight": (None, "hidden"),
    "attn.c_attn.weight": ("hidden", ("head", "kv_group", "kv_group")),
    "attn.c_attn.bias": (("head", "kv_group", "kv_group"),),
    "attn.c_proj.weight": ("head", "hidden"), "attn.c_proj.bias": ("hidden",),
    "mlp.c_fc.weight": ("hidden", "neuron"), "mlp.c_fc.bias": ("neuron",),
    "mlp.c_proj.weight": ("neuron", "hidden"), "mlp.c_proj.bias": ("hidden",),
    "ln_1.weight": ("hidden",), "ln_1.bias": ("hidden",), "ln_2.weight": ("hidden",), "ln_2.bias": ("hidden",),
    "ln_f.weight": ("hidden",), "ln_f.bias": ("hidden",),
    "lm_head.weight": (None, "hidden"),
}  # fmt: skip
_OPT: dict[str, Axes] = {
    "embed_positions.weight": (None, "hidden"),
    "out_proj.weight": ("hidden", "head"), "out_proj.bias": ("hidden",),
    "fc1.weight": ("neuron", "hidden"), "fc1.bias": ("neuron",),
    "fc2.weight": ("hidden", "neuron"), "fc2.bias": ("hidden",),
    "layer_norm.weight": ("hidden",), "layer_norm.bias": ("hidden",),
}  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """One family: the axis that each dimension of each parameter belongs to, and the names of its parts.

    Modules are named from the model for what it has once, and from the block for what each block has.
    """

    axes: dict[str, Axes]
    """Parameter name suffix -> axis of each dimension; the longest suffix that fits counts."""
    blocks: str = "model.layers"
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
    """Module whose input the MLP reads; None where its linears lie in the block itself."""
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
    norm_offset: float = 0.0
    """What the norms add to their weight before they multiply by it."""
    wide_norms: dict[str, str] = field(default_factory=dict)
    """Norm over all heads together -> linear whose output it normalises."""
    only: dict[str, Any] = field(default_factory=dict)
    """Settings of the config without which a model of the family is built in another way than described."""

    @property
    def query(self) -> str | None:
        """Linear whose output is the queries; None where they are fused with keys and values."""
        return self.attention_input[0] if len(self.attention_input) > 1 else None

    def axes_of(self, name: str) -> Axes:
        """The axis of each dimension of a parameter.

        Raises:
            ConfigError: it is not described.
        """
        suffixes = [suffix for suffix in self.axes if name.endswith(suffix)]
        if not suffixes:
            raise ConfigError(f"teacher.model: parameter {name} is not described in lit_prune/models/anatomy.py")
        return self.axes[max(suffixes, key=len)]

    def block_of(self, name: str) -> tuple[int | None, str]:
        """The block that a parameter or module of the model lies in, if any, and its name there."""
        match = re.fullmatch(rf"{re.escape(self.blocks)}\.(\d+)\.(.+)", name)
        return (int(match[1]), match[2]) if match else (None, name)


_GEMMA2 = Anatomy(_LLAMA | _BIASES, mlp_norm="pre_feedforward_layernorm", whole_heads=True, norm_offset=1.0)

FAMILIES = {
    "llama": Anatomy(_LLAMA | _BIASES, whole_heads=True),
    "mistral": Anatomy(_LLAMA),
    "qwen2": Anatomy(_LLAMA | _BIASES),
    "qwen3": Anatomy(_LLAMA | _BIASES | _HEAD_NORMS),
    "gemma": Anatomy(_LLAMA | _BIASES, norm_offset=1.0),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, axes=_GEMMA2.axes | _HEAD_NORMS),
    "nemotron": Anatomy(_LLAMA | _BIASES | _LAYER_NORM_BIASES, norm_offset=1.0),
    "phi": Anatomy(
        _LLAMA | _BIASES | _LAYER_NORM_BIASES | _PHI, final_norm="model.final_layernorm", mlp_norm="input_layernorm",
        attention_output="self_attn.dense", activation="mlp.activation_fn", mlp_output="mlp.fc2",
        only={"qk_layernorm": False},
    ),
    "phi3": Anatomy(
        _LLAMA | _FUSED, attention_input=("self_attn.qkv_proj",), activation="mlp.activation_fn",
    ),
    "olmo2": Anatomy(
        _LLAMA | _BIASES | _WIDE_NORMS, input_norm=None, mlp_norm=None,
        wide_norms={"self_attn.q_norm": "self_attn.q_proj", "self_attn.k_norm": "self_attn.k_proj"},
    ),
    "smollm3": Anatomy(_LLAMA | _BIASES),
    "granite": Anatomy(_LLAMA | _BIASES),
    "gpt_neox": Anatomy(
        _GPT_NEOX, blocks="gpt_neox.layers", final_norm="gpt_neox.final_layer_norm",
        attention_input=("attention.query_key_value",), attention_output="attention.dense", activation="mlp.act",
        mlp_output="mlp.dense_4h_to_h", tied_width=True,
    ),
    "gpt2": Anatomy(
        _GPT2, blocks="transformer.h", final_norm="transformer.ln_f", input_norm="ln_1", mlp_norm="ln_2",
        attention_input=("attn.c_attn",), attention_output="attn.c_proj", activation="mlp.act",
        mlp_output="mlp.c_proj", neurons="n_inner", tied_width=True,
        only={"add_cross_attention": False, "scale_attn_by_inverse_layer_idx": False},
    ),
    "opt": Anatomy(
        _LLAMA | _BIASES | _OPT, blocks="model.decoder.layers", final_norm="model.decoder.final_layer_norm",
        input_norm="self_attn_layer_norm", mlp_norm="final_layer_norm", attention_output="self_attn.out_proj",
        mlp=None, activation="activation_fn", mlp_output="fc2", hidden=("hidden_size", "word_embed_proj_dim"),
        neurons="ffn_dim", tied_width=True, only={"do_layer_norm_before": True, "_remove_final_layer_norm": False},
    ),
}  # fmt: skip


def anatomy_of(config: Any) -> Anatomy:
    """The anatomy of a Hugging Face config.

    Raises:
        ConfigError: it is not a dense decoder, the family has no description, or the model is a variant that the
            description does not fit.
    """
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"teacher.model: {_kind(config)} is not supported; supported are dense decoders of the families "
            f"{', '.join(FAMILIES)}, and one built like llama is added by a line in lit_prune/models/anatomy.py"
        )
    anatomy = FAMILIES[config.model_type]
    needed = anatomy.only | dict.fromkeys(anatomy.hidden, config.hidden_size)
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"teacher.model: {config.model_type} with {name}={getattr(config, name)} is not supported, only {value}"
            )
    return anatomy


def _kind(config: Any) -> str:
    """What a config describes that has no anatomy, in words."""
    family = f"family {config.model_type!r}"
    text = config.get_text_config()
    if config.is_encoder_decoder:
        return f"an encoder-decoder ({family})"
    if any(re.search(r"n(um)?_.*experts", name) for name in vars(text)):
        return f"a mixture of experts ({family})"
    return family if text is config else f"a multimodal model ({family})"


def head_dim_of(config: Any) -> int:
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks, first to last."""
    return list(model.get_submodule(anatomy_of(model.config).blocks).children())


def parts_of(axis: Axis) -> tuple[str, ...]:
    """The axes that lie end to end along a dimension; none where it is never cut."""
    return axis if isinstance(axis, tuple) else () if axis is None else (axis,)
