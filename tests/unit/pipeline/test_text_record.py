"""What a result says of the packages that its text was read from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import install, said, use

from lit_prune.config import Corpus
from lit_prune.data import docstrings
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.report.report import _versions
from lit_prune.store.environment import environment


def test_a_cell_says_which_packages_its_text_is_of(
    tmp_path: Path, tiny_cell, tiny_runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = {f"many/m{i}.py": f'"""{said(f"module {i}", 300)}"""' for i in range(100)}
    install(tmp_path / "site", "many", modules, version="3.2+local")
    use(monkeypatch, tmp_path / "site", "many", cache=tmp_path / "cache")
    cell = Resolver().pin(replace(tiny_cell, corpus=Corpus(path="docstrings", holdout_fraction=0.2)))
    assert not (tmp_path / "cache").exists()
    assert tiny_runner.run([Entry("row", 0, cell, {})]) == 0
    tokens, node = (tiny_runner.store.node(cell, stage) for stage in ("tokens", "cell"))
    assert json.loads((tokens.folder / "env.json").read_text())["corpus"] == vars(docstrings.contents())
    assert node.env["versions"] == {"many": "3.2"} | environment()["versions"]
    assert _versions([node.env])["many"] == "3.2"
