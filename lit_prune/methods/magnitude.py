"""Magnitude pruning: set the weights with the smallest absolute values to zero (arXiv 1506.02626)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lit_prune.methods import method
from lit_prune.pruning.bases.zero_weights import ZeroWeights
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.masks import Masks


@method("magnitude")
@dataclass(frozen=True)
class Magnitude(ZeroWeights):
    """Zero the weights with the lowest |W_ij| in each matrix, in each of its rows, or in the whole model.

    The default is the baseline of the papers on Wanda and AlphaPruning: the same sparsity in every matrix of the
    layers, no calibration and no retraining. Embeddings, head, norms and biases are not pruned.
    """

    pattern: str | None = None
    """N:M, such as 2:4: keep N of every M consecutive weights of a row. It replaces `comparison`."""
    comparison: Literal["row", "matrix", "model"] = "matrix"
    """Weights that are compared with each other: those of an output, of a matrix, or of all matrices together."""

    def check(self, config: Any) -> None:
        """Raise a ConfigError as `ZeroWeights`, or if the pattern does not fit."""
        from lit_prune.pruning.sparsity import check_pattern

        super().check(config)
        check_pattern(self.pattern, self.sparsity, config)

    def masks_of(self, model: Any, ctx: PruneContext) -> Masks:
        """Return the masks of the model."""
        from lit_prune.pruning.sparsity import chooser, keep_in_model, magnitudes, stored

        scores = magnitudes(model)
        if self.pattern is None and self.comparison == "model":
            zeros = round(self.sparsity * sum(score.numel() for score in scores.values()))
            return stored(model, keep_in_model(scores, zeros))
        choose = chooser(self.sparsity, self.pattern, "row" if self.comparison == "row" else "matrix")
        return stored(model, {name: choose(name, score) for name, score in scores.items()})
