"""Scores and a target shape -> a plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_prune.importance.criteria import Scores
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.shape import Shape, shape_of


def uniform(scores: Scores, target: Shape, config: Any) -> PrunePlan:
    """The same width in every block: the best neurons of each block, the best heads of each KV group, the best hidden
    channels of the model (Minitron, section 2.3)."""
    groups = config.num_key_value_heads
    return PrunePlan(
        original=shape_of(config),
        hidden=_best(scores["hidden"][0], target.hidden),
        neurons=tuple(_best(block, target.neurons) for block in scores["neuron"]),
        heads=tuple(_best_in_groups(block, target.heads // groups, groups) for block in scores["head"]),
    )


def _best(scores: Tensor, count: int) -> tuple[int, ...]:
    """Indices of the `count` highest scores, ascending; ties go to the lower index."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return tuple(sorted(order[:count].tolist()))


def _best_in_groups(scores: Tensor, count: int, groups: int) -> tuple[int, ...]:
    """Indices of the `count` best query heads of each KV group."""
    size = len(scores) // groups
    return tuple(g * size + i for g, group in enumerate(scores.view(groups, size)) for i in _best(group, count))
