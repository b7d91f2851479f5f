"""BiP: learn the mask and the weights by bi-level optimization (arXiv 2210.04092)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lit_prune.config import ConfigError, Prune
from lit_prune.config.fields import Count, NonNegative, Positive
from lit_prune.methods import method
from lit_prune.pruning.bases.plan_search import LearnAndCut
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan
    from lit_prune.pruning.units import UnitSpace


@method("bip")
@dataclass(frozen=True)
class BiP(LearnAndCut):
    """Keep the KV groups and neurons whose mask a bi-level problem chooses; the weights are trained with it.

    The upper level minimises L(m * theta*(m)) over masks m, the lower one finds theta*(m), the minimum over theta of
    L(m * theta) + gamma / 2 |theta|^2. As z = m * theta is bilinear, the implicit gradient needs first derivatives
    only: dL/dm = (theta - dL/dz / gamma) * dL/dz. Weights and mask are stepped on two different halves of a batch; the
    mask holds the units of the highest scores within the budget.

    The paper prunes image classifiers by weight, filter or channel, with SGD and a mask rate of 0.1. Deviations: the
    units are KV groups and neurons, masked by the columns of the output projection that read them, since at a mask of 0
    over all weights of a unit every gradient is 0; both levels use AdamW and start from the same weights; 1 / gamma is
    a setting of its own, as in the authors' code, and the weights have no penalty. Scores start from the norms of the
    units' weights, standardised in each layer.
    """

    max_steps: Count = 200
    """Steps of training."""
    batch_size: Count = 8
    """Sequences in a step, half of them for the weights and half for the mask."""
    lr: Positive = 1e-3
    """Learning rate of the weights, with a cosine schedule to 0."""
    mask_lr: Positive = 0.01
    """Learning rate of the scores."""
    inverse_gamma: NonNegative = 1e-4
    """1 / gamma, the weight of the implicit part of the mask's gradient."""

    training_passes: ClassVar[float] = 3

    def check_settings(self) -> None:
        """Raise a ConfigError for a batch without two halves."""
        if self.batch_size % 2:
            raise ConfigError(f"prune.batch_size: must be even, got {self.batch_size}")

    def learn(self, model: Any, space: UnitSpace, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units of the mask and the trained copy of the model."""
        import copy

        from lit_prune.importance.criteria import criteria
        from lit_prune.pruning.learned.bilevel import BilevelLearner

        start = space.start(criteria["magnitude"].score(ctx.collect(model, frozenset()), Prune()))
        module = BilevelLearner(
            copy.deepcopy(model).requires_grad_(True), start, space, lr=self.lr, mask_lr=self.mask_lr,
            inverse_gamma=self.inverse_gamma, max_steps=self.max_steps,
        )  # fmt: skip
        ctx.fit(module, "learning masks and weights", max_steps=self.max_steps, batch_size=self.batch_size)
        return space.plan(module.scores), module.model.eval()
