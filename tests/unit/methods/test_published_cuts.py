"""Parameter counts and shapes that authors published of their students, from configs alone."""

from __future__ import annotations

from typing import Any

import pytest
from published import MODELS
from transformers import LlamaConfig

from lit_prune.methods import methods
from lit_prune.models.shape import num_parameters, shape_of

LLAMA_7B = LlamaConfig(num_key_value_heads=32, tie_word_embeddings=False)
"""LLaMA-7B and Llama-2-7B: the default sizes of transformers."""
TINY_LLAMA = LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
    tie_word_embeddings=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "settings", "before", "after"),
    [
        (MODELS["Llama-3.1 8B"], {}, 8_030_261_248, 6_612_586_496),
        (TINY_LLAMA, {"spare_first": 4, "spare_last": 4}, 1_100_048_384, 945_907_712),
    ],
)
def test_llm_pruner_leaves_as_many_parameters_as_its_authors_log(
    config: Any, settings: dict[str, int], before: int, after: int
) -> None:
    """more_results/README.md of horseee/LLM-Pruner: a ratio of 0.25 in layers 4 to 29 of 32, and in 4 to 17 of 22."""
    assert num_parameters(config) == before
    assert num_parameters(methods["llm_pruner"](**settings).config_of(config)) == after


def test_llm_pruner_makes_llama_5_4b_out_of_llama_7b() -> None:
    """README.md of horseee/LLM-Pruner: a fifth of the parameters goes."""
    count = num_parameters(methods["llm_pruner"]().config_of(LLAMA_7B))
    assert count == 6_738_415_616 - 26 * (8 * 4 * 128 * 4096 + 2752 * 3 * 4096)  # of 26 layers, 8 heads, 2752 neurons
    assert round(count / 1e9, 1) == 5.4
    assert 1 - count / num_parameters(LLAMA_7B) == pytest.approx(0.2, abs=0.005)


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "neurons", "billions"), [(24, 2048, 16, 5504, 1.3), (32, 2560, 20, 6912, 2.7)]
)
def test_sheared_llama_reaches_its_published_shapes(
    layers: int, hidden: int, heads: int, neurons: int, billions: float
) -> None:
    """Sheared LLaMA (arXiv 2310.06694), Table 1: students of Llama-2-7B, in the config of a uniform Llama."""
    chosen = methods["sheared_llama"](
        num_hidden_layers=layers, hidden_size=hidden, num_key_value_heads=heads, intermediate_size=neurons
    )
    found, built = chosen.config_of(LLAMA_7B), LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=neurons, num_attention_heads=heads,
        tie_word_embeddings=False,
    )  # fmt: skip
    assert shape_of(found) == shape_of(built)
    by_hand = layers * (4 * hidden**2 + 3 * hidden * neurons + 2 * hidden) + (2 * 32_000 + 1) * hidden
    assert num_parameters(found) == num_parameters(built) == by_hand
    assert int(by_hand / 1e8) / 10 == billions


def test_sheared_llama_has_the_shares_of_the_larger_shape_by_default() -> None:
    found = shape_of(methods["sheared_llama"]().config_of(LLAMA_7B))
    assert (found.num_hidden_layers, found.hidden_size, found.num_attention_heads) == (32, 2560, 20)
    assert found.intermediate_size == 6880
    rounded = [128 * round(share * 11008 / 128) for share in (0.5, 0.625)]
    assert rounded == [5504, 6912]  # the neurons of both published shapes
