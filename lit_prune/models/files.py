"""The files of a model: which are read, their digests, and checks that a folder holds a complete model. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from lit_prune.config import ConfigError

CARD = "card.json"
"""Provenance of a shipped or converted teacher; not part of the model."""
MASKS = "pruning/masks.safetensors"
"""Masks of a sparse model. Inference engines load all safetensors files of the folder above, which holds the model."""
_WEIGHTS = (".safetensors", ".bin")
_READ = (*_WEIGHTS, ".json", ".model", ".txt", ".jinja", ".vocab", ".codes", ".tokenizer", ".tiktoken", ".spm")
"""Suffixes of the files that transformers reads for a model or a tokenizer."""
_TEMPLATES = "additional_chat_templates"

_DIGESTS: dict[str, dict[str, str]] = {}
"""Fingerprint -> sha256 of each of its files. The fingerprint hashes these digests, so no entry goes stale."""


class Pending(Protocol):
    """A model that is not converted yet, with what is known of it already."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Fields of the Hugging Face config, `model_type` included."""

    @property
    def expects_bos(self) -> bool:
        """Whether its tokenizer begins texts with the begin-of-text token."""


class Place(str):
    """The folder of a model as text, with the fingerprint its files must have and the config field that names it.

    `pending` is set if the folder is in the cache of converted models and does not exist yet.
    """

    fingerprint: str | None
    field: str
    pending: Pending | None

    def __new__(
        cls, folder: str, fingerprint: str | None = None, field: str = "teacher.model", pending: Pending | None = None
    ) -> Place:
        place = super().__new__(cls, folder)
        place.fingerprint, place.field, place.pending = fingerprint, field, pending
        return place


def pending(location: str) -> Pending | None:
    """Return the source of a model that is not converted yet; None if its folder exists."""
    return location.pending if isinstance(location, Place) else None


def named(location: str) -> str:
    """Return the prefix of an error about a model: its config field, if known, and its folder."""
    return f"{location.field}: {location}" if isinstance(location, Place) else location


def is_weights(name: str) -> bool:
    """Return whether a file holds weights."""
    return name.endswith(_WEIGHTS)


def files_read(folder: Path) -> list[Path]:
    """Return the files that a model and its tokenizer may be read from, sorted."""
    found = [path for path in folder.iterdir() if path.suffix in _READ and path.name != CARD and not path.is_dir()]
    return sorted([*found, *(folder / _TEMPLATES).glob("*.jinja"), *folder.glob(MASKS)])


def fingerprint_of(place: Place) -> str:
    """Return the sha256 over the names and digests of the files of a folder.

    Raises:
        ConfigError: if a file cannot be read.
    """
    whole, digests = hashlib.sha256(), {}
    for path in files_read(Path(place)):
        name = path.relative_to(place).as_posix()
        digests[name] = _sha256(path, place)
        whole.update(name.encode() + b"\0" + bytes.fromhex(digests[name]))
    _DIGESTS[whole.hexdigest()] = digests
    return whole.hexdigest()


def verify(location: str, wanted: Callable[[str], bool]) -> None:
    """Check the files whose name is `wanted` against the fingerprint of their place, if it has one.

    Raises:
        ConfigError: if a file has changed since the fingerprint was taken.
    """
    if not isinstance(location, Place):
        return
    changed = damaged_file(location, wanted)
    if changed is not None and _of_card(location):
        raise ConfigError(f"{named(location)}: {changed} is damaged; remove the folder and start the run again")
    if changed is not None:
        raise ConfigError(
            f"{named(location)}: {changed} must stay as it is during a run, but has changed; start the run again"
        )


def damaged_file(place: Place, wanted: Callable[[str], bool]) -> str | None:
    """Return the name of a file that differs from the fingerprint of its place; None if all match."""
    return None if place.fingerprint is None else next(_changed(place, place.fingerprint, wanted), None)


def _changed(place: Place, fingerprint: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    """Yield the names of the files that differ from a fingerprint."""
    folder = Path(place)
    if digests := _of_card(place):
        yield from _differing(place, digests, wanted)
        return
    if folder.name == fingerprint:  # a hub snapshot: large files are links to blobs named by their sha256
        for path in files_read(folder):
            blob = path.resolve().name
            if wanted(path.name) and re.fullmatch("[0-9a-f]{64}", blob) and _sha256(path, place) != blob:
                yield path.name
        return
    if fingerprint not in _DIGESTS and fingerprint_of(place) != fingerprint:
        yield "a file"  # another process took the fingerprint: the digests of single files are unknown
        return
    yield from _differing(place, _DIGESTS[fingerprint], wanted)


def _of_card(place: Place) -> dict[str, str]:
    """Return the file digests on the card of a converted model; empty unless the card has the place's fingerprint."""
    if place.fingerprint is None or not (Path(place) / CARD).is_file():
        return {}
    card = read_object(Path(place) / CARD, place)
    return card["files"] if card.get("fingerprint") == place.fingerprint else {}


def _differing(place: Place, known: Mapping[str, str], wanted: Callable[[str], bool]) -> Iterator[str]:
    folder = Path(place)
    now = {path.relative_to(folder).as_posix(): path for path in files_read(folder)}
    for name in sorted(known.keys() | now.keys()):
        if wanted(name) and (name not in now or known.get(name) != _sha256(now[name], place)):
            yield name


def _sha256(path: Path, place: Place) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{named(place)}: {path.name} cannot be read ({error.strerror})") from None


def check_folder(location: str) -> None:
    """Check that a folder holds a complete model with a readable config.json, not an adapter or another format.

    Raises:
        ConfigError: if it does not.
    """
    folder = Path(location)
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"{named(location)} holds a LoRA adapter (adapter_config.json); merge it into its model first "
            "(merge_and_unload of peft) and name the merged folder"
        )
    if not (folder / "config.json").exists():
        gguf = sorted(path.name for path in folder.glob("*.gguf"))
        if gguf:
            raise ConfigError(f"{named(location)} holds GGUF weights; name the file instead ({folder / gguf[0]})")
        raise ConfigError(f"{named(location)} has no config.json")
    read_object(folder / "config.json", location)


def read_object(path: Path, location: str) -> dict[str, Any]:
    """Return the JSON object in a file of the model at `location`.

    Raises:
        ConfigError: if the file cannot be read or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{named(location)}: {path.name} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{named(location)}: {path.name} is not JSON ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{named(location)}: {path.name} must be a JSON object, got {type(found).__name__}")
    return found


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, and the second too if the first ends with a colon."""
    if isinstance(error, KeyError):
        return f"unknown value {error}"
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
