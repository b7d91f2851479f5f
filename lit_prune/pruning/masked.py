"""Run a model as if the units that a plan prunes were cut, without building the smaller model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.data.tokens import IGNORED
from lit_prune.importance.aggregate import double
from lit_prune.importance.layer_ablation import next_token_losses, sequences_at_once
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.pruning.plan import LayerPlan, PrunePlan


@contextmanager
def masked(model: Any, plan: PrunePlan) -> Iterator[None]:
    """Make the model compute the logits of the model cut by `plan`, by hooks that are removed afterwards.

    Neurons and heads are zeroed at the input of the output projections, norms over all heads average over the kept
    ones, and dropped layers return their input. The plan must keep all hidden channels and merge no heads.
    """
    if len(plan.hidden) < plan.original.hidden_size or any(layer.merges for layer in plan.layers):
        raise ValueError("masked: a plan that prunes hidden channels or merges heads needs surgery.apply")
    kept = {layer.index: layer for layer in plan.layers}
    with ExitStack() as hooks:
        for index, module in enumerate(layers_of(model)):
            if index in kept:
                _mask_layer(model, module, plan, kept[index], hooks)
            else:
                hooks.callback(module.register_forward_hook(_return_input).remove)
        yield


def _mask_layer(model: Any, module: nn.Module, plan: PrunePlan, layer: LayerPlan, hooks: ExitStack) -> None:
    anatomy = anatomy_of(model.config)
    for path in (anatomy.attention_output, anatomy.mlp_output, *anatomy.wide_norms):
        part: Any = module.get_submodule(path)
        cut = plan.entries(anatomy.axes_of(f"{path}.weight"), part.weight.shape, layer)
        for dim, entries in cut.items():
            gone = torch.ones(part.weight.shape[dim], dtype=torch.bool)
            gone[entries] = False
            # A norm divides by the root of the mean square over all channels, of which only these remain.
            scale = (len(gone) / len(entries)) ** 0.5 if path in anatomy.wide_norms else 1.0
            hooks.callback(part.register_forward_pre_hook(_zeroing(gone.to(part.weight.device), scale)).remove)
            if scale != 1:
                hooks.callback(part.register_forward_hook(_dividing(scale)).remove)


def _zeroing(gone: Tensor, scale: float) -> Any:
    def zero(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0].masked_fill(gone, 0)
        return (x if scale == 1 else x * scale, *inputs[1:])

    return zero


def _dividing(scale: float) -> Any:
    return lambda module, inputs, output: output / scale


def _return_input(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
    return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]


@torch.inference_mode()
def mean_loss(model: Any, batches: Iterable[dict[str, Tensor]]) -> float:
    """Return the language-model loss in nats per scored token over batches {`input_ids`, `labels`}, without gradients.

    A batch is split into parts whose logits fit the memory limit.
    """
    total, count = 0.0, 0
    for batch in batches:
        size = sequences_at_once(batch["input_ids"], model.config.vocab_size)
        for ids, labels in zip(batch["input_ids"].split(size), batch["labels"].split(size), strict=True):
            losses = next_token_losses(model(input_ids=ids, use_cache=False).logits, labels)
            total += float(double(losses).sum())
            count += int((labels[:, 1:] != IGNORED).sum())
    return total / count
