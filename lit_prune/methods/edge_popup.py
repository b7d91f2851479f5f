"""edge-popup: draw the weights at random and learn which of them to keep (arXiv 1911.13299)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lit_prune.config import ConfigError
from lit_prune.config.fields import Count, Positive
from lit_prune.methods import method
from lit_prune.pruning.bases.zero_weights import ZeroWeights
from lit_prune.pruning.context import PruneContext

if TYPE_CHECKING:
    from lit_prune.pruning.masks import Masks


@method("edge_popup")
@dataclass(frozen=True)
class EdgePopup(ZeroWeights):
    """Replace the weights of the linears by random ones, and zero those of the lowest learned |s| in each matrix.

    The result is a random network with a learned mask: no weight of a linear in the layers is that of the model, and
    none is trained. Each is +c or -c with equal probability, where c = sqrt(2 / fan_in) (signed Kaiming constant).
    Scores s begin uniformly in +-1 / sqrt(fan_in). The mask of the highest |s| passes its gradient straight to |s|, as
    in the authors' code: dL/ds = dL/dW' * W * sign(s), with W' = M * W. The sparsity is constant.

    The paper trains image classifiers with SGD at a rate of 0.1 and keeps 30 to 70 % of the weights. Deviations:
    AdamW, whose steps do not depend on the size of the gradients, for few steps; embeddings, norms and the output head
    have no mask and stay those of the model, and the biases of the linears are 0.
    """

    max_steps: Count = 200
    """Steps of training."""
    batch_size: Count = 8
    """Sequences in a step."""
    lr: Positive = 0.01
    """Learning rate of the scores, which falls linearly to 0."""

    training_passes: ClassVar[float] = 3
    keeps_zeros: ClassVar[bool] = False  # weights are drawn where zeros were

    def check(self, config: Any) -> None:
        """Raise a ConfigError as `ZeroWeights`, or for masks of another run, which lack its random weights."""
        if self.plan_path is not None:
            raise ConfigError(f"prune.plan_path: must be null with prune.method={self.method}, got {self.plan_path}")
        super().check(config)

    def masks_of(self, model: Any, ctx: PruneContext) -> Masks:
        """Draw the weights of the model, learn the scores and return the masks."""
        import torch

        from lit_prune.pruning.learned.weight_scores import WeightScores, draw_signed_constants, uniform_scores

        generator = torch.Generator().manual_seed(ctx.seed)
        draw_signed_constants(model, generator)
        module = WeightScores(
            model, uniform_scores(generator), sparsity=self.sparsity, ramp=0.0, penalty=0.0, lr=self.lr,
            max_steps=self.max_steps, rank=torch.abs,
        )  # fmt: skip
        ctx.fit(module, "learning masks", max_steps=self.max_steps, batch_size=self.batch_size)
        return module.masks(self.sparsity)
