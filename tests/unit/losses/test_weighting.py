"""Weights of the terms of an objective relative to each other."""

from __future__ import annotations

import pytest
import torch

from lit_prune.config import Distill
from lit_prune.losses.weighting import ratios

# Weighting


def test_dynamic_alpha_is_the_ratio_and_has_no_gradient():
    logits, hidden = torch.tensor(3.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    alpha = ratios(Distill(alpha="dynamic"), logits, {"kd_loss": logits, "hidden_loss": hidden})["hidden_loss"]
    assert alpha.item() == pytest.approx(0.6)
    assert not alpha.requires_grad


def test_dynamic_alpha_is_finite_where_the_states_agree():
    for logits in (3.0, 0.0):
        terms = {"kd_loss": torch.tensor(logits), "hidden_loss": torch.tensor(0.0)}
        alpha = ratios(Distill(alpha="dynamic"), terms["kd_loss"], terms)["hidden_loss"]
        assert alpha.isfinite()
        assert (alpha.item() == 0) == (logits == 0)


def test_a_number_is_no_ratio():
    terms = {name: torch.tensor(3.0) for name in ("kd_loss", "hidden_loss", "ce_loss")}
    assert ratios(Distill(alpha=0.25, ce_weight=0.5), terms["kd_loss"], terms) == {}
