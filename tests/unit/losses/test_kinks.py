"""Kinks of losses are found; smooth losses have none."""

import pytest
import torch
from kinks import smooth_tokens

from lit_prune.losses.logit import logit_losses

SMOOTH = ["kld", "reverse_kld", "jsd", "skew_kld", "skew_reverse_kld", "mse", "cosine", "mse_logits", "cosine_logits"]


@pytest.mark.parametrize("scale", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_losses_are_compared_at_every_token(name, scale):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (scale * torch.randn(600, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    assert smooth_tokens(logit_losses[name], student, teacher).all()


def test_a_kink_is_found_where_two_probabilities_agree():
    """Total variation, half of |p - q| added up, has a kink where one p is its q; the third token is 1e-3 away."""

    def total_variation(student, teacher):
        return (student.softmax(-1) - teacher.softmax(-1)).abs().sum(-1) / 2

    student = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]).double().log()
    teacher = torch.tensor([[0.2, 0.4, 0.4], [0.1, 0.2, 0.7], [0.1998, 0.4002, 0.4]]).double().log()
    assert smooth_tokens(total_variation, student, teacher).tolist() == [False, True, True]
