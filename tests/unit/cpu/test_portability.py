"""Features of Linux that macOS lacks have a fallback."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from lit_prune.cpu import threads
from lit_prune.evaluate import memory
from lit_prune.store import atomic


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("size", [1, 5000, 12_345])
def test_a_file_gets_all_its_blocks_at_once(native: bool, size: int, tmp_path: Path, monkeypatch) -> None:
    if not native:
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr(atomic, "_CHUNK", 4096)
    with (tmp_path / "file").open("wb") as file:
        atomic.preallocate(file, size)
    about = (tmp_path / "file").stat()
    assert about.st_size == size
    assert about.st_blocks * 512 >= size


def test_busy_neighbours_are_seen_where_the_system_counts_fewer_kinds_of_time(monkeypatch) -> None:
    mac = namedtuple("mac", "user nice system idle")
    clock = iter([10.0, 14.0])
    monkeypatch.setattr(threads, "_since", None)
    monkeypatch.setattr(threads.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(threads.time, "process_time", lambda: 3.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda: mac(100.0, 0.0, 50.0, 900.0))
    threads.watch()
    monkeypatch.setattr(psutil, "cpu_times", lambda: mac(105.0, 0.0, 51.0, 902.0))
    assert threads.neighbours() == pytest.approx(1.5)  # 6 of 4 seconds


def test_peak_memory_is_unknown_without_proc(tmp_path: Path, monkeypatch) -> None:
    for name in ("_STATUS", "_CLEAR"):
        monkeypatch.setattr(memory, name, tmp_path / "none" / name)
    assert not memory.reset_peak()
    assert memory.peak_memory() is None
