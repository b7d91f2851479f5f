"""A result records the packages from which its text was read."""

from dataclasses import replace
from pathlib import Path

import pytest
from made_up import docstring, install, use

import lit_prune as lp
from lit_prune.config import Corpus
from lit_prune.data import docstrings
from lit_prune.pipeline.expand import Entry
from lit_prune.pipeline.resolve import Resolver
from lit_prune.report.report import _versions
from lit_prune.store import Node
from lit_prune.store.environment import environment


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text `docstrings` is that of one package with 100 modules."""
    modules = {f"many/m{i}.py": f'"""{docstring(f"module {i}", 300)}"""' for i in range(100)}
    install(tmp_path / "site", "many", modules, version="3.2+local")
    use(monkeypatch, tmp_path / "site", "many", cache=tmp_path / "cache")


def test_a_cell_says_which_packages_its_text_is_of(tmp_path: Path, tiny_cell, tiny_runner) -> None:
    cell = Resolver().pin(replace(tiny_cell, corpus=Corpus(path="docstrings", holdout_fraction=0.2)))
    assert not (tmp_path / "cache").exists()
    assert tiny_runner.run([Entry("row", 0, cell, {})]) == 0
    tokens, node = (tiny_runner.store.node(cell, stage) for stage in ("tokens", "cell"))
    assert tokens.env["corpus"] == vars(docstrings.contents())
    assert node.env["versions"] == {"many": "3.2"} | environment()["versions"]
    assert _versions([node.env])["many"] == "3.2"


def test_an_evaluation_says_which_packages_its_text_is_of(tmp_path: Path, tiny_folder: Path) -> None:
    store = tmp_path / "store"
    found = lp.evaluate(tiny_folder / "tiny", corpus="docstrings", limit=2, store=store)
    assert found["docstrings"]["perplexity"]["n"] == 2
    (node,) = map(Node, (store / "benchmark").iterdir())
    assert node.env["corpus"] == vars(docstrings.contents())
    assert docstrings.contents().packages == ["many==3.2"]
