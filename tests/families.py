"""A tiny random model of every family and of the variants that are built in another way; nothing is fetched."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from lit_prune.models.model_family import FAMILIES
from lit_prune.models.shape import ModelShape, shape_of
from lit_prune.pruning.plan import LayerPlan, PrunePlan

HEAD_DIM = 4
COMMON = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = COMMON | {
    "hidden_size": 36, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": HEAD_DIM, "max_position_embeddings": 64,
}  # fmt: skip
OPTIONAL = ("num_key_value_heads", "head_dim")
GEMMA2 = {"sliding_window": 5, "query_pre_attn_scalar": 3}
WINDOWS = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MHA = {"num_key_value_heads": 6}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama, tied, with biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, MHA": ("llama", MHA),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "gemma, untied": ("gemma", {"tie_word_embeddings": False}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma3_text": ("gemma3_text", GEMMA2 | {"sliding_window_pattern": 2, "attention_bias": True}),
    "phi, MHA": ("phi", MHA),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),  # one more than there are blocks
    "granite": (
        "granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0},
    ),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False, "tie_word_embeddings": True}),
    "ernie4_5": ("ernie4_5", {"use_bias": True}),
    "ministral": ("ministral", WINDOWS),
    "olmo3": ("olmo3", WINDOWS),
    "starcoder2": ("starcoder2", {"sliding_window": 5}),
    "cohere, norms of each head": ("cohere", {"use_qk_norm": True, "attention_bias": True, "logit_scale": 2.0}),
    "cohere2": ("cohere2", WINDOWS),
    "arcee": ("arcee", {"attention_bias": True, "mlp_bias": True}),
    "exaone4": ("exaone4", WINDOWS),
    "seed_oss": ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5, "use_qkv_bias": True}),
    "stablelm, MHA": ("stablelm", {"partial_rotary_factor": 0.5} | MHA),
    "opt, plain": ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
}

KINDS = ("neurons", "heads", "kv_groups", "hidden", "layers", "all", "uneven")


def config_of(name: str) -> Any:
    """The config of a case, with `SIZES` by the names that its family has for them."""
    family, extra = CASES[name]
    anatomy, kind = FAMILIES[family], CONFIG_MAPPING[family]
    sizes = {anatomy.neurons if key == "intermediate_size" else key: n for key, n in SIZES.items()}
    if anatomy.tied_width:
        sizes["hidden_size"] = sizes["num_attention_heads"] * HEAD_DIM
        sizes = {key: n for key, n in sizes.items() if key not in OPTIONAL or hasattr(kind, key)}
    names = kind.attribute_map
    return AutoConfig.for_model(family, **{names.get(key, key): n for key, n in sizes.items()} | extra)


@functools.cache
def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose norms, biases and weights are all far from their trivial values, always the same for a dtype.

    It is shared: leave it as it is.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(name), dtype=dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def plan_for(name: str, kind: str) -> PrunePlan:
    """A plan with units drawn at random that cuts one axis, all of them, or each block to another width.

    Where the heads are as wide as the stream, both are cut; where each has its own keys and values, these go with it.
    """
    whole, draw = shape_of(config_of(name)), random.Random(kind)
    tied = FAMILIES[CASES[name][0]].tied_width
    shared = whole.heads != whole.kv_groups
    cuts_hidden = kind in ("hidden", "all") or (tied and kind in ("heads", "kv_groups"))
    width = 24 if not tied else 12 if shared and kind == "kv_groups" else 16  # 12: the 3 heads of a KV group
    hidden = _some(draw, range(whole.hidden), width) if cuts_hidden else tuple(range(whole.hidden))
    blocks = []
    for index in (0, 2) if kind in ("layers", "all") else range(whole.layers):
        neurons = {"neurons": 13, "all": 13, "uneven": 9 + 4 * index}.get(kind, whole.neurons)
        if tied and not shared:
            heads = _some(draw, range(whole.heads), len(hidden) // HEAD_DIM)
        elif tied:
            groups = 1 if kind == "kv_groups" else whole.kv_groups
            heads = _of_groups(draw, whole, groups, len(hidden) // HEAD_DIM // groups)
        else:
            heads = _some_heads(draw, whole, kind, index)
        blocks.append(LayerPlan(index, _some(draw, range(whole.neurons), neurons), heads))
    return PrunePlan(whole, hidden, tuple(blocks))


def _some_heads(draw: random.Random, whole: ModelShape, kind: str, index: int) -> tuple[int, ...]:
    if whole.heads == whole.kv_groups:
        count = {"heads": 4, "kv_groups": 3, "all": 4, "uneven": 2 * index + 2}.get(kind, whole.heads)
        return _some(draw, range(whole.heads), count)
    one_group = kind == "kv_groups" or (kind, index) == ("uneven", 1)
    size = whole.heads // whole.kv_groups
    count = {"heads": 2, "all": 2, "uneven": max(index, 1)}.get(kind, size)
    return _of_groups(draw, whole, 1 if one_group else whole.kv_groups, count)


def _of_groups(draw: random.Random, whole: ModelShape, groups: int, count: int) -> tuple[int, ...]:
    """`count` heads in each of some KV groups."""
    size = whole.heads // whole.kv_groups
    kept = _some(draw, range(whole.kv_groups), groups)
    return tuple(head for g in kept for head in _some(draw, range(g * size, g * size + size), count))


def _some(draw: random.Random, units: range, count: int) -> tuple[int, ...]:
    return tuple(sorted(draw.sample(units, count)))


def token_ids() -> torch.Tensor:
    """int64 [2, 17], longer than any sliding window; no special tokens."""
    return torch.randint(3, 96, (2, 17), generator=torch.Generator().manual_seed(1))


def logits(model: Any, ids: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids() if ids is None else ids).logits


def reloaded(model: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model after a way over the disk, and its config there."""
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), json.loads((folder / "config.json").read_text())


def generates_with_cache_as_without(model: Any) -> bool:
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(token_ids(), use_cache=True, **asked)
    return cached.shape == (2, 25) and torch.equal(cached, model.generate(token_ids(), use_cache=False, **asked))
