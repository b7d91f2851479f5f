"""IMP: prune the smallest weights of a trained network, rewind the others, repeat (arXiv 1803.03635, 1903.01611)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.config import ConfigError
from lit_prune.config.fields import Count, Fraction, Natural
from lit_prune.methods import method
from lit_prune.pruning.bases.lottery_ticket import LotteryTicket
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.masks import Masks


@method("imp")
@dataclass(frozen=True)
class IterativeMagnitudePruning(LotteryTicket):
    """Find a lottery ticket: a network as it starts, with a mask that training has found.

    A round trains theta_0 with the mask found so far, prunes the smallest of the remaining weights of the linears in
    the layers, and rewinds the others to theta_0. Every round prunes the same share of the remaining weights, so that
    the last one meets `sparsity`: 1 - 0.8^n in n rounds are the 20 % per round of the paper. The result is untrained.
    The retraining of the cell trains it with its mask; the paper does so with cross-entropy for as long as a round.

    With `rewind_step` k, the weights are rewound to theta_k, those after k steps (late resetting). Each round then
    trains for the other `max_steps` - k steps of the schedule, with a new optimizer and the data from their beginning.

    The paper trains image classifiers, prunes their output layer at half the rate, and compares all weights of deep
    networks with each other. Embeddings, head, norms and biases have no mask here. `plan_path` applies the masks of
    another run to theta_0 or theta_k.
    """

    sparsity: Fraction = 0.488
    num_rounds: Count = 3
    """Rounds of training, pruning and rewinding; 1 prunes in one shot."""
    rewind_step: Natural = 0
    """Step to whose weights the survivors are rewound; 0 rewinds to theta_0."""
    comparison: Literal["matrix", "model"] = "matrix"
    """Weights that are compared with each other: those of a matrix, or of all matrices together."""
    control: Literal["random_masks", "reinitialised"] | None = None
    """Controls of the paper: a mask with as many zeros in each matrix at random places, or the mask that was found with
    newly drawn weights in place of theta_0."""

    retraining: ClassVar[dict[str, Any]] = {"distill.ce_weight": 1.0, "distill.kd_weight": 0.0}

    @property
    def rounds(self) -> int:
        """Rounds to train: none for random masks that have the same density in every matrix, which is known before."""
        known = self.control == "random_masks" and self.comparison == "matrix"
        return 0 if known else self.num_rounds

    def check_settings(self) -> None:
        """Raise a ConfigError for settings that contradict each other."""
        super().check_settings()
        if self.rewind_step >= self.max_steps:
            raise ConfigError(f"prune.rewind_step: must be < prune.max_steps, {self.max_steps}, got {self.rewind_step}")
        if self.control == "reinitialised" and self.start == "model":
            raise ConfigError("prune.control: must not be reinitialised with prune.start=model, which draws nothing")
        if self.control and self.plan_path is not None:
            raise ConfigError(f"prune.control: must be null with prune.plan_path, got {self.control}")

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of all rounds and of the training to the step to which they rewind."""
        steps = self.rewind_step + self.rounds * (self.max_steps - self.rewind_step)
        return work.training(steps, self.batch_size, 3)

    def given_masks(self, model: Any, ctx: PruneContext) -> Masks:
        """Give the model the weights theta_0 or theta_k, and return the masks of `plan_path`."""
        self.trainer(ctx).rewind(model, self.rewind_step)
        return super().given_masks(model, ctx)

    def masks_of(self, model: Any, ctx: PruneContext) -> Masks:
        """Give the model the weights of the ticket, untrained, and return its masks."""
        return self.trainer(ctx).ticket(
            model, rewind_step=self.rewind_step, rounds=self.rounds, sparsity=self.sparsity,
            comparison=self.comparison, control=self.control,
        )  # fmt: skip
