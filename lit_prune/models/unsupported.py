"""Explain why a model is not supported, and whether one line would add its family."""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import nn

from lit_prune.config import ConfigError
from lit_prune.models.families import FAMILIES


def refusal(config: Any) -> ConfigError:
    """Return the error for a config whose family has no description."""
    kind, like_llama = _kind(config)
    advice = "; it is built like llama, so a line in lit_prune/models/families.py adds it" if like_llama else ""
    return ConfigError(
        f"teacher.model: {kind} is not supported; supported are dense decoders of the families "
        f"{', '.join(FAMILIES)}{advice}"
    )


def _kind(config: Any) -> tuple[str, bool]:
    """Return the kind of model in words, and whether its modules and parameters have Llama's names."""
    family = f"family {config.model_type!r}"
    text = config.get_text_config()
    if config.is_encoder_decoder:
        return f"an encoder-decoder ({family})", False
    if any(value and re.search(r"n(um)?_.*experts", name) for name, value in vars(text).items()):
        return f"a mixture of experts ({family})", False
    if text is not config:
        return f"a multimodal model ({family})", False
    model = _causal_model(config)
    if model is None:
        return family, False
    if any(isinstance(module, nn.Conv1d | nn.Conv2d) for module in model.modules()):
        return f"a model with convolutions ({family})", False
    return family, _is_like_llama(model)


def _causal_model(config: Any) -> nn.Module | None:
    """Return the causal language model without weights, or None if transformers has none for this family."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    except Exception:  # transformers has no such model, or its code fails
        return None


def _is_like_llama(model: nn.Module) -> bool:
    llama, modules = FAMILIES["llama"], dict(model.named_modules())
    if any(not name.endswith(tuple(llama.axes)) for name, _ in model.named_parameters()):
        return False
    parts = (llama.input_norm, llama.mlp_norm, *llama.attention_input, llama.attention_output, *llama.mlp_input,
             llama.activation, llama.mlp_output)  # fmt: skip
    return llama.final_norm in modules and all(f"{llama.layers}.0.{part}" in modules for part in parts)
