"""The objective against a computation by hand: terms, weights, scored tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distilled import (
    ALL_STATES,
    IGNORED_PLACES,
    SCORED,
    VOCAB,
    batch,
    by_token,
    gradients,
    llama,
    same,
    states_by_hand,
    student_of,
)
from refusals import refuses
from torch import nn

from lit_prune.config import Distill
from lit_prune.data.tokens import IGNORED
from lit_prune.distill.module import Distiller
from lit_prune.losses.hidden import hidden_losses
from lit_prune.losses.logit import logit_losses


@pytest.mark.parametrize("hidden", [24, 32])
@pytest.mark.parametrize("hidden_loss", list(hidden_losses))
@pytest.mark.parametrize(
    ("states", "pairs"),
    [
        ({"match_embedding": True}, [(("output", 0), ("output", 0))]),
        ({"match_mlp_input": ("1:0",)}, [(("mlp", 1), ("mlp", 0))]),
        ({"match_mlp_input": ("last:last",)}, [(("mlp", 3), ("mlp", 2))]),
        ({"match_layer_output": ("0:1",)}, [(("output", 1), ("output", 2))]),
        ({"match_layer_output": ("3:2",)}, [(("output", 4), ("output", 3))]),
        ({"match_layer_output": ("last:last-1",)}, [(("output", 4), ("output", 2))]),
        (
            {"match_layer_output": ("last-2:last-2", "2:0")},
            [(("output", 2), ("output", 1)), (("output", 3), ("output", 1))],
        ),
        (
            ALL_STATES,
            [
                (("output", 0), ("output", 0)),
                (("mlp", 2), ("mlp", 1)),
                (("output", 1), ("output", 1)),
                (("output", 4), ("output", 3)),
            ],
        ),
    ],
)
def test_the_intermediate_loss_is_a_sum_over_pairs_of_means_over_tokens(hidden, hidden_loss, states, pairs):
    """Each pair is (teacher's state, student's state); the teacher has 4 blocks, the student 3."""
    teacher, student = llama(), student_of(hidden)
    module = Distiller(student, teacher, Distill(alpha=1.0, hidden_loss=hidden_loss, **states))
    ids, labels = batch(*IGNORED_PLACES)
    theirs, ours = states_by_hand(teacher, ids), states_by_hand(student, ids)
    expected = sum(
        by_token(hidden_losses[hidden_loss], module.projection(ours[student_state]), theirs[teacher_state])
        for teacher_state, student_state in pairs
    )
    assert same(module.objective(ids, labels)["hidden_loss"], expected)


@pytest.mark.parametrize("name", list(logit_losses))
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("scale_by_temperature_squared", [False, True])
def test_the_logit_loss_is_the_mean_over_tokens_at_the_temperature(name, temperature, scale_by_temperature_squared):
    teacher, student = llama(), student_of()
    distill = Distill(
        logit_loss=name, temperature=temperature, scale_by_temperature_squared=scale_by_temperature_squared
    )
    ids, labels = batch(*IGNORED_PLACES)
    ours, theirs = (model(input_ids=ids).logits.detach() / temperature for model in (student, teacher))
    expected = by_token(logit_losses[name], ours, theirs) * (temperature**2 if scale_by_temperature_squared else 1)
    terms = Distiller(student, teacher, distill).objective(ids, labels)
    assert same(terms["kd_loss"], expected)
    assert torch.equal(terms["loss"], terms["kd_loss"])


def test_the_cross_entropy_is_that_of_the_next_token_where_it_is_scored():
    student = student_of()
    ids, labels = batch(*IGNORED_PLACES)
    log_p = student(input_ids=ids).logits.double().log_softmax(-1)
    expected = -sum(log_p[b, t, ids[b, t + 1]].item() for b, t in SCORED) / len(SCORED)
    terms = Distiller(student, None, Distill(ce_weight=1.0, kd_weight=0.0)).objective(ids, labels)
    assert same(terms["ce_loss"], expected)
    assert set(terms) == {"ce_loss", "loss"}


@pytest.mark.parametrize("name", ["ce_loss", "kd_loss", "hidden_loss"])
def test_what_is_not_scored_does_not_matter_to_any_term(name):
    """The last id has no successor and the labels in between are ignored: other ids there change no term."""
    module = Distiller(student_of(), llama(), Distill(ce_weight=1.0, alpha=1.0, **ALL_STATES))
    ids, labels = batch((0, 9), (1, 9))
    labels[0, 5:] = IGNORED
    other_ids = ids.clone()
    other_ids[:, 9] = (ids[:, 9] + 1) % VOCAB
    other_ids[0, 5:] = (ids[0, 5:] + 1) % VOCAB
    assert torch.equal(module.objective(ids, labels)[name], module.objective(other_ids, labels)[name])
    assert not torch.equal(module.objective(ids, labels)[name], module.objective(ids, ids)[name])


@pytest.mark.parametrize(
    "weights",
    [
        {"ce_weight": 1.0},
        {"ce_weight": 0.3, "kd_weight": 0.7},
        {"ce_weight": 0.3, "alpha": 0.2, **ALL_STATES},
        {"kd_weight": 0.0, "alpha": 0.2, **ALL_STATES},
        {"kd_weight": 0.0, "ce_weight": 1.0},
    ],
)
def test_the_loss_is_the_weighted_sum_of_the_terms(weights):
    distill = Distill(**weights)
    terms = Distiller(student_of(), llama(), distill).objective(*batch())
    weight = {"ce_loss": distill.ce_weight, "kd_loss": distill.kd_weight, "hidden_loss": distill.alpha}
    expected = sum(weight[name] * value.item() for name, value in terms.items() if name != "loss")
    assert same(terms["loss"], expected)
    assert set(terms) >= {"loss"} | {name for name in weight if weight[name]}


@pytest.mark.parametrize("hidden", [24, 32])
def test_dynamic_alpha_makes_the_terms_equal_and_is_a_constant_to_the_gradient(hidden):
    module = Distiller(student_of(hidden), llama(), Distill(alpha="dynamic", **ALL_STATES))
    terms = module.objective(*batch())
    assert same(terms["loss"], 2 * terms["kd_loss"].item())
    alpha = terms["kd_loss"].item() / terms["hidden_loss"].item()
    found = gradients(module, terms["loss"])
    module.distill = Distill(alpha=alpha)
    expected = gradients(module, module.objective(*batch())["loss"])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    module.distill = Distill()
    only_logits = gradients(module, module.objective(*batch())["loss"])
    assert any(not torch.allclose(a, b) for a, b in zip(expected, only_logits, strict=True))


def test_a_batch_without_a_scored_token_costs_nothing():
    """A micro-batch may be one block that holds a single token and filling."""
    module = Distiller(student_of(), llama(), Distill(ce_weight=1.0, alpha="dynamic", **ALL_STATES))
    ids, labels = batch()
    terms = module.objective(ids, torch.full_like(labels, IGNORED))
    assert {name: value.item() for name, value in terms.items()} == dict.fromkeys(terms, 0.0)
    assert not any(g.any() for g in gradients(module, terms["loss"]))


# Teacher and projection


@pytest.mark.parametrize(
    ("hidden", "distill", "projected"),
    [
        (24, Distill(alpha=1.0, **ALL_STATES), True),
        (32, Distill(alpha=1.0, **ALL_STATES), False),
        (24, Distill(**ALL_STATES), False),
        (24, Distill(ce_weight=1.0), False),
    ],
    ids=["narrower", "same width", "alpha 0", "no pairs"],
)
def test_there_is_a_projection_only_where_states_of_other_width_are_compared(hidden, distill, projected):
    student = student_of(hidden)
    names = set(student.state_dict())
    module = Distiller(student, llama(), distill)
    assert isinstance(module.projection, nn.Linear if projected else nn.Identity)
    extra = {"projection.weight", "projection.bias"} if projected else set()
    assert set(module.state_dict()) == {f"student.{name}" for name in names} | extra
    assert set(student.state_dict()) == names
    if projected:
        assert module.projection.weight.shape == (32, hidden)


def test_the_projection_is_trained_with_the_student():
    module = Distiller(student_of(), llama(), Distill(alpha=1.0, **ALL_STATES))
    groups = module.configure_optimizers()["optimizer"].param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for p in module.parameters()}
    assert {id(p) for p in module.projection.parameters()} < trained
    loss = module.objective(*batch())["loss"]
    assert all(g.any() for g in torch.autograd.grad(loss, list(module.projection.parameters())))


def test_the_teacher_is_frozen_and_hidden():
    teacher = llama().train()
    module = Distiller(student_of(), teacher, Distill(alpha="dynamic", **ALL_STATES)).train()
    module.objective(*batch())["loss"].backward()
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in module.parameters()}
    assert teacher not in list(module.modules())
    assert all(p.grad is not None for p in module.student.parameters())


def test_no_hook_stays_on_a_model():
    """One teacher serves many runs, and the student is evaluated and kept."""
    teacher, student = llama(), student_of()
    Distiller(student, teacher, Distill(alpha=1.0, **ALL_STATES)).objective(*batch())
    assert not any(part._forward_hooks for model in (teacher, student) for part in model.modules())


@pytest.mark.parametrize("teacher_given", [True, False])
def test_a_teacher_that_is_not_needed_is_not_run(teacher_given):
    def never(*_: Any) -> None:
        raise AssertionError("the teacher was run")

    teacher = llama()
    teacher.register_forward_pre_hook(never)
    module = Distiller(student_of(), teacher if teacher_given else None, Distill(ce_weight=1.0, kd_weight=0.0))
    assert module.objective(*batch())["loss"].isfinite()


# Requests that cannot be met


@pytest.mark.parametrize(
    ("distill", "field", "value"),
    [
        (Distill(kd_weight=0.0), "distill", "kd_weight"),
        (Distill(kd_weight=0.0, **ALL_STATES), "distill", "kd_weight"),
        (Distill(alpha=1.0), "distill.alpha", "match_embedding"),
        (Distill(alpha="dynamic"), "distill.alpha", "match_embedding"),
        (Distill(alpha=1.0, match_mlp_input=("1",)), "distill.match_mlp_input", "'1'"),
        (Distill(alpha=1.0, match_mlp_input=("4:0",)), "distill.match_mlp_input", "'4'"),
        (Distill(alpha=1.0, match_mlp_input=("0:3",)), "distill.match_mlp_input", "'3'"),
        (Distill(alpha=1.0, match_layer_output=("0:0", "-1:0")), "distill.match_layer_output", "'-1'"),
        (Distill(alpha=1.0, match_layer_output=("last-4:0",)), "distill.match_layer_output", "'last-4'"),
        (Distill(alpha=1.0, match_layer_output=("last:last-3",)), "distill.match_layer_output", "'last-3'"),
        (Distill(alpha=1.0, match_layer_output=("first:0",)), "distill.match_layer_output", "'first'"),
        (Distill(alpha=1.0, match_layer_output=("0:1:2",)), "distill.match_layer_output", "'1:2'"),
        (Distill(alpha=1.0, match_layer_output=(":",)), "distill.match_layer_output", "''"),
        (Distill(logit_loss="kdl"), "distill.logit_loss", "'kld'"),
        (Distill(hidden_loss="cosin"), "distill.hidden_loss", "'cosine'"),
    ],
)
def test_an_objective_that_does_not_fit_is_refused_in_one_line(distill, field, value):
    with refuses(field, value):
        Distiller(student_of(), llama(), distill)


@pytest.mark.parametrize("distill", [Distill(), Distill(kd_weight=0.0, alpha=1.0, match_embedding=True)])
def test_a_term_that_needs_a_teacher_is_refused_without_one(distill):
    with refuses("distill", "teacher"):
        Distiller(student_of(), None, distill)
