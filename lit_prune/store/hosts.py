"""Identify a process across hosts, and tell whether one of this host is dead. No torch."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Process:
    """A process of some host."""

    host: str
    machine: str
    """Boot and process namespace: two containers of one host have process numbers of their own."""
    pid: int
    start: str
    """When it started, as its system counts; numbers of processes are used again."""


def this_process() -> Process:
    """Return this process."""
    return Process(socket.gethostname(), _machine(), os.getpid(), _start(os.getpid()) or "")


def is_dead(process: Process) -> bool | None:
    """Return whether a process is dead; None if it runs elsewhere, where it cannot be seen."""
    if (process.host, process.machine) != (socket.gethostname(), _machine()):
        return None
    return _start(process.pid) != process.start


@functools.cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _start(pid: int) -> str | None:
    """Return when a process started; None if there is none, or it is dead and not yet collected by its parent."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # in ticks since the boot, which no change of a clock moves
    except OSError:
        pass
    try:
        found = psutil.Process(pid)
        return None if found.status() == psutil.STATUS_ZOMBIE else str(found.create_time())
    except psutil.Error:
        return None
