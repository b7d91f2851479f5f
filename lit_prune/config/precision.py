"""The arithmetic of forward and backward passes, and which one this machine computes fastest. No torch."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

Precision = Literal["auto", "32-true", "bf16-mixed"]
"""Lightning's names. "auto" is bf16-mixed if this machine multiplies bfloat16 matrices faster than float32 ones, else
32-true; the address and the record name the precision that was used."""

_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
"""Instruction sets that multiply bfloat16: AVX512-BF16 (AMD since Zen 4, Intel Cooper Lake) and AMX (Intel since
Sapphire Rapids)."""

_AMPERE = 8.0
"""Least compute capability of an NVIDIA GPU with bfloat16 tensor cores."""


@functools.cache
def fastest_precision() -> Literal["32-true", "bf16-mixed"]:
    """Return the precision that stands for "auto": that of the GPUs if there are any, else of the processor."""
    capability = _gpu_capability()
    native = bool(_CPU_FLAGS & _cpu_flags()) if capability is None else capability >= _AMPERE
    return "bf16-mixed" if native else "32-true"


def resolve_precision(precision: Precision) -> Literal["32-true", "bf16-mixed"]:
    """Return the precision that is computed in."""
    return fastest_precision() if precision == "auto" else precision


def _cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def _gpu_capability() -> float | None:
    """Return the least compute capability of the NVIDIA GPUs that may be used; None without one."""
    command = shutil.which("nvidia-smi")
    if command is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    query = [command, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        return min((float(line) for line in shown.split()), default=None)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
