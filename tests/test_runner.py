"""The runner among other processes and in memory: it waits for busy cells and keeps no model it has finished with."""

from __future__ import annotations

import gc
import weakref

import pytest
from process import python
from transformers import PreTrainedModel

from lit_prune.config import Optim
from lit_prune.grid import Entry
from lit_prune.progress import Bar
from lit_prune.runner import Runner
from lit_prune.settings import override
from lit_prune.tracking import Mirror

HOLD = """
import sys
from pathlib import Path
from lit_prune.address import digest
from lit_prune.store import Node, Store
folder = Path(sys.argv[1])
with Store(folder.parents[1]).hold("cell", __import__("json").loads(sys.argv[2])) as node:
    assert node.folder == folder
    print("held", flush=True)
    if sys.stdin.readline() == "finish\\n":
        node.finish({"lm_loss": 7.0})
"""


@pytest.fixture
def entry(tiny_cell) -> Entry:
    return Entry("row", 0, override(tiny_cell, {"student.hidden": 0.5, "distill.steps": 2}), {})


class Asking(Bar):
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
    import json

    from lit_prune.address import identity

    node = tiny_runner.store.node(entry.cell, "cell")
    holder = python(HOLD, node.folder, json.dumps(identity(entry.cell, "cell")))
    try:
        assert holder.stdout.readline() == "held\n", holder.stderr.read()
        tiny_runner.bar = Asking(holder, word)
        assert tiny_runner.run([entry]) == 0
    finally:
        holder.kill()
        holder.wait()
    assert (node.result["lm_loss"] != 7.0) == computed_here


@pytest.mark.parametrize("cohort", [True, False])
def test_of_finished_and_failed_cells_only_the_teacher_stays_in_memory(entry, tiny_runner, cohort, monkeypatch):
    """Without a garbage collection: nothing may refer to itself."""
    wild = {"distill.optim": Optim(lr=1e30, clip=1e30, warmup=0)}
    rows = [{}, {"distill.alpha": "dynamic", "distill.embedding": True}, {"student.weights": "random"}, wild]
    entries = [
        Entry(f"row {place}", seed, override(entry.cell, {**row, "seed": seed, "evaluation.checks": 1}), {})
        for seed in range(2)
        for place, row in enumerate(rows)
    ]
    live: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()
    start = PreTrainedModel.__init__

    def counted(model, *args, **kwargs):
        start(model, *args, **kwargs)
        live.add(model)

    monkeypatch.setattr(PreTrainedModel, "__init__", counted)
    how = tiny_runner.execution.__class__(accelerator="cpu", checkpoint_seconds=0.0, log_every=2, cohort=cohort)
    runner = Runner(tiny_runner.store, how, Bar(0, quiet=True), Mirror("none", "disabled", tiny_runner.store.root))
    gc.collect()
    gc.disable()
    try:
        assert runner.run(entries) == 2
        assert len({id(model.base_model) for model in live}) == 1
    finally:
        gc.enable()
