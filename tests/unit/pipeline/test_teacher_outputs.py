"""Cached teacher outputs: cells are bit for bit what they are without, whatever is interrupted, damaged or missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from process import python
from safetensors.torch import load_file

from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Cell, ConfigError, Execution, Optimizer
from lit_prune.config.overrides import override
from lit_prune.data.retraining import RetrainingData
from lit_prune.distill import cache as cache_files
from lit_prune.distill.teacher import FrozenTeacher
from lit_prune.integrations.wandb.tracker import WandbTracker
from lit_prune.models.loading import load_model
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.runner import Runner
from lit_prune.store import Store
from lit_prune.store.address import CACHE, identity

SMALL = {
    "calibration.num_sequences": 4, "calibration.seq_len": 32, "distill.seq_len": 32, "distill.batch_size": 2,
    "distill.max_steps": 6, "distill.optimizer.warmup_steps": 2, "evaluation.num_sequences": 2,
    "evaluation.seq_len": 32, "prune.hidden_size": 0.5,
}  # fmt: skip
STATES = {"distill.alpha": "dynamic", "distill.match_embedding": True, "distill.match_layer_output": ("last:last",)}
ROWS: dict[str, dict[str, Any]] = {
    "kld": {},
    "with states": STATES,
    "other states": {"distill.alpha": 0.5, "distill.match_mlp_input": ("2:1",), "distill.match_attention": ("1:1",)},
    "mse and cross-entropy": {"distill.logit_loss": "mse", "distill.ce_weight": 1.0, "evaluation.num_validations": 2},
    "top 7": {"distill.top_k": 7, "distill.temperature": 2.0},
    "three steps": {"distill.max_steps": 3, "prune.intermediate_size": 0.5},
    "wild": {"distill.optimizer": Optimizer(lr=1e30, max_grad_norm=1e30, warmup_steps=0)},
}
Passes = Callable[[], int]


class Stop(BaseException):
    """The interruption, which no run may swallow."""


class StoppingBar(ProgressBar):
    """Interrupts the run at a step of all cells, or at a sequence that is cached."""

    def __init__(self, step: int | None = None, sequence: int | None = None) -> None:
        super().__init__(0, quiet=True)
        self.step, self.sequence = step, sequence

    def at(self, done: int, what: str) -> None:
        if self.step is not None and done >= self.step:  # a run that diverges jumps to its end
            raise Stop

    def count(self, what: str, done: int, total: int | None, unit: str) -> None:
        if "caching" in what and self.sequence is not None and done >= self.sequence:
            raise Stop


@pytest.fixture
def base(tiny_cell: Cell) -> Cell:
    return override(tiny_cell, {"distill.max_steps": 6, "prune.hidden_size": 0.5})


@pytest.fixture(scope="module")
def entries(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """One cell of each row, and one more seed of the first, of the shipped teacher."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n\n".join(texts))
    base = Resolver().pin(override(Cell(), {**SMALL, "corpus.path": str(text)}))
    cells = {(row, 0): override(base, changes) for row, changes in ROWS.items()}
    cells["kld", 1] = override(base, {"seed": 1})
    return [Entry(row, seed, cell, {}) for (row, seed), cell in cells.items()]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """A function that returns the number of forward passes of teachers since its last call."""
    seen: list[int] = []
    observe = FrozenTeacher.observe
    monkeypatch.setattr(FrozenTeacher, "observe", lambda *arguments: seen.append(1) or observe(*arguments))

    def counted() -> int:
        number = len(seen)
        seen.clear()
        return number

    return counted


def pair(base: Cell, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> list[Entry]:
    """Two cells that differ in their logit loss, or as given."""
    changes = {"first": first or {}, "second": second or {"distill.logit_loss": "mse"}}
    return [Entry(name, 0, override(base, change), {}) for name, change in changes.items()]


def runner_of(folder: Path, bar: ProgressBar | None = None, **execution: Any) -> Runner:
    how = Execution(accelerator="cpu", checkpoint_seconds=0.0, log_every=1, **execution)
    return Runner(Store(folder), how, bar or ProgressBar(0, quiet=True), WandbTracker("test", "disabled", folder))


def run(folder: Path, entries: list[Entry], **execution: Any) -> None:
    assert runner_of(folder, **execution).run(entries) == 0


@pytest.fixture(scope="module")
def without(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which every cell asked the teacher itself."""
    folder = tmp_path_factory.mktemp("without")
    assert runner_of(folder, cache_teacher=False).run(entries) == 1
    return folder


def origins(entries: list[Entry], folder: Path) -> list[str | None]:
    """Where each cell says that its teacher outputs came from, by kind."""
    found = [Store(folder).node(entry.cell, "cell").env.get("teacher_outputs") for entry in entries]
    return [origin and origin.split("/")[0] for origin in found]


def caches(folder: Path) -> list[dict[str, Any]]:
    """The results of the caches in a store."""
    return [json.loads(path.read_text()) for path in folder.glob(f"{CACHE}/*/result.json")]


def same(entries: list[Entry], ours: Path, theirs: Path) -> None:
    """Weights, history and result of every cell that does not diverge are the same bits."""
    for entry in entries:
        if entry.row == "wild":
            continue
        (our, their) = (Path(store) / "cell" / entry.key for store in (ours, theirs))
        weights = [load_file(folder / "model/model.safetensors") for folder in (our, their)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1]), entry.row
        histories = [pd.read_csv(folder / "metrics.csv").drop(columns="tokens_per_second") for folder in (our, their)]
        pd.testing.assert_frame_equal(*histories, check_exact=True)
        assert Store(ours).node(entry.cell, "cell").result == Store(theirs).node(entry.cell, "cell").result


@pytest.mark.slow
def test_cells_that_share_a_cache_are_bit_for_bit_what_they_are_without(entries, without, tmp_path, passes):
    """Whichever of them diverges, and whatever hidden states the first one needs."""
    assert runner_of(tmp_path).run(entries) == 1
    assert passes() == 6 + 6  # the cache of one seed, and the one cell of the other
    same(entries, tmp_path, without)
    assert origins(entries, tmp_path) == [CACHE] * 6 + [None, "model"]
    assert set(origins(entries, without)) == {"model", None}
    assert not list(tmp_path.glob(f"{CACHE}/*"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_begun_with_a_cache_and_ended_without(entries, without, tmp_path):
    with pytest.raises(Stop):
        runner_of(tmp_path, StoppingBar(step=13)).run(entries)
    assert runner_of(tmp_path, cache_teacher=False).run(entries) == 1
    same(entries, tmp_path, without)


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("changes", "shared"),
    [
        ({"distill.logit_loss": "mse"}, True),
        ({"distill.max_steps": 2}, True),
        ({"prune.hidden_size": 0.75}, True),
        ({"distill.batch_size": 4}, False),
        ({"distill.seq_len": 16}, False),
        ({"distill.precision": "bf16-mixed"}, False),
        ({"corpus.holdout_fraction": 0.3}, False),
        ({"seed": 5}, False),
        ({"distill.kd_weight": 0.0, "distill.ce_weight": 1.0}, False),
        ({"distill.teacher_optimizer": Optimizer(warmup_steps=0)}, False),
        ({"distill.max_steps": 0}, False),
    ],
    ids=str,
)
def test_only_cells_that_read_the_same_data_for_the_same_teacher_share_a_cache(base, changes, shared, tmp_path):
    """Cells that share a cache are computed one after the other."""
    first, other, last = [
        Entry(name, 0, override(base, {"distill.ce_weight": w} | more), {})
        for name, w, more in (("first", 1.0, {}), ("other", 2.0, changes), ("last", 3.0, {}))
    ]
    runner = runner_of(tmp_path)
    order = runner.teacher_outputs.expect([first, other, last], runner.ctx)
    assert [entry.row for entry in order] == (["first", "other", "last"] if shared else ["first", "last", "other"])


def test_the_cache_holds_the_fewest_bytes_that_serve_all(base, tmp_path):
    run(tmp_path / "one", pair(base, {"distill.top_k": 7}, {"distill.top_k": 7, "seed": 0, "distill.ce_weight": 1.0}),
        keep_teacher_cache=True)  # fmt: skip
    (top_k,) = caches(tmp_path / "one")
    run(tmp_path / "two", pair(base, {"distill.top_k": 7}, {"distill.top_k": 9}), keep_teacher_cache=True)
    (last,) = caches(tmp_path / "two")
    tokens = 6 * 2 * 32
    assert (top_k["top_k"], top_k["bytes"]) == (7, tokens * 7 * (4 + 4))
    assert (last["top_k"], last["bytes"]) == (None, tokens * 32 * 4)


def test_the_probability_that_is_left_out_is_in_the_result(base, tmp_path):
    run(tmp_path, pair(base, {"distill.top_k": 7})[:1], keep_teacher_cache=True)
    (tokens,) = (path.parent for path in tmp_path.glob("tokens/*/tokens.json"))
    data = RetrainingData(tokens, seq_len=32, batch_size=2, max_steps=6, seed=0)
    ids = torch.cat([batch["input_ids"] for batch in data.train_dataloader()])
    with torch.no_grad():
        logits = load_model(base.teacher.model)(ids).logits[:, :-1]
    missing = 1 - logits.softmax(-1).topk(7).values.sum(-1)
    (cache,) = caches(tmp_path)
    assert cache["missing_mass"] == pytest.approx(missing.mean().item(), rel=1e-4)


def test_a_kept_cache_serves_later_runs_and_grows_where_they_need_more(base, tmp_path, passes):
    first, second = pair(base)
    run(tmp_path, [first], keep_teacher_cache=True)
    assert passes() == 6
    run(tmp_path, [second])
    assert passes() == 0
    assert origins([second], tmp_path) == [CACHE]
    longer = pair(base, {"distill.max_steps": 8}, {"distill.max_steps": 5, **STATES})
    run(tmp_path, longer)
    assert passes() == 8
    (cache,) = caches(tmp_path)
    assert (cache["sequences"], len(cache["states"]), cache["keep"]) == (16, 2, True)


def test_one_missing_cell_takes_a_cache_that_is_there_and_writes_none(base, tmp_path, passes):
    cells = pair(base)
    with pytest.raises(Stop):
        runner_of(tmp_path, StoppingBar(step=7)).run(cells)
    assert origins(cells[:1], tmp_path) == [CACHE]
    passes()
    run(tmp_path, cells)
    assert passes() == 0
    run(tmp_path, pair(base, {"distill.ce_weight": 1.0})[:1])
    assert passes() == 6
    assert not list(tmp_path.glob(f"{CACHE}/*"))


def test_a_damaged_cache_is_written_again(base, tmp_path, passes):
    run(tmp_path, pair(base), keep_teacher_cache=True)
    (path,) = tmp_path.glob(f"{CACHE}/*/last")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    passes()
    run(tmp_path, pair(base, {"distill.ce_weight": 1.0}, {"distill.ce_weight": 2.0}), keep_teacher_cache=True)
    assert passes() == 6
    (path,) = tmp_path.glob(f"{CACHE}/*/last")
    assert path.read_bytes() == whole


@pytest.mark.parametrize("full", ["the estimate", "the disk"])
def test_without_room_the_teacher_is_run_unless_a_cache_was_requested(base, tmp_path, monkeypatch, full, passes):
    if full == "the estimate":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(cache_files, "shutil", SimpleNamespace(disk_usage=lambda path: usage._replace(free=0)))
    else:
        monkeypatch.setattr(cache_files, "preallocate", _no_space)
    run(tmp_path / "automatic", pair(base))
    assert passes() == 1 + 2 * 6  # one to learn the size
    assert origins(pair(base), tmp_path / "automatic") == ["model"] * 2
    assert not list(tmp_path.glob(f"automatic/{CACHE}/*"))
    with pytest.raises(ConfigError, match=r"^--keep-teacher-cache: "):
        run(tmp_path / "requested", pair(base), keep_teacher_cache=True)


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_an_automatic_cache_takes_half_of_the_free_space_at_most(base, tmp_path, monkeypatch):
    needed = 6 * 2 * 32 * 32 * 4
    usage = shutil.disk_usage(tmp_path)
    for free, origin in ((2 * needed - 2, "model"), (2 * needed, CACHE)):
        here = SimpleNamespace(disk_usage=lambda path, free=free: usage._replace(free=free))
        monkeypatch.setattr(cache_files, "shutil", here)
        run(tmp_path / origin, pair(base))
        assert origins(pair(base), tmp_path / origin) == [origin] * 2


def test_the_cache_stays_while_another_process_is_at_one_of_its_cells(base, tmp_path):
    """It is removed when that cell is done too."""
    first, second = pair(base)
    hold = (
        "import sys, json; from lit_prune.store import Store; from lit_prune.store.address import CACHE\n"
        "with Store(sys.argv[1]).hold('cell', json.loads(sys.argv[2])) as node:\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    node.finish({'lm_loss': 7.0, 'there': [str(p) for p in Store(sys.argv[1]).root.glob(CACHE + '/*')]})\n"
    )

    class Answering(ProgressBar):
        def say(self, what: str) -> None:
            if "waiting" in what:
                holder.stdin.write("finish\n")
                holder.stdin.close()

    with python(hold, tmp_path, json.dumps(identity(first.cell, "cell"))) as holder:
        assert holder.stdout.readline() == "held\n", holder.stderr.read()
        assert runner_of(tmp_path, Answering(0, quiet=True)).run([first, second]) == 0
    result = Store(tmp_path).node(first.cell, "cell").result
    assert result["lm_loss"] == 7.0
    assert len(result["there"]) == 1
    assert not list(tmp_path.glob(f"{CACHE}/*"))
