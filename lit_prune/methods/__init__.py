"""Pruning methods, one module each. A method is a dataclass of its settings that can prune a model by them.

    @method("half_the_layers")
    @dataclass(frozen=True)
    class HalfTheLayers(ScoreAndCut):
        def recipe(self, config: Any) -> Prune:
            return self.keep(num_hidden_layers=0.5, layer_selection="last")

`prune.method=half_the_layers` selects it; its fields are the other settings of the `prune` section. Importing a method
imports no torch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from lit_prune.config import ConfigError, Prune, PruneMethod, Size, expand
from lit_prune.config.fields import Fraction, Natural
from lit_prune.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lit_prune.importance.criteria import CalibrationStats
    from lit_prune.pruning.learned.units import UnitSpace
    from lit_prune.pruning.masks import Masks
    from lit_prune.pruning.plan import PrunePlan
    from lit_prune.pruning.unit_costs import UnitCosts

Kind = TypeVar("Kind", bound=type[PruneMethod])

ABSENT = {
    "comp": "COMP (arXiv 2501.15255) lacks code of its authors by which its matrix-condition score could be verified",
    "peel": "PEEL (arXiv 2103.01847) is for convolutional networks, and lacks code that defines a layer's importance",
    "apt": "arXiv 2410.15567 (high accuracy without retraining) lacks code by which its formulas could be verified",
    "pbs2p": "PBS2P (arXiv 2502.01705) binarizes the weights that it keeps, and this package has no quantizer",
}
"""Published methods that are not registered, and what is missing."""

methods: Registry[type[PruneMethod]] = Registry("prune.method", package=__name__, absent=ABSENT)


def method(name: str) -> Callable[[Kind], Kind]:
    """Register a frozen dataclass as the pruning method of that name."""

    def add(kind: Kind) -> Kind:
        kind.name = name
        methods.register(name)(kind)
        return kind

    return add


class Fit(Protocol):
    """Trains a module over the training text of the cell."""

    def __call__(self, module: Any, what: str, *, max_steps: int, batch_size: int) -> Any:
        """Train a LightningModule for `max_steps` and return it; `what` names the training in the progress.

        Its batches have `batch_size` sequences of `calibration.seq_len` tokens: {`input_ids`, `labels`: int64 [batch,
        seq], `mean_scored`: float}. The number of labels that are scored is `mean_scored`. The module is seeded before
        its first step, and resumed where a killed run had stopped: on a CPU with the same result, bit for bit. `terms`
        of the module, scalars of the newest step with `loss` among them, are logged in metrics.csv. What it needs to
        resume must be in its `state_dict`; see `lit_prune.distill.train.fit`.
        """


@dataclass(frozen=True)
class PruneContext:
    """Services that a method may use while it prunes."""

    collect: Callable[[Any, frozenset[str]], CalibrationStats]
    """(model, names of statistics) -> calibration statistics of the model."""
    batches: Callable[[], Iterable[dict[str, Tensor]]]
    """() -> all calibration sequences in a fixed order, as batches {`input_ids`, `labels`: int64 [batch, seq]} on
    `device`, for methods that run the model themselves."""
    fit: Fit
    """(module, what, max_steps=, batch_size=) -> the module, trained on the training text of the cell."""
    device: torch.device
    """Where such methods run the model, or rather a copy: the model that is pruned belongs to others too."""
    seed: int
    """Seed of methods that draw random numbers."""
    say: Callable[[str], None]
    """Report the current step as progress."""
    counter: Callable[[str, int, str], Callable[[int], None]]
    """(what, total, unit) -> callback that reports how many of the total are done."""


@dataclass(frozen=True)
class Pruned:
    """A pruned model with its sizes and plan."""

    model: Any
    """The student; the original model itself if no unit is pruned."""
    requested: dict[str, Any]
    """Sizes as set in the `prune` section."""
    achieved: dict[str, Any]
    """Sizes of the student."""
    plan: PrunePlan | None = None
    """The kept units, by their indices in the original model; None if the method does not keep whole units."""
    masks: Masks | None = None
    """The weights that stay zero in every later step; None if the method zeroes none."""


class ScoreAndCut(PruneMethod):
    """Base class of methods that score units, keep the best and cut out the others, as `recipe` defines."""

    keeps_zeros = True

    def recipe(self, config: Any) -> Prune:
        """Return the sizes, criteria and allocators for a model with this config."""
        raise TypeError(f"{type(self).__name__}.recipe: must be defined by the method")

    def adjust(self, plan: PrunePlan) -> PrunePlan:
        """Return the plan after changes that the allocators cannot express; by default there are none."""
        return plan

    def keep(self, **settings: Any) -> Prune:
        """Return a recipe that keeps every size except those in `settings`, which `plan_path` replaces."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(PruneMethod)}
        whole: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"))
        return Prune(**shared, **whole | ({} if self.plan_path else settings))

    @staticmethod
    def kv_groups(config: Any, size: Size) -> dict[str, Size]:
        """Return the setting of a recipe that keeps KV groups; without GQA, each head is a group."""
        from lit_prune.models.shape import shape_of

        whole = shape_of(config)
        shared = whole.num_key_value_heads < whole.num_attention_heads
        return {"num_key_value_heads" if shared else "num_attention_heads": size}

    def check(self, config: Any) -> None:
        """Raise a ConfigError if a model with this config cannot be pruned with these settings."""
        from lit_prune.pruning import prune

        prune.check(self.recipe(config), config)
        self.config_of(config)

    def effective(self, config: Any) -> PruneMethod:
        """Return canonical settings: equal for all settings that prune a model with this config in the same way."""
        from lit_prune.pruning.effective import effective

        return effective(self.recipe(config), config)

    def statistics(self, config: Any) -> frozenset[str]:
        """Return the names of the calibration statistics that the criteria read."""
        from lit_prune.pruning.prune import evidence_names

        return evidence_names(self.recipe(config), config)

    def config_of(self, config: Any) -> Any:
        """Return the Hugging Face config of the student."""
        from lit_prune.pruning import surgery

        plan = self.shape_plan(config)
        plan.check(config)
        return surgery.smaller_config(config, plan)

    def shape_plan(self, config: Any) -> PrunePlan:
        """Return a plan with the sizes of the student, before its units are chosen."""
        from lit_prune.pruning import prune

        return self.adjust(prune.shape_plan(self.recipe(config), config))

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Score the units, choose those to keep, and return the smaller model."""
        from lit_prune.pruning.prune import make_plan

        plan = self.adjust(make_plan(model, self.recipe(model.config), ctx.collect))
        ctx.say("pruning")
        return self.cut(model, plan)

    def cut(self, model: Any, plan: PrunePlan, changed: Any = None) -> Pruned:
        """Return the student that a plan cuts out of a model, or out of a `changed` copy with other weights."""
        from lit_prune.models.shape import shape_of
        from lit_prune.pruning import surgery
        from lit_prune.pruning.plan import PrunePlan

        recipe, achieved = self.recipe(model.config), dataclasses.asdict(plan.kept)
        whole = plan == PrunePlan.everything(shape_of(model.config))
        requested = {name: getattr(recipe, name) for name in (*achieved, "num_parameters")}
        return Pruned(
            model if whole else surgery.apply(changed or model, plan).to(model.device), requested, achieved, plan
        )


class ChooseAndCut(ScoreAndCut):
    """Base class of methods that choose units in their own way; some also change weights. `recipe` gives the sizes."""

    keeps_zeros = False  # changed weights need not be zero where they were

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


@dataclass(frozen=True)
class ZeroWeights(PruneMethod):
    """Base class of methods that set single weights of the linears in the layers to zero, as `masks_of` chooses.

    The model keeps its shape, and its masks are stored with it. `plan_path` may name the masks of another run,
    pruning/masks.safetensors in the folder of a model, to apply instead.
    """

    sparsity: Fraction = 0.5
    """Share of the weights of the linears in the layers to set to zero."""

    sparse: ClassVar[bool] = True
    keeps_zeros: ClassVar[bool] = True

    def masks_of(self, model: Any, ctx: PruneContext) -> Masks:
        """Return the masks of a model, which is a copy that the method may change."""
        raise TypeError(f"{type(self).__name__}.masks_of: must be defined by the method")

    def check(self, config: Any) -> None:
        """Raise a ConfigError if the sparsity is out of range, or the masks of `plan_path` do not fit the model."""
        from lit_prune.models.shape import meta_model
        from lit_prune.pruning.masks import check_fit, read_masks

        if not 0 < self.sparsity < 1:
            raise ConfigError(f"prune.sparsity: must be > 0 and < 1, got {self.sparsity}")
        if self.init != "teacher":
            raise ConfigError(f"prune.init: must be teacher with prune.method={self.method}, got {self.init}")
        if self.plan_path is not None:
            masks = read_masks(expand(self.plan_path), "prune.plan_path")
            check_fit(meta_model(config), masks, "prune.plan_path")

    def effective(self, config: Any) -> PruneMethod:
        """Return the settings without those that masks of another run replace."""
        return self if self.plan_path is None else type(self)(plan_path=self.plan_path, fingerprint=self.fingerprint)

    def config_of(self, config: Any) -> Any:
        """Return the Hugging Face config of the student: that of the model."""
        self.check(config)
        return copy.deepcopy(config)

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Choose the weights and return a copy of the model in which they are zero."""
        from lit_prune.pruning.masks import apply_masks, read_masks, sparsity_of

        self.check(model.config)
        student = copy.deepcopy(model).to(ctx.device)
        masks = self.masks_of(student, ctx) if self.plan_path is None else read_masks(expand(self.plan_path))
        apply_masks(student, masks)
        student.to(model.device)
        return Pruned(student, {"sparsity": self.sparsity}, sparsity_of(student, masks), masks=masks)


@dataclass(frozen=True)
class PlanSearch(PruneMethod):
    """Base class of methods that search the units to keep within a budget, so that layers may differ in width."""

    num_parameters: Size = 0.75
    """Parameters to keep, a count or a share."""
    memory: int | float | None = None
    """Bytes of weights and KV cache in bfloat16 to keep, a count or a share; `num_parameters` must then be null."""
    cache_tokens: Natural = 8192
    """Tokens in the KV cache that `memory` counts, over all sequences of a batch."""

    @property
    def equal_layers(self) -> bool:
        """Whether the config alone tells the width of every layer: only for a given plan."""
        return self.plan_path is not None

    def search(self, model: Any, ctx: PruneContext) -> PrunePlan:
        """Return the units to keep."""
        raise TypeError(f"{type(self).__name__}.search: must be defined by the method")

    def found(self, model: Any, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units to keep, and a copy of the model with changed weights or None."""
        return self.search(model, ctx), None

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
        from lit_prune.models.shape import shape_of
        from lit_prune.pruning import surgery
        from lit_prune.pruning.plan import PrunePlan

        plan, changed = self.shape_plan(model.config), None
        if not self.plan_path:
            plan, changed = self.found(model, ctx)
        ctx.say("pruning")
        whole = changed is None and plan == PrunePlan.everything(shape_of(model.config))
        student = model if whole else surgery.apply(changed or model, plan).to(model.device)
        requested = {name: None if self.plan_path else getattr(self, name) for name in ("num_parameters", "memory")}
        achieved = dataclasses.asdict(plan.kept) | {"num_parameters": student.num_parameters()}
        if requested["memory"] is not None:
            achieved["memory"] = self.budget(model.config)[0].of(plan)
        return Pruned(student, requested, achieved, plan)


@dataclass(frozen=True)
class LearnAndCut(PlanSearch):
    """Base class of methods that train to find the KV groups and neurons to keep within a budget, over all layers.

    Every layer keeps at least one of each.
    """

    def learn(self, model: Any, space: UnitSpace, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units to keep, and a copy of the model with trained weights or None."""
        raise TypeError(f"{type(self).__name__}.learn: must be defined by the method")

    def found(self, model: Any, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units that training keeps, and a copy of the model with trained weights or None."""
        from lit_prune.pruning.learned.units import UnitSpace

        return self.learn(model, UnitSpace.within(model.config, *self.budget(model.config)), ctx)
