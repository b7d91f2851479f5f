"""Where models come from: shipped with the package, a local folder, the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError, Student, Teacher, expand

SHIPPED = Path(__file__).parent.parent / "teachers"
CARD = "card.json"
"""How a teacher came about; lies beside the model and is no part of it."""


def locate(model: str, revision: str | None = None, *, weights: bool = True) -> str:
    """The folder a model lies in: shipped, local, or a snapshot of the hub at `revision`, fetched where it is missing.

    Raises:
        ConfigError: the hub has no such model, or cannot be reached.
    """
    folder = _local(model)
    if folder is not None:
        return str(folder)
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.model", "*.txt"] + (["*.safetensors"] if weights else [])
    return _asked(model, lambda: snapshot_download(model, revision=revision, allow_patterns=files))


def _local(model: str) -> Path | None:
    return next((folder for folder in (SHIPPED / model, expand(model)) if folder.is_dir()), None)


def fingerprint(model: str) -> str:
    """sha256 of a local model's files, or the revision of a hub model.

    Raises:
        ConfigError: no such model, or one without config or tokenizer.
    """
    folder = _local(model)
    if folder is None:
        return _hub_revision(model)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"teacher.model: {model} has no config.json")
    digest = hashlib.sha256()
    files = (p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".model", ".bin"))
    for path in sorted(p for p in files if p.name != CARD):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def pin(teacher: Teacher) -> Teacher:
    """The same teacher with its fingerprint filled in; one that is trained is known by its recipe.

    Raises:
        ConfigError: both or neither of `model` and `pretraining` are given, or the model does not exist.
    """
    if (teacher.model is None) == (teacher.pretraining is None):
        raise ConfigError("teacher: give either model or pretraining, and set the other to null")
    if teacher.pretraining is not None:
        from lit_prune.data import corpus

        recipe = dataclasses.replace(teacher.pretraining, corpus=corpus.pin(teacher.pretraining.corpus))
        return dataclasses.replace(teacher, pretraining=recipe)
    assert teacher.model is not None
    return teacher if teacher.fingerprint else dataclasses.replace(teacher, fingerprint=fingerprint(teacher.model))


def pin_student(student: Student) -> Student:
    """The same student with the fingerprint of the plan or the model it starts from, if any.

    Raises:
        ConfigError: both are given, or what is given does not exist.
    """
    if student.plan is not None and student.model is not None:
        raise ConfigError("student.plan: give either a plan or a model, not both")
    if student.fingerprint:
        return student
    if student.plan is not None:
        path = expand(student.plan)
        if not path.is_file():
            raise ConfigError(f"student.plan: there is no file {student.plan}")
        return dataclasses.replace(student, fingerprint=hashlib.sha256(path.read_bytes()).hexdigest())
    if student.model is None:
        return student
    return dataclasses.replace(student, fingerprint=fingerprint(student.model))


def load_config(location: str) -> Any:
    """The Hugging Face config of the model in a folder."""
    from transformers import AutoConfig

    return _loaded(lambda: AutoConfig.from_pretrained(location), location)


def load_tokenizer(location: str) -> Any:
    """The tokenizer of the model in a folder.

    Raises:
        ConfigError: it has none.
    """
    from transformers import AutoTokenizer

    folder = Path(location)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        raise ConfigError(f"teacher.model: {location} has no tokenizer ({', '.join(names)})")
    # It may have entries without an embedding (Gemma 3 has one): the ids that are written are checked instead.
    return _loaded(lambda: AutoTokenizer.from_pretrained(location), location)


def load_model(location: str) -> Any:
    """The causal language model in a folder, in float32, in evaluation mode.

    Raises:
        ConfigError: it cannot be loaded, or is not built as its family is described.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from lit_prune.models.consistency import check_pieces

    if load_config(location).is_heterogeneous:
        import lit_prune.models.heterogeneous  # noqa: F401  (builds each block from its own widths)

    model = _loaded(lambda: AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32), location).eval()
    check_pieces(model)
    return model


def _loaded(load: Callable[[], Any], location: str) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"teacher.model: {location} cannot be loaded ({str(error).strip().splitlines()[0]})"
        ) from error


def _hub_revision(model: str) -> str:
    """The commit of a hub model: that of the copy in the local cache, or else the newest one."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    def ask() -> Any:
        cached = try_to_load_from_cache(model, "config.json")
        return Path(cached).parent.name if isinstance(cached, str) else HfApi().model_info(model, timeout=10).sha

    return _asked(model, ask)


def _asked(model: str, ask: Callable[[], Any]) -> Any:
    """The hub's answer about a model."""
    try:
        return ask()
    except Exception as error:  # which ones there are depends on the hub client's HTTP library
        shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir()))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ConfigError(
            f"teacher.model: {model!r} is not a shipped teacher ({shipped}), a folder here, or a hub model that can be "
            f"reached ({reason})"
        ) from None
