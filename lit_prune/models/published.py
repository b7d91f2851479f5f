"""Hugging Face configs of the models whose costs Minitron prints; nothing is fetched (arXiv 2407.14679v2, Table 5)."""

from __future__ import annotations

from typing import Any

TEACHER, LARGE, SMALL = "Nemotron-4 15B", "MINITRON 8B", "MINITRON 4B"
_SHAPES = {
    TEACHER: (6144, 48, 8, 24576),
    "Nemotron-3 8B": (4096, 32, 32, 16384),
    LARGE: (4096, 48, 8, 16384),
    SMALL: (3072, 24, 8, 9216),
}
"""Hidden size, query heads, KV groups and MLP width. All have 32 layers, heads of 128 and an untied vocabulary."""


def published_configs() -> dict[str, Any]:
    """Return the configs by the name of the model."""
    from transformers import NemotronConfig

    return {
        name: NemotronConfig(
            vocab_size=256_000, num_hidden_layers=32, hidden_size=hidden, num_attention_heads=heads,
            num_key_value_heads=groups, head_dim=128, intermediate_size=neurons, tie_word_embeddings=False,
        )
        for name, (hidden, heads, groups, neurons) in _SHAPES.items()
    }  # fmt: skip
