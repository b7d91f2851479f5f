"""AlphaPruning: allocate the sparsity of each layer by the tail of its weights' spectra (arXiv 2410.10912)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lit_prune.config.fields import Fraction
from lit_prune.methods import method
from lit_prune.pruning.bases.zero_weights import ZeroWeights
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.masks import Masks


@method("alpha_pruning")
@dataclass(frozen=True)
class AlphaPruning(ZeroWeights):
    """Zero more weights in layers whose spectra have lighter tails, by Wanda or by magnitude inside a matrix.

    The eigenvalues of W^T W follow a power law in their tail, with the exponent alpha = 1 + n / sum_i ln(l_i / l_min)
    (Hill estimator). The mean alpha of a layer's matrices is mapped linearly to [1 - epsilon, 1 + epsilon] over the
    layers; these numbers times a common factor are the sparsities, with the requested one over all weights.

    Two deviations. A sparsity that would exceed 1 is 1, and the other layers take the rest. The reference code limits
    the beginning of the tail from below by the logarithm of 0.95 times the peak, which hardly limits it; here the limit
    is 0.95 times the peak.
    """

    sparsity: Fraction = 0.7
    """Share of the weights of the linears in the layers to set to zero."""
    criterion: Literal["wanda", "magnitude"] = "wanda"
    """Score inside a matrix: that of Wanda, compared within a row, or the magnitude, compared within the matrix."""
    epsilon: Fraction | None = None
    """Half the range of the sparsities around their mean, before the common factor; null: 0.3 for Wanda, 0.5 for
    magnitude, as in the paper."""
    tail: Literal["peak", "median"] = "peak"
    """Where the tail begins: the best fit near the peak of the spectrum, or the median."""

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of the spectra, and of Wanda."""
        return work.eigenvalues() + (work.layerwise() if self.criterion == "wanda" else 0.0)

    def masks_of(self, model: Any, ctx: PruneContext) -> Masks:
        """Return the masks of a model."""
        from lit_prune.importance.spectrum import layer_exponents
        from lit_prune.models.model_family import layers_of
        from lit_prune.pruning.sparsity import chooser, layer_sparsities, magnitudes, stored, wanda_masks

        count = len(layers_of(model))
        exponents = layer_exponents(model, self.tail, ctx.counter("fitting spectra", count, "layer"))
        epsilon = {"wanda": 0.3, "magnitude": 0.5}[self.criterion] if self.epsilon is None else self.epsilon
        sparsity = layer_sparsities(model, exponents, epsilon, self.sparsity)
        if self.criterion == "magnitude":
            choose = chooser(sparsity, None, "matrix")
            return stored(model, {name: choose(name, score) for name, score in magnitudes(model).items()})
        progress = ctx.counter("pruning", count, "layer")
        return stored(model, wanda_masks(model, ctx.batches(), chooser(sparsity, None, "row"), progress))
