"""Bonsai: prune neurons and KV groups by a regression of the loss on random masks (arXiv 2402.05406)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lit_prune.config.fields import Count, Proportion
from lit_prune.methods import method
from lit_prune.pruning.bases.plan_search import PlanSearch
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan
    from lit_prune.pruning.unit_costs import UnitCosts


@method("bonsai")
@dataclass(frozen=True)
class Bonsai(PlanSearch):
    """Remove the units without which the loss rises least, estimated by forward passes of randomly masked models.

    A round (section 3) takes the units with the lowest prior sum_i |W_ij| ||x_j|| (`wanda_sp`), draws pairs of
    complementary masks over them, fits loss = b + sum of beta_j over masked units j by ridge regression, and removes
    the units with the lowest beta_j per parameter. The next round starts from the pruned model.

    Deviations: the unit of attention is a KV group with its query heads (without GQA, a head). The perturbed units are
    a share of all neurons and KV groups, not of each layer, which has few groups, and a mask may hide any number of
    them (see `Perturbable`). The paper ranks by beta_j alone. Every layer keeps a neuron and a group; in the paper a
    whole sub-layer can go. The loss is regressed, not the perplexity, in closed form with a leave-one-out penalty, not
    by gradient descent with five folds.
    """

    prune_fraction: Proportion = 0.05
    """Share of the parameters of all layers that a round removes; twice this share of the units is perturbed."""
    num_masks: Count = 200
    """Masked models of a round, rounded up to pairs."""
    num_sequences: Count = 4
    """Calibration sequences that a round draws to measure their loss (32 in the paper's code)."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.01, "distill.optimizer.lr": 1e-4, "distill.lora.rank": 128,
    }  # fmt: skip

    def statistics(self, config: Any) -> frozenset[str]:
        """Return the names of the statistics of the prior."""
        from lit_prune.pruning.perturb import PRIOR

        return frozenset(() if self.plan_path else PRIOR.needs)

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of all rounds: statistics over all sequences, and the losses of masked models."""
        costs, limit = self.budget(work.config)
        rounds = -(-(costs.total - limit) // self._step(costs))
        return rounds * (work.passes() + work.passes(2 * -(-self.num_masks // 2), self.num_sequences))

    def _step(self, costs: UnitCosts) -> int:
        return max(1, int(self.prune_fraction * costs.layer * costs.whole.num_hidden_layers))

    def search(self, model: Any, ctx: PruneContext) -> tuple[PrunePlan, None]:
        """Remove units round by round until the number of parameters is reached."""
        import torch

        from lit_prune.data.calibration import sample_sequences
        from lit_prune.pruning import perturb
        from lit_prune.pruning.units import UnitSpace

        (costs, limit), draw = self.budget(model.config), torch.Generator().manual_seed(ctx.seed)
        space, copied, number = UnitSpace.within(model.config, costs, limit), copy.deepcopy(model).to(ctx.device), 0
        kept, pairs = torch.ones(space.size, dtype=torch.bool), -(-self.num_masks // 2)
        while (cost := space.cost(kept)) > limit:
            number += 1
            scores = perturb.prior(copied if number > 1 else model, space, kept, ctx.collect)
            batch = sample_sequences(ctx.batches(), self.num_sequences, draw)
            kept = perturb.without_least(
                copied.to(ctx.device), space, kept, scores, max(limit, cost - self._step(costs)), batch, pairs,
                2 * self.prune_fraction, draw, ctx.counter(f"round {number}: masks", 2 * pairs, "mask"), ctx.measured,
            )  # fmt: skip
        return space.plan_of(kept), None
