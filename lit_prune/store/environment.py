"""The environment of a result: commit, versions, hardware and command. No torch."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

_VERSIONS = (
    "lit-prune", "torch", "lightning", "transformers", "tokenizers", "datasets", "torchmetrics", "numpy", "scipy",
    "pandas",
)  # fmt: skip

runtime: dict[str, Any] = {"cpu": {}}
"""Runtime settings of this process, filled in by `lit_prune.cpu`."""


def environment() -> dict[str, Any]:
    """Return commit, versions, hardware and command, on which a result depends besides its address."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": commit(),
        "started": now(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        **runtime,
        "versions": {name: _version(name) for name in _VERSIONS},
    }


def machine(env: Mapping[str, Any]) -> str:
    """Return the machine of an environment as text: processor, cores and platform."""
    return f"{env['processor']}, {env['cores']} cores, {env['platform']}"


def now() -> str:
    """Return the time in UTC, as ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@functools.cache
def commit() -> str | None:
    """Return the commit of the checkout, with "+" if it has uncommitted changes; None outside a checkout.

    Cached, since a process runs the code that it has imported.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", "."], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
