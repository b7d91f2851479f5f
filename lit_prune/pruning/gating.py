"""Run a model with factors on its units, without a change of its weights: a unit with the factor 0 is as if cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.models.shape import shape_of


class LayerGates(NamedTuple):
    """Factors of the units of a layer, or of the layer; None leaves them as they are."""

    neurons: Tensor | None = None
    """[neurons]."""
    heads: Tensor | None = None
    """[heads], or [KV groups] for all query heads of each."""
    update: Tensor | None = None
    """Factor of what the layer adds to the residual stream: []."""
    attention: Tensor | None = None
    """Factor of the output of attention, biases included: []."""
    mlp: Tensor | None = None
    """Factor of the output of the MLP, biases included: []."""


@contextmanager
def gated(model: Any, layers: Sequence[LayerGates], channels: Tensor | None = None) -> Iterator[None]:
    """Multiply the units of a model by factors in forward passes inside `with`, by hooks that are removed afterwards.

    `layers` has the factors for each layer; those of `channels` [hidden] multiply all that is written to a channel of
    the residual stream. Norms over all heads or channels average over those with a factor other than 0, as in the
    pruned model. Norms that subtract a mean over channels are not corrected.
    """
    anatomy = anatomy_of(model.config)
    with ExitStack() as hooks:
        for module, gates in zip(layers_of(model), layers, strict=True):
            if gates.neurons is not None:
                _add(hooks, module.get_submodule(anatomy.mlp_output).register_forward_pre_hook(_scale(gates.neurons)))
            if gates.heads is not None:
                output = module.get_submodule(anatomy.attention_output)
                _add(hooks, output.register_forward_pre_hook(_scale(gates.heads)))
            for path, factor in ((anatomy.attention_output, gates.attention), (anatomy.mlp_output, gates.mlp)):
                if factor is not None:
                    _add(hooks, module.get_submodule(path).register_forward_hook(_scale_output(factor)))
            if gates.update is not None:
                _add(hooks, module.register_forward_hook(_scale_update(gates.update)))
        if channels is not None:
            _gate_channels(model, channels, hooks)
        hooks.enter_context(open_heads_in_norms(model, layers))
        yield


@contextmanager
def open_heads_in_norms(model: Any, layers: Sequence[LayerGates]) -> Iterator[None]:
    """Make norms over all heads average over those with a factor other than 0, in forward passes inside `with`."""
    anatomy, groups = anatomy_of(model.config), shape_of(model.config).num_key_value_heads
    with ExitStack() as hooks:
        for module, gates in zip(layers_of(model), layers, strict=True):
            if gates.heads is None:
                continue
            for path in anatomy.wide_norms:
                norm: Any = module.get_submodule(path)
                kept = gates.heads.ne(0)
                if anatomy.axes_of(f"{path}.weight") == ("kv_group",):
                    kept = kept.view(groups, -1).any(1)
                kept = kept.repeat_interleave(len(norm.weight) // len(kept))
                _add(hooks, norm.register_forward_hook(_average_over(kept)))
        yield


def _add(hooks: ExitStack, handle: Any) -> None:
    hooks.callback(handle.remove)


def _scale(factors: Tensor) -> Any:
    """Return a hook that multiplies equal parts of a module's input [..., width] by `factors` [parts]."""

    def scale(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = inputs
        return (x * factors.repeat_interleave(x.shape[-1] // len(factors)).to(x), *others)

    return scale


def _scale_output(factor: Tensor) -> Any:
    return lambda module, inputs, output: output * factor.to(output)


def _scale_update(factor: Tensor) -> Any:
    def scale(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        scaled = inputs[0] + factor.to(first) * (first - inputs[0])
        return (scaled, *output[1:]) if isinstance(output, tuple) else scaled

    return scale


def _gate_channels(model: Any, factors: Tensor, hooks: ExitStack) -> None:
    """Multiply the outputs of all writers to the residual stream, and correct the norms that read it."""
    anatomy = anatomy_of(model.config)
    for name, module in model.named_modules():
        _, rest = anatomy.layer_of(name)
        if isinstance(module, nn.Embedding) or rest in (anatomy.attention_output, anatomy.mlp_output):
            _add(hooks, module.register_forward_hook(_scale_output(factors)))
        elif "Norm" in type(module).__name__ and anatomy.axes_of(f"{name}.weight") == ("hidden",):
            _add(hooks, module.register_forward_hook(_average_over(factors.ne(0))))


def _average_over(kept: Tensor) -> Any:
    """Return a hook that makes an RMS norm divide by the root of the mean square of the `kept` channels, bool [width].

    The other channels are divided by the same root, so that they have gradients.
    """

    def rescale(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        squares = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32)).square()
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0))
        mean = (squares * kept).sum(-1, keepdim=True) / kept.sum().clamp_min(1)
        return output * ((squares.mean(-1, keepdim=True) + eps) / (mean + eps)).sqrt().to(output)

    return rescale
