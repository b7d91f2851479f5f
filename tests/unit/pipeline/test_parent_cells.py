"""Cells whose student is pruned from a parent's retrained one: what is computed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refuses
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Cell, Corpus, Execution, Teacher
from lit_prune.config.overrides import override, parent_of
from lit_prune.integrations.wandb.tracker import WandbTracker
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.runner import Runner
from lit_prune.pipeline.schedule import planned_steps
from lit_prune.pipeline.validate import check
from lit_prune.pipeline.work import flops_of_token
from lit_prune.pruning.shapes import pruned_config
from lit_prune.store import Store
from lit_prune.store.address import key

PINNED = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))
WHOLE = {"prune.hidden_size": None, "prune.intermediate_size": None, "prune.num_attention_heads": None}
KEPT = {f"parent.{path}": value for path, value in WHOLE.items()}
CHAIN = {**KEPT, "parent.prune.intermediate_size": 0.75, "prune.intermediate_size": 0.5, "parent.distill.max_steps": 3}
"""48 neurons, then 36, then 18."""


@pytest.fixture
def make_folder(tiny_llama, tiny_tokenizer, tmp_path) -> Callable[..., Path]:
    """A maker of models beside `tiny_llama`, with its tokenizer, of other weights or another vocabulary."""

    def make(name: str, seed: int = 0, **config: Any) -> Path:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(type(tiny_llama.config)(**{**tiny_llama.config.to_dict(), **config}))
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def plain(make_folder, texts, tmp_path) -> Cell:
    """A cell without a source, of 2 steps, on a tiny teacher and text."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": document}) + "\n" for document in texts))
    changes = {
        **WHOLE, "teacher.model": str(make_folder("teacher")), "corpus.path": str(text),
        "calibration.num_sequences": 4, "calibration.seq_len": 16, "distill.seq_len": 16, "distill.batch_size": 2,
        "distill.max_steps": 2,
        "distill.optimizer.warmup_steps": 1, "evaluation.num_sequences": 4, "evaluation.seq_len": 16,
    }  # fmt: skip
    return Resolver().pin(override(Cell(), changes))


def entry_of(cell: Cell, **changes: Any) -> Entry:
    return Entry("row", 0, Resolver().pin(override(cell, changes)), {})


def runner_of(folder: Path, bar: ProgressBar | None = None) -> Runner:
    mirror = WandbTracker("chain", "disabled", folder)
    return Runner(Store(folder), Execution(accelerator="cpu"), bar or ProgressBar(0, quiet=True), mirror)


def compute(folder: Path, *found: Entry) -> list[dict[str, Any]]:
    runner = runner_of(folder)
    runner.check(entry.cell for entry in found)
    assert runner.run(found) == 0
    return [runner.store.node(entry.cell, "cell").result for entry in found]


def weights(store: Store, cell: Cell, stage: str) -> dict[str, torch.Tensor]:
    return load_file(store.node(cell, stage).folder / "model" / "model.safetensors")


def test_a_budget_buys_a_source_the_steps_of_its_own_size(plain):
    cell = Resolver().pin(override(plain, {**CHAIN, "parent.distill.max_steps": 3, "distill.max_flops": 1e8}))
    assert parent_of(cell).distill.max_steps == 3
    inherits = Resolver().pin(override(plain, {**KEPT, "prune.intermediate_size": 0.5, "distill.max_flops": 1e8}))
    for each in (inherits, parent_of(inherits)):
        assert each.distill.max_flops is None
        assert each.distill.max_steps == pytest.approx(1e8 / (2 * 16 * flops_of_token(each)), abs=0.5)
    assert parent_of(inherits).distill.max_steps < inherits.distill.max_steps


def test_a_source_that_keeps_everything_and_is_not_trained_changes_nothing(plain, tmp_path):
    alone = entry_of(plain, **{"prune.intermediate_size": 0.5, "prune.num_hidden_layers": 2})
    chained = entry_of(alone.cell, **KEPT, **{"parent.prune.num_hidden_layers": None, "parent.distill.max_steps": 0})
    first, second = compute(tmp_path / "store", alone, chained)
    assert first == second
    assert {path.name for path in (tmp_path / "store").glob("cell/*")} == {alone.key, chained.key}


def test_the_retrained_student_of_the_source_is_what_is_pruned(plain, tmp_path):
    entry, store = entry_of(plain, **CHAIN), Store(tmp_path / "store")
    source = parent_of(entry.cell)
    assert planned_steps(store, [entry, Entry("middle", 0, source, {})]) == 5
    compute(store.root, entry)
    plan = json.loads((store.node(entry.cell, "student").folder / "plan.json").read_text())
    assert (plan["original"]["intermediate_size"], len(plan["layers"][0]["neurons"])) == (36, 18)
    middle, small = weights(store, source, "cell"), weights(store, entry.cell, "student")
    for index, block in enumerate(plan["layers"]):
        name = f"model.layers.{index}.mlp.up_proj.weight"
        assert torch.equal(small[name], middle[name][block["neurons"]])
    found = store.node(entry.cell, "student").result
    mlp, rest = 3 * 3 * 32, 2 * 256 * 32 + 3 * (2 * 32 * 32 + 2 * 16 * 32 + 2 * 32) + 32
    assert found["share"] == (18 * mlp + rest) / (48 * mlp + rest)
    assert found["share_of_parent"] == (18 * mlp + rest) / (36 * mlp + rest)


def test_a_source_is_computed_and_counted_once_and_is_a_cell_like_any_other(plain, tmp_path):
    first, bar = entry_of(plain, **CHAIN), ProgressBar(0, quiet=True)
    second, middle = (
        entry_of(first.cell, **{"prune.intermediate_size": 0.25}),
        Entry("middle", 0, parent_of(first.cell), {}),
    )
    store = Store(tmp_path / "store")
    assert runner_of(store.root, bar).run([first, second, middle]) == 0
    assert {path.name for path in store.root.glob("cell/*")} == {first.key, second.key, middle.key}
    assert bar.done == 2 + 3 + 2
    assert planned_steps(store, [first, second, middle]) == 0


class Killed(ProgressBar):
    """Progress that ends the program where the second student is pruned: its source is done, and nothing else."""

    prunings = 0

    def say(self, what: str) -> None:
        self.prunings += what.endswith("pruning")
        if self.prunings == 2:
            raise KeyboardInterrupt


def test_killed_between_a_source_and_its_cell_the_source_is_found_again(plain, tmp_path):
    entry = entry_of(plain, **CHAIN)
    (whole,) = compute(tmp_path / "whole", entry)
    with pytest.raises(KeyboardInterrupt):
        runner_of(tmp_path / "store", Killed(0, quiet=True)).run([entry])
    store = Store(tmp_path / "store")
    assert planned_steps(store, [entry]) == 2
    source = store.node(parent_of(entry.cell), "cell").folder / "result.json"
    written = source.stat().st_mtime_ns
    assert compute(store.root, entry) == [whole]
    assert source.stat().st_mtime_ns == written


def test_a_source_that_fails_fails_its_cell_and_no_other(plain, tmp_path):
    bad = entry_of(
        plain, **CHAIN, **{"parent.distill.optimizer.lr": 1e30, "parent.distill.optimizer.max_grad_norm": 1e30}
    )
    runner, good = runner_of(tmp_path / "store"), entry_of(plain)
    assert runner.run([bad, good]) == 1
    assert runner.store.node(bad.cell, "cell").error
    assert runner.store.node(good.cell, "cell").result is not None


def test_a_source_of_another_teacher_is_another_start_with_the_same_teacher_to_imitate(plain, make_folder, tmp_path):
    early = str(make_folder("early", seed=1))
    entry = entry_of(
        plain, **KEPT, **{"parent.teacher.model": early, "parent.distill.max_steps": 0, "prune.intermediate_size": 0.5}
    )
    source = parent_of(entry.cell)
    assert source.teacher.fingerprint not in (None, entry.cell.teacher.fingerprint)
    direct = entry_of(plain, **{"teacher.model": early, "prune.intermediate_size": 0.5, "distill.max_steps": 0})
    compute(tmp_path / "store", entry, direct)
    ours, theirs = (weights(Store(tmp_path / "store"), e.cell, "student") for e in (entry, direct))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_config_of_a_source_is_known_before_it_is_computed(plain, tmp_path):
    """Also of one of two prunings, the first from random weights."""
    first = {"parent.parent.prune.num_hidden_layers": 2, "parent.parent.distill.max_steps": 1}
    entry = entry_of(
        plain, **CHAIN, **first, **{"parent.parent.prune.init": "random", "parent.prune.num_hidden_layers": None}
    )
    expected = pruned_config(entry.cell)
    compute(tmp_path / "store", entry)
    store = Store(tmp_path / "store")
    folder = store.node(parent_of(entry.cell), "cell").folder / "model"
    found = type(expected).from_pretrained(folder)
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        assert getattr(found, name) == getattr(expected, name), name


IMITATING = {"distill.imitate": "parent", "parent.distill.imitate": "teacher"}


def test_a_parent_that_is_the_teacher_teaches_the_same(plain, tmp_path):
    chained = {**KEPT, "parent.distill.max_steps": 0, "prune.intermediate_size": 0.5}
    found = compute(tmp_path / "store", entry_of(plain, **chained), entry_of(plain, **chained, **IMITATING))
    assert found[0] == found[1]


def test_a_student_imitates_the_retrained_parent_that_it_was_cut_from(plain, tmp_path):
    validated = {"evaluation.num_validations": 1, "parent.evaluation.num_validations": 0}
    first, second = entry_of(plain, **CHAIN, **validated), entry_of(plain, **CHAIN, **validated, **IMITATING)
    teacher, parent = compute(tmp_path / "store", first, second)
    assert first.cell != second.cell
    assert key(parent_of(first.cell)) == key(parent_of(second.cell))
    assert parent["lm_loss_before"] == teacher["lm_loss_before"]
    assert parent["kd_loss_before"] != teacher["kd_loss_before"]
    assert parent["lm_loss"] != teacher["lm_loss"]
    assert flops_of_token(second.cell) < flops_of_token(first.cell)


# What is refused


@pytest.mark.parametrize(
    ("changes", "field", "values"),
    [
        ({"prune.intermediate_size": 40}, "prune.intermediate_size", [40, 36]),
        ({"parent.prune.intermediate_size": 60}, "parent.prune.intermediate_size", [60, 48]),
        ({"parent.parent.prune.intermediate_size": 60}, "parent.parent.prune.intermediate_size", [60, 48]),
        (
            {"parent.prune.width_criterion": "actvation"},
            "parent.prune.width_criterion",
            ["'actvation'", "'activation'"],
        ),
        ({"parent.distill.max_steps": -1}, "parent.distill.max_steps", [">= 0", -1]),
        ({"prune.init": "random"}, "parent", ["prune.init", "random"]),
        ({"prune.init_from": "MODEL"}, "parent", ["prune.init_from", "MODEL"]),
        ({"parent.prune.init": "random", "parent.distill.max_steps": 0}, "parent.prune.init", ["random"]),
        ({"parent.prune.width_allocation": "global"}, "parent.prune", ["width"]),
        ({"parent.prune.plan_path": "nowhere.json"}, "parent.prune.plan_path", ["nowhere.json"]),
        ({"distill.imitate": "parent"}, "parent.distill.imitate", ["teacher", "parent"]),
        ({"parent.teacher.model": "OTHER"}, "parent", [300, 256]),
    ],
)
def test_a_source_that_cannot_be_is_refused_in_one_line(changes, field, values, plain, make_folder):
    places = {"OTHER": str(make_folder("other", vocab_size=300)), "MODEL": plain.teacher.model}
    changes = {path: places.get(value, value) for path, value in changes.items()}
    with refuses(field, *(places.get(value, value) for value in values)):
        check(entry_of(plain, **{**CHAIN, **changes}).cell)
