"""Start of a command."""

from __future__ import annotations

import subprocess
import sys

ASKS = "from lit_prune.cli.process import begin; begin('toy: begins', {words}); print(input('sure? '))"


def run_toy(words: str) -> subprocess.CompletedProcess[str]:
    """A process that asks a question, to which the answer is "y"."""
    script = ASKS.format(words=words)
    return subprocess.run([sys.executable, "-c", script], input="y\n", capture_output=True, text=True, timeout=60)


def test_a_command_reads_no_answer_to_a_question() -> None:
    result = run_toy("None")
    assert result.returncode == 1
    assert result.stderr.startswith("toy: begins\n")
    assert "EOFError" in result.stderr


def test_a_caller_in_python_keeps_standard_input() -> None:
    result = run_toy("['--help']")
    assert (result.returncode, result.stdout, result.stderr) == (0, "sure? y\n", "")
