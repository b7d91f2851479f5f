"""Methods that choose a variant of attention and MLP for every layer within a budget, by a mixed-integer program."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lit_prune.config import ConfigError, Timing, later
from lit_prune.config.fields import Proportion
from lit_prune.pruning.bases.plan_search import PlanSearch
from lit_prune.pruning.context import PruneContext, Pruned

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan
    from lit_prune.pruning.unit_costs import UnitCosts
    from lit_prune.pruning.variants import Library


@dataclass(frozen=True)
class VariantSearch(PlanSearch):
    """Base class of methods that score variants of the layers and choose one for each."""

    mlp_widths: tuple[Proportion, ...] = (0.875, 0.75, 0.5, 0.25, 0.1)
    """Shares of the MLP neurons of a layer that it may keep, besides all."""
    kv_groups: tuple[Proportion, ...] = (0.75, 0.5, 0.25)
    """Shares of the KV groups of a layer that it may keep, besides all."""
    no_op_layers: bool = True
    """Whether whole layers may be dropped."""
    no_op_sublayers: bool = later(True, noop=False)
    """Whether a layer may lose its attention or its MLP alone. Only families built like Llama have such layers."""

    latency: Proportion | None = later(None, noop=None)
    """Share of the time of a forward pass to keep, as measured on this device; `num_parameters` must then be null. Only
    for families built like Llama."""
    timing: Timing = later(Timing(), noop=Timing())
    """The forward pass of `latency`."""

    def choose(self, model: Any, ctx: PruneContext, library: Library, limit: int) -> PrunePlan:
        """Return the best plan of the library whose cost is at most the limit."""
        raise TypeError(f"{type(self).__name__}.choose: must be defined by the method")

    def library(self, costs: UnitCosts) -> Library:
        """Return the variants of a layer."""
        from lit_prune.pruning.variants import Library

        return Library.of(costs, self.mlp_widths, self.kv_groups, self.no_op_layers, self.no_op_sublayers)

    def least(self, costs: UnitCosts) -> int:
        """Return the cost of the smallest model."""
        return self.library(costs).least()

    def budget(self, config: Any) -> tuple[UnitCosts, int]:
        """Return the costs of a model's units and their limit; before latencies are known, that share of parameters."""
        from lit_prune.pruning.unit_costs import UnitCosts

        if self.latency is None:
            return super().budget(config)
        for name in ("num_parameters", "memory"):
            if (size := getattr(self, name)) is not None:
                raise ConfigError(f"prune.{name}: must be null with prune.latency, got {size}")
        costs = UnitCosts.parameters(config)
        return costs, max(self.least(costs), round(self.latency * costs.total))

    def check_settings(self) -> None:
        """Raise a ConfigError for a setting without effect."""
        super().check_settings()
        if self.latency is None and self.timing != Timing():
            raise ConfigError(f"prune.timing: must be unset without prune.latency, got {self.timing}")

    def check(self, config: Any) -> None:
        """Raise a ConfigError if a model with this config cannot be pruned with these settings."""
        from lit_prune.models.model_family import LIKE_LLAMA, TRANSFORMED
        from lit_prune.models.positions import check_lengths

        family, allowed = config.model_type.removeprefix(TRANSFORMED), f"only layers of {', '.join(LIKE_LLAMA)}"
        if not self.plan_path and family not in LIKE_LLAMA:
            if self.no_op_sublayers:
                raise ConfigError(f"prune.no_op_sublayers: must be false for {family}; {allowed} can lack a sub-layer")
            if self.latency is not None:
                raise ConfigError(f"prune.latency: must be null for {family}; {allowed} can be timed in parts")
        super().check(config)
        if self.latency is not None:
            check_lengths({"prune.timing.seq_len": self.timing.seq_len}, config, "the model")

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of timing each variant in turns with the whole model; without `latency` 0."""
        if self.latency is None:
            return 0.0
        from lit_prune.pruning.latency import number_of_measurements

        passes = 2 * number_of_measurements(self.library(self.budget(work.config)[0])) * (1 + self.timing.num_repeats)
        return work.passes(passes * self.timing.batch_size * self.timing.seq_len / work.data.seq_len, 1)

    def search(self, model: Any, ctx: PruneContext) -> tuple[PrunePlan, None]:
        """Choose within the budget of parameters or memory."""
        costs, limit = self.budget(model.config)
        return self.choose(model, ctx, self.library(costs), limit), None

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Choose a variant for every layer, and return the smaller model."""
        if self.latency is None or self.plan_path is not None:
            return super().prune(model, ctx)
        from lit_prune.pruning import latency

        def watch() -> latency.Stopwatch:
            return latency.Stopwatch(model.config, self.timing, ctx.device, ctx.measured)

        library = self.library(self.budget(model.config)[0])
        count = ctx.counter("timing variants", latency.number_of_measurements(library), "variant")
        found = latency.measure(watch(), library, count)
        library, limit = latency.priced(library, found, self.latency)
        pruned = self.cut(model, ctx, self.choose(model, ctx, library, limit))
        assert pruned.plan is not None
        share = watch().share(pruned.model.config)
        report = latency.compared(library, found, pruned.plan, share) | {"conditions": watch().conditions}
        ctx.say(latency.in_words(report))
        return dataclasses.replace(
            pruned, requested={"latency": self.latency}, achieved=pruned.achieved | {"latency": share, "timing": report}
        )
