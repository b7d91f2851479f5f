"""SliceGPT: rotate the residual stream into its principal components and cut the last ones (arXiv 2401.15024)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from lit_prune.config import ConfigError, PruneMethod
from lit_prune.config.fields import Fraction
from lit_prune.methods import method
from lit_prune.pruning.context import PruneContext, Pruned


@method("slicegpt")
@dataclass(frozen=True)
class SliceGPT(PruneMethod):
    """Give the residual stream the basis of its principal components, before and after each attention, and cut it.

    RMSNorm commutes with a rotation Q, so a linear W that reads the stream after a norm of weight w becomes
    W diag(w) Q, one that adds to it becomes Q^T W, and the stream passes from basis to basis by a shortcut
    Q_next^T Q (sections 3.2 and 3.3). Q are the eigenvectors of sum x x^T over the calibration tokens, layer by layer,
    with x from the model that is sliced so far; the first columns stay (section 3.4). All in float64.

    Four deviations. As in the reference code, x is the input of a norm, not its output. That code keeps the input of
    the head at full width by default; here it is sliced too, so that one `hidden_size` holds everywhere. Norms keep a
    weight, which is trained again by a retraining. Embedding and head are untied, so a model with a large vocabulary
    may have more parameters than before.

    The result is no stock model: import `lit_prune.models.transformed` before you load it. Only families built like
    Llama have such a type.
    """

    slice_fraction: Fraction = 0.25
    """Share of the channels of the residual stream to cut; the rest is rounded down to a multiple of 8."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.optimizer.lr": 2e-4,
        "distill.lora.rank": 32, "distill.lora.alpha": 10.0, "distill.lora.dropout": 0.05,
        "distill.lora.target_modules": (
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        ),
    }  # fmt: skip

    def check(self, config: Any) -> None:
        """Raise a ConfigError if a model with this config has no such basis, or settings are without effect."""
        if self.plan_path is not None:
            raise ConfigError(f"prune.plan_path: must be null, as no whole units are kept, got {self.plan_path}")
        self.config_of(config)

    def config_of(self, config: Any) -> Any:
        """Return the config of the student: the family's, with another width and with shortcuts."""
        from lit_prune.models.shape import check_stock, shape_of
        from lit_prune.pruning.rotate import rotated_config

        check_stock(config)
        width = int((1 - self.slice_fraction) * shape_of(config).hidden_size + 1e-6) // 8 * 8
        if width < 8:
            most = 1 - 8 / config.hidden_size
            raise ConfigError(f"prune.slice_fraction: must be at most {most:.3g}, got {self.slice_fraction}")
        return rotated_config(config, width)

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of running the model layer by layer, of two moments in each layer and their eigenvectors."""
        return work.layerwise() + 2 * work.grams(work.hidden) + 2 * work.eigenvectors(work.hidden)

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Find the bases layer by layer, and return the model in their coordinates."""
        from lit_prune.pruning.rotate import principal_bases, rotated

        self.check(model.config)
        width, layers = self.config_of(model.config).hidden_size, model.config.num_hidden_layers
        bases = principal_bases(
            copy.deepcopy(model).to(ctx.device), width, ctx.batches(), ctx.counter("slicing", layers, "layer")
        )
        return Pruned(rotated(model, bases), {"slice_fraction": self.slice_fraction}, {"hidden_size": width})
