"""Prune inputs of a linear module and correct its other weights by least squares, in closed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_prune.importance.aggregate import double
from lit_prune.importance.calibration_pass import check_finite
from lit_prune.pruning.allocate import best
from lit_prune.pruning.layerwise import LayerStep
from lit_prune.pruning.plan import Indices


def prune_inputs(step: LayerStep, path: str, units: int, count: int, damping: float | None) -> Indices:
    """Zero the weights of all but the best `count` units of a linear module's inputs, and return these.

    A unit is a neuron or a KV group: `units` of them divide the inputs. The best have the highest column scores in
    total. Their weights are corrected, unless `damping` is None.
    """
    linear: Any = step.layer.get_submodule(path)
    turned = isinstance(linear, Conv1D)  # [inputs, outputs]
    weight, gram = linear.weight.T if turned else linear.weight, input_gram(step, path)
    chosen = best(column_scores(weight, gram).unflatten(0, (units, -1)).sum(1), count)
    kept = torch.arange(len(gram), device=gram.device).view(units, -1)[list(chosen)].flatten()
    pruned = corrected(weight, gram, kept, damping)
    with torch.no_grad():
        linear.weight.copy_(pruned.T if turned else pruned)
    return chosen


def input_gram(step: LayerStep, path: str) -> Tensor:
    """Return the sum over tokens of x x^T for the inputs x of a module of the layer, float64 [inputs, inputs].

    Raises:
        ConfigError: if an input is not finite.
    """
    grams: list[Tensor] = []

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = double(inputs[0].flatten(0, -2))
        grams[:] = [x.T @ x + sum(grams)]

    handle = step.layer.get_submodule(path).register_forward_pre_hook(add)
    try:
        step.run()
    finally:
        handle.remove()
    check_finite(f"the input of {path} in layer {step.index}", grams[0])
    return grams[0]


def column_scores(weight: Tensor, gram: Tensor) -> Tensor:
    """Return sum_i |W_ij| times the L2 norm of input j, for W [outputs, inputs]: float64 [inputs] (FASP)."""
    return double(weight).abs().sum(0) * gram.diagonal().sqrt()


@torch.no_grad()
def corrected(weight: Tensor, gram: Tensor, kept: Tensor, damping: float | None) -> Tensor:
    """Return weights [outputs, inputs] in float64 that are zero for all inputs but the `kept` ones.

    With the kept inputs M and the others P, the weights of M grow by the D that minimises
    |W_P X_P - D X_M|^2 + delta |D|^2, where delta is `damping` times the mean of the diagonal of X_M X_M^T. As D = 0 is
    a candidate, the output for these X is never further from the unpruned one than without D. None makes D zero.
    """
    weight, pruned = double(weight).clone(), torch.ones(len(gram), dtype=torch.bool, device=gram.device)
    pruned[kept] = False
    if damping is not None:
        inner = gram[kept][:, kept]
        delta = (damping * inner.diagonal().mean()).clamp_min(torch.finfo(gram.dtype).tiny)
        inner.diagonal().add_(delta)
        weight[:, kept] += torch.linalg.solve(inner, gram[kept][:, pruned] @ weight[:, pruned].T).T
    weight[:, pruned] = 0
    return weight
