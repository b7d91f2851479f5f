"""From the section `prune` to a plan: required statistics, iterations, and refusals before any compute."""

from dataclasses import replace

import measured
import pytest
import torch
from refusals import refuses

from lit_prune.config import Prune
from lit_prune.models.shape import ModelShape, shape_of
from lit_prune.pruning import prune, surgery
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.prune import evidence_names, first_units, make_plan
from lit_prune.pruning.target import target, way_to

IDS = torch.randint(0, 256, (8, 24), generator=torch.Generator().manual_seed(3))
WHOLE = {"hidden_size": None, "intermediate_size": None, "num_attention_heads": None}


@pytest.fixture
def evidence_of(tmp_path):
    """A real calibration pass over random tokens; `measured` remembers what of which width was measured."""

    def evidence(model, names):
        evidence.measured.append((model.config.hidden_size, set(names)))
        return measured.evidence_of(model, IDS, tmp_path / str(len(evidence.measured)), names)

    evidence.measured = []
    return evidence


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"importance"}),
        (WHOLE, set()),
        ({"width_criterion": "magnitude"}, set()),
        ({"width_criterion": "activation_pre"}, {"importance", "preactivations"}),
        ({"width_criterion": "taylor"}, {"gradients"}),
        (WHOLE | {"num_hidden_layers": 2}, {"distances"}),
        (WHOLE | {"num_hidden_layers": 2, "layer_criterion": "perplexity"}, {"removals"}),
        (WHOLE | {"num_hidden_layers": 2, "layer_selection": "last"}, set()),
        (WHOLE | {"drop_layers": (1,)}, set()),
        ({"num_hidden_layers": 2}, {"importance", "distances"}),
        ({"init": "random"}, set()),
    ],
)
def test_only_what_the_cut_needs_is_measured(tiny_llama, evidence_of, options, names):
    student = Prune(**options)
    assert evidence_names(student, tiny_llama.config) == names
    if student.init == "teacher":
        make_plan(tiny_llama, student, evidence_of)
        assert evidence_of.measured == [(32, names)]


@pytest.mark.parametrize("layers", ["lowest_score", "contiguous", "last", "last_but_final"])
@pytest.mark.parametrize("criterion", ["influence", "angular", "angular_all", "perplexity", "random"])
def test_depth_and_width_in_one_plan(tiny_llama, evidence_of, criterion, layers):
    student = Prune(
        num_hidden_layers=1,
        layer_criterion=criterion,
        layer_selection=layers,
        hidden_size=0.5,
        intermediate_size=0.5,
        num_attention_heads=2,
    )
    plan = make_plan(tiny_llama, student, evidence_of)
    plan.check(tiny_llama.config)
    assert plan.kept == target(student, tiny_llama.config) == ModelShape(1, 16, 24, 2, 2)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert surgery.apply(tiny_llama, plan)(ids).logits.isfinite().all()


def test_the_block_whose_loss_is_least_goes(tiny_llama, evidence_of):
    """By hand: the model without each block, evaluated."""
    losses = []
    for drop in range(3):
        kept = tuple(i for i in range(3) if i != drop)
        plan = make_plan(tiny_llama, Prune(**WHOLE, drop_layers=(drop,)), evidence_of)
        assert tuple(block.index for block in plan.layers) == kept
        with torch.no_grad():
            losses.append(surgery.apply(tiny_llama, plan)(IDS, labels=IDS).loss.item())
    plan = make_plan(tiny_llama, Prune(**WHOLE, num_hidden_layers=2, layer_criterion="perplexity"), evidence_of)
    (gone,) = set(range(3)) - {block.index for block in plan.layers}
    assert gone == losses.index(min(losses))


def test_rounds_measure_again_on_what_is_left_and_end_at_the_target(tiny_llama, evidence_of):
    student = Prune(hidden_size=16, intermediate_size=None, num_attention_heads=None, num_iterations=4)
    assert [shape.hidden_size for shape in way_to(student, tiny_llama.config)] == [28, 24, 20, 16]
    plan = make_plan(tiny_llama, student, evidence_of)
    assert [hidden for hidden, _ in evidence_of.measured] == [32, 28, 24, 20]
    assert plan.kept == ModelShape(3, 16, 48, 4, 2)
    assert plan.original == shape_of(tiny_llama.config)
    plan.check(tiny_llama.config)


def test_one_round_after_another_is_one_plan(tiny_llama, evidence_of):
    student = Prune(hidden_size=24, intermediate_size=30, num_attention_heads=None, num_hidden_layers=2)
    first = make_plan(tiny_llama, student, evidence_of)
    smaller = surgery.apply(tiny_llama, first)
    second = make_plan(smaller, Prune(hidden_size=16, intermediate_size=20, num_attention_heads=2), evidence_of)
    twice, at_once = surgery.apply(smaller, second), surgery.apply(tiny_llama, second.after(first))
    for ours, theirs in zip(twice.parameters(), at_once.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_plan_can_be_carried_out_again_from_its_file(tiny_llama, evidence_of, tmp_path):
    plan = make_plan(tiny_llama, Prune(), evidence_of)
    plan.save(tmp_path / "plan.json")
    student = Prune(plan_path=str(tmp_path / "plan.json"))
    prune.check(student, tiny_llama.config)
    assert make_plan(tiny_llama, student, evidence_of) == plan
    assert len(evidence_of.measured) == 1


@pytest.mark.parametrize(("sign", "weight"), [("paper", 1.0), ("reversed_sign", -1.0)])
def test_the_residual_of_pruned_heads_goes_to_the_queries_of_kept_ones(tiny_llama, evidence_of, sign, weight):
    off = make_plan(tiny_llama, Prune(**WHOLE | {"num_attention_heads": 2}), evidence_of)
    plan = make_plan(tiny_llama, Prune(**WHOLE | {"num_attention_heads": 2}, head_merging=sign), evidence_of)
    before, after = (surgery.apply(tiny_llama, p) for p in (off, plan))
    queries = tiny_llama.model.layers[1].self_attn.q_proj.weight.view(4, 8, 32)
    block = plan.layers[1]
    assert block.heads == off.layers[1].heads
    for place, head in enumerate(block.heads):
        (other,) = {2 * (head // 2), 2 * (head // 2) + 1} - {head}
        expected = queries[head] + weight * (queries[head] - queries[other])
        found = after.model.layers[1].self_attn.q_proj.weight.view(2, 8, 32)[place]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    assert torch.equal(before.model.layers[1].self_attn.o_proj.weight, after.model.layers[1].self_attn.o_proj.weight)


def test_the_first_units_have_the_shape_asked_for(tiny_llama):
    shape = ModelShape(2, 16, 20, 2, 1)
    plan = first_units(tiny_llama.config, shape)
    plan.check(tiny_llama.config)
    assert plan.kept == shape


@pytest.mark.parametrize(
    ("options", "field", "values"),
    [
        ({"width_criterion": "influence"}, "prune.width_criterion", ("influence", "activation")),
        ({"num_hidden_layers": 2, "layer_criterion": "activation"}, "prune.layer_criterion", ("activation", "layer")),
        (
            {"num_hidden_layers": 2, "layer_selection": "contiguous", "layer_criterion": "magnitude"},
            "prune.layer_criterion",
            ("magnitude", "span"),
        ),
        ({"drop_layers": (3,)}, "prune.drop_layers", (3, "0 to 2")),
        ({"drop_layers": (1, 1)}, "prune.drop_layers", ()),
        ({"drop_layers": (0, 1, 2)}, "prune.drop_layers", ()),
        ({"drop_layers": (1,), "num_hidden_layers": 2}, "prune.drop_layers", ("prune.num_hidden_layers",)),
        ({"num_hidden_layers": 0}, "prune.num_hidden_layers", (0,)),
        ({"num_iterations": 2, "drop_layers": (1,)}, "prune.num_iterations", ()),
        ({"num_iterations": 2, "width_allocation": "global"}, "prune.num_iterations", ()),
        ({"num_iterations": 3, **WHOLE}, "prune.num_iterations", (3,)),
        ({"hidden_size": "auto"}, "prune.num_parameters", ("auto",)),
        ({"num_parameters": 0.5}, "prune.num_parameters", ("auto",)),
        (
            {"num_hidden_layers": "auto", "num_parameters": 0.01, **WHOLE},
            "prune.num_parameters",
            ("num_hidden_layers",),
        ),
        ({"num_key_value_heads": 1, "num_attention_heads": None, "head_merging": "paper"}, "prune.head_merging", ()),
        ({"num_key_value_heads": "auto"}, "prune.num_key_value_heads", ()),
        ({"num_key_value_heads": 1, "num_attention_heads": 3}, "prune.num_attention_heads", (3, 1, 2)),
        ({"num_iterations": 10**9}, "prune.num_iterations", (10**9,)),
        ({"init": "random", "width_allocation": "global"}, "prune.width_allocation", ("prune.init",)),
        ({"plan_path": "nowhere.json", "drop_layers": (1,)}, "prune.drop_layers", ("prune.plan_path",)),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tiny_llama, options, field, values):
    with refuses(field, *values):
        prune.check(Prune(**options), tiny_llama.config)


def test_blocks_with_as_many_heads_in_other_groups_can_be_cut(tiny_llama):
    whole = PrunePlan.everything(shape_of(tiny_llama.config))
    kept = ((0, 2), (2, 3), (0, 2))
    plan = replace(whole, layers=tuple(replace(b, heads=h) for b, h in zip(whole.layers, kept, strict=True)))
    with torch.no_grad():
        sliced, masked = (surgery.apply(tiny_llama, plan, mode)(IDS).logits for mode in ("slice", "mask"))
    torch.testing.assert_close(sliced, masked, rtol=0, atol=1e-5)


def test_a_file_that_is_no_plan_is_refused(tiny_llama, tmp_path):
    path = tmp_path / "plan.json"
    whole = PrunePlan.everything(shape_of(tiny_llama.config))
    whole.save(path)
    good = path.read_text()
    prune.check(Prune(plan_path=str(path)), tiny_llama.config)
    floats = good.replace('"hidden_size": 32', '"hidden_size": 32.0')
    unknown = good.replace('"heads":', '"mergs": [], "heads":')
    assert good not in (floats, unknown)
    for text in ("", "{}", '{"original": 3}', "[" * 100_000, floats, unknown):
        path.write_text(text)
        with refuses("plan", path):
            prune.check(Prune(plan_path=str(path)), tiny_llama.config)
    PrunePlan.everything(ModelShape(9, 9, 9, 9, 9)).save(path)
    with refuses("plan", ModelShape(9, 9, 9, 9, 9)):
        prune.check(Prune(plan_path=str(path)), tiny_llama.config)
