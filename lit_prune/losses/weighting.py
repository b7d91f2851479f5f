"""How the terms of the objective are added up: L = w_clm * L_CLM + w_logits * L_logits + alpha * L_is."""

from __future__ import annotations

from torch import Tensor

from lit_prune.config import Distill


def weigh_alpha(alpha: float | str, logits: Tensor, hidden: Tensor) -> float | Tensor:
    """The weight of L_is: a number, or for "dynamic" the detached ratio L_logits / L_is (Minitron, section 3).

    Detached, because otherwise the gradient of L_is would cancel.
    """
    if isinstance(alpha, str):
        return (logits / hidden.clamp_min(1e-12)).detach()
    return alpha


def total(distill: Distill, terms: dict[str, Tensor]) -> Tensor:
    """The weighted sum of the terms that are there: `clm`, `logits`, `hidden`, each a scalar."""
    weighted = []
    if "clm" in terms and distill.w_clm:
        weighted.append(distill.w_clm * terms["clm"])
    if "logits" in terms and distill.w_logits:
        weighted.append(distill.w_logits * terms["logits"])
    if "hidden" in terms:
        weighted.append(weigh_alpha(distill.alpha, terms["logits"], terms["hidden"]) * terms["hidden"])
    return sum(weighted[1:], weighted[0])
