"""What a step of distillation costs, by lit_prune and by what people use instead, from the same weights and batches.

    python -m benchmarks step [--shape 2k 32k] [--precision 32-true bf16-mixed] [--only ours hf trl modelopt loop]

Each run is a process of its own (benchmarks/peers.py says what each trainer does). Every peer runs twice: as it is, and
with the switches of the process that lit_prune uses, the allocator and the library of matrix products, which are tuning
and not design. All ways take turns, in the opposite order every other round; a run's time is the median of its steps
but the first, and a ratio is the median over rounds of the ratio within a round. A row is marked noisy where the middle
half of its rounds spreads over more than 10 % of the median, or where its threads had less than 90 % of the processors.
Random weights and random tokens: only cost is measured, and that all minimise the same number.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import limits, measuring
from benchmarks.jobs import Job, Run
from benchmarks.peers import TRAINERS
from benchmarks.shapes import SHAPES, Shape, flops
from lit_prune.distill.train import quiet

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Way:
    """A trainer in a process set up in one of two ways."""

    trainer: str
    switches: bool

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return self.trainer + (" with our switches" if self.switches and self.trainer != "ours" else "")


@dataclass(frozen=True)
class Row:
    """One way over all rounds."""

    what: str
    seconds: float
    """Median over rounds of a step's wall time."""
    seconds_iqr: tuple[float, float]
    ratio: float
    """Median over rounds of this way's time by that of the first."""
    ratio_iqr: tuple[float, float]
    busy: float
    """Processors used, of the threads there are."""
    peak: float
    """MiB, median."""
    faults: float
    """Minor page faults a step, median."""
    loss_difference: float
    """Largest relative difference of a step's loss from that of the first way."""
    noisy: bool


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print Markdown."""
    asked = arguments_of(arguments)
    environment = measuring.environment(*versions())
    environment["threads"] = asked.threads
    print(f"{measuring.environment_line(environment)}\n")
    found: dict[str, Any] = {"environment": environment, "cells": []}
    for shape in asked.shape:
        for precision in asked.precision:
            found["cells"].append(measure(shape, precision, asked))
    if asked.json:
        measuring.write(asked.json, found)


def arguments_of(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["2k"], help="vocabulary (2k)")
    parser.add_argument(
        "--precision", nargs="+", choices=["32-true", "bf16-mixed"], default=["32-true"],
        help="arithmetic (32-true; bf16-mixed pays on processors that have it)",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=TRAINERS, default=list(TRAINERS)[:4], help="trainers (not loop)")
    parser.add_argument("--steps", type=int, help="steps of a run, of which the first does not count (by shape)")
    parser.add_argument("--repeats", type=int, help="rounds (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of a process (all cores)")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers (this one)")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    asked = parser.parse_args(arguments)
    if asked.steps is not None and asked.steps < 2:
        parser.error("--steps: at least 2 are needed, since the first does not count")
    return asked


def versions() -> list[str]:
    """Return the peers that are installed here, whose versions belong to the result."""
    names = ["transformers", "lightning", "accelerate", "trl", "nvidia-modelopt"]
    return [name for name in names if _is_installed(name)]


def _is_installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def measure(name: str, precision: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Return all ways of one shape in one precision: the rows, and the runs behind them."""
    shape = SHAPES[name]
    quiet()
    steps, repeats = asked.steps or shape.steps, asked.repeats or shape.repeats
    torch.set_num_threads(asked.threads)
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    limit = max(limits.matmul_rates((2048, 2048, 2048), dtype, how, 5)[0] for how in ("ieee", "bf16"))
    with tempfile.TemporaryDirectory() as folder:
        prepare(shape, steps, Path(folder))
        jobs = {
            way: Job(
                way.trainer, folder, way.switches, precision, asked.threads, shape.seq_len, shape.batch, steps
            )
            for way in ways(asked.only)
        }  # fmt: skip
        rounds = [run_round(jobs, asked.peer_python, backwards=bool(i % 2)) for i in range(repeats)]
    runs = {way.name: [done[way] for done in rounds] for way in jobs if all(way in done for done in rounds)}
    found = rows(runs, asked.threads)
    what = f"a step of {shape.batch} x {shape.seq_len} tokens, vocabulary {name}, {precision}"
    print_rows(f"{what}, {repeats} rounds of {steps} steps", found)
    print_summary(found, flops(shape), limit)
    return {"what": what, "rows": found, "runs": runs, "flops": flops(shape), "matmul_rate": limit}


def ways(trainers: list[str]) -> list[Way]:
    """Return the ways to compare; ours is first if requested."""
    first = [Way("ours", True)] if "ours" in trainers else []
    others = [Way(name, switches) for name in trainers for switches in (False, True) if name != "ours"]
    return first + others


def prepare(shape: Shape, steps: int, folder: Path) -> None:
    """Two models with random weights, and as many random tokens as one run reads."""
    for seed, (name, sizes) in enumerate({"teacher": shape.teacher, "student": shape.student}.items()):
        torch.manual_seed(seed)
        # Larger than the usual weights, so that teacher and student differ by more than rounding.
        config = LlamaConfig(**sizes, tie_word_embeddings=False, max_position_embeddings=2048, initializer_range=0.05)
        LlamaForCausalLM(config).save_pretrained(folder / name)
    num_tokens = shape.seq_len * shape.batch * steps
    ids = np.random.default_rng(0).integers(0, shape.teacher["vocab_size"], num_tokens).astype(np.uint16)
    (folder / "tokens").mkdir()
    ids.tofile(folder / "tokens" / "train.bin")
    about = {"dtype": "uint16", "eos": 0, "num_tokens": {"train": num_tokens}}
    (folder / "tokens" / "tokens.json").write_text(json.dumps(about))


def run_round(jobs: dict[Way, Job], peer_python: str, backwards: bool) -> dict[Way, Run]:
    """Return one run of every way, one after the other; those that are not installed are told of and left out."""
    done = {}
    for way, job in reversed(jobs.items()) if backwards else jobs.items():
        print(f"\r{way.name:<40}", end="", file=sys.stderr, flush=True)
        python = sys.executable if way.trainer in ("ours", "loop") else peer_python
        run = run_job(job, python)
        if run is not None:
            done[way] = run
    print("\r" + " " * 40 + "\r", end="", file=sys.stderr)
    return done


def run_job(job: Job, python: str) -> Run | None:
    """Carry out a job in a process of its own; None where its trainer is not installed.

    Raises:
        RuntimeError: if it failed.
    """
    asked, result = Path(job.folder) / "job.json", Path(job.folder) / "result.json"
    asked.write_text(json.dumps(asdict(job)))
    # With its switches a process also lets waiting threads sleep early, as lit_prune's commands do.
    own = {"GOMP_SPINCOUNT": "10000"} if job.switches else {}
    environment = os.environ | own | {"OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [python, "-m", "benchmarks.peers", str(asked), str(result)]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if said.returncode == 3:
        print(f"{job.trainer} is left out: {said.stderr.strip().splitlines()[-1]}")
        return None
    if said.returncode:
        raise RuntimeError(f"{job.trainer} failed: {said.stderr.strip()[-2000:]}")
    return Run(**json.loads(result.read_text()))


def rows(runs: dict[str, list[Run]], threads: int) -> list[Row]:
    """Sum up what all rounds measured; the first way is what the others are compared with."""
    times = {what: [statistics.median(run.seconds) for run in done] for what, done in runs.items()}
    first = next(iter(runs))
    found = []
    for what, done in runs.items():
        ratios = [theirs / ours for theirs, ours in zip(times[what], times[first], strict=True)]
        middle, spread = statistics.median(times[what]), measuring.iqr(times[what])
        busy = statistics.median(sum(run.cpu_seconds) / sum(run.seconds) for run in done)
        pairs = [(a, b) for run in done for a, b in zip(run.losses, runs[first][0].losses, strict=True)]
        found.append(
            Row(
                what, middle, spread, statistics.median(ratios), measuring.iqr(ratios), busy,
                peak=statistics.median(run.peak for run in done),
                faults=statistics.median(run.faults for run in done),
                loss_difference=max(abs(a - b) / abs(b) for a, b in pairs),
                noisy=spread[1] - spread[0] > 0.1 * middle or busy < 0.9 * threads,
            )
        )  # fmt: skip
    return found


def print_rows(title: str, found: list[Row]) -> None:
    """A Markdown table of rows."""
    print(f"| {title} | ms (IQR) | ratio (IQR) | cores busy | peak, MiB | faults a step | loss differs by | |")
    print("|---|---|---|---|---|---|---|---|")
    for r in found:
        ms = f"{1e3 * r.seconds:.0f} ({1e3 * r.seconds_iqr[0]:.0f} to {1e3 * r.seconds_iqr[1]:.0f})"
        ratio = f"{r.ratio:.2f} ({r.ratio_iqr[0]:.2f} to {r.ratio_iqr[1]:.2f})"
        noisy = "noisy" if r.noisy else ""
        difference = f"{r.loss_difference:.0e}"
        print(f"| {r.what} | {ms} | {ratio} | {r.busy:.2f} | {r.peak:.0f} | {r.faults:.0f} | {difference} | {noisy} |")
    print()


def print_summary(found: list[Row], work: float, limit: float) -> None:
    """What a reader looks for first, in sentences."""
    ours = found[0]
    share = work / ours.seconds / limit
    print(f"{ours.what}: {work / ours.seconds / 1e9:.0f} GFLOP/s, {share:.0%} of the rate of a large matrix product")
    for kind, alike in (("as they are", False), ("with our switches", True)):
        peers = [r for r in found[1:] if r.what.endswith("switches") == alike and not r.what.startswith("loop")]
        if peers:
            best = min(peers, key=lambda r: r.ratio)
            memory = f"{ours.peak / best.peak:.2f} of its peak memory"
            print(f"against the best of the peers {kind}, {best.what}: {best.ratio:.2f} x as fast, with {memory}")
    print()


if __name__ == "__main__":
    main()
