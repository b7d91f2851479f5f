"""A folder with the files that the documents name, and the parts that they register."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from documents import python_blocks
from paths import ROOT

from lit_prune.registry import Registry


@pytest.fixture(scope="session")
def workplace(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents name."""
    folder = tmp_path_factory.mktemp("workplace")
    lines = [json.dumps({"text": f"{part} {text}"}) for part in range(16) for text in texts]
    (folder / "stories.jsonl").write_text("\n".join(lines))
    (folder / "my-llama").symlink_to(ROOT / "lit_prune/teachers/python-3.1M")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


@pytest.fixture
def in_workplace(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in a folder of its own with the files of `workplace`: the store that it makes there is its own."""
    for path in workplace.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names that the documents add to the registries, which are put back afterwards."""
    added = []
    for block in (block for block in python_blocks() if block.module):
        module = importlib.import_module(block.module)
        registries = [part for part in vars(module).values() if isinstance(part, Registry)]
        before = {name for registry in registries for name in registry}
        for registry in registries:
            monkeypatch.setattr(registry, "_parts", dict(registry._parts))
        block.execute()
        added += {name for registry in registries for name in registry} - before
    return added
