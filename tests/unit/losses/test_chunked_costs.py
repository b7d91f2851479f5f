"""Cost of losses from last states: no large tensor, no synchronisation, and no more rounding than their factors."""

from __future__ import annotations

import pytest
import torch
from chunks import (
    FINISHES,
    STATES,
    TOKENS,
    VOCAB,
    WEIGHT,
    WIDTH,
    apart,
    chunked,
    draw,
    plain,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_prune.losses.chunked import head_losses, tokens_at_once
from lit_prune.losses.logit import logit_losses
from lit_prune.losses.targets import HeadTarget
from lit_prune.models.lm_head import LMHead


@pytest.mark.parametrize("finish", FINISHES)
def test_under_autocast_the_loss_is_that_of_float32_and_gradients_have_the_error_of_bfloat16_factors(finish):
    options = {"ce_weight": 0.5, "finish": FINISHES[finish]}
    with torch.autocast("cpu", torch.bfloat16):
        ours = chunked(**options)
    exact = plain(torch.float64, **options)
    assert ours["loss"].item() == pytest.approx(exact["loss"].item(), rel=1e-6)
    assert ours["weight"].dtype == torch.float32
    for key in ("states", "weight", "bias"):
        assert apart({key: ours[key]}, {key: exact[key]}) < 5e-3


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


def test_the_logits_of_a_chunk_are_64_megabytes_within_bounds():
    assert [tokens_at_once(vocab, on_gpu=False) for vocab in (2048, 32_000, 512_000)] == [1024, 524, 128]
    assert [tokens_at_once(vocab, on_gpu=True) for vocab in (2048, 32_000, 256_000)] == [8192, 4194, 1024]


@pytest.mark.parametrize("name", list(logit_losses))
def test_nothing_waits_for_the_value_of_a_tensor(name):
    options = {"ce_weight": torch.tensor(0.5), "kd_weight": torch.tensor(1.0), "temperature": 2.0}
    with Counting() as counting:
        chunked(name, **options)
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
