"""Check a loaded model against the description of its family, on a few tokens.

A description that misses a computation of a family gives wrong losses and wrong students without an error: a missing
logit scale changed a perplexity from 2e3 to 5e32. So every loaded model is checked: its head, the modules that
importance and distillation read, and the axes that surgery cuts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lit_prune.config import ConfigError
from lit_prune.models.files import named
from lit_prune.models.lm_head import head_of, last_states
from lit_prune.models.model_family import (
    Axis,
    ModelFamily,
    anatomy_of,
    head_dim_of,
    is_described,
    layers_of,
    parts_of,
)
from lit_prune.models.shape import ModelShape, widths_of

TOLERANCE = 1e-3
"""Largest allowed difference relative to the largest entry: far above float32 rounding, far below a missing step."""

_NEGLIGIBLE = 1e-3
"""A layer whose output is a smaller fraction of the residual stream is compared after adding it to the stream."""

_AXES = {"hidden channels": ("hidden",), "neurons": ("neuron",), "heads": ("head", "kv_group")}


def check_pieces(model: Any, location: str) -> None:
    """Check that the float32 model at `location` computes what the description of its family states.

    Takes two forward passes over 16 tokens, and three more through the first and the last layer with attention and MLP.
    Models without a description pass; `anatomy_of` raises an error as soon as one of their parts is needed.

    Raises:
        ConfigError: if a part of the model is not as described.
    """
    if not is_described(model.config):
        return
    try:
        anatomy = anatomy_of(model.config)
    except ConfigError:  # a variant that is not described
        return
    try:
        with torch.no_grad():
            comparisons = _comparisons(model, anatomy)
            wrong = next((what for what, ours, theirs in comparisons if not _same(ours, theirs)), None)
    except (AttributeError, KeyError) as error:
        wrong = f"module {error}"
    if wrong is not None:
        raise ConfigError(
            f"{named(location)}: {model.config.model_type} must be as lit_prune/models/families.py describes it, but "
            f"its {wrong} differs"
        )


class _Call(NamedTuple):
    """Inputs and output of a module call."""

    inputs: tuple[Any, ...]
    keywords: dict[str, Any]
    result: Any

    @property
    def input(self) -> Tensor:
        assert isinstance(self.inputs[0], Tensor)
        return self.inputs[0]

    @property
    def output(self) -> Tensor:
        output = self.result[0] if isinstance(self.result, tuple) else self.result
        assert isinstance(output, Tensor)
        return output


def _comparisons(model: Any, anatomy: ModelFamily) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield parts of the model, each with the value expected from the description and the model's own value."""
    layers = layers_of(model)
    shapes = [widths_of(model.config, i) for i in range(len(layers))]
    complete = [i for i, shape in enumerate(shapes) if shape.num_attention_heads and shape.intermediate_size]
    checked = sorted({*complete[:1], *complete[-1:]})
    parts = [p for p in _parts(anatomy) if p]
    modules = {anatomy.final_norm: model.get_submodule(anatomy.final_norm)}
    modules |= {str(i): layer for i, layer in enumerate(layers)}
    modules |= {f"{i}.{part}": layers[i].get_submodule(part) for i in checked for part in parts}
    ids = _few_tokens(model.config).to(model.device)
    logits, calls = _traced(model, ids, modules)

    final, states = calls[anatomy.final_norm], last_states(model, ids)
    yield "head", head_of(model).logits(states), logits
    yield "final norm", final.output, states
    yield "final norm", _normed(modules[anatomy.final_norm], anatomy, final.input), final.output
    entering = [calls[str(i)].input for i in range(len(layers))] + [final.input]
    for i in range(len(layers)):
        yield f"residual stream after layer {i}", calls[str(i)].output, entering[i + 1]
    for i in checked:
        shape = shapes[i]
        inside = {part: calls[f"{i}.{part}"] for part in parts}
        for what, ours, theirs in _inside(anatomy, shape, head_dim_of(model.config), layers[i], inside, entering[i]):
            yield f"{what} in layer {i}", ours, theirs
        for name, parameter in layers[i].named_parameters():
            axes = anatomy.axes_of(f"{anatomy.layers}.{i}.{name}")
            yield f"number of axes of {name} in layer {i}", _number(len(axes)), _number(parameter.dim())
            for axis, size in zip(axes, parameter.shape, strict=True):
                rest = size % sum(map(shape.units, parts_of(axis))) if parts_of(axis) else 0
                yield f"size of {name} in layer {i}", _number(rest), _number(0)
        for what, turned in _AXES.items():
            ours, theirs = _reordered(anatomy, shape, layers[i], f"{anatomy.layers}.{i}", calls[str(i)], turned)
            yield f"output of layer {i} with its {what} in another order", ours, theirs


def _parts(anatomy: ModelFamily) -> tuple[str | None, ...]:
    """Return the names of a layer's modules in the description."""
    return (
        anatomy.input_norm, *anatomy.attention_input, anatomy.attention_output, anatomy.mlp_norm, anatomy.mlp,
        *anatomy.mlp_input, anatomy.activation, anatomy.mlp_output,
    )  # fmt: skip


def _few_tokens(config: Any) -> Tensor:
    """Return token ids, int64 [2, 8], without padding, for which transformers would warn."""
    positions = getattr(config, "max_position_embeddings", None) or 8
    ids = torch.arange(2 * min(8, positions)).view(2, -1) * 7919 % config.vocab_size
    pad = getattr(config, "pad_token_id", None)
    return ids if pad is None else torch.where(ids == pad, (ids + 1) % config.vocab_size, ids)


def _traced(model: Any, ids: Tensor, modules: dict[str, nn.Module]) -> tuple[Tensor, dict[str, _Call]]:
    """Return the logits [batch, seq, vocab] and the recorded call of each module, by name."""
    calls: dict[str, _Call] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, keywords, output: calls.update({name: _Call(inputs, keywords, output)})

    handles = [module.register_forward_hook(keep(name), with_kwargs=True) for name, module in modules.items()]
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, calls


def _inside(
    anatomy: ModelFamily, shape: ModelShape, head_dim: int, layer: nn.Module, calls: dict[str, _Call], stream: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the comparisons, as `_comparisons`, of the parts of one layer with the input `stream`."""
    for norm in (anatomy.input_norm, anatomy.mlp_norm):
        if norm is not None:
            yield f"norm {norm}", _normed(layer.get_submodule(norm), anatomy, calls[norm].input), calls[norm].output

    read = stream if anatomy.input_norm is None else calls[anatomy.input_norm].output
    for linear in anatomy.attention_input:
        yield f"input of {linear}", read, calls[linear].input
    made = sum(calls[linear].output.shape[-1] for linear in anatomy.attention_input)
    yield (
        "width of queries, keys and values",
        _number((shape.num_attention_heads + 2 * shape.num_key_value_heads) * head_dim),
        _number(made),
    )
    if anatomy.query is not None:
        yield "width of the queries", _number(shape.num_attention_heads * head_dim), _width(calls[anatomy.query].output)
    yield (
        "width of the heads",
        _number(shape.num_attention_heads * head_dim),
        _width(calls[anatomy.attention_output].input),
    )

    read = calls[anatomy.mlp_input[0]].input
    for name in (anatomy.mlp_norm, anatomy.mlp):
        if name is not None:
            theirs = calls[name].output if name == anatomy.mlp_norm else calls[name].input
            yield (
                f"input of the MLP at {name}",
                theirs.flatten(0, -2),
                read.flatten(0, -2),
            )  # OPT's MLP flattens batch and sequence
    for linear in anatomy.mlp_input:
        yield f"input of {linear}", read, calls[linear].input
    neurons = torch.cat([calls[linear].output for linear in anatomy.mlp_input], -1)
    yield "number of neurons", _number(shape.intermediate_size * (1 + anatomy.gated)), _width(neurons)
    if anatomy.activation is not None:
        active = calls[anatomy.activation].output
        yield f"input of {anatomy.activation}", neurons[..., : shape.intermediate_size], calls[anatomy.activation].input
        product = active * neurons[..., shape.intermediate_size :] if anatomy.gated else active
        yield f"input of {anatomy.mlp_output}", product, calls[anatomy.mlp_output].input


def _normed(norm: nn.Module, anatomy: ModelFamily, x: Tensor) -> Tensor:
    """Return x after a norm of the described kind with the weights of `norm`."""
    layer, weight, bias = anatomy.norm == "layer", getattr(norm, "weight", None), getattr(norm, "bias", None)
    x = x - x.mean(-1, keepdim=True) if layer else x
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
    x = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
    x = x if weight is None else x * (weight + anatomy.norm_offset)
    return x if bias is None else x + bias


def _reordered(
    anatomy: ModelFamily, shape: ModelShape, layer: nn.Module, path: str, call: _Call, axes: tuple[str, ...]
) -> tuple[Tensor, Tensor]:
    """Return what a layer adds to the residual stream with the units of some axes reversed, and unchanged.

    The two are equal if every parameter has the described axes: then all weights of a unit can be cut together.
    """
    turned = {}
    for name, parameter in layer.named_parameters():
        weight: Tensor = parameter
        for dim, axis in enumerate(anatomy.axes_of(f"{path}.{name}")):
            weight = _turned(weight, dim, axis, shape, axes)
        turned[name] = weight
    stream = call.input.flip(-1) if "hidden" in axes else call.input
    found = functional_call(layer, turned, (stream, *call.inputs[1:]), call.keywords)
    found = found[0] if isinstance(found, tuple) else found
    ours, theirs = found - stream, call.output - call.input
    if theirs.abs().max() <= _NEGLIGIBLE * call.input.abs().max():
        ours, theirs = found, call.output
    return ours.flip(-1) if "hidden" in axes else ours, theirs


def _turned(parameter: Tensor, dim: int, axis: Axis, shape: ModelShape, axes: tuple[str, ...]) -> Tensor:
    """Return a parameter with the units of some axes in reverse order along a dimension."""
    parts = parts_of(axis)
    if not set(parts) & set(axes):
        return parameter
    entries = parameter.shape[dim] // sum(map(shape.units, parts))
    pieces = parameter.split([entries * shape.units(part) for part in parts], dim)
    turned = [
        piece.unflatten(dim, (-1, entries)).flip(dim).flatten(dim, dim + 1) if part in axes else piece
        for part, piece in zip(parts, pieces, strict=True)
    ]
    return torch.cat(turned, dim)


def _number(value: int) -> Tensor:
    return torch.tensor(float(value))


def _width(x: Tensor) -> Tensor:
    return _number(x.shape[-1])


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two values agree up to rounding; non-finite values pass, since later code reports them."""
    if ours.shape != theirs.shape:
        return False
    if not theirs.isfinite().all():
        return True
    return bool((ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max())
