"""Let glibc keep the memory it has, instead of returning every large chunk to Linux.

A returned chunk is requested again at the next step, and Linux fills each of its pages with zeros first: a step of a
small model met 112,000 such faults, a sixth of its processor time. The process stays as large as it ever was.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Numbers of mallopt's parameters in malloc.h."""
_AHEAD = 64 * 2**20
"""Bytes requested beyond what is needed."""

_kept = False


def switch(wanted: bool) -> str:
    """Let glibc keep its pages for the rest of the process; returns whether it does, and why not."""
    global _kept
    if not wanted:
        return "on: since an earlier run of this process" if _kept else "off"
    if platform.libc_ver()[0] != "glibc":
        return "off: only glibc's allocator can be told"
    _kept = keep()
    return "on" if _kept else "off: mallopt refused"


def keep() -> bool:
    """Take all memory from the heap, and never give the heap's end back; returns whether glibc agreed."""
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(parameter, value)
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _AHEAD))
    )
