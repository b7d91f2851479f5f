"""Sparse students in the pipeline: masks are stored, and zeros stay zero when they are trained, pruned and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refuses
from transformers import AutoModelForCausalLM

import lit_prune as lp
from lit_prune.config import Cell, Execution
from lit_prune.config.overrides import override, parent_of
from lit_prune.config.table import WHOLE
from lit_prune.models.files import MASKS
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.outcomes import outcome
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.validate import check
from lit_prune.pruning.masks import check_zero, load_masks

LINEARS = 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
SPARSE = {"prune.method": "wanda", "distill.optimizer.weight_decay": 0.5, "distill.optimizer.lr": 1e-2}
PARENT = {"parent.prune.method": "magnitude", "parent.prune.sparsity": 0.4, "parent.distill.max_steps": 3}


def result_of(runner: Any, cell: Cell, stage: str = "cell") -> tuple[dict[str, Any], Path]:
    """The result and the model of a cell, which is computed if it is missing."""
    runner.check([cell])
    assert runner.run([Entry("row", 0, cell, {})]) == 0
    node = runner.store.node(cell, stage)
    return node.result, node.folder / "model"


def zeros(folder: Path) -> dict[str, torch.Tensor]:
    """Where the weights are zero, by the file of the model alone."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: weight == 0 for name, weight in model.named_parameters() if name.endswith("_proj.weight")}


def contains(larger: dict[str, torch.Tensor], smaller: dict[str, torch.Tensor]) -> bool:
    return all(bool(larger[name][places].all()) for name, places in smaller.items())


def test_a_retrained_student_has_the_zeros_of_the_pruned_one(tiny_cell: Cell, tiny_runner: Any) -> None:
    cell = override(tiny_cell, SPARSE)
    student, pruned = result_of(tiny_runner, cell, "student")
    result, trained = result_of(tiny_runner, cell)
    assert student["requested"] == {"sparsity": 0.5}
    assert student["achieved"]["sparsity"] == student["sparsity"] == result["sparsity"] == 0.5
    assert student["share"] == 1.0
    assert result["nonzero_parameters"] == result["parameters"] - LINEARS // 2
    before, after = zeros(pruned), zeros(trained)
    assert sum(int(places.sum()) for places in before.values()) == LINEARS // 2
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    masks = load_masks(trained)
    assert all(torch.equal(~masks[name], after[name]) for name in after)
    dense = tiny_runner.store.node(override(tiny_cell, {"distill.max_steps": 0}), "cell")
    assert dense.result is None


@pytest.mark.parametrize(
    "changes",
    [
        {"prune.method": "wanda", "prune.sparsity": 0.6},
        {"prune.method": "magnitude", "prune.pattern": "2:4", "parent.prune.pattern": None},
        {"prune.intermediate_size": 0.5, "prune.num_attention_heads": None, "prune.hidden_size": 0.75},
        {"prune.method": "shortgpt", "prune.num_hidden_layers": 2},
    ],
    ids=["wanda", "2:4", "width", "depth"],
)
def test_a_sparse_parent_passes_its_zeros_on(tiny_cell: Cell, tiny_runner: Any, changes: dict[str, Any]) -> None:
    cell = Resolver().pin(override(tiny_cell, PARENT | changes))
    _, pruned = result_of(tiny_runner, cell, "student")
    result, trained = result_of(tiny_runner, cell)
    masks = load_masks(pruned)
    check_zero(AutoModelForCausalLM.from_pretrained(trained), masks, "trained")
    assert result["sparsity"] >= 0.35
    assert contains(zeros(trained), zeros(pruned))
    assert all(torch.equal(load_masks(trained)[name], kept) for name, kept in masks.items())
    if cell.prune.sparse:  # of the parent's shape
        assert contains(zeros(pruned), zeros(tiny_runner.store.node(parent_of(cell), "cell").folder / "model"))


def test_the_student_of_a_parent_that_keeps_all_has_its_masks(tiny_cell: Cell, tiny_runner: Any) -> None:
    whole = dict.fromkeys(("prune.hidden_size", "prune.intermediate_size", "prune.num_attention_heads"))
    cell = Resolver().pin(override(tiny_cell, PARENT | whole))
    result, trained = result_of(tiny_runner, cell)
    assert result["sparsity"] == pytest.approx(0.4, abs=1e-3)
    check_zero(AutoModelForCausalLM.from_pretrained(trained), load_masks(trained), "trained")


TICKET = {
    "prune.method": "imp", "prune.max_steps": 2, "prune.batch_size": 2, "prune.num_rounds": 2, "distill.max_steps": 0,
    "prune.optimizer.algorithm": "sgd", "prune.optimizer.lr": 1.0, "prune.optimizer.warmup_steps": 0,
}  # fmt: skip


def test_a_ticket_found_with_one_text_and_optimizer_is_trained_with_others(
    tiny_cell: Cell, tiny_runner: Any, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("\n\n".join(f"another text number {i} " * 20 for i in range(60)))
    found = {f"parent.{path}": value for path, value in TICKET.items()}
    found["parent.corpus.path"] = str(tmp_path / "other.txt")
    recipe = {"distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "distill.max_steps": 3}
    cell = Resolver().pin(override(tiny_cell, WHOLE | found | recipe))
    result, trained = result_of(tiny_runner, cell)
    ticket = tiny_runner.store.node(parent_of(cell), "student")
    assert result["sparsity"] == ticket.result["sparsity"] == pytest.approx(0.488, abs=1e-3)
    before, after = zeros(ticket.folder / "model"), zeros(trained)
    assert all(torch.equal(before[name], after[name]) for name in before)
    same_text = Resolver().pin(override(tiny_cell, TICKET))
    _, home = result_of(tiny_runner, same_text, "student")
    masks, others = load_masks(ticket.folder / "model"), load_masks(home)
    assert any(not torch.equal(masks[name], kept) for name, kept in others.items())
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (ticket.folder / "model", home)
    )
    for name, kept in masks.items():  # the same theta_0
        assert torch.equal(ours[name][kept & others[name]], theirs[name][kept & others[name]])


def test_written_folders_carry_their_masks_to_further_training(
    tiny_cell: Cell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how: dict[str, Any] = {
        "corpus": str(tmp_path / "text.txt"), "seq_len": 32, "store": tmp_path / "lp",
        "execution": Execution(accelerator="cpu"),
    }  # fmt: skip
    few = {"calibration.num_sequences": 4, "evaluation.num_sequences": 4, "corpus.holdout_fraction": 0.2}
    found = lp.prune(tmp_path / "tiny", method="wanda", sparsity=0.6, out=tmp_path / "sparse", settings=few, **how)
    assert found.student["parameters"] == found.teacher["parameters"]
    assert found.student["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert (tmp_path / "sparse" / MASKS).is_file()
    assert f"{found.student['nonzero_parameters']:,}" in (tmp_path / "sparse/README.md").read_text()
    taught = lp.distill(
        tmp_path / "sparse", teacher=tmp_path / "tiny", out=tmp_path / "taught", max_steps=3, batch_size=2,
        settings=few | {"distill.lora.rank": 2}, **how,
    )  # fmt: skip
    assert taught.student["sparsity"] == found.student["sparsity"]
    before, after = zeros(tmp_path / "sparse"), zeros(tmp_path / "taught")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_sparse_teacher_that_is_fine_tuned_keeps_its_zeros(tiny_cell: Cell, tiny_runner: Any, tmp_path: Path) -> None:
    _, pruned = result_of(tiny_runner, override(tiny_cell, SPARSE | {"distill.max_steps": 0}), "student")
    changes = {"teacher.model": str(pruned), "teacher.finetune.max_steps": 2, "teacher.finetune.seq_len": 32}
    cell = Resolver().pin(override(tiny_cell, changes | {"teacher.finetune.batch_size": 2, "distill.max_steps": 0}))
    _, tuned = result_of(tiny_runner, cell, "correction")
    assert all(torch.equal(places, zeros(pruned)[name]) for name, places in zeros(tuned).items())


def test_what_would_revive_zeros_is_refused(tiny_cell: Cell) -> None:
    parent = PARENT | {"prune.num_attention_heads": 2, "prune.hidden_size": None}
    with refuses("prune.method", "minitron"):
        check(Resolver().pin(override(tiny_cell, parent | {"prune.head_merging": "paper"})))
    with refuses("distill.teacher_optimizer"):
        check(Resolver().pin(override(tiny_cell, parent | {"distill.teacher_optimizer.lr": 1e-3})))
    check(Resolver().pin(override(tiny_cell, parent)))


def test_a_student_of_the_shape_of_its_teacher_is_not_the_teacher(tiny_cell: Cell) -> None:
    dense, sparse = (override(tiny_cell, {"prune.method": name}) for name in ("minitron", "wanda"))
    assert outcome(dense) != outcome(sparse)
    with refuses("prune.sparsity", 0.0):
        check(override(tiny_cell, {"prune.method": "wanda", "prune.sparsity": 0.0}))
