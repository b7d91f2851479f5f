"""Cost of a table of five losses: run by run, and with a shared cache of teacher outputs.

    python -m benchmarks grid [--steps 20] [--repeats 3] [--threads N] [--json FILE]

Uses the shipped teacher and the profile `quick`, through the runner of every table, each time in a fresh process and a
copy of a store with all stages before retraining. If the teacher takes a share r of a run, N runs that share its
outputs cost at best N - (N - 1) r times a single run.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import measuring
from lit_prune.config import Execution
from lit_prune.config.profiles import load_profile
from lit_prune.config.table import Table
from lit_prune.pipeline.expand import Entry, entries

TABLE = Table(
    name="grid_benchmark",
    question="What does a table cost?",
    source="a benchmark",
    rows={
        f"{loss}, temperature {temperature}": {"distill.temperature": temperature, "distill.logit_loss": loss}
        for loss, temperature in (("kld", 1.0), ("reverse_kld", 1.0), ("mse", 1.0), ("cosine", 1.0), ("kld", 2.0))
    },
    baseline="kld, temperature 1.0",
    reference_rows={},
)

WAYS = {"one run": (1, False), "five runs": (5, False), "five with a cache": (5, True)}
"""Name -> number of cells, and whether they share a cache of teacher outputs."""


@dataclass(frozen=True)
class Cost:
    """One measurement of one way."""

    seconds: float
    """Wall time of the runner."""
    cpu_seconds: float
    teacher_passes: int
    teacher_share: float
    """Share of the CPU time, excluding the teacher's head."""
    models: dict[str, str]
    """Row -> sha256 of its final weights."""


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks grid", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps of a run (20)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of torch (all cores)")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    args = parser.parse_args(arguments)
    environment = measuring.environment("transformers", "lightning") | {"threads": args.threads}
    print(f"{measuring.environment_line(environment)}\n")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        alone(prepare, base, args.steps)
        costs: dict[str, list[Cost]] = {what: [] for what in WAYS}
        for i in range(args.repeats):
            for what, (count, cache) in reversed(WAYS.items()) if i % 2 else WAYS.items():
                print(f"\r{what:<20}", end="", file=sys.stderr, flush=True)
                store = Path(folder) / "store"
                shutil.copytree(base, store)
                costs[what].append(alone(run, store, args.steps, count, cache, args.threads))
                shutil.rmtree(store)
    print("\r" + " " * 20 + "\r", end="", file=sys.stderr)
    print_costs(costs, args.steps)
    if args.json:
        measuring.write(args.json, {"environment": environment, "steps": args.steps, "costs": costs})


def alone(work: Any, *arguments: Any) -> Any:
    """Run `work` in a fresh process and return its result."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def cells(steps: int) -> list[Entry]:
    """Return the five cells."""
    from lit_prune.pipeline.resolve import Resolver

    settings = {
        "distill.max_steps": steps,
        "evaluation.num_sequences": 2,
        "calibration.num_sequences": 8,
        "corpus.max_tokens": 200_000,
    }
    pins = Resolver()
    found = entries(TABLE, load_profile("quick"), num_seeds=1, settings=settings)
    return [replace(entry, cell=pins.pin(entry.cell)) for entry in found]


@contextmanager
def runner(store: Path, execution: Execution) -> Iterator[Any]:
    """Yield the runner of every table, on a store."""
    from lit_prune.cli.progress import ProgressBar
    from lit_prune.models.silence import quiet
    from lit_prune.pipeline.runner import Runner
    from lit_prune.store import Store

    quiet()
    with ProgressBar(0) as bar:
        yield Runner(Store(store), execution, bar)


def prepare(store: Path, steps: int) -> None:
    """Compute all stages before retraining, which the cells share."""
    from lit_prune.pipeline import artifacts

    cell = cells(steps)[0].cell
    with runner(store, Execution(accelerator="cpu")) as computing:
        artifacts.student(cell, computing.ctx)


def run(store: Path, steps: int, count: int, cache: bool, threads: int) -> Cost:
    """Compute the first `count` cells."""
    import torch

    from lit_prune.models import loading

    torch.set_num_threads(threads)
    chosen = cells(steps)[:count]
    passes: list[float] = []
    with runner(store, Execution(accelerator="cpu", cache_teacher=cache)) as computing:
        load = functools.lru_cache(maxsize=1)(lambda location: timed(loading.load_model(location), passes))
        computing.ctx = replace(computing.ctx, load=load)
        wall, cpu = time.perf_counter(), time.process_time()
        if computing.run(chosen):
            raise RuntimeError("a cell failed")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        models = {entry.row: _digest(computing.store.node(entry.cell, "cell").folder) for entry in chosen}
    return Cost(wall, cpu, len(passes), sum(passes) / cpu, models)


def timed(model: Any, passes: list[float]) -> Any:
    """Add hooks to a model that append the CPU time of each forward pass to `passes`; return the model."""
    started: list[float] = []
    model.base_model.register_forward_pre_hook(lambda *_: started.append(time.process_time()))
    model.base_model.register_forward_hook(lambda *_: passes.append(time.process_time() - started.pop()))
    return model


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


def print_costs(costs: dict[str, list[Cost]], steps: int) -> None:
    """Print a Markdown table, and whether the weights are equal."""
    print(
        f"| table of {steps} steps a run | seconds (IQR) | CPU seconds | in runs, wall (IQR) | in runs, CPU | "
        "passes of the teacher |\n|---|---|---|---|---|---|"
    )
    ones = costs["one run"]
    for what, found in costs.items():
        seconds, cpu = [c.seconds for c in found], [c.cpu_seconds for c in found]
        walls = [c.seconds / one.seconds for c, one in zip(found, ones, strict=True)]
        cpus = [c.cpu_seconds / one.cpu_seconds for c, one in zip(found, ones, strict=True)]
        wall = "{:.1f} ({:.1f} to {:.1f})".format(statistics.median(seconds), *measuring.iqr(seconds))
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(statistics.median(walls), *measuring.iqr(walls))
        print(
            f"| {what} | {wall} | {statistics.median(cpu):.1f} | {ratio} | {statistics.median(cpus):.2f} | "
            f"{found[0].teacher_passes} |"
        )
    share = statistics.median(one.teacher_share for one in ones)
    solo, shared = costs["five runs"][0].models, costs["five with a cache"][0].models
    same = sum(solo[row] == shared[row] for row in solo)
    print(f"\nthe teacher's share r is {share:.2f}: five runs that share its outputs cost {5 - 4 * share:.2f} at best")
    print(f"{same} of {len(solo)} models are bit for bit what they are alone\n")


if __name__ == "__main__":
    main()
