"""The model that methods prune, and the services that the pipeline gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pruning_context import context_of, small_llama

from lit_prune.pruning.context import PruneContext


@pytest.fixture(scope="module")
def model() -> Any:
    """A small Llama, which methods leave as it is."""
    return small_llama()


@pytest.fixture
def ctx(tmp_path: Path) -> PruneContext:
    """Services that calibrate and train on fixed sequences."""
    return context_of(tmp_path)
