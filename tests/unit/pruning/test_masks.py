"""Save, load and count masks, cut them with their model, apply them temporarily, and refuse those that do not fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, model_of, plan_for
from pruning_context import small_llama
from refusals import refuses
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from lit_prune.models.files import MASKS, Place, fingerprint_of
from lit_prune.models.model_family import anatomy_of
from lit_prune.pruning import surgery
from lit_prune.pruning.masks import (
    apply_masks,
    both,
    check_fit,
    check_zero,
    load_masks,
    masked_weights,
    read_masks,
    save_masks,
    sparsity_of,
)

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.7.mlp.down_proj.weight"


def drawn(model: Any, seed: int = 0) -> dict[str, Tensor]:
    """A random mask of every linear of the layers, by their description in the family."""
    anatomy, draw = anatomy_of(model.config), torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(weight.shape, generator=draw) < 0.5
        for name, weight in model.named_parameters()
        if anatomy.layer_of(name)[0] is not None and anatomy.is_linear(name)
    }


def test_masks_are_stored_as_bits_and_read_again(tmp_path: Path) -> None:
    masks = {UP: torch.rand(5, 3) < 0.5, DOWN: torch.ones(4, 4, dtype=torch.bool)}
    save_masks(masks, tmp_path)
    found = load_masks(tmp_path)
    assert list(found) == list(masks)
    assert all(found[name].dtype == torch.bool and torch.equal(found[name], masks[name]) for name in masks)
    assert (tmp_path / MASKS).stat().st_size < 400
    assert load_masks(tmp_path / "other") == {}
    save_masks({}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_weights_are_zero_and_counted_by_hand() -> None:
    model = small_llama()
    kept = torch.ones(40, 32, dtype=torch.bool)
    kept[:, :8] = False
    apply_masks(model, {UP: kept})
    assert torch.equal(model.get_parameter(UP) == 0, ~kept)
    linears = 8 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 40 * 32)
    assert sparsity_of(model, {UP: kept}) == {
        "sparsity": 320 / linears, "nonzero_parameters": model.num_parameters() - 320
    }  # fmt: skip
    check_zero(model, {UP: kept}, "here")
    model.get_parameter(UP).data[3, 7] = 1e-9
    with refuses("here", UP):
        check_zero(model, {UP: kept}, "here")


def test_two_masks_together_keep_what_both_keep() -> None:
    first, second = {UP: torch.tensor([True, True, False])}, {UP: torch.tensor([True, False, True])}
    other = {DOWN: torch.tensor([False])}
    found = both(first, second | other)
    assert found[UP].tolist() == [True, False, False]
    assert found[DOWN].tolist() == [False]
    assert both(first, {})[UP].tolist() == first[UP].tolist()


@pytest.mark.parametrize("kind", ["all", "uneven"])
@pytest.mark.parametrize("name", list(CASES))
def test_masks_are_cut_as_their_model_is(name: str, kind: str) -> None:
    model, plan = copy.deepcopy(model_of(name)), plan_for(name, kind)
    masks = drawn(model)
    apply_masks(model, masks)
    small, cut = surgery.apply(model, plan), surgery.cut(masks, plan, model.config)
    assert cut.keys() == drawn(small).keys()
    for path, kept in cut.items():
        assert torch.equal(small.get_parameter(path) != 0, kept)


def test_masks_beside_a_model_change_its_fingerprint_and_stock_transformers_ignores_them(tmp_path: Path) -> None:
    model, place = small_llama(), Place(str(tmp_path))
    masks = drawn(model)
    apply_masks(model, masks)
    model.save_pretrained(tmp_path)
    bare = fingerprint_of(place)
    save_masks(masks, tmp_path)
    first = fingerprint_of(place)
    save_masks(drawn(model, seed=1), tmp_path)
    assert len({bare, first, fingerprint_of(place)}) == 3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    check_zero(loaded, masks, "loaded")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = small_llama()
    for masks in ({UP: torch.ones(3, 3, dtype=torch.bool)}, {"nothing": torch.ones(1, dtype=torch.bool)}):
        with refuses("here", next(iter(masks))):
            check_fit(model, masks, "here")
    for content in (b"{}", b""):
        (tmp_path / "masks").write_bytes(content)
        with refuses(str(tmp_path / "masks")):
            read_masks(tmp_path / "masks")
    with refuses("prune.plan_path", "none"):
        read_masks(tmp_path / "none", "prune.plan_path")


def test_masked_weights_are_restored() -> None:
    weight = nn.Parameter(torch.ones(3), requires_grad=False)
    with masked_weights([weight], [torch.tensor([True, False, True])]):
        assert (weight.tolist(), weight.requires_grad) == ([1, 0, 1], True)
    assert (weight.tolist(), weight.requires_grad) == ([1, 1, 1], False)
