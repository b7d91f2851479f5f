"""Pruning methods, one module each: settings and how to prune by them. Importing a method imports no torch.

    @method("half_the_layers")
    @dataclass(frozen=True)
    class HalfTheLayers(ScoreAndCut):
        def recipe(self, config: Any) -> Prune:
            return self.keep(num_hidden_layers=0.5, layer_selection="last")

`prune.method=half_the_layers` selects it; its fields are the other settings of the `prune` section.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from lit_prune.config import Prune, PruneMethod
from lit_prune.registry import Registry

if TYPE_CHECKING:
    from lit_prune.importance.criteria import CalibrationStats
    from lit_prune.pruning.plan import PrunePlan

Kind = TypeVar("Kind", bound=type[PruneMethod])

methods: Registry[type[PruneMethod]] = Registry("prune.method", package=__name__)


def method(name: str) -> Callable[[Kind], Kind]:
    """Register a frozen dataclass as the pruning method of that name."""

    def add(kind: Kind) -> Kind:
        kind.name = name
        methods.register(name)(kind)
        return kind

    return add


@dataclass(frozen=True)
class PruneContext:
    """What a method may use while it prunes."""

    collect: Callable[[Any, frozenset[str]], CalibrationStats]
    """(model, names) -> calibration statistics of the model."""
    seed: int
    """For methods that draw."""
    say: Callable[[str], None]
    """Report what is being done."""


@dataclass(frozen=True)
class Pruned:
    """A student."""

    model: Any
    """The student; the pruned model itself if all of it is kept."""
    requested: dict[str, Any]
    """Sizes as they were given."""
    achieved: dict[str, Any]
    """Sizes as they are."""
    plan: PrunePlan | None = None
    """The units that were kept, by their indices in the pruned model, if the method keeps units as they are."""


class ScoreAndCut(PruneMethod):
    """A method that scores units, keeps the best ones and cuts the others out: `recipe` says how."""

    def recipe(self, config: Any) -> Prune:
        """Return the sizes, criteria and allocators for a model with this config."""
        raise TypeError(f"{type(self).__name__}.recipe: must be defined by the method")

    def adjust(self, plan: PrunePlan) -> PrunePlan:
        """Return a plan with what the allocators cannot express."""
        return plan

    def keep(self, **settings: Any) -> Prune:
        """Return a recipe that keeps every size but those in `settings`; a given plan replaces them."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(PruneMethod)}
        whole: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"))
        return Prune(**shared, **whole | ({} if self.plan_path else settings))

    def check(self, config: Any) -> None:
        """Raise a ConfigError if a model with this config cannot be pruned like this."""
        from lit_prune.pruning import prune

        prune.check(self.recipe(config), config)
        self.config_of(config)

    def effective(self, config: Any) -> PruneMethod:
        """Return settings that are equal for all that prune a model with this config alike."""
        from lit_prune.pruning.effective import effective

        return effective(self.recipe(config), config)

    def statistics(self, config: Any) -> frozenset[str]:
        """Return the names of the calibration statistics that the criteria read."""
        from lit_prune.pruning.prune import evidence_names

        return evidence_names(self.recipe(config), config)

    def config_of(self, config: Any) -> Any:
        """Return the Hugging Face config of the student."""
        from lit_prune.pruning import prune, surgery

        plan = self.adjust(prune.shape_plan(self.recipe(config), config))
        plan.check(config)
        return surgery.smaller_config(config, plan)

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Score, choose and cut."""
        from lit_prune.models.shape import shape_of
        from lit_prune.pruning import prune, surgery
        from lit_prune.pruning.plan import PrunePlan

        recipe = self.recipe(model.config)
        plan = self.adjust(prune.make_plan(model, recipe, ctx.collect))
        ctx.say("pruning")
        whole = plan == PrunePlan.everything(shape_of(model.config))
        sizes = list(dataclasses.asdict(plan.kept))
        return Pruned(
            model if whole else surgery.apply(model, plan),
            {name: getattr(recipe, name) for name in (*sizes, "num_parameters")}, dataclasses.asdict(plan.kept), plan,
        )  # fmt: skip
