"""A dry run lists each row: cells, student size, tokens, and the time estimated from earlier cells."""

from __future__ import annotations

import json

import pytest

from lit_prune.cli.table import main
from lit_prune.config import Distill, Execution
from lit_prune.config.overrides import override
from lit_prune.distill.flops import recipe_flops
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.models import loading
from lit_prune.models.shape import num_parameters
from lit_prune.pipeline.costs import Cost, costs, paces_of, runs_of
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.work import WORK, attention_shape, flops_of_token, method_flops
from lit_prune.pruning.method_work import Work
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


def by_row(entries: list[Entry], store: Store, runs=(), **execution) -> dict[str, Cost]:
    return {cost.row: cost for cost in costs(entries, store, runs, Execution(accelerator="cpu", **execution))}


def test_size_tokens_and_time_of_each_row(rows, tmp_path):
    cell = rows[0].cell
    flops = 4 * 2 * 32 * flops_of_token(cell)
    store = Store(tmp_path / "store")
    found = by_row(rows, store, [(flops, 2.0), (2 * flops, 6.0), (flops, 90.0), (0.0, 0.5)])
    retrained, whole = found["retrained"], found["whole"]
    assert (retrained.cells, retrained.steps, retrained.tokens) == (2, 4, 2 * 4 * 2 * 32)
    assert retrained.seconds == pytest.approx(2 * 3.0)  # the median pace is 3 s for these FLOPs
    teacher = loading.load_config(cell.teacher.model)
    assert (whole.parameters, whole.tokens, whole.seconds) == (num_parameters(teacher), 0, 0.5)
    assert retrained.parameters < whole.parameters
    assert {cost.seconds for cost in by_row(rows, store).values()} == {None}
    assert not store.root.exists()


def test_cells_of_far_more_or_fewer_flops_tell_nothing_about_time(rows, tmp_path):
    flops = 4 * 2 * 32 * flops_of_token(rows[0].cell)
    store, others = Store(tmp_path), [(flops / 11, 9.0), (flops * 11, 9.0)]
    assert by_row(rows, store, others)["retrained"].seconds is None
    assert by_row(rows, store, [*others, (flops * 9, 18.0)])["retrained"].seconds == pytest.approx(2 * 2.0)


def test_a_teacher_that_is_trained_first_is_listed_once(rows, tmp_path):
    rows = [Entry(e.row, e.seed, override(e.cell, {"teacher.finetune.max_steps": 7}), {}) for e in rows]
    teacher = by_row(rows, Store(tmp_path))["teacher: fine-tuning"]
    assert (teacher.cells, teacher.steps, teacher.tokens) == (1, 7, 7 * 8 * 256)


# Stages that cells share


def finished(store: Store, stage: str, about: str, **env) -> None:
    """A finished result of a stage, of no cell here."""
    with store.hold(stage, {"about": about}) as node:
        node.finish({"count": 1}, **env)


def test_stages_take_their_median_time_per_work(rows, tmp_path):
    store = Store(tmp_path / "store")
    size = num_parameters(loading.load_config(rows[0].cell.teacher.model))
    before = by_row(rows, store)
    assert list(before)[:3] == ["tokenising (1)", "calibration (1)", "pruning (2)"]
    assert {before[row].cells for row in list(before)[:3]} == {0}
    for place, seconds in enumerate((1.0, 3.0, 80.0)):
        finished(store, "tokens", f"text {place}", seconds=seconds, work=1.0)
        finished(store, "student", f"student {place}", seconds=seconds, work=4.0 * size)
        finished(store, "importance", f"set {place}", seconds=seconds, work=size * 2.0 * 4 * 32)
    files = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    found = by_row(rows, store)
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == files
    # Two students, one of them the whole teacher; the calibration is 4 sequences of 32 tokens.
    assert found["tokenising (1)"].seconds == pytest.approx(3.0)
    assert found["calibration (1)"].seconds == pytest.approx(3.0 / 2)
    assert found["pruning (2)"].seconds == pytest.approx(2 * 3.0 / 4)


def test_the_own_work_of_a_method_takes_the_time_of_earlier_methods_or_of_calibrations(rows, tmp_path):
    store, size = Store(tmp_path / "store"), num_parameters(loading.load_config(rows[0].cell.teacher.model))
    bonsai = [Entry("bonsai", 0, override(rows[0].cell, {"prune.method": "bonsai"}), {})]
    own = method_flops(bonsai[0].cell)
    work = Work(loading.load_config(rows[0].cell.teacher.model), rows[0].cell.calibration)
    assert own == bonsai[0].cell.prune.own_flops(work) > 100 * work.passes()
    assert method_flops(rows[0].cell) == method_flops(override(bonsai[0].cell, {"prune.plan_path": "plan.json"})) == 0
    assert by_row(bonsai, store)["pruning (1)"].seconds is None
    finished(store, "importance", "set", seconds=5.0, work=own)
    finished(store, "head_channels", "set", seconds=4.0, work=own)
    assert by_row(bonsai, store)["pruning (1)"].seconds == pytest.approx(5.0 / 2)
    finished(store, "student", "cut", seconds=3.0, work=2.0 * size)
    assert by_row(bonsai, store)["pruning (1)"].seconds == pytest.approx(1.5 + 5.0 / 2)
    finished(store, "student", "searched", seconds=9.0, work=1.0 * size, method_flops=own / 4)
    assert by_row(bonsai, store)["pruning (1)"].seconds == pytest.approx(1.5 + 4 * (9.0 - 1.5))
    assert by_row(rows, store)["pruning (2)"].seconds == pytest.approx(2 * 1.5)  # not slower for what others search


def test_a_trained_teacher_takes_the_time_per_flop_of_earlier_ones(rows, tmp_path):
    store = Store(tmp_path / "store")
    tuned = [Entry(e.row, e.seed, override(e.cell, {"teacher.finetune.max_steps": 7}), {}) for e in rows]
    work = WORK["correction"](tuned[0].cell)
    plain = Distill(ce_weight=1.0, kd_weight=0.0, seq_len=256)
    config = loading.load_config(rows[0].cell.teacher.model)
    assert work == pytest.approx(7 * 8 * 256 * recipe_flops(plain, config))
    finished(store, "correction", "another", seconds=5.0, work=work / 2)
    assert by_row(tuned, store)["teacher: fine-tuning"].seconds == pytest.approx(10.0)


def test_results_without_time_or_of_another_machine_tell_nothing(rows, tmp_path):
    store = Store(tmp_path / "store")
    finished(store, "tokens", "of an older version")
    finished(store, "student", "elsewhere", seconds=2.0, work=1.0, processor="another")
    assert not any(paces_of(store).values())
    found = by_row(rows, store)
    assert (found["tokenising (1)"].seconds, found["pruning (2)"].seconds) == (None, None)


def test_teacher_outputs_are_counted_where_they_are_cached(rows, tmp_path):
    store = Store(tmp_path / "store")
    two = [Entry(loss, 0, override(rows[0].cell, {"distill.logit_loss": loss}), {}) for loss in ("kld", "mse")]
    work = num_parameters(loading.load_config(rows[0].cell.teacher.model)) * 4 * 2 * 32
    with store.hold("cell", {"about": "another"}) as node:
        node.finish({"lm_loss": 1.0}, seconds=9.0, caching={"seconds": 3.0, "work": 2.0 * work})
    assert by_row(two, store)["teacher outputs (1)"].seconds == pytest.approx(1.5)
    assert "teacher outputs (1)" not in by_row(two[:1], store)
    assert "teacher outputs (1)" in by_row(two[:1], store, keep_teacher_cache=True)
    assert "teacher outputs (1)" not in by_row(two, store, cache_teacher=False)


def test_what_was_computed_is_awaited_no_more_and_tells_its_time(rows, tiny_runner):
    """The stages themselves record what they took."""
    assert tiny_runner.run(rows) == 0
    paces = paces_of(tiny_runner.store)
    assert {stage: len(found) for stage, found in paces.items() if found} == {
        "tokens": 1, "importance": 1, "student": 2
    }  # fmt: skip
    assert by_row([], tiny_runner.store) == {}
    longer = [Entry(e.row, e.seed, override(e.cell, {"distill.max_steps": 5}), {}) for e in rows[:1]]
    assert list(by_row(longer, tiny_runner.store)) == ["retrained"]


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


def test_the_attention_of_the_longest_retraining_is_that_of_the_teacher(rows):
    whole, cell = rows[-1].cell, rows[0].cell
    longer = override(cell, {"distill.max_steps": 9, "distill.seq_len": 16, "distill.batch_size": 4})
    assert attention_shape([whole, cell, longer]) == (4, 4, 2, 16, 8)
    assert attention_shape([whole]) == (whole.evaluation.num_sequences, 4, 2, whole.evaluation.seq_len, 8)
    assert attention_shape([]) is None
