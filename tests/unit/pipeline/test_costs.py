"""What a dry run lists of each row: cells, size of the student, tokens, and the time that earlier cells tell."""

from __future__ import annotations

import json

import pytest

from lit_prune.cli.table import main
from lit_prune.config.overrides import override
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.models import loading
from lit_prune.models.shape import num_parameters
from lit_prune.pipeline.costs import costs, flops_of_token, runs_of
from lit_prune.pipeline.expand import Entry
from lit_prune.store import Store
from lit_prune.store.address import identity
from lit_prune.store.environment import environment


@pytest.fixture
def rows(tiny_cell) -> list[Entry]:
    """Two seeds of a retrained row, and one cell that keeps the teacher."""
    whole = dict.fromkeys(("prune.hidden_size", "prune.intermediate_size", "prune.num_attention_heads")) | {
        "distill.max_steps": 0
    }
    retrained = [Entry("retrained", seed, override(tiny_cell, {"seed": seed}), {}) for seed in range(2)]
    return [*retrained, Entry("whole", 0, override(tiny_cell, whole), {})]


def test_size_tokens_and_time_of_each_row(rows, tmp_path):
    cell = rows[0].cell
    flops = 4 * 2 * 32 * flops_of_token(cell)
    store = Store(tmp_path / "store")
    retrained, whole = costs(rows, store, [(flops, 2.0), (2 * flops, 6.0), (flops, 90.0), (0.0, 0.5)])
    assert (retrained.row, retrained.cells, retrained.steps, retrained.tokens) == ("retrained", 2, 4, 2 * 4 * 2 * 32)
    assert retrained.seconds == pytest.approx(2 * 3.0)  # the median pace is 3 s for these FLOPs
    teacher = loading.load_config(cell.teacher.model)
    assert (whole.parameters, whole.tokens, whole.seconds) == (num_parameters(teacher), 0, 0.5)
    assert retrained.parameters < whole.parameters
    assert [cost.seconds for cost in costs(rows, store, [])] == [None, None]
    assert not store.root.exists()


def test_a_teacher_that_is_trained_first_is_listed_once(rows, tmp_path):
    rows = [Entry(e.row, e.seed, override(e.cell, {"teacher.finetune.max_steps": 7}), {}) for e in rows]
    teacher, *_ = costs(rows, Store(tmp_path), [])
    assert (teacher.cells, teacher.steps, teacher.tokens) == (1, 7, 7 * 8 * 256)


def test_earlier_cells_of_other_machines_tell_nothing(rows, tmp_path):
    store = Store(tmp_path / "store")
    for entry, processor in zip(rows, (environment()["processor"], "another", "another"), strict=True):
        with store.hold("cell", identity(entry.cell, "cell")) as node:
            node.finish({"train_flops": 5.0}, seconds=2.0, processor=processor)
    assert runs_of(store) == [(5.0, 2.0)]


def test_a_dry_run_of_a_teacher_that_must_be_trained_writes_nothing(tmp_path, capsys, texts):
    (tmp_path / "text.txt").write_text("".join(texts))
    source = f"teacher.pretraining.corpus.path={json.dumps(str(tmp_path / 'text.txt'))}"
    settings = ("teacher.model=null", "teacher.pretraining.max_steps=3", source)
    words = [word for setting in settings for word in ("--set", setting)]
    store = tmp_path / "store"
    assert main(TABLE, [*words, "--dry-run", "--store", str(store)]) == 0
    assert "unknown" in capsys.readouterr().out
    assert not store.exists()
