"""Optional parts of the objective: top-k, balanced cross-entropy, a projection per pair, and refusals."""

from __future__ import annotations

import dataclasses

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

from lit_prune.config import Cell, Distill
from lit_prune.config.overrides import override
from lit_prune.distill.module import Distiller
from lit_prune.evaluate.validation import validation_losses
from lit_prune.losses.hidden import hidden_losses
from lit_prune.losses.logit import logit_loss_of, logit_losses
from lit_prune.losses.weighting import check_weights, ratios
from lit_prune.pipeline.validate import check_models, check_names

# Logits


@pytest.mark.parametrize("name", ["kld", "jsd", "mse_logits"])
@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("top_k", [2, 7, VOCAB])
def test_the_logit_loss_over_the_likeliest_tokens_is_that_of_the_two_renormalised(name, temperature, top_k):
    teacher, student = llama(), student_of()
    ids, labels = batch(*IGNORED_PLACES)
    ours, theirs = (model(input_ids=ids).logits.detach().double() for model in (student, teacher))
    losses = []
    for place in SCORED:
        order = theirs[place].sort(descending=True).indices[:top_k]
        both = (logits[place][order][None] / temperature for logits in (ours, theirs))
        losses.append(logit_losses[name](*both).item())
    distill = Distill(logit_loss=name, temperature=temperature, top_k=top_k)
    terms = Distiller(student, teacher, distill).objective(ids, labels)
    assert same(terms["kd_loss"], sum(losses) / len(losses))


@pytest.mark.parametrize("mix", [None, 0.3])
def test_the_mix_reaches_the_loss(mix):
    teacher, student = llama(), student_of()
    ids, labels = batch(*IGNORED_PLACES)
    ours, theirs = (model(input_ids=ids).logits.detach() for model in (student, teacher))
    expected = by_token(logit_loss_of("jsd", 0.5 if mix is None else mix), ours, theirs)
    terms = Distiller(student, teacher, Distill(logit_loss="jsd", mixture=mix)).objective(ids, labels)
    assert same(terms["kd_loss"], expected)


def test_validation_takes_temperature_and_mix_and_the_whole_vocabulary():
    teacher, student = llama(), student_of()
    ids, labels = batch(*IGNORED_PLACES)
    distill = Distill(logit_loss="skew_kld", mixture=0.4, temperature=2.0)
    ours, theirs = (model(input_ids=ids).logits.detach() / 2.0 for model in (student, teacher))
    expected = by_token(logit_loss_of("skew_kld", 0.4), ours, theirs)
    for top_k in (None, 2):
        recipe = dataclasses.replace(distill, top_k=top_k)
        found = validation_losses(student, teacher, recipe, [{"input_ids": ids, "labels": labels}])
        assert found["kd_loss"].mean == pytest.approx(expected, rel=2e-5)


# Balanced cross-entropy


@pytest.mark.parametrize(
    "weights", [{}, {"kd_weight": 0.3}, {"alpha": 0.2, **ALL_STATES}, {"kd_weight": 0.0, "alpha": 0.2, **ALL_STATES}]
)
def test_balanced_cross_entropy_weighs_as_much_as_all_other_terms_and_its_weight_has_no_gradient(weights):
    module = Distiller(student_of(), llama(), Distill(ce_weight="balanced", **weights))
    terms = module.objective(*batch())
    distillation = module.distill.kd_weight * terms["kd_loss"]
    if "hidden_loss" in terms:
        distillation = distillation + module.distill.alpha * terms["hidden_loss"]
    assert same(terms["loss"], 2 * distillation.item())
    ratio = distillation.item() / terms["ce_loss"].item()
    found = gradients(module, terms["loss"])
    module.distill = Distill(**weights)
    imitation = gradients(module, module.objective(*batch())["loss"])
    module.distill = Distill(ce_weight=ratio, kd_weight=0.0)
    cross_entropy = gradients(module, module.objective(*batch())["loss"])
    for ours, *theirs in zip(found, imitation, cross_entropy, strict=True):
        torch.testing.assert_close(ours, sum(theirs))


def test_the_balanced_weight_is_the_ratio_and_finite_where_the_text_is_known_by_heart():
    distillation, balanced = torch.tensor(3.0, requires_grad=True), Distill(ce_weight="balanced")
    weight = ratios(balanced, distillation, {"ce_loss": torch.tensor(6.0)})["ce_loss"]
    assert weight.item() == 0.5
    assert not weight.requires_grad
    assert ratios(balanced, distillation, {"ce_loss": torch.tensor(0.0)})["ce_loss"].isfinite()


def test_the_balanced_weight_counts_the_intermediate_loss_at_its_dynamic_weight():
    terms = {"kd_loss": torch.tensor(3.0), "hidden_loss": torch.tensor(5.0), "ce_loss": torch.tensor(12.0)}
    weights = ratios(Distill(alpha="dynamic", ce_weight="balanced"), terms["kd_loss"], terms)
    assert {name: weight.item() for name, weight in weights.items()} == pytest.approx(
        {"hidden_loss": 0.6, "ce_loss": 0.5}
    )


# Projections


@pytest.mark.parametrize("hidden_loss", list(hidden_losses))
def test_each_pair_has_a_projection_of_its_own(hidden_loss):
    teacher, student = llama(), student_of()
    distill = Distill(alpha=1.0, hidden_loss=hidden_loss, projection="per_pair", match_attention=("0:0",), **ALL_STATES)
    module = Distiller(student, teacher, distill)
    assert [m.weight.shape for m in module.projection] == [(32, 24)] * 4
    assert len({m.weight.sum().item() for m in module.projection}) == 4
    ids, labels = batch(*IGNORED_PLACES)
    alone = dataclasses.replace(distill, match_embedding=False, match_mlp_input=(), match_layer_output=())
    relations = Distiller(student, teacher, alone).objective(ids, labels)["hidden_loss"].item()
    theirs, ours = states_by_hand(teacher, ids), states_by_hand(student, ids)
    pairs = [(("output", 0),) * 2, (("mlp", 2), ("mlp", 1)), (("output", 1),) * 2, (("output", 4), ("output", 3))]
    expected = sum(
        by_token(hidden_losses[hidden_loss], project(ours[student_state]), theirs[teacher_state])
        for project, (teacher_state, student_state) in zip(module.projection, pairs, strict=True)
    )
    assert same(module.objective(ids, labels)["hidden_loss"], expected + relations)


def test_the_projections_of_pairs_are_trained_and_are_no_part_of_the_student():
    student = student_of()
    names = set(student.state_dict())
    module = Distiller(student, llama(), Distill(alpha=1.0, projection="per_pair", **ALL_STATES))
    loss = module.objective(*batch())["loss"]
    assert all(g.any() for g in torch.autograd.grad(loss, list(module.projection.parameters())))
    groups = module.configure_optimizers()["optimizer"].param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert {id(p) for p in module.projection.parameters()} < trained
    assert set(student.state_dict()) == names


def test_equal_widths_have_no_projection_either_way():
    for projection in ("shared", "per_pair"):
        module = Distiller(student_of(32), llama(), Distill(alpha=1.0, projection=projection, **ALL_STATES))
        assert isinstance(module.projection, nn.Identity)


# Requests that cannot be met


@pytest.mark.parametrize(
    ("distill", "field", "value"),
    [
        (Distill(kd_weight=0.0), "distill", "kd_weight"),
        (Distill(kd_weight=0.0, alpha="dynamic"), "distill.alpha", "dynamic"),
        (Distill(kd_weight=0.0, ce_weight="balanced"), "distill.ce_weight", "balanced"),
    ],
)
def test_weights_that_are_measured_by_nothing_are_refused(distill, field, value):
    for refused in (lambda: check_weights(distill), lambda: Distiller(student_of(), llama(), distill)):
        with refuses(field, value):
            refused()


def check(cell: Cell) -> None:
    check_names(cell)
    check_models(cell)


@pytest.mark.parametrize(
    ("settings", "field", "values"),
    [
        ({"alpha": 1.0}, "distill.alpha", ("distill.match_embedding",)),
        ({"match_attention": ["0:0"]}, "distill.alpha", ("0", "match_attention")),
        ({"alpha": 1.0, "match_attention": ["6:0"]}, "distill.match_attention", ("'6'", 5)),
        ({"alpha": 1.0, "match_attention": ["0:last-6"]}, "distill.match_attention", ("'last-6'", 5)),
        ({"alpha": 1.0, "match_attention": ["3"]}, "distill.match_attention", ("'3'",)),
        ({"alpha": 1.0, "match_attention": ["0:0"], "relation_heads": 7}, "distill.relation_heads", (7, 32)),
        ({"alpha": 1.0, "match_attention": ["0:0"], "relation_heads": 0}, "distill.relation_heads", (">= 1", "got 0")),
        ({"alpha": "dynamic", "kd_weight": 0.0, "match_embedding": True}, "distill.alpha", ("dynamic",)),
        ({"ce_weight": "balanced", "kd_weight": 0.0}, "distill.ce_weight", ("balanced",)),
        ({"top_k": 1}, "distill.top_k", (1, 2048)),
        ({"top_k": 2049}, "distill.top_k", (2049, 2048)),
        ({"mixture": 0.5}, "distill.mixture", ("kld",)),
        ({"mixture": 1.5, "logit_loss": "jsd"}, "distill.mixture", ("< 1", "got 1.5")),
    ],
)
def test_preflight_refuses_in_one_line(settings, field, values):
    with refuses(field, *values):  # a range is checked as soon as the field is set
        check(override(Cell(), {f"distill.{name}": value for name, value in settings.items()}))


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": "dynamic", "match_attention": ["last-2:last-2", "0:0"], "relation_heads": 32},
        {"alpha": 0.5, "match_embedding": True, "projection": "per_pair"},
        {"top_k": 2048, "ce_weight": "balanced"},
        {"top_k": 2, "logit_loss": "jsd", "mixture": 0.9},
    ],
)
def test_preflight_lets_through_what_can_be_computed(settings):
    cell = override(Cell(), {f"distill.{name}": value for name, value in settings.items()})
    check(cell)
