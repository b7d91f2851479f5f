"""CPU time of the commands that describe a table, by its cells and by the other cells in the store.

    python -m benchmarks tables [--cells 300] [--others 10000] [--repeats 3] [--json FILE]

Seconds are CPU time of a fresh process, the median over rounds in which all commands take turns. The cells are of
`loss_ablation` at the profile quick, finished with small files by the store's own functions.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measuring
from lit_prune.experiments.loss_ablation import TABLE
from lit_prune.pipeline.request import TableRequest, requested_entries
from lit_prune.store import Store

ROOT = Path(__file__).parents[1]
FEW_SEEDS = 5
"""Seeds of the table that the larger one is compared with."""


@dataclass(frozen=True)
class Spent:
    """CPU time of one command over all rounds."""

    what: str
    cells: int
    seconds: float
    """Median."""
    seconds_iqr: tuple[float, float]


def finish(store: Store, seeds: int) -> int:
    """Finish the cells of so many seeds; return how many there are."""
    _, entries = requested_entries(TABLE, TableRequest(seeds=seeds), store)
    for entry in entries:
        with store.claim(entry.cell, "cell") as node:
            if node.result is None:
                history = "step,loss\n" + "".join(f"{step},{3 + 1 / step:.4f}\n" for step in range(1, 51))
                (node.folder / "metrics.csv").write_text(history)
                loss = 3 + len(entry.row) / 100 + entry.seed % 7 / 1000
                node.finish({"lm_loss": loss, "perplexity": 20.0, "train_flops": 1e9}, seconds=1.0)
    return len(entries)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tables", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=300, help="cells of the large table (300)")
    parser.add_argument("--others", type=int, default=10_000, help="other finished cells in the store (10000)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    args = parser.parse_args(arguments)
    environment = measuring.environment("transformers", "pandas")
    print(f"{measuring.environment_line(environment)}\n")
    with tempfile.TemporaryDirectory() as folder:
        spent = measure(Path(folder), args.cells, args.others, args.repeats)
    print("| command | cells | CPU seconds (IQR) |\n|---|---|---|")
    for s in spent:
        print(f"| {s.what} | {s.cells} | {s.seconds:.2f} ({s.seconds_iqr[0]:.2f} to {s.seconds_iqr[1]:.2f}) |")
    print()
    if args.json:
        measuring.write(args.json, {"environment": environment, "spent": spent})


def measure(folder: Path, cells: int, others: int, repeats: int) -> list[Spent]:
    """Measure every command in every round: on a table of a few seeds, of many, and of many in a large store."""
    empty, own, crowded = Store(folder / "empty"), Store(folder / "own"), Store(folder / "crowded")
    few, per_seed = finish(own, FEW_SEEDS), finish(own, FEW_SEEDS + 1) - finish(own, FEW_SEEDS)
    seeds = FEW_SEEDS + max(0, cells - few) // per_seed
    many = finish(own, seeds)
    finish(crowded, seeds + others // per_seed)
    requests = {
        ("status", few): (own, FEW_SEEDS), ("status", many): (own, seeds),
        (f"status, {others:,} other cells", many): (crowded, seeds),
        ("report", few): (own, FEW_SEEDS), ("report", many): (own, seeds),
        ("--dry-run", many): (own, seeds), ("--dry-run, all missing", few): (empty, FEW_SEEDS),
        ("--dry-run, all missing", many): (empty, seeds),
    }  # fmt: skip
    seconds: dict[tuple[str, int], list[float]] = {request: [] for request in requests}
    for _ in range(repeats):
        for (what, number), (store, of_seeds) in requests.items():
            words = [what.partition(",")[0], "--seeds", str(of_seeds), "--store", str(store.root)]
            seconds[what, number].append(cpu_seconds(["-m", "lit_prune", "table", TABLE.name, *words]))
    return [
        Spent(what, number, statistics.median(found), measuring.iqr(found)) for (what, number), found in seconds.items()
    ]


def cpu_seconds(words: list[str]) -> float:
    """Return the CPU time, user and system, of the interpreter with these arguments."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    main()
