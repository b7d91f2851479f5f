"""Choice of the weights to zero: rows, matrices, the model, N:M groups, and the sparsity of each layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CASES, model_of
from pruning_context import small_llama
from refusals import refuses

from lit_prune.models.linears import linears_of, rows_of
from lit_prune.models.model_family import anatomy_of
from lit_prune.pruning.sparsity import (
    Pattern,
    check_pattern,
    input_norms,
    keep_highest,
    keep_in_groups,
    keep_in_matrix,
    keep_in_model,
    keep_in_rows,
    layer_sparsities,
    parse_pattern,
)

SCORES = torch.tensor([[4.0, 1.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0], [0.5, 0.1, 0.2, 9.0]])


def bits(mask: torch.Tensor) -> list[str]:
    return ["".join("01"[int(kept)] for kept in row) for row in mask]


def test_masks_by_hand() -> None:
    assert bits(keep_highest(SCORES, 2)) == ["1010", "1100", "1001"]  # ties go to the lower index
    assert bits(keep_highest(SCORES, torch.tensor([0, 3, 4]))) == ["1111", "1000", "0000"]
    assert bits(keep_in_rows(SCORES, 7)) == ["1000", "1100", "1001"]  # the first row has one more
    assert bits(keep_in_matrix(SCORES, 6)) == ["1000", "1111", "0001"]
    assert bits(keep_in_groups(SCORES, Pattern(1, 2))) == ["1010", "1010", "1001"]
    found = keep_in_model({"a": SCORES, "b": 10 * SCORES[2:]}, 7)
    assert bits(found["a"]) == ["1010", "1111", "0001"]
    assert bits(found["b"]) == ["1001"]


@pytest.mark.parametrize("zeros", [0, 1, 37, 40 * 7 - 1, 40 * 7])
def test_numbers_of_zeros_are_exact(zeros: int) -> None:
    scores = torch.rand(7, 40, generator=torch.Generator().manual_seed(0))
    for keep in (keep_in_rows, keep_in_matrix):
        assert int((~keep(scores, zeros)).sum()) == zeros
    by_row = (~keep_in_rows(scores, zeros)).sum(1)
    assert by_row.max() - by_row.min() <= 1


@pytest.mark.parametrize("text", ["2:4", "4:8", "1:4", "1:2"])
def test_a_pattern_is_exact_in_every_group(text: str) -> None:
    pattern = parse_pattern(text)
    scores = torch.rand(16, 64, generator=torch.Generator().manual_seed(0))
    groups = keep_in_groups(scores, pattern).view(16, -1, pattern.group)
    assert (groups.sum(-1) == pattern.kept).all()
    least = torch.where(groups, scores.view(groups.shape), torch.inf).amin(-1)
    assert (least > torch.where(groups, -torch.inf, scores.view(groups.shape)).amax(-1)).all()


@pytest.mark.parametrize("text", ["2", "4:2", "0:4", "4:4", "a:b", "2:4:8"])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with refuses("prune.pattern", text):
        parse_pattern(text)


def test_a_pattern_must_have_the_sparsity_and_divide_the_rows() -> None:
    config = small_llama().config
    check_pattern(None, 0.3, config)
    check_pattern("2:4", 0.5, config)
    with refuses("prune.sparsity", 0.75, "1:4", 0.5):
        check_pattern("1:4", 0.5, config)
    with refuses("prune.pattern", 32, "3:6"):
        check_pattern("3:6", 0.5, config)


@pytest.mark.parametrize("name", list(CASES))
def test_linears_of_every_family_are_those_of_its_description(name: str) -> None:
    model = model_of(name)
    anatomy = anatomy_of(model.config)
    in_layers = [path for path, _ in model.named_parameters() if anatomy.layer_of(path)[0] is not None]
    described = filter(anatomy.is_linear, in_layers)
    assert sorted(dict(linears_of(model))) == sorted(described)
    assert [path for path, _ in linears_of(model, 1)] == [path for path, _ in linears_of(model) if ".1." in path]
    for _, module in linears_of(model):
        reads = torch.zeros(1, rows_of(module).shape[1])
        assert module(reads).shape[1] == rows_of(module).shape[0]


def test_norms_are_those_of_all_tokens_of_all_batches() -> None:
    model = small_llama()
    linears = dict(linears_of(model, 0))
    inputs: list[Any] = []
    name = "model.layers.0.mlp.down_proj.weight"
    hook = linears[name].register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach().double()))
    with input_norms(linears) as norms, torch.no_grad():
        for ids in torch.randint(0, 64, (2, 2, 9), generator=torch.Generator().manual_seed(0)):
            model(ids)
    hook.remove()
    assert not any(module._forward_pre_hooks for module in linears.values())
    expected = torch.cat([x.flatten(0, 1) for x in inputs]).norm(dim=0)
    torch.testing.assert_close(norms[name].double(), expected)


def test_sparsities_of_layers_are_linear_in_their_values_and_exact_over_all() -> None:
    model = small_llama()
    values = [3.0, 2.0, 2.5, 4.0, 3.5, 2.0, 3.0, 2.2]
    found = layer_sparsities(model, values, 0.3, 0.7)
    by_layer = [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(8)]
    shares = [0.7 + 0.6 * (value - 2) / 2 for value in values]
    mean = sum(shares) / 8
    assert by_layer == pytest.approx([0.7 * share / mean for share in shares])
    assert set(found) == set(dict(linears_of(model)))
    assert layer_sparsities(model, [1.0] * 8, 0.3, 0.7) == pytest.approx(dict.fromkeys(found, 0.7))
    steep = layer_sparsities(model, [0.0] * 7 + [1.0], 0.9, 0.9)
    last = [steep[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 7)]
    assert last == pytest.approx([(0.9 * 8 - 1) / 7, 1.0])
