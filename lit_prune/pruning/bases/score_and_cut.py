"""Methods that keep whole units and know the sizes of the student before: chosen by scores, or in their own way."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from lit_prune.config import Prune, PruneMethod, Size
from lit_prune.pruning.context import PruneContext, Pruned

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan


class ScoreAndCut(PruneMethod):
    """Base class of methods that score units, keep the best and cut out the others, as `recipe` defines."""

    keeps_zeros: ClassVar[bool] = True

    def recipe(self, config: Any) -> Prune:
        """Return the sizes, criteria and allocators for a model with this config."""
        raise TypeError(f"{type(self).__name__}.recipe: must be defined by the method")

    def spared(self, layers: int) -> tuple[int, int]:
        """Return how many of the first and how many of the last of these layers stay unpruned; by default none."""
        return 0, 0

    def adjust(self, plan: PrunePlan) -> PrunePlan:
        """Return the plan after changes that the allocators cannot express: with the spared layers unpruned."""
        return plan if self.plan_path else plan.sparing(*self.spared(plan.original.num_hidden_layers))

    def keep(self, **settings: Any) -> Prune:
        """Return a recipe that keeps every size except those in `settings`, which `plan_path` replaces."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(PruneMethod)}
        whole: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"))
        return Prune(**shared, **whole | ({} if self.plan_path else settings))

    def keep_groups(self, config: Any, num_key_value_heads: Size, **settings: Any) -> Prune:
        """Return a recipe as `keep`, which keeps so many KV groups; without GQA, each head is a group."""
        from lit_prune.models.shape import shape_of

        groups = "num_key_value_heads" if shape_of(config).heads_per_group > 1 else "num_attention_heads"
        return self.keep(**{groups: num_key_value_heads}, **settings)

    def check(self, config: Any) -> None:
        """Raise a ConfigError if a model with this config cannot be pruned with these settings."""
        from lit_prune.pruning import prune

        prune.check(self.recipe(config), config, uniform=self._uniform(config))
        self.config_of(config)

    def effective(self, config: Any) -> PruneMethod:
        """Return canonical settings: equal for all settings that prune a model with this config in the same way."""
        from lit_prune.pruning.effective import effective

        return effective(self.recipe(config), config)

    def statistics(self, config: Any) -> frozenset[str]:
        """Return the names of the calibration statistics that the criteria read."""
        from lit_prune.pruning.prune import evidence_names

        return evidence_names(self.recipe(config), config, uniform=self._uniform(config))

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of collecting statistics again in each iteration after the first."""
        again = self.recipe(work.config).num_iterations - 1
        passes = 3 if again and "gradients" in self.statistics(work.config) else 1
        return super().own_flops(work) + work.passes(again * passes)

    def config_of(self, config: Any) -> Any:
        """Return the Hugging Face config of the student."""
        from lit_prune.pruning import surgery

        plan = self.shape_plan(config)
        plan.check(config)
        return surgery.smaller_config(config, plan)

    def shape_plan(self, config: Any) -> PrunePlan:
        """Return a plan with the sizes of the student, before its units are chosen."""
        from lit_prune.pruning import prune

        return self.adjust(prune.shape_plan(self.recipe(config), config, uniform=self._uniform(config)))

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Score the units, choose those to keep, and return the smaller model."""
        from lit_prune.pruning.prune import make_plan

        config = model.config
        plan = self.adjust(make_plan(model, self.recipe(config), ctx.collect, uniform=self._uniform(config)))
        ctx.say("pruning")
        return self.cut(model, plan)

    def cut(self, model: Any, plan: PrunePlan, changed: Any = None) -> Pruned:
        """Return the student that a plan cuts out of a model, or out of a `changed` copy with other weights."""
        from lit_prune.models.shape import shape_of
        from lit_prune.pruning import surgery
        from lit_prune.pruning.plan import PrunePlan

        recipe, whole = self.recipe(model.config), plan == PrunePlan.everything(shape_of(model.config))
        student = model if whole else surgery.apply(changed or model, plan).to(model.device)
        achieved = plan.sizes | {"num_parameters": student.num_parameters()}
        return Pruned(student, {name: getattr(recipe, name) for name in achieved}, achieved, plan)

    def _uniform(self, config: Any) -> bool:
        """Return whether all layers get the sizes of the recipe."""
        return self.spared(config.num_hidden_layers) == (0, 0)


class ChooseAndCut(ScoreAndCut):
    """Base class of methods that choose units in their own way; some also change weights. `recipe` gives the sizes."""

    keeps_zeros: ClassVar[bool] = False  # changed weights need not be zero where they were

    def choose(self, model: Any, plan: PrunePlan, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units to keep, and a copy of the model with changed weights or None.

        `plan` has the sizes of the student, as `shape_plan` returns it.
        """
        raise TypeError(f"{type(self).__name__}.choose: must be defined by the method")

    def effective(self, config: Any) -> PruneMethod:
        """Return the settings unchanged, since the recipe does not say which units are chosen."""
        return self

    def statistics(self, config: Any) -> frozenset[str]:
        """Return no name; a method that reads statistics overrides this."""
        return frozenset()

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Return the student with the chosen units; a plan from `plan_path` is cut out of the model as it is."""
        plan = self.shape_plan(model.config)
        if self.plan_path or plan == type(plan).everything(plan.original):
            return super().prune(model, ctx)
        return self.cut(model, *self.choose(model, plan, ctx))
