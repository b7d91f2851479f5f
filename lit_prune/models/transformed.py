"""Import this module to let transformers load models whose layers have shortcuts, low-rank linears or no attention.

No stock config describes such layers, so these models have a type of their own: `lit_prune_llama` for Llama, and so on
for the families in `LIKE_LLAMA`. Three fields of their config say how the layers differ from those of the family:

- `shortcuts`: the residual stream x changes its basis after attention and after the MLP (SliceGPT, section 3.3):
  y = A x + attention(norm(x)), then B y + mlp(norm(y)). The linears A and B are `attention_shortcut` and
  `mlp_shortcut`.
- `ranks`: name of a linear within a layer -> rank of the two linears in its place, of which the second has the bias.
- `per_layer_config`: transformers' own field for layers that differ. A layer with `"skip": ["attention"]` is
  x + mlp(norm(x)), one with `["mlp"]` is x + attention(norm(x)); neither has weights or keys and values of what it
  skips. Other entries are widths.

transformers refuses to load them without this module, since it does not know their type. Everything else, such as
generation with a cache, is the code of the family.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DummyLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import lit_prune.models.per_layer_config  # noqa: F401  widths that differ between layers
from lit_prune.config import ConfigError
from lit_prune.models.model_family import FAMILIES, TRANSFORMED
from lit_prune.models.model_family import LIKE_LLAMA as LIKE_LLAMA


def transformed_config(config: Any, **changes: Any) -> Any:
    """Return a copy of a Hugging Face config with `changes`, of the type that may have shortcuts and ranks.

    Raises:
        ConfigError: if its family is not in `LIKE_LLAMA`, or its layers differ in width.
    """
    family = config.model_type.removeprefix(TRANSFORMED)
    if family not in LIKE_LLAMA:
        raise ConfigError(f"prune.method: must be another for {family}, this one serves {', '.join(LIKE_LLAMA)}")
    if config.is_heterogeneous:
        raise ConfigError("prune.method: must be another for a model whose layers differ in width")
    kept = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "architectures")}
    changed = CONFIG_MAPPING[TRANSFORMED + family].from_dict(copy.deepcopy(kept) | changes)
    changed._attn_implementation = config._attn_implementation
    return changed


def add_shortcuts(layer: nn.Module, width: int) -> None:
    """Give a layer its two shortcuts, in place."""
    layer.__class__ = _LAYERS[type(layer)]
    for name in ("attention_shortcut", "mlp_shortcut"):
        layer.register_module(name, nn.Linear(width, width, bias=False))


def factorise(layer: nn.Module, name: str, rank: int) -> None:
    """Replace a linear of a layer by two of the given rank, in place."""
    parent, _, child = name.rpartition(".")
    linear: Any = layer.get_submodule(name)
    into = nn.Linear(linear.in_features, rank, bias=False)
    out = nn.Linear(rank, linear.out_features, bias=linear.bias is not None)
    layer.get_submodule(parent).register_module(child, nn.Sequential(into, out))


def skip_sublayers(layer: nn.Module, index: int, skipped: Collection[str]) -> None:
    """Remove the attention or the MLP of the layer at `index`, with the norm before it, in place."""
    layer.__class__ = _SPARSE_LAYERS[type(layer)]
    layer.index = index  # type: ignore[assignment]
    for kind, parts in FAMILIES["llama"].sublayers.items():  # the same in all of LIKE_LLAMA
        for name in parts if kind in skipped else ():
            setattr(layer, name, None)


class _WithShortcuts:
    """The forward pass of a layer with shortcuts."""

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        between = self.attention_shortcut(hidden_states) + attended
        changed: Tensor = self.mlp_shortcut(between) + self.mlp(self.post_attention_layernorm(between))
        return changed


class _WithoutSublayers:
    """The forward pass of a layer without attention or without an MLP."""

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        if self.self_attn is not None:
            attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
            hidden_states = hidden_states + attended
        elif (cache := kwargs.get("past_key_values")) is not None and len(cache.layers) == self.index:
            # A cache made without a config adds its layers one by one, and takes its length from the first that is no
            # dummy. One made with the config knows by `kv_sharing_modes`.
            cache.layers.append(DummyLayer())
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


_LAYERS: dict[type[nn.Module], type[nn.Module]] = {}
"""Layer of a family -> the same with shortcuts."""
_SPARSE_LAYERS: dict[type[nn.Module], type[nn.Module]] = {}
"""Layer of a family -> the same without one of its sub-layers."""


def _register(family: str) -> None:
    """Register the config and the model of a family with transformers."""
    stock: Any = CONFIG_MAPPING[family]
    model: Any = AutoModelForCausalLM._model_mapping[stock]
    layer = model._can_record_outputs["hidden_states"]

    class Config(stock):
        model_type = TRANSFORMED + family
        ranks: dict[str, int] | None = None
        shortcuts: bool = False

        def validate_architecture(self) -> None:
            """Allow a width that is no multiple of the heads, as some families do not; `head_dim` is always given."""

        @property
        def kv_sharing_modes(self) -> list[str | None]:
            """For each layer "reuse" if transformers' caches need no keys and values of it, else None."""
            skipped = [getattr(one, "skip", ()) for one in self.per_layer_config]
            return ["reuse" if "attention" in kinds else None for kinds in skipped]

    class Model(model):
        def post_init(self) -> None:
            for i, one in enumerate(self.model.layers):
                if skipped := getattr(self.config.per_layer_config[i], "skip", ()):
                    skip_sublayers(one, i, skipped)
                if self.config.shortcuts:
                    add_shortcuts(one, self.config.hidden_size)
                for name, rank in (self.config.ranks or {}).items():
                    factorise(one, name, rank)
            super().post_init()

    _LAYERS[layer] = _named(type(layer.__name__, (_WithShortcuts, layer), {}), layer.__name__)
    name = f"Sparse{layer.__name__}"
    _SPARSE_LAYERS[layer] = _named(type(name, (_WithoutSublayers, layer), {}), name)
    config: Any = strict(_named(Config, f"LitPrune{stock.__name__}"))
    Model.config_class = config
    AutoConfig.register(config.model_type, config)
    AutoModelForCausalLM.register(config, _named(Model, f"LitPrune{model.__name__}"))


def _named(kind: type, name: str) -> type:
    """Rename a class and add it to this module, where pickle looks it up."""
    kind.__module__, kind.__name__, kind.__qualname__ = __name__, name, name
    globals()[name] = kind
    return kind


for _family in LIKE_LLAMA:
    _register(_family)
