"""Shapes: which are possible, how others are refused, and their number of parameters."""

import json
from dataclasses import replace

import pytest
import torch
from families import CASES, model_of, plan_for
from refusals import refuses
from shapes import GPT2, HELIUM, KEEP, LLAMA, MHA, NEOX, OPT, QWEN, WHOLE
from transformers import AutoConfig, LlamaConfig

from lit_prune.config import Prune
from lit_prune.models.loading import load_model
from lit_prune.models.shape import ModelShape, num_parameters, parameter_counter
from lit_prune.pruning import surgery
from lit_prune.pruning.target import target


@pytest.mark.parametrize(
    ("config", "options", "shape"),
    [
        (LLAMA, {}, ModelShape(3, 36, 28, 4, 2)),
        (LLAMA, vars(KEEP), WHOLE),
        (
            LLAMA,
            {
                "hidden_size": 1.0,
                "intermediate_size": 1.0,
                "num_attention_heads": 1.0,
                "num_hidden_layers": 1.0,
                "num_key_value_heads": 1.0,
            },
            WHOLE,
        ),
        (LLAMA, {"hidden_size": 40, "intermediate_size": 7, "num_attention_heads": 4}, ModelShape(3, 40, 7, 4, 2)),
        (LLAMA, {"hidden_size": 0.45, "num_attention_heads": 4}, ModelShape(3, 20, 28, 4, 2)),
        (QWEN, {"hidden_size": 41, "num_attention_heads": 4}, ModelShape(3, 41, 28, 4, 2)),
        (
            LLAMA,
            {
                "hidden_size": 0.001,
                "intermediate_size": 0.001,
                "num_attention_heads": 0.001,
                "num_hidden_layers": 0.001,
            },
            ModelShape(1, 2, 1, 2, 2),
        ),
        (QWEN, {"num_hidden_layers": 2}, ModelShape(2, 36, 28, 4, 2)),
        (QWEN, {"num_hidden_layers": 0.6}, ModelShape(2, 36, 28, 4, 2)),
        (QWEN, {"drop_layers": (0, 2)}, ModelShape(1, 36, 28, 4, 2)),
        (QWEN, {"num_key_value_heads": 1, "num_attention_heads": None}, ModelShape(3, 36, 28, 3, 1)),
        (QWEN, {"num_key_value_heads": 0.5, "num_attention_heads": 2}, ModelShape(3, 36, 28, 2, 1)),
        (
            QWEN,
            {"num_key_value_heads": 1, "num_attention_heads": 0.667},
            ModelShape(3, 36, 28, 3, 1),
        ),  # 4 of 6 heads, but the group has 3
        (QWEN, {"num_key_value_heads": 1, "num_attention_heads": 0.2}, ModelShape(3, 36, 28, 1, 1)),
        (MHA, {"hidden_size": None, "num_attention_heads": 0.5}, ModelShape(3, 48, 28, 3, 3)),
        (MHA, {"hidden_size": 1.0, "num_attention_heads": 5}, ModelShape(3, 45, 28, 5, 5)),  # 48 is not a multiple of 5
        (NEOX, {}, ModelShape(3, 16, 14, 4, 4)),  # 18 of 24 channels are 4.5 heads: to even
        (GPT2, {"hidden_size": None, "num_attention_heads": 5}, ModelShape(3, 20, 14, 5, 5)),
        (OPT, {"hidden_size": 8, "num_attention_heads": None}, ModelShape(3, 8, 14, 2, 2)),
        (OPT, {"hidden_size": 8, "num_attention_heads": 2}, ModelShape(3, 8, 14, 2, 2)),
        (OPT, {"hidden_size": None, "num_attention_heads": None}, ModelShape(3, 24, 14, 6, 6)),
        # 6 heads of 4 channels in 2 KV groups: the width is a multiple of 8, or of 4 where one group stays.
        (HELIUM, {}, ModelShape(3, 16, 14, 4, 2)),  # 18 of 24 channels
        (
            HELIUM,
            {"hidden_size": None, "num_attention_heads": None, "num_key_value_heads": 1},
            ModelShape(3, 12, 14, 3, 1),
        ),
        (HELIUM, {"hidden_size": 0.4, "num_key_value_heads": 1}, ModelShape(3, 8, 14, 2, 1)),  # 9.6 of 24 channels
        (HELIUM, {"hidden_size": 1.0, "num_key_value_heads": 1}, ModelShape(3, 12, 14, 3, 1)),
        (HELIUM, {"hidden_size": None, "num_attention_heads": 2}, ModelShape(3, 8, 14, 2, 2)),
    ],
)
def test_a_size_is_a_share_a_count_or_everything(config, options, shape):
    assert target(Prune(**options), config) == shape


@pytest.mark.parametrize(
    ("config", "options", "field", "values"),
    [
        (LLAMA, {"hidden_size": 49}, "hidden_size", (49, 48)),
        (LLAMA, {"intermediate_size": 41}, "intermediate_size", (41, 40)),
        (LLAMA, {"intermediate_size": 0}, "intermediate_size", (0,)),
        (LLAMA, {"num_hidden_layers": 4}, "num_hidden_layers", (4, 3)),
        (LLAMA, {"num_attention_heads": 5}, "num_attention_heads", (5, 4, 6)),
        (LLAMA, {"hidden_size": 38, "num_attention_heads": 4}, "hidden_size", (38, 36, 40)),
        (LLAMA, {"hidden_size": 1.5}, "hidden_size", ("(0, 1]", 1.5)),
        (LLAMA, {"hidden_size": 0.0}, "hidden_size", ("(0, 1]", 0.0)),
        (LLAMA, {"num_attention_heads": -0.5}, "num_attention_heads", ("(0, 1]", -0.5)),
        (LLAMA, {"num_key_value_heads": 3}, "num_key_value_heads", (3, 2)),
        (LLAMA, {"num_key_value_heads": 1, "num_attention_heads": 4}, "num_attention_heads", (4, 1, 3)),
        (MHA, {"num_key_value_heads": 3}, "num_key_value_heads", ()),
        (LLAMA, {"drop_layers": (3,)}, "drop_layers", (3, "0 to 2")),
        (LLAMA, {"drop_layers": (1, 1)}, "drop_layers", ()),
        (LLAMA, {"drop_layers": (0, 1, 2)}, "drop_layers", ()),
        (LLAMA, {"drop_layers": (0,), "num_hidden_layers": 2}, "drop_layers", ("prune.num_hidden_layers",)),
        (LLAMA, {"hidden_size": "auto"}, "num_parameters", ("auto",)),
        (LLAMA, {"num_parameters": 0.5}, "num_parameters", ("auto",)),
        (LLAMA, {"hidden_size": "auto", "num_parameters": 1.5}, "num_parameters", (1.5,)),
        (LLAMA, {"hidden_size": "auto", "num_parameters": 9}, "num_parameters", (9, "hidden_size")),
        (NEOX, {"hidden_size": 18}, "hidden_size", (18, 4, 16, 20)),
        (HELIUM, {"hidden_size": 12}, "hidden_size", (12, 2, 8, 16)),
        (HELIUM, {"hidden_size": 16, "num_key_value_heads": 1}, "hidden_size", ("<= 12", "got 16")),
        (NEOX, {"hidden_size": 16, "num_attention_heads": 3}, "num_attention_heads", (3, 16, 4)),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_what_can(config, options, field, values):
    with refuses(f"prune.{field}", *values):
        target(Prune(**options), config)


def parameters_by_hand(shape, vocab=96, head_dim=8):
    """Of an untied Llama."""
    attention = 2 * shape.hidden_size * head_dim * (shape.num_attention_heads + shape.num_key_value_heads)
    block = attention + 3 * shape.hidden_size * shape.intermediate_size + 2 * shape.hidden_size
    return shape.num_hidden_layers * block + 2 * vocab * shape.hidden_size + shape.hidden_size


def test_parameters_are_counted_as_by_hand():
    count = parameter_counter(LLAMA)
    for shape in (WHOLE, ModelShape(2, 40, 7, 4, 2), ModelShape(1, 6, 1, 3, 1)):
        assert count(shape) == parameters_by_hand(shape)
    assert num_parameters(LLAMA) == parameters_by_hand(WHOLE)


@pytest.mark.parametrize("kind", ["all", "num_key_value_heads"])
@pytest.mark.parametrize("name", CASES)
def test_parameters_are_counted_as_those_of_the_real_model(name, kind):
    model, plan = model_of(name), plan_for(name, kind)
    count = parameter_counter(model.config)
    assert count(plan.original) == model.num_parameters()
    assert count(plan.kept) == surgery.apply(model, plan).num_parameters()


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_auto_sizes_meet_a_number_of_parameters_as_closely_as_any_common_share(share):
    whole = parameters_by_hand(WHOLE)
    student = replace(KEEP, hidden_size="auto", intermediate_size="auto", num_parameters=share)
    found = target(student, LLAMA)
    assert (found.num_hidden_layers, found.num_attention_heads, found.num_key_value_heads) == (3, 6, 2)
    shares = [i / 5000 for i in range(1, 5001)]
    shapes = {target(replace(KEEP, hidden_size=s, intermediate_size=s), LLAMA) for s in shares}
    best = min(abs(parameters_by_hand(shape) - round(share * whole)) for shape in shapes)
    assert abs(parameters_by_hand(found) - round(share * whole)) == best


def test_a_number_of_parameters_is_a_count_or_a_share():
    whole = parameters_by_hand(WHOLE)
    student = replace(KEEP, intermediate_size="auto", num_parameters=whole * 3 // 4)
    assert target(student, LLAMA) == target(replace(student, num_parameters=(whole * 3 // 4) / whole), LLAMA)
    assert target(replace(student, num_parameters=whole), LLAMA) == WHOLE


def test_heads_that_do_not_divide_the_hidden_channels_are_named_and_mistral_carries_them(tmp_path, tiny_llama):
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=8, head_dim=8,
    )  # fmt: skip
    with refuses("prune.num_attention_heads", "got 6", "1, 2, 4, 8", "mistral"):
        target(Prune(hidden_size=None, intermediate_size=None, num_attention_heads=6), config)
    tiny_llama.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    carrier = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | carrier))
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.equal(load_model(str(tmp_path))(ids).logits, tiny_llama(ids).logits)
    as_mistral = AutoConfig.for_model("mistral", **{name: getattr(config, name) for name in SIZES})
    assert (
        target(Prune(hidden_size=None, intermediate_size=None, num_attention_heads=6), as_mistral).num_attention_heads
        == 6
    )


@pytest.mark.parametrize(("share", "groups"), [(0.9, 4), (0.75, 2), (0.5, 2), (0.3, 1)])
def test_a_share_of_kv_groups_is_rounded_to_heads_that_divide_the_hidden_channels(share, groups):
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=4, head_dim=8,
    )  # fmt: skip
    whole = dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads"))
    shape = target(Prune(**whole, num_key_value_heads=share), config)
    assert (shape.num_attention_heads, shape.num_key_value_heads) == (2 * groups, groups)
    with refuses("prune.num_attention_heads", "got 6", "1, 2, 4, 8"):
        target(Prune(**whole, num_key_value_heads=3), config)


SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim",
)  # fmt: skip
