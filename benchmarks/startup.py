"""Start-up time of commands, each time in a fresh process.

    python -m benchmarks startup [--repeats 5] [--json FILE]

Measures wall time, the time a user waits: the median over rounds in which all commands take turns. `report` reads an
empty store.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measuring

ROOT = Path(__file__).parents[1]
TABLE = "lit_prune.experiments.loss_ablation"


@dataclass(frozen=True)
class Wait:
    """Wall time of one command over all rounds."""

    what: str
    seconds: float
    """Median."""
    seconds_iqr: tuple[float, float]


def commands(store: str) -> dict[str, list[str]]:
    """Return name -> arguments of the interpreter."""
    return {
        "the interpreter": ["-c", ""],
        "--help": ["-m", TABLE, "--help"],
        "report": ["-m", TABLE, "report", "--store", store],
        "import torch": ["-c", "import torch"],
        "import transformers' Llama too": ["-c", "import torch; from transformers import LlamaForCausalLM"],
        "all that a run imports": ["-c", "import lit_prune.pipeline.runner"],
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks startup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    args = parser.parse_args(arguments)
    environment = measuring.environment("transformers", "lightning")
    print(f"{measuring.environment_line(environment)}\n")
    with tempfile.TemporaryDirectory() as store:
        waits = measure(commands(store), args.repeats)
    print("| until it is done | seconds (IQR) |\n|---|---|")
    for w in waits:
        print(f"| {w.what} | {w.seconds:.2f} ({w.seconds_iqr[0]:.2f} to {w.seconds_iqr[1]:.2f}) |")
    print()
    if args.json:
        measuring.write(args.json, {"environment": environment, "waits": waits})


def measure(named: dict[str, list[str]], repeats: int) -> list[Wait]:
    """Time every command in every round, after a round that fills the disk cache."""
    seconds: dict[str, list[float]] = {what: [] for what in named}
    for i in range(repeats + 1):
        for what, words in named.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
            if i:
                seconds[what].append(time.perf_counter() - start)
    return [Wait(what, statistics.median(times), measuring.iqr(times)) for what, times in seconds.items()]


if __name__ == "__main__":
    main()
