"""Start of a command."""

from __future__ import annotations

import subprocess
import sys

ASKS = "from lit_prune.cli.process import begin; begin('toy: begins', {words}); print(input('sure? '))"


def asked(words: str) -> subprocess.CompletedProcess[str]:
    """A process that asks a question, to which the answer is "y"."""
    script = ASKS.format(words=words)
    return subprocess.run([sys.executable, "-c", script], input="y\n", capture_output=True, text=True, timeout=60)


def test_a_command_reads_no_answer_to_a_question() -> None:
    said = asked("None")
    assert said.returncode == 1
    assert said.stderr.startswith("toy: begins\n")
    assert "EOFError" in said.stderr


def test_a_caller_in_python_keeps_standard_input() -> None:
    said = asked("['--help']")
    assert (said.returncode, said.stdout, said.stderr) == (0, "sure? y\n", "")
