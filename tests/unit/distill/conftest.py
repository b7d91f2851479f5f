"""The text that the runs of these tests are trained on, and runs that were never interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
from trained import BLOCK, BLOCKS, Whole, written


@pytest.fixture(scope="session")
def text_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BLOCKS blocks of text of 47 words, in which each word has two successors; the last block is not full."""
    return written(tmp_path_factory.mktemp("part"), BLOCKS * BLOCK - 5)


@pytest.fixture(scope="session")
def whole(text_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Runs over it that were never interrupted; leave them as they are."""
    return Whole(text_tokens, tmp_path_factory.mktemp("whole"))
