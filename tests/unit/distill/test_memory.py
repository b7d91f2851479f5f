"""The planned memory is that of a real training: weights, gradients and optimizer to the byte, activations about."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import lightning as L
import pytest
import torch
from distilled import llama
from trained import RECIPE, run, small_student, small_teacher

from lit_prune.config import Distill, Evaluation, Lora, Optimizer
from lit_prune.distill.memory import PERSISTENT, num_trained, peak, training_memory
from lit_prune.distill.module import Distiller
from lit_prune.evaluate.memory import bytes_of_weights, peak_of
from lit_prune.models.checkpointed import checkpointed_layers


class Measured(L.Callback):
    """The bytes that a training holds at its last step."""

    def on_before_zero_grad(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.projection = bytes_of_weights(module.projection)
        self.weights = bytes_of_weights(module.student)
        self.buffers = sum(b.nbytes for b in module.student.buffers())
        states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
        self.moments = sum(value.nbytes for value in states)


RECIPES = {
    "L_is with a projection": RECIPE,
    "LoRA": dataclasses.replace(RECIPE, lora=Lora(rank=2)),
    "last layers": dataclasses.replace(RECIPE, train_last_layers=1, alpha=0.0, match_embedding=False,
                                       match_mlp_input=(), match_layer_output=()),
    "SGD": dataclasses.replace(RECIPE, optimizer=Optimizer(algorithm="sgd", beta1=0.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_weights_and_optimizer_are_counted_to_the_byte(text_tokens, tmp_path, name):
    recipe, measured = dataclasses.replace(RECIPES[name], max_steps=2), Measured()
    run(text_tokens, tmp_path, recipe=recipe, callbacks=[measured])
    configs = small_student().config, small_teacher().config
    parts = training_memory(recipe, *configs, Evaluation(), micro_batch=4)
    trained = sum(p.numel() for p in measured.trained)
    assert num_trained(recipe, *configs) == trained
    assert parts["student weights"] == measured.weights - measured.buffers
    assert parts["gradients"] == 4 * trained
    assert parts["optimizer"] == measured.moments
    assert parts["teacher weights"] == sum(p.nbytes for p in small_teacher().parameters())


def test_a_ratio_keeps_one_more_gradient_if_a_step_is_cut():
    configs = small_student().config, small_teacher().config
    trained = 4 * num_trained(RECIPE, *configs)  # alpha is dynamic
    for micro_batch, devices, copies in ((4, 1, 1), (2, 1, 2), (2, 2, 2)):
        found = training_memory(RECIPE, *configs, Evaluation(), micro_batch=micro_batch, devices=devices)
        assert found["gradients"] == copies * trained
    trained_too = dataclasses.replace(RECIPE, alpha=0.5, teacher_optimizer=Optimizer())
    both = training_memory(trained_too, *configs, Evaluation(), micro_batch=4)
    assert both["gradients"] == trained + both["teacher weights"]
    assert both["optimizer"] == 2 * both["gradients"]


def test_four_bits_and_a_scale_for_every_64_weights():
    config = small_student().config
    recipe = Distill(lora=Lora(rank=2, quantize="nf4"))
    linears = 2 * (24 * 32 * 2 + 24 * 16 * 2 + 24 * 40 * 3)
    others = sum(p.numel() for p in small_student().parameters()) - linears + num_trained(recipe, config)
    found = training_memory(recipe, config, None, Evaluation(), micro_batch=1)
    assert found["student weights"] == 4 * others + linears * (0.5 + 4 / 64)


def test_a_validation_and_a_step_do_not_coincide():
    parts = dict.fromkeys(PERSISTENT, 1.0)
    assert peak(parts | {"activations": 5.0, "logits": 2.0, "validation": 6.0}) == 4 + 7
    assert peak(parts | {"activations": 5.0, "logits": 2.0, "validation": 9.0}) == 4 + 9


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_step_is_about_the_estimate(checkpointing):
    """Of the estimated parts; the bytes of every allocation are in the profile of the step."""
    student, teacher = llama(128, layers=8, vocab=512), llama(192, layers=4, vocab=512)
    recipe = Distill(seq_len=64, batch_size=8)
    module = Distiller(student.train(), teacher, recipe)
    ids = torch.randint(0, 512, (8, 64), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        module.training_step({"input_ids": ids, "labels": ids}, 0).backward()

    step()  # so that the gradients exist
    with checkpointed_layers(student) if checkpointing else contextlib.nullcontext():
        found = peak_of(step, torch.device("cpu"))
    parts = training_memory(
        recipe, student.config, teacher.config, Evaluation(), micro_batch=8, checkpointing=checkpointing, on_gpu=False
    )
    assert parts["activations"] + parts["logits"] == pytest.approx(found, rel=0.25)
