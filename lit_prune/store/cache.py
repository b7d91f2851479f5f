"""The machine-wide cache folder of converted teachers and extracted texts, which can be rebuilt. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from lit_prune.config import expand


def home() -> Path:
    """Return the cache folder: $LIT_PRUNE_HOME, else lit_prune in the user's cache folder."""
    if given := os.environ.get("LIT_PRUNE_HOME"):
        return expand(given)
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lit_prune"
