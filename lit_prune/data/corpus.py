"""Where text comes from: a stream of documents, each belonging to one split, and a fingerprint of it all.

Nothing here tokenises. No torch.
"""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

from lit_prune.config import ConfigError, Corpus, expand

Split = Literal["train", "validation", "calibration"]
SPLITS: tuple[Split, ...] = ("train", "validation", "calibration")

BUILT_IN = ("python", "python+dependencies", "readmes")
# Not torch and transformers: ten times the standard library's size, mostly generated or near copies of each other.
DEPENDENCIES = ("lightning", "datasets", "torchmetrics", "wandb", "pandas", "numpy")
# English prose in Markdown, on every machine that runs lit_prune.
DESCRIBED = (
    *DEPENDENCIES, "torch", "transformers", "tokenizers", "safetensors", "scipy", "matplotlib", "jinja2", "tabulate",
    "rich", "pyyaml", "pydantic", "tyro",
)  # fmt: skip
SUFFIXES = (".txt", ".txt.gz", ".tokens", ".json", ".jsonl", ".parquet")

# Generated tables, data in Python syntax, copies of other packages and machine-specific files: no source to learn from.
_DROPPED_FOLDERS = {
    "encodings", "pydoc_data", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages", "__pycache__",
    "test", "tests", "testing", "idle_test", "_vendor", "vendor", "_vendored", "include",
}  # fmt: skip
_DROPPED_PREFIXES = ("config-", "_sysconfigdata", "lib-dynload")

# A plain text file is one stream: it is cut at line ends into documents of about this size, so that it can be split.
_PIECE_CHARACTERS = 4096


class Document(NamedTuple):
    """A text and the name its split is drawn by."""

    name: str
    text: str


def split_of(name: str, heldout: float) -> Split:
    """The split of a document, by a hash of its name, so that it never depends on the order of reading."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if share < heldout:
        return "validation"
    return "calibration" if share < 2 * heldout else "train"


def documents(corpus: Corpus) -> Iterator[tuple[Split, str]]:
    """Stream the documents of a corpus with their splits.

    The dependencies' source is only ever trained on: what is held out is the standard library's.
    """
    if corpus.source == "readmes":
        for document in _readmes():
            yield split_of(document.name, corpus.heldout), document.text
        return
    if corpus.source in BUILT_IN:
        for document in _python():
            yield split_of(document.name, corpus.heldout), document.text
        if corpus.source != "python":
            for document in _dependencies():
                yield "train", document.text
        return
    for text in _texts(corpus):
        if text.strip():
            yield split_of(text, corpus.heldout), text


def fingerprint(corpus: Corpus) -> str:
    """sha256 of everything the corpus is made of; for a hub data set, the revision it stands at.

    Raises:
        ConfigError: the source does not exist, is empty, or is not UTF-8 text.
    """
    if corpus.max_tokens is not None and corpus.max_tokens < 1:
        raise ConfigError(f"corpus.max_tokens: {corpus.max_tokens} asked for, at least 1 is needed; null takes all")
    if not 0 < corpus.heldout < 0.5:
        raise ConfigError(f"corpus.heldout: {corpus.heldout} leaves a split empty; it lies between 0 and 0.5")
    if corpus.source in BUILT_IN:
        return _digest(part for _, text in documents(corpus) for part in (text.encode(), b"\0"))
    files = local_files(corpus.source)
    if files:
        return _digest(part for path in files for part in _checked_bytes(path))
    return _hub_revision(corpus.source)


def pin(corpus: Corpus) -> Corpus:
    """The same corpus with its fingerprint filled in."""
    return corpus if corpus.fingerprint else dataclasses.replace(corpus, fingerprint=fingerprint(corpus))


def local_files(source: str) -> list[Path]:
    """The files a local source consists of, sorted by name; empty where the source is not on this machine.

    Raises:
        ConfigError: something is there but holds no text lit_prune reads.
    """
    path = expand(source)
    candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [p for p in candidates if p.is_file() and p.name.endswith(SUFFIXES)]
    if path.exists() and not files:
        what = "holds none of" if path.is_dir() else "is none of"
        raise ConfigError(f"corpus.source: {source} {what} {' '.join(SUFFIXES)}")
    if files and not any(p.stat().st_size for p in files):
        raise ConfigError(f"corpus.source: {source} is empty")
    return files


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _checked_bytes(path: Path) -> Iterator[bytes]:
    """The unpacked bytes of a file, in pieces, having seen that text is UTF-8, and then how it is read and its size.

    Without the last, the same bytes cut into other files, or read in another way, would be the same corpus.
    """
    decoder = None if path.suffix == ".parquet" else codecs.getincrementaldecoder("utf-8")()
    size = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while piece := file.read(1 << 20):
                size += len(piece)
                if decoder:
                    decoder.decode(piece)
                yield piece
        if decoder:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ConfigError(f"corpus.source: {path} is not UTF-8 text ({error.reason})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"corpus.source: {path} cannot be read ({_first_line(error)})") from None
    yield f"{_builder(path)} {size}".encode()


def _python() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    yield from _sources(root)
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield Document(f"topic {name}", topics[name])


def _dependencies() -> Iterator[Document]:
    for package in DEPENDENCIES:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            yield from _sources(Path(folder), prefix=f"{package}/")


def _readmes() -> Iterator[Document]:
    """The descriptions of the packages lit_prune depends on, in pieces."""
    for package in DESCRIBED:
        about = importlib.metadata.metadata(package).json  # a description is a header, or what follows the headers
        for i, piece in enumerate(_cut(io.StringIO(str(about.get("description", ""))))):
            yield Document(f"{package} {i}", piece)


def _sources(root: Path, prefix: str = "") -> Iterator[Document]:
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
                    yield Document(prefix + path.relative_to(root).as_posix(), text)


def _texts(corpus: Corpus) -> Iterator[str]:
    """Stream the texts of a local or hub source."""
    files = local_files(corpus.source)
    for path in files:
        builder = _builder(path)
        yield from _pieces(path) if builder == "text" else _column(corpus, builder, data_files=str(path))
    if not files:
        yield from _column(corpus, corpus.source, name=corpus.subset, revision=corpus.fingerprint)


def _builder(path: Path) -> str:
    """How a file is read: as text by us, as json or parquet by the `datasets` builder of that name."""
    return {".parquet": "parquet", ".json": "json", ".jsonl": "json"}.get(path.suffix, "text")


def _pieces(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        yield from _cut(lines)


def _cut(lines: TextIO) -> Iterator[str]:
    """A stream of text in pieces that end where lines do."""
    piece: list[str] = []
    size = 0
    # Bounded, because some texts are one line.
    for line in iter(lambda: lines.readline(_PIECE_CHARACTERS), ""):
        piece.append(line)
        size += len(line)
        if size >= _PIECE_CHARACTERS:
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def _column(corpus: Corpus, builder: str, **how: str | None) -> Iterator[str]:
    import datasets

    try:
        rows = datasets.load_dataset(builder, split="train", streaming=True, **how)
        for row in rows:
            if not isinstance(row.get(corpus.column), str):
                raise ConfigError(
                    f"corpus.column: {corpus.source} has no text column {corpus.column!r}; there are: {', '.join(row)}"
                )
            yield row[corpus.column]
    except (datasets.exceptions.DatasetGenerationError, UnicodeDecodeError, ValueError, OSError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"corpus.source: {corpus.source} cannot be read ({_first_line(error)})") from error


def _hub_revision(source: str) -> str:
    """The commit a hub data set stands at, so that a later upload is another corpus."""
    from huggingface_hub import HfApi

    nowhere = (
        f"corpus.source: {source!r} is not {' or '.join(BUILT_IN)}, a file or folder here, or a data set that can be "
        "reached"
    )
    try:
        revision = HfApi().dataset_info(source, timeout=10).sha
    except Exception as error:  # which ones there are depends on the hub client's HTTP library
        raise ConfigError(f"{nowhere} ({_first_line(error)})") from None
    if not revision:
        raise ConfigError(nowhere)
    return revision


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
