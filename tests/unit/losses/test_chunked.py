"""Losses from last states are those of the model's logits, with their gradients, however many tokens at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from families import model_of, token_ids
from kinks import smooth_tokens
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_prune.losses.chunked import HeadTarget, TopKTarget, head_losses, tokens_at_once
from lit_prune.losses.logit import closed_forms, logit_losses
from lit_prune.models.lm_head import LMHead, head_of, last_states

TOKENS, WIDTH, VOCAB = 600, 48, 512
FINISHES = {"linear": None, "capped": lambda logits: 2 * torch.tanh(logits / 2)}


def draw(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Small logits: divided by a temperature of 0.1, the rounding of float32 logits near 3 alone would be 3e-6.
STATES, WEIGHT, BIAS = (
    draw(TOKENS, WIDTH, seed=0),
    draw(VOCAB, WIDTH, seed=1, scale=0.03),
    draw(VOCAB, seed=2, scale=0.1),
)
TEACHER = HeadTarget(draw(TOKENS, 32, seed=3), LMHead(draw(VOCAB, 32, seed=4, scale=0.04)))
SUCCESSORS = torch.randint(0, VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(5))


def inputs(dtype=torch.float32):
    return [x.to(dtype).clone().requires_grad_() for x in (STATES, WEIGHT, BIAS)]


def plain(
    dtype, name="kld", ce_weight=0.0, kd_weight=1.0, temperature=1.0, top_k=None, finish=None, tokens=slice(None)
):
    """The loss, its terms and its gradients from the logits of all tokens, or of some."""
    states, weight, bias = inputs(dtype)
    clm, *pair = logits_of(states[tokens], weight, bias, temperature, top_k, finish, tokens)
    logits = logit_losses[name](*pair).mean()
    loss = ce_weight * clm + kd_weight * logits
    return {"loss": loss, "ce_loss": clm, "kd_loss": logits} | gradients(loss, states, weight, bias)


def logits_of(states, weight, bias, temperature, top_k, finish, tokens=slice(None)):
    """The cross-entropy, and what a logit loss is given of student and teacher."""
    ours = LMHead(weight, bias, finish).logits(states)
    theirs = LMHead(TEACHER.head.weight.to(states.dtype)).logits(TEACHER.states[tokens].to(states.dtype))
    clm = F.cross_entropy(ours, SUCCESSORS[tokens])
    if top_k:
        theirs, ids = theirs.topk(top_k)
        ours = ours.gather(-1, ids)
    return clm, ours / temperature, theirs / temperature


def chunked(name="kld", top_k=None, finish=None, given=None, tokens=None, **asked):
    """The same, a few tokens at a time."""
    states, weight, bias = given or inputs()
    chosen, theirs, successors = states, TEACHER.states, SUCCESSORS[: len(states)]
    if tokens is not None:
        chosen, theirs, successors = states[tokens], theirs[tokens], successors[tokens]
    asked = {"kd_weight": 1.0, "target": HeadTarget(theirs, TEACHER.head, top_k), "chunk": 128} | asked
    found = head_losses(
        chosen, LMHead(weight, bias, finish), successors=successors, logit_loss=logit_losses[name], **asked
    )
    values = {"loss": found.loss, "ce_loss": found.ce_loss, "kd_loss": found.kd_loss}
    return values | gradients(found.loss, states, weight, bias)


def gradients(loss, *of):
    names = [name for name, x in zip(("states", "weight", "bias"), of, strict=True) if x.requires_grad]
    return dict(zip(names, torch.autograd.grad(loss, [x for x in of if x.requires_grad]), strict=True))


def apart(ours, expected):
    """Largest relative distance over everything found."""
    assert ours.keys() == expected.keys()
    return max(
        ((ours[key].detach().double() - value.detach().double()).norm() / value.detach().double().norm()).item()
        for key, value in expected.items()
    )


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("top_k", [None, 8])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("name", list(logit_losses))
def test_loss_and_gradients_are_those_of_float64(name, temperature, top_k, finish):
    asked = {"temperature": temperature, "top_k": top_k, "finish": FINISHES[finish]}
    ours, expected = chunked(name, **asked), plain(torch.float64, name, **asked)
    assert apart({"loss": ours["loss"]}, {"loss": expected["loss"]}) < 2e-6
    if apart(ours, expected) >= 2e-6:  # only tokens at a kink of the loss may differ
        tokens = smooth_tokens(logit_losses[name], *logits_of(*inputs(torch.float64), **asked)[1:])
        assert 0.9 * TOKENS < tokens.sum() < TOKENS
        assert apart(chunked(name, tokens=tokens, **asked), plain(torch.float64, name, tokens=tokens, **asked)) < 2e-6


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


@pytest.mark.parametrize("chunk", [1, 7, 599, 600, 4096])
def test_the_number_of_chunks_does_not_matter(chunk):
    asked = {"ce_weight": 0.5, "temperature": 2.0}
    assert apart(chunked(**asked, chunk=chunk), plain(torch.float64, **asked)) < 2e-6


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
        asked = {"successors": successors, "ce_weight": 0.5, "logit_loss": logit_losses["kld"], "kd_weight": 1.0}
        return head_losses(last_states(model, ids)[scored], head_of(model), target=target, chunk=5, **asked).loss

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
            asked = {"target": TEACHER, "logit_loss": logit_losses["kld"], "kd_weight": 1.0, "chunk": 128}
            loss = head_losses(states, LMHead(weight, bias), **asked).loss
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


@pytest.mark.parametrize("finish", FINISHES)
def test_under_autocast_factors_are_in_bfloat16_and_logits_and_losses_in_float32(finish):
    asked = {"ce_weight": 0.5, "finish": FINISHES[finish]}
    with torch.autocast("cpu", torch.bfloat16):
        ours = chunked(**asked)
        states, weight, bias = inputs()
        logits = LMHead(weight, bias, FINISHES[finish]).logits(states).float()
        theirs = TEACHER.head.logits(TEACHER.states).float()
        values = 0.5 * F.cross_entropy(logits, SUCCESSORS) + logit_losses["kld"](logits, theirs).mean()
        expected = {"loss": values} | gradients(values, states, weight, bias)
    assert ours["loss"].item() == pytest.approx(values.item(), rel=1e-6)
    assert ours["weight"].dtype == torch.float32
    exact = plain(torch.float64, **asked)
    for key in ("states", "weight", "bias"):
        assert apart({key: ours[key]}, {key: expected[key]}) < 5e-3
        assert apart({key: ours[key]}, {key: exact[key]}) < 1.05 * apart({key: expected[key]}, {key: exact[key]})


class Largest(TorchDispatchMode):
    """The largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // 4 for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.entries = max(self.entries, *sizes, 0)
        return result


@pytest.mark.parametrize("top_k", [None, 8])
def test_no_tensor_is_larger_than_the_logits_of_a_chunk(top_k):
    with Largest() as largest:
        chunked(chunk=100, ce_weight=1.0, top_k=top_k, finish=FINISHES["capped"])
    assert largest.entries == 100 * VOCAB > max(STATES.numel(), WEIGHT.numel())
    with Largest() as largest:
        plain(torch.float32)
    assert largest.entries == TOKENS * VOCAB


def test_the_logits_of_a_chunk_are_32_megabytes_within_bounds():
    assert [tokens_at_once(vocab, on_gpu=False) for vocab in (2048, 32_000, 256_000)] == [1024, 262, 128]
    assert [tokens_at_once(vocab, on_gpu=True) for vocab in (2048, 32_000, 256_000)] == [8192, 4194, 1024]


@pytest.mark.parametrize("name", list(logit_losses))
def test_nothing_waits_for_the_value_of_a_tensor(name):
    asked = {"ce_weight": torch.tensor(0.5), "kd_weight": torch.tensor(1.0), "temperature": 2.0}
    with Counting() as counting:
        chunked(name, **asked)
    assert not counting.waits
    with Counting() as counting:
        assert torch.ones(2).sum() > 1
    assert counting.waits == 1


class Counting(TorchDispatchMode):
    """How often an operation has to know a number that is on the device."""

    waits = 0
    waiting = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.waits += function in self.waiting
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("noise", "known"), [(0.3, 0.19), (0.08, 0.013)])
def test_bfloat16_costs_the_gradient_what_its_factors_lose_and_no_more(noise, known):
    """Against float64; logits rounded to bfloat16 would nearly double the error here."""
    states, weight = draw(TOKENS, WIDTH, seed=8), draw(VOCAB, WIDTH, seed=9, scale=0.2)
    ours = [x + noise * x.std() * draw(*x.shape, seed=10) for x in (states, weight)]
    kl, expected = kl_and_gradient(*(x.double() for x in (*ours, states, weight)))
    assert kl.item() == pytest.approx(known, rel=0.2)
    given = [x.clone().requires_grad_() for x in ours]
    with torch.autocast("cpu", torch.bfloat16):
        target = HeadTarget(states, LMHead(weight))
        loss = head_losses(
            given[0], LMHead(given[1]), target=target, logit_loss=logit_losses["kld"], kd_weight=1.0, chunk=128
        ).loss
    loss.backward()
    rounded = [x.bfloat16().double() for x in (*ours, states, weight)]
    _, factors = kl_and_gradient(*rounded)
    _, logits = kl_and_gradient(*rounded, finish=lambda logits: logits.bfloat16().double())
    for x, exact, of_factors, of_logits in zip(given, expected, factors, logits, strict=True):
        found, least, rounded_logits = (
            ((g - exact).norm() / exact.norm()).item() for g in (x.grad, of_factors, of_logits)
        )
        assert found < 1.1 * least
        assert found < 0.65 * rounded_logits


def kl_and_gradient(states, weight, their_states, their_weight, finish=lambda logits: logits):
    """KL(teacher || student), mean over tokens, and its gradient by states and weight, written out."""
    ours, theirs = finish(states @ weight.T).log_softmax(-1), finish(their_states @ their_weight.T).log_softmax(-1)
    apart = (ours.exp() - theirs.exp()) / len(states)
    return (theirs.exp() * (theirs - ours)).sum(-1).mean(), (apart @ weight, apart.T @ states)
