"""Locate and load models: shipped with the package, in a local folder, in the cache of converted models, on the hub."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from lit_prune.config import ConfigError, PruneMethod, Teacher, expand
from lit_prune.models.description import TRANSFORMED
from lit_prune.models.files import (
    Place,
    check_folder,
    fingerprint_of,
    first_line,
    is_weights,
    named,
    pending,
    read_object,
    verify,
)
from lit_prune.models.gguf_header import hf_config
from lit_prune.models.positions import check_longrope
from lit_prune.models.sources import SHIPPED, known_names, source_of
from lit_prune.progress import Progress

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
"""Files of a tokenizer; a folder with a tokenizer has at least one."""


def locate(model: str, fingerprint: str | None = None, *, weights: bool = True, field: str = "teacher.model") -> Place:
    """Return the folder of a model: shipped, local, or a hub snapshot at its fingerprint, downloaded if missing.

    Teachers by name and GGUF files are converted if missing. Without `weights` they are not, so the folder need not
    exist yet. `field` is the config field that errors about the model name.

    Raises:
        ConfigError: if the hub has no such model or cannot be reached, or a model cannot be fetched or converted.
    """
    if source := source_of(model, field):
        missing = None if weights or source.ready else source
        return Place(str(source.folder if missing else source.prepare()), source.fingerprint, field, missing)
    folder = local_folder(model)
    if folder is not None:
        return Place(str(folder), fingerprint, field)
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.model", "*.txt", "*.jinja"] + (["*.safetensors"] if weights else [])
    found = _query_hub(model, lambda: snapshot_download(model, revision=fingerprint, allow_patterns=files), field)
    return Place(found, fingerprint, field)


def local_folder(model: str) -> Path | None:
    """Return the folder of a shipped or local model, else None; only a bare name can be a shipped model."""
    bare = model not in ("", ".", "..") and Path(model).name == model
    return next((folder for folder in ([SHIPPED / model] if bare else []) + [expand(model)] if folder.is_dir()), None)


def fingerprint(model: str, field: str = "teacher.model") -> str:
    """Return the sha256 of a local model's files or of a converted model's source, or the revision of a hub model.

    Raises:
        ConfigError: if there is no such model, it has no config, or its files cannot be read.
    """
    if source := source_of(model, field):
        return source.fingerprint
    folder = local_folder(model)
    if folder is None:
        return _hub_revision(model, field)
    place = Place(str(folder), field=field)
    check_folder(place)
    return fingerprint_of(place)


def pin(teacher: Teacher) -> Teacher:
    """Return the same teacher with its fingerprint filled in; a pretrained one is identified by its recipe instead.

    Raises:
        ConfigError: if both or neither of `model` and `pretraining` are given, or the model does not exist.
    """
    if (teacher.model is None) == (teacher.pretraining is None):
        raise ConfigError("teacher: give either model or pretraining, and set the other to null")
    if teacher.pretraining is not None:
        from lit_prune.data import corpus

        if teacher.pretraining.corpus.bos:
            raise ConfigError(
                "teacher.pretraining.corpus.bos: must be null, got true; the tokenizer that is trained has one special "
                "token, which ends texts"
            )
        recipe = dataclasses.replace(teacher.pretraining, corpus=corpus.pin(teacher.pretraining.corpus))
        return dataclasses.replace(teacher, pretraining=recipe)
    assert teacher.model is not None
    return teacher if teacher.fingerprint else dataclasses.replace(teacher, fingerprint=fingerprint(teacher.model))


def pin_student(student: PruneMethod) -> PruneMethod:
    """Return the same student with the fingerprint of the plan or the model it starts from, if any.

    Raises:
        ConfigError: if both are given, or what is given does not exist.
    """
    if student.plan_path is not None and student.init_from is not None:
        raise ConfigError("prune.plan_path: give either a plan or a model, not both")
    if student.fingerprint:
        return student
    if student.plan_path is not None:
        path = expand(student.plan_path)
        if not path.is_file():
            raise ConfigError(f"prune.plan_path: there is no file {student.plan_path}")
        return dataclasses.replace(student, fingerprint=hashlib.sha256(path.read_bytes()).hexdigest())
    if student.init_from is None:
        return student
    return dataclasses.replace(student, fingerprint=fingerprint(student.init_from, "prune.init_from"))


def prepare(models: Iterable[tuple[str, str]], progress: Progress) -> bool:
    """Fetch and convert the models that are not ready; return whether there were any.

    `models` are pairs of a model's name and the config field that errors about it name.

    Raises:
        ConfigError: if one cannot be fetched or converted.
    """
    sources = [source_of(model, field) for model, field in dict.fromkeys(models)]
    missing = [source for source in sources if source is not None and not source.ready]
    for source in missing:
        source.prepare(progress)
    return bool(missing)


def load_config(location: str) -> Any:
    """Return the Hugging Face config of the model in a folder, which need not be converted yet.

    Raises:
        ConfigError: if it cannot be read, needs custom code, or belongs to an adapter or quantised weights.
    """
    if source := pending(location):
        return hf_config(location, source.config)
    check_folder(location)
    status = (Path(location) / "config.json").stat()
    key = str(location), status.st_ino, status.st_size, status.st_mtime_ns
    if key not in _CONFIGS:
        _CONFIGS[key] = _read_config(location)
    return copy.deepcopy(_CONFIGS[key])


_CONFIGS: dict[tuple[str, int, int, int], Any] = {}
"""Cache of `load_config` while a file does not change: every cell of a table needs the config of its teacher."""


def _read_config(location: str) -> Any:
    from transformers import AutoConfig

    _register_type(location)
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    except Exception as error:  # from the parser or a family's validation
        raise ConfigError(f"{named(location)}: config.json cannot be used ({_reason(error)})") from error
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise ConfigError(f"{named(location)}: its weights must not be quantised, got {method}; dequantise them first")
    check_longrope(location, config)
    return config


def load_tokenizer(location: str) -> Any:
    """Return the tokenizer of the model in a folder.

    Raises:
        ConfigError: if there is none, or its files cannot be read or have changed.
    """
    from transformers import AutoTokenizer

    folder = Path(location)
    if not has_tokenizer(location):
        raise ConfigError(f"{named(location)} has no tokenizer ({', '.join(TOKENIZERS)})")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"):
        if (folder / name).exists():
            read_object(folder / name, location)
    _register_type(location)
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    except Exception as error:  # parsers of several libraries raise several kinds
        there = [name for name in TOKENIZERS if (folder / name).exists()]
        reason = _reason(error)
        if "tokenizer.json" not in there and "tokenizer.model" in there and find_spec("sentencepiece") is None:
            reason = "tokenizer.model may need the package sentencepiece: pip install sentencepiece"
        raise ConfigError(
            f"{named(location)}: the tokenizer in {', '.join(there)} cannot be used ({reason})"
        ) from error
    verify(location, lambda name: not is_weights(name))
    return tokenizer  # `check_ids` compares its entries with the embeddings


def _register_type(location: str) -> None:
    """Register the type of the model in a folder with transformers, if it is one of this package's own."""
    config = Path(location) / "config.json"
    if config.exists() and str(read_object(config, location).get("model_type")).startswith(TRANSFORMED):
        import lit_prune.models.transformed  # noqa: F401


def has_tokenizer(location: str) -> bool:
    """Return whether a folder holds a tokenizer."""
    return any((Path(location) / name).exists() for name in TOKENIZERS)


def check_ids(tokenizer: Any, size: int, what: str) -> None:
    """Check that a model of `size` embeddings has one for every token that the tokenizer can produce from text.

    Raises:
        ConfigError: if it has not; the message begins with `what`.
    """
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = {entry: i for entry, i in tokenizer.get_vocab().items() if i >= size and i not in control}
    if beyond:
        entry = min(beyond, key=lambda name: beyond[name])
        raise ConfigError(f"{what}: ids of its tokens must be below {size}, got {beyond[entry]} ({entry!r})")


def check_given(model: str, fingerprint: str | None, field: str) -> None:
    """Check that the model in the config field `field` can be loaded, without reading or fetching weights.

    Raises:
        ConfigError: as `load_model`.
    """
    from lit_prune.models.checkpoint import check_checkpoint

    place = locate(model, fingerprint, weights=False, field=field)
    if pending(place):
        return  # checked after its conversion, before any computation
    here = source_of(model) is not None or local_folder(model) is not None
    check_checkpoint(place, load_config(place), None if here else model)


def load_model(location: str, device: Literal["cpu", "meta"] = "cpu") -> Any:
    """Return the causal language model in a folder, in float32, in evaluation mode.

    On the meta device it has no weights, and their files are neither read nor checked.

    Raises:
        ConfigError: if its files do not match its config or have changed, or the model is not as the description of
            its family states.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from lit_prune.models.checkpoint import check_checkpoint
    from lit_prune.models.consistency import check_pieces
    from lit_prune.models.random_weights import random_model

    if device == "meta":
        return random_model(load_config(location), device)
    check_checkpoint(location, load_config(location))
    model = AutoModelForCausalLM.from_pretrained(location, dtype=torch.float32, trust_remote_code=False).eval()
    # Float32 tensors are memory-mapped, and would change with the file.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    verify(location, lambda name: is_weights(name) or name.endswith("config.json"))
    check_pieces(model, location)
    return model


def _reason(error: Exception) -> str:
    """Return in one line why a library cannot read a file; custom code of a folder is never run."""
    if "trust_remote_code" in str(error):
        return "it needs code from its folder, which is never run"
    return first_line(error)


def _hub_revision(model: str, field: str) -> str:
    """Return the commit of a hub model: that of the locally cached copy, else the newest one."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    def query() -> Any:
        cached = try_to_load_from_cache(model, "config.json")
        return Path(cached).parent.name if isinstance(cached, str) else HfApi().model_info(model, timeout=10).sha

    return _query_hub(model, query, field)


def _query_hub(model: str, query: Callable[[], Any], field: str) -> Any:
    """Return the hub's answer about a model."""
    try:
        return query()
    except Exception as error:  # the types depend on the hub client's HTTP library
        names = ", ".join(known_names())
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ConfigError(
            f"{field}: {model!r} is not a teacher by name ({names}), a folder or .gguf file here, or a hub model that "
            f"can be reached ({reason})"
        ) from None
