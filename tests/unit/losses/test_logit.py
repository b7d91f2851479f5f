"""Contracts of every registered loss, values by hand, and weights of the terms."""

from __future__ import annotations

import pytest
import torch
from kinks import smooth_tokens
from refusals import refuses
from tensors import draw

from lit_prune.losses.hidden import hidden_losses
from lit_prune.losses.logit import closed_forms, logit_losses

LOGIT = [pytest.param(logit_losses[name], id=f"logit-{name}") for name in logit_losses]
HIDDEN = [pytest.param(hidden_losses[name], id=f"hidden-{name}") for name in hidden_losses]

# Losses of distributions see logits through the softmax; those of the numbers themselves see a shift.
OF_DISTRIBUTIONS = ("kld", "reverse_kld", "mse", "cosine")


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


# Registries


@pytest.mark.parametrize(
    ("registry", "field", "name", "meant"),
    [
        (logit_losses, "logit_loss", "kdl", "kld"),
        (hidden_losses, "hidden_loss", "cosin", "cosine"),
    ],
)
def test_an_unknown_loss_is_refused_in_one_line(registry, field, name, meant):
    with refuses(f"distill.{field}", repr(name), repr(meant), *registry):
        registry[name]


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'kld'"):
        logit_losses.register("kld")(lambda student, teacher: student)
    assert sorted(logit_losses) == list(logit_losses)


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
