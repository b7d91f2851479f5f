"""LaCo against merges made by hand in float64, and its search against one that builds every candidate anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import CASES, model_of, token_ids
from pruning_context import IDS, LAYERS, context_of
from refusals import refuses
from transformers import LlamaConfig, LlamaForCausalLM

from lit_prune.methods import methods
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.pruning.context import PruneContext

SEQUENCES = 3
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def laco(**settings: Any) -> Any:
    return methods["laco"](num_sequences=SEQUENCES, **settings)


def by_hand(model: Any, groups: list[list[int]], variant: str) -> Any:
    """A float64 Llama whose layers are merges of groups of layers."""
    config = LlamaConfig(**model.config.to_dict() | {"num_hidden_layers": len(groups)})
    twin, weights = LlamaForCausalLM(config).double().eval(), model.double().state_dict()
    model.float()
    own = {name: value for name, value in weights.items() if ".layers." not in name}
    for place, (first, *others) in enumerate(groups):
        for name in (name for name in weights if f"layers.{first}." in name):
            merged = weights[name].clone()
            if any(part in name for part in LINEAR):
                for other in others:
                    theirs = weights[name.replace(f"layers.{first}.", f"layers.{other}.")]
                    merged = theirs if variant == "official" else merged + theirs - weights[name]
            own[name.replace(f"layers.{first}.", f"layers.{place}.")] = merged
    twin.load_state_dict(own)
    return twin


@torch.no_grad()
def states(model: Any) -> torch.Tensor:
    return model.model(IDS[:SEQUENCES]).last_hidden_state.double()


def cosine(model: Any, groups: list[list[int]], variant: str) -> float:
    before = states(model)
    return float(torch.cosine_similarity(states(by_hand(model, groups, variant)), before, dim=-1).mean())


def merges_of(count: int) -> list[list[list[int]]]:
    """The groups of every single merge of `count` layers below the last one, deep ones first."""
    starts = reversed(range(LAYERS - count))
    return [
        [[i] for i in range(s)] + [[*range(s, s + count)]] + [[i] for i in range(s + count, LAYERS)] for s in starts
    ]


def same_weights(student: Any, expected: Any) -> None:
    theirs = expected.state_dict()
    assert student.state_dict().keys() == theirs.keys()
    for name, weight in student.state_dict().items():
        torch.testing.assert_close(weight.double(), theirs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_a_merge_adds_differences_or_takes_the_last_layer(model: Any, ctx: PruneContext, variant: str) -> None:
    groups = [[0], [1], [2], [3], [4, 5, 6], [7]]
    found = laco(variant=variant, layers_per_merge=3, threshold=-1.0, num_hidden_layers=6).prune(model, ctx)
    same_weights(found.model, by_hand(model, groups, variant))
    assert found.plan is not None
    assert [layer.index for layer in found.plan.layers] == [0, 1, 2, 3, 4, 7]


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_the_deepest_merge_with_a_high_enough_cosine_is_accepted(model: Any, ctx: PruneContext, variant: str) -> None:
    candidates = merges_of(3)
    cosines = [cosine(model, groups, variant) for groups in candidates]
    above = (max(cosines[1:]) + cosines[0]) / 2 if cosines[0] < max(cosines[1:]) else cosines[0] + 1e-3
    for threshold in (-1.0, above, 2.0):
        accepted = [i for i, value in enumerate(cosines) if value >= threshold]
        expected = candidates[accepted[0] if accepted else cosines.index(max(cosines))]
        chosen = laco(variant=variant, layers_per_merge=3, threshold=threshold, num_hidden_layers=6)
        same_weights(chosen.prune(model, ctx).model, by_hand(model, expected, variant))


def test_merges_of_merges_are_bit_for_bit_the_last_layer(model: Any, ctx: PruneContext) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = laco(variant="official", num_hidden_layers=3, lowest_layer=1).prune(model, ctx)
    assert found.plan is not None
    kept = [layer.index for layer in found.plan.layers]
    assert kept[:2] == [0, 1]
    for place, (first, following) in enumerate(zip(kept, [*kept[1:], LAYERS], strict=True)):
        for name, weight in found.model.model.layers[place].named_parameters():
            source = following - 1 if any(part in name for part in LINEAR) else first
            assert torch.equal(weight, model.state_dict()[f"model.layers.{source}.{name}"])
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_the_settings_bound_the_search(model: Any, ctx: PruneContext) -> None:
    def kept(**settings: Any) -> list[int]:
        plan = laco(threshold=-1.0, layers_per_merge=2, **settings).prune(model, ctx).plan
        assert plan is not None
        return [layer.index for layer in plan.layers]

    assert kept(num_hidden_layers=7, highest_layer=5) == [0, 1, 2, 3, 5, 6, 7]
    assert kept(num_hidden_layers=6) == [0, 1, 2, 3, 4, 7]
    assert kept(num_hidden_layers=6, interval=2) == [0, 1, 2, 3, 5, 7]
    assert kept(num_hidden_layers=4, lowest_layer=3) == [0, 1, 2, 3]
    for name, value in (("lowest_layer", 6), ("highest_layer", LAYERS)):
        with refuses(f"prune.{name}", str(value)):
            laco(num_hidden_layers=6, **{name: value}).check(model.config)


@pytest.mark.parametrize("name", list(CASES))
def test_every_family_keeps_the_norms_of_the_first_layer(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    ids = token_ids()
    found = methods["laco"](variant="official", threshold=-1.0, num_hidden_layers=2).prune(
        model, context_of(tmp_path, ids)
    )
    family, merged = anatomy_of(model.config), layers_of(found.model)[0]
    first, second, _ = layers_of(model)
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, first.get_parameter(name))}
    assert {name for name in changed if name.endswith("weight")} == {
        name for name, _ in first.named_parameters() if family.is_linear(f"{family.layers}.0.{name}")
    }
    assert all(torch.equal(merged.get_parameter(name), second.get_parameter(name)) for name in changed)
    assert not any("norm" in name or "ln_" in name for name in changed)
