"""Bypass Back-propagation: learn the units to keep by policy gradient, from forward passes (arXiv 2406.10576)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.config import Prune
from lit_prune.config.fields import Count, Positive
from lit_prune.methods import method
from lit_prune.pruning.bases.plan_search import LearnAndCut
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan
    from lit_prune.pruning.units import UnitSpace


@method("bypass_bp")
@dataclass(frozen=True)
class BypassBP(LearnAndCut):
    """Keep the KV groups and neurons with the highest learned probabilities, over all layers.

    Each unit has a Bernoulli mask m with probability s. REINFORCE minimises the language-model loss E[L(m)]: the
    gradient is the mean over sampled masks of (L(m) - delta) (m - s) / (s (1 - s)), with a moving average delta of the
    losses as the baseline. After each step s is shifted and clamped to [0, 1], by bisection, so that the expected
    number of parameters is within the budget (arXiv 2406.10576). The model runs forward only. The
    start is the sigmoid of Wanda scores summed over each unit, standardised within its layer, with the mean of the
    share to keep.

    The paper trains on 120,000 sequences of 128 tokens of C4 in batches of 8 (15,000 steps) with a learning rate of
    0.002; the defaults here are a few steps with a larger rate. Deviations: one budget in parameters for both kinds of
    units, where the authors' code fixes the shares of groups and of neurons apart; the scores of the start come from
    one pass over the unpruned model instead of layer after layer; every layer keeps one group and one neuron.
    """

    keeps_zeros: ClassVar[bool] = True

    max_steps: Count = 200
    """Steps of the policy gradient."""
    batch_size: Count = 8
    """Sequences in a step, the same for all its masks."""
    lr: Positive = 0.02
    """Learning rate of the probabilities, with a cosine schedule to 0."""
    num_samples: Count = 2
    """Masks sampled in a step."""
    window: Count = 5
    """Steps over which the baseline averages the losses."""
    variant: Literal["paper", "official"] = "paper"
    """Gradient as printed, or of the authors' code: divided by the root of s (1 - s), and by the masks minus one."""

    def statistics(self, config: Any) -> frozenset[str]:
        """Return the statistics of the scores of the start."""
        from lit_prune.importance.criteria import criteria

        return frozenset(() if self.plan_path else criteria["wanda_sp"].needs)

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of the forward passes of all masks."""
        return work.training(self.max_steps, self.batch_size, self.num_samples)

    def learn(self, model: Any, space: UnitSpace, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units with the highest probabilities; the weights stay as they are."""
        from lit_prune.importance.criteria import criteria
        from lit_prune.pruning.learned.policy_gradient import PolicyGradient, masked_loss

        stats = ctx.collect(model, self.statistics(model.config))
        module = PolicyGradient(
            model, space.start(criteria["wanda_sp"].score(stats, Prune())), masked_loss(model, space),
            space.project, variant=self.variant, num_samples=self.num_samples, window=self.window, lr=self.lr,
            max_steps=self.max_steps,
        )  # fmt: skip
        ctx.fit(module, "learning masks", max_steps=self.max_steps, batch_size=self.batch_size)
        return space.plan(module.probabilities), None
