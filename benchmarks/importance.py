"""What importance estimation costs beside the forward passes it is made of.

    python -m benchmarks.importance [--threads 1] [--repeats 7] [--json FILE]

A model of the shipped teacher's shape with random weights: only cost is measured. What is compared takes turns in one
process; seconds are the processor's, and a ratio is the median over rounds of the ratio within a round, so that
neighbours on the machine disturb both sides alike. Peak memory is read in a process of its own each (Linux).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_prune.config import Pretraining
from lit_prune.importance.calibrate import READERS, Calibrator
from lit_prune.importance.removals import Removals, next_token_losses, sequences_at_once
from lit_prune.models.anatomy import blocks_of

FORWARD: dict[str, tuple[str, ...]] = {
    "plain forward": (),
    "nine aggregations": ("importance",),
    "influence of all spans": ("distances",),
    "both": ("importance", "distances"),
    "all that a forward pass shows": tuple(READERS),
}
"""Name -> evidence that is measured on the way."""


@dataclass(frozen=True)
class Timing:
    """One way of doing something, over all rounds."""

    what: str
    seconds: float
    """Median of CPU time."""
    seconds_iqr: tuple[float, float]
    ratio: float
    """Median over rounds of this way's time by that of the first."""
    ratio_iqr: tuple[float, float]


@dataclass(frozen=True)
class Peak:
    """Most memory a process held, in MiB, before and during a pass."""

    what: str
    before: float
    peak: float


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.importance", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (7)")
    parser.add_argument("--sequences", type=int, default=64, help="calibration sequences (64)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens in a sequence (256)")
    parser.add_argument("--batch", type=int, default=16, help="sequences in a batch (16)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[6, 16], help="depths to leave blocks out at (6 16)")
    parser.add_argument("--json", type=Path, help="file to write everything to")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    machine = f"{platform.system()} {platform.machine()}, torch {torch.__version__}, {asked.threads} threads"
    data = f"{asked.sequences} sequences of {asked.tokens} tokens, {asked.batch} at once; {asked.repeats} rounds"
    print(f"{machine}; {data}\n")
    found: dict[str, Any] = {"machine": machine, "data": data}
    found["forward"] = timings = compare(forward_passes(asked), asked.repeats)
    print_timings("one pass over the calibration set", timings)
    if sys.platform == "linux":
        found["memory"] = peaks = [peak_memory(what, asked) for what in FORWARD]
        print_peaks(peaks)
    for depth in asked.blocks:
        ways, evaluations = removals(depth, asked)
        timings = compare(ways, asked.repeats)
        found[f"removals, {depth} blocks"] = {"timings": timings, "evaluations": evaluations}
        print_timings(f"loss without each of {depth} blocks", timings, evaluations)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1, default=asdict) + "\n")


def teacher(layers: int | None = None) -> Any:
    """A model of the shipped teacher's shape, or of another depth."""
    shape = Pretraining()
    config = LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden, intermediate_size=shape.neurons,
        num_hidden_layers=layers or shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def batches(asked: argparse.Namespace) -> list[Tensor]:
    """Random tokens, int64 [batch, tokens] each."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, Pretraining().vocab_size, (asked.sequences, asked.tokens), generator=generator)
    return list(ids.split(asked.batch))


def forward_passes(asked: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Passes over the set that differ in what they measure on the way."""
    model, data = teacher(), batches(asked)
    return {what: lambda names=names: forward(model, data, names) for what, names in FORWARD.items()}  # type: ignore[misc]


@torch.inference_mode()
def forward(model: Any, data: list[Tensor], names: tuple[str, ...]) -> None:
    """One pass without the head; no name is a pass without a hook."""
    reader = Calibrator(model, names, lambda seen: None)
    for ids in data:
        reader.read({"input_ids": ids})
    reader.found()


def removals(depth: int, asked: argparse.Namespace) -> tuple[dict[str, Callable[[], None]], dict[str, int]]:
    """Leaving out each block the naive way and with the states before it kept; and how often each evaluates a block
    for one batch."""
    model, data = teacher(depth), batches(asked)
    ways = {"naive": lambda: naive(model, data), "prefix reuse": lambda: prefix_reuse(model, data)}
    evaluations = {}
    for what, way in (("naive", naive), ("prefix reuse", prefix_reuse)):
        counted: list[int] = []
        hooks = [b.self_attn.register_forward_hook(lambda *_, c=counted: c.append(1)) for b in model.model.layers]
        way(model, [data[0][:1]])
        for hook in hooks:
            hook.remove()
        evaluations[what] = len(counted)
    return ways, evaluations


@torch.inference_mode()
def naive(model: Any, data: list[Tensor]) -> None:
    """A pass of the smaller model for each block left out, in the same portions."""
    blocks = blocks_of(model)
    try:
        for i in range(len(blocks)):
            model.model.layers = nn.ModuleList(blocks[:i] + blocks[i + 1 :])
            for batch in data:
                for ids in batch.split(sequences_at_once(batch, model.config.vocab_size)):
                    next_token_losses(model(input_ids=ids, use_cache=False).logits, ids).double().sum()
    finally:
        model.model.layers = nn.ModuleList(blocks)


@torch.inference_mode()
def prefix_reuse(model: Any, data: list[Tensor]) -> None:
    """What lit_prune does; gives the loss of the whole model too."""
    reader = Removals(model, 1, lambda seen: None)
    for ids in data:
        reader.read({"input_ids": ids, "labels": ids})
    reader.found()


def compare(ways: dict[str, Callable[[], None]], repeats: int) -> list[Timing]:
    """Time each way in every round; the first is what the others are compared with."""
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
        timings.append(Timing(what, statistics.median(times), _iqr(times), statistics.median(ratios), _iqr(ratios)))
    return timings


def peak_memory(what: str, asked: argparse.Namespace) -> Peak:
    """Peak memory of one forward pass of `FORWARD`, in a fresh process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_here, what, asked).result()


def _peak_here(what: str, asked: argparse.Namespace) -> Peak:
    torch.set_num_threads(asked.threads)
    model, data = teacher(), batches(asked)
    forward(model, [data[0][:1, :8]], ())  # what is loaded on first use is no part of a pass
    before = _reset_peak()
    forward(model, data, FORWARD[what])
    return Peak(what, before, _resident("VmHWM"))


def _reset_peak() -> float:
    """Forget the most memory this process has held so far; what it holds now, in MiB (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _resident(which: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(which))


def _iqr(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def print_timings(title: str, timings: list[Timing], evaluations: dict[str, int] | None = None) -> None:
    """A Markdown table of timings."""
    counts = " evaluations of a block |" if evaluations else ""
    print(f"| {title} | CPU seconds (IQR) | ratio (IQR) |{counts}\n|---|---|---|{'---|' if evaluations else ''}")
    for t in timings:
        count = f" {evaluations[t.what]} |" if evaluations else ""
        seconds = f"{t.seconds:.3f} ({t.seconds_iqr[0]:.3f} to {t.seconds_iqr[1]:.3f})"
        print(f"| {t.what} | {seconds} | {t.ratio:.2f} ({t.ratio_iqr[0]:.2f} to {t.ratio_iqr[1]:.2f}) |{count}")
    print()


def print_peaks(peaks: list[Peak]) -> None:
    """A Markdown table of peak memory."""
    print("| peak memory of one pass | before, MiB | peak, MiB | ratio |\n|---|---|---|---|")
    for p in peaks:
        print(f"| {p.what} | {p.before:.0f} | {p.peak:.0f} | {p.peak / peaks[0].peak:.2f} |")
    print()


if __name__ == "__main__":
    main()
