"""How a command begins and ends as a process: first words, standard input, signals, exit codes. No torch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any


def begin(text: str, words: Sequence[str] | None) -> None:
    """Say on standard error that a command has begun, before it imports what takes long, and close standard input.

    A library that asks a question, such as wandb for a key, gets no answer and fails at once instead of waiting for
    one. Does nothing for a caller in Python, who gives the `words` of the command.
    """
    if words is None:
        print(text, file=sys.stderr, flush=True)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)


def stop_on_signals() -> None:
    """Leave with the shell's exit codes, 130 and 143; Lightning's own handling ends in 1 and, for SIGTERM, in 0."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _stop(number: int, frame: Any) -> None:
    """Leave at once, with the shell's exit code; what was done is kept, the rest is resumed from its checkpoint."""
    signal.signal(number, signal.SIG_IGN)
    print(f"stopped by {signal.Signals(number).name}; the same command goes on from here", file=sys.stderr)
    raise SystemExit(128 + number)
