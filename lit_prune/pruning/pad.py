"""Zero-pad a model whose layers differ in width to a uniform one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_prune.models.model_family import TRANSFORMED, anatomy_of, layers_of
from lit_prune.models.shape import ModelShape, shape_of, widths_of
from lit_prune.pruning.plan import LayerPlan, PrunePlan


def pad_to_uniform(model: Any) -> Any:
    """Return an equivalent model whose layers are all as wide as the widest, which stock transformers can load.

    Neurons, KV groups and the query heads of each group are padded with zeros. A sub-layer that a layer does not have
    becomes one of the same width, of zeros alone: it takes as much memory and time as any other. Norms over all heads
    are rescaled so that the padding does not change their output.
    """
    if not model.config.is_heterogeneous:
        return copy.deepcopy(model)
    config = _uniform_config(model.config)
    with no_init_weights():
        padded = AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    padded.load_state_dict(_padded_weights(model, padded))
    padded.tie_weights()  # `no_init_weights` skips it
    _correct_wide_norms(model, padded)
    padded.generation_config = copy.deepcopy(model.generation_config)
    return padded.to(model.device).eval()


def _uniform_config(config: Any) -> Any:
    """Return the stock config with the largest widths of all layers."""
    uniform = copy.deepcopy(config)
    uniform.per_layer_config = None
    vars(uniform).pop("allow_global_per_layer_attribute_access", None)
    if not config.model_type.startswith(TRANSFORMED):
        return uniform
    own = ("model_type", "architectures", "shortcuts", "ranks")
    kept = {name: value for name, value in uniform.to_dict().items() if name not in own}
    stock = CONFIG_MAPPING[config.model_type.removeprefix(TRANSFORMED)].from_dict(kept)
    stock._attn_implementation = config._attn_implementation
    return stock


def _padded_weights(model: Any, padded: Any) -> dict[str, Tensor]:
    """Return zero-padded weights: cutting them by the plan of the narrow layers gives the model's own weights."""
    anatomy, shape, sizes = anatomy_of(model.config), shape_of(padded.config), padded.state_dict()
    layers = [_layer_in(shape, widths_of(model.config, i), i) for i in range(shape.num_hidden_layers)]
    plan = PrunePlan(shape, tuple(range(shape.hidden_size)), tuple(layers))
    weights = {}
    for name, weight in model.state_dict().items():
        index, _ = anatomy.layer_of(name)
        layer = None if index is None else layers[index]
        for dim, entries in plan.entries(anatomy.axes_of(name), sizes[name].shape, layer).items():
            larger = list(weight.shape)
            larger[dim] = sizes[name].shape[dim]
            weight = weight.new_zeros(larger).index_copy(dim, entries.to(weight.device), weight)
        weights[name] = weight
    return {name: weights.get(name, torch.zeros_like(whole)) for name, whole in sizes.items()}


def _layer_in(whole: ModelShape, shape: ModelShape, index: int) -> LayerPlan:
    """Return the units of a wide layer that a narrow one occupies."""
    heads = whole.heads_of(range(shape.num_key_value_heads), shape.heads_per_group)
    return LayerPlan(index, tuple(range(shape.intermediate_size)), heads)


def _correct_wide_norms(model: Any, padded: Any) -> None:
    """Rescale norms over all heads, whose mean square is smaller with the zeros."""
    for ours, theirs in zip(layers_of(model), layers_of(padded), strict=True):
        for norm, linear in anatomy_of(model.config).wide_norms.items():
            narrow: Any = ours.get_submodule(norm)
            wide: Any = theirs.get_submodule(norm)
            growth = (wide.weight.numel() / narrow.weight.numel()) ** 0.5
            with torch.no_grad():
                wide.weight.div_(growth)
                for parameter in theirs.get_submodule(linear).parameters():
                    parameter.mul_(growth)
