"""The Unreasonable Ineffectiveness of the Deeper Layers: one contiguous span of layers goes (arXiv 2403.17887)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lit_prune.config import Prune, Size
from lit_prune.methods import ScoreAndCut, method


@method("deeper_layers")
@dataclass(frozen=True)
class DeeperLayers(ScoreAndCut):
    """Drop the n layers l* to l* + n - 1 across which the state of the last token turns least.

    l* = argmin_l d(x_l, x_{l+n}) with d(x, y) = arccos(cos(x, y)) / pi, mean over the last tokens of the calibration
    sequences (section 3.2). The simple heuristic of section 4.4 drops the deepest layers except the very last.

    The paper retrains by QLoRA, with the weights in 4 bits; here adapters are trained beside weights as they are. Its
    rank and learning rate differ by model: these are those of Llama-2-7B. A sequence of tokens is packed, so its last
    token need not end a document.
    """

    num_hidden_layers: Size = 0.75
    """Layers to keep, a count or a share."""
    selection: Literal["similarity", "simple"] = "similarity"
    """Span to drop: the one of the least angle, or the deepest layers except the very last."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.max_steps": 5000, "distill.batch_size": 16,
        "distill.optimizer.lr": 3e-4, "distill.optimizer.warmup_steps": 100,
        "distill.lora.rank": 2, "distill.lora.alpha": 2.0, "distill.lora.dropout": 0.05,
        "distill.lora.target_modules": ("gate_proj", "up_proj", "down_proj"),
    }  # fmt: skip

    def recipe(self, config: Any) -> Prune:
        """Return the layers to keep by angular distance, or by place."""
        return self.keep(
            num_hidden_layers=self.num_hidden_layers, layer_criterion="angular",
            layer_selection="contiguous" if self.selection == "similarity" else "last_but_final",
        )  # fmt: skip
