"""Where models come from: shipped with the package, a local folder, the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError, Student, Teacher, expand

SHIPPED = Path(__file__).parent.parent / "teachers"


def locate(model: str) -> str:
    """The folder of a shipped or local model; a hub id as it is."""
    for folder in (SHIPPED / model, expand(model)):
        if folder.is_dir():
            return str(folder)
    return model


def fingerprint(model: str) -> str:
    """sha256 of a local model's files, or the revision of a hub model.

    Raises:
        ConfigError: no such model, or one without config or tokenizer.
    """
    folder = Path(locate(model))
    if not folder.is_dir():
        return _hub_revision(model)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"teacher.model: {model} has no config.json")
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".json", ".model", ".bin")):
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
        raise ConfigError("teacher: give either model or pretraining")
    if teacher.pretraining is not None:
        from lit_prune.data import corpus

        recipe = dataclasses.replace(teacher.pretraining, corpus=corpus.pin(teacher.pretraining.corpus))
        return dataclasses.replace(teacher, pretraining=recipe)
    assert teacher.model is not None
    return teacher if teacher.fingerprint else dataclasses.replace(teacher, fingerprint=fingerprint(teacher.model))


def pin_student(student: Student) -> Student:
    """The same student with the fingerprint of the model it starts from, if any."""
    if student.model is None or student.fingerprint:
        return student
    return dataclasses.replace(student, fingerprint=fingerprint(student.model))


def load_config(location: str) -> Any:
    """The Hugging Face config of a model."""
    from transformers import AutoConfig

    return _from_hub(lambda: AutoConfig.from_pretrained(location), location)


def load_tokenizer(location: str) -> Any:
    """The tokenizer of a model.

    Raises:
        ConfigError: it has none, or one with more entries than the model has embeddings.
    """
    from transformers import AutoTokenizer

    folder = Path(location)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        raise ConfigError(f"teacher.model: {location} has no tokenizer ({', '.join(names)})")
    tokenizer = _from_hub(lambda: AutoTokenizer.from_pretrained(location), location)
    size = load_config(location).vocab_size
    if len(tokenizer) > size:
        raise ConfigError(f"teacher.model: the tokenizer of {location} has {len(tokenizer)} entries, the model {size}")
    return tokenizer


def load_model(location: str) -> Any:
    """A causal language model in float32, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    return _from_hub(lambda: AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32), location).eval()


def _from_hub(load: Any, location: str) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        raise ConfigError(f"teacher.model: {location} cannot be loaded ({str(error).strip().splitlines()[0]})") from error


def _hub_revision(model: str) -> str:
    """The commit of a hub model: that of the newest reachable, or else of the copy in the local cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, "config.json")).parent.name
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        shipped = ", ".join(sorted(p.name for p in SHIPPED.iterdir() if p.is_dir())) if SHIPPED.is_dir() else "none"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"teacher.model: {model!r} is not a shipped teacher ({shipped}), a folder here, or a hub model that can be "
            f"reached ({reason})"
        ) from None
