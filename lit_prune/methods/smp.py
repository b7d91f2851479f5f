"""Static Model Pruning: learn a score for every weight, and no weight (arXiv 2210.06210)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lit_prune.config.fields import Count, NonNegative, Positive, Proportion
from lit_prune.methods import method
from lit_prune.pruning.bases.zero_weights import ZeroWeights
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.masks import Masks


@method("smp")
@dataclass(frozen=True)
class StaticModelPruning(ZeroWeights):
    """Zero the weights of the lowest learned scores in each matrix; the others stay as they are.

    The scores S begin at 0. The mask of the highest ones in each matrix (SMP-L of the paper) passes its gradient
    straight to them: dL/dS = dL/dW' * W, with W' = M * W. The sparsity rises cubically from 0, and with it the weight
    lambda of the penalty lambda * mean sigmoid(S).

    The authors adapt BERT to a task by the mask alone, with AdamW at a rate of 0.02 and a final lambda of 400; they
    freeze the output head too. Deviations: the loss is that of next-token prediction on the text of the cell; the
    variant SMP-S, with a share of its own for each matrix, and the optional distillation are left out. The defaults
    are few steps.
    """

    max_steps: Count = 200
    """Steps of training."""
    batch_size: Count = 8
    """Sequences in a step."""
    lr: Positive = 0.02
    """Learning rate of the scores, which falls linearly to 0."""
    penalty: NonNegative = 400.0
    """Final lambda, the weight of the penalty."""
    ramp: Proportion = 0.5
    """Share of the steps in which the sparsity rises."""

    training_passes: ClassVar[float] = 3

    def masks_of(self, model: Any, ctx: PruneContext) -> Masks:
        """Learn the scores and return the masks."""
        import torch

        from lit_prune.pruning.learned.weight_scores import WeightScores

        module = WeightScores(
            model, torch.zeros_like, sparsity=self.sparsity, ramp=self.ramp, penalty=self.penalty, lr=self.lr,
            max_steps=self.max_steps,
        )  # fmt: skip
        ctx.fit(module, "learning masks", max_steps=self.max_steps, batch_size=self.batch_size)
        return module.masks(self.sparsity)
