"""env.json has the seconds of each stage alone, including resumed attempts."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from clock import Clock as Hands

from lit_prune.config import Cell
from lit_prune.config.overrides import override
from lit_prune.pipeline import artifacts, clock
from lit_prune.pipeline.clock import Clock
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.stage import Context, Stage
from lit_prune.pipeline.work import CACHING, WORK
from lit_prune.progress import Silent
from lit_prune.store.address import CACHE


class Stop(BaseException):
    """The interruption."""


class Stopping(Silent):
    """Interrupts a training run at its fourth step."""

    def count(self, what: str, done: int, total: int | None, unit: str) -> None:
        if unit == "step" and done == 4:
            raise Stop


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    """The time that laps read, moved by the test."""
    hands = Hands()
    monkeypatch.setattr(clock, "time", hands)
    return hands


def test_a_lap_is_without_those_within(hands: Hands) -> None:
    laps = Clock()
    with laps.lap() as outer:
        hands.now += 1
        for seconds in (2, 4):
            with laps.lap() as inner:
                hands.now += seconds
                with laps.lap() as innermost:
                    hands.now += 8
            assert (inner.seconds, innermost.seconds) == (seconds, 8)
        hands.now += 16
        assert outer.seconds == 17
    assert outer.whole == 1 + 2 + 4 + 2 * 8 + 16


def test_a_stage_is_not_charged_for_those_it_gets(hands: Hands, tiny_cell: Cell, tiny_runner: Any) -> None:
    def train(cell: Cell, ctx: Context) -> dict[str, Any]:
        hands.now += 5
        return {"vocab_size": 3}

    def tokenise(cell: Cell, ctx: Context) -> dict[str, Any]:
        hands.now += 2
        ctx.get("tokenizer", cell)
        return {"num_tokens": 7}

    stages = {"tokenizer": Stage("tokenizer", train), "tokens": Stage("tokens", tokenise)}
    ctx = dataclasses.replace(tiny_runner.ctx, stages=stages)
    node = ctx.get("tokens", tiny_cell)
    assert node.env["seconds"] == 2.0
    assert ctx.store.node(tiny_cell, "tokenizer").env["seconds"] == 5.0
    assert json.loads((node.folder / "result.json").read_text()).keys() == {"num_tokens", "integrity"}


def test_every_stage_records_seconds_and_work(tiny_cell: Cell, tiny_runner: Any) -> None:
    cell = override(tiny_cell, {"prune.hidden_size": 0.5, "teacher.finetune.max_steps": 3,
                                "teacher.finetune.seq_len": 32, "teacher.finetune.batch_size": 2})  # fmt: skip
    entries = [Entry(loss, 0, override(cell, {"distill.logit_loss": loss}), {}) for loss in ("kld", "mse")]
    tiny_runner.execution = dataclasses.replace(tiny_runner.execution, keep_teacher_cache=True)
    runner = type(tiny_runner)(tiny_runner.store, tiny_runner.execution, Silent())
    assert runner.run(entries) == 0
    for stage in ("tokens", "correction", "importance", "student"):
        env = runner.store.node(cell, stage).env
        assert env["seconds"] >= 0
        assert env["work"] == WORK[stage](cell) > 0
    envs = [runner.store.node(entry.cell, "cell").env for entry in entries]
    assert all(env["seconds"] > 0 for env in envs)
    (cache,) = runner.store.root.glob(f"{CACHE}/*/env.json")
    kept = json.loads(cache.read_text())
    assert envs[0][CACHING] == {"seconds": kept["seconds"], "work": kept["work"]}
    assert CACHING not in envs[1]


def test_the_time_of_an_interrupted_teacher_counts(tiny_cell: Cell, tiny_runner: Any) -> None:
    cell = override(tiny_cell, {"teacher.finetune.max_steps": 6, "teacher.finetune.seq_len": 32})
    with pytest.raises(Stop):
        artifacts.teacher(cell, dataclasses.replace(tiny_runner.ctx, progress=Stopping()))
    node = tiny_runner.store.node(cell, "correction")
    (attempt,) = node.env["attempts"]
    assert attempt["seconds"] > 0
    node.spend(100.0)
    artifacts.teacher(cell, tiny_runner.ctx)
    first, second = node.env["attempts"]
    assert first["seconds"] == 100.0
    assert node.env["seconds"] == pytest.approx(100.0 + second["seconds"])
