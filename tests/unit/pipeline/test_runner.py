"""The runner waits for locked cells, releases finished models, and records attempts and failures."""

from __future__ import annotations

import dataclasses
import gc
import json
import weakref

import pytest
from process import python
from transformers import PreTrainedModel

from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Optimizer
from lit_prune.config.overrides import override
from lit_prune.distill.callbacks import Diverged
from lit_prune.pipeline import artifacts
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.runner import Runner
from lit_prune.pipeline.stages import evaluate
from lit_prune.progress import Silent
from lit_prune.store.address import identity

HOLD = """
import sys
from pathlib import Path
from lit_prune.store.address import digest
from lit_prune.store import Node, Store
folder = Path(sys.argv[1])
with Store(folder.parents[1]).hold("cell", __import__("json").loads(sys.argv[2])) as node:
    assert node.folder == folder
    print("held", flush=True)
    if sys.stdin.readline() == "finish\\n":
        node.finish({"lm_loss": 7.0})
"""


WILD = {"distill.optimizer": Optimizer(lr=1e30, max_grad_norm=1e30, warmup_steps=0)}


@pytest.fixture
def entry(tiny_cell) -> Entry:
    return Entry("row", 0, override(tiny_cell, {"prune.hidden_size": 0.5, "distill.max_steps": 2}), {})


class Asking(ProgressBar):
    """Answers the first line about waiting with a word to another process."""

    def __init__(self, process, word: str) -> None:
        super().__init__(0, quiet=True)
        self.process, self.word = process, word

    def say(self, what: str) -> None:
        if "waiting" in what and self.word:
            self.process.stdin.write(self.word)
            self.process.stdin.close()
            self.word = ""


@pytest.mark.parametrize(("word", "computed_here"), [("finish\n", False), ("leave\n", True)])
def test_a_busy_cell_is_waited_for_and_computed_where_its_process_leaves_it(entry, tiny_runner, word, computed_here):
    node = tiny_runner.store.node(entry.cell, "cell")
    holder = python(HOLD, node.folder, json.dumps(identity(entry.cell, "cell")))
    try:
        assert holder.stdout.readline() == "held\n", holder.stderr.read()
        tiny_runner.ctx = dataclasses.replace(tiny_runner.ctx, progress=Asking(holder, word))
        assert tiny_runner.run([entry]) == 0
    finally:
        holder.kill()
        holder.wait()
    assert (node.result["lm_loss"] != 7.0) == computed_here


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_of_finished_and_failed_cells_only_the_teacher_stays_in_memory(entry, tiny_runner, cached, monkeypatch):
    """Without a garbage collection: nothing may refer to itself."""
    rows = [{}, {"distill.alpha": "dynamic", "distill.match_embedding": True}, {"prune.init": "random"}, WILD]
    entries = [
        Entry(f"row {place}", seed, override(entry.cell, {**row, "seed": seed, "evaluation.num_validations": 1}), {})
        for seed in range(2)
        for place, row in enumerate(rows)
    ]
    live: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()
    start = PreTrainedModel.__init__

    def counted(model, *args, **kwargs):
        start(model, *args, **kwargs)
        live.add(model)

    monkeypatch.setattr(PreTrainedModel, "__init__", counted)
    how = dataclasses.replace(tiny_runner.execution, cache_teacher=cached)
    runner = Runner(tiny_runner.store, how, Silent())
    gc.collect()
    gc.disable()
    try:
        assert runner.run(entries) == 2
        assert len({id(model.base_model) for model in live}) == 1
    finally:
        gc.enable()


# Attempts


class Stop(BaseException):
    """The interruption."""


class Stopping(ProgressBar):
    """Interrupts the run at its second step."""

    def at(self, done: int, what: str) -> None:
        if done == 2:
            raise Stop


def test_the_time_of_all_attempts_adds_up(entry, tiny_runner):
    node, ctx = tiny_runner.store.node(entry.cell, "cell"), tiny_runner.ctx
    tiny_runner.ctx = dataclasses.replace(ctx, progress=Stopping(0, quiet=True))
    with pytest.raises(Stop):
        tiny_runner.run([entry])
    node.spend(100.0)  # what the first attempt took, as the clock of a long run would have it
    tiny_runner.ctx = ctx
    assert tiny_runner.run([entry]) == 0
    first, second = node.env["attempts"]
    assert first["seconds"] == 100.0
    assert node.env["seconds"] == pytest.approx(100.0 + second["seconds"])
    assert set(first) == {"started", "commit", "seconds"}


def test_a_checkpoint_records_the_time_so_far(entry, tiny_runner, monkeypatch):
    """A killed process has no other moment to do so."""
    spent = []
    monkeypatch.setattr("lit_prune.store.Node.spend", lambda node, seconds: spent.append(seconds))
    assert tiny_runner.run([entry]) == 0
    assert len(spent) == 2
    assert spent == sorted(spent)


# Failures


def test_a_failed_cell_keeps_its_traceback_and_the_last_frame_of_ours(entry, tiny_runner):
    wild = dataclasses.replace(entry, cell=override(entry.cell, WILD))
    assert tiny_runner.run([wild]) == 1
    node = tiny_runner.store.node(wild.cell, "cell")
    about = json.loads((node.folder / "error.json").read_text())
    assert about["type"] == "Diverged"
    assert about["error"] == node.error == f"Diverged: {about['message']}"
    assert about["frame"].startswith("lit_prune/distill/callbacks.py:")
    assert about["file"] is None
    assert (node.folder / about["traceback"]).read_text().startswith("Traceback")


def test_a_failed_cell_names_the_file_that_cannot_be_read(entry, tiny_runner):
    node = tiny_runner.store.node(entry.cell, "student")
    node.folder.mkdir(parents=True)
    (node.folder / "plan.json").mkdir()
    assert tiny_runner.run([entry]) == 1
    for failed in (node, tiny_runner.store.node(entry.cell, "cell")):
        assert json.loads((failed.folder / "error.json").read_text())["file"] == str(node.folder / "plan.json")


def test_debug_raises_what_a_cell_raised(entry, tiny_runner):
    tiny_runner.debug = True
    with pytest.raises(Diverged):
        tiny_runner.run([dataclasses.replace(entry, cell=override(entry.cell, WILD))])


# The teacher as a row


def test_a_student_that_keeps_everything_is_the_teacher_where_it_lies(entry, tiny_runner):
    sizes = (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_parameters",
    )
    cell = override(entry.cell, {f"prune.{name}": None for name in sizes} | {"distill.max_steps": 0})
    assert tiny_runner.run([dataclasses.replace(entry, cell=cell)]) == 0
    student = tiny_runner.store.node(cell, "student")
    assert student.result["share"] == 1.0
    assert not list(tiny_runner.store.root.glob("*/*/model"))
    teacher = tiny_runner.ctx.load(artifacts.teacher(cell, tiny_runner.ctx))
    expected = evaluate.sequence_losses(cell, tiny_runner.ctx, teacher).mean
    assert tiny_runner.store.node(cell, "cell").result["lm_loss"] == expected
