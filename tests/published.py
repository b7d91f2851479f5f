"""Hugging Face configs of the models of the two papers; nothing is fetched.

Minitron (arXiv 2407.14679), Table 5; Minitron in practice (arXiv 2408.11796), Table 3; teachers by their model cards.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, MistralConfig, NemotronConfig


def _nemotron(hidden: int, heads: int, groups: int, neurons: int) -> NemotronConfig:
    return NemotronConfig(
        vocab_size=256_000, num_hidden_layers=32, hidden_size=hidden, num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=128, intermediate_size=neurons, tie_word_embeddings=False,
    )  # fmt: skip


def _llama(layers: int, hidden: int, neurons: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128_256, num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, intermediate_size=neurons, tie_word_embeddings=False,
    )  # fmt: skip


def _mistral(hidden: int, neurons: int) -> MistralConfig:
    return MistralConfig(
        vocab_size=131_072, num_hidden_layers=40, hidden_size=hidden, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, intermediate_size=neurons, tie_word_embeddings=False,
    )  # fmt: skip


MODELS: dict[str, Any] = {
    "Nemotron-4 15B": _nemotron(6144, 48, 8, 24576),
    "Nemotron-3 8B": _nemotron(4096, 32, 32, 16384),
    "MINITRON 8B": _nemotron(4096, 48, 8, 16384),
    "MINITRON 4B": _nemotron(3072, 24, 8, 9216),
    "Llama-3.1 8B": _llama(32, 4096, 14336),
    "Llama-3.1-Minitron 4B width": _llama(32, 3072, 9216),
    "Llama-3.1-Minitron 4B depth": _llama(16, 4096, 14336),
    "Mistral-NeMo 12B": _mistral(5120, 14336),
    "MN-Minitron 8B": _mistral(4096, 11520),
}
