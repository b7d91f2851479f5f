"""Shape and number of parameters of a model, from its Hugging Face config alone; no weights are allocated."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from lit_prune.config import ConfigError
from lit_prune.models.model_family import TRANSFORMED, anatomy_of, parts_of


@dataclass(frozen=True)
class ModelShape:
    """Numbers of units: layers and hidden channels; neurons, query heads and KV groups per layer."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int

    @property
    def heads_per_group(self) -> int:
        """Number of query heads of a KV group; 1 without grouped-query attention, 0 without attention."""
        return self.num_attention_heads // max(1, self.num_key_value_heads)

    def heads_of(self, groups: Iterable[int], count: int | None = None) -> tuple[int, ...]:
        """Return the query heads of KV groups: the first `count` of each, by default all."""
        size = self.heads_per_group
        return tuple(group * size + i for group in groups for i in range(size if count is None else count))

    def units(self, axis: str) -> int:
        """Return the number of units on an axis."""
        return {
            "hidden": self.hidden_size,
            "neuron": self.intermediate_size,
            "head": self.num_attention_heads,
            "kv_group": self.num_key_value_heads,
        }[axis]


def shape_of(config: Any) -> ModelShape:
    """Return the shape of a Hugging Face config.

    Raises:
        ConfigError: if its layers differ in width.
    """
    if getattr(config, "is_heterogeneous", False):
        raise ConfigError("teacher.model: its layers differ in width or lack attention; prune the model it came from")
    return widths_of(config)


def widths_of(config: Any, index: int = 0) -> ModelShape:
    """Return the shape of a Hugging Face config, with the widths of one layer if the layers differ.

    They are 0 for a sub-layer that the layer does not have.
    """
    config = config.per_layer_config[index] if config.is_heterogeneous else config
    anatomy, heads, skipped = anatomy_of(config), config.num_attention_heads, getattr(config, "skip", ())
    neurons, groups = getattr(config, anatomy.neurons, None), getattr(config, "num_key_value_heads", None)
    return ModelShape(
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=0 if "mlp" in skipped else neurons or 4 * config.hidden_size,
        num_attention_heads=0 if "attention" in skipped else heads,
        num_key_value_heads=0 if "attention" in skipped else groups or heads,
    )


def loading_module(config: Any) -> str | None:
    """Return the module to import before transformers can build the model of a config; None if it is a stock model."""
    if config.model_type.startswith(TRANSFORMED):
        return "lit_prune.models.transformed"
    return "lit_prune.models.per_layer_config" if getattr(config, "is_heterogeneous", False) else None


def check_stock(config: Any) -> None:
    """Check that the layers of a model have no shortcuts or low-rank linears, so that units can be cut from them.

    Raises:
        ConfigError: if they have.
    """
    if config.model_type.startswith(TRANSFORMED):
        raise ConfigError(
            f"prune.method: must be one that prunes {config.model_type}, whose layers have shortcuts, low-rank linears "
            "or no attention; or prune the model it came from"
        )


def make_loadable(config: Any) -> None:
    """Import what transformers needs to build the model of a config."""
    if module := loading_module(config):
        importlib.import_module(module)


def meta_model(config: Any) -> Any:
    """Return the model of a Hugging Face config on the meta device: names and sizes without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    make_loadable(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


_SHAPES: dict[tuple[type, str], Mapping[str, tuple[int, ...]]] = {}
"""Cache of `parameter_shapes`: cells of a table share a teacher, and seeds of a row a student."""


def parameter_shapes(config: Any) -> Mapping[str, tuple[int, ...]]:
    """Return name -> shape of the parameters of the model of a Hugging Face config; of tied weights, one name."""
    key = type(config), config.to_json_string(use_diff=False)
    if key not in _SHAPES:
        shapes = {name: tuple(p.shape) for name, p in meta_model(config).named_parameters()}
        _SHAPES[key] = MappingProxyType(shapes)
    return _SHAPES[key]


def parameter_counter(config: Any) -> Callable[[ModelShape], int]:
    """Return a function that counts the parameters of a model of another shape without building it.

    Tied weights count once.
    """
    anatomy, whole = anatomy_of(config), shape_of(config)
    first = f"{anatomy.layers}.0."
    dims = [
        (name.startswith(first), [_growth(size, axis, whole) for size, axis in zip(sizes, axes, strict=True)])
        for name, sizes in parameter_shapes(config).items()
        if name.startswith(first) or not name.startswith(f"{anatomy.layers}.")
        for axes in (anatomy.axes_of(name),)
    ]

    def count(shape: ModelShape) -> int:
        return sum(
            (shape.num_hidden_layers if in_layer else 1) * math.prod(growth(shape) for growth in growths)
            for in_layer, growths in dims
        )

    return count


def _growth(size: int, axis: Any, whole: ModelShape) -> Callable[[ModelShape], int]:
    """Return a function that maps a shape to the size of this dimension."""
    parts = parts_of(axis)
    if not parts:
        return lambda shape: size
    entries = size // sum(map(whole.units, parts))
    return lambda shape: entries * sum(map(shape.units, parts))


def num_parameters(config: Any) -> int:
    """Return the number of parameters of the model of a Hugging Face config, without allocating weights."""
    if loading_module(config):
        return sum(map(math.prod, parameter_shapes(config).values()))
    return parameter_counter(config)(shape_of(config))
