"""Puzzle: choose a variant of every layer by replace-one scores and a knapsack (arXiv 2411.19146)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.config import Prune
from lit_prune.config.fields import Count, Proportion
from lit_prune.methods import method
from lit_prune.pruning.bases.plan_search import PlanSearch
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan
    from lit_prune.pruning.replace_one import Library
    from lit_prune.pruning.unit_costs import UnitCosts


@method("puzzle")
@dataclass(frozen=True)
class Puzzle(PlanSearch):
    """Choose the width of every MLP and attention, or no layer, with the least change of the output within a budget.

    The effect of a variant is KL(model || model with the variant in one layer) or the rise of the loss (replace-1-block
    scores). A mixed-integer program minimises the sum of effects under a limit on parameters or memory.

    Deviations: variants are cut, not trained one by one by local distillation. There are no linear variants, and only
    whole layers become no-ops, as the modelling code has no layers without attention or MLP. A KV group goes with its
    query heads; the paper keeps all queries and averages keys and values. What a choice leaves of the budget is spent
    on neurons. Latency is no budget. Retraining compares only the last hidden states.
    """

    mlp_widths: tuple[Proportion, ...] = (0.875, 0.75, 0.5, 0.25, 0.1)
    """Shares of the MLP neurons of a layer that it may keep, besides all."""
    kv_groups: tuple[Proportion, ...] = (0.75, 0.5, 0.25)
    """Shares of the KV groups of a layer that it may keep, besides all."""
    no_op_layers: bool = True
    """Whether whole layers may be dropped."""
    score: Literal["kl", "loss"] = "kl"
    """Effect of a variant: the KL divergence from the whole model, or the increase of the language-model loss."""
    width_criterion: Literal["activation", "magnitude", "taylor", "random"] = "activation"
    """Score that chooses the neurons and KV groups of a variant."""
    num_sequences: Count = 32
    """Calibration sequences on which effects are measured."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 0.0, "distill.kd_weight": 1.0, "distill.alpha": 1.0, "distill.hidden_loss": "cosine",
        "distill.match_layer_output": ("last:last",),
    }  # fmt: skip

    def statistics(self, config: Any) -> frozenset[str]:
        """Return the names of the statistics of the criterion."""
        from lit_prune.importance.criteria import criteria

        return frozenset(() if self.plan_path else criteria[self.width_criterion].needs)

    def library(self, costs: UnitCosts) -> Library:
        """Return the variants of a layer."""
        from lit_prune.pruning.replace_one import Library

        return Library.of(costs, self.mlp_widths, self.kv_groups, self.no_op_layers)

    def least(self, costs: UnitCosts) -> int:
        """Return the cost of the smallest model."""
        return self.library(costs).least()

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of measuring every variant of every layer."""
        variants = len(self.library(self.budget(work.config)[0]).parts())
        return work.replaced(variants, self.num_sequences)

    def search(self, model: Any, ctx: PruneContext) -> tuple[PrunePlan, None]:
        """Measure the effect of each variant in each layer, and choose one for every layer."""
        import torch

        from lit_prune.data.calibration import sample_sequences
        from lit_prune.importance.criteria import criteria
        from lit_prune.pruning import replace_one

        (costs, limit), copied = self.budget(model.config), copy.deepcopy(model).to(ctx.device)
        scores = criteria[self.width_criterion].score(ctx.collect(model, self.statistics(model.config)), Prune())
        batch = sample_sequences(ctx.batches(), self.num_sequences, torch.Generator().manual_seed(ctx.seed))
        library = self.library(costs)
        return replace_one.search(copied, library, scores, limit, batch, self.score, ctx.counter, ctx.measured), None
