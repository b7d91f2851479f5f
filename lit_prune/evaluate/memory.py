"""Measure peak memory in bytes: of one call, and of the process since the last reset.

On a GPU both come from the allocator. On a CPU, the peak of a call is the highest running sum of PyTorch's allocations
and releases, as the profiler records them; that of the process comes from the system and includes the libraries.
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
_FORGET = "5"  # resets only the process' peak memory


def reset_peak() -> bool:
    """Reset the peak memory of the process; return whether the system allows it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        _CLEAR.write_text(_FORGET)
    except OSError:
        return False
    return True


def peak_memory() -> int | None:
    """Return the peak bytes of the GPU, or without one of the process, since `reset_peak`; None if unknown."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024


def peak_of(call: Callable[[], Any], device: torch.device) -> int:
    """Return the peak bytes allocated during a call, excluding memory allocated before it."""
    return _on_gpu(call, device) if device.type == "cuda" else _on_processor(call)


def bytes_of_weights(model: Any) -> int:
    """Return the bytes of all parameters and buffers, each counted once."""
    return sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers()))


def bytes_of_cache(cache: Any) -> int:
    """Return the bytes of the keys and values in a transformers cache; layers without attention have none."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if layer.keys is not None)


def _on_gpu(call: Callable[[], Any], device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def _on_processor(call: Callable[[], Any]) -> int:
    # Kineto, the recorder, would otherwise log its start and end.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    return max(itertools.accumulate((size for _, size in sorted(changes, key=lambda c: c[0])), initial=0))
