"""MLPruning: learn scores of heads and rows, and thresholds that share out the budget (arXiv 2105.14636)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lit_prune.config.fields import Count, Fraction, NonNegative, Positive
from lit_prune.methods import method
from lit_prune.pruning.bases.plan_search import LearnAndCut
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan
    from lit_prune.pruning.units import UnitSpace


@method("mlpruning")
@dataclass(frozen=True)
class MLPruning(LearnAndCut):
    """Keep the KV groups and neurons of the highest learned scores; a learned threshold decides how many of each layer.

    Of n units of a layer the ceil(sigmoid(t) n) with the highest scores stay. Masks pass their gradient straight to the
    scores, and its sum over the units that stay to t. The loss is 0.9 (KL of the logits at temperature 2 + squared
    error of the states) + 0.1 cross-entropy + lambda (excess over the budget)^2, with lambda = max(weight * share, 50),
    or 10 near the budget, as in the authors' code. Scores, thresholds and weights are trained together.

    The authors prune BERT with thresholds that begin at 10 and a score rate of 0.01; here they begin at 5, for few
    steps. Deviations: of the three levels, heads (with GQA, KV groups) and rows; no blocks of 32 x 32, which have no
    place in a dense model, and no rows of the output projections, which are channels of the residual stream. The
    attention maps are not imitated. Where the thresholds do not meet the budget at the end, all are shifted alike.
    """

    max_steps: Count = 200
    """Steps of training."""
    batch_size: Count = 8
    """Sequences in a step."""
    lr: Positive = 1e-3
    """Learning rate of the weights, which falls linearly to 0 as that of the scores."""
    score_lr: Positive = 0.1
    """Learning rate of scores and thresholds."""
    weight: NonNegative = 400.0
    """Weight of the penalty while nothing is pruned; it falls with the square of the excess, to 50."""
    ce_weight: Fraction = 0.1
    """Weight of the cross-entropy; imitation has the rest."""
    temperature: Positive = 2.0
    """Temperature of the logits."""

    training_passes: ClassVar[float] = 4

    def learn(self, model: Any, space: UnitSpace, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units of the masks and the trained copy of the model."""
        import copy

        from lit_prune.pruning.learned.thresholds import ThresholdLearner

        module = ThresholdLearner(
            model, copy.deepcopy(model).requires_grad_(True), space, lr=self.lr, score_lr=self.score_lr,
            weight=self.weight, ce_weight=self.ce_weight, temperature=self.temperature, max_steps=self.max_steps,
        )  # fmt: skip
        ctx.fit(module, "learning masks and weights", max_steps=self.max_steps, batch_size=self.batch_size)
        return space.plan(module.priorities()), module.student.eval()
