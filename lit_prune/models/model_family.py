"""Look up the description of a model's family."""

from __future__ import annotations

from typing import Any

from torch import nn

from lit_prune.config import ConfigError
from lit_prune.models.description import Axes as Axes
from lit_prune.models.description import Axis as Axis
from lit_prune.models.description import ModelFamily as ModelFamily
from lit_prune.models.families import FAMILIES as FAMILIES


def anatomy_of(config: Any) -> ModelFamily:
    """Return the description of the family of a Hugging Face config.

    Raises:
        ConfigError: if it is not a dense decoder, the family has no description, or the model is a variant that the
            description does not fit.
    """
    if config.model_type not in FAMILIES:
        from lit_prune.models.unsupported import refusal

        raise refusal(config)
    anatomy = FAMILIES[config.model_type]
    needed = anatomy.only | dict.fromkeys(anatomy.hidden, config.hidden_size)
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"teacher.model: {config.model_type} with {name}={getattr(config, name)} is not supported, only {value}"
            )
    return anatomy


def head_dim_of(config: Any) -> int:
    """Return the width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the decoder layers, first to last."""
    return list(model.get_submodule(anatomy_of(model.config).layers).children())


def parts_of(axis: Axis) -> tuple[str, ...]:
    """Return the axes laid end to end along a dimension; empty if it is never cut."""
    return axis if isinstance(axis, tuple) else () if axis is None else (axis,)
