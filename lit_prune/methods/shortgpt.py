"""ShortGPT: drop the layers with the lowest block influence (arXiv 2403.03853)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_prune.config import Prune, Size
from lit_prune.methods import method
from lit_prune.pruning.bases.score_and_cut import ScoreAndCut


@method("shortgpt")
@dataclass(frozen=True)
class ShortGPT(ScoreAndCut):
    """Drop the layers with the lowest individual block influence in one shot, without retraining.

    The influence of layer i is 1 - E[cos(x_i, x_{i+1})] over all tokens, where x_i is its input and x_{i+1} its output,
    read before the final norm. The paper calibrates on PG19; here the corpus of the cell is used.
    """

    num_hidden_layers: Size = 0.75
    """Layers to keep, as a count or a share. The paper drops about a quarter: 9 of 32 in Llama-2-7B."""

    def recipe(self, config: Any) -> Prune:
        """Return a recipe that keeps the layers with the highest influence."""
        return self.keep(
            num_hidden_layers=self.num_hidden_layers, layer_criterion="influence", layer_selection="lowest_score"
        )
