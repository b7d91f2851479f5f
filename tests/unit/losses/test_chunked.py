"""Losses from last states equal those of the model's logits, with gradients, for any chunk size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from chunks import (
    FINISHES,
    SUCCESSORS,
    TEACHER,
    TOKENS,
    WIDTH,
    apart,
    chunked,
    draw,
    inputs,
    logits_of,
    plain,
)
from families import model_of, token_ids
from kinks import smooth_tokens

from lit_prune.losses.chunked import head_losses
from lit_prune.losses.logit import closed_forms, logit_losses
from lit_prune.losses.targets import HeadTarget, TopKTarget
from lit_prune.models.lm_head import LMHead, head_of, last_states


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("top_k", [None, 8])
@pytest.mark.parametrize("temperature", [0.1, 3.0])
@pytest.mark.parametrize("name", list(logit_losses))
def test_loss_and_gradients_are_those_of_float64(name, temperature, top_k, finish):
    options = {"temperature": temperature, "top_k": top_k, "finish": FINISHES[finish]}
    ours, expected = chunked(name, **options), plain(torch.float64, name, **options)
    assert apart({"loss": ours["loss"]}, {"loss": expected["loss"]}) < 2e-6
    if apart(ours, expected) >= 2e-6:  # only tokens at a kink of the loss may differ
        tokens = smooth_tokens(logit_losses[name], *logits_of(*inputs(torch.float64), **options)[1:])
        assert 0.9 * TOKENS < tokens.sum() < TOKENS
        assert (
            apart(chunked(name, tokens=tokens, **options), plain(torch.float64, name, tokens=tokens, **options)) < 2e-6
        )


@pytest.mark.parametrize(("ce_weight", "kd_weight"), [(1.0, 0.0), (0.3, 0.7), (2.0, 1.0)])
def test_the_terms_are_weighed(ce_weight, kd_weight):
    weights = {"ce_weight": ce_weight, "kd_weight": kd_weight}
    expected = plain(torch.float64, **weights)
    assert apart(chunked(**weights), expected) < 2e-6
    as_tensors = {name: torch.tensor(weight) for name, weight in weights.items()}
    assert apart(chunked(**as_tensors), expected) < 2e-6


def test_a_term_of_no_weight_has_a_value_and_no_gradient():
    alone = {"ce_weight": 1.0, "kd_weight": 0.0}
    both, one = chunked(**alone), chunked(**alone, target=None)
    assert one.pop("kd_loss") is None
    assert both.pop("kd_loss") == chunked()["kd_loss"]
    assert all(torch.equal(both[key], one[key]) for key in both)
    nothing = chunked(kd_weight=0.0)
    assert nothing["loss"] == 0
    assert not any(nothing[key].any() for key in ("states", "weight", "bias"))


@pytest.mark.parametrize("chunk", [1, 7, TOKENS - 1, TOKENS, 4096])
def test_the_number_of_chunks_does_not_matter(chunk):
    options = {"ce_weight": 0.5, "temperature": 2.0}
    assert apart(chunked(**options, chunk=chunk), plain(torch.float64, **options)) < 2e-6


@pytest.mark.parametrize("name", ["gemma2", "phi", "granite", "llama, tied, with biases", "gpt2"])
def test_training_a_model_on_the_tokens_that_are_scored_is_as_with_its_logits(name):
    model, ids = model_of(name), token_ids()
    scored = torch.rand(2, 17, generator=torch.Generator().manual_seed(0)) < 0.6
    successors = ids.roll(-1, 1)[scored]
    target = HeadTarget(draw(len(successors), 8, seed=6), LMHead(draw(96, 8, seed=7)))

    def of_logits():
        ours = model(ids).logits[scored]
        imitation = logit_losses["kld"](ours, target.logits(slice(None))[0]).mean()
        return 0.5 * F.cross_entropy(ours, successors) + imitation

    def of_states():
        options = {"successors": successors, "ce_weight": 0.5, "logit_loss": logit_losses["kld"], "kd_weight": 1.0}
        return head_losses(last_states(model, ids)[scored], head_of(model), target=target, chunk=5, **options).loss

    expected, ours = (torch.autograd.grad(loss(), list(model.parameters())) for loss in (of_logits, of_states))
    for theirs, mine in zip(expected, ours, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_a_cached_teacher_gives_what_the_teacher_gives():
    values, ids = TEACHER.head.logits(TEACHER.states).log_softmax(-1).topk(8)
    for name in ("kld", "reverse_kld"):
        assert apart(chunked(name, target=TopKTarget(values, ids)), chunked(name, top_k=8)) < 2e-6


def test_a_term_by_hand():
    """Uniform over two, and a teacher that says 9 : 1: KL = ln 2 - H(0.9), its gradient q - p = (-0.4, 0.4)."""
    states = torch.ones(3, 1, requires_grad=True)
    teacher = TopKTarget(torch.tensor([[0.9, 0.1]]).log().expand(3, 2), torch.tensor([[1, 0]]).expand(3, 2))
    head = LMHead(torch.tensor([[2.0], [2.0], [5.0]], requires_grad=True))
    found = head_losses(states, head, target=teacher, logit_loss=logit_losses["kld"], kd_weight=1.0)
    assert found.ce_loss is None
    assert found.kd_loss.item() == pytest.approx(0.3680642, abs=1e-6)
    found.loss.backward()
    assert head.weight.grad.flatten().tolist() == pytest.approx([0.4, -0.4, 0.0], abs=1e-6)
    assert states.grad.flatten().tolist() == pytest.approx([0.0] * 3, abs=1e-6)


@pytest.mark.parametrize("empty", [{}, {"top_k": 8}])
def test_no_token_is_a_loss_of_zero_with_a_zero_gradient(empty):
    states, weight, bias = inputs()
    nothing = chunked(given=(states[:0].detach().requires_grad_(), weight, bias), ce_weight=1.0, **empty)
    assert nothing.pop("states").shape == (0, WIDTH)
    assert not any(value.any() for value in nothing.values())


@pytest.mark.parametrize("form", list(closed_forms))
@pytest.mark.parametrize(("scale", "vocab"), [(1e-3, 50), (1.0, 50), (30.0, 50), (1.0, 2)])
def test_a_gradient_that_is_written_out_is_that_of_autograd(form, scale, vocab):
    assert form in [logit_losses[name] for name in logit_losses]
    student, teacher = (draw(64, vocab, seed=seed, scale=scale).double() for seed in (0, 1))
    values = form(student.requires_grad_(), teacher)
    (expected,) = torch.autograd.grad(values.sum(), student)
    with torch.no_grad():
        before = student.clone(), teacher.clone()
        ours, gradient = closed_forms[form](student, teacher)
        assert torch.equal(student, before[0])
        assert torch.equal(teacher, before[1])
        torch.testing.assert_close(ours, values, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14)
        same, none = closed_forms[form](student, student.clone())
    assert not same.any()
    assert none.abs().max() < 1e-14


def test_what_is_frozen_gets_no_gradient():
    states, weight, bias = inputs()
    frozen = chunked(given=(states, weight.detach(), bias.detach()))
    assert torch.equal(frozen["states"], chunked()["states"])
    states, weight, bias = inputs()
    assert torch.equal(chunked(given=(states.detach(), weight, bias))["weight"], chunked()["weight"])


def test_where_no_gradient_is_asked_for_there_is_none():
    expected = chunked()["loss"]
    states, weight, bias = inputs()
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            options = {"target": TEACHER, "logit_loss": logit_losses["kld"], "kd_weight": 1.0, "chunk": 128}
            loss = head_losses(states, LMHead(weight, bias), **options).loss
        assert loss == expected
        assert not loss.requires_grad


def test_what_comes_from_above_multiplies_the_gradient_which_is_given_once():
    states, weight, bias = inputs()
    found = head_losses(states, LMHead(weight, bias), successors=SUCCESSORS, ce_weight=1.0)
    (found.loss * 3).backward(retain_graph=True)
    once = chunked(ce_weight=1.0, target=None)
    torch.testing.assert_close(weight.grad, 3 * once["weight"])
    torch.testing.assert_close(states.grad, 3 * once["states"])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.loss.backward()
