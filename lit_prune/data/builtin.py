"""The built-in corpora: texts that every machine with lit_prune has. No torch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BUILT_IN = ("python", "python+dependencies", "readmes")
# Not torch and transformers: ten times the standard library's size, mostly generated or near copies of each other.
DEPENDENCIES = ("lightning", "datasets", "torchmetrics", "wandb", "pandas", "numpy")
# English prose in Markdown, on every machine that runs lit_prune.
DESCRIBED = (
    *DEPENDENCIES, "torch", "transformers", "tokenizers", "safetensors", "scipy", "matplotlib", "jinja2", "tabulate",
    "rich", "pyyaml", "pydantic", "tyro",
)  # fmt: skip

# Generated tables, data in Python syntax, copies of other packages and machine-specific files: no source to learn from.
_DROPPED_FOLDERS = {
    "encodings", "pydoc_data", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages", "__pycache__",
    "test", "tests", "testing", "idle_test", "_vendor", "vendor", "_vendored", "include",
}  # fmt: skip
_DROPPED_PREFIXES = ("config-", "_sysconfigdata", "lib-dynload")


class Named(NamedTuple):
    """A document and the name that decides its split; a document without a name belongs to the train split."""

    name: str | None
    text: str


def built_in(source: str) -> Iterator[Named]:
    """Stream the documents of a built-in corpus.

    The source code of the dependencies is only trained on: the held-out splits are the standard library's.
    """
    if source == "readmes":
        yield from _readmes()
        return
    yield from _python()
    if source == "python+dependencies":
        for document in _dependencies():
            yield document._replace(name=None)


def _python() -> Iterator[Named]:
    root = Path(sysconfig.get_paths()["stdlib"])
    yield from _sources(root)
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Named(f"topic {name}", topics[name])


def _dependencies() -> Iterator[Named]:
    for package in DEPENDENCIES:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            yield from _sources(Path(folder), prefix=f"{package}/")


def _readmes() -> Iterator[Named]:
    """The README of each package lit_prune depends on, one document a package."""
    for package in DESCRIBED:
        about = importlib.metadata.metadata(package).json  # a description is a header, or what follows the headers
        text = str(about.get("description", ""))
        if text.strip():
            yield Named(package, text)


def _sources(root: Path, prefix: str = "") -> Iterator[Named]:
    """The Python files under a folder, in the order of their relative paths."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _DROPPED_FOLDERS and not f.startswith(_DROPPED_PREFIXES))
        for name in sorted(files):
            if name.endswith(".py") and not name.startswith(_DROPPED_PREFIXES):
                path = Path(folder, name)
                try:
                    text = path.read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue
                if text.strip():
                    yield Named(prefix + path.relative_to(root).as_posix(), text)
