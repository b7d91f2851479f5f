"""Check the tensors in a model's files against its config, from the file headers alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lit_prune.config import ConfigError
from lit_prune.models.files import Place, first_line, named, read_object
from lit_prune.models.shape import meta_model

_FLOATS = ("F64", "F32", "F16", "BF16")
"""dtypes of unquantised weights."""
_OLD_BUFFERS = (".attn.masked_bias",)
"""Buffers that earlier versions of transformers saved and the current one does not ignore by itself."""
_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of its file describes it."""

    file: Path
    """Path of the file; only its name for a hub model that is not downloaded."""
    shape: tuple[int, ...]
    dtype: str
    """In the notation of safetensors, such as BF16."""


def check_checkpoint(location: str, config: Any, remote: str | None = None) -> None:
    """Check that the files of a model hold the tensors that its config describes, and no others.

    For a hub model named `remote` that is not in the folder yet, only the headers of its files are fetched.

    transformers itself matches the names, on the meta device. Tensors that it would initialise at random or ignore are
    errors here.

    Raises:
        ConfigError: if there are no weights, a file is damaged, or a tensor is missing, surplus, of another shape,
            quantised, or tied by the config while the files hold two different tensors.
    """
    here = remote is None or _is_complete(location, config)
    stored = headers(location, config) if here else _of_hub(location, str(remote))
    model, info = _matched(location, config, stored)
    surplus = [name for name in info["unexpected_keys"] if not name.endswith(_OLD_BUFFERS)]
    shapes = [f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in info["mismatched_keys"]]
    expected = set(model.state_dict())
    quantised = [
        f"{name} {one.dtype}"
        for name, one in stored.items()
        if one.dtype not in _FLOATS and _names(name, model) & expected
    ]
    differences = (
        ("missing", info["missing_keys"]), ("surplus", surplus), ("of another shape", shapes),
        ("not in floating point", quantised),
    )  # fmt: skip
    problems = [f"{_some(names)} {'is' if len(names) == 1 else 'are'} {what}" for what, names in differences if names]
    if problems:
        raise ConfigError(f"{named(location)}: the weights must be those of config.json, but {'; '.join(problems)}")
    if here:
        _check_tied(location, model, stored)


def headers(location: str, config: Any) -> dict[str, Stored]:
    """Return the tensors in the files of a model, by name; no weight is read.

    Raises:
        ConfigError: if there are no weight files, or one is missing, damaged or a Git LFS pointer.
    """
    found: dict[str, Stored] = {}
    for path in _files(location, config):
        try:
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise ConfigError(f"{named(location)}: {path.name} is a Git LFS pointer; run git lfs pull")
            found |= _of_pickle(path) if path.suffix == ".bin" else _of_safetensors(path)
        except ConfigError:
            raise
        except FileNotFoundError:
            raise ConfigError(f"{named(location)}: {path.name} is missing") from None
        except OSError as error:
            raise ConfigError(f"{named(location)}: {path.name} cannot be read ({error.strerror})") from None
        except SafetensorError as error:
            raise ConfigError(f"{named(location)}: {path.name} is damaged or cut off ({first_line(error)})") from None
    return found


def _files(location: str, config: Any) -> list[Path]:
    """Return the weight files that transformers would load."""
    folder, given = Path(location), getattr(config, "transformers_weights", None)
    names = [given] if given else _FILES
    for name in names:
        if name.endswith(".index.json") and (folder / name).exists():
            shards = read_object(folder / name, location).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise ConfigError(f"{named(location)}: {name} must have a weight_map")
            return [folder / shard for shard in sorted(set(shards.values()))]
        if (folder / name).exists():
            return [folder / name]
    gguf = sorted(path.name for path in folder.glob("*.gguf"))
    there = f"; name the file {gguf[0]} instead, or convert it to safetensors" if gguf else ""
    raise ConfigError(f"{named(location)} has no weights ({', '.join(names)}){there}")


def _is_complete(location: str, config: Any) -> bool:
    """Return whether all weight files are in the folder."""
    try:
        return all(path.exists() for path in _files(location, config))
    except ConfigError:
        return False


def _of_hub(location: str, model: str) -> dict[str, Stored]:
    """Return the tensors of a hub model, from the headers of its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    revision = location.fingerprint if isinstance(location, Place) else None
    try:
        files = HfApi().get_safetensors_metadata(model, revision=revision).files_metadata
    except NotASafetensorsRepoError:
        raise ConfigError(
            f"{named(location)}: {model} must have its weights as safetensors on the hub ({_FILES[0]} or {_FILES[1]}); "
            "convert them into a folder and name that"
        ) from None
    except Exception as error:  # the types depend on the hub client's HTTP library
        raise ConfigError(f"{named(location)}: the weights of {model} cannot be read ({first_line(error)})") from None
    return {
        name: Stored(Path(file), tuple(one.shape), one.dtype)
        for file, metadata in files.items()
        for name, one in metadata.tensors.items()
    }


def _of_safetensors(path: Path) -> dict[str, Stored]:
    with safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        return {name: Stored(path, tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}


def _of_pickle(path: Path) -> dict[str, Stored]:
    try:
        tensors = torch.load(path, map_location="meta", weights_only=True)
        return {name: Stored(path, tuple(one.shape), _DTYPES.get(one.dtype, "?")) for name, one in tensors.items()}
    except Exception as error:  # pickle, zip and torch raise several kinds
        raise ConfigError(f"{path} is damaged, cut off or holds more than tensors ({first_line(error)})") from None


_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def _matched(location: str, config: Any, stored: dict[str, Stored]) -> tuple[Any, dict[str, Any]]:
    """Return the model on the meta device, and transformers' loading report for the stored tensors."""
    empty = {name: torch.empty(one.shape, device="meta") for name, one in stored.items()}
    try:
        return type(meta_model(config)).from_pretrained(
            None, config=copy.deepcopy(config), state_dict=empty, device_map={"": "meta"}, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # a family's code raises any kind for impossible sizes
        raise ConfigError(
            f"{named(location)}: config.json must describe a causal language model, but none can be built from it "
            f"({first_line(error)})"
        ) from error


def _names(name: str, model: Any) -> set[str]:
    """Return the possible names of a stored tensor in the model; files may omit or add the base model's prefix."""
    prefix = f"{model.base_model_prefix}."
    return {name, prefix + name, name.removeprefix(prefix)}


def _check_tied(location: str, model: Any, stored: dict[str, Stored]) -> None:
    """Check that tensors which the config ties are equal if the files hold both."""
    by_name = {possible: (name, one) for name, one in stored.items() for possible in _names(name, model)}
    for pair in model.all_tied_weights_keys.items():
        both = [by_name[name] for name in pair if name in by_name]
        if len(both) == 2 and both[0] != both[1] and not torch.equal(*(_read(*one) for one in both)):
            raise ConfigError(
                f"{named(location)}: tie_word_embeddings must be false in config.json, because the weights hold "
                f"{both[0][0]} and another {both[1][0]}"
            )


def _read(name: str, stored: Stored) -> torch.Tensor:
    if stored.file.suffix == ".bin":
        return torch.load(stored.file, map_location="cpu", mmap=True, weights_only=True)[name]
    with safe_open(stored.file, "pt") as file:
        return file.get_tensor(name)


def _some(names: Iterable[str], most: int = 3) -> str:
    """Return the first `most` names as text, with the number of further ones."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
