"""Progressive low-rank decomposition: two factors in the place of each linear (arXiv 2406.19995)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lit_prune.config import ConfigError, PruneMethod
from lit_prune.methods import method
from lit_prune.pruning.context import PruneContext, Pruned


@method("plrd")
@dataclass(frozen=True)
class PLRD(PruneMethod):
    """Replace W [out, in] of each linear by its truncated singular value decomposition, W0 [out, rank] W1 [rank, in].

    W0 = U sqrt(S) and W1 = sqrt(S) V^T with the largest singular values S, in float64. A linear keeps its matrix if the
    factors would not be smaller, rank >= out in / (out + in).

    The paper lowers the rank in steps and continues pretraining in between: here a step is a cell, whose `parent` has a
    higher rank and is retrained (`parent.prune.rank=0.6`, `prune.rank=0.4`). Factors of an earlier step are decomposed
    as their product. The paper's ranks, and how it divides S between the factors, are not known to us. It trains on 1 B
    tokens with the language-model loss.

    The result is no stock model: import `lit_prune.models.transformed` before you load it. Only families built like
    Llama have such a type.
    """

    rank: int | float = 0.4
    """Rank of every linear, as a count or a share of the smaller dimension of its matrix."""

    retraining: ClassVar[dict[str, Any]] = {"distill.ce_weight": 1.0, "distill.kd_weight": 0.0}

    def check(self, config: Any) -> None:
        """Raise a ConfigError if no linear of a model with this config gets smaller, or settings are without effect."""
        if self.plan_path is not None:
            raise ConfigError(f"prune.plan_path: must be null, as no whole units are kept, got {self.plan_path}")
        self.config_of(config)

    def config_of(self, config: Any) -> Any:
        """Return the config of the student: the family's, with ranks."""
        from lit_prune.pruning.low_rank import low_rank_config

        return low_rank_config(config, self.rank)

    def own_flops(self, work: Any) -> float:
        """Return the FLOPs of the singular value decompositions."""
        return work.decompositions()

    def prune(self, model: Any, ctx: PruneContext) -> Pruned:
        """Decompose every linear and return the model with the factors."""
        from lit_prune.pruning.low_rank import low_rank

        self.check(model.config)
        ctx.say("decomposing")
        smaller = self.config_of(model.config)
        return Pruned(low_rank(model, smaller), {"rank": self.rank}, {"ranks": smaller.ranks})
