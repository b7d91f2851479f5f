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
from lit_prune.config.overrides import override, plain_of, source_of, sources_of
from lit_prune.config.profiles import load_profile
from lit_prune.config.table import Claim, Table, axis
from lit_prune.integrations.wandb.tracker import WandbTracker
from lit_prune.pipeline.costs import flops_of_token
from lit_prune.pipeline.expand import Entry, entries
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.runner import Runner
from lit_prune.pipeline.schedule import planned_steps
from lit_prune.pipeline.validate import check
from lit_prune.pruning.shapes import pruned_config
from lit_prune.report.results_frame import tidy
from lit_prune.store import Store
from lit_prune.store.address import STAGES, identity, key

PINNED = Cell(corpus=Corpus(fingerprint="0" * 64), teacher=Teacher(fingerprint="1" * 64))
WHOLE = {"student.hidden": None, "student.neurons": None, "student.heads": None}
KEPT = {f"source.{path}": value for path, value in WHOLE.items()}
CHAIN = {**KEPT, "source.student.neurons": 0.75, "student.neurons": 0.5, "source.distill.steps": 3}
"""48 neurons, then 36, then 18."""


# What a source is


def test_a_source_inherits_all_it_does_not_change_itself():
    cell = override(Cell(), {"source.student.layers": 0.8, "student.layers": 3, "seed": 7, "distill.steps": 5})
    plain = dataclasses.replace(cell, source=None)
    assert source_of(plain) is None
    assert source_of(cell) == override(plain, {"student.layers": 0.8})


def test_the_order_of_changes_and_calls_does_not_matter():
    first = override(override(Cell(), {"source.seed": 5, "source.source.student.layers": 5}), {"seed": 3})
    second = override(Cell(), {"seed": 3, "source.source.student.layers": 5, "source.seed": 5})
    assert sources_of(first) == sources_of(second)
    assert [cell.seed for cell in (first, *sources_of(first))] == [3, 5, 5]
    assert [cell.student.layers for cell in (first, *sources_of(first))] == [None, None, 5]
    assert key(first) == key(second)


def test_a_later_change_of_a_source_takes_the_place_of_an_earlier_one():
    cell = override(override(Cell(), {"source.distill.optim.lr": 0.5}), {"source.distill": {"optim": {"lr": 0.25}}})
    assert source_of(cell).distill == override(cell, {"distill.optim.lr": 0.25}).distill
    assert override(cell, {"source": {}}) == cell
    assert override(cell, {"source": None}).source is None
    assert sources_of(override(cell, {"source.source": {}, "source.source.seed": 4}))[1].seed == 4


def test_a_profile_names_a_source(tmp_path):
    path = tmp_path / "chain.yaml"
    path.write_text("student: {layers: 3}\nsource:\n  student: {layers: 4, drop: []}\n  source: {}\nseeds: 2\n")
    cell = load_profile(str(path)).cell
    assert [c.student.layers for c in (cell, *sources_of(cell))] == [3, 4, 4]
    assert plain_of(cell)["source"] == {"student.layers": 4, "student.drop": (), "source": ()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source.student.layesr": 3}, "source: unknown field 'student.layesr'; perhaps you meant 'student.layers'"),
        ({"source.source.student.hiden": 3}, "source: unknown field 'student.hiden'; perhaps"),
        ({"source": 5}, "source: takes fields of a cell, {} or null, not 5"),
        ({"source.source": "all"}, "source: source: takes fields of a cell"),
        ({"source.student.layers": "three"}, "source: student.layers: should be a valid integer"),
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
    cell = override(PINNED, {"source.student.layers": 5})
    expected = "source" in STAGES[stage]
    for other in (PINNED, override(cell, {"source.distill.steps": 9}), override(cell, {"source.seed": 9})):
        assert (key(cell, stage) != key(other, stage)) == expected


def test_what_says_the_same_is_the_same_address_and_shows_the_source_whole():
    short = override(PINNED, {"source.student.layers": 5})
    long = override(PINNED, {"source.seed": PINNED.seed, "source.source": None, "source.student.layers": 5})
    assert key(short) == key(long)
    assert identity(short, "cell")["source"] == identity(source_of(short), "cell")
    assert key(source_of(short)) == key(override(PINNED, {"student.layers": 5}))


def test_rows_may_sweep_what_a_source_changes(tmp_path):
    table = Table(
        name="t", question="?", source="here", grid=axis("source.student.layers", 5, 4) * axis("seed", 0),
        label=lambda point: str(point["source.student.layers"]), baseline="5", paper={}, claims=(Claim("5", "4", "x"),),
        references={"teacher": {"source": None}},
    )  # fmt: skip
    found = entries(table, Profile(PINNED), filters={"source.student.layers": 4}, num_seeds=1)
    assert [source_of(entry.cell) and source_of(entry.cell).student.layers for entry in found] == [4, None]
    assert list(tidy(table, found, Store(tmp_path))["source.student.layers"]) == [4, None]
    (more, _) = entries(table, Profile(PINNED), add_rows={"source.seed": 8}, filters={"source.seed": 8}, num_seeds=1)
    assert source_of(more.cell).seed == 8


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
        **WHOLE, "teacher.model": str(make_folder("teacher")), "corpus.source": str(text),
        "importance.samples": 4, "importance.block": 16, "distill.block": 16, "distill.batch": 2, "distill.steps": 2,
        "distill.optim.warmup": 1, "evaluation.blocks": 4, "evaluation.block": 16,
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
    cell = Resolver().pin(override(plain, {**CHAIN, "source.distill.steps": 3, "distill.flops": 1e8}))
    assert source_of(cell).distill.steps == 3
    inherits = Resolver().pin(override(plain, {**KEPT, "student.neurons": 0.5, "distill.flops": 1e8}))
    for each in (inherits, source_of(inherits)):
        assert each.distill.flops is None
        assert each.distill.steps == pytest.approx(1e8 / (2 * 16 * flops_of_token(each)), abs=0.5)
    assert source_of(inherits).distill.steps < inherits.distill.steps


def test_a_source_that_keeps_everything_and_is_not_trained_changes_nothing(plain, tmp_path):
    alone = asked(plain, **{"student.neurons": 0.5, "student.layers": 2})
    chained = asked(alone.cell, **KEPT, **{"source.student.layers": None, "source.distill.steps": 0})
    first, second = compute(tmp_path / "store", alone, chained)
    assert first == second
    assert {path.name for path in (tmp_path / "store").glob("cell/*")} == {alone.key, chained.key}


def test_the_retrained_student_of_the_source_is_what_is_pruned(plain, tmp_path):
    entry, store = asked(plain, **CHAIN), Store(tmp_path / "store")
    source = source_of(entry.cell)
    assert planned_steps(store, [entry, Entry("middle", 0, source, {})]) == 5
    compute(store.root, entry)
    plan = json.loads((store.node(entry.cell, "student").folder / "plan.json").read_text())
    assert (plan["original"]["neurons"], len(plan["blocks"][0]["neurons"])) == (36, 18)
    middle, small = weights(store, source, "cell"), weights(store, entry.cell, "student")
    for index, block in enumerate(plan["blocks"]):
        name = f"model.layers.{index}.mlp.up_proj.weight"
        assert torch.equal(small[name], middle[name][block["neurons"]])
    found = store.node(entry.cell, "student").result
    mlp, rest = 3 * 3 * 32, 2 * 256 * 32 + 3 * (2 * 32 * 32 + 2 * 16 * 32 + 2 * 32) + 32
    assert found["share"] == (18 * mlp + rest) / (48 * mlp + rest)
    assert found["share_of_source"] == (18 * mlp + rest) / (36 * mlp + rest)


def test_a_source_is_computed_and_counted_once_and_is_a_cell_like_any_other(plain, tmp_path):
    first, bar = asked(plain, **CHAIN), ProgressBar(0, quiet=True)
    second, middle = asked(first.cell, **{"student.neurons": 0.25}), Entry("middle", 0, source_of(first.cell), {})
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
    source = store.node(source_of(entry.cell), "cell").folder / "result.json"
    written = source.stat().st_mtime_ns
    assert compute(store.root, entry) == [whole]
    assert source.stat().st_mtime_ns == written


def test_a_source_that_fails_fails_its_cell_and_no_other(plain, tmp_path):
    bad = asked(plain, **CHAIN, **{"source.distill.optim.lr": 1e30, "source.distill.optim.clip": 1e30})
    runner, good = runner_of(tmp_path / "store"), asked(plain)
    assert runner.run([bad, good]) == 1
    assert runner.store.node(bad.cell, "cell").error
    assert runner.store.node(good.cell, "cell").result is not None


def test_a_source_of_another_teacher_is_another_start_with_the_same_teacher_to_imitate(plain, make_folder, tmp_path):
    early = str(make_folder("early", seed=1))
    entry = asked(plain, **KEPT, **{"source.teacher.model": early, "source.distill.steps": 0, "student.neurons": 0.5})
    source = source_of(entry.cell)
    assert source.teacher.fingerprint not in (None, entry.cell.teacher.fingerprint)
    direct = asked(plain, **{"teacher.model": early, "student.neurons": 0.5, "distill.steps": 0})
    compute(tmp_path / "store", entry, direct)
    ours, theirs = (weights(Store(tmp_path / "store"), e.cell, "student") for e in (entry, direct))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_config_of_a_source_is_known_before_it_is_computed(plain, tmp_path):
    """Also of one of two prunings, the first from random weights."""
    first = {"source.source.student.layers": 2, "source.source.distill.steps": 1}
    entry = asked(plain, **CHAIN, **first, **{"source.source.student.weights": "random", "source.student.layers": None})
    expected = pruned_config(entry.cell)
    compute(tmp_path / "store", entry)
    store = Store(tmp_path / "store")
    folder = store.node(source_of(entry.cell), "cell").folder / "model"
    found = type(expected).from_pretrained(folder)
    for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        assert getattr(found, name) == getattr(expected, name), name


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student.neurons": 40}, "student.neurons: 40 asked for, its source has 36"),
        ({"source.student.neurons": 60}, "source: student.neurons: 60 asked for, the teacher has 48"),
        ({"source.source.student.neurons": 60}, "source: source: student.neurons: 60 asked for, the teacher has 48"),
        ({"source.student.criterion": "actvation"}, "source: unknown criterion 'actvation'"),
        ({"source.distill.steps": -1}, "source: distill.steps: -1 asked for"),
        ({"student.weights": "random"}, "source: has no effect where student.weights is random"),
        ({"student.model": "MODEL"}, "source: has no effect where student.model is "),
        ({"source.student.weights": "random", "source.distill.steps": 0}, "source.student.weights: random ones"),
        ({"source.student.widths": "global"}, "source.student: its blocks differ in width"),
        ({"source.student.plan": "nowhere.json"}, "source: student.plan: there is no file nowhere.json"),
        ({"source.teacher.model": "OTHER"}, "source: its vocabulary has 300 entries, the teacher's 256"),
    ],
)
def test_a_source_that_cannot_be_is_refused_in_one_line(changes, message, plain, make_folder):
    places = {"OTHER": str(make_folder("other", vocab_size=300)), "MODEL": plain.teacher.model}
    changes = {path: places.get(value, value) for path, value in changes.items()}
    with pytest.raises(ConfigError) as caught:
        check(asked(plain, **{**CHAIN, **changes}).cell)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
