"""The environment variables that workers on other hosts get. No torch."""

from __future__ import annotations

import os

_NAMES = ("GOMP_SPINCOUNT", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN", "PYTHONPATH", "TOKENIZERS_PARALLELISM")
_PREFIXES = ("LIT_PRUNE_", "WANDB_")


def passed_on(threads: int) -> dict[str, str]:
    """Return the variables of this process that change what a worker does, and the threads of its libraries."""
    found = {name: value for name, value in os.environ.items() if name in _NAMES or name.startswith(_PREFIXES)}
    return found | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
