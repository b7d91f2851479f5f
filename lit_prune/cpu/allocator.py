"""Make glibc keep freed memory instead of returning every large chunk to Linux.

A returned chunk is allocated again at the next step, and Linux zeroes each of its pages first: a step of a small model
had 112,000 such page faults, a sixth of its CPU time. In return, the memory of the process never shrinks.
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameter numbers of mallopt, from malloc.h."""
_AHEAD = 64 * 2**20
"""Bytes by which the heap grows beyond a request."""

_kept = False


def switch(wanted: bool) -> str:
    """Make glibc keep its pages for the rest of the process; return whether it does, and if not why."""
    global _kept
    if not wanted:
        return "on: since an earlier run of this process" if _kept else "off"
    if platform.libc_ver()[0] != "glibc":
        return "off: only glibc's allocator can be told"
    _kept = keep()
    return "on" if _kept else "off: mallopt refused"


def keep() -> bool:
    """Allocate all memory from the heap and never trim it; return whether glibc accepted these settings."""
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(parameter, value)
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _AHEAD))
    )
