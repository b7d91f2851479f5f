"""Losses equal their formulas: against independent references, and by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tensors import draw, logits_of

from lit_prune.losses.hidden import hidden_losses
from lit_prune.losses.logit import closed_forms, logit_losses
from lit_prune.losses.probabilities import both, log_probabilities, negative_log_likelihood, probabilities

# Against a reference in float64, written another way


def softmax(x: torch.Tensor) -> torch.Tensor:
    powers = torch.exp(x - x.max(-1, keepdim=True).values)
    return powers / powers.sum(-1, keepdim=True)


def cosine_similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(-1) / (a.pow(2).sum(-1).sqrt() * b.pow(2).sum(-1).sqrt())


LOGIT_REFERENCES = {
    "kld": lambda s, t: (softmax(t) * (softmax(t) / softmax(s)).log()).sum(-1),
    "reverse_kld": lambda s, t: (softmax(s) * (softmax(s) / softmax(t)).log()).sum(-1),
    "mse": lambda s, t: (softmax(s) - softmax(t)).pow(2).sum(-1),
    "mse_logits": lambda s, t: (s - t).pow(2).mean(-1),
    "cosine": lambda s, t: 1 - cosine_similarity(softmax(s), softmax(t)),
    "cosine_logits": lambda s, t: 1 - cosine_similarity(s, t),
}
HIDDEN_REFERENCES = {
    "mse": lambda s, t: (s - t).pow(2).mean(-1),
    "cosine": lambda s, t: 1 - cosine_similarity(s, t),
}


@pytest.mark.parametrize("vocab", [2, 64, 4096])
@pytest.mark.parametrize("name", LOGIT_REFERENCES)
def test_a_logit_loss_is_its_float64_reference(name, vocab):
    student, teacher = draw(128, vocab), draw(128, vocab, seed=1)
    expected = LOGIT_REFERENCES[name](student.double(), teacher.double())
    close_but_where_they_agree(logit_losses[name](student, teacher), expected)


@pytest.mark.parametrize("width", [2, 64, 1024])
@pytest.mark.parametrize("name", HIDDEN_REFERENCES)
def test_a_hidden_loss_is_its_float64_reference(name, width):
    student, teacher = draw(128, width), draw(128, width, seed=1)
    expected = HIDDEN_REFERENCES[name](student.double(), teacher.double())
    close_but_where_they_agree(hidden_losses[name](student, teacher), expected)


def close_but_where_they_agree(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 2e-6 relative; float32 cannot tell a loss below its own rounding of the inputs from 0."""
    torch.testing.assert_close(ours.double(), expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", ["kld", "reverse_kld"])
def test_kl_is_that_of_torch(name):
    student, teacher = draw(128, 64), draw(128, 64, seed=1)
    of, to = (student, teacher) if name == "kld" else (teacher, student)
    expected = F.kl_div(of.log_softmax(-1), to.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(logit_losses[name](student, teacher), expected, rtol=2e-6, atol=0)


# By hand: student (1/2, 1/2) and teacher (9/10, 1/10), then a vocabulary of three

P, Q = (0.9, 0.1), (0.5, 0.5)
BY_HAND = {
    # KL(teacher || student) = 0.9 ln(0.9/0.5) + 0.1 ln(0.1/0.5) = 0.5290080 - 0.1609438
    "kld": 0.9 * math.log(1.8) + 0.1 * math.log(0.2),
    # KL(student || teacher) = 0.5 ln(0.5/0.9) + 0.5 ln(0.5/0.1) = -0.2938933 + 0.8047190
    "reverse_kld": 0.5 * math.log(5 / 9) + 0.5 * math.log(5),
    # (0.5 - 0.9)^2 + (0.5 - 0.1)^2
    "mse": 0.16 + 0.16,
    # 1 - (0.45 + 0.05) / (sqrt(0.5) sqrt(0.82))
    "cosine": 1 - 0.5 / math.sqrt(0.41),
    # logits ln 0.5, ln 0.5 and ln 0.9, ln 0.1: (ln(0.5/0.9)^2 + ln(0.5/0.1)^2) / 2
    "mse_logits": (math.log(5 / 9) ** 2 + math.log(5) ** 2) / 2,
    # the student's logits are both -ln 2: 1 - (ln 0.9 + ln 0.1)(-ln 2) / (sqrt(2) ln 2 |teacher|)
    "cosine_logits": 1 + math.log(0.09) / math.sqrt(2 * (math.log(0.9) ** 2 + math.log(0.1) ** 2)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_logit_loss_by_hand(name):
    assert logit_losses[name](logits_of(*Q), logits_of(*P)).item() == pytest.approx(BY_HAND[name], rel=1e-12)


def test_the_numbers_by_hand():
    assert BY_HAND["kld"] == pytest.approx(0.3680642, abs=1e-7)
    assert BY_HAND["reverse_kld"] == pytest.approx(0.5108256, abs=1e-7)
    assert BY_HAND["cosine"] == pytest.approx(0.2191312, abs=1e-7)
    assert BY_HAND["mse_logits"] == pytest.approx(1.4678918, abs=1e-7)
    assert BY_HAND["cosine_logits"] == pytest.approx(0.2613107, abs=1e-7)


def test_forward_kl_is_from_teacher_to_student():
    """The forward divergence punishes missing what the teacher says, the reverse one adding to it."""
    teacher, misses, adds = logits_of(0.5, 0.5), logits_of(1 - 1e-9, 1e-9), logits_of(0.5, 0.5)
    forward, reverse = logit_losses["kld"], logit_losses["reverse_kld"]
    # 0.5 ln(0.5 / 1) + 0.5 ln(0.5 / 1e-9) against 1 ln(1 / 0.5)
    assert forward(misses, teacher).item() == pytest.approx(0.5 * math.log(0.25e9), rel=1e-6)
    assert reverse(misses, teacher).item() == pytest.approx(math.log(2), rel=1e-6)
    assert forward(adds, misses).item() == pytest.approx(math.log(2), rel=1e-6)


def test_a_divergence_is_summed_over_the_vocabulary():
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2): 1/2 ln 2 + 0 + 1/4 ln 1/2 = ln(2)/4."""
    student, teacher = logits_of(0.25, 0.25, 0.5), logits_of(0.5, 0.25, 0.25)
    assert logit_losses["kld"](student, teacher).item() == pytest.approx(math.log(2) / 4, rel=1e-12)
    assert logit_losses["reverse_kld"](student, teacher).item() == pytest.approx(math.log(2) / 4, rel=1e-12)
    assert logit_losses["mse"](student, teacher).item() == pytest.approx(2 / 16, rel=1e-12)
    # cosine: 1 - (1/8 + 1/16 + 1/8) / (3/8)
    assert logit_losses["cosine"](student, teacher).item() == pytest.approx(1 / 6, rel=1e-12)


def test_hidden_losses_by_hand():
    """(3, 4, 0) and (4, 3, 0): a dot product of 24 between lengths of 5; squares 1 + 1 + 0 over 3."""
    student, teacher = torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[4.0, 3.0, 0.0]])
    assert hidden_losses["cosine"](student, teacher).item() == pytest.approx(1 - 24 / 25, rel=1e-6)
    assert hidden_losses["cosine"](student, -teacher).item() == pytest.approx(1 + 24 / 25, rel=1e-6)
    assert hidden_losses["mse"](student, teacher).item() == pytest.approx(2 / 3, rel=1e-6)


def test_cosine_does_not_see_the_length_of_a_state():
    student, teacher = draw(9, 20), draw(9, 20, seed=1)
    scaled = hidden_losses["cosine"](8 * student, teacher / 4)
    torch.testing.assert_close(scaled, hidden_losses["cosine"](student, teacher), rtol=0, atol=1e-6)


# Large vocabularies: float32 sums on a CPU


LARGE = 49_152


def test_log_probabilities_have_no_bias_at_49k_entries():
    logits = draw(16, LARGE, scale=4.0)
    exact = logits.double().log_softmax(-1)
    errors = {
        "log_probabilities": log_probabilities(logits) - exact,
        "both": both(logits)[0] - exact,
        "probabilities": probabilities(logits) / exact.exp() - 1,
        "p of both": both(logits)[1] / exact.exp() - 1,
        "negative_log_likelihood": negative_log_likelihood(logits, torch.arange(16)) + exact.diagonal(),
    }
    assert all(error.mean().abs() < 5e-7 for error in errors.values()), {k: v.mean() for k, v in errors.items()}


@pytest.mark.parametrize("name", LOGIT_REFERENCES)
def test_a_logit_loss_is_its_float64_reference_at_49k_entries(name):
    student, teacher = draw(16, LARGE, scale=4.0), draw(16, LARGE, seed=1, scale=4.0)
    expected = LOGIT_REFERENCES[name](student.double(), teacher.double())
    close_but_where_they_agree(logit_losses[name](student, teacher), expected)
    if form := closed_forms.get(logit_losses[name]):
        values, gradient = form(student, teacher)
        close_but_where_they_agree(values, expected)
        if name == "cosine":
            return  # its gradient is a difference of nearly equal numbers here, whatever the probabilities
        leaf = student.double().requires_grad_()
        (exact,) = torch.autograd.grad(LOGIT_REFERENCES[name](leaf, teacher.double()).sum(), leaf)
        assert (gradient - exact).norm() < 2e-6 * exact.norm()
