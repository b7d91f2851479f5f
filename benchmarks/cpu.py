"""Speedup of a distillation step by each CPU optimisation of lit_prune/cpu, alone and combined.

    python -m benchmarks.cpu [--threads 1] [--rounds 3] [--steps 3] [--cells V2k V32k] [--json FILE]

Optimisations change the memory of a process for good, so each way runs in its own process. They take turns, and the
result of each goes to stderr.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import measuring
from lit_prune.config import Distill
from lit_prune.cpu import allocator, attention, matmul, threads
from lit_prune.distill.module import Distiller


@dataclasses.dataclass(frozen=True)
class Cell:
    """A teacher, a student, and the batch [batch, 256] of a step; sizes as (hidden, neurons, heads, groups)."""

    vocab: int
    batch: int
    teacher: tuple[int, int, int, int]
    student: tuple[int, int, int, int]


CELLS = {
    "V2k": Cell(2048, 16, (256, 704, 8, 4), (192, 384, 8, 4)),
    "V32k": Cell(32000, 4, (288, 768, 6, 6), (192, 512, 4, 4)),
}
WAYS: dict[str, Callable[[], Any]] = {
    "plain": lambda: None,
    "attention": lambda: attention.switch(True),
    "blocked attention": lambda: attention.use(dict.fromkeys((torch.float32, torch.bfloat16), attention.blocked)),
    "matmul": lambda: matmul.switch(True),
    "oneDNN": lambda: matmul.use(True),
    "allocator": lambda: allocator.switch(True),
    "all": lambda: [matmul.switch(True), attention.switch(True), allocator.switch(True)],
    "all, forced": lambda: [
        matmul.use(True),
        attention.use(dict.fromkeys((torch.float32, torch.bfloat16), attention.blocked)),
        allocator.switch(True),
    ],
}
"""Each optimisation as its probe decides, and the same forced, regardless of the probe."""


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way (3)")
    parser.add_argument("--steps", type=int, default=3, help="steps timed in a process (3)")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(CELLS), help="shapes (V2k V32k)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="what is compared (all)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="bfloat16: autocast")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    parser.add_argument("--one", nargs=2, metavar=("CELL", "WAY"), help="this process measures one way alone")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(steps(*args.one, args.steps, args.precision)))
        return
    environment = measuring.environment("transformers")
    print(f"{measuring.environment_line(environment)}; {args.precision}; {args.rounds} rounds\n")
    found: dict[str, Any] = {"environment": environment, "precision": args.precision}
    for cell in args.cells:
        found[cell] = rounds = [{way: _apart(cell, way, args) for way in args.ways} for _ in range(args.rounds)]
        _print(cell, rounds)
    if args.json:
        measuring.write(args.json, found)


def steps(cell: str, way: str, count: int, precision: str) -> dict[str, Any]:
    """Return median CPU and wall seconds and page faults of a step after a warm-up, and peak memory in MiB."""
    threads.share_the_machine()
    applied = WAYS[way]()
    step, costs = _stepper(CELLS[cell], precision), []
    for _ in range(count + 1):
        before = time.process_time(), time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        loss = step()
        after = time.process_time(), time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        costs.append([b - a for a, b in zip(before, after, strict=True)])
    cpu, wall, faults = map(statistics.median, zip(*costs[1:], strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu": cpu, "wall": wall, "faults": faults, "peak": peak, "loss": loss, "applied": applied}


def _stepper(cell: Cell, precision: str) -> Callable[[], float]:
    """Return a function that does one step of distillation and returns its loss."""
    torch.manual_seed(0)
    module = Distiller(_model(cell, cell.prune).train(), _model(cell, cell.teacher), Distill())
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    ids = torch.randint(0, cell.vocab, (cell.batch, 256))

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = module.training_step({"input_ids": ids, "labels": ids}, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _model(cell: Cell, shape: tuple[int, int, int, int]) -> Any:
    hidden, neurons, heads, groups = shape
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cell.vocab, hidden_size=hidden, intermediate_size=neurons, num_hidden_layers=6,
            num_attention_heads=heads, num_key_value_heads=groups, head_dim=hidden // heads,
            tie_word_embeddings=False,
        )
    )  # fmt: skip


def _apart(cell: str, way: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return the results of one way, measured in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.cpu", "--one", cell, way, "--precision", args.precision]
    command += ["--threads", str(args.threads), "--steps", str(args.steps)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(json.loads(output.splitlines()[-1]))
    print(f"{cell}, {way}: {found}", file=sys.stderr)
    return found


def _print(cell: str, rounds: list[dict[str, dict[str, Any]]]) -> None:
    """Print a Markdown table; ratios are medians over rounds of the ratio within a round."""
    print(
        f"| {cell} | CPU ms a step | ratio (IQR) | page faults a step | peak, MiB | loss |\n|---|---|---|---|---|---|"
    )
    first = next(iter(rounds[0]))
    for way in rounds[0]:
        ours = {name: statistics.median(r[way][name] for r in rounds) for name in ("cpu", "faults", "peak", "loss")}
        ratios = [r[way]["cpu"] / r[first]["cpu"] for r in rounds]
        low, high = measuring.iqr(ratios)
        print(
            f"| {way} | {1000 * ours['cpu']:.0f} | {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}) "
            f"| {ours['faults']:,.0f} | {ours['peak']:.0f} | {ours['loss']:.6f} |"
        )
    print()


if __name__ == "__main__":
    main()
