"""Progress as users see it."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lit_prune.cli.progress import ProgressBar
from lit_prune.pipeline.expand import Entry

LONG = "retraining 'L_CLM + L_logits(a label longer than the console is wide)' seed 3, loss 3.141"


def drawn(bar: ProgressBar, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(bar._rich.get_renderable())
    (line,) = stream.getvalue().splitlines()
    assert len(line) <= width
    return line


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_console_shortens_the_text_and_not_the_counts(width: int) -> None:
    bar = ProgressBar(34_560)
    bar.cells(3, 20)
    bar.count(LONG, 24, 1_234_567, "step")
    bar.at(12_345, LONG)
    line = drawn(bar, width)
    assert line.startswith("ret")
    assert "cells 3/20 · step 24/1,234,567 · 0:00:0" in line
    assert line.rstrip().endswith("left")


def test_without_cells_the_units_are_counted() -> None:
    bar = ProgressBar(50, unit="step")
    bar.at(24, "pretraining")
    assert bar.counts() == ["step 24/50"]


def test_a_stage_of_unknown_length_is_counted_and_ends_with_the_next() -> None:
    bar = ProgressBar(0)
    assert bar.counts() == []  # never 0/0
    bar.count("tokenising", 70_000, None, "train tokens")
    assert bar.counts() == ["train tokens 70,000"]
    bar.say("pruning")
    assert bar.counts() == []


def test_without_planned_units_the_time_left_is_that_of_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("lit_prune.cli.progress.time.monotonic", lambda: now[0])
    bar = ProgressBar(0)
    bar.cells(0, 5)
    now[0] = 110.0
    bar.cells(2, 5)
    assert bar._left() == pytest.approx(15.0)


def test_a_line_of_a_log_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(10) as bar:
        bar.cells(0, 2)
        bar.say(LONG)
    (line,) = capsys.readouterr().err.splitlines()
    assert LONG in line
    assert line.startswith("[cells 0/2]")


def test_every_stage_of_a_cell_counts(tiny_cell: Any, tiny_runner: Any) -> None:
    counted: dict[str, list[int | None]] = {}

    class Recording(ProgressBar):
        def count(self, what: str, done: int, total: int | None, unit: str) -> None:
            counted.setdefault(unit, []).append(total)
            assert total is None or done <= total

    bar = Recording(4, quiet=True)
    tiny_runner.ctx = dataclasses.replace(tiny_runner.ctx, progress=bar)
    assert tiny_runner.run([Entry("row", 0, tiny_cell, {})]) == 0
    assert set(counted["sequence"]) == {tiny_cell.calibration.num_sequences, tiny_cell.evaluation.num_sequences}
    assert counted["step"] == [4] * 4
    assert bar.counts()[0] == "cells 1/1"


COMMANDS = {
    "table": ["lit_prune.experiments.loss_ablation", "status"],
    "evaluate": ["lit_prune.cli.evaluate", "--model", "nobody", "--corpus", "readmes"],
    "pretrain": ["lit_prune.cli.pretrain", "--set", "layers"],
    "report": ["analysis.report"],
    "figures": ["analysis.figures", "loss_ablation"],
    "dashboard": ["analysis.dashboard", "loss_ablation"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_that_it_has_begun_before_it_imports_what_takes_long(name: str, tmp_path: Path) -> None:
    module, *words = COMMANDS[name]
    # What imports torch, pandas or matplotlib fails at once: only what is said before that is left.
    script = (
        "import runpy, sys\n"
        "class Refuse:\n"
        "    def find_spec(name, *_):\n"
        "        if name in ('torch', 'pandas', 'matplotlib', 'scipy', 'transformers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse)\n"
        f"sys.argv = {[module, *words]!r}\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.stderr.splitlines()[0].startswith(f"{name if name != 'table' else 'loss_ablation'}: ")
