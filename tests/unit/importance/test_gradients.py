"""First-order and Fisher scores against torch's own backward, unit by unit."""

import copy

import pytest
import torch
import torch.nn.functional as F
from families import model_of
from measured import evidence_of

from lit_prune.config import Prune
from lit_prune.importance.criteria import criteria
from lit_prune.importance.gradients import Gradients

KINDS = {"taylor_vector": "vector", "taylor": "element1", "taylor_fisher": "element2"}


@pytest.fixture
def ids():
    return torch.randint(3, 96, (5, 13), generator=torch.Generator().manual_seed(3))


def by_hand(model, ids):
    """Parameter name -> (w, g, F) in float64: weights, gradient of the mean loss over all sequences, and mean over
    sequences of the squared gradient of one."""
    model = copy.deepcopy(model).double()
    names = dict(model.named_parameters())

    def backward(rows):
        model.zero_grad()
        logits = model(input_ids=rows, use_cache=False).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten()).backward()
        return {name: p.grad.clone() for name, p in names.items()}

    whole, each = backward(ids), [backward(row[None]) for row in ids]
    return {
        name: (p.detach(), whole[name], torch.stack([g[name] for g in each]).square().mean(0))
        for name, p in names.items()
    }


def scored(parts):
    """The three scores of a unit from its (w, g, F)s."""
    products = [w * g for w, g, _ in parts]
    return {
        "vector": abs(sum(p.sum().item() for p in products)),
        "element1": sum(p.abs().sum().item() for p in products),
        "element2": sum((w * g - w * w * f / 2).abs().sum().item() for w, g, f in parts),
    }


def cut(of, index):
    return tuple(x[index] for x in of)


@pytest.mark.parametrize("name", KINDS)
def test_scores_of_units_by_hand(name, ids, tmp_path):
    model = model_of("llama")  # 6 heads of width 4 in 2 groups, 20 neurons, width 36, 3 blocks
    found = criteria[name].score(evidence_of(model, ids, tmp_path, ["gradients"]), Prune())
    hand = by_hand(model, ids)
    block = {n.removeprefix("model.layers.1."): parts for n, parts in hand.items() if n.startswith("model.layers.1.")}
    units = {
        "neuron": [
            cut(block["mlp.gate_proj.weight"], 6), cut(block["mlp.up_proj.weight"], 6),
            cut(block["mlp.down_proj.weight"], (slice(None), 6)),
        ],
        "head": [
            cut(block["self_attn.q_proj.weight"], slice(16, 20)),
            cut(block["self_attn.o_proj.weight"], (slice(None), slice(16, 20))),
        ],
        "hidden": [
            cut(parts, 11 if n.endswith(("o_proj.weight", "down_proj.weight", "norm.weight")) else (slice(None), 11))
            for n, parts in hand.items()
        ],
        "layer": list(block.values()),
    }  # fmt: skip
    places = {"neuron": (1, 6), "head": (1, 4), "hidden": (0, 11), "layer": (0, 1)}
    for axis, (row, unit) in places.items():
        expected = scored(units[axis])[KINDS[name]]
        assert found[axis][row][unit].item() == pytest.approx(expected, rel=1e-4), axis


@pytest.mark.parametrize("name", KINDS)
def test_tied_embeddings_and_fused_heads_count_once_and_whole(name, ids, tmp_path):
    model = model_of("gpt2")  # 6 heads of width 4 with keys and values of their own; [in, out] weights; tied
    found = criteria[name].score(evidence_of(model, ids, tmp_path, ["gradients"]), Prune())
    hand = by_hand(model, ids)
    assert "lm_head.weight" not in hand
    block = {n.removeprefix("transformer.h.2."): parts for n, parts in hand.items() if n.startswith("transformer.h.2.")}
    head = [cut(block["attn.c_proj.weight"], slice(12, 16))]
    for start in (12, 36, 60):
        head.append(cut(block["attn.c_attn.weight"], (slice(None), slice(start, start + 4))))
        head.append(cut(block["attn.c_attn.bias"], slice(start, start + 4)))
    assert found["head"][2][3].item() == pytest.approx(scored(head)[KINDS[name]], rel=1e-4)
    rows = ("attn.c_attn.weight", "mlp.c_fc.weight")  # [hidden, other]
    vectors = ("bias", "ln_1.weight", "ln_2.weight", "ln_f.weight")
    hidden = [
        cut(parts, 8 if n.endswith((*rows, *vectors)) else (slice(None), 8))
        for n, parts in hand.items()
        if not n.endswith(("c_attn.bias", "c_fc.bias"))
    ]
    assert found["hidden"][0][8].item() == pytest.approx(scored(hidden)[KINDS[name]], rel=1e-4)


def test_gradients_are_the_same_however_sequences_are_batched(ids, tmp_path):
    one, other = (
        evidence_of(model_of("llama"), ids, tmp_path / str(b), ["gradients"], batch=b).statistics["gradients"]
        for b in (1, 4)
    )
    assert one.keys() == {f"{kind}.{axis}" for kind in KINDS.values() for axis in ("neuron", "head", "hidden", "layer")}
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ranks_add_up(ids):
    whole, first, second = (Gradients(model_of("llama"), lambda seen: None) for _ in range(3))
    for reader, rows in ((whole, ids), (first, ids[:2]), (second, ids[2:])):
        with torch.no_grad():
            reader.read({"input_ids": rows, "labels": rows})
        reader.seen = len(rows)
    sums = []
    second.add_up(lambda x: sums.append(x) or x)
    theirs = iter(sums)
    first.add_up(lambda x: x + next(theirs))
    first.seen += second.seen
    found, expected = first.found()["gradients"], whole.found()["gradients"]
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_a_frozen_teacher_is_scored_and_stays_frozen(tiny_llama, ids, tmp_path):
    expected = evidence_of(tiny_llama, ids, tmp_path / "a", ["gradients"]).statistics["gradients"]
    tiny_llama.requires_grad_(False)
    found = evidence_of(tiny_llama, ids, tmp_path / "b", ["gradients"]).statistics["gradients"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(p.requires_grad for p in tiny_llama.parameters())
    assert all(p.grad is None for p in tiny_llama.parameters())


def test_the_order_of_the_three_scores_is_that_of_their_definitions(ids, tmp_path):
    found = evidence_of(model_of("llama"), ids, tmp_path, ["gradients"]).statistics["gradients"]
    for axis in ("neuron", "head", "hidden", "layer"):
        assert (found[f"vector.{axis}"] <= found[f"element1.{axis}"]).all()
        assert not torch.allclose(found[f"element1.{axis}"], found[f"element2.{axis}"], rtol=1e-6)
