"""L_att: relations by hand, queries, keys and values of every family's attention, and the term of the objective."""

from __future__ import annotations

import math

import pytest
import torch
from distilled import ALL_STATES, IGNORED_PLACES, SCORED, batch, gradients, llama, same, student_of
from families import CASES, HEAD_DIM, logits, model_of, plan_for
from refusals import refuses
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_prune.config import Distill
from lit_prune.distill.hidden_states import VECTORS, HiddenStateReader, relations_of
from lit_prune.distill.module import Distiller
from lit_prune.losses.relation import relation_loss
from lit_prune.pruning import surgery


def draw(seed: int, width: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(2, 7, width, generator=torch.Generator().manual_seed(seed))


def by_hand(student: Tensor, teacher: Tensor, num_heads: int) -> Tensor:
    """The loss of every token, in float64, one relation head and one token at a time."""
    losses = torch.zeros(student.shape[:2], dtype=torch.float64)
    for b in range(len(student)):
        for t in range(student.shape[1]):
            for head in range(num_heads):
                p, q = (relations(of[b].double(), t, head, num_heads) for of in (teacher, student))
                losses[b, t] += (p * (p / q).log()).sum() / num_heads
    return losses


def relations(vectors: Tensor, t: int, head: int, num_heads: int) -> Tensor:
    """How token t is related to each up to itself."""
    width = vectors.shape[-1] // num_heads
    part = vectors[: t + 1, head * width : (head + 1) * width]
    scores = torch.stack([part[t] @ other / math.sqrt(width) for other in part])
    return scores.exp() / scores.exp().sum()


@pytest.mark.parametrize(("ours", "theirs"), [(16, 16), (8, 24)])
@pytest.mark.parametrize("num_heads", [1, 2, 8])
def test_the_loss_is_that_of_its_definition(ours, theirs, num_heads):
    student, teacher = draw(0, ours), draw(1, theirs)
    found = relation_loss(student, teacher, num_heads)
    torch.testing.assert_close(found.double(), by_hand(student, teacher, num_heads), rtol=1e-4, atol=1e-6)


def test_two_tokens_by_hand():
    """One dimension: teacher (0, 1) and student (0, 2). The second token's scores are 0, 1 and 0, 4."""
    p, q = 1 / (1 + math.e), 1 / (1 + math.e**4)
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = relation_loss(torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[0.0], [1.0]]]), 1)
    assert found[0].tolist() == pytest.approx([0.0, expected], rel=1e-5)


def test_it_is_zero_at_agreement_and_never_negative():
    teacher = draw(0, 16, scale=30.0)
    student = teacher.clone().requires_grad_()
    losses = relation_loss(student, teacher, 4)
    assert torch.equal(losses, torch.zeros(2, 7))
    assert torch.autograd.grad(losses.sum(), student)[0].abs().max() <= 1e-5
    for distance in (1e-5, 1e-2, 1.0):
        assert relation_loss(teacher + distance * draw(1, 16), teacher, 4).min() >= -1e-7


def test_the_gradient_is_that_of_the_value():
    student, teacher = draw(0, 4).double().requires_grad_(), draw(1, 6).double()
    assert torch.autograd.gradcheck(lambda x: relation_loss(x, teacher, 2), student)


def test_later_tokens_do_not_matter():
    student, teacher, other = draw(0, 8), draw(1, 8), draw(2, 8)
    changed = torch.cat([student[:, :4], other[:, 4:]], 1)
    before, after = relation_loss(student, teacher, 2), relation_loss(changed, teacher, 2)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.isclose(before[:, 4:], after[:, 4:]).any()


def test_bfloat16_arithmetic_leaves_the_relations_in_float32():
    student, teacher = draw(0, 16), draw(1, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = relation_loss(student, teacher, 2)
    assert torch.equal(inside, relation_loss(student, teacher, 2))


# Where queries, keys and values are


def read(model, index=1):
    """Queries, keys and values of a block, each [2, 17, width]."""
    with HiddenStateReader(model, [(kind, index) for kind in VECTORS]) as states:
        logits(model)
    return [states[kind, index] for kind in VECTORS]


@pytest.fixture
def attended(monkeypatch):
    """A function that gives the queries, keys and values of each block's attention, each [2, heads, 17, HEAD_DIM]."""

    def of(model):
        given = []

        def spy(module, *vectors, **kwargs):
            given.append(vectors[:3])
            kwargs.pop("softcap", None)
            return sdpa_attention_forward(module, *vectors, **kwargs)

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", spy)
        monkeypatch.setattr(model.config, "_attn_implementation", "sdpa")  # Gemma 2 has another, for its softcap
        logits(model)
        return given

    return of


@pytest.mark.parametrize("name", CASES)
def test_values_and_widths_are_those_that_attention_works_with(name, attended):
    model = model_of(name)
    used = [vectors.transpose(1, 2).flatten(2) for vectors in attended(model)[1]]
    found = read(model)
    assert [vectors.shape for vectors in found] == [vectors.shape for vectors in used]
    torch.testing.assert_close(found[2], used[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi3", "llama"])
def test_queries_and_keys_are_those_that_attention_works_with_before_it_turns_them(name, attended):
    """At the first place no rotary embedding turns them."""
    model = model_of(name)
    for ours, used in zip(read(model)[:2], attended(model)[1], strict=False):
        torch.testing.assert_close(ours[:, 0], used.transpose(1, 2).flatten(2)[:, 0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("kind", ["heads", "num_key_value_heads", "uneven"])
def test_a_pruned_student_is_read_as_widely_as_its_block_is(name, kind):
    plan = plan_for(name, kind)
    student = surgery.apply(model_of(name), plan)
    widths = plan.shape_of_layer(plan.layers[1])
    groups = widths.num_attention_heads if name in ("gpt_neox", "gpt2") else widths.num_key_value_heads
    expected = [widths.num_attention_heads * HEAD_DIM, groups * HEAD_DIM, groups * HEAD_DIM]
    assert [vectors.shape[-1] for vectors in read(student)] == expected


def test_no_hook_stays():
    model = model_of("gpt2")
    read(model)
    assert not any(module._forward_hooks for module in model.modules())


# The term of the objective


@pytest.mark.parametrize("maps", [("1:0",), ("last:last", "0:1")])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_the_term_is_a_sum_over_queries_keys_and_values_of_means_over_scored_tokens(maps, num_heads):
    teacher, student = llama(), student_of()
    distill = Distill(alpha=1.0, match_attention=maps, relation_heads=num_heads)
    ids, labels = batch(*IGNORED_PLACES)
    expected = 0.0
    for theirs, ours in relations_of(distill, 4, 3):
        with HiddenStateReader(teacher, [theirs]) as of_teacher, HiddenStateReader(student, [ours]) as of_student:
            teacher(input_ids=ids), student(input_ids=ids)
        losses = by_hand(of_student[ours].detach(), of_teacher[theirs], num_heads)
        expected += sum(losses[place].item() for place in SCORED) / len(SCORED)
    module = Distiller(student, teacher, distill)
    assert same(module.objective(ids, labels)["hidden_loss"], expected)
    assert list(module.projection.parameters()) == []


def test_it_adds_to_the_other_states():
    parts = [Distill(alpha=1.0, **ALL_STATES), Distill(alpha=1.0, match_attention=("2:1",))]
    both = Distill(alpha=1.0, match_attention=("2:1",), **ALL_STATES)
    torch.manual_seed(0)
    module = Distiller(student_of(32), llama(), both)
    terms = [Distiller(student_of(32), llama(), distill).objective(*batch())["hidden_loss"].item() for distill in parts]
    assert same(module.objective(*batch())["hidden_loss"], sum(terms))


def test_queries_keys_and_values_are_all_trained():
    module = Distiller(student_of(), llama(), Distill(kd_weight=0.0, alpha=1.0, match_attention=("3:2",)))
    names = [name for name, _ in module.named_parameters()]
    found = dict(zip(names, gradients(module, module.objective(*batch())["loss"]), strict=True))
    for kind in "qkv":
        assert found[f"student.model.layers.2.self_attn.{kind}_proj.weight"].any()
    assert not found["student.lm_head.weight"].any()


@pytest.mark.parametrize("num_heads", [3, 16, 0])
def test_relation_heads_that_cut_no_head_into_equal_parts_are_refused(num_heads):
    with refuses("distill.relation_heads", num_heads, 8):
        Distiller(student_of(), llama(), Distill(alpha=1.0, match_attention=("0:0",), relation_heads=num_heads))
