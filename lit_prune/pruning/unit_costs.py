"""Cost of a model whose layers keep different numbers of neurons and KV groups, and plans within a limit."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lit_prune.config import ConfigError, Size
from lit_prune.models.model_family import anatomy_of, head_dim_of, layers_of
from lit_prune.models.shape import ModelShape, meta_model, parameter_counter, shape_of
from lit_prune.pruning.plan import LayerPlan, PrunePlan


@dataclass(frozen=True)
class UnitCosts:
    """Costs of the units of a model; the cost of a plan is the sum over what it keeps.

    Every kept layer keeps at least one neuron and one KV group, or drops its MLP or attention as a whole.
    """

    whole: ModelShape
    total: int
    """Cost of the whole model."""
    neuron: int
    """Cost of one neuron in one layer."""
    group: int
    """Cost of one KV group with its query heads in one layer."""
    layer: int
    """Cost of one whole layer."""
    fixed: Mapping[str, int]
    """Cost of what one layer has of `attention` and of `mlp` however wide they are: norms and biases."""
    prunes_groups: bool
    """Whether the family lets KV groups be pruned while all hidden channels stay."""
    needs_full_layer: bool
    """Whether one layer must keep all KV groups, since the family's config only allows numbers of heads that divide the
    hidden size and holds the largest number of all layers."""

    @staticmethod
    def parameters(config: Any) -> UnitCosts:
        """Return the costs in parameters of a model with this config."""
        whole, count, anatomy = shape_of(config), parameter_counter(config), anatomy_of(config)
        groups = whole.num_key_value_heads + 1
        more = {
            "neuron": replace(whole, intermediate_size=whole.intermediate_size + 1),
            "group": replace(whole, num_attention_heads=groups * whole.heads_per_group, num_key_value_heads=groups),
        }
        total, layers = count(whole), whole.num_hidden_layers
        prices = {name: (count(shape) - total) // layers for name, shape in more.items()}
        layer = count(replace(whole, num_hidden_layers=layers + 1)) - total
        wide = {
            "attention": prices["group"] * whole.num_key_value_heads,
            "mlp": prices["neuron"] * whole.intermediate_size,
        }
        fixed = {kind: _of_sublayer(config, kind) - width for kind, width in wide.items()}
        return UnitCosts(
            whole, total, prices["neuron"], prices["group"], layer, fixed, not anatomy.tied_width, anatomy.whole_heads
        )

    def in_memory(self, config: Any, tokens: int, num_bytes: int) -> UnitCosts:
        """Return the costs in bytes of weights and of a cache of keys and values, from these costs in parameters.

        The cache holds `tokens` tokens in every layer, also beyond its attention window; a number takes `num_bytes`.
        """
        cache = 2 * head_dim_of(config) * tokens
        caches = cache * self.whole.num_key_value_heads
        return replace(
            self, total=num_bytes * (self.total + caches * self.whole.num_hidden_layers),
            neuron=num_bytes * self.neuron, group=num_bytes * (self.group + cache),
            layer=num_bytes * (self.layer + caches), fixed={kind: num_bytes * n for kind, n in self.fixed.items()},
        )  # fmt: skip

    @property
    def outside(self) -> int:
        """Cost of all that lies outside the layers."""
        return self.total - self.whole.num_hidden_layers * self.layer

    @property
    def besides(self) -> int:
        """Cost of what a layer has besides attention and MLP."""
        return self.layer - self.attention(self.whole.num_key_value_heads) - self.mlp(self.whole.intermediate_size)

    def attention(self, groups: int) -> int:
        """Return the cost of the attention of a layer with so many KV groups; 0 without any."""
        return self.fixed["attention"] + groups * self.group if groups else 0

    def mlp(self, neurons: int) -> int:
        """Return the cost of the MLP of a layer with so many neurons; 0 without any."""
        return self.fixed["mlp"] + neurons * self.neuron if neurons else 0

    def of(self, plan: PrunePlan) -> int:
        """Return the cost of a model that keeps all hidden channels and these units."""
        cut = (self.whole.num_hidden_layers - len(plan.layers)) * self.layer
        for layer in plan.layers:
            cut += (self.whole.intermediate_size - len(layer.neurons)) * self.neuron
            cut += (self.whole.num_key_value_heads - len(plan.groups_of(layer))) * self.group
            cut += sum(self.fixed[kind] for kind in layer.skipped)
        return self.total - cut

    def limit(self, size: Size, field: str, least: int) -> int:
        """Return the limit of a cost, given by a field as a count or as a share of the whole model's.

        Raises:
            ConfigError: if it is neither, above the cost of the whole model, or below `least`.
        """
        if size is None or isinstance(size, str) or (isinstance(size, float) and not 0 < size <= 1):
            raise ConfigError(f"{field}: must be a count or a share in (0, 1], got {size}")
        wanted = round(size * self.total) if isinstance(size, float) else size
        if not least <= wanted <= self.total:
            raise ConfigError(f"{field}: must be {least:,} to {self.total:,} for this model, got {wanted:,}")
        return wanted

    def smallest(self) -> PrunePlan:
        """Return a plan that keeps all layers and as little of each as possible."""
        return self._first(1, 1)

    def even(self, limit: int) -> PrunePlan:
        """Return a plan within the limit that keeps the first units, about equally many in every layer.

        It has the size of the plans that a search within this limit can return, before any unit is scored. Layers are
        dropped only if the smallest width of all of them exceeds the limit.
        """
        plan = self._even_share(limit)
        room, layers = limit - self.of(plan), []
        for layer in plan.layers:
            groups = len(plan.groups_of(layer))
            more = min(room // self.group, self.whole.num_key_value_heads - groups)
            layers.append(replace(layer, heads=self.whole.heads_of(range(groups + more))))
            room -= more * self.group
        for i, layer in enumerate(layers):
            more = min(room // self.neuron, self.whole.intermediate_size - len(layer.neurons))
            layers[i] = replace(layer, neurons=tuple(range(len(layer.neurons) + more)))
            room -= more * self.neuron
        return dataclasses.replace(plan, layers=tuple(layers))

    def _even_share(self, limit: int) -> PrunePlan:
        """Return the plan of the largest share of neurons and KV groups within the limit, or of the most layers."""

        def at(share: int) -> PrunePlan:
            neurons, groups = self.whole.intermediate_size, self.whole.num_key_value_heads
            return self._first(max(1, neurons * share // _SHARES), max(1, groups * share // _SHARES))

        if share := bisect.bisect_right(range(1, _SHARES + 1), limit, key=lambda share: self.of(at(share))):
            return at(share)
        least = self.smallest()
        plans = (replace(least, layers=least.layers[:layers]) for layers in range(len(least.layers), 0, -1))
        return next(plan for plan in plans if self.of(plan) <= limit)

    def _first(self, neurons: int, groups: int) -> PrunePlan:
        """Return a plan that keeps the first neurons and KV groups of every layer."""
        most = self.whole.num_key_value_heads
        groups = groups if self.prunes_groups else most
        counts = [most if i == 0 and self.needs_full_layer else groups for i in range(self.whole.num_hidden_layers)]
        kept = tuple(range(neurons))
        layers = (LayerPlan(i, kept, self.whole.heads_of(range(count))) for i, count in enumerate(counts))
        return replace(PrunePlan.everything(self.whole), layers=tuple(layers))


def _of_sublayer(config: Any, kind: str) -> int:
    """Return the parameters of a sub-layer of one layer."""
    anatomy, (layer, *_) = anatomy_of(config), layers_of(meta_model(config))
    return sum(one.numel() for name, one in layer.named_parameters() if anatomy.sublayer_of(name) == kind)


_SHARES = 1024
"""Number of shares that `even` tries."""
