"""Puzzle: choose a variant of attention and MLP in every layer by replace-one scores (arXiv 2411.19146)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.config import Prune
from lit_prune.config.fields import Count
from lit_prune.methods import method
from lit_prune.pruning.bases.variant_search import VariantSearch
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan
    from lit_prune.pruning.variants import Library


@method("puzzle")
@dataclass(frozen=True)
class Puzzle(VariantSearch):
    """Choose the width of every MLP and attention, or none of it, with the least change of the output in a budget.

    The effect of a variant is KL(model || model with the variant in one layer) or the rise of the loss (replace-1-block
    scores); that of a layer is the sum over its two sub-layers. A mixed-integer program minimises the sum of effects
    under a limit on parameters, memory, or measured latency: the sum of the times of the parts.

    Deviations: variants are cut, not trained one by one by local distillation. There are no linear variants. A KV group
    goes with its query heads; the paper keeps all queries and averages keys and values. A dropped layer is measured as
    a whole. At least one layer keeps attention and MLP. What a choice leaves of the budget is spent on neurons,
    except with latency. Latency is that of a forward pass without a cache. Retraining compares only the last hidden
    states.

    A student of which a layer has no attention or no MLP has a type of its own, and keeps no keys and values for
    layers without attention. Import `lit_prune.models.transformed` before you load a student.
    """

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

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of measuring every variant of every layer."""
        variants = len(self.library(self.budget(work.config)[0]).parts())
        return super().own_flops(work) + work.replaced(variants, self.num_sequences)

    def choose(self, model: Any, ctx: PruneContext, library: Library, limit: int) -> PrunePlan:
        """Measure the effect of each variant in each layer, and choose one for every layer."""
        import torch

        from lit_prune.data.calibration import sample_sequences
        from lit_prune.importance.criteria import criteria
        from lit_prune.pruning import replace_one

        copied, stats = copy.deepcopy(model).to(ctx.device), ctx.collect(model, self.statistics(model.config))
        scores = criteria[self.width_criterion].score(stats, Prune())
        batch = sample_sequences(ctx.batches(), self.num_sequences, torch.Generator().manual_seed(ctx.seed))
        return replace_one.search(copied, library, scores, limit, batch, self.score, ctx.counter, ctx.measured)
