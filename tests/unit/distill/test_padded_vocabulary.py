"""Teacher and student with differently padded vocabularies are compared over shared entries."""

import json

import pytest
import torch
from refusals import refuses
from torch.nn.functional import kl_div, log_softmax

from lit_prune.config import Distill
from lit_prune.config.overrides import override
from lit_prune.distill.module import Distiller
from lit_prune.evaluate.validation import validation_losses
from lit_prune.pipeline.resolve import Resolver


def padded(model, rows):
    """The model with random rows at the end of its embedding and head."""
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight[256:] = torch.randn(rows - 256, table.weight.shape[1])
    return model.eval()


@pytest.fixture
def two(tiny_llama):
    """The tiny model and another one of its shape."""
    other = type(tiny_llama)(tiny_llama.config.from_dict(tiny_llama.config.to_dict())).eval()
    return tiny_llama, other


@pytest.mark.parametrize("wide", ["student", "teacher"])
def test_the_logit_loss_is_that_of_the_shared_entries(two, wide):
    student, teacher = two
    padded(student if wide == "student" else teacher, 264)
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        ours, theirs = (log_softmax(m(ids).logits[:, :-1, :256].double(), -1) for m in (student, teacher))
    expected = kl_div(ours, theirs, log_target=True, reduction="none").sum(-1).mean().item()
    found = validation_losses(student, teacher, Distill(), [{"input_ids": ids, "labels": ids}])
    assert found["kd_loss"].mean == pytest.approx(expected, rel=1e-5)
    terms = Distiller(student, teacher, Distill(ce_weight=0.0)).objective(ids, ids)
    assert terms["kd_loss"].item() == pytest.approx(expected, rel=1e-5)
    terms["loss"].backward()
    gradient = student.get_output_embeddings().weight.grad
    assert gradient[:256].abs().max() > 0
    assert not gradient[256:].any()


def test_the_largest_logits_of_a_wider_teacher_are_refused_in_whichever_row_they_are(
    tiny_cell, tiny_runner, tiny_llama, tiny_tokenizer, tmp_path
):
    for name in ("student", "teacher"):
        tiny_tokenizer.save_pretrained(tmp_path / name)
        tiny_llama.save_pretrained(tmp_path / name)
        tiny_llama.resize_token_embeddings(264, mean_resizing=False)
    given = {"prune.init_from": str(tmp_path / "student"), "teacher.model": str(tmp_path / "teacher")}
    cell = Resolver().pin(override(tiny_cell, given | {"prune.hidden_size": None, "teacher.fingerprint": None}))
    tiny_runner.check([cell])
    with refuses("distill.top_k", 264, 256):
        tiny_runner.check([cell, override(cell, {"distill.top_k": 8})])


@pytest.mark.parametrize("rows", [264, 250])
def test_padding_is_accepted_once_the_tokenizers_agree(
    rows, tiny_cell, tiny_runner, tiny_llama, tiny_tokenizer, tmp_path
):
    folder = tmp_path / "student"
    tiny_llama.resize_token_embeddings(rows, mean_resizing=False)
    tiny_llama.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == rows
    cell = Resolver().pin(override(tiny_cell, {"prune.init_from": str(folder), "prune.hidden_size": None}))
    with refuses("prune.init_from", rows, 256):
        tiny_runner.check([cell])
    tiny_tokenizer.save_pretrained(folder)
    cell = Resolver().pin(override(cell, {"prune.fingerprint": None}))
    if rows > 256:
        tiny_runner.check([cell])
    else:
        with refuses("prune.init_from", 250):
            tiny_runner.check([cell])
