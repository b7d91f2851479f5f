"""Peak rates of this machine, the reference of the other benchmarks.

    python -m benchmarks limits [--threads 1 2] [--repeats 15] [--json FILE]

Measures matrix products, memory bandwidth, and the cost of memory that the process does not hold yet. The best of all
repeats is a limit; the median is what to expect.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measuring

SHAPES = {"2048 x 2048 x 2048": (2048, 2048, 2048), "4096 x 288 x 32000 (a head)": (4096, 288, 32000)}
"""Name -> rows, inner dimension and columns of a matrix product."""

COPIED = 2**28
"""Bytes of a copy, far more than any cache."""

ENOUGH = 2.0
"""Seconds after which an operation is not repeated."""

FILLED = 2**25
"""Bytes of an allocation that the allocator returns to the system once freed."""


@dataclass(frozen=True)
class Rate:
    """Rates of one operation over all repeats."""

    what: str
    threads: int
    best: float
    median: float
    unit: str


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks limits", description=(__doc__ or "").splitlines()[0])
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}), help="threads of torch (1, all)")
    parser.add_argument("--repeats", type=int, default=15, help="times each operation is done (15)")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    args = parser.parse_args(arguments)
    environment = measuring.environment()
    print(f"{measuring.environment_line(environment)}\n")
    rates = [rate for threads in args.threads for rate in measure(threads, args.repeats)]
    errors = {what: matmul_error(precision) for what, precision in (("default", "ieee"), ("oneDNN", "bf16"))}
    print("| limit | threads | best | median |\n|---|---|---|---|")
    for r in rates:
        print(f"| {r.what} | {r.threads} | {r.best:.3g} {r.unit} | {r.median:.3g} {r.unit} |")
    print()
    for what, error in errors.items():
        print(f"largest error of a float32 matrix product, {what}: {error:.1e} of its largest entry")
    print()
    if args.json:
        measuring.write(args.json, {"environment": environment, "rates": rates, "matmul_errors": errors})


def measure(threads: int, repeats: int) -> list[Rate]:
    """Return all rates at a number of threads."""
    torch.set_num_threads(threads)
    rates = []
    for name, shape in SHAPES.items():
        for what, dtype, precision in MATMULS:
            best, median = matmul_rates(shape, dtype, precision, repeats)
            rates.append(Rate(f"{what} matrix product {name}", threads, best / 1e9, median / 1e9, "GFLOP/s"))
    source, target = torch.ones(COPIED // 4), torch.ones(COPIED // 4)
    copied = [2 * COPIED / seconds / 1e9 for seconds in timed(lambda: target.copy_(source), repeats)]
    rates.append(Rate("copy, read and written", threads, max(copied), statistics.median(copied), "GB/s"))
    reused = torch.empty(FILLED // 4)
    for what, fill in (("reused", lambda: reused.fill_(1.0)), ("fresh", lambda: torch.empty(FILLED // 4).fill_(1.0))):
        seconds = [1e3 * s for s in timed(fill, repeats)]
        rates.append(Rate(f"fill 32 MiB of {what} memory", threads, min(seconds), statistics.median(seconds), "ms"))
    return rates


MATMULS = (
    ("float32", torch.float32, "ieee"),
    ("float32 by oneDNN", torch.float32, "bf16"),
    ("bfloat16", torch.bfloat16, "ieee"),
)
"""Name, dtype, and the precision allowed for float32, which selects oneDNN; without AMX its kernel is float32 still."""


def matmul_rates(shape: tuple[int, int, int], dtype: torch.dtype, precision: str, repeats: int) -> tuple[float, float]:
    """Return the best and the median FLOP/s of a matrix product."""
    rows, inner, columns = shape
    a, b, out = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype), torch.empty(0, dtype=dtype)
    with float32_precision(precision):
        rates = [2 * rows * inner * columns / s for s in timed(lambda: torch.mm(a, b, out=out), repeats)]
    return max(rates), statistics.median(rates)


def matmul_error(precision: str) -> float:
    """Return the largest error of a float32 product against float64, relative to its largest entry."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(256, 512, generator=generator), torch.randn(512, 256, generator=generator)
    with float32_precision(precision):
        product = a @ b
    exact = a.double() @ b.double()
    return float((product - exact).abs().max() / exact.abs().max())


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Let oneDNN use a precision for float32 matrix products; "ieee" keeps PyTorch's choice of library."""
    settings: Any = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = precision
    try:
        yield
    finally:
        settings.fp32_precision = before


def timed(do: Callable[[], Tensor], repeats: int) -> list[float]:
    """Return the wall seconds of `repeats` calls after a warm-up; of fewer if they exceed `ENOUGH` seconds in total."""
    do()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < ENOUGH:
        start = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
