"""The built-in corpus `docstrings`: docstrings of the packages that every installation has. No torch.

The packages are parsed with `ast`, so none is imported. Names and versions of the packages identify the text without
reading it. It is extracted once per machine and kept in the cache folder with its sha256.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import inspect
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lit_prune.config import ConfigError
from lit_prune.store import lease
from lit_prune.store.atomic import atomic_path, write_json
from lit_prune.store.cache import home
from lit_prune.store.integrity import sha256_of

PACKAGES = (
    "datasets", "huggingface-hub", "lightning", "matplotlib", "mpmath", "networkx", "numpy", "pandas", "scipy", "sympy",
    "torch", "torchmetrics", "transformers",
)  # fmt: skip
"""Packages with at least 0.3 MB of docstrings that lit_prune or its dependencies require on every platform. Excluded:
`pytorch-lightning`, a copy of `lightning` under another name, and packages of extras."""
SHORTEST = 200
"""Minimum length of a docstring, in characters."""
KNOWN_TEXTS = {
    "db9c620d51de03e7a25592c11265d9c0b1a0b7971837b6668b558e2e764eb9f0":
        "8792e9e3512f77f31bd5b816926079209008f43a9fa5e4eca2fbfb7d3909d823",
}  # fmt: skip
"""Fingerprint -> sha256 of the text, for the versions of constraints.txt; a test fails if they change."""

# Version of the extraction, part of the fingerprint. Raise it when the extracted text changes.
_READING = "docstrings 1"
# Tests, vendored packages, and numpy.distutils, which wheels for Python 3.12 and later lack.
_DROPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "vendor", "_vendored", "distutils"}
_PLACES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_STATEMENTS = ("body", "handlers", "orelse", "finalbody", "cases")

OnProgress = Callable[[int, int], None]
"""Receives the number of files read and the total."""


@dataclass(frozen=True)
class Contents:
    """Statistics of the text: what it contains, and what was left out."""

    packages: list[str]
    """NAME==VERSION."""
    sha256: str
    """Digest of the file with the text."""
    num_bytes: int
    """UTF-8 bytes of the docstrings."""
    num_modules: int
    num_docstrings: int
    num_duplicates: int
    """Docstrings left out as duplicates of an earlier one."""
    num_not_utf8: int
    """Files left out because they are not UTF-8."""
    num_not_parsed: int
    """Files left out because this Python cannot parse them."""


def versions() -> dict[str, str]:
    """Return the installed version of each package, without a local part such as torch's `+cpu`.

    Raises:
        ConfigError: if a package is missing.
    """
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(f"corpus.path: docstrings must have the package {name}, which is not installed") from None
    return found


def identity(installed: Mapping[str, str]) -> bytes:
    """Return the bytes whose sha256 is the fingerprint of the text."""
    return "\n".join([_READING, *_named(installed)]).encode()


def documents() -> Iterator[tuple[str, str]]:
    """Stream name and text of each module, in the order of packages and paths.

    Raises:
        ConfigError: as `prepare`.
    """
    folder = prepare()
    with (folder / "text.jsonl").open(encoding="utf-8", newline="\n") as file:
        for line in file:
            name, text = json.loads(line)
            yield name, text


@functools.cache
def packages() -> dict[str, str]:
    """Return the package that installed each module of the text, by the names of `documents`.

    Raises:
        ConfigError: as `prepare`.
    """
    return {name: package for package in PACKAGES for name, _ in _files(package)}


def contents() -> Contents:
    """Return the statistics of the text.

    Raises:
        ConfigError: as `prepare`.
    """
    return Contents(**json.loads((prepare() / "about.json").read_text()))


def prepare(on_progress: OnProgress = lambda done, total: None) -> Path:
    """Return the folder with the text; extract it if the cache lacks that of the installed versions.

    Raises:
        ConfigError: if a package is missing or damaged, or the cache folder cannot be written.
    """
    installed = versions()
    fingerprint = hashlib.sha256(identity(installed)).hexdigest()
    folder = home() / "texts" / fingerprint
    if _is_whole(folder):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lease.hold(folder / ".lease", "the text", wait=True):
            if not _is_whole(folder):  # another process may have written it meanwhile
                _write(folder, installed, KNOWN_TEXTS.get(fingerprint), on_progress)
    except OSError as error:
        raise ConfigError(f"LIT_PRUNE_HOME: {folder} cannot be written ({error.strerror or error})") from None
    return folder


def _named(installed: Mapping[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in installed.items()]


def _is_whole(folder: Path) -> bool:
    try:
        about = json.loads((folder / "about.json").read_text())
        return sha256_of(folder / "text.jsonl") == about["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(folder: Path, installed: Mapping[str, str], known: str | None, on_progress: OnProgress) -> None:
    """Write text.jsonl, one line [name, text] per module, and then about.json.

    Raises:
        ConfigError: if a package is damaged: a file cannot be read, or the digest of the text is wrong.
    """
    digest, counts = hashlib.sha256(), _Counts()
    with atomic_path(folder / "text.jsonl") as scratch, scratch.open("wb") as file:
        for name, docstrings in _modules(counts, on_progress):
            line = json.dumps([name, "\n\n".join(docstrings)], ensure_ascii=False).encode() + b"\n"
            digest.update(line)
            file.write(line)
    sha256 = digest.hexdigest()
    if known not in (None, sha256):
        raise ConfigError(
            f"corpus.path: docstrings of {', '.join(_named(installed))} must have sha256 {known}, got {sha256}; an "
            "installed package was changed (reinstall with pip install --force-reinstall -c constraints.txt)"
        )
    write_json(folder / "about.json", asdict(Contents(packages=_named(installed), sha256=sha256, **vars(counts))))


@dataclass
class _Counts:
    num_bytes: int = 0
    num_modules: int = 0
    num_docstrings: int = 0
    num_duplicates: int = 0
    num_not_utf8: int = 0
    num_not_parsed: int = 0


def _modules(counts: _Counts, on_progress: OnProgress) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the new docstrings of each module that has any."""
    files = [file for package in PACKAGES for file in _files(package)]
    seen: set[bytes] = set()
    for number, (name, path) in enumerate(files):
        on_progress(number, len(files))
        kept = []
        for docstring in _docstrings(name, path, counts):
            hashed = hashlib.sha256(docstring.encode()).digest()
            if hashed in seen:
                counts.num_duplicates += 1
                continue
            seen.add(hashed)
            kept.append(docstring)
            counts.num_bytes += len(docstring.encode())
        if kept:
            counts.num_modules += 1
            counts.num_docstrings += len(kept)
            yield name, kept
    on_progress(len(files), len(files))


def _files(package: str) -> list[tuple[str, Path]]:
    """Return names and paths of the Python files that a package installed, without others in its folder.

    Raises:
        ConfigError: if the package does not list its files, as in an editable installation.
    """
    listed = {str(PurePosixPath(file)): Path(str(file.locate())) for file in importlib.metadata.files(package) or ()}
    found = [(name, listed[name]) for name in sorted(listed) if _is_read(PurePosixPath(name))]
    if not found:
        raise ConfigError(f"corpus.path: docstrings must have {package} installed from a wheel, got one in place")
    return found


def _is_read(file: PurePosixPath) -> bool:
    if file.suffix != ".py" or file.parts[0] == ".." or _DROPPED_FOLDERS.intersection(file.parts[:-1]):
        return False
    return not (file.name.startswith("test_") or file.name == "conftest.py")


def _docstrings(name: str, path: Path, counts: _Counts) -> Iterator[str]:
    """Yield the docstrings of a file with at least `SHORTEST` characters, dedented, in source order."""
    try:
        source = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        counts.num_not_utf8 += 1
        return
    except OSError as error:
        raise ConfigError(f"corpus.path: docstrings: {name} cannot be read ({error.strerror}); reinstall it") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes
            found = list(_places(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError):  # ValueError: a null byte
        counts.num_not_parsed += 1
        return
    for place in found:
        docstring = inspect.cleandoc(ast.get_docstring(place, clean=False) or "")
        if len(docstring) >= SHORTEST:
            yield docstring.encode(errors="replace").decode()  # lone surrogates cannot be tokenized


def _places(node: Any) -> Iterator[Any]:
    """Yield the nodes that may have a docstring, in source order, without visiting expressions, most of a tree."""
    if isinstance(node, _PLACES):
        yield node
    for block in _STATEMENTS:
        for child in getattr(node, block, ()):
            yield from _places(child)
