"""Built-in corpora: texts that every installation of lit_prune includes. No torch."""

from __future__ import annotations

import collections
import importlib.metadata
import importlib.util
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from lit_prune.data import docstrings
from lit_prune.data.files import Digest

BUILT_IN = ("python", "python+dependencies", "readmes", "docstrings")
# Without torch and transformers: ten times the standard library, mostly generated code or near copies.
DEPENDENCIES = ("lightning", "datasets", "torchmetrics", "wandb", "pandas", "numpy")
# Their READMEs are English prose in Markdown.
DESCRIBED = (
    *DEPENDENCIES, "torch", "transformers", "tokenizers", "safetensors", "scipy", "matplotlib", "jinja2", "tabulate",
    "rich", "pyyaml", "pydantic", "tyro",
)  # fmt: skip

# Generated tables, data in Python syntax, vendored packages and machine-specific files.
_DROPPED_FOLDERS = {
    "encodings", "pydoc_data", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages", "__pycache__",
    "test", "tests", "testing", "idle_test", "_vendor", "vendor", "_vendored", "include",
}  # fmt: skip
_DROPPED_PREFIXES = ("config-", "_sysconfigdata", "lib-dynload")


class Named(NamedTuple):
    """A document with the name that determines its split; without a name it belongs to the train split."""

    name: str | None
    text: str


def built_in(source: str, digest: Digest) -> Iterator[Named]:
    """Stream the documents of a built-in corpus and update `digest` with the content of its fingerprint.

    The source code of dependencies is in the train split only; the held-out splits come from the standard library.

    Raises:
        ConfigError: as `docstrings.prepare`.
    """
    if source == "docstrings":
        digest.update(docstrings.identity(docstrings.versions()))
        yield from (Named(name, text) for name, text in docstrings.documents())
        return
    digest.update(b"a document a package\0" if source == "readmes" else b"")
    for document in _documents(source):
        digest.update(document.text.encode() + b"\0")
        yield document


def add_built_in(source: str, digest: Digest) -> None:
    """Update `digest` with the content of a built-in corpus's fingerprint: its text, or its package versions.

    Raises:
        ConfigError: if a package is missing.
    """
    if source == "docstrings":
        digest.update(docstrings.identity(docstrings.versions()))
    else:
        collections.deque(built_in(source, digest), maxlen=0)


def prepare(source: str, count: Callable[[str, int, int | None, str], None]) -> None:
    """Create the cached text of a built-in corpus if it is missing; `count` is that of `Progress`.

    Raises:
        ConfigError: as `docstrings.prepare`.
    """
    if source == "docstrings":
        docstrings.prepare(lambda done, total: count("reading docstrings", done, total, "file"))


def about(source: str) -> dict[str, Any]:
    """Return content and origin of the corpus `docstrings`; empty for others, which their fingerprint identifies.

    Raises:
        ConfigError: as `docstrings.prepare`.
    """
    return asdict(docstrings.contents()) if source == "docstrings" else {}


def package_versions(source: str) -> dict[str, str]:
    """Return the packages, with versions, that a corpus is read from; empty unless it is built in."""
    if source == "docstrings":
        return docstrings.versions()
    names = {"python+dependencies": DEPENDENCIES, "readmes": DESCRIBED}.get(source, ())
    return {name: importlib.metadata.version(name) for name in names}


def _documents(source: str) -> Iterator[Named]:
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
    """Yield the README of each package, one document per package."""
    for package in DESCRIBED:
        about = importlib.metadata.metadata(package).json  # the description is a header or the body
        text = str(about.get("description", ""))
        if text.strip():
            yield Named(package, text)


def _sources(root: Path, prefix: str = "") -> Iterator[Named]:
    """Yield the Python files under a folder, in the order of their relative paths."""
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
