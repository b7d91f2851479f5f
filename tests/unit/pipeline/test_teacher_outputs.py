"""Cached teacher outputs leave cells bitwise unchanged, with interruptions and micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from teacher_caches import STATES, Stop, StoppingBar, origins, pair, run, runner_of, same

from lit_prune.config import Cell, Optimizer
from lit_prune.config.overrides import override
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.store.address import CACHE

pytestmark = pytest.mark.slow

ROWS: dict[str, dict[str, Any]] = {
    "kld": {},
    "with states": STATES,
    "other states": {"distill.alpha": 0.5, "distill.match_mlp_input": ("2:1",), "distill.match_attention": ("1:1",)},
    "mse and cross-entropy": {"distill.logit_loss": "mse", "distill.ce_weight": 1.0, "evaluation.num_validations": 2},
    "top 7": {"distill.top_k": 7, "distill.temperature": 2.0},
    "three steps": {"distill.max_steps": 3, "prune.intermediate_size": 0.5},
    "wild": {"distill.optimizer": Optimizer(lr=1e30, max_grad_norm=1e30, warmup_steps=0)},
}


SMALL = {
    "calibration.num_sequences": 4, "calibration.seq_len": 32, "distill.seq_len": 32, "distill.batch_size": 2,
    "evaluation.num_sequences": 2, "evaluation.seq_len": 32,
}  # fmt: skip


def entries_of(cell: Cell) -> list[Entry]:
    """Return one cell of each row, and one more seed of the first."""
    length = {"distill.max_steps": 6, "distill.optimizer.warmup_steps": 2, "prune.hidden_size": 0.5}
    base = override(cell, length)
    cells = {(row, 0): override(base, changes) for row, changes in ROWS.items()}
    cells["kld", 1] = override(base, {"seed": 1})
    return [Entry(row, seed, cell, {}) for (row, seed), cell in cells.items()]


def test_cells_that_share_a_cache_are_bit_for_bit_what_they_are_without(texts, tmp_path, passes):
    """Of the teacher that ships; whichever of them diverges, and whatever hidden states the first one needs."""
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    cell = Resolver().pin(override(Cell(), {**SMALL, "corpus.path": str(tmp_path / "text.txt")}))
    entries, cached, without = entries_of(cell), tmp_path / "cached", tmp_path / "without"
    assert runner_of(without, cache_teacher=False).run(entries) == 1
    passes()
    assert runner_of(cached).run(entries) == 1
    assert passes() == 6 + 6  # the cache of one seed, and the one cell of the other
    same(entries, cached, without)
    assert origins(entries, cached) == [CACHE] * 6 + [None, "model"]
    assert set(origins(entries, without)) == {"model", None}
    assert not list(cached.glob(f"{CACHE}/*"))


@pytest.fixture(scope="module")
def entries(shared_cell: Cell) -> list[Entry]:
    """Cells of a tiny teacher."""
    return entries_of(shared_cell)


@pytest.fixture(scope="module")
def without(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which every cell asked the tiny teacher itself."""
    folder = tmp_path_factory.mktemp("without")
    assert runner_of(folder, cache_teacher=False).run(entries) == 1
    return folder


@pytest.mark.parametrize(
    "bar", [StoppingBar(sequence=6), StoppingBar(step=1), StoppingBar(step=17)], ids=["caching", "first", "third"]
)
def test_interrupted_and_resumed_is_uninterrupted(entries, without, tmp_path, bar):
    with pytest.raises(Stop):
        runner_of(tmp_path, bar).run(entries)
    assert list(tmp_path.glob(f"{CACHE}/*"))
    assert runner_of(tmp_path).run(entries) == 1
    same(entries, tmp_path, without)
    assert not list(tmp_path.glob(f"{CACHE}/*"))


def test_begun_with_a_cache_and_ended_without(entries, without, tmp_path):
    with pytest.raises(Stop):
        runner_of(tmp_path, StoppingBar(step=13)).run(entries)
    assert runner_of(tmp_path, cache_teacher=False).run(entries) == 1
    same(entries, tmp_path, without)


@pytest.mark.parametrize(
    "changes", [{}, STATES, {"distill.top_k": 7}, {"distill.precision": "bf16-mixed"}],
    ids=["float32", "states", "top-k", "bfloat16"],
)  # fmt: skip
def test_micro_batches_and_precisions_give_the_same_bits(base, tmp_path, changes, passes):
    cells = pair(base, changes, {**changes, "distill.logit_loss": "reverse_kld"})
    run(tmp_path / "cached", cells, grad_accum_steps=2)
    assert passes() == 12
    run(tmp_path / "without", cells, grad_accum_steps=2, cache_teacher=False)
    same(cells, tmp_path / "cached", tmp_path / "without")
