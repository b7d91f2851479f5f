"""Measure, print and save the results of benchmarks.

Compared ways take turns in one process. Seconds are CPU time, and a ratio is the median over rounds of the ratio within
a round, so that other load affects both sides alike. Each peak memory is read in its own process (Linux).
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

Way = Callable[[], object]
"""One way to compute something; a call runs it once."""


@dataclass(frozen=True)
class Timing:
    """CPU time of one way over all rounds."""

    what: str
    seconds: float
    """Median of CPU time."""
    seconds_iqr: tuple[float, float]
    ratio: float
    """Median over rounds of the time relative to the first way."""
    ratio_iqr: tuple[float, float]


@dataclass(frozen=True)
class Peak:
    """Peak memory of a process, in MiB, before and during one way."""

    what: str
    before: float
    peak: float

    @property
    def added(self) -> float:
        """MiB added by the way itself."""
        return self.peak - self.before


def environment(*packages: str) -> dict[str, Any]:
    """Return machine, threads, versions of Python, torch and the given packages, and the measured commit."""
    return {
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", *packages)} | {"python": platform.python_version()},
        "commit": _commit(),
    }


def environment_line(found: dict[str, Any]) -> str:
    """Format an environment in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"{found['machine']}, {found['threads']} threads; {versions}; commit {found['commit']}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + (" and changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def compare(ways: dict[str, Way], repeats: int) -> list[Timing]:
    """Time each way in every round; ratios are relative to the first."""
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {what: [] for what in ways}
    for _ in range(repeats):
        for what, way in ways.items():
            start = time.process_time()
            way()
            seconds[what].append(time.process_time() - start)
    first = next(iter(seconds.values()))
    timings = []
    for what, times in seconds.items():
        ratios = [ours / theirs for ours, theirs in zip(times, first, strict=True)]
        timings.append(Timing(what, statistics.median(times), iqr(times), statistics.median(ratios), iqr(ratios)))
    return timings


def iqr(values: list[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def peak_memory(what: str, prepare: Callable[..., Way], *arguments: Any) -> Peak:
    """Return the peak memory of the way `prepare(*arguments)`, in a fresh process with as many threads as this one.

    `prepare` must be a module-level function; what it allocates counts as before the way.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_here, what, torch.get_num_threads(), prepare, arguments).result()


def _peak_here(what: str, threads: int, prepare: Callable[..., Way], arguments: tuple[Any, ...]) -> Peak:
    torch.set_num_threads(threads)
    way = prepare(*arguments)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak memory of this process
    before = _resident("VmRSS")
    way()
    return Peak(what, before, _resident("VmHWM"))


def _resident(which: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(which))


def print_timings(title: str, timings: list[Timing], **columns: dict[str, Any]) -> None:
    """Print a Markdown table of timings, with more columns of one value per way."""
    heads = "".join(f" {name.replace('_', ' ')} |" for name in columns)
    print(f"| {title} | CPU seconds (IQR) | ratio (IQR) |{heads}\n|---|---|---|{'---|' * len(columns)}")
    for t in timings:
        more = "".join(f" {values[t.what]} |" for values in columns.values())
        seconds = f"{t.seconds:.3f} ({t.seconds_iqr[0]:.3f} to {t.seconds_iqr[1]:.3f})"
        print(f"| {t.what} | {seconds} | {t.ratio:.2f} ({t.ratio_iqr[0]:.2f} to {t.ratio_iqr[1]:.2f}) |{more}")
    print()


def print_peaks(title: str, peaks: list[Peak]) -> None:
    """Print a Markdown table of peak memory."""
    print(f"| {title} | before, MiB | peak, MiB | ratio |\n|---|---|---|---|")
    for p in peaks:
        print(f"| {p.what} | {p.before:.0f} | {p.peak:.0f} | {p.peak / peaks[0].peak:.2f} |")
    print()


def write(path: Path, found: dict[str, Any]) -> None:
    """Write all results as JSON."""
    path.write_text(json.dumps(found, indent=1, default=asdict) + "\n")
