"""Resolve a model: the name of a teacher, a folder, a .gguf file, an address or a model of the hub. No torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError, expand
from lit_prune.models import loading
from lit_prune.models.files import Place, files_read, is_weights
from lit_prune.models.sources import folder_of as folder_in_cache
from lit_prune.store import Node, Store
from lit_prune.store.address import digest

FLAG, TOKENIZER_FLAG = "--model", "--tokenizer"
"""The flags that errors about a model and its tokenizer name."""
STAGES = ("teacher", "correction", "student", "cell")
"""Stages whose nodes are models."""

_ADDRESS = re.compile(rf"(?:(?P<stage>{'|'.join(STAGES)})/)?(?P<key>[0-9a-f]{{3,12}})")
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
_MEANT = "a teacher by name, a folder, a .gguf file, a model of the hub, or an address of the store"


@dataclass(frozen=True)
class ModelRef:
    """A model to evaluate."""

    label: str
    """Its name in a table."""
    model: str
    """A folder, or the name of a hub model."""
    tokenizer: str
    """Place of its tokenizer: the same, or the teacher it was cut from."""
    about: dict[str, str]
    """Fingerprints for the address: of the model and, if it lies elsewhere, of the tokenizer."""


def subject(spec: str, store: Store, tokenizer: str | None = None) -> ModelRef:
    """Return the model that `spec` names, with an optional label before it: "wide=cell/3f2a".

    Raises:
        ConfigError: if the model does not exist, its cell is not done, or its tokenizer is unknown.
    """
    named, equals, place = spec.partition("=")
    label, place = (named, place) if equals and not expand(spec).is_dir() else ("", spec)
    if not place.strip():
        raise ConfigError(f"--model: nothing is named by {spec!r}; it is {_MEANT}")
    local, tokenizer = loading.local_folder(place), tokenizer and str(loading.local_folder(tokenizer) or tokenizer)
    address = _ADDRESS.fullmatch(place)
    if local is None and address:
        node = _node(address, store)
        label, folder = label or _short(node.folder), _model_of(node, store)
        return _in_folder(label, folder, tokenizer or _tokenizer_of(node, folder, store))
    if local is None:
        about = {"model": loading.fingerprint(place, FLAG)} | (_tokenizer_about(tokenizer) if tokenizer else {})
        return ModelRef(label or place, place, tokenizer or place, about)
    of_node = local.name == "model" and local.resolve().parent.parent.name in STAGES
    name = _short(local.resolve().parent) if of_node else local.resolve().name
    return _in_folder(label or name, local, tokenizer)


def folder_of(subject: ModelRef) -> str:
    """Return the folder of the model; fetch it from the hub if it is missing.

    Raises:
        ConfigError: if the hub cannot be reached.
    """
    return loading.locate(subject.model, subject.about["model"], field=FLAG)


def _short(node: Path) -> str:
    """Return the table label of the model in a node's folder."""
    return f"{node.parent.name} {node.name[:6]}"


def _in_folder(label: str, folder: Path, tokenizer: str | None) -> ModelRef:
    if (folder / "model" / "config.json").is_file() and not any(folder.glob("*.safetensors")):
        raise ConfigError(f"--model: {folder} is an address of a store; its weights are in {folder / 'model'}")
    fingerprint = loading.fingerprint(str(folder), FLAG)
    if tokenizer is None and not _has_tokenizer(folder):
        raise ConfigError(f"--model: {folder} has no tokenizer; name the folder of one with --tokenizer")
    about = {"model": fingerprint} | (_tokenizer_about(tokenizer) if tokenizer else {})
    return ModelRef(label, str(folder), tokenizer or str(folder), about)


def _node(address: re.Match[str], store: Store) -> Node:
    """Return the only node of a stage with models whose address has this prefix."""
    stages = [address["stage"]] if address["stage"] else STAGES
    found = [p for stage in stages for p in sorted(store.root.glob(f"{stage}/{address['key']}*")) if p.is_dir()]
    if len(found) != 1:
        names = ", ".join(f"{p.parent.name}/{p.name}" for p in found[:5])
        raise ConfigError(
            f"--model: {address[0]!r} is "
            + (f"the address of several: {names}" if found else f"no folder here and no address in {store.root}")
        )
    node = Node(found[0])
    if problem := node.damage(deep=True):
        raise ConfigError(f"--model: {node.folder} is damaged ({problem}); run its table again to compute it again")
    if node.result is None:
        raise ConfigError(f"--model: {node.folder.parent.name} {node.key} is not done ({node.error or 'stopped'})")
    return node


def _model_of(node: Node, store: Store) -> Path:
    """Return the folder of a node's weights; those of its student if the cell was not retrained."""
    folder = node.folder / "model"
    return folder if folder.is_dir() else _student_of(node.config, store, f"{node.folder.parent.name} {node.key}")


def _student_of(about: dict[str, Any], store: Store, name: str) -> Path:
    """Return the folder of the student of a cell's config; if it keeps everything, that of the model it is cut from."""
    parts = {part: value for part, value in about.items() if part not in ("distill", "evaluation", "seed")}
    schema = {stage: number for stage, number in about.get("schema", {}).items() if stage != "cell"}
    student = Node(store.root / "student" / digest(parts | {"stage": "student", "schema": schema}))
    result = student.verified
    if result is None:
        raise ConfigError(f"--model: {name} holds no weights")
    if not result.get("whole"):
        return student.folder / "model"
    if source := about.get("source"):
        folder = store.root / "cell" / digest(source) / "model"
        return folder if folder.is_dir() else _student_of(source, store, name)
    return _teacher_of(about["teacher"], store, name)


def _teacher_of(teacher: dict[str, Any], store: Store, name: str) -> Path:
    """Return the folder of a teacher's weights: the fine-tuned ones if its config has a correction."""
    corrected = teacher.get("correction") is not None
    for folder in map(Path, _folders_of(teacher, store)):
        same = Node(folder.parent).config.get("teacher") == teacher if corrected else True
        if same and (folder.parent.parent.name == "correction") == corrected and any(folder.glob("*.safetensors")):
            return folder
    raise ConfigError(
        f"--model: {name} is its whole teacher, which is neither shipped nor in the store or a cache; name the "
        "teacher's folder instead"
    )


def _tokenizer_of(node: Node, model: Path, store: Store) -> str | None:
    """Return the folder of a node's tokenizer: that of its teacher, or None if it lies with the weights."""
    if _has_tokenizer(model):
        return None
    teacher = node.config["teacher"]
    for folder in _folders_of(teacher, store):
        if _has_tokenizer(folder):
            return str(folder)
    raise ConfigError(
        f"--model: the teacher of {node.folder.parent.name} {node.key}, whose tokenizer it has, is neither shipped nor "
        "in the store or a cache; name the folder of its tokenizer with --tokenizer"
    )


def _folders_of(teacher: dict[str, Any], store: Store) -> Iterator[Path]:
    """Yield folders that may hold a teacher, identified by fingerprint or recipe, or a correction of it."""
    fingerprint = teacher.get("fingerprint")
    if fingerprint:
        shipped = (path for path in sorted(loading.SHIPPED.iterdir()) if path.is_dir())
        yield from (path for path in shipped if loading.fingerprint(str(path)) == fingerprint)
    for config in sorted(store.root.glob("*/*/config.json")):
        if config.parent.parent.name in ("teacher", "correction"):
            theirs = Node(config.parent).config.get("teacher", {})
            if all(theirs.get(name) == teacher.get(name) for name in ("fingerprint", "pretraining")):
                yield config.parent / "model"
    if fingerprint:
        yield from (folder for folder in (folder_in_cache(fingerprint),) if folder.is_dir())
        yield from _in_hub_cache(fingerprint)


def _in_hub_cache(revision: str) -> Iterator[Path]:
    from huggingface_hub import constants

    yield from Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/{revision}")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER[:3])


def _tokenizer_about(tokenizer: str) -> dict[str, str]:
    """Return the sha256 of the files of a tokenizer, or the revision of one on the hub."""
    folder = loading.local_folder(tokenizer)
    if folder is None:
        return {"tokenizer": loading.fingerprint(tokenizer, TOKENIZER_FLAG)}
    if not _has_tokenizer(folder):
        raise ConfigError(f"{TOKENIZER_FLAG}: {tokenizer} has none of {', '.join(_TOKENIZER[:3])}")
    others = (path.relative_to(folder).as_posix() for path in files_read(folder) if _of_tokenizer(path))
    names = [name for name in _TOKENIZER if (folder / name).is_file()] + [n for n in others if n not in _TOKENIZER]
    parts = [(name, hashlib.sha256((folder / name).read_bytes()).hexdigest()) for name in names]
    return {"tokenizer": hashlib.sha256(repr(parts).encode()).hexdigest()}


def _of_tokenizer(path: Path) -> bool:
    """Return whether a file in a model's folder may belong to its tokenizer."""
    return (path.suffix != ".json" and not is_weights(path.name)) or path.name in ("added_tokens.json", "vocab.json")


def tokenizer_of(subject: ModelRef, folder: str) -> Any:
    """Return the tokenizer of a model, from `folder` or from its own place.

    Raises:
        ConfigError: if it cannot be read, or has changed.
    """
    if subject.tokenizer == subject.model:
        return loading.load_tokenizer(folder)
    if loading.local_folder(subject.tokenizer) is None:
        place = loading.locate(subject.tokenizer, subject.about.get("tokenizer"), weights=False, field=TOKENIZER_FLAG)
        return loading.load_tokenizer(place)
    tokenizer = loading.load_tokenizer(Place(subject.tokenizer, field=TOKENIZER_FLAG))
    if _tokenizer_about(subject.tokenizer) != {"tokenizer": subject.about["tokenizer"]}:
        raise ConfigError(f"{TOKENIZER_FLAG}: {subject.tokenizer} has changed since the start; start the command again")
    return tokenizer
