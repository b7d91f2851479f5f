"""How the terms of the objective are added up: L = w_clm * L_CLM + w_logits * L_logits + alpha * L_is."""

from __future__ import annotations

from torch import Tensor

from lit_prune.config import ConfigError, Distill

_LEAST = 1e-12
"""A term that others are measured by counts as no less."""


def weigh_alpha(alpha: float | str, logits: Tensor, hidden: Tensor) -> float | Tensor:
    """The weight of L_is: a number, or for "dynamic" the detached ratio L_logits / L_is (Minitron, section 3).

    Detached, because otherwise the gradient of L_is would cancel.
    """
    if isinstance(alpha, str):
        return (logits / hidden.clamp_min(_LEAST)).detach()
    return alpha


def weigh_clm(w_clm: float | str, distillation: Tensor, clm: Tensor) -> float | Tensor:
    """The weight of L_CLM: a number, or for "balanced" the detached ratio of all distillation terms to L_CLM.

    Model-Optimizer balances the other way round: it scales the distillation terms to L_CLM, so that its loss is that
    of language modelling; here it stays that of distillation.
    """
    if isinstance(w_clm, str):
        return (distillation / clm.clamp_min(_LEAST)).detach()
    return w_clm


def check_weights(distill: Distill) -> None:
    """See that the weights leave something to minimise, and that what is measured by another term has it.

    Raises:
        ConfigError: they do not.
    """
    if not (distill.w_clm or distill.w_logits or distill.alpha):
        raise ConfigError("distill: w_clm, w_logits and alpha are all 0: there is nothing to minimise")
    if distill.alpha == "dynamic" and not distill.w_logits:
        raise ConfigError("distill.alpha: dynamic is measured by the logit loss, but w_logits is 0; give it a number")
    if distill.w_clm == "balanced" and not (distill.w_logits or distill.alpha):
        raise ConfigError("distill.w_clm: balanced is measured by w_logits and alpha, which are 0; give it a number")
