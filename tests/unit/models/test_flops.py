"""The cost model: torch's counts in real models of every family, and the figures in the paper."""

import functools

import pytest
import torch
from families import CASES, config_of, model_of, plan_for, token_ids
from published import MODELS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_prune.models.flops import forward_flops, minitron_step, num_multiplied, training_flops
from lit_prune.models.shape import num_parameters
from lit_prune.pruning.surgery import apply

PAPER = {"Nemotron-4 15B": 4.4e17, "MINITRON 8B": 2.5e17, "MINITRON 4B": 1.2e17}
"""FLOPs of a step of 1,152 sequences (Minitron, 4.1)."""


@functools.cache
def step(name):
    return minitron_step(MODELS[name])


# Against torch, which counts what attention computes where it skips nothing


def counted(model):
    """FLOPs a token of one forward and one backward pass over [2, 17] tokens."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        logits = model(input_ids=token_ids(), use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    model.zero_grad()
    return forward.get_total_flops() / 34, backward.get_total_flops() / 34


@pytest.mark.parametrize("name", CASES)
def test_the_products_of_every_family_are_those_torch_counts(name):
    model = apply(model_of(name), plan_for(name, "all"))
    forward, backward = counted(model)
    model.config.sliding_window = None  # the positions outside are computed and masked
    assert forward_flops(model.config, 17, causal=False) == forward
    assert training_flops(model.config, 17, causal=False) == forward + backward


@pytest.mark.parametrize("name", ["llama", "phi3", "nemotron"])
def test_blocks_that_differ_in_width_cost_what_each_of_them_does(name):
    model = apply(model_of(name), plan_for(name, "uneven"))
    assert forward_flops(model.config, 17, causal=False) == counted(model)[0]


def test_counting_makes_no_weights_and_draws_no_numbers():
    before = torch.get_rng_state()
    assert 14e9 < num_multiplied(MODELS["Nemotron-4 15B"]) < 14.1e9
    assert torch.equal(torch.get_rng_state(), before)


# By hand: a Llama of 3 blocks, width 32, 4 heads of 8 in 2 groups, MLP 48, vocabulary 256


def test_a_llama_by_hand(tiny_llama):
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48
    multiplied = 3 * block + 256 * 32
    assert num_multiplied(tiny_llama.config) == multiplied
    scores_and_sum = 3 * 2 * 2 * 4 * 8
    for causal, positions in ((True, (1 + 2 + 3 + 4 + 5) / 5), (False, 5)):
        forward = 2 * multiplied + scores_and_sum * positions
        assert forward_flops(tiny_llama.config, 5, causal=causal) == pytest.approx(forward)
        alone = training_flops(tiny_llama.config, 5, causal=causal)
        assert alone == pytest.approx(3 * forward)
        taught = training_flops(tiny_llama.config, 5, tiny_llama.config, causal=causal)
        assert taught == pytest.approx(4 * forward)


def test_a_tied_head_multiplies_like_one_of_its_own(tiny_llama):
    alone = num_multiplied(tiny_llama.config)
    tiny_llama.config.tie_word_embeddings = True
    assert num_multiplied(tiny_llama.config) == alone


def test_an_mlp_without_a_gate_has_two_matrices():
    plain, gated = (MODELS[name] for name in ("MINITRON 8B", "Llama-3.1 8B"))
    attention = 32 * 4096 * 128 * (2 * 48 + 2 * 8)
    assert num_multiplied(plain) == 32 * 2 * 4096 * 16384 + attention + 256_000 * 4096
    attention = 32 * 4096 * 128 * (2 * 32 + 2 * 8)
    assert num_multiplied(gated) == 32 * 3 * 4096 * 14336 + attention + 128_256 * 4096


def test_a_window_is_all_that_a_token_looks_back_over():
    config = config_of("gemma2")  # 3 blocks of 6 heads of 4; the first and third look back over 5 positions
    assert config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    attention = forward_flops(config, 8) - 2 * num_multiplied(config)
    assert attention == pytest.approx(4 * 6 * 4 * (2 * (1 + 2 + 3 + 4 + 4 * 5) / 8 + (8 + 1) / 2))
    short = forward_flops(config, 4) - 2 * num_multiplied(config)
    assert short == pytest.approx(4 * 6 * 4 * 3 * (4 + 1) / 2)


# The paper


@pytest.mark.parametrize("name", PAPER)
def test_a_step_of_the_papers_models_costs_what_it_prints(name):
    assert float(f"{step(name):.1e}") == PAPER[name]


def test_no_simpler_count_gives_all_three_figures():
    """Neither half the attention, nor 6 N D of all parameters, nor of those that multiply."""
    tokens = 1152 * 4096
    others = {
        "causal": lambda config: tokens * training_flops(config, 4096),
        "6 N D": lambda config: 6 * num_parameters(config) * tokens,
        "6 N D without the embedding": lambda config: 6 * num_multiplied(config) * tokens,
    }
    for name, count in others.items():
        assert any(float(f"{count(MODELS[model]):.1e}") != printed for model, printed in PAPER.items()), name
