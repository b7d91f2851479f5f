"""The teachers of the shipped profiles as folders that hold nothing but a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_prune.config import Profile
from lit_prune.config.profiles import load_profile

_LLAMA_3_1_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
_SMOLLM2_360M = {
    "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
    "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
FROM_HUB = {"meta-llama/Llama-3.1-8B": _LLAMA_3_1_8B, "HuggingFaceTB/SmolLM2-360M": _SMOLLM2_360M}


def offline(name: str, folder: Path) -> tuple[Profile, dict[str, Any]]:
    """Return a profile and the settings that put a config in `folder` in the place of a teacher from the hub."""
    from transformers import LlamaConfig

    profile = load_profile(name)
    sizes = FROM_HUB.get(profile.cell.teacher.model or "")
    if sizes is None:
        return profile, {}
    LlamaConfig(max_position_embeddings=8192, **sizes).save_pretrained(folder)
    return profile, {"teacher.model": str(folder)}
