"""How the terms of the objective are added up: L = ce_weight * L_CLM + kd_weight * L_logits + alpha * L_is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_prune.config import ConfigError, Distill

_LEAST = 1e-12
"""A term that others are measured by counts as no less."""


def ratios(distill: Distill, fixed: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that are ratios, by the name of their term, in the order in which they build on each other.

    alpha="dynamic" is L_logits / L_is (Minitron, section 3), ce_weight="balanced" all distillation terms over L_CLM.
    Model-Optimizer balances the other way round: it scales the distillation terms to L_CLM, so that its loss is that
    of language modelling; here it stays that of distillation. `fixed` is the sum of the terms whose weights are
    numbers, `terms` each term by itself; all are scalars.
    """
    found: dict[str, Tensor] = {}
    if isinstance(distill.alpha, str) and "hidden_loss" in terms:
        found["hidden_loss"] = _ratio(terms["kd_loss"], terms["hidden_loss"])
        fixed = fixed + found["hidden_loss"] * terms["hidden_loss"]
    if isinstance(distill.ce_weight, str):
        found["ce_loss"] = _ratio(fixed, terms["ce_loss"])
    return found


def _ratio(wanted: Tensor, term: Tensor) -> Tensor:
    """Return the weight that makes `term` as large as `wanted`; detached, or the gradient of the term would cancel."""
    return (wanted / term.clamp_min(_LEAST)).detach()


def check_weights(distill: Distill) -> None:
    """Check that the weights leave something to minimise, and that what is measured by another term has it.

    Raises:
        ConfigError: if they do not.
    """
    if not (distill.ce_weight or distill.kd_weight or distill.alpha):
        raise ConfigError("distill: ce_weight, kd_weight and alpha are all 0: there is nothing to minimise")
    if distill.alpha == "dynamic" and not distill.kd_weight:
        raise ConfigError("distill.alpha: dynamic is measured by the logit loss, but kd_weight is 0; give it a number")
    if distill.ce_weight == "balanced" and not (distill.kd_weight or distill.alpha):
        raise ConfigError(
            "distill.ce_weight: balanced is measured by kd_weight and alpha, which are 0; give it a number"
        )
