"""Apply a plan to a model: return a smaller model, or a copy with the pruned units masked.

The description of the model's family gives the axis of each parameter's dimensions; no code here is specific to a
family.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from lit_prune.config import ConfigError
from lit_prune.models.model_family import ModelFamily, anatomy_of, head_dim_of
from lit_prune.models.shape import make_loadable
from lit_prune.pruning.plan import LayerPlan, Merge, PrunePlan


def apply(model: Any, plan: PrunePlan, mode: Literal["slice", "mask"] = "slice") -> Any:
    """Return a new model with only the units of the plan: `slice` cuts tensors, `mask` zeroes the pruned units.

    Both give the same logits. A saved result of `slice` loads with stock `AutoModelForCausalLM`; if the layers of the
    plan differ in width, import `lit_prune.models.per_layer_config` first. Do not save the result of `mask`.

    Raises:
        ConfigError: if the plan does not fit this model, or the family's config cannot express the result.
    """
    plan.check(model.config)
    return _slice(model, plan) if mode == "slice" else _mask(model, plan)


class _Piece(NamedTuple):
    """A parameter of the model after head merging."""

    name: str
    new_name: str | None
    """Name in the student; None if its layer or sub-layer is dropped."""
    weight: Tensor
    kept: dict[int, Tensor]
    """Dimension -> entries to keep, for the dimensions that are cut."""


def cut(tensors: Mapping[str, Tensor], plan: PrunePlan, config: Any) -> dict[str, Tensor]:
    """Return tensors shaped like parameters of a model with this config, cut and renamed as a plan cuts the model."""
    pieces = _pieces(tensors, plan, config)
    return {piece.new_name: _cut(piece) for piece in pieces if piece.new_name is not None}


def _pieces(tensors: Mapping[str, Tensor], plan: PrunePlan, config: Any) -> Iterator[_Piece]:
    anatomy, layers = anatomy_of(config), {layer.index: layer for layer in plan.layers}
    places = {layer.index: place for place, layer in enumerate(plan.layers)}
    for name, weight in tensors.items():
        index, rest = anatomy.layer_of(name)
        if index is None:
            yield _Piece(name, name, weight, plan.entries(anatomy.axes_of(name), weight.shape, None))
        elif index not in layers or anatomy.sublayer_of(rest) in layers[index].skipped:
            yield _Piece(name, None, weight, {})
        else:
            layer = layers[index]
            if anatomy.query and rest.rpartition(".")[0] == anatomy.query:
                weight = _merged(weight, layer.merges, plan.original.num_attention_heads)
            kept = plan.entries(anatomy.axes_of(name), weight.shape, layer)
            yield _Piece(name, f"{anatomy.layers}.{places[index]}.{rest}", weight, kept)


def _merged(queries: Tensor, merges: tuple[Merge, ...], num_heads: int) -> Tensor:
    """Return the query weights or biases after the merges, applied in order (Minitron, section 2.3)."""
    if not merges:
        return queries
    queries = queries.clone()
    heads = queries.unflatten(0, (num_heads, -1))
    for merge in merges:
        heads[merge.kept] += merge.weight * (heads[merge.kept] - heads[merge.pruned])
    return queries


def _slice(model: Any, plan: PrunePlan) -> Any:
    student = rebuilt(model, smaller_config(model.config, plan), cut(model.state_dict(), plan, model.config))
    _restore_embedding_scale(student, model)
    return student


def rebuilt(model: Any, config: Any, weights: dict[str, Tensor]) -> Any:
    """Return the model of another config with these weights, on the device and in the dtype of `model`."""
    make_loadable(config)
    with no_init_weights():
        student = AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    student.load_state_dict(weights)
    student.tie_weights()  # `no_init_weights` skips it
    student.generation_config = copy.deepcopy(model.generation_config)
    return student.to(model.device).eval()


def _cut(piece: _Piece) -> Tensor:
    weight = piece.weight
    for dim, entries in piece.kept.items():
        weight = weight.index_select(dim, entries.to(weight.device))
    return weight


def smaller_config(config: Any, plan: PrunePlan) -> Any:
    """Return the Hugging Face config of the pruned model.

    If layers differ in width, it has the largest widths, and `per_layer_config` has those of each layer. If layers lack
    attention or an MLP, it has the type that `lit_prune.models.transformed` registers.

    Raises:
        ConfigError: if the family's config forbids the shape.
    """
    anatomy, kept, smaller = anatomy_of(config), plan.kept, copy.deepcopy(config)
    for name in anatomy.hidden:
        setattr(smaller, name, kept.hidden_size)
    if not anatomy.tied_width:  # most families would derive another head_dim from the new width
        smaller.head_dim = head_dim_of(config)
    for name, value in _widths(
        smaller, anatomy, kept.intermediate_size, kept.num_attention_heads, kept.num_key_value_heads
    ).items():
        setattr(smaller, name, value)
    smaller.num_hidden_layers = kept.num_hidden_layers
    for name, values in _per_layer_lists(config, plan.original.num_hidden_layers).items():
        setattr(smaller, name, [values[layer.index] for layer in plan.layers])
    if any(layer.skipped for layer in plan.layers):
        from lit_prune.models.transformed import transformed_config

        smaller = transformed_config(smaller)
    try:
        if not plan.uniform:
            # Some configs validate the global number of heads.
            if any(len(layer.heads) != kept.num_attention_heads for layer in plan.layers):
                smaller.allow_global_per_layer_attribute_access = True
            smaller.per_layer_config = {
                place: _of_layer(smaller, anatomy, plan, layer) for place, layer in enumerate(plan.layers)
            }
        type(smaller).from_dict(smaller.to_dict())  # validates as loading does
    except (StrictDataclassError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"plan: the config of {config.model_type} cannot express it ({reason})") from error
    return smaller


def _of_layer(config: Any, anatomy: ModelFamily, plan: PrunePlan, layer: LayerPlan) -> dict[str, Any]:
    """Return what differs in a layer by the names in the config: its widths, and the sub-layers that it skips."""
    shape = plan.shape_of_layer(layer)
    widths = _widths(config, anatomy, shape.intermediate_size, shape.num_attention_heads, shape.num_key_value_heads)
    return {name: width for name, width in widths.items() if width} | {"skip": list(layer.skipped)}


def _widths(config: Any, anatomy: ModelFamily, neurons: int, heads: int, num_key_value_heads: int) -> dict[str, int]:
    """Return the widths of a layer by their names in the config."""
    widths = {anatomy.neurons: neurons, "num_attention_heads": heads}
    return widths | ({"num_key_value_heads": num_key_value_heads} if hasattr(config, "num_key_value_heads") else {})


def _per_layer_lists(config: Any, num_layers: int) -> dict[str, list[Any]]:
    """Return the config's lists with an entry per layer, such as `layer_types`; a list may be longer than the model."""
    return {
        name: value
        for name, value in vars(config).items()
        if "layer" in name and isinstance(value, list) and len(value) >= num_layers
    }


def _restore_embedding_scale(student: Any, model: Any) -> None:
    """Rescale the student's embeddings if the family multiplies them by a scale that depends on the hidden size.

    The ratio goes into the embedding table. If the table is tied to the head, the final norm is divided by the ratio.
    """
    ratio = _embedding_scale(model) / _embedding_scale(student)
    if ratio == 1:
        return
    anatomy, table = anatomy_of(model.config), student.get_input_embeddings().weight
    with torch.no_grad():
        table.mul_(ratio)
        if student.get_output_embeddings().weight is table:
            norm = student.get_submodule(anatomy.final_norm)
            norm.weight.add_(anatomy.norm_offset).div_(ratio).sub_(anatomy.norm_offset)


def _embedding_scale(model: Any) -> float:
    embedding = model.get_input_embeddings()
    scale = getattr(embedding, "embed_scale", None)
    return 1.0 if scale is None else float(scale.to(embedding.weight.dtype))


def _mask(model: Any, plan: PrunePlan) -> Any:
    masked = copy.deepcopy(model)
    weights = masked.state_dict()
    with torch.no_grad():
        for piece in _pieces(model.state_dict(), plan, model.config):
            weight = weights[piece.name].copy_(piece.weight)
            if piece.new_name is None:  # what is zeroed adds nothing to the residual stream
                weight.zero_()
            for dim, entries in piece.kept.items():
                gone = torch.ones(weight.shape[dim], dtype=torch.bool, device=weight.device)
                gone[entries] = False
                weight.movedim(dim, 0)[gone] = 0
    _narrow_norms(masked, plan)
    return masked.eval()


def _narrow_norms(model: Any, plan: PrunePlan) -> None:
    """Restrict norms over a cut axis to the kept channels."""
    anatomy, layers = anatomy_of(model.config), {layer.index: layer for layer in plan.layers}
    for name, norm in list(model.named_modules()):
        index, _ = anatomy.layer_of(name)
        if "Norm" not in type(norm).__name__ or (index is not None and index not in layers):
            continue
        layer = None if index is None else layers[index]
        shape = norm.normalized_shape if isinstance(norm, nn.LayerNorm) else norm.weight.shape
        kept = plan.entries(anatomy.axes_of(f"{name}.weight"), shape, layer).get(len(shape) - 1)
        if kept is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _NormOfKept(norm, kept.to(model.device)))


class _NormOfKept(nn.Module):
    """A norm over the kept channels; the others are zero in its output."""

    kept: Tensor

    def __init__(self, norm: Any, kept: Tensor) -> None:
        super().__init__()
        self.norm = norm
        for name, parameter in list(norm.named_parameters()):
            setattr(norm, name, nn.Parameter(parameter.detach()[kept]))
        if isinstance(norm, nn.LayerNorm):
            norm.normalized_shape = (len(kept),)
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised states: [..., channels] -> [..., channels]."""
        normed = self.norm(x[..., self.kept])
        return normed.new_zeros(x.shape).index_copy(-1, self.kept, normed)
