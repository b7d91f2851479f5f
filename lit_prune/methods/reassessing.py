"""Reassessing Layer Pruning in LLMs: the last layers go, the final one included (arXiv 2411.15558)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lit_prune.config import Prune, Size
from lit_prune.methods import ScoreAndCut, method


@method("reassessing")
@dataclass(frozen=True)
class Reassessing(ScoreAndCut):
    """Drop the last layers in reverse order, the final one first, and train the last of those that stay.

    No score is computed and no calibration is needed. The paper then trains the output head, the final norm and the
    last three layers with cross-entropy, for two epochs of Alpaca; here `distill.max_steps` decides how long. Where
    the head is tied to the embedding, both are trained; the paper leaves such models out.
    """

    num_hidden_layers: Size = 0.75
    """Layers to keep, a count or a share. The paper drops a quarter."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.batch_size": 64, "distill.optimizer.lr": 1e-5,
        "distill.optimizer.min_lr": 0.0, "distill.optimizer.warmup_steps": 100, "distill.train_last_layers": 3,
    }  # fmt: skip

    def recipe(self, config: Any) -> Prune:
        """Return the first layers."""
        return self.keep(num_hidden_layers=self.num_hidden_layers, layer_selection="last")
