"""The training text of these tests, and uninterrupted runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from trained import NUM_SEQUENCES, SEQ_LEN, Whole, written


@pytest.fixture(scope="session")
def text_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NUM_SEQUENCES sequences of a text of 47 words, each with two successors; the last sequence is not full."""
    return written(tmp_path_factory.mktemp("part"), NUM_SEQUENCES * SEQ_LEN - 5)


@pytest.fixture(scope="session")
def whole(text_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Runs over it that were never interrupted; leave them as they are."""
    return Whole(text_tokens, tmp_path_factory.mktemp("whole"))
