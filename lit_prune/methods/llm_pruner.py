"""LLM-Pruner: prune neurons and KV groups of the middle layers by Taylor scores (arXiv 2305.11627)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lit_prune.config import Prune, Size
from lit_prune.config.fields import Natural
from lit_prune.methods import method
from lit_prune.pruning.bases.score_and_cut import ScoreAndCut


@method("llm_pruner")
@dataclass(frozen=True)
class LLMPruner(ScoreAndCut):
    """Keep the same share of neurons and KV groups in every layer except the first and last ones, which stay unpruned.

    Scores are |sum w g| (`taylor_vector`), sum |w g| (`taylor`) or sum |w g - w^2 F / 2| (`taylor_fisher`) over the
    weights of a unit, with the gradient g of the language-model loss (section 3.2).

    Two deviations from the paper. The score of a KV group is the mean over its query heads, without the weights of the
    shared keys and values. The paper stores a pickled module; here the config holds the widths of each layer, so import
    `lit_prune.models.per_layer_config` before you load such a model.
    """

    intermediate_size: Size = 0.75
    """Neurons to keep in each pruned layer, as a count or a share."""
    num_key_value_heads: Size = 0.75
    """KV groups (with their query heads) to keep in each pruned layer, as a count or a share; heads, without GQA."""
    criterion: Literal["taylor_vector", "taylor", "taylor_fisher", "magnitude", "random"] = "taylor"
    """Score of a unit; `magnitude` (the L2 norm of its weights) and `random` are the paper's baselines."""
    spare_first: Natural | None = None
    """First layers that stay unpruned; null takes the share of the published run, 4 of the 32 of LLaMA-7B."""
    spare_last: Natural | None = None
    """Last layers that stay unpruned; null takes the share of the published run, 2 of the 32 of LLaMA-7B."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.batch_size": 64, "distill.optimizer.lr": 1e-4,
        "distill.optimizer.warmup_steps": 100, "distill.lora.rank": 8, "distill.lora.alpha": 16.0,
        "distill.lora.dropout": 0.05,
    }  # fmt: skip

    def recipe(self, config: Any) -> Prune:
        """Return a recipe with the widths of the pruned layers."""
        return self.keep_groups(
            config, self.num_key_value_heads, intermediate_size=self.intermediate_size, width_criterion=self.criterion
        )

    def spared(self, layers: int) -> tuple[int, int]:
        """Return how many of the first and of the last layers stay unpruned."""
        first = layers // 8 if self.spare_first is None else self.spare_first
        return first, layers // 16 if self.spare_last is None else self.spare_last

    def effective(self, config: Any) -> LLMPruner:
        """Return the settings unchanged, since the recipe does not include the unpruned layers."""
        return self
