"""Contracts of every registered loss, values worked out by hand, and how the terms are weighed."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from kinks import smooth_tokens

from lit_prune.config import ConfigError, Distill
from lit_prune.losses.hidden import hidden_losses
from lit_prune.losses.logit import closed_forms, logit_losses
from lit_prune.losses.probabilities import both, log_probabilities, negative_log_likelihood, probabilities
from lit_prune.losses.weighting import ratios

LOGIT = [pytest.param(logit_losses[name], id=f"logit-{name}") for name in logit_losses]
HIDDEN = [pytest.param(hidden_losses[name], id=f"hidden-{name}") for name in hidden_losses]

# Losses of distributions see logits through the softmax; those of the numbers themselves see a shift.
OF_DISTRIBUTIONS = ("kld", "reverse_kld", "mse", "cosine")


def draw(*shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logits_of(*probabilities: float, shift: float = 0.0) -> torch.Tensor:
    """One token's logits of given probabilities, float64 [1, vocab]."""
    return torch.tensor([[math.log(p) + shift for p in probabilities]], dtype=torch.float64)


# The contract


@pytest.mark.parametrize("loss", LOGIT + HIDDEN)
@pytest.mark.parametrize("shape", [(7, 11), (1, 2), (0, 5)])
def test_there_is_one_number_a_token_of_the_dtype_it_is_given(loss, shape):
    for dtype in (torch.float32, torch.float64):
        values = loss(draw(*shape, dtype=dtype), draw(*shape, seed=1, dtype=dtype))
        assert values.shape == shape[:1]
        assert values.dtype == dtype


@pytest.mark.parametrize("loss", LOGIT + HIDDEN)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_no_token_is_negative_however_near_to_agreement(loss, scale):
    student = draw(256, 100, scale=scale)
    for distance in (1e-6, 1e-3, 1.0):
        teacher = student + distance * draw(256, 100, seed=1, scale=1.0)
        assert loss(student, teacher).min() >= -1e-7


@pytest.mark.parametrize("loss", LOGIT + HIDDEN)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 80.0])
def test_it_is_zero_at_agreement_and_so_is_its_gradient(loss, scale):
    teacher = draw(64, 50, scale=scale)
    student = teacher.clone().requires_grad_()
    values = loss(student, teacher)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert torch.equal(values, torch.zeros(64))
    assert gradient.abs().max() <= 1e-6


@pytest.mark.parametrize("loss", LOGIT + HIDDEN)
def test_it_is_not_zero_where_they_differ(loss):
    assert loss(draw(64, 50), draw(64, 50, seed=1)).min() > 1e-3


@pytest.mark.parametrize("loss", LOGIT + HIDDEN)
@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (1, 1)])
def test_value_and_gradient_are_finite_for_extreme_logits(loss, signs):
    student = (80.0 * torch.tensor([[1, -1, 1], [signs[0], signs[1], -1.0]])).requires_grad_()
    teacher = 80.0 * torch.tensor([[-1, 1, 1], [signs[1], signs[0], -1.0]])
    values = loss(student, teacher)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOGIT + HIDDEN)
def test_tokens_do_not_see_each_other(loss):
    student, teacher = draw(5, 11), draw(5, 11, seed=1)
    alone = torch.cat([loss(student[i : i + 1], teacher[i : i + 1]) for i in range(5)])
    assert torch.equal(loss(student, teacher), alone)


@pytest.mark.parametrize("name", [*OF_DISTRIBUTIONS, "mse_logits", "cosine_logits"])
def test_a_constant_added_to_logits_matters_exactly_to_the_losses_of_logits(name):
    loss, student, teacher = logit_losses[name], draw(9, 20).double(), draw(9, 20, seed=1).double()
    before = loss(student, teacher)
    for shifted in (loss(student + 7.5, teacher), loss(student, teacher - 3.25)):
        if name in OF_DISTRIBUTIONS:
            torch.testing.assert_close(shifted, before, rtol=1e-12, atol=1e-14)
        else:
            assert (shifted - before).abs().mean() > 0.1


@pytest.mark.parametrize("loss", LOGIT + HIDDEN)
def test_the_gradient_is_that_of_the_value(loss):
    student, teacher = draw(6, 5, scale=1.0).double(), draw(6, 5, seed=1, scale=1.0).double()
    smooth = smooth_tokens(loss, student, teacher)
    assert smooth.sum() >= 3
    student, teacher = student[smooth].requires_grad_(), teacher[smooth]
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), student, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("loss", LOGIT + HIDDEN)
def test_no_gradient_is_needed_for_the_teacher(loss):
    student = draw(3, 5).requires_grad_()
    assert loss(student, draw(3, 5, seed=1)).requires_grad


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


# Registries


@pytest.mark.parametrize(
    ("registry", "name", "message"),
    [
        (logit_losses, "kdl", "unknown logit loss 'kdl'; perhaps you meant 'kld'; there are: "),
        (hidden_losses, "cosin", "unknown hidden loss 'cosin'; perhaps you meant 'cosine'; there are: "),
    ],
)
def test_an_unknown_loss_is_refused_in_one_line(registry, name, message):
    with pytest.raises(ConfigError) as caught:
        registry[name]
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="logit loss 'kld' is registered twice"):
        logit_losses.register("kld")(lambda student, teacher: student)
    assert sorted(logit_losses) == list(logit_losses)


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


@pytest.mark.parametrize("name", ["kld", "reverse_kld", "jsd", "skew_kld", "skew_reverse_kld"])
def test_rounding_leaves_no_negative_divergence(name):
    """Close to agreement the divergence of most tokens is below the rounding of its sum."""
    teacher = draw(256, 64)
    for noise in (1e-7, 1e-6, 1e-5, 1e-4):
        student = (teacher + draw(256, 64, seed=2, scale=noise)).requires_grad_()
        values = logit_losses[name](student, teacher)
        assert values.min() >= 0
        if form := closed_forms.get(logit_losses[name]):
            assert form(student.detach(), teacher)[0].min() >= 0
    (gradient,) = torch.autograd.grad(values.sum(), student)
    assert (gradient.abs().sum(-1) > 0).all()
