"""FLOPs of a recipe equal torch's count of its forward and backward pass, whatever part of the student is trained.

torch counts masked positions of attention too, hence `causal=False`. The head and the losses see one token less than
there are in a sequence, as the last has no successor; `on_scored` is that share.
"""

import copy
import dataclasses
import functools
import importlib.util
import math

import pytest
import torch
from families import CASES, model_of, plan_for, token_ids
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_prune.config import Distill, Lora, Optimizer
from lit_prune.distill.cotrain import JointDistiller
from lit_prune.distill.flops import recipe_flops
from lit_prune.distill.module import Distiller
from lit_prune.distill.trainable import targets_of, trained_part
from lit_prune.models.flops import forward_flops, training_flops
from lit_prune.pruning.surgery import apply

ROWS, SEQ = 2, 17
NEEDS_PEFT = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")
PLAIN = Distill(seq_len=SEQ, kd_weight=0.0, ce_weight=1.0)
TAUGHT = Distill(seq_len=SEQ)


def added_in_place(shape, one, two, out_shape=None, **_):
    return 2 * math.prod(one) * two[-1]


COUNTER = {"display": False, "custom_mapping": {torch.ops.aten.addmm_: added_in_place}}


def counted(student, distill, teacher=None):
    """FLOPs of the forward and backward pass of a training step over [2, 17] tokens."""
    student, ids = copy.deepcopy(student), token_ids()
    kind = Distiller if distill.teacher_optimizer is None else JointDistiller
    module = kind(student, copy.deepcopy(teacher), distill)
    with trained_part(student, distill), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(**COUNTER) as found:
        module.training_step({"input_ids": ids, "labels": ids}, 0).backward()
    return found.get_total_flops()


def expected(student, distill, teacher=None, on_scored=0):
    """The same from configs; `on_scored` multiplications a token are with scored tokens alone."""
    configs = [None if model is None else copy.deepcopy(model.config) for model in (student, teacher)]
    for config in filter(None, configs):
        config.sliding_window = None  # the positions outside are computed and masked
    return ROWS * SEQ * recipe_flops(distill, *configs, causal=False) - ROWS * 2 * on_scored


def head(model):
    return model.config.vocab_size * model.config.hidden_size


@functools.cache
def student_of(name):
    """A student of half the layers; it is shared: leave it as it is."""
    return apply(model_of(name), plan_for(name, "all"))


# What is trained


@pytest.mark.parametrize("name", CASES)
def test_the_last_layer(name):
    student, distill = student_of(name), dataclasses.replace(PLAIN, train_last_layers=1)
    assert counted(student, distill) == expected(student, distill, on_scored=3 * head(student))


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "cohere", "olmo2"])
@pytest.mark.parametrize("last", [None, 2])
def test_all_layers(name, last):
    """The last two of two layers are all but the embedding, unless it is tied to the head."""
    student, distill = student_of(name), dataclasses.replace(PLAIN, train_last_layers=last)
    assert counted(student, distill) == expected(student, distill, on_scored=3 * head(student))


@NEEDS_PEFT
@pytest.mark.parametrize("name", CASES)
def test_adapters_of_all_linear_layers(name):
    student, distill = student_of(name), dataclasses.replace(PLAIN, lora=Lora(rank=3))
    assert counted(student, distill) == expected(student, distill, on_scored=2 * head(student))


@NEEDS_PEFT
@pytest.mark.parametrize("name", ["llama", "phi3", "olmo2", "gpt_neox", "phi", "gpt2", "opt"])
def test_adapters_of_one_linear_layer(name):
    """In the lowest layer nothing before the adapter has a gradient, and of attention only what leads to it."""
    student = student_of(name)
    for target in targets_of(student, Lora()):
        distill = dataclasses.replace(PLAIN, lora=Lora(rank=3, target_modules=(target,)))
        assert counted(student, distill) == expected(student, distill, on_scored=2 * head(student)), target


@NEEDS_PEFT
@pytest.mark.parametrize("part", [{"train_last_layers": 1}, {"lora": Lora(rank=2)}, {}])
def test_layers_that_differ_in_width(part):
    student, distill = apply(model_of("llama"), plan_for("llama", "uneven")), dataclasses.replace(PLAIN, **part)
    on_scored = (2 if "lora" in part else 3) * head(student)
    assert counted(student, distill) == expected(student, distill, on_scored=on_scored)


# The objective


STATES = {"match_embedding": True, "match_layer_output": ("0:0", "last:last"), "match_mlp_input": ("1:1",)}
"""Four states of students that have two layers and are narrower than their teachers."""

WITH_GRADIENT = {
    ("llama", "full"): 4, ("llama", "last"): 3, ("llama", "lora"): 3,  # the frozen embedding has none
    ("olmo2", "full"): 4, ("olmo2", "last"): 2, ("olmo2", "lora"): 3,  # no trained norm follows the frozen layer
    ("gemma2", "full"): 4, ("gemma2", "last"): 4, ("gemma2", "lora"): 3,  # the embedding is tied to the trained head
}  # fmt: skip
PARTS = {"full": {}, "last": {"train_last_layers": 1}, "lora": {"lora": Lora(rank=3)}}


@NEEDS_PEFT
@pytest.mark.parametrize(("name", "part"), WITH_GRADIENT)
def test_projected_states(name, part):
    teacher, student = model_of(name), student_of(name)
    distill = dataclasses.replace(TAUGHT, alpha=1.0, **STATES, **PARTS[part])
    projection = student.config.hidden_size * teacher.config.hidden_size * (2 * 4 + WITH_GRADIENT[name, part])
    heads = (2 if part == "lora" else 3) * head(student) + head(teacher)
    assert counted(student, distill, teacher) == expected(student, distill, teacher, heads + projection)


@NEEDS_PEFT
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox"])
@pytest.mark.parametrize("part", PARTS)
def test_relations(name, part):
    teacher, student = model_of(name), student_of(name)
    distill = dataclasses.replace(TAUGHT, alpha=1.0, match_attention=("0:0", "2:1"), relation_heads=2, **PARTS[part])
    heads = (2 if part == "lora" else 3) * head(student) + head(teacher)
    assert counted(student, distill, teacher) == expected(student, distill, teacher, heads)


def test_without_a_loss_of_logits_the_head_has_no_gradient():
    """The rest of the backward pass takes place: the logits are part of the graph, with the weight 0."""
    teacher, student = model_of("llama"), student_of("llama")
    distill = dataclasses.replace(TAUGHT, kd_weight=0.0, alpha=1.0, match_attention=("0:0",), relation_heads=2)
    assert counted(student, distill, teacher) == expected(student, distill, teacher, head(student) + head(teacher))


@pytest.mark.parametrize("last", [None, 1])
def test_a_teacher_trained_alongside(last):
    """It computes what it learns from and what it shows the student in two forward passes."""
    teacher, student = model_of("llama"), student_of("llama")
    distill = Distill(seq_len=SEQ, teacher_optimizer=Optimizer(), train_last_layers=last)
    heads = 3 * head(student) + 4 * head(teacher)
    assert counted(student, distill, teacher) == expected(student, distill, teacher, heads)


def test_a_teacher_that_the_objective_does_not_need_costs_nothing():
    teacher, student = model_of("llama").config, student_of("llama").config
    assert recipe_flops(PLAIN, student, teacher) == recipe_flops(PLAIN, student) == training_flops(student, SEQ)
    assert recipe_flops(TAUGHT, student, teacher) == training_flops(student, SEQ) + forward_flops(teacher, SEQ)
