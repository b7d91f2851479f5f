"""LaCo: merge consecutive layers into one, as long as the last states stay similar (arXiv 2402.11187)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge

from lit_prune.config import ConfigError, Prune, Size
from lit_prune.config.fields import Count, Natural
from lit_prune.methods import method
from lit_prune.pruning.bases.score_and_cut import ChooseAndCut
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.plan import PrunePlan


@method("laco")
@dataclass(frozen=True)
class LaCo(ChooseAndCut):
    """Merge up to C - 1 layers into the one before them, from deep to shallow, where the mean cosine is at least T.

    w_l becomes w_l + sum over k = 1, ..., m of (w_{l+k} - w_l) for the weights and biases of linear modules (RDSC); the
    norms stay those of layer l. The official notebook subtracts the running sum instead, so that w_l becomes w_{l+m}.
    The cosine compares the last states of the merged and the original model. The first l is H - C; l then goes down by
    I after a merge, else by 1, to L.

    Deviations: the paper prunes as far as one pass with a fixed T goes. Here `num_hidden_layers` is reached exactly:
    the last merge takes fewer layers, passes are repeated, and after a pass without a merge T is lowered to the highest
    cosine of that pass. The cosine is averaged over tokens of calibration sequences. The paper sets C, L, H, I and T
    for each model; the defaults are those of the notebook for Llama-13B, with C scaled to the depth.
    """

    num_hidden_layers: Size = 0.75
    """Layers to keep, as a count or a share."""
    variant: Literal["paper", "official"] = "paper"
    """Weights of a merged layer: the sum of differences as printed, or those of the last of its layers (notebook). Both
    are the same for C = 2."""
    layers_per_merge: Annotated[int, Ge(2)] | None = None
    """C, the most layers that become one; None means 7 for every 40 layers of the model, but at least 2."""
    lowest_layer: Natural = 0
    """L, the lowest layer into which others are merged."""
    highest_layer: Natural | None = None
    """H; the search starts C layers below it. None means the last layer."""
    interval: Count = 1
    """I, the number of layers to go down after a merge."""
    threshold: float = 0.45
    """T, the lowest mean cosine at which a merge is accepted, until it has to be lowered."""
    num_sequences: Count = 5
    """Calibration sequences on which the models are compared (5 sentences in the notebook)."""

    def recipe(self, config: Any) -> Prune:
        """Return a recipe with the number of layers; the search decides which."""
        return self.keep(num_hidden_layers=self.num_hidden_layers, layer_selection="last")

    def adjust(self, plan: PrunePlan) -> PrunePlan:
        """Return the plan unchanged if the search can reach its number of layers."""
        for name, most in (("lowest_layer", len(plan.layers)), ("highest_layer", plan.original.num_hidden_layers)):
            if (layer := getattr(self, name) or 0) >= most:
                raise ConfigError(f"prune.{name}: must be < {most}, got {layer}")
        return plan

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of a pass with the model, and of one for every layer that goes."""
        gone = work.layers - len(self.shape_plan(work.config).layers)
        return work.passes(1 + gone, self.num_sequences)

    def choose(self, model: Any, plan: PrunePlan, ctx: PruneContext) -> tuple[PrunePlan, Any]:
        """Search for merges until as few layers are left as requested."""
        from lit_prune.pruning.layer_merging import MergedLayers

        whole, gone = plan.original.num_hidden_layers, plan.original.num_hidden_layers - len(plan.layers)
        merged = MergedLayers(model, ctx.batches(), self.num_sequences, self.variant)
        merged.search(
            len(plan.layers), self.layers_per_merge or max(2, round(whole * 7 / 40)), self.lowest_layer,
            self.highest_layer, self.interval, self.threshold, ctx.counter("merging layers", gone, "layer"),
        )  # fmt: skip
        return merged.plan(), merged.model
