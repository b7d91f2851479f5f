"""LLM-Pruner: neurons and KV groups of the layers in the middle go, by first-order scores (arXiv 2305.11627)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.config import ConfigError, Prune, Size
from lit_prune.config.fields import Natural
from lit_prune.methods import ScoreAndCut, method

if TYPE_CHECKING:
    from lit_prune.pruning.plan import LayerPlan, PrunePlan


@method("llm_pruner")
@dataclass(frozen=True)
class LLMPruner(ScoreAndCut):
    """Keep the same share of neurons and of KV groups in every layer but the first and last ones, which stay whole.

    Scores are |sum w g| (`taylor_vector`), sum |w g| (`taylor`) or sum |w g - w^2 F / 2| (`taylor_fisher`) over the
    weights of a unit, with the gradient g of the language-model loss (section 3.2).

    Two deviations: a KV group scores the mean of its query heads, without the weights of the keys and values that
    these share; and the paper stores a pickled module, here the widths of each layer are in the config, for which
    `lit_prune.models.per_layer_config` must be imported before such a model is loaded.
    """

    intermediate_size: Size = 0.75
    """Neurons to keep in each pruned layer, a count or a share."""
    num_key_value_heads: Size = 0.75
    """KV groups to keep in each pruned layer with their query heads, a count or a share; heads, if none share keys."""
    criterion: Literal["taylor_vector", "taylor", "taylor_fisher"] = "taylor"
    """Score of a unit."""
    spare_first: Natural = 4
    """Layers at the beginning that stay whole (4 of the 32 of LLaMA-7B)."""
    spare_last: Natural = 2
    """Layers at the end that stay whole (2 of the 32 of LLaMA-7B)."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.batch_size": 64, "distill.optimizer.lr": 1e-4,
        "distill.optimizer.warmup_steps": 100, "distill.lora.rank": 8, "distill.lora.alpha": 16.0,
        "distill.lora.dropout": 0.05,
    }  # fmt: skip

    def recipe(self, config: Any) -> Prune:
        """Return the widths of the layers that are pruned."""
        from lit_prune.models.shape import shape_of

        whole = shape_of(config)
        shared = whole.num_key_value_heads < whole.num_attention_heads
        heads = {"num_key_value_heads" if shared else "num_attention_heads": self.num_key_value_heads}
        return self.keep(intermediate_size=self.intermediate_size, width_criterion=self.criterion, **heads)

    def adjust(self, plan: PrunePlan) -> PrunePlan:
        """Return the plan with the first and last layers whole; a given plan stays as it is."""
        if self.plan_path:
            return plan
        end = plan.original.num_hidden_layers - self.spare_last
        if self.spare_first >= end:
            most = f"{plan.original.num_hidden_layers - 1} together with prune.spare_last={self.spare_last}"
            raise ConfigError(f"prune.spare_first: must be at most {most}, got {self.spare_first}")
        whole = type(plan).everything(plan.original).layers
        layers: tuple[LayerPlan, ...] = tuple(
            layer if self.spare_first <= layer.index < end else whole[layer.index] for layer in plan.layers
        )
        return dataclasses.replace(plan, layers=layers)

    def effective(self, config: Any) -> LLMPruner:
        """Return the settings themselves: the recipe does not know of the layers that stay whole."""
        return self
