"""Sizes at which different methods remove the same number of parameters from the layers of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lit_prune.config import ConfigError, Prune
from lit_prune.models.model_family import anatomy_of
from lit_prune.models.shape import ModelShape, meta_model, parameter_counter, shape_of
from lit_prune.pruning.low_rank import low_rank_config
from lit_prune.pruning.target import target
from lit_prune.pruning.unit_costs import UnitCosts

_SHARES = 256
"""Number of shares that are tried where several sizes share one, and of ranks."""


@dataclass(frozen=True)
class LayerBudget:
    """A share of the parameters of all layers to remove from a model with this config; embedding and head are apart."""

    config: Any
    share: float

    @cached_property
    def costs(self) -> UnitCosts:
        """Parameters of the units of the model."""
        return UnitCosts.parameters(self.config)

    @cached_property
    def removed(self) -> int:
        """Parameters to remove."""
        return round(self.share * self.costs.layer * self.costs.whole.num_hidden_layers)

    @cached_property
    def kept(self) -> int:
        """Parameters that the layers keep."""
        return self.costs.layer * self.costs.whole.num_hidden_layers - self.removed

    @property
    def num_parameters(self) -> int:
        """Parameters of the student, if embedding and head stay as they are."""
        return self.costs.total - self.removed

    @property
    def num_hidden_layers(self) -> int:
        """Whole layers to keep, at least one."""
        return max(1, round(self.kept / self.costs.layer))

    @property
    def neurons(self) -> int:
        """Neurons to keep in each layer, if nothing else is removed.

        Raises:
            ConfigError: if the MLPs have fewer parameters than are removed.
        """
        return self._neurons(self.removed / self.costs.whole.num_hidden_layers)

    def units(self, spare_first: int = 0, spare_last: int = 0) -> tuple[int, int]:
        """Return neurons and KV groups to keep in every layer but the first and last ones, alike shares of both.

        Raises:
            ConfigError: if the other layers have fewer parameters than are removed.
        """
        whole, costs, size = self.costs.whole, self.costs, self._heads_per_group
        removed = self.removed / max(1, whole.num_hidden_layers - spare_first - spare_last)
        share, found = 1 - removed / costs.layer, []
        for groups in range(1, whole.num_key_value_heads + 1):
            allowed = groups == whole.num_key_value_heads or (
                costs.prunes_groups and not (costs.needs_full_layer and whole.hidden_size % (groups * size))
            )
            rest = removed - (whole.num_key_value_heads - groups) * costs.group
            if allowed and 0 <= rest / costs.neuron <= whole.intermediate_size - 1:
                found.append((abs(groups / whole.num_key_value_heads - share), -groups, self._neurons(rest)))
        if not found:
            raise ConfigError(f"prune: cannot remove {self.removed:,} parameters from the layers that are not spared")
        _, groups, neurons = min(found)
        return neurons, -groups

    def shape(self, recipe: Callable[[float], Prune]) -> ModelShape:
        """Return a shape that is pruned on several axes: by a recipe for a share of them all, nearest to the budget.

        The neurons then make up for what the rounding of the other axes has left.
        """
        shapes = {target(recipe(i / _SHARES), self.config) for i in range(1, _SHARES + 1)}
        nearest = min(shapes, key=lambda shape: (abs(self._inside(shape) - self.kept), self._inside(shape)))
        neuron = self._inside(replace(nearest, intermediate_size=nearest.intermediate_size + 1)) - self._inside(nearest)
        neurons = nearest.intermediate_size + round((self.kept - self._inside(nearest)) / neuron)
        return replace(nearest, intermediate_size=max(1, min(self.costs.whole.intermediate_size, neurons)))

    def sliced_width(self) -> int:
        """Return the width of the residual stream of `slicegpt`, a multiple of 8: its shortcuts count too."""
        whole = self.costs.whole

        def inside(width: int) -> int:
            shortcuts = 2 * width**2 * whole.num_hidden_layers
            return self._inside(replace(whole, hidden_size=width)) + shortcuts

        return min(range(8, whole.hidden_size + 1, 8), key=lambda width: abs(inside(width) - self.kept))

    def rank(self) -> float:
        """Return the rank of `plrd` as a share, with which its factors are nearest to the budget."""
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]

        def excess(rank: int) -> float:
            try:
                lower = low_rank_config(config, rank / _SHARES)
            except ConfigError:  # no linear gets smaller
                lower = config
            inside = f"{anatomy_of(config).layers}."
            parameters = meta_model(lower).named_parameters()
            size = sum(p.numel() for name, p in parameters if name.startswith(inside))
            return size * self.costs.whole.num_hidden_layers - self.kept

        low, high = 1, _SHARES - 1
        while high - low > 1:  # the size grows with the rank
            middle = (low + high) // 2
            low, high = (middle, high) if excess(middle) < 0 else (low, middle)
        return min((low, high), key=lambda rank: abs(excess(rank))) / _SHARES

    @cached_property
    def _count(self) -> Callable[[ModelShape], int]:
        return parameter_counter(self.config)

    @property
    def _heads_per_group(self) -> int:
        return shape_of(self.config).heads_per_group

    def _inside(self, shape: ModelShape) -> int:
        """Return the parameters inside the layers of a shape."""
        return self._count(shape) - self._count(replace(shape, num_hidden_layers=0))

    def _neurons(self, removed: float) -> int:
        """Return the neurons that a layer keeps without about this number of parameters."""
        kept = self.costs.whole.intermediate_size - round(removed / self.costs.neuron)
        if kept < 1:
            raise ConfigError(f"prune.intermediate_size: must be >= 1, got {kept}: the budget exceeds the neurons")
        return kept
