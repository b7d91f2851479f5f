"""Reassessing Layer Pruning in LLMs: drop the last layers, including the final one (arXiv 2411.15558)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lit_prune.config import Prune, Size
from lit_prune.methods import method
from lit_prune.pruning.bases.score_and_cut import ScoreAndCut


@method("reassessing")
@dataclass(frozen=True)
class Reassessing(ScoreAndCut):
    """Drop the last layers in reverse order, the final one first, and train the last of the remaining layers.

    No scores and no calibration are needed. The paper then trains the output head, the final norm and the last three
    layers with cross-entropy for two epochs of Alpaca; here `distill.max_steps` sets the duration. If the head is tied
    to the embedding, both are trained; the paper excludes such models.
    """

    num_hidden_layers: Size = 0.75
    """Layers to keep, as a count or a share. The paper drops a quarter."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.batch_size": 64, "distill.optimizer.lr": 1e-5,
        "distill.optimizer.min_lr": 0.0, "distill.optimizer.warmup_steps": 100, "distill.train_last_layers": 3,
    }  # fmt: skip

    def recipe(self, config: Any) -> Prune:
        """Return a recipe that keeps the first layers."""
        return self.keep(num_hidden_layers=self.num_hidden_layers, layer_selection="last")
