"""FASP: prune MLP neurons layer by layer, and correct the down projections by least squares (arXiv 2501.09412)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lit_prune.config import ConfigError, Prune, Size
from lit_prune.config.fields import Positive
from lit_prune.methods import method
from lit_prune.pruning.bases.score_and_cut import ChooseAndCut
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan


@method("fasp")
@dataclass(frozen=True)
class FASP(ChooseAndCut):
    """Keep the neurons j with the highest sum_i |W_ij| |X_j| of each down projection W, the same number in every layer.

    X_j is the input j of W over all tokens, computed by the layers before it after they were pruned. The weights of the
    kept inputs M become W X X_M^T (X_M X_M^T + delta I)^-1.

    Deviations: delta pulls the weights towards their old values W_M instead of zero, so that the output on the
    calibration data is never further from the unpruned one than without the correction. The paper also prunes single
    channels of values with their columns of the output projection, which transformers cannot express; here whole KV
    groups may be pruned instead, by the sum of their columns' scores, also with the correction. They include queries
    and keys, which the paper keeps, so by default all stay. Sizes count neurons and groups, not all parameters.
    """

    intermediate_size: Size = 0.75
    """Neurons to keep in each layer, as a count or a share."""
    num_key_value_heads: Size = None
    """KV groups (with their query heads) to keep in each layer, as a count or a share; heads, without GQA."""
    correction: bool = True
    """Correct the kept weights by least squares."""
    damping: Positive = 0.01
    """delta, as a share of the mean of the diagonal of X_M X_M^T."""

    @property
    def keeps_zeros(self) -> bool:  # type: ignore[override]
        """Whether zeroed weights of the pruned model stay zero; the correction changes them."""
        return not self.correction

    def recipe(self, config: Any) -> Prune:
        """Return a recipe with the sizes of the layers."""
        from lit_prune.models.model_family import anatomy_of

        if self.num_key_value_heads is not None and anatomy_of(config).wide_norms:
            why = f"in {config.model_type}, whose norms span all heads"
            raise ConfigError(f"prune.num_key_value_heads: must be null {why}, got {self.num_key_value_heads}")
        return self.keep_groups(config, self.num_key_value_heads, intermediate_size=self.intermediate_size)

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of running the model layer by layer, and of the moments of the pruned inputs."""
        attention = 0.0 if self.num_key_value_heads is None else work.grams(work.values)
        return work.layerwise() + work.grams(work.neurons) + attention

    def choose(self, model: Any, plan: PrunePlan, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Prune and correct one layer after another, attention first."""
        from lit_prune.models.model_family import anatomy_of
        from lit_prune.pruning.layerwise import layerwise
        from lit_prune.pruning.least_squares import prune_inputs

        family, damping = anatomy_of(model.config), self.damping if self.correction else None
        changed, whole, kept = copy.deepcopy(model).to(ctx.device), plan.original, plan.kept
        layers = []
        for step in layerwise(changed, ctx.batches(), ctx.counter("pruning", whole.num_hidden_layers, "layer")):
            layer = plan.layers[step.index]
            if (count := kept.num_key_value_heads) < whole.num_key_value_heads:
                groups = prune_inputs(step, family.attention_output, whole.num_key_value_heads, count, damping)
                layer = replace(layer, heads=whole.heads_of(groups))
            if (count := kept.intermediate_size) < whole.intermediate_size:
                neurons = prune_inputs(step, family.mlp_output, whole.intermediate_size, count, damping)
                layer = replace(layer, neurons=neurons)
            layers.append(layer)
        return replace(plan, layers=tuple(layers)), changed
