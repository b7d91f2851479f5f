"""A cell whose source's student is pruned: what a source inherits, where it lies, what it gives, what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Cell, ConfigError, Corpus, Execution, Profile, Teacher
from lit_prune.config.overrides import override, parent_of, parents_of, plain_of
from lit_prune.config.profiles import load_profile
from lit_prune.config.table import Claim, Table
from lit_prune.integrations.wandb.tracker import WandbTracker
from lit_prune.pipeline.expand import Entry, entries
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.runner import Runner
from lit_prune.pipeline.schedule import planned_steps
from lit_prune.pipeline.validate import check
from lit_prune.pipeline.work import flops_of_token
from lit_prune.pruning.shapes import pruned_config
from lit_prune.report.results_frame import tidy
from lit_prune.store import Store
from lit_prune.store.address import STAGES, identity, key

PINNED = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))
WHOLE = {"prune.hidden_size": None, "prune.intermediate_size": None, "prune.num_attention_heads": None}
KEPT = {f"parent.{path}": value for path, value in WHOLE.items()}
CHAIN = {**KEPT, "parent.prune.intermediate_size": 0.75, "prune.intermediate_size": 0.5, "parent.distill.max_steps": 3}
"""48 neurons, then 36, then 18."""


# What a source is


def test_a_source_inherits_all_it_does_not_change_itself():
    cell = override(
        Cell(), {"parent.prune.num_hidden_layers": 0.8, "prune.num_hidden_layers": 3, "seed": 7, "distill.max_steps": 5}
    )
    plain = dataclasses.replace(cell, parent=None)
    assert parent_of(plain) is None
    assert parent_of(cell) == override(plain, {"prune.num_hidden_layers": 0.8})


def test_the_order_of_changes_and_calls_does_not_matter():
    first = override(override(Cell(), {"parent.seed": 5, "parent.parent.prune.num_hidden_layers": 5}), {"seed": 3})
    second = override(Cell(), {"seed": 3, "parent.parent.prune.num_hidden_layers": 5, "parent.seed": 5})
    assert parents_of(first) == parents_of(second)
    assert [cell.seed for cell in (first, *parents_of(first))] == [3, 5, 5]
    assert [cell.prune.num_hidden_layers for cell in (first, *parents_of(first))] == [None, None, 5]
    assert key(first) == key(second)


def test_a_later_change_of_a_source_takes_the_place_of_an_earlier_one():
    cell = override(
        override(Cell(), {"parent.distill.optimizer.lr": 0.5}), {"parent.distill": {"optimizer": {"lr": 0.25}}}
    )
    assert parent_of(cell).distill == override(cell, {"distill.optimizer.lr": 0.25}).distill
    assert override(cell, {"parent": {}}) == cell
    assert override(cell, {"parent": None}).parent is None
    assert parents_of(override(cell, {"parent.parent": {}, "parent.parent.seed": 4}))[1].seed == 4


def test_a_profile_names_a_source(tmp_path):
    path = tmp_path / "chain.yaml"
    path.write_text("student: {layers: 3}\nsource:\n  student: {layers: 4, drop: []}\n  source: {}\nseeds: 2\n")
    cell = load_profile(str(path)).cell
    assert [c.prune.num_hidden_layers for c in (cell, *parents_of(cell))] == [3, 4, 4]
    assert plain_of(cell)["parent"] == {"prune.num_hidden_layers": 4, "prune.drop_layers": (), "parent": ()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parent.prune.num_hiden_layers": 3},
            "parent: unknown field 'prune.num_hiden_layers'; perhaps you meant 'prune.num_hidden_layers'",
        ),
        ({"parent.parent.prune.hiden": 3}, "parent: unknown field 'prune.hiden'; perhaps"),
        ({"parent": 5}, "parent: takes fields of a cell, {} or null, not 5"),
        ({"parent.parent": "all"}, "parent.parent: takes fields of a cell"),
        ({"parent.prune.num_hidden_layers": "three"}, "parent.prune.num_hidden_layers: must be a valid integer"),
    ],
)
def test_a_source_is_strict_in_names_and_types(changes, message):
    with pytest.raises(ConfigError) as caught:
        override(Cell(), changes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# Where it lies


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_measured_and_cut_depends_on_the_source_alone_text_and_teacher_do_not(stage):
    cell = override(PINNED, {"parent.prune.num_hidden_layers": 5})
    expected = "source" in STAGES[stage]
    for other in (PINNED, override(cell, {"parent.distill.max_steps": 9}), override(cell, {"parent.seed": 9})):
        assert (key(cell, stage) != key(other, stage)) == expected


def test_what_says_the_same_is_the_same_address_and_shows_the_source_whole():
    short = override(PINNED, {"parent.prune.num_hidden_layers": 5})
    long = override(PINNED, {"parent.seed": PINNED.seed, "parent.parent": None, "parent.prune.num_hidden_layers": 5})
    assert key(short) == key(long)
    assert identity(short, "cell")["source"] == identity(parent_of(short), "cell")
    assert key(parent_of(short)) == key(override(PINNED, {"prune.num_hidden_layers": 5}))


def test_rows_may_sweep_what_a_source_changes(tmp_path):
    table = Table(
        name="t", question="?", source="here", baseline="5",
        rows={str(n): {"parent.prune.num_hidden_layers": n} for n in (5, 4)},
        claims=(Claim("5", "4", "x"),),
        reference_rows={"teacher": {"parent": None}},
    )  # fmt: skip
    found = entries(table, Profile(PINNED), filters={"parent.prune.num_hidden_layers": 4}, num_seeds=1)
    assert [parent_of(entry.cell) and parent_of(entry.cell).prune.num_hidden_layers for entry in found] == [4, None]
    assert list(tidy(table, found, Store(tmp_path))["parent.prune.num_hidden_layers"]) == [4, None]
    (more, _) = entries(table, Profile(PINNED), add_rows={"parent.seed": 8}, filters={"parent.seed": 8}, num_seeds=1)
    assert parent_of(more.cell).seed == 8


# What it gives


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


def asked(cell: Cell, **changes: Any) -> Entry:
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
    alone = asked(plain, **{"prune.intermediate_size": 0.5, "prune.num_hidden_layers": 2})
    chained = asked(alone.cell, **KEPT, **{"parent.prune.num_hidden_layers": None, "parent.distill.max_steps": 0})
    first, second = compute(tmp_path / "store", alone, chained)
    assert first == second
    assert {path.name for path in (tmp_path / "store").glob("cell/*")} == {alone.key, chained.key}


def test_the_retrained_student_of_the_source_is_what_is_pruned(plain, tmp_path):
    entry, store = asked(plain, **CHAIN), Store(tmp_path / "store")
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
    assert found["share_of_source"] == (18 * mlp + rest) / (36 * mlp + rest)


def test_a_source_is_computed_and_counted_once_and_is_a_cell_like_any_other(plain, tmp_path):
    first, bar = asked(plain, **CHAIN), ProgressBar(0, quiet=True)
    second, middle = (
        asked(first.cell, **{"prune.intermediate_size": 0.25}),
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
    entry = asked(plain, **CHAIN)
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
    bad = asked(plain, **CHAIN, **{"parent.distill.optimizer.lr": 1e30, "parent.distill.optimizer.max_grad_norm": 1e30})
    runner, good = runner_of(tmp_path / "store"), asked(plain)
    assert runner.run([bad, good]) == 1
    assert runner.store.node(bad.cell, "cell").error
    assert runner.store.node(good.cell, "cell").result is not None


def test_a_source_of_another_teacher_is_another_start_with_the_same_teacher_to_imitate(plain, make_folder, tmp_path):
    early = str(make_folder("early", seed=1))
    entry = asked(
        plain, **KEPT, **{"parent.teacher.model": early, "parent.distill.max_steps": 0, "prune.intermediate_size": 0.5}
    )
    source = parent_of(entry.cell)
    assert source.teacher.fingerprint not in (None, entry.cell.teacher.fingerprint)
    direct = asked(plain, **{"teacher.model": early, "prune.intermediate_size": 0.5, "distill.max_steps": 0})
    compute(tmp_path / "store", entry, direct)
    ours, theirs = (weights(Store(tmp_path / "store"), e.cell, "student") for e in (entry, direct))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_config_of_a_source_is_known_before_it_is_computed(plain, tmp_path):
    """Also of one of two prunings, the first from random weights."""
    first = {"parent.parent.prune.num_hidden_layers": 2, "parent.parent.distill.max_steps": 1}
    entry = asked(
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
    found = compute(tmp_path / "store", asked(plain, **chained), asked(plain, **chained, **IMITATING))
    assert found[0] == found[1]


def test_a_student_imitates_the_retrained_parent_that_it_was_cut_from(plain, tmp_path):
    validated = {"evaluation.num_validations": 1, "parent.evaluation.num_validations": 0}
    first, second = asked(plain, **CHAIN, **validated), asked(plain, **CHAIN, **validated, **IMITATING)
    teacher, parent = compute(tmp_path / "store", first, second)
    assert first.cell != second.cell
    assert key(parent_of(first.cell)) == key(parent_of(second.cell))
    assert parent["lm_loss_before"] == teacher["lm_loss_before"]
    assert parent["kd_loss_before"] != teacher["kd_loss_before"]
    assert parent["lm_loss"] != teacher["lm_loss"]
    assert flops_of_token(second.cell) < flops_of_token(first.cell)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prune.intermediate_size": 40}, "prune.intermediate_size: 40 asked for, the model to prune has 36"),
        (
            {"parent.prune.intermediate_size": 60},
            "parent.prune.intermediate_size: 60 asked for, the model to prune has 48",
        ),
        (
            {"parent.parent.prune.intermediate_size": 60},
            "parent.parent.prune.intermediate_size: 60 asked for, the model to prune has 48",
        ),
        ({"parent.prune.width_criterion": "actvation"}, "parent: unknown criterion 'actvation'"),
        ({"parent.distill.max_steps": -1}, "parent.distill.max_steps: must be >= 0, got -1"),
        ({"prune.init": "random"}, "parent: has no effect where prune.init is random"),
        ({"prune.init_from": "MODEL"}, "parent: has no effect where prune.init_from is "),
        ({"parent.prune.init": "random", "parent.distill.max_steps": 0}, "parent.prune.init: random ones"),
        ({"parent.prune.width_allocation": "global"}, "parent.prune: its layers differ in width"),
        ({"parent.prune.plan_path": "nowhere.json"}, "parent.prune.plan_path: there is no file nowhere.json"),
        ({"distill.imitate": "parent"}, "parent.distill.imitate: must be teacher where there is no parent, got parent"),
        ({"parent.teacher.model": "OTHER"}, "parent: its vocabulary has 300 entries, the teacher's 256"),
    ],
)
def test_a_source_that_cannot_be_is_refused_in_one_line(changes, message, plain, make_folder):
    places = {"OTHER": str(make_folder("other", vocab_size=300)), "MODEL": plain.teacher.model}
    changes = {path: places.get(value, value) for path, value in changes.items()}
    with pytest.raises(ConfigError) as caught:
        check(asked(plain, **{**CHAIN, **changes}).cell)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
