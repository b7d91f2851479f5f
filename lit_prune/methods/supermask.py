"""Supermasks: mask an untrained network by the weights that training would give it (arXiv 1905.01067)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.config import ConfigError
from lit_prune.config.fields import Count
from lit_prune.methods import method
from lit_prune.pruning.bases.lottery_ticket import LotteryTicket
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.masks import Masks


@method("supermask")
@dataclass(frozen=True)
class Supermask(LotteryTicket):
    """Zero the weights of an untrained network that score low in each matrix after a copy of it is trained.

    A copy is trained from theta_0 with cross-entropy, all weights together. With the initial weight w_i and the final
    one w_f, the score is |w_f| (large_final) or max(0, w_f * sign(w_i)) (large_final_same_sign). The result is theta_0
    with the mask: no weight in it is trained. `edge_popup` learns such a mask instead.

    The paper masks classifiers of images and reports 86 % on MNIST and 41 % on CIFAR-10 for masks by such a rule.
    Deviations: embeddings, norms and the output head have no mask, and by default they stay those of the model, as with
    `edge_popup`; weights that changed their sign are pruned in the order of |w_f|, not at random.
    """

    rule: Literal["large_final", "large_final_same_sign"] = "large_final_same_sign"
    """Score of a weight."""
    start: Literal["model", "random_linears", "random"] = "random_linears"
    values: Literal["initial", "signed_constant"] = "initial"
    """Values of the weights that the mask keeps: those of theta_0, or their signs times the standard deviation of
    their matrix in theta_0."""
    max_steps: Count = 100

    training_passes: ClassVar[float] = 3

    def check(self, config: Any) -> None:
        """Raise a ConfigError as `ZeroWeights`, or for masks of another run, which `imp` applies to theta_0."""
        if self.plan_path is not None:
            raise ConfigError(f"prune.plan_path: must be null with prune.method={self.method}, got {self.plan_path}")
        super().check(config)

    def masks_of(self, model: Any, ctx: PruneContext) -> Masks:
        """Give the model its untrained weights, train a copy of it and return the masks."""
        from lit_prune.pruning.learned.tickets import final_scores, set_signed_constants
        from lit_prune.pruning.sparsity import chooser, stored

        trainer = self.trainer(ctx)
        trainer.rewind(model)
        trained = copy.deepcopy(model)
        trainer.train(trained, "training")
        scores = final_scores(trained, model, same_sign=self.rule == "large_final_same_sign")
        if self.values == "signed_constant":
            set_signed_constants(model)
        choose = chooser(self.sparsity, None, "matrix")
        return stored(model, {name: choose(name, score) for name, score in scores.items()})
