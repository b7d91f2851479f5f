"""PLRD: factors are the best of their rank, count as what they hold, and get smaller from parent to parent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import config_of, generates_with_cache_as_without, logits, model_of
from pruning_context import IDS, LAYERS, context_of, small_llama
from refusals import refuses

from lit_prune.config import Cell
from lit_prune.config.overrides import override, parent_of
from lit_prune.methods import methods
from lit_prune.models.loading import load_model
from lit_prune.pipeline.expand import Entry

RANKS = {
    "self_attn.q_proj": 13, "self_attn.k_proj": 6, "self_attn.v_proj": 6, "self_attn.o_proj": 13,
    "mlp.gate_proj": 13, "mlp.up_proj": 13, "mlp.down_proj": 13,
}  # fmt: skip
"""0.4 of the smaller dimension: of 32, and of the 16 keys and values."""


def decomposed(model: Any, folder: Path, rank: Any = 0.4) -> Any:
    return methods["plrd"](rank=rank).prune(model, context_of(folder))


def test_factors_are_nearest_to_the_matrix_and_of_equal_norm(tmp_path: Path) -> None:
    model = small_llama()
    found = decomposed(model, tmp_path)
    assert found.achieved == {"ranks": RANKS}
    for ours, theirs in zip(found.model.model.layers, model.model.layers, strict=True):
        for name, rank in RANKS.items():
            into, out = (part.weight.detach().double().numpy() for part in ours.get_submodule(name))
            matrix = theirs.get_submodule(name).weight.detach().double().numpy()
            assert into.shape[0] == out.shape[1] == rank
            left = np.linalg.svd(matrix, compute_uv=False)[rank:]
            assert np.sum((matrix - out @ into) ** 2) == pytest.approx(np.sum(left**2), rel=1e-5)
            assert np.linalg.norm(out) == pytest.approx(np.linalg.norm(into), rel=1e-5)
    for name, weight in model.state_dict().items():
        if "proj" not in name:
            assert torch.equal(found.model.state_dict()[name], weight)


def test_factors_count_as_what_they_hold(tmp_path: Path) -> None:
    model = small_llama()
    student = decomposed(model, tmp_path).model
    layer = 13 * (32 + 32) * 2 + 6 * (32 + 16) * 2 + 3 * 13 * (32 + 40) + 2 * 32
    assert student.num_parameters() == 2 * 64 * 32 + LAYERS * layer + 32
    assert methods["plrd"]().config_of(model.config).to_dict() == student.config.to_dict()


def test_a_matrix_stays_where_factors_would_not_be_smaller(tmp_path: Path) -> None:
    """Of 32 x 32 up to rank 15, of 16 x 32 up to 10, of 40 x 32 up to 17."""
    model = small_llama()
    found = decomposed(model, tmp_path, 17)
    assert found.achieved["ranks"] == {name: 17 for name in RANKS if "mlp" in name}
    assert torch.equal(
        found.model.model.layers[0].self_attn.q_proj.weight, model.model.layers[0].self_attn.q_proj.weight
    )
    assert decomposed(model, tmp_path, 10).achieved["ranks"] == dict.fromkeys(RANKS, 10)


def test_lower_ranks_of_factors_are_those_of_the_matrix(tmp_path: Path) -> None:
    model = model_of("seed_oss")  # with biases
    first = decomposed(model, tmp_path, 0.4).model
    twice, once = decomposed(first, tmp_path, 0.2), decomposed(model, tmp_path, 0.2)
    assert twice.achieved == once.achieved
    assert torch.allclose(logits(twice.model), logits(once.model), atol=1e-4)
    assert twice.model.num_parameters() < first.num_parameters() < model.num_parameters()
    mixed = decomposed(first, tmp_path, 9)  # lower than 10 in attention; 8 in the MLP and 3 of keys and values stay
    assert mixed.achieved["ranks"] == first.config.ranks | {"self_attn.q_proj": 9, "self_attn.o_proj": 9}
    ours, theirs = (one.model.layers[0].mlp.up_proj for one in (mixed.model, first))
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    with refuses("prune.rank", 9, 0.4):
        methods["plrd"](rank=0.4).check(first.config)


@pytest.mark.parametrize("rank", [0, -3, 0.0, 1.0, 1.5])
def test_a_rank_that_is_none_is_refused(rank: Any) -> None:
    with refuses("prune.rank", rank):
        methods["plrd"](rank=rank).check(small_llama().config)


def test_what_cannot_have_factors_is_refused_before_compute() -> None:
    with refuses("prune.rank", 17, 18):
        methods["plrd"](rank=18).check(small_llama().config)
    with refuses("prune.plan_path", "plan.json"):
        methods["plrd"](plan_path="plan.json").check(small_llama().config)
    with refuses("prune.method", "llama", "phi3"):
        methods["plrd"]().check(config_of("phi3"))


def test_ranks_get_lower_from_parent_to_child_with_training_in_between(tiny_cell: Cell, tiny_runner: Any) -> None:
    cell = override(
        tiny_cell,
        {
            "prune.method": "plrd", "prune.rank": 0.2, "distill.max_steps": 2, "parent.prune.rank": 0.4,
            "distill.alpha": 1.0, "distill.match_layer_output": ("last:last",),
        },
    )  # fmt: skip
    parent = parent_of(cell)
    assert parent is not None
    tiny_runner.check([cell])
    assert tiny_runner.run([Entry("parent", 0, parent, {}), Entry("row", 0, cell, {})]) == 0
    before, after = (
        load_model(str(tiny_runner.store.node(one, "cell").folder / "model")) for one in (parent, cell)
    )  # fmt: skip
    assert before.config.ranks["self_attn.q_proj"] == 13
    assert after.config.ranks["self_attn.q_proj"] == 6
    result = tiny_runner.store.node(cell, "cell").result
    assert result["parameters"] == after.num_parameters() < before.num_parameters()
    assert generates_with_cache_as_without(after)
    assert after(IDS).logits.isfinite().all()
