"""A model on disk, to be changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Path) -> Path:
    """Return `tiny_llama` with its tokenizer in a folder of its own."""
    return shutil.copytree(tiny_folder / "tiny", tmp_path / "whole")
