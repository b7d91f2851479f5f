"""The search: the papers' models and candidates counted from configs, and skipped and refused shapes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from published import MODELS
from refusals import refuses
from transformers import AutoModelForCausalLM

from lit_prune.config import Cell, Prune, SearchSpace
from lit_prune.config.overrides import override
from lit_prune.models.shape import ModelShape, num_parameters, shape_of
from lit_prune.pipeline.shape_search import Candidate, candidates
from lit_prune.pruning.prune import make_plan
from lit_prune.pruning.target import target

BILLION = 10**9

# The papers, in billions; they print 15.6, 8.5, 8.27, 4.19 and 4.5, 4.5, 8.4. The further digits, here and below, are
# of the matrices alone: the vectors of the norms are less than a thousandth of a billion.
PARAMETERS = {
    "Nemotron-4 15B": 15.628, "Nemotron-3 8B": 8.540, "MINITRON 8B": 8.271, "MINITRON 4B": 4.190,
    "Llama-3.1-Minitron 4B width": 4.513, "Llama-3.1-Minitron 4B depth": 4.540, "MN-Minitron 8B": 8.414,
}  # fmt: skip

FACTORS = (2.5, 3, 3.5, 4)
SPACE_8B = SearchSpace(
    num_hidden_layers=(29, 30, 31, 32), num_attention_heads=(32, 48), expansion=FACTORS,
    hidden_size=(4096, 4608, 5120, 5632, 6144),
    min_params=7_800_000_000, max_params=8_500_000_000,
)  # fmt: skip
SPACE_4B = SearchSpace(
    num_hidden_layers=(29, 30, 31, 32), num_attention_heads=(24, 32, 48), expansion=FACTORS,
    hidden_size=(2560, 3072, 3584, 4096, 4608),
    min_params=3_800_000_000, max_params=4_200_000_000,
)  # fmt: skip

# Minitron, Table 19: layers, heads, neurons, hidden; and their parameters in billions.
CANDIDATES_8B = [
    (32, 32, 12800, 5120, 8.493), (32, 32, 13824, 4608, 7.946), (32, 48, 11520, 4608, 7.871),
    (32, 48, 16384, 4096, 8.271), (31, 32, 12800, 5120, 8.310), (31, 32, 16128, 4608, 8.430),
    (31, 48, 13824, 4608, 8.357), (31, 48, 16384, 4096, 8.078), (30, 32, 12800, 5120, 8.126),
    (30, 32, 16128, 4608, 8.234), (30, 48, 13824, 4608, 8.163), (30, 48, 16384, 4096, 7.885),
    (29, 32, 12800, 5120, 7.943), (29, 32, 16128, 4608, 8.038), (29, 48, 13824, 4608, 7.970),
]  # fmt: skip
CANDIDATES_4B = [
    (32, 24, 7680, 3072, 3.888), (32, 24, 9216, 3072, 4.190), (32, 32, 7680, 3072, 4.089),
    (32, 32, 10240, 2560, 3.827), (32, 48, 8960, 2560, 3.953), (32, 48, 10240, 2560, 4.163),
    (31, 24, 7680, 3072, 3.816), (31, 24, 9216, 3072, 4.108), (31, 32, 7680, 3072, 4.011),
    (31, 48, 8960, 2560, 3.871), (31, 48, 10240, 2560, 4.074), (30, 24, 9216, 3072, 4.027),
    (30, 32, 7680, 3072, 3.932), (30, 48, 10240, 2560, 3.985), (29, 24, 9216, 3072, 3.945),
    (29, 32, 7680, 3072, 3.854), (29, 32, 9216, 3072, 4.127), (29, 48, 10240, 2560, 3.895),
]  # fmt: skip


def sizes(candidate: Candidate) -> tuple[int, int, int, int]:
    shape = candidate.shape
    return shape.num_hidden_layers, shape.num_attention_heads, shape.intermediate_size, shape.hidden_size


# The papers


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_model_has_the_published_parameters(name):
    with torch.device("meta"):
        weights = list(AutoModelForCausalLM.from_config(MODELS[name]).parameters())
    assert round(sum(w.numel() for w in weights if w.dim() == 2) / BILLION, 3) == PARAMETERS[name]
    assert num_parameters(MODELS[name]) == sum(w.numel() for w in weights)


@pytest.mark.parametrize(
    ("space", "published"), [(SPACE_8B, CANDIDATES_8B), (SPACE_4B, CANDIDATES_4B)], ids=["8B", "4B"]
)
def test_the_space_has_exactly_the_published_candidates(space, published):
    found = candidates(MODELS["Nemotron-4 15B"], space)
    assert [sizes(candidate) for candidate in found] == [row[:4] for row in published]
    for candidate, row in zip(found, published, strict=True):
        vectors = 2 * (2 * candidate.shape.num_hidden_layers + 1) * candidate.shape.hidden_size
        assert round((candidate.parameters - vectors) / BILLION, 3) == row[4]
        assert candidate.shape.num_key_value_heads == 8


def test_the_published_models_are_among_the_candidates():
    for name, space in (("MINITRON 8B", SPACE_8B), ("MINITRON 4B", SPACE_4B)):
        chosen = Candidate(shape_of(MODELS[name]), num_parameters(MODELS[name]))
        assert chosen in candidates(MODELS["Nemotron-4 15B"], space)


def test_the_window_decides():
    wide = candidates(MODELS["Nemotron-4 15B"], replace(SPACE_8B, min_params=None, max_params=None))
    assert len(wide) == 4 * 2 * 4 * 5
    literal = candidates(
        MODELS["Nemotron-4 15B"], replace(SPACE_8B, min_params=7_600_000_000, max_params=8_400_000_000)
    )
    assert len(literal) == 18
    assert len({sizes(c) for c in literal} & {row[:4] for row in CANDIDATES_8B}) == 13


@pytest.mark.parametrize(
    "requested", [{"num_hidden_layers": 16, "layer_selection": "last_but_final"}, {"drop_layers": tuple(range(15, 31))}]
)
def test_dropping_the_published_layers_keeps_the_first_fifteen_and_the_last(requested):
    student = Prune(hidden_size=None, intermediate_size=None, num_attention_heads=None, **requested)
    teacher = SimpleNamespace(config=MODELS["Llama-3.1 8B"])
    plan = make_plan(teacher, student, lambda model, names: {})
    assert [block.index + 1 for block in plan.layers] == [*range(1, 16), 32]
    assert plan.kept == shape_of(MODELS["Llama-3.1-Minitron 4B depth"])


# Spaces: the teacher is a Llama of 3 blocks, 4 heads in 2 groups, 48 neurons, 32 hidden channels, 39,648 parameters


@pytest.fixture
def config(tiny_llama):
    return tiny_llama.config


def test_without_choices_there_is_the_teacher_alone(config):
    whole = Candidate(
        ModelShape(
            num_hidden_layers=3, hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2
        ),
        39_648,
    )
    assert candidates(config, SearchSpace()) == [whole]
    assert candidates(
        config,
        SearchSpace(
            num_hidden_layers=(None,), num_attention_heads=(None,), intermediate_size=(None,), hidden_size=(None,)
        ),
    ) == [whole]


def test_parameters_are_those_counted_by_hand(config):
    space = SearchSpace(num_hidden_layers=(2,), num_attention_heads=(2,), intermediate_size=(24,), hidden_size=(16,))
    embeddings, norms = 2 * 256 * 16, 2 * 16
    attention, mlp = 16 * 16 + 2 * 16 * 16 + 16 * 16, 3 * 16 * 24
    by_hand = embeddings + 2 * (attention + mlp + norms) + 16
    assert candidates(config, space) == [Candidate(ModelShape(2, 16, 24, 2, 2), by_hand)]


def test_shapes_come_deepest_first_and_then_from_the_smallest(config):
    axes = ((1, 3, 2), (4, 2), (48, 12, 24), (32, 16))
    found = candidates(config, SearchSpace(*axes[:3], hidden_size=axes[3]))
    expected = itertools.product((3, 2, 1), (2, 4), (12, 24, 48), (16, 32))
    assert [sizes(candidate) for candidate in found] == list(expected)


def test_a_combination_the_family_forbids_is_left_out(config):
    found = candidates(config, SearchSpace(num_attention_heads=(2, 4), hidden_size=(24, 30, 32)))
    assert [(c.shape.num_attention_heads, c.shape.hidden_size) for c in found] == [
        (2, 24),
        (2, 30),
        (2, 32),
        (4, 24),
        (4, 32),
    ]


def test_a_share_is_of_the_teacher_and_a_shape_comes_once(config):
    found = candidates(
        config, SearchSpace(num_hidden_layers=(1, 1.0), intermediate_size=(0.5, 24, 0.51), hidden_size=(0.75,))
    )
    assert [sizes(candidate) for candidate in found] == [(3, 4, 24, 24), (1, 4, 24, 24)]


def test_an_expansion_is_of_the_hidden_channels_of_the_same_shape(config):
    found = candidates(config, SearchSpace(expansion=(1.5, 2), hidden_size=(16, 20, 32)))
    assert [(c.shape.intermediate_size, c.shape.hidden_size) for c in found] == [
        (24, 16),
        (30, 20),
        (32, 16),
        (40, 20),
        (48, 32),
    ]


@pytest.mark.parametrize(
    ("least", "most", "layers"),
    [
        (None, None, [3, 2, 1]),
        (31_904, None, [3, 2]),
        (31_905, None, [3]),
        (None, 31_904, [2, 1]),
        (None, 31_903, [1]),
        (0.75, 0.85, [2]),
        (24_160, 0.805, [2, 1]),
    ],
)
def test_the_bounds_are_counts_or_shares_and_belong_to_the_window(config, least, most, layers):
    # 39,648, 31,904 (0.805 of them) and 24,160 parameters: 7,744 a block
    found = candidates(config, SearchSpace(num_hidden_layers=(1, 2, 3), min_params=least, max_params=most))
    assert [candidate.shape.num_hidden_layers for candidate in found] == layers


@pytest.mark.parametrize(
    ("least", "most", "nearest"),
    [
        (
            32_000, 39_000,
            "31,904 (2 layers, 4 heads, 48 neurons, 32 hidden) and 39,648 (3 layers, 4 heads, 48 neurons, 32 hidden)",
        ),
        (None, 24_000, "24,160 (1 layers, 4 heads, 48 neurons, 32 hidden)"),
        (40_000, 50_000, "39,648 (3 layers, 4 heads, 48 neurons, 32 hidden)"),
    ],
)  # fmt: skip
def test_a_window_nobody_meets_names_the_nearest(config, least, most, nearest):
    with refuses("search_space", f"{least or 0:,}", f"{most:,}", nearest):
        candidates(config, SearchSpace(num_hidden_layers=(1, 2, 3), min_params=least, max_params=most))


@pytest.mark.parametrize(
    ("space", "field", "values"),
    [
        (SearchSpace(num_attention_heads=(2, 3)), "search_space.num_attention_heads", [3]),
        (SearchSpace(num_hidden_layers=(1, 2), hidden_size=(16, 33)), "search_space.hidden_size", [33, 32]),
        (SearchSpace(hidden_size=(31,), num_attention_heads=(2, 4)), "search_space.hidden_size", [31]),
        (SearchSpace(num_hidden_layers=(2, 0)), "search_space.num_hidden_layers", [0]),
        (SearchSpace(intermediate_size=(1.5,)), "search_space.intermediate_size", ["(0, 1]"]),
        (SearchSpace(expansion=(1, 2), hidden_size=(32,)), "search_space.expansion", [2, 32, 64, 48]),
        (SearchSpace(expansion=(0.0,)), "search_space.expansion", [0, 32]),
        (SearchSpace(expansion=(1,), intermediate_size=(8,)), "search_space", ["intermediate_size", "expansion"]),
        (SearchSpace(min_params=20_000, max_params=10_000), "search_space", ["20,000", "10,000"]),
        (SearchSpace(min_params=0), "search_space.min_params", [0]),
        (SearchSpace(max_params=1.5), "search_space.max_params", [1.5]),
    ],
)
def test_a_space_that_cannot_be_is_refused(config, space, field, values):
    with refuses(field, *values):
        candidates(config, space)


def test_a_candidate_makes_a_cell_of_its_shape_and_names_its_row(config):
    space = SearchSpace(
        num_hidden_layers=(1, 3), num_attention_heads=(2, 4), intermediate_size=(0.25, 48), hidden_size=(16, 30)
    )
    found = candidates(config, space)
    assert len(found) == 12
    for candidate in found:
        cell = override(Cell(), candidate.changes)
        assert target(cell.prune, config) == candidate.shape
    assert found[-1].changes == {
        "prune.num_hidden_layers": 1, "prune.num_attention_heads": 4, "prune.intermediate_size": 48,
        "prune.hidden_size": 16
    }  # fmt: skip
    assert found[-1].label == "1 layers, 4 heads, 48 neurons, 16 hidden"
