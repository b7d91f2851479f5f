"""Cells in turns with one teacher: each is bit for bit what it is alone, whatever becomes of the others."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lit_prune.cli.progress import ProgressBar
from lit_prune.config import Cell, Execution, Optimizer
from lit_prune.config.overrides import override
from lit_prune.distill.teacher import FrozenTeacher
from lit_prune.integrations.wandb.tracker import WandbTracker
from lit_prune.pipeline.cohort import cohorts
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.pipeline.runner import Runner
from lit_prune.store import Store

SMALL = {
    "calibration.num_sequences": 4, "calibration.seq_len": 32, "distill.seq_len": 32, "distill.batch_size": 2,
    "distill.max_steps": 6,
    "distill.optimizer.warmup_steps": 2, "evaluation.num_sequences": 2, "evaluation.seq_len": 32,
    "prune.hidden_size": 0.5,
}  # fmt: skip
ROWS: dict[str, dict[str, Any]] = {
    "kld": {},
    "with states": {
        "distill.alpha": "dynamic",
        "distill.match_embedding": True,
        "distill.match_layer_output": ("last:last",),
    },
    "other states": {"distill.alpha": 0.5, "distill.match_mlp_input": ("2:1",), "prune.hidden_size": None},
    "mse and cross-entropy": {"distill.logit_loss": "mse", "distill.ce_weight": 1.0, "evaluation.num_validations": 2},
    "three steps": {"distill.max_steps": 3, "prune.intermediate_size": 0.5},
    "wild": {"distill.optimizer": Optimizer(lr=1e30, max_grad_norm=1e30, warmup_steps=0)},
}
SOUND = [row for row in ROWS if row != "wild"]


class Stop(BaseException):
    """The interruption, which no run may swallow."""


class StoppingBar(ProgressBar):
    """Interrupts the run whose step makes it `at_step` in all."""

    def __init__(self, at_step: int) -> None:
        super().__init__(0, quiet=True)
        self.at_step = at_step

    def at(self, done: int, what: str) -> None:
        super().at(done, what)
        if done >= self.at_step:  # a run that diverges jumps to its end
            raise Stop


@pytest.fixture(scope="module")
def entries(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """One cell of each row, and one more seed of the first."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n\n".join(texts))
    base, pins = override(Cell(), {**SMALL, "corpus.path": str(text)}), Resolver()
    cells = {(row, 0): pins.pin(override(base, changes)) for row, changes in ROWS.items()}
    cells["kld", 1] = pins.pin(override(base, {"seed": 1}))
    return [Entry(row, seed, cell, {}) for (row, seed), cell in cells.items()]


def runner_of(folder: Path, bar: ProgressBar | None = None, **execution: Any) -> Runner:
    how = Execution(accelerator="cpu", checkpoint_seconds=0.0, log_every=1, **execution)
    return Runner(Store(folder), how, bar or ProgressBar(0, quiet=True), WandbTracker("test", "disabled", folder))


@pytest.fixture(scope="module")
def alone(entries: list[Entry], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which every cell was computed by itself."""
    folder = tmp_path_factory.mktemp("alone")
    assert runner_of(folder, cohort=False).run(entries) == 1
    return folder


def same(entries: list[Entry], ours: Path, theirs: Path) -> None:
    """Weights, history and result of every sound cell are the same bits."""
    for entry in entries:
        if entry.row not in SOUND:
            continue
        (our, their) = (Path(store) / "cell" / entry.key for store in (ours, theirs))
        weights = [load_file(folder / "model/model.safetensors") for folder in (our, their)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1]), entry.row
        histories = [pd.read_csv(folder / "metrics.csv").drop(columns="tokens_per_second") for folder in (our, their)]
        pd.testing.assert_frame_equal(*histories, check_exact=True)
        assert Store(ours).node(entry.cell, "cell").result == Store(theirs).node(entry.cell, "cell").result


@pytest.mark.slow
def test_in_turns_is_alone_bit_for_bit_with_one_pass_of_the_teacher(entries, alone, tmp_path, monkeypatch):
    """Whichever of them diverges."""
    taught: list[FrozenTeacher] = []
    monkeypatch.setattr(
        "lit_prune.pipeline.teachers.FrozenTeacher", lambda model: taught.append(FrozenTeacher(model)) or taught[-1]
    )
    assert runner_of(tmp_path).run(entries) == 1
    same(entries, tmp_path, alone)
    assert [teaching.passes for teaching in taught] == [6, 6]  # one for every batch of each of two seeds
    (wild,) = (entry for entry in entries if entry.row == "wild")
    assert "Diverged" in (Store(tmp_path).node(wild.cell, "cell").error or "")


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 17])
def test_interrupted_and_resumed_in_turns_is_alone_and_uninterrupted(entries, alone, tmp_path, steps):
    with pytest.raises(Stop):
        runner_of(tmp_path, StoppingBar(steps)).run(entries)
    assert runner_of(tmp_path).run(entries) == 1
    same(entries, tmp_path, alone)


@pytest.mark.slow
def test_begun_in_turns_and_ended_alone(entries, alone, tmp_path):
    with pytest.raises(Stop):
        runner_of(tmp_path, StoppingBar(13)).run(entries)
    assert runner_of(tmp_path, cohort=False).run(entries) == 1
    same(entries, tmp_path, alone)


class SignalBar(ProgressBar):
    """Notes who handles SIGTERM at every step."""

    def __init__(self) -> None:
        super().__init__(0, quiet=True)
        self.handlers: set[Any] = set()

    def at(self, done: int, what: str) -> None:
        super().at(done, what)
        if done:  # calibration, before the first step, has a trainer of its own, which ends before another begins
            self.handlers.add(signal.getsignal(signal.SIGTERM))


def test_the_process_handles_sigterm_at_every_step_of_runs_in_turns_and_after_them(entries, tmp_path):
    ours, bar = signal.getsignal(signal.SIGTERM), SignalBar()
    runner_of(tmp_path, bar).run([entry for entry in entries if entry.row in ("kld", "three steps")])
    assert bar.handlers == {ours}
    assert signal.getsignal(signal.SIGTERM) == ours


def test_only_cells_that_read_the_same_data_for_the_same_teacher_go_together(entries):
    (together, seed) = cohorts(entries, Execution(accelerator="cpu"))
    assert [entry.row for entry in together.entries] == list(ROWS)
    assert [entry.seed for entry in seed.entries] == [1]
    first = entries[0].cell
    apart = [
        override(first, {path: value}) for path, value in (
            ("distill.batch_size", 4), ("distill.seq_len", 16), ("distill.precision", "bf16-mixed"),
            ("distill.max_steps", 0),
            ("corpus.holdout_fraction", 0.2), ("seed", 5),
        )
    ]  # fmt: skip
    plain = override(first, {"distill.kd_weight": 0.0, "distill.ce_weight": 1.0})
    mixed = [Entry("", 0, cell, {}) for cell in (first, *apart, plain)]
    assert sizes(mixed) == [1] * len(mixed)
    assert sizes(entries, cohort=False) == [1] * len(entries)


def sizes(entries: list[Entry], **execution: Any) -> list[int]:
    return [len(cohort.entries) for cohort in cohorts(entries, Execution(accelerator="cpu", **execution))]


@pytest.mark.slow
def test_memory_decides_how_many_go_together_and_then_the_teacher_is_cached(entries, alone, tmp_path, monkeypatch):
    taught: list[FrozenTeacher] = []
    monkeypatch.setattr(
        "lit_prune.pipeline.teachers.FrozenTeacher", lambda model: taught.append(FrozenTeacher(model)) or taught[-1]
    )
    monkeypatch.setattr("lit_prune.pipeline.cohort._free_memory", lambda execution: 5 * 16 * 3_200_000)
    assert sizes(entries) == [2, 2, 2, 1]
    assert runner_of(tmp_path).run(entries) == 1
    same(entries, tmp_path, alone)
    # The caches of three and six steps, the two rows with states, and the one cell of the other seed.
    assert sorted(teaching.passes for teaching in taught) == [3, 6, 6, 6, 6]
    assert not list(tmp_path.glob("teaching/*"))


def test_the_memory_free_when_a_cohort_begins_decides_its_size(entries, monkeypatch):
    free = iter([4, 2, 100])
    monkeypatch.setattr("lit_prune.pipeline.cohort._free_memory", lambda execution: next(free) * 16 * 3_200_000)
    group = [entry for entry in entries if entry.seed == 0]
    found = list(cohorts(group, Execution(accelerator="cpu")))
    assert [len(cohort.entries) for cohort in found] == [2, 1, 3]
    assert all(cohort.cut for cohort in found)
