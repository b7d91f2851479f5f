"""The Llama that a pretraining recipe describes."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_prune.config import ConfigError, Pretraining


def config_of(recipe: Pretraining, eos: int = 0) -> LlamaConfig:
    """Return the Hugging Face config of a recipe.

    Raises:
        ConfigError: if Llama's config forbids the shape.
    """
    try:
        return LlamaConfig(
            vocab_size=recipe.vocab_size, hidden_size=recipe.hidden_size, intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.num_hidden_layers, num_attention_heads=recipe.num_attention_heads,
            head_dim=recipe.head_dim,
            num_key_value_heads=recipe.num_key_value_heads, max_position_embeddings=4 * recipe.seq_len,
            tie_word_embeddings=False, bos_token_id=eos, eos_token_id=eos,
        )  # fmt: skip
    except Exception as error:  # validators of configs raise several kinds
        problem = " ".join(str(error).split())
        raise ConfigError(f"pretraining: this is no shape of a Llama ({problem})") from None


def new_model(recipe: Pretraining, eos: int) -> LlamaForCausalLM:
    """Return a Llama with weights drawn from the recipe's seed; output projections are scaled down with depth."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(config_of(recipe, eos))
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.div_((2 * recipe.num_hidden_layers) ** 0.5)
    return model
