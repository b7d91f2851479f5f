"""Criteria: the contract of each, and its scores of units with known importance."""

import copy
import dataclasses
import itertools

import pytest
import torch
from families import CASES, model_of
from measured import evidence_of
from refusals import refuses

from lit_prune.config import EVIDENCE, Prune
from lit_prune.importance.aggregate import STATISTICS
from lit_prune.importance.criteria import DEPTH, WIDTH, CalibrationStats, Criterion, check_axes, criteria, criterion
from lit_prune.models.model_family import anatomy_of, parts_of
from lit_prune.models.shape import shape_of

NINE = list(itertools.product(STATISTICS, STATISTICS))
ACTIVATION = ["activation", "activation_pre", "activation_modelopt"]


@pytest.fixture
def ids():
    return torch.randint(0, 200, (10, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All evidence about one model."""
    ids = torch.randint(3, 96, (6, 17), generator=torch.Generator().manual_seed(4))
    return evidence_of(model_of("llama"), ids, tmp_path_factory.mktemp("everything"))


def units_of(model):
    """Axis -> units in each of its tensors."""
    whole = shape_of(model.config)
    return {
        "neuron": [whole.intermediate_size] * whole.num_hidden_layers,
        "head": [whole.num_attention_heads] * whole.num_hidden_layers,
        "hidden": [whole.hidden_size],
        "layer": [whole.num_hidden_layers],
        "span": [whole.num_hidden_layers - i for i in range(whole.num_hidden_layers)],
    }


@pytest.mark.parametrize("name", list(criteria))
def test_a_criterion_scores_every_unit_of_its_axes_from_the_evidence_it_names(name, everything):
    criterion = criteria[name]
    evidence = dataclasses.replace(everything, statistics={n: everything.statistics[n] for n in criterion.needs})
    first, again = (criterion.score(evidence, Prune(width_criterion=name)) for _ in range(2))
    assert criterion.axes
    assert first.keys() == set(criterion.axes) <= {*WIDTH, *DEPTH}
    assert {axis: [len(s) for s in scores] for axis, scores in first.items()} == {
        axis: units_of(everything.model)[axis] for axis in criterion.axes
    }
    for axis, scores in first.items():
        for score, same in zip(scores, again[axis], strict=True):
            assert torch.isfinite(score).all()
            assert torch.equal(score, same)
            assert len(score) == 1 or score.unique().numel() > 1
    if "span" in criterion.axes and name != "random":
        assert torch.equal(first["span"][0], first["layer"][0])


@pytest.mark.parametrize("case", CASES)
def test_the_width_of_every_family_is_scored(case, tmp_path):
    model, ids = model_of(case), torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(7))
    evidence = evidence_of(model, ids, tmp_path, {*EVIDENCE} - {"removals", "distances"})
    for name in criteria:
        wanted = [axis for axis in criteria[name].axes if axis in WIDTH]
        scores = criteria[name].score(evidence, Prune()) if wanted else {}
        assert [[len(s) for s in scores[axis]] for axis in wanted] == [units_of(model)[axis] for axis in wanted]


@pytest.mark.parametrize(("batch", "seq"), NINE)
@pytest.mark.parametrize("name", ACTIVATION)
def test_silent_units_score_lowest(name, batch, seq, silent):
    scores = criteria[name].score(silent, Prune(batch_aggregation=batch, seq_aggregation=seq))
    for neurons in scores["neuron"]:
        assert set(neurons.argsort()[:2].tolist()) == {2, 5}
    assert scores["hidden"][0].argmin() == 7
    assert set(scores["head"][0].argsort()[:3].tolist()) == {0, 1, 2}


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """Evidence about a model with silent neurons 2 and 5, hidden channel 7, and heads 0 to 2 of the first block."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(model_of("llama").config).eval()
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.gate_proj.weight[[2, 5]] = block.mlp.up_proj.weight[[2, 5]] = 0
            block.input_layernorm.weight[7] = block.post_attention_layernorm.weight[7] = 0
        model.model.layers[0].self_attn.v_proj.weight[: model.config.head_dim] = 0  # of the KV group of heads 0 to 2
    ids = torch.randint(3, 96, (5, 16), generator=torch.Generator().manual_seed(5))
    return evidence_of(model, ids, tmp_path_factory.mktemp("silent"), EVIDENCE[:3])


def permute(model, axis, order):
    """Change the order of the units of an axis everywhere, in place: another model that computes the same."""
    whole = shape_of(model.config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for dim, part in enumerate(anatomy_of(model.config).axes_of(name)):
                if parts_of(part) == (axis,):
                    units = parameter.unflatten(dim, (whole.units(axis), -1))
                    parameter.copy_(units.index_select(dim, order).flatten(dim, dim + 1))


@pytest.mark.parametrize(
    ("axis", "order"),
    [
        ("neuron", torch.randperm(48, generator=torch.Generator().manual_seed(5))),
        ("hidden", torch.randperm(32, generator=torch.Generator().manual_seed(6))),
        ("head", torch.tensor([1, 0, 3, 2])),  # inside the KV groups
    ],
)
def test_permuting_units_permutes_their_scores(axis, order, tiny_llama, ids, tmp_path):
    scoring = [name for name in criteria if axis in criteria[name].axes and name != "random"]
    width = {*ACTIVATION, "magnitude", "taylor", "taylor_vector", "taylor_fisher"}
    more = {"neuron": {"wanda_sp", "relative_activation"}, "head": {"wanda_sp"}, "hidden": set()}
    assert set(scoring) == width | more[axis]
    needed = {*EVIDENCE} - {"removals", "distances"}
    before = evidence_of(tiny_llama, ids, tmp_path / "before", needed)
    expected = {name: criteria[name].score(before, Prune())[axis] for name in scoring}
    permute(tiny_llama, axis, order)
    after = evidence_of(tiny_llama, ids, tmp_path / "after", needed)
    for name in scoring:
        for found, old in zip(criteria[name].score(after, Prune())[axis], expected[name], strict=True):
            torch.testing.assert_close(found, old[order], rtol=2e-4, atol=1e-9)
            assert not torch.allclose(found, old, rtol=2e-4)


def test_the_head_order_of_modelopt_aggregates_channels_first(tiny_llama, ids, tmp_path):
    seen = []
    hook = tiny_llama.model.layers[2].self_attn.o_proj.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    with torch.no_grad():
        tiny_llama(ids)
    hook.remove()
    evidence = evidence_of(tiny_llama, ids, tmp_path, ["importance", "head_channels"])
    found = {name: criteria[name].score(evidence, Prune()) for name in ("activation", "activation_modelopt")}
    # L2 over sequences of the mean |x| of each channel; then L2 over the 8 channels of each of the 4 heads.
    channels = seen[0].double().abs().mean(1).square().sum(0).sqrt()
    torch.testing.assert_close(found["activation_modelopt"]["head"][2], channels.view(4, 8).norm(dim=1))
    assert not torch.allclose(found["activation"]["head"][2], found["activation_modelopt"]["head"][2], rtol=0.01)
    for axis in ("neuron", "hidden"):
        for one, other in zip(*(scores[axis] for scores in found.values()), strict=True):
            assert torch.equal(one, other)


def magnitudes_of(model):
    return criteria["magnitude"].score(
        CalibrationStats(model, {}, 0, 0, lambda length: pytest.fail("measured")), Prune()
    )


def test_magnitude_is_the_norm_of_all_the_weights_of_a_unit(tiny_llama):
    scores, layer = magnitudes_of(tiny_llama), tiny_llama.model.layers[2]
    attention, mlp = layer.self_attn, layer.mlp
    parts = {
        "neuron": [mlp.gate_proj.weight[4], mlp.up_proj.weight[4], mlp.down_proj.weight[:, 4]],
        "head": [attention.q_proj.weight[24:], attention.o_proj.weight[:, 24:]],  # head 3: its keys serve head 2 too
        "layer": list(layer.parameters()),
        "hidden": [
            p[:, 9] if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight")) else
            p[:, 9] if name.endswith(("up_proj.weight", "embed_tokens.weight", "lm_head.weight")) else p[9]
            for name, p in tiny_llama.named_parameters()
        ],
    }  # fmt: skip
    expected = {axis: sum(w.square().sum().item() for w in weights) ** 0.5 for axis, weights in parts.items()}
    assert scores["neuron"][2][4].item() == pytest.approx(expected["neuron"], rel=1e-6)
    assert scores["head"][2][3].item() == pytest.approx(expected["head"], rel=1e-6)
    assert scores["layer"][0][2].item() == pytest.approx(expected["layer"], rel=1e-6)
    assert scores["hidden"][0][9].item() == pytest.approx(expected["hidden"], rel=1e-6)


def test_fused_weights_belong_to_the_units_of_their_part():
    layer = (model := model_of("phi3")).model.layers[1]  # 6 heads and 2 groups of 4, then 20 gates and 20 neurons
    scores = magnitudes_of(model)
    neuron = [*layer.mlp.gate_up_proj.weight[[3, 23]], layer.mlp.down_proj.weight[:, 3]]
    head = [layer.self_attn.qkv_proj.weight[8:12], layer.self_attn.o_proj.weight[:, 8:12]]
    for axis, unit, weights in (("neuron", 3, neuron), ("head", 2, head)):
        expected = sum(w.square().sum().item() for w in weights) ** 0.5
        assert scores[axis][1][unit].item() == pytest.approx(expected, rel=1e-6)


def test_a_head_with_keys_and_values_of_its_own_has_their_weights_too():
    scores = {case: magnitudes_of(model_of(case))["head"][0][2].item() for case in ("llama, MHA", "gpt2", "gpt_neox")}
    llama = model_of("llama, MHA").model.layers[0].self_attn
    gpt2 = model_of("gpt2").transformer.h[0].attn
    neox = model_of("gpt_neox").gpt_neox.layers[0].attention
    third = slice(8, 12)  # of heads of width 4
    weights = {
        "llama, MHA": [getattr(llama, p).weight[third] for p in ("q_proj", "k_proj", "v_proj")]
        + [llama.o_proj.weight[:, third]],
        # Conv1D: [in, out]; queries, keys and values of 24 channels each lie end to end.
        "gpt2": [
            p[..., start + 8 : start + 12] for p in (gpt2.c_attn.weight, gpt2.c_attn.bias) for start in (0, 24, 48)
        ]
        + [gpt2.c_proj.weight[third]],
        # Queries, keys and values of a head lie together.
        "gpt_neox": [neox.query_key_value.weight[24:36], neox.query_key_value.bias[24:36], neox.dense.weight[:, third]],
    }
    for case, parts in weights.items():
        assert scores[case] == pytest.approx(sum(w.square().sum().item() for w in parts) ** 0.5, rel=1e-6), case


def test_random_scores_are_those_of_their_seed(everything):
    def scores(seed):
        found = criteria["random"].score(dataclasses.replace(everything, statistics={}, seed=seed), Prune())
        return torch.cat([s for tensors in found.values() for s in tensors])

    assert torch.equal(scores(1), scores(1))
    assert not (scores(1) == scores(2)).any()
    assert scores(1).unique().numel() == len(scores(1))


def test_scores_that_are_no_numbers_are_named(everything):
    spoilt = dict(everything.statistics["importance"])
    spoilt["2.neuron"] = spoilt["2.neuron"].clone()
    spoilt["2.neuron"][0, 0, 5] = float("nan")
    spoilt["2.neuron"][1, 0, 5] = float("inf")
    evidence = dataclasses.replace(everything, statistics={"importance": spoilt})
    for batch in STATISTICS:
        with refuses("", "'activation'", "neuron", "layer 2"):
            criteria["activation"].score(evidence, Prune(batch_aggregation=batch, seq_aggregation="mean"))


def test_an_axis_a_criterion_does_not_score_names_those_that_do():
    check_axes("activation", {"neuron", "head", "hidden"})
    check_axes("perplexity", ["layer", "span"])
    check_axes("magnitude", [])
    able = "activation, activation_modelopt, activation_pre, magnitude, random, relative_activation, taylor, "
    able += "taylor_fisher, taylor_vector"
    with refuses("criterion", "'influence'", "neuron", able):
        check_axes("influence", {"layer", "neuron"})
    with refuses("criterion", "'taylor'", "span", "angular, angular_all, influence"):
        check_axes("taylor", {"span"})
    with refuses("axis", "'neurons'", "'neuron'"):
        check_axes("activation", {"neurons"})
    with refuses("criterion", "'activations'", "'activation'"):
        check_axes("activations", {"neuron"})


def test_a_criterion_is_registered_by_its_function(everything, monkeypatch):
    monkeypatch.setattr(criteria, "_parts", dict(criteria._parts))

    @criterion("inverse_activation", axes=("neuron",), needs=("importance",))
    def inverse_activation(evidence, student):
        return {"neuron": [-units for units in criteria["activation"].score(evidence, student)["neuron"]]}

    made = criteria["inverse_activation"]
    assert made == Criterion("inverse_activation", ("neuron",), ("importance",), inverse_activation)
    ordinary = criteria["activation"].score(everything, Prune())["neuron"]
    for found, units in zip(made.score(everything, Prune())["neuron"], ordinary, strict=True):
        assert found.argmin() == units.argmax()
    with pytest.raises(ValueError, match="inverse_activation"):
        criterion("inverse_activation", axes=("neuron",))(inverse_activation)
    for wrong, named in (
        ({"axes": ("neurons",)}, "neurons"),
        ({"axes": ("neuron",), "needs": ("moments",)}, "moments"),
    ):
        with pytest.raises(ValueError, match=named):
            criterion("another", **wrong)


def test_wanda_scores_summed_over_units_are_those_computed_from_inputs(ids, tmp_path):
    model, seen = copy.deepcopy(model_of("llama")).double(), {}
    for i, layer in enumerate(model.model.layers):
        for name, module in (("neuron", layer.mlp.down_proj), ("head", layer.self_attn.o_proj)):
            module.register_forward_pre_hook(
                lambda module, inputs, key=(i, name): seen.update({key: inputs[0].detach().flatten(0, 1)})
            )
    with torch.no_grad():
        model(ids % 96)
    found = criteria["wanda_sp"].score(
        evidence_of(model_of("llama"), ids % 96, tmp_path, criteria["wanda_sp"].needs), Prune()
    )
    for i, layer in enumerate(model.model.layers):
        down = (layer.mlp.down_proj.weight.detach().abs() * seen[i, "neuron"].norm(dim=0)).sum(0)
        torch.testing.assert_close(found["neuron"][i], down, rtol=1e-4, atol=0)
        output = (layer.self_attn.o_proj.weight.detach().abs() * seen[i, "head"].norm(dim=0)).sum(0)
        heads = output.view(model.config.num_attention_heads, -1).sum(1)
        torch.testing.assert_close(found["head"][i], heads, rtol=1e-4, atol=0)
