"""Look up the description of a model's family."""

from __future__ import annotations

import dataclasses
import functools
import logging
from typing import Any

from torch import nn

from lit_prune.config import ConfigError
from lit_prune.models.description import TRANSFORMED as TRANSFORMED
from lit_prune.models.description import Axes as Axes
from lit_prune.models.description import Axis as Axis
from lit_prune.models.description import ModelFamily as ModelFamily
from lit_prune.models.families import FAMILIES as FAMILIES
from lit_prune.models.families import LIKE_LLAMA as LIKE_LLAMA

# It warns whenever a width is read from a config whose layers differ, which some configs do when they are validated.
logging.getLogger("transformers.integrations.heterogeneity").setLevel(logging.ERROR)


def anatomy_of(config: Any) -> ModelFamily:
    """Return the description of the family of a Hugging Face config.

    Raises:
        ConfigError: if it is not a dense decoder, the family has no description, or the model is a variant that the
            description does not fit.
    """
    if not is_described(config):
        from lit_prune.models.unsupported import refusal

        raise refusal(config)
    family = config.model_type.removeprefix(TRANSFORMED)
    anatomy = FAMILIES[family] if family == config.model_type else _transformed(family)
    needed = anatomy.only | dict.fromkeys(anatomy.hidden, config.hidden_size)
    for name, value in needed.items():
        if getattr(config, name) != value:
            raise ConfigError(
                f"teacher.model: {config.model_type} with {name}={getattr(config, name)} is not supported, only {value}"
            )
    return anatomy


def is_described(config: Any) -> bool:
    """Return whether the family of a Hugging Face config has a description."""
    return config.model_type.removeprefix(TRANSFORMED) in FAMILIES


@functools.cache
def _transformed(family: str) -> ModelFamily:
    """Return the description of a family with the parameters that `lit_prune.models.transformed` adds."""
    stock, added = FAMILIES[family], dict[str, Axes]()
    for name, axes in stock.axes.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and stock.is_linear(name):
            added |= {f"{module}.0.weight": ("rank", axes[1]), f"{module}.1.weight": (axes[0], "rank")}
            added |= {f"{module}.1.bias": (axes[0],)}
    return dataclasses.replace(stock, axes=stock.axes | added | {"shortcut.weight": ("hidden", "hidden")})


def head_dim_of(config: Any) -> int:
    """Return the width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the decoder layers, first to last."""
    return list(model.get_submodule(anatomy_of(model.config).layers).children())


def parts_of(axis: Axis) -> tuple[str, ...]:
    """Return the axes laid end to end along a dimension; empty if no plan cuts it."""
    return axis if isinstance(axis, tuple) else () if axis is None or axis == "rank" else (axis,)
