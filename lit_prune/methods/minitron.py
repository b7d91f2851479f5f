"""Minitron: prune width by activations, depth by block influence, or both (arXiv 2407.14679, 2408.11796)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lit_prune.config import Prune
from lit_prune.methods import method
from lit_prune.pruning.bases.score_and_cut import ScoreAndCut


@method("minitron")
@dataclass(frozen=True)
class Minitron(ScoreAndCut, Prune):
    """Score every axis from one forward pass, keep the best units of each and cut the others out (section 2.2).

    Every size, criterion and allocator is a setting. `retraining` is the recipe published for Llama-3.1-Minitron (In
    Practice, Table 4), which uses sequences of 8192 tokens.
    """

    retraining: ClassVar[dict[str, Any]] = {
        "distill.logit_loss": "kld", "distill.ce_weight": 0.0, "distill.kd_weight": 1.0, "distill.batch_size": 1152,
        "distill.optimizer.lr": 1e-4, "distill.optimizer.min_lr": 1e-5, "distill.optimizer.warmup_steps": 40,
    }  # fmt: skip

    @property
    def equal_layers(self) -> bool:
        """Whether the config alone tells the width of every layer; with global allocation the scores decide it."""
        return self.width_allocation == "uniform"

    @property
    def keeps_zeros(self) -> bool:  # type: ignore[override]
        """Whether zeroed weights of the pruned model stay zero; merged heads take on the weights of pruned ones."""
        return self.head_merging == "off"

    def check_settings(self) -> None:
        """Raise a ConfigError for a criterion or an allocator that does not exist."""
        from lit_prune.pruning.prune import check_names

        check_names(self)

    def recipe(self, config: Any) -> Prune:
        """Return the settings, which are a recipe already."""
        return self
