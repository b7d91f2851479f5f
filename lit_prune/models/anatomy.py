"""Where a decoder keeps its prunable parts, from the description of its family."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from lit_prune.config import ConfigError
from lit_prune.models.description import Anatomy as Anatomy
from lit_prune.models.description import Axes as Axes
from lit_prune.models.description import Axis as Axis
from lit_prune.models.families import FAMILIES as FAMILIES


def anatomy_of(config: Any) -> Anatomy:
    """The anatomy of a Hugging Face config.

    Raises:
        ConfigError: it is not a dense decoder, the family has no description, or the model is a variant that the
            description does not fit.
    """
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"teacher.model: {_kind(config)} is not supported; supported are dense decoders of the families "
            f"{', '.join(FAMILIES)}, and one built like llama is added by a line in lit_prune/models/families.py"
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
