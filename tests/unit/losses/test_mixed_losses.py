"""Losses against a mixture of teacher and student."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from refusals import refuses

from lit_prune.losses.logit import logit_loss_of, logit_losses

MIXED = {"jsd": 0.5, "skew_kld": 0.1, "skew_reverse_kld": 0.1}
"""Loss -> its published default."""


def draw(seed: int, *, scale: float = 3.0, vocab: int = 64) -> torch.Tensor:
    return scale * torch.randn(128, vocab, generator=torch.Generator().manual_seed(seed))


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([[math.log(p) for p in probabilities]], dtype=torch.float64)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(-1)


def jsd(p: torch.Tensor, q: torch.Tensor, mix: float) -> torch.Tensor:
    middle = mix * p + (1 - mix) * q
    return mix * kl(p, middle) + (1 - mix) * kl(q, middle)


REFERENCES = {
    "jsd": jsd,
    "skew_kld": lambda p, q, mix: kl(p, mix * p + (1 - mix) * q),
    "skew_reverse_kld": lambda p, q, mix: kl(q, mix * q + (1 - mix) * p),
}
"""Of the probabilities of the teacher and of the student."""


def test_the_losses_that_take_a_mix_are_these():
    takers = {name for name in logit_losses if "mixture" in inspect.signature(logit_losses[name]).parameters}
    assert takers == set(MIXED) == set(REFERENCES)


@pytest.mark.parametrize("mix", [None, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", MIXED)
def test_a_mixed_loss_is_its_float64_reference(name, mix):
    student, teacher = draw(0), draw(1)
    p, q = teacher.double().softmax(-1), student.double().softmax(-1)
    expected = REFERENCES[name](p, q, MIXED[name] if mix is None else mix)
    ours = logit_loss_of(name, mix)(student, teacher)
    torch.testing.assert_close(ours.double(), expected, rtol=2e-6, atol=2e-7)
    exact = logit_loss_of(name, mix)(student.double(), teacher.double())
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mix", [0.02, 0.3, 0.98])
@pytest.mark.parametrize("name", MIXED)
def test_a_mixed_loss_keeps_the_contract_at_every_mix(name, mix):
    loss, teacher = logit_loss_of(name, mix), draw(1, scale=30.0)
    student = teacher.clone().requires_grad_()
    values = loss(student, teacher)
    assert torch.equal(values, torch.zeros(128))
    assert torch.autograd.grad(values.sum(), student)[0].abs().max() <= 1e-6
    for distance in (1e-6, 1e-3, 1.0, 100.0):
        other = teacher + distance * draw(2, scale=1.0)
        values = loss(other, teacher)
        assert values.min() >= -1e-7
        assert values.isfinite().all()
    near = draw(3, scale=1.0, vocab=5)[:3].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, draw(4, vocab=5)[:3].double()), near, rtol=1e-6, atol=1e-8)


def test_mixed_losses_by_hand():
    """Teacher (9/10, 1/10), student (1/2, 1/2): the middle is (0.7, 0.3), a tenth of teacher (0.54, 0.46), a tenth of
    student (0.86, 0.14)."""
    teacher, student = logits_of(0.9, 0.1), logits_of(0.5, 0.5)
    by_hand = {
        "jsd": (0.9 * math.log(9 / 7) + 0.1 * math.log(1 / 3) + 0.5 * math.log(5 / 7) + 0.5 * math.log(5 / 3)) / 2,
        "skew_kld": 0.9 * math.log(0.9 / 0.54) + 0.1 * math.log(0.1 / 0.46),
        "skew_reverse_kld": 0.5 * math.log(0.5 / 0.86) + 0.5 * math.log(0.5 / 0.14),
    }
    for name, value in by_hand.items():
        assert logit_losses[name](student, teacher).item() == pytest.approx(value, rel=1e-12)


def test_mixed_losses_have_the_divergences_as_their_limits():
    """A mixture that is nearly the other model is the divergence itself; JSD is that times its vanishing mix."""
    student, teacher = draw(0, scale=1.0).double(), draw(1, scale=1.0).double()
    forward, reverse = (logit_losses[name](student, teacher) for name in ("kld", "reverse_kld"))
    least = 1e-7
    for name, expected in (("skew_kld", forward), ("skew_reverse_kld", reverse)):
        torch.testing.assert_close(logit_loss_of(name, least)(student, teacher), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(logit_loss_of("jsd", least)(student, teacher) / least, forward, rtol=1e-3, atol=0)
    torch.testing.assert_close(logit_loss_of("jsd", 1 - least)(student, teacher) / least, reverse, rtol=1e-3, atol=0)


def test_a_mixed_loss_is_bounded_where_the_divergence_is_not():
    """Teacher and student certain of different tokens: KL is 160, the skew divergence -ln of the share."""
    student, teacher = torch.tensor([[80.0, -80.0]]), torch.tensor([[-80.0, 80.0]])
    assert logit_losses["kld"](student, teacher).item() == pytest.approx(160.0)
    assert logit_losses["skew_kld"](student, teacher).item() == pytest.approx(-math.log(0.1))
    assert logit_losses["skew_reverse_kld"](student, teacher).item() == pytest.approx(-math.log(0.1))
    assert logit_losses["jsd"](student, teacher).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("kld", "distill.mixture", ("kld", *MIXED)),
        ("sjd", "distill.logit_loss", ("'sjd'", "'jsd'")),
    ],
)
def test_a_mix_that_cannot_be_is_refused_in_one_line(name, field, values):
    with refuses(field, *values):
        logit_loss_of(name, 0.5)
