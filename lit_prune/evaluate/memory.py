"""Memory in bytes, at its highest: of one call, and of the process since it was last asked to forget.

A GPU's allocator counts both. On a processor a call's is the running sum of PyTorch's allocations and releases, which
the profiler records one by one; the process' is what the system says, which has the libraries in it.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_FORGET = "5"  # of the process' highest memory, alone


def reset_peak() -> bool:
    """Begin to measure the process anew; whether that is possible here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        _CLEAR.write_text(_FORGET)
    except OSError:
        return False
    return True


def peak_memory() -> int | None:
    """Most bytes that a GPU, or without one the process, held since `reset_peak`; None where the system is silent."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024


def peak_of(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that are allocated at once during a call, without what was allocated before it."""
    return _on_gpu(call, device) if device.type == "cuda" else _on_processor(call)


def bytes_of_weights(model: Any) -> int:
    """Bytes of all parameters and buffers, each once."""
    return sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers()))


def bytes_of_cache(cache: Any) -> int:
    """Bytes of the keys and values a transformers cache holds."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _on_gpu(call: Callable[[], Any], device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def _on_processor(call: Callable[[], Any]) -> int:
    # Kineto, which records, would otherwise announce its start and its end.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    return max(itertools.accumulate((size for _, size in sorted(changes, key=lambda c: c[0])), initial=0))
