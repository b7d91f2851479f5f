"""What a person sees while work is done."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lit_prune.cli.progress import ProgressBar

LONG = "retraining 'L_CLM + L_logits(a label longer than the console is wide)' seed 3, step 700, loss 3.141"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_console_shortens_the_text_and_not_the_count(width: int) -> None:
    bar = ProgressBar(34_560)
    bar._rich.update(bar._task, completed=12_345, description=LONG)
    stream = io.StringIO()
    Console(file=stream, width=width).print(bar._rich.get_renderable())
    (line,) = stream.getvalue().splitlines()
    assert len(line) <= width
    assert line.startswith("retrain")
    assert "12345/34560" in line
    assert line.count(":") >= 4  # elapsed and remaining time, h:mm:ss each


def test_a_line_of_a_log_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar(10) as bar:
        bar.say(LONG)
    (line,) = capsys.readouterr().err.splitlines()
    assert LONG in line
    assert line.startswith("[0/10]")


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
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert said.stderr.splitlines()[0].startswith(f"{name if name != 'table' else 'loss_ablation'}: ")
