"""Wanda: set weights to zero by their absolute value times the norm of their input (arXiv 2306.11695)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lit_prune.methods import method
from lit_prune.pruning.bases.zero_weights import ZeroWeights
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.masks import Masks


@method("wanda")
@dataclass(frozen=True)
class Wanda(ZeroWeights):
    """Zero the weights with the lowest |W_ij| * ||X_j||_2 among those of the same output; the others stay as they are.

    X_j is input j of the linear over all tokens of the calibration sequences (section 3, equation 1). Layer by layer:
    the inputs of a layer are the outputs of the pruned layers before it. The paper calibrates on 128 sequences of C4.

    Two deviations. The paper rounds the number of zeros of each row down; here all rows of a matrix together have the
    requested number. The paper does not merge its LoRA adapters, which are dense; here they are masked as the weights
    are, from the start of the training, and merged.
    """

    pattern: str | None = None
    """N:M, such as 2:4 or 4:8: keep N of every M consecutive weights of a row. It replaces `comparison`."""
    comparison: Literal["row", "matrix"] = "row"
    """Weights that are compared with each other: those of an output, or of a matrix."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.batch_size": 128, "distill.optimizer.lr": 1e-4,
        "distill.optimizer.warmup_steps": 5, "distill.lora.rank": 8, "distill.lora.alpha": 16.0,
        "distill.lora.dropout": 0.05, "distill.lora.target_modules": ("q_proj", "v_proj"),
    }  # fmt: skip

    def check(self, config: Any) -> None:
        """Raise a ConfigError as `ZeroWeights`, or if the pattern does not fit."""
        from lit_prune.pruning.sparsity import check_pattern

        super().check(config)
        check_pattern(self.pattern, self.sparsity, config)

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of running the model layer by layer."""
        return work.layerwise()

    def masks_of(self, model: Any, ctx: PruneContext) -> Masks:
        """Zero the weights layer by layer and return the masks."""
        from lit_prune.models.model_family import layers_of
        from lit_prune.pruning.sparsity import chooser, stored, wanda_masks

        progress = ctx.counter("pruning", len(layers_of(model)), "layer")
        choose = chooser(self.sparsity, self.pattern, self.comparison)
        return stored(model, wanda_masks(model, ctx.batches(), choose, progress))
