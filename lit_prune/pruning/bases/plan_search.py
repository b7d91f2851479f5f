"""Methods that search the units to keep within a budget of parameters or memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lit_prune.config import ConfigError, PruneMethod, Size
from lit_prune.config.fields import Natural
from lit_prune.pruning.context import PruneContext, Pruned

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan
    from lit_prune.pruning.unit_costs import UnitCosts
    from lit_prune.pruning.units import UnitSpace


@dataclass(frozen=True)
class PlanSearch(PruneMethod):
    """Base class of methods that search the units to keep within a budget, so that layers may differ in width."""

    num_parameters: Size = 0.75
    """Parameters to keep, a count or a share."""
    memory: int | float | None = None
    """Bytes of weights and KV cache in bfloat16 to keep, a count or a share; `num_parameters` must then be null."""
    cache_tokens: Natural = 8192
    """Tokens in the KV cache that `memory` counts, over all sequences of a batch."""

    keeps_zeros: ClassVar[bool] = True

    @property
    def equal_layers(self) -> bool:
        """Whether the config alone tells the width of every layer: only for a given plan."""
        return self.plan_path is not None

    def search(self, model: Any, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units to keep, and a copy of the model with changed weights or None."""
        raise TypeError(f"{type(self).__name__}.search: must be defined by the method")

    def budget(self, config: Any) -> tuple[UnitCosts, int]:
        """Return the costs of a model's units, in parameters or bytes, and their limit.

        Raises:
            ConfigError: if the limit cannot be reached.
        """
        from lit_prune.pruning.unit_costs import UnitCosts

        costs = UnitCosts.parameters(config)
        if self.memory is None:
            return costs, costs.limit(self.num_parameters, "prune.num_parameters", self.least(costs))
        if self.num_parameters is not None:
            raise ConfigError(f"prune.num_parameters: must be null with prune.memory, got {self.num_parameters}")
        costs = costs.in_memory(config, self.cache_tokens, num_bytes=2)
        return costs, costs.limit(self.memory, "prune.memory", self.least(costs))

    def least(self, costs: UnitCosts) -> int:
        """Return the cost of the smallest model that `search` can return."""
        return costs.of(costs.smallest())

    def shape_plan(self, config: Any) -> PrunePlan:
        """Return a plan as large as `search` may return, or the given one; raise a ConfigError if there is none."""
        from lit_prune.pruning.prune import load_plan

        if self.plan_path:
            plan = load_plan(self)
        else:
            costs, limit = self.budget(config)
            plan = costs.even(limit)
        plan.check(config)
        return plan

    def check(self, config: Any) -> None:
        """Raise a ConfigError if a model with this config cannot be pruned with these settings."""
        self.config_of(config)

    def config_of(self, config: Any) -> Any:
        """Return the Hugging Face config of a student of the requested size.

        The search decides how many units each layer keeps; before it, all are expected to keep about equally many.
        """
        from lit_prune.pruning import surgery

        return surgery.smaller_config(config, self.shape_plan(config))

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Search the units to keep, and return the smaller model."""
        return self.cut(
            model, ctx, *((self.shape_plan(model.config), None) if self.plan_path else self.search(model, ctx))
        )

    def cut(self, model: Any, ctx: PruneContext, plan: PrunePlan, changed: Any = None) -> Pruned:
        """Return the student that a plan cuts out of a model, or out of a `changed` copy with other weights."""
        from lit_prune.models.shape import shape_of
        from lit_prune.pruning import surgery
        from lit_prune.pruning.plan import PrunePlan

        ctx.say("pruning")
        whole = changed is None and plan == PrunePlan.everything(shape_of(model.config))
        student = model if whole else surgery.apply(changed or model, plan).to(model.device)
        requested = {name: None if self.plan_path else getattr(self, name) for name in ("num_parameters", "memory")}
        achieved: dict[str, Any] = plan.sizes | {"num_parameters": student.num_parameters()}
        if requested["memory"] is not None:
            achieved["memory"] = self.budget(model.config)[0].of(plan)
        return Pruned(student, requested, achieved, plan)


@dataclass(frozen=True)
class LearnAndCut(PlanSearch):
    """Base class of methods that train to find the KV groups and neurons to keep within a budget, over all layers.

    Every layer keeps at least one of each.
    """

    keeps_zeros: ClassVar[bool] = False  # weights are trained without the masks

    def learn(self, model: Any, space: UnitSpace, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units to keep, and a copy of the model with trained weights or None."""
        raise TypeError(f"{type(self).__name__}.learn: must be defined by the method")

    def search(self, model: Any, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units that training keeps, and a copy of the model with trained weights or None."""
        from lit_prune.pruning.units import UnitSpace

        return self.learn(model, UnitSpace.within(model.config, *self.budget(model.config)), ctx)
