"""Cutting a model: nothing kept is changed, masking and slicing are one function, and stock loading is exact."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lit_prune.config import ConfigError, Student
from lit_prune.models.anatomy import FAMILIES, anatomy_of
from lit_prune.pruning import surgery
from lit_prune.pruning.allocate import uniform
from lit_prune.pruning.plan import PrunePlan
from lit_prune.pruning.shape import Shape, shape_of, target

SIZES = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip
WHOLE = Shape(48, 40, 6)
SMALL = Shape(36, 26, 4)
FAMILY = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama with biases": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"attention_bias": True}),
}
AXES = {"hidden": Shape(36, 40, 6), "neurons": Shape(48, 26, 6), "heads": Shape(48, 40, 4), "all": SMALL}


def new_model(name):
    """A random model whose norms, biases and weights are all far from their trivial values."""
    config, kind, extra = FAMILY[name]
    torch.manual_seed(0)
    model = kind(config(**SIZES, **extra)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def random_plan(shape, config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = shape_of(config)
    blocks = range(config.num_hidden_layers)
    scores = {
        "hidden": [torch.rand(sizes.hidden, generator=generator)],
        "neuron": [torch.rand(sizes.neurons, generator=generator) for _ in blocks],
        "head": [torch.rand(sizes.heads, generator=generator) for _ in blocks],
    }
    return uniform(scores, shape, config)


@pytest.fixture
def ids():
    return torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(1))


def logits(model, ids):
    with torch.no_grad():
        return model(ids).logits


def test_every_family_that_is_described_is_tested():
    assert {FAMILY[name][0].model_type for name in FAMILY} == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILY)
def test_keeping_everything_is_the_teacher_bit_for_bit(name, ids):
    model = new_model(name)
    whole = surgery.apply(model, random_plan(WHOLE, model.config))
    assert torch.equal(logits(whole, ids), logits(model, ids))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", FAMILY)
def test_mask_and_slice_give_the_same_logits(name, axis, ids):
    model = new_model(name).double()
    plan = random_plan(AXES[axis], model.config)
    sliced, masked = surgery.apply(model, plan), surgery.apply(model, plan, "mask")
    assert shape_of(sliced.config) == AXES[axis]
    assert shape_of(masked.config) == WHOLE
    assert not torch.allclose(logits(sliced, ids), logits(model, ids), atol=1e-2)
    # transformers' norms compute in float32 whatever the model is in; without the hidden axis they see the same input.
    tolerance = 1e-9 if axis in ("neurons", "heads") else 2e-5
    torch.testing.assert_close(logits(sliced, ids), logits(masked, ids), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FAMILY)
def test_what_is_saved_is_loaded_by_stock_transformers_and_generates_with_cache(name, ids, tmp_path):
    model = new_model(name)
    student = surgery.apply(model, random_plan(SMALL, model.config))
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert (logits(loaded, ids) - logits(student, ids)).abs().max() == 0.0
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cached = loaded.generate(ids, use_cache=True, **asked)
    assert torch.equal(cached, loaded.generate(ids, use_cache=False, **asked))
    assert cached.shape == (2, 25)


@pytest.mark.parametrize("name", FAMILY)
def test_surgery_leaves_the_teacher_and_the_random_state_alone(name, ids):
    model = new_model(name)
    before, state = logits(model, ids), torch.get_rng_state()
    for mode in ("slice", "mask"):
        surgery.apply(model, random_plan(SMALL, model.config), mode)
    assert torch.equal(logits(model, ids), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_implementation_dtype_and_head_width_are_kept():
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attn_implementation="eager")).to(torch.bfloat16)
    student = surgery.apply(model, random_plan(SMALL, model.config))
    assert student.config._attn_implementation == "eager"
    assert student.dtype == torch.bfloat16
    assert student.config.head_dim == 8


def test_heads_go_in_equal_number_from_every_group():
    plan = random_plan(SMALL, LlamaConfig(**SIZES))
    for heads in plan.heads:
        assert [sum(head // 3 == group for head in heads) for group in range(2)] == [2, 2]


def test_the_best_are_kept_and_ties_go_to_the_lower_index():
    scores = {
        "hidden": [torch.tensor([0.0, 5.0, 5.0, 5.0, 1.0, 9.0])],
        "neuron": [torch.tensor([1.0, 3.0, 2.0])],
        "head": [torch.tensor([1.0, 2.0, 9.0, 8.0])],
    }
    config = Qwen2Config(hidden_size=6, intermediate_size=3, num_attention_heads=4, num_key_value_heads=2, head_dim=2)
    plan = uniform(scores, Shape(3, 2, 2), config)
    assert (plan.hidden, plan.neurons, plan.heads) == ((1, 2, 5), ((1, 2),), ((1, 2),))


def test_a_plan_survives_the_disk_and_refuses_another_model(tmp_path):
    model = new_model("llama")
    plan = random_plan(SMALL, model.config)
    plan.save(tmp_path / "plan.json")
    assert PrunePlan.load(tmp_path / "plan.json") == plan
    with pytest.raises(ConfigError, match="the plan is for"):
        surgery.apply(surgery.apply(model, plan), plan)


LLAMA, QWEN = LlamaConfig(**SIZES), Qwen2Config(**SIZES)


@pytest.mark.parametrize(
    ("config", "asked", "shape"),
    [
        (LLAMA, {}, Shape(36, 28, 4)),
        (LLAMA, {"hidden": None, "neurons": None, "heads": None}, WHOLE),
        (LLAMA, {"hidden": 1.0, "neurons": 1.0, "heads": 1.0}, WHOLE),
        (LLAMA, {"hidden": 40, "neurons": 7, "heads": 4}, Shape(40, 7, 4)),
        (LLAMA, {"hidden": 0.45, "heads": 4}, Shape(20, 28, 4)),
        (QWEN, {"hidden": 41, "heads": 4}, Shape(41, 28, 4)),
        (LLAMA, {"hidden": 0.001, "neurons": 0.001, "heads": 0.001}, Shape(2, 1, 2)),
    ],
)
def test_a_size_is_a_share_a_count_or_everything(config, asked, shape):
    assert target(Student(**asked), config) == shape


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"hidden": 49}, "student.hidden: 49 asked for, the teacher has 48"),
        ({"neurons": 41}, "student.neurons: 41 asked for, the teacher has 40"),
        ({"neurons": 0}, "student.neurons: 0 asked for"),
        ({"heads": 5}, "student.heads: 5 is not .* nearest allowed are 4 and 6"),
        ({"hidden": 38, "heads": 4}, "student.hidden: 38 is not .* nearest allowed are 36 and 40"),
        ({"hidden": 1.5}, r"student.hidden: a share lies in \(0, 1\], not 1.5"),
        ({"hidden": 0.0}, r"student.hidden: a share lies in \(0, 1\], not 0.0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_what_can(asked, message):
    with pytest.raises(ConfigError, match=message):
        target(Student(**asked), LLAMA)


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'opt' is not supported; supported are llama"):
        anatomy_of(OPTConfig())
