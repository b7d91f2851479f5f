"""Calibration statistics: moments against plain computations, for any chunking."""

import dataclasses
import itertools

import pytest
import torch
from families import model_of
from measured import CPU, Sequences, evidence_of, quietly
from refusals import refuses

from lit_prune.config import EVIDENCE
from lit_prune.importance import aggregate as aggregation
from lit_prune.importance.aggregate import STATISTICS, SequenceMoments, aggregate, sequence_statistics
from lit_prune.importance.collect import READERS, Calibrator, measure
from lit_prune.models import model_family

SEQUENCE = {
    "mean": lambda x: x.abs().mean(1),
    "l2": lambda x: x.norm(dim=1),
    "var": lambda x: x.var(1, correction=0),
}
BATCH = {"mean": lambda s: s.mean(0), "l2": lambda s: s.norm(dim=0), "var": lambda s: s.var(0, correction=0)}
NINE = list(itertools.product(STATISTICS, STATISTICS))


@pytest.fixture
def ids():
    return torch.randint(0, 200, (10, 24), generator=torch.Generator().manual_seed(3))


# --- aggregation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "seq"), NINE)
def test_the_nine_aggregations_are_those_of_the_paper(batch, seq):
    x = torch.randn(12, 33, 5, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 5) + 0.3
    moments = SequenceMoments()
    for part in x.split(5):
        moments.add(part)
    expected = BATCH[batch](SEQUENCE[seq](x.double()))
    torch.testing.assert_close(aggregate(moments.sums, moments.count, batch, seq), expected, rtol=2e-5, atol=0)


def test_aggregations_by_hand():
    moments = SequenceMoments()
    moments.add(torch.tensor([[[3.0], [-1.0]], [[0.0], [4.0]]]))
    # Two sequences of one unit: mean |x| 2 and 2; L2 sqrt(10) and 4; variance 4 and 4.
    found = {(b, s): aggregate(moments.sums, 2, b, s).item() for b in STATISTICS for s in STATISTICS}
    expected = {
        ("mean", "mean"): 2, ("l2", "mean"): 8**0.5, ("var", "mean"): 0,
        ("mean", "l2"): (10**0.5 + 4) / 2, ("l2", "l2"): 26**0.5, ("var", "l2"): ((4 - 10**0.5) / 2) ** 2,
        ("mean", "var"): 4, ("l2", "var"): 32**0.5, ("var", "var"): 0,
    }  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_variance_of_units_far_from_zero_keeps_its_digits():
    x = 300 + 0.1 * torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(1))
    # The difference of mean squares, 90000 each, would be right to about 0.01: as much as the variance itself.
    torch.testing.assert_close(sequence_statistics(x)[2], x.double().var(1, correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("entries", [1, 300, 10**6])
def test_statistics_do_not_depend_on_how_much_is_worked_on_at_once(entries, monkeypatch):
    x = torch.randn(7, 20, 9, generator=torch.Generator().manual_seed(2))
    expected = torch.stack([SEQUENCE[name](x.double()) for name in STATISTICS])
    monkeypatch.setattr(aggregation, "_ENTRIES_AT_ONCE", entries)
    torch.testing.assert_close(sequence_statistics(x), expected, rtol=1e-5, atol=0)


# --- the forward pass --------------------------------------------------------------------------------------------


def test_sites_hold_what_the_model_computes(tiny_llama, ids, tmp_path):
    evidence = evidence_of(tiny_llama, ids, tmp_path, ["importance", "head_channels", "preactivations"])
    block = tiny_llama.model.layers[1]
    seen = {}
    hooks = [
        block.mlp.down_proj.register_forward_pre_hook(lambda m, x: seen.update(neuron=x[0])),
        block.mlp.gate_proj.register_forward_hook(lambda m, x, y: seen.update(preactivation=y)),
        block.self_attn.o_proj.register_forward_pre_hook(lambda m, x: seen.update(head_channel=x[0])),
        block.input_layernorm.register_forward_hook(lambda m, x, y: seen.update(input_norm=y)),
        block.post_attention_layernorm.register_forward_hook(lambda m, x, y: seen.update(mlp_norm=y)),
    ]
    with torch.no_grad():
        tiny_llama(ids)
    for hook in hooks:
        hook.remove()
    seen["head"] = seen["head_channel"].unflatten(-1, (-1, tiny_llama.config.head_dim)).norm(dim=-1)
    assert evidence.count == 10
    found = {site: sums for tensors in evidence.statistics.values() for site, sums in tensors.items()}
    assert found.keys() == {f"{i}.{kind}" for i in range(3) for kind in seen}
    for kind, x in seen.items():
        expected = SEQUENCE["mean"](x.double()).norm(dim=0)
        torch.testing.assert_close(aggregate(found[f"1.{kind}"], 10, "l2", "mean"), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("case", "readers"),  # modules of block 1 that read what its two halves do
    [
        ("phi", ["model.layers.1.self_attn.q_proj"]),
        ("olmo2", ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.gate_proj"]),
        ("opt", ["model.decoder.layers.1.self_attn.q_proj", "model.decoder.layers.1.fc1"]),
        ("gpt2", ["transformer.h.1.attn.c_attn", "transformer.h.1.mlp.c_fc"]),
        ("gemma3_text", ["model.layers.1.self_attn.q_proj", "model.layers.1.mlp.gate_proj"]),
    ],
)
def test_hidden_channels_are_read_where_attention_and_mlp_read_them(case, readers, tmp_path):
    model, ids = model_of(case), torch.randint(3, 96, (3, 11), generator=torch.Generator().manual_seed(6))
    seen = []
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(lambda m, x: seen.append(x[0].reshape(3, 11, -1)))
        for path in readers
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    moments = evidence_of(model, ids, tmp_path, ["importance"]).statistics["importance"]
    norms = [f"1.{kind}" for kind in ("input_norm", "mlp_norm") if f"1.{kind}" in moments]
    assert len(norms) == len(readers)
    for name, x in zip(norms, seen, strict=True):
        torch.testing.assert_close(aggregate(moments[name], 3, "mean", "var"), x.double().var(1, correction=0).mean(0))


def test_one_pass_measures_everything_that_a_forward_pass_shows(tiny_llama, ids, tmp_path):
    passes = []
    hook = tiny_llama.model.register_forward_hook(lambda module, inputs, output: passes.append(1))
    together = evidence_of(tiny_llama, ids, tmp_path / "together", READERS, batch=5)
    hook.remove()
    assert len(passes) == 2
    assert set(READERS) == {"importance", "head_channels", "preactivations", "distances"}
    for name in READERS:
        alone = evidence_of(tiny_llama, ids, tmp_path / name, [name], batch=5).statistics[name]
        found = together.statistics[name]
        assert found.keys() == alone.keys()
        assert all(torch.equal(found[site].nan_to_num(), alone[site].nan_to_num()) for site in found)


@pytest.mark.parametrize("name", EVIDENCE)
def test_statistics_do_not_depend_on_batching(name, tiny_llama, ids, tmp_path):
    one, some, all_at_once = (
        evidence_of(tiny_llama, ids, tmp_path / str(b), [name], batch=b).statistics[name] for b in (1, 4, 10)
    )
    assert one.keys() == some.keys() == all_at_once.keys()
    for site in one:
        for other in (some, all_at_once):
            torch.testing.assert_close(one[site], other[site], rtol=1e-5, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("name", sorted(READERS))
def test_ranks_add_up(name, tiny_llama, ids):
    whole, first, second = (Calibrator(tiny_llama, [name], quietly) for _ in range(3))
    with torch.no_grad():
        whole.read({"input_ids": ids})
        first.read({"input_ids": ids[:4]})
        second.read({"input_ids": ids[4:]})
    sums = []
    second.add_up(lambda x: sums.append(x) or x)
    theirs = iter(sums)
    first.add_up(lambda x: x + next(theirs))
    found, expected = first.found()[name], whole.found()[name]
    assert next(theirs, None) is None
    for site in expected:
        torch.testing.assert_close(found[site], expected[site], rtol=1e-5, atol=1e-9, equal_nan=True)


def test_progress_counts_the_sequences_of_every_pass(tiny_llama, ids, tmp_path):
    heard = []
    paths = {name: tmp_path / name for name in ("importance", "distances", "removals")}
    assert measure(tiny_llama, Sequences(ids, 4), paths, CPU, heard.append) == 10
    assert heard == [4, 8, 10] * 2


def test_neurons_that_cannot_be_read_before_their_activation_are_a_readable_error(
    tiny_llama, ids, tmp_path, monkeypatch
):
    family = dataclasses.replace(model_family.FAMILIES["llama"], activation=None)
    monkeypatch.setitem(model_family.FAMILIES, "llama", family)
    with refuses("prune.width_criterion", "llama"):
        evidence_of(tiny_llama, ids, tmp_path, ["preactivations"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("importance", "activation 1.neuron"),
        ("head_channels", "activation 2.head_channel"),
        ("preactivations", "activation 2.preactivation"),
        ("distances", "layers"),
        ("removals", "loss"),
        ("gradients", "model.embed_tokens.weight"),
    ],
)
def test_what_is_no_number_is_named_and_not_written(name, what, tiny_llama, ids, tmp_path):
    with torch.no_grad():
        tiny_llama.model.layers[1].mlp.up_proj.weight[3] = float("inf")
    with refuses("teacher.model", what):
        evidence_of(tiny_llama, ids, tmp_path, [name])
    assert not list(tmp_path.iterdir())
