"""CFSP: fewer MLP neurons where a layer turns the states less, by activations (arXiv 2409.13199)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.config import Prune, Size
from lit_prune.config.fields import NonNegative
from lit_prune.methods import method
from lit_prune.pruning.bases.score_and_cut import ChooseAndCut, ScoreAndCut
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan


@method("cfsp")
@dataclass(frozen=True)
class CFSP(ChooseAndCut):
    """Divide the neurons among the layers by angular distance (coarse), then keep the best of each layer (fine).

    Coarse: with I_l the mean over tokens of arccos(cos(x_l, x_{l+1})) / pi, layer l keeps neurons in proportion to
    sigmoid(a (I_l - mean of I)). What exceeds the neurons of a layer goes to the others; the total is exact.

    Fine: with s_j the L2 norm of neuron j over all tokens, the down projection D [d, neurons] and the transposed up and
    gate projections U and G, the score of neuron j is s_j times the mean over rows i of
    |D_ij| s_j / sum_j |D_ij| s_j + |U_ij| / sum_j |U_ij| + |G_ij| / sum_j |G_ij|. The official code divides by the sums
    over i instead, so that all weights cancel and 3 s_j / d remains; `official` is s_j.

    Deviations: the official code sums I_l over tokens and divides by 1e4, so that the effect of a depends on the number
    of tokens; the default here equals a = 1 with its 128 sequences of 2048 tokens. Both exponents of s_j are 1. Numbers
    of neurons are not rounded to multiples of 128. The paper gives each layer a LoRA rank by its importance; here all
    layers have the same, and the other settings of the retraining are those of `distill`. Import
    `lit_prune.models.per_layer_config` before you load a student, since its layers differ in width.
    """

    intermediate_size: Size = 0.75
    """Neurons to keep in each layer on average, as a count or a share."""
    variant: Literal["paper", "official"] = "paper"
    """Score of a neuron: its share of the weights times its activation, or its activation alone as in the code."""
    sharpness: NonNegative = 26.2144
    """a, how much the layers differ; 0 keeps the same number of neurons in each."""

    keeps_zeros: ClassVar[bool] = True
    retraining: ClassVar[dict[str, Any]] = {"distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.lora.rank": 8}

    @property
    def equal_layers(self) -> bool:
        """False: the scores decide the width of every layer."""
        return False

    def recipe(self, config: Any) -> Prune:
        """Return a recipe with the average number of neurons."""
        return self.keep(
            intermediate_size=self.intermediate_size, batch_aggregation="l2", seq_aggregation="l2",
            width_criterion="relative_activation" if self.variant == "paper" else "activation",
        )  # fmt: skip

    def statistics(self, config: Any) -> frozenset[str]:
        """Return the names of the statistics of activations and of distances between states."""
        fine = ScoreAndCut.statistics(self, config)
        return fine | {"distances"} if fine else fine

    def choose(self, model: Any, plan: PrunePlan, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Return the plan with the neurons that each layer keeps."""
        from lit_prune.importance.criteria import criteria
        from lit_prune.pruning.allocate import best, proportional_counts

        recipe, whole = self.recipe(model.config), plan.original
        stats = ctx.collect(model, self.statistics(model.config))
        influence = criteria["angular_all"].score(stats, recipe)["layer"][0]
        weights = (self.sharpness * (influence - influence.mean())).sigmoid()
        total = plan.kept.intermediate_size * whole.num_hidden_layers
        counts = proportional_counts(weights, total, whole.intermediate_size)
        neurons = map(best, criteria[recipe.width_criterion].score(stats, recipe)["neuron"], counts)
        layers = [dataclasses.replace(layer, neurons=kept) for layer, kept in zip(plan.layers, neurons, strict=True)]
        return dataclasses.replace(plan, layers=tuple(layers)), None
