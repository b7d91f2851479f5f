"""Weights of the terms of the objective, L = ce_weight * L_CLM + kd_weight * L_logits + alpha * L_is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_prune.config import ConfigError, Distill

_LEAST = 1e-12
"""Lower bound of the denominator of a ratio."""


def ratios(distill: Distill, fixed: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that are ratios of terms, by the name of their term; a later one may depend on an earlier one.

    alpha="dynamic" is L_logits / L_is (Minitron, section 3); ce_weight="balanced" is the sum of all distillation terms
    divided by L_CLM. Model-Optimizer balances in the opposite direction: it scales the distillation terms to L_CLM, so
    the total has the scale of the language-model loss; here it has the scale of the distillation loss. `fixed` is the
    sum of the terms whose weights are numbers, `terms` each unweighted term; all are scalars.
    """
    found: dict[str, Tensor] = {}
    if isinstance(distill.alpha, str) and "hidden_loss" in terms:
        found["hidden_loss"] = _ratio(terms["kd_loss"], terms["hidden_loss"])
        fixed = fixed + found["hidden_loss"] * terms["hidden_loss"]
    if isinstance(distill.ce_weight, str):
        found["ce_loss"] = _ratio(fixed, terms["ce_loss"])
    return found


def _ratio(wanted: Tensor, term: Tensor) -> Tensor:
    """Return wanted / term, detached: with a gradient, the weight would cancel that of the term."""
    return (wanted / term.clamp_min(_LEAST)).detach()


def check_weights(distill: Distill) -> None:
    """Check that some weight is nonzero, and that each weight defined as a ratio has the other term it refers to.

    Raises:
        ConfigError: if one of the two does not hold.
    """
    if not (distill.ce_weight or distill.kd_weight or distill.alpha):
        raise ConfigError("distill: ce_weight, kd_weight and alpha are all 0: there is nothing to minimise")
    if distill.alpha == "dynamic" and not distill.kd_weight:
        raise ConfigError("distill.alpha: dynamic is measured by the logit loss, but kd_weight is 0; give it a number")
    if distill.ce_weight == "balanced" and not (distill.kd_weight or distill.alpha):
        raise ConfigError(
            "distill.ce_weight: balanced is measured by kd_weight and alpha, which are 0; give it a number"
        )
