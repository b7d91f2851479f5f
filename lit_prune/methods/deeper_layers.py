"""The Unreasonable Ineffectiveness of the Deeper Layers: drop one contiguous span of layers (arXiv 2403.17887)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lit_prune.config import Prune, Size
from lit_prune.methods import method
from lit_prune.pruning.bases.score_and_cut import ScoreAndCut


@method("deeper_layers")
@dataclass(frozen=True)
class DeeperLayers(ScoreAndCut):
    """Drop the n layers l* to l* + n - 1 with the smallest angular distance between input and output at the last token.

    l* = argmin_l d(x_l, x_{l+n}) with d(x, y) = arccos(cos(x, y)) / pi, mean over the last tokens of the calibration
    sequences (section 3.2). The simple heuristic of section 4.4 drops the deepest layers except the final one.

    The paper retrains with QLoRA on 4-bit weights. `retraining` has LoRA on unquantised weights, which
    `distill.lora.quantize` quantises. Rank and learning rate depend on the model; here they are those of Llama-2-7B.
    Calibration sequences are packed, so the last token need not end a document.
    """

    num_hidden_layers: Size = 0.75
    """Layers to keep, as a count or a share."""
    selection: Literal["similarity", "simple"] = "similarity"
    """Span to drop: the one with the smallest angle, or the deepest layers except the final one."""

    retraining: ClassVar[dict[str, Any]] = {
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.max_steps": 5000, "distill.batch_size": 16,
        "distill.optimizer.lr": 3e-4, "distill.optimizer.warmup_steps": 100,
        "distill.lora.rank": 2, "distill.lora.alpha": 2.0, "distill.lora.dropout": 0.05,
        "distill.lora.target_modules": ("gate_proj", "up_proj", "down_proj"),
    }  # fmt: skip

    def recipe(self, config: Any) -> Prune:
        """Return a recipe that keeps layers by angular distance, or by position with `simple`."""
        return self.keep(
            num_hidden_layers=self.num_hidden_layers, layer_criterion="angular",
            layer_selection="contiguous" if self.selection == "similarity" else "last_but_final",
        )  # fmt: skip
