"""Configs of three blocks, of which shapes are asked."""

from families import config_of
from transformers import LlamaConfig, Qwen2Config

from lit_prune.config import Student
from lit_prune.models.shape import ModelShape

SIZES = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
LLAMA, QWEN = LlamaConfig(**SIZES), Qwen2Config(**SIZES)
MHA = LlamaConfig(**SIZES | {"num_key_value_heads": 6})
WHOLE = ModelShape(layers=3, hidden=48, neurons=40, heads=6, kv_groups=2)
KEEP = Student(hidden=None, neurons=None, heads=None)
NEOX, GPT2, OPT, HELIUM = (config_of(name) for name in ("gpt_neox", "gpt2", "opt", "helium"))
