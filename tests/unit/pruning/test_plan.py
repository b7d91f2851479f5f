"""Plans: kept indices, refusals, and the composition of iterations."""

import json
from dataclasses import replace

import pytest
import torch
from families import config_of, logits, model_of, plan_for
from refusals import refuses
from shapes import GPT2, LLAMA, MHA, NEOX, OPT, WHOLE

from lit_prune.models.shape import ModelShape, shape_of
from lit_prune.pruning import surgery
from lit_prune.pruning.plan import LayerPlan, Merge, PrunePlan

# Plans on disk


def test_a_plan_survives_the_disk_and_can_be_read_by_eye(tmp_path):
    plan = plan_for("llama", "all")
    first = replace(plan.layers[0], merges=(Merge(1, 5, -0.5), Merge(2, 4, 1.0)))
    plan = replace(plan, layers=(first, *plan.layers[1:]))
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json") == plan
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert f'"hidden": {list(plan.hidden)},' in lines
    assert f'  "neurons": {list(plan.layers[1].neurons)},' in lines
    assert json.loads("\n".join(lines))["layers"][0]["merges"] == [[1, 5, -0.5], [2, 4, 1.0]]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"original": {"hidden": 3}, "hidden": [], "layers": []}',
        '{"original": {"layers": 1, "hidden": 1, "neurons": 1, "heads": 1, "kv_groups": 1}, "hidden": [0], '
        '"layers": [{"index": 0, "neurons": [0], "heads": [0], "merges": [[0]]}]}',
    ],
)  # fmt: skip
def test_a_file_that_is_no_plan_is_refused_in_a_line(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with refuses("plan", path):
        PrunePlan.load(path)


def test_a_plan_with_former_names_is_read(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(
        '{"original": {"layers": 1, "hidden": 2, "neurons": 3, "heads": 1, "kv_groups": 1}, "hidden": [1], '
        '"blocks": [{"index": 0, "neurons": [0, 2], "heads": [0]}]}'
    )
    assert PrunePlan.load(path) == PrunePlan(ModelShape(1, 2, 3, 1, 1), (1,), (LayerPlan(0, (0, 2), (0,)),))


def test_a_missing_file_is_no_plan(tmp_path):
    with refuses("plan", tmp_path / "none.json"):
        PrunePlan.load(tmp_path / "none.json")


# What a plan leaves


def test_the_plan_of_everything_keeps_everything():
    plan = PrunePlan.everything(WHOLE)
    plan.check(LLAMA)
    assert plan.kept == WHOLE
    assert plan.uniform
    assert plan.layers[2] == LayerPlan(2, tuple(range(40)), tuple(range(6)))


def test_blocks_that_differ_leave_the_smallest_uniform_shape_that_holds_each():
    blocks = (LayerPlan(0, (0, 1, 2), (3, 4, 5)), LayerPlan(2, (7, 8), (0, 2, 3, 5)))
    plan = PrunePlan(WHOLE, (4, 5, 6, 7, 8, 9), blocks)
    assert [plan.groups_of(block) for block in blocks] == [(1,), (0, 1)]
    assert plan.shape_of_layer(blocks[0]) == ModelShape(2, 6, 3, 3, 1)
    assert plan.shape_of_layer(blocks[1]) == ModelShape(2, 6, 2, 4, 2)
    assert not plan.uniform
    assert plan.kept == ModelShape(2, 6, 3, 6, 2)  # 2 groups of 3 heads


def test_entries_of_a_dimension_that_holds_several_axes_end_to_end():
    plan = PrunePlan(ModelShape(1, 4, 3, 4, 2), (0, 1, 2, 3), (LayerPlan(0, (0, 2), (2, 3)),))
    axes, block = (("head", "kv_group", "kv_group"), "hidden"), plan.layers[0]
    # Two entries a unit: 4 query heads are 0 to 7, keys of 2 groups 8 to 11, values 12 to 15.
    found = plan.entries(axes, (16, 4), block)
    assert {dim: entries.tolist() for dim, entries in found.items()} == {0: [4, 5, 6, 7, 10, 11, 14, 15]}
    found = plan.entries((("neuron", "neuron"), None), (6, 9), block)
    assert {dim: entries.tolist() for dim, entries in found.items()} == {0: [0, 2, 3, 5]}


# Rounds


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi", "gpt2"])
def test_two_rounds_are_the_one_plan_they_compose_to(name):
    model, first = model_of(name), plan_for(name, "all")
    between = surgery.apply(model, first)
    whole = PrunePlan.everything(shape_of(between.config))
    heads = (1, 3) if first.kept.num_key_value_heads in (2, 4) else (1,)
    hidden = tuple(range(2, 2 + (8 if name == "gpt2" else 20)))
    second = PrunePlan(whole.original, hidden, (LayerPlan(1, (0, 4, 12), heads),))
    composed = second.after(first)
    assert composed.original == shape_of(model.config)
    assert [block.index for block in composed.layers] == [2]
    assert composed.layers[0].neurons == tuple(first.layers[1].neurons[i] for i in (0, 4, 12))
    at_once = logits(surgery.apply(model, composed))
    torch.testing.assert_close(at_once, logits(surgery.apply(between, second)), rtol=0, atol=1e-5)
    assert PrunePlan.everything(first.kept).after(first) == first
    assert first.after(PrunePlan.everything(first.original)) == first


def test_merges_of_two_rounds_compose_and_those_without_effect_go():
    model = model_of("llama, MHA")
    whole = PrunePlan.everything(shape_of(model.config))

    def plan(of, heads, merges):
        return PrunePlan(of.original, of.hidden, (replace(of.layers[0], heads=heads, merges=merges),))

    # Round 1 merges 3 into 1, 5 into 2, 4 into 0; round 2 prunes 1 and 2, the heads it knows as 1 and 2, 1 into 0.
    first = plan(whole, (0, 1, 2), (Merge(1, 3, 1.0), Merge(2, 5, 1.0), Merge(0, 4, 1.0)))
    between = surgery.apply(model, first)
    second = plan(PrunePlan.everything(shape_of(between.config)), (0,), (Merge(0, 1, 1.0),))
    composed = second.after(first)
    composed.check(model.config)
    assert composed.layers[0].merges == (Merge(1, 3, 1.0), Merge(0, 4, 1.0), Merge(0, 1, 1.0))
    at_once, in_turn = surgery.apply(model, composed), surgery.apply(between, second)
    torch.testing.assert_close(logits(at_once), logits(in_turn), rtol=0, atol=1e-5)


def test_a_plan_cannot_follow_one_that_leaves_another_shape_or_blocks_that_differ():
    plan = PrunePlan.everything(WHOLE)
    with refuses("plan", WHOLE, plan_for("llama", "all").kept):
        plan.after(plan_for("llama", "all"))
    uneven = PrunePlan(WHOLE, plan.hidden, (plan.layers[0], replace(plan.layers[1], neurons=(0,)), plan.layers[2]))
    with refuses("plan", WHOLE):
        plan.after(uneven)


# Refusals


def with_block(**changes):
    plan = PrunePlan.everything(WHOLE)
    return replace(plan, layers=(plan.layers[0], replace(plan.layers[1], **changes), plan.layers[2]))


def merging(*merges, heads=(0, 1, 3, 4)):
    return with_block(heads=heads, merges=tuple(Merge(*merge) for merge in merges))


EVERYTHING = PrunePlan.everything(WHOLE)


@pytest.mark.parametrize(
    ("plan", "values"),
    [
        (PrunePlan.everything(replace(WHOLE, intermediate_size=41)), (40, 41)),
        (replace(EVERYTHING, hidden=()), ("hidden",)),
        (replace(EVERYTHING, hidden=(0, 48)), ("hidden", 48, "0 to 47")),
        (replace(EVERYTHING, hidden=(-1, 0)), ("hidden", -1)),
        (replace(EVERYTHING, hidden=(0, 1.0)), ("hidden", 1.0)),
        (replace(EVERYTHING, hidden=(1, 0)), ("hidden", "ascend")),
        (replace(EVERYTHING, hidden=(3, 3)), ("hidden", "twice")),
        (replace(EVERYTHING, hidden=tuple(range(40))), (40, 6)),
        (replace(EVERYTHING, layers=()), ("layers",)),
        (replace(EVERYTHING, layers=EVERYTHING.layers[:1] * 2), ("layers", "twice")),
        (with_block(index=3), ("layers", 3, "0 to 2")),
        (with_block(neurons=(), heads=()), ("layer 1", "neurons or heads")),
        (with_block(neurons=(40,)), ("neurons of layer 1", 40, "0 to 39")),
        (with_block(heads=(0, 0)), ("heads of layer 1", "ascend")),
        (with_block(heads=(0, 1, 3)), ("heads of layer 1", {0: 2, 1: 1})),
        (merging((0, 6, 1.0)), ("merges of layer 1", 6, "0 to 5")),
        (merging((-1, 2, 1.0)), ("merges of layer 1", -1)),
        (merging((0, [2], 1.0)), ("merges of layer 1", [2])),
        (merging((0, 1, 1.0)), ("merges of layer 1", "head 1")),
        (merging((0, 5, 1.0)), ("merges of layer 1", 0, 5)),
        (merging((2, 2, 1.0)), ("merges of layer 1",)),
        (merging((0, 2, "1")), ("merges of layer 1", "weight")),
        (merging((0, 2, float("nan"))), ("merges of layer 1", "nan")),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused_in_a_line(plan, values):
    with refuses("plan", *values):
        plan.check(LLAMA)


def test_groups_and_merges_that_can_be_carried_out_are_not_refused():
    with_block(heads=(3, 4, 5)).check(LLAMA)
    merging((0, 2, 1.0), (4, 5, -1)).check(LLAMA)
    whole = PrunePlan.everything(shape_of(MHA))
    replace(whole, layers=(LayerPlan(0, (0,), (0, 1), (Merge(0, 5, 1.0),)),)).check(MHA)


@pytest.mark.parametrize("config", [NEOX, GPT2, OPT])
def test_heads_that_must_be_as_wide_as_the_stream_are(config):
    whole = PrunePlan.everything(shape_of(config))
    with refuses("plan", "layer 0", 6, 20, 4):
        replace(whole, hidden=tuple(range(20))).check(config)
    blocks = tuple(replace(block, heads=(0, 1, 2, 3, 5)) for block in whole.layers)
    replace(whole, hidden=tuple(range(20)), layers=blocks).check(config)


@pytest.mark.parametrize("name", ["phi3", "gpt2", "gpt_neox"])
def test_fused_queries_cannot_be_merged(name):
    config = config_of(name)
    whole = PrunePlan.everything(shape_of(config))
    block = replace(whole.layers[0], heads=(0, 1, 3, 4), merges=(Merge(0, 2, 1.0),))
    hidden = whole.hidden if name == "phi3" else whole.hidden[:16]
    with refuses("plan", "merges of layer 0"):
        PrunePlan(whole.original, hidden, (block,)).check(config)


def test_where_heads_are_as_wide_as_the_stream_all_layers_keep_equally_many_kv_groups():
    """2 heads in one group and 2 in two are equally wide, but no uniform model holds both."""
    config = config_of("helium")
    heads = ((0, 1), (0, 3), (0, 3))
    blocks = tuple(LayerPlan(i, tuple(range(20)), kept) for i, kept in enumerate(heads))
    with refuses("plan", "helium"):
        PrunePlan(shape_of(config), tuple(range(8)), blocks).check(config)


def test_a_plan_with_the_former_names_of_sizes_is_read(tmp_path):
    plan = PrunePlan.everything(shape_of(config_of("llama")))
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    for former, name in (
        ("layers", "num_hidden_layers"),
        ("hidden", "hidden_size"),
        ("kv_groups", "num_key_value_heads"),
    ):
        assert f'"{name}"' in text
        text = text.replace(f'"{name}"', f'"{former}"')
    (tmp_path / "former.json").write_text(text)
    assert PrunePlan.load(tmp_path / "former.json") == plan
