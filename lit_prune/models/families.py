"""The supported families: data, read through `lit_prune.models.model_family`.

A family built like Llama is one line in FAMILIES.
"""

from __future__ import annotations

from dataclasses import replace

from lit_prune.models.description import Axes, ModelFamily

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
    "query_key_value.weight": ("head", "hidden"), "query_key_value.bias": ("head",),  # q, k, v interleaved per head
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

_STARCODER2: dict[str, Axes] = {
    "c_fc.weight": ("neuron", "hidden"), "c_fc.bias": ("neuron",),
    "c_proj.weight": ("hidden", "neuron"), "c_proj.bias": ("hidden",),
}  # fmt: skip
_XIELU: dict[str, Axes] = {
    "act_fn.alpha_p": (None,), "act_fn.alpha_n": (None,), "act_fn.beta": (), "act_fn.eps": (),
}  # fmt: skip
_NORMS_OF_EACH_HEAD: dict[str, Axes] = {"q_norm.weight": ("head", None), "k_norm.weight": ("kv_group", None)}

_GEMMA2 = ModelFamily(
    _LLAMA | _BIASES,
    mlp_norm="pre_feedforward_layernorm",
    whole_heads=True,
    norm_offset=1.0,
    after_head=("final_logit_softcapping", "cap"),
)

_OLMO2 = ModelFamily(
    _LLAMA | _BIASES | _WIDE_NORMS,
    input_norm=None,
    mlp_norm=None,
    wide_norms={"self_attn.q_norm": "self_attn.q_proj", "self_attn.k_norm": "self_attn.k_proj"},
)
_COHERE = ModelFamily(
    _LLAMA | _BIASES | _NORMS_OF_EACH_HEAD,
    mlp_norm="input_layernorm",
    norm="layer",
    after_head=("logit_scale", "multiply"),
)

FAMILIES = {
    "llama": ModelFamily(_LLAMA | _BIASES, whole_heads=True),
    "mistral": ModelFamily(_LLAMA),
    "qwen2": ModelFamily(_LLAMA | _BIASES),
    "qwen3": ModelFamily(_LLAMA | _BIASES | _HEAD_NORMS),
    "gemma": ModelFamily(_LLAMA | _BIASES, norm_offset=1.0),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, axes=_GEMMA2.axes | _HEAD_NORMS),
    "nemotron": ModelFamily(
        _LLAMA | _BIASES | _LAYER_NORM_BIASES, mlp_input=("mlp.up_proj",), norm="layer", norm_offset=1.0,
    ),
    "phi": ModelFamily(
        _LLAMA | _BIASES | _LAYER_NORM_BIASES | _PHI, final_norm="model.final_layernorm", mlp_norm="input_layernorm",
        attention_output="self_attn.dense", mlp_input=("mlp.fc1",), activation="mlp.activation_fn",
        mlp_output="mlp.fc2", norm="layer", only={"qk_layernorm": False},
    ),
    "phi3": ModelFamily(
        _LLAMA | _FUSED, attention_input=("self_attn.qkv_proj",), mlp_input=("mlp.gate_up_proj",),
        activation="mlp.activation_fn",
    ),
    "olmo2": _OLMO2,
    "smollm3": ModelFamily(_LLAMA | _BIASES),
    "granite": ModelFamily(_LLAMA | _BIASES, after_head=("logits_scaling", "divide")),
    "gpt_neox": ModelFamily(
        _GPT_NEOX, layers="gpt_neox.layers", final_norm="gpt_neox.final_layer_norm",
        attention_input=("attention.query_key_value",), attention_output="attention.dense",
        mlp_input=("mlp.dense_h_to_4h",), activation="mlp.act", mlp_output="mlp.dense_4h_to_h", tied_width=True,
        norm="layer",
    ),
    "gpt2": ModelFamily(
        _GPT2, layers="transformer.h", final_norm="transformer.ln_f", input_norm="ln_1", mlp_norm="ln_2",
        attention_input=("attn.c_attn",), attention_output="attn.c_proj", mlp_input=("mlp.c_fc",),
        activation="mlp.act", mlp_output="mlp.c_proj", neurons="n_inner", tied_width=True, norm="layer",
        only={"add_cross_attention": False, "scale_attn_by_inverse_layer_idx": False},
    ),
    "opt": ModelFamily(
        _LLAMA | _BIASES | _OPT, layers="model.decoder.layers", final_norm="model.decoder.final_layer_norm",
        input_norm="self_attn_layer_norm", mlp_norm="final_layer_norm", attention_output="self_attn.out_proj",
        mlp=None, mlp_input=("fc1",), activation="activation_fn", mlp_output="fc2",
        hidden=("hidden_size", "word_embed_proj_dim"), neurons="ffn_dim", tied_width=True, norm="layer",
        only={"do_layer_norm_before": True, "_remove_final_layer_norm": False},
    ),
    "ernie4_5": ModelFamily(_LLAMA | _BIASES),
    "ministral": ModelFamily(_LLAMA),
    "olmo3": _OLMO2,
    "starcoder2": ModelFamily(
        _LLAMA | _BIASES | _LAYER_NORM_BIASES | _STARCODER2, mlp_input=("mlp.c_fc",), activation="mlp.act",
        mlp_output="mlp.c_proj", norm="layer",
    ),
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "apertus": ModelFamily(
        _LLAMA | _BIASES | _HEAD_NORMS | _XIELU, input_norm="attention_layernorm", mlp_norm="feedforward_layernorm",
        mlp_input=("mlp.up_proj",),
    ),
    "arcee": ModelFamily(_LLAMA | _BIASES, mlp_input=("mlp.up_proj",), whole_heads=True),
    "exaone4": ModelFamily(_LLAMA | _HEAD_NORMS, input_norm=None, mlp_norm=None),
    "glm4": ModelFamily(
        _LLAMA | _BIASES | _FUSED, mlp_input=("mlp.gate_up_proj",), activation="mlp.activation_fn",
    ),
    "seed_oss": ModelFamily(_LLAMA | _BIASES),
    "stablelm": ModelFamily(
        _LLAMA | _BIASES | _LAYER_NORM_BIASES, tied_width=True, norm="layer",
        only={"use_parallel_residual": False, "qk_layernorm": False},
    ),
    "helium": ModelFamily(_LLAMA | _BIASES, tied_width=True),
}  # fmt: skip

LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "ernie4_5", "ministral", "arcee", "seed_oss")
"""Families with the layer x + attention(norm(x)), then x + mlp(norm(x)), and RMSNorm: the only ones whose layers
`lit_prune.models.transformed` can change."""
