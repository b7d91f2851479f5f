"""Cost of a distillation step in lit_prune and in other libraries, from the same weights and batches.

    python -m benchmarks step [--shape 2k 32k smollm2] [--precision 32-true bf16-mixed]
                              [--only ours hf trl modelopt loop]

Each run has its own process (benchmarks/peers.py describes the trainers). Every peer runs twice: as it is, and with
lit_prune's process settings, the allocator and the matmul library, which are tuning and not design. All ways take
turns, in reverse order every other round. The time of a run is the median of its steps but the first, and a ratio is
the median over rounds of the ratio within a round. A row is marked noisy if its interquartile range exceeds 10 % of the
median, or if its threads got less than 90 % of the cores. Weights and tokens are random: the benchmark measures cost,
and checks that all trainers minimise the same loss.
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
from lit_prune.models.silence import quiet

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Way:
    """A trainer, with or without our CPU optimisations of the process."""

    trainer: str
    switches: bool

    @property
    def name(self) -> str:
        """Its name in the table."""
        return self.trainer + (" with our switches" if self.switches and self.trainer != "ours" else "")


@dataclass(frozen=True)
class Row:
    """Results of one way over all rounds."""

    what: str
    seconds: float
    """Median over rounds of the wall time of a step."""
    seconds_iqr: tuple[float, float]
    ratio: float
    """Median over rounds of the time relative to the first way."""
    ratio_iqr: tuple[float, float]
    busy: float
    """Cores used."""
    peak: float
    """Median of the peak MiB."""
    faults: float
    """Median of the minor page faults per step."""
    loss_difference: float
    """Largest relative difference of a step's loss to the first way's."""
    noisy: bool


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print Markdown."""
    args = arguments_of(arguments)
    environment = measuring.environment(*versions())
    environment["threads"] = args.threads
    print(f"{measuring.environment_line(environment)}\n")
    found: dict[str, Any] = {"environment": environment, "cells": []}
    for shape in args.shape:
        for precision in args.precision:
            found["cells"].append(measure(shape, precision, args))
    if args.json:
        measuring.write(args.json, found)


def arguments_of(arguments: list[str] | None) -> argparse.Namespace:
    """Return the parsed arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--shape",
        nargs="+",
        choices=SHAPES,
        default=["2k"],
        help="models: of a vocabulary of 2k or 32k, or SmolLM2-135M and its student (2k)",
    )
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
    args = parser.parse_args(arguments)
    if args.steps is not None and args.steps < 2:
        parser.error("--steps: at least 2 are needed, since the first does not count")
    return args


def versions() -> list[str]:
    """Return the installed peers, whose versions are part of the result."""
    names = ["transformers", "lightning", "accelerate", "trl", "nvidia-modelopt"]
    return [name for name in names if _is_installed(name)]


def _is_installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def measure(name: str, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the results of all ways for one shape and precision: rows and runs."""
    shape = SHAPES[name]
    quiet()
    steps, repeats = args.steps or shape.steps, args.repeats or shape.repeats
    torch.set_num_threads(args.threads)
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    limit = max(limits.matmul_rates((2048, 2048, 2048), dtype, how, 5)[0] for how in ("ieee", "bf16"))
    with tempfile.TemporaryDirectory() as folder:
        prepare(shape, steps, Path(folder))
        jobs = {
            way: Job(
                way.trainer, folder, way.switches, precision, args.threads, shape.seq_len, shape.batch, steps
            )
            for way in ways(args.only)
        }  # fmt: skip
        rounds = [run_round(jobs, args.peer_python, backwards=bool(i % 2)) for i in range(repeats)]
    runs = {way.name: [done[way] for done in rounds] for way in jobs if all(way in done for done in rounds)}
    found = rows(runs, args.threads)
    what = f"a step of {shape.batch} x {shape.seq_len} tokens, models {name}, {precision}"
    print_rows(f"{what}, {repeats} rounds of {steps} steps", found)
    print_summary(found, flops(shape), limit)
    return {"what": what, "rows": found, "runs": runs, "flops": flops(shape), "matmul_rate": limit}


def ways(trainers: list[str]) -> list[Way]:
    """Return the ways to compare; ours is first if requested."""
    first = [Way("ours", True)] if "ours" in trainers else []
    others = [Way(name, switches) for name in trainers for switches in (False, True) if name != "ours"]
    return first + others


def prepare(shape: Shape, steps: int, folder: Path) -> None:
    """Write two random models, and as many random tokens as one run reads."""
    for seed, (name, sizes) in enumerate({"teacher": shape.teacher, "student": shape.student}.items()):
        torch.manual_seed(seed)
        # Larger than the usual weights, so that teacher and student differ by more than rounding.
        config = LlamaConfig(
            **sizes, tie_word_embeddings=shape.tied, max_position_embeddings=2048, initializer_range=0.05
        )
        LlamaForCausalLM(config).save_pretrained(folder / name)
    num_tokens = shape.seq_len * shape.batch * steps
    ids = np.random.default_rng(0).integers(0, shape.teacher["vocab_size"], num_tokens).astype(np.uint16)
    (folder / "tokens").mkdir()
    ids.tofile(folder / "tokens" / "train.bin")
    about = {"dtype": "uint16", "eos": 0, "num_tokens": {"train": num_tokens}}
    (folder / "tokens" / "tokens.json").write_text(json.dumps(about))


def run_round(jobs: dict[Way, Job], peer_python: str, backwards: bool) -> dict[Way, Run]:
    """Return one run of every way, in sequence; report and skip trainers that are not installed."""
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
    """Run a job in its own process; return None if its trainer is not installed.

    Raises:
        RuntimeError: if the process fails.
    """
    request, result = Path(job.folder) / "job.json", Path(job.folder) / "result.json"
    request.write_text(json.dumps(asdict(job)))
    # lit_prune's commands also let waiting threads sleep early.
    own = {"GOMP_SPINCOUNT": "10000"} if job.switches else {}
    environment = os.environ | own | {"OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [python, "-m", "benchmarks.peers", str(request), str(result)]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if process.returncode == 3:
        print(f"{job.trainer} is left out: {process.stderr.strip().splitlines()[-1]}")
        return None
    if process.returncode:
        raise RuntimeError(f"{job.trainer} failed: {process.stderr.strip()[-2000:]}")
    return Run(**json.loads(result.read_text()))


def rows(runs: dict[str, list[Run]], threads: int) -> list[Row]:
    """Summarise all rounds; ratios are relative to the first way."""
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
    """Print a Markdown table of rows."""
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
    """Print the main results in sentences."""
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
