"""LoRAPrune: train adapters and prune by the sensitivities that their gradients tell (arXiv 2305.18403)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.config import Prune, Size
from lit_prune.config.fields import Count, Fraction, Natural, Positive
from lit_prune.methods import method
from lit_prune.pruning.bases.score_and_cut import ChooseAndCut
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan


@method("loraprune")
@dataclass(frozen=True)
class LoRAPrune(ChooseAndCut):
    """Keep the same share of neurons and KV groups in every layer, except in the first ones and the last.

    Only low-rank adapters B A are trained. The gradient of a frozen weight W is estimated as dB A + B dA - dB dA. The
    sensitivity of a unit is the sum of the squares of that estimate times W + s B A over its weights, averaged over
    steps. Units are pruned gradually during the training, which also recovers the model: the adapters are merged at the
    end, and no retraining follows.

    The paper prunes half of each layer and trains two epochs with batches of 128, rank 8, alpha 16 and a rate of 1e-4;
    the defaults are fewer steps at a larger rate. Deviation: all weights of a KV group and its query heads count.
    """

    intermediate_size: Size = 0.5
    """Neurons to keep in each pruned layer, as a count or a share."""
    num_key_value_heads: Size = 0.5
    """KV groups (with their query heads) to keep in each pruned layer; heads, without grouped-query attention."""
    spare_first: Fraction = 0.1
    """Share of the layers, rounded down, that stay unpruned at the beginning."""
    spare_last: Natural = 1
    """Last layers that stay unpruned."""
    max_steps: Count = 200
    """Steps of training."""
    batch_size: Count = 8
    """Sequences in a step."""
    lr: Positive = 1e-3
    """Peak learning rate of the adapters."""
    rank: Count = 8
    """Rank of each adapter."""
    alpha: Positive = 16.0
    """An adapter is multiplied by alpha / rank."""
    dropout: Fraction = 0.05
    """Share of each adapter's input that is dropped."""
    decay: Fraction = 0.9
    """Weight of the earlier steps in the average of the sensitivities."""
    prune_every: Count = 10
    """Steps between prunings."""
    variant: Literal["paper", "official"] = "paper"
    """Sensitivities as printed, or of the authors' code: absolute values, divided by their norm in each matrix."""

    training_passes: ClassVar[float] = 2

    def recipe(self, config: Any) -> Prune:
        """Return a recipe with the widths of the pruned layers; its criteria are not used."""
        return self.keep_groups(config, self.num_key_value_heads, intermediate_size=self.intermediate_size)

    def spared(self, layers: int) -> tuple[int, int]:
        """Return how many of the first and of the last layers stay unpruned."""
        return int(self.spare_first * layers), self.spare_last

    def choose(self, model: Any, plan: PrunePlan, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the units that training keeps, and a copy of the model with the trained adapters merged."""
        from lit_prune.pruning.learned.lora_sensitivity import LoraPruner

        module = LoraPruner(
            copy.deepcopy(model), plan, rank=self.rank, alpha=self.alpha, dropout=self.dropout, lr=self.lr,
            decay=self.decay, prune_every=self.prune_every, variant=self.variant, max_steps=self.max_steps,
            seed=ctx.seed,
        )  # fmt: skip
        ctx.fit(module, "training adapters", max_steps=self.max_steps, batch_size=self.batch_size)
        return module.finish()
