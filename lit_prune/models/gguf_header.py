"""Read the header of a GGUF file: the Hugging Face config and the tensors, which stay mapped. No torch.

An unknown key of the architecture is an error, since ignoring it could give a model that computes something else.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_prune.config import ConfigError
from lit_prune.models.files import first_line, named

_FIELDS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings", "rope.freq_base": "rope_theta", "vocab_size": "vocab_size",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}  # fmt: skip
"""Key of an architecture -> field of the Hugging Face config."""
_NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "rms_norm_eps")
"""Fields without a default."""
_HEAD_DIM = ("rope.dimension_count", "attention.key_length", "attention.value_length")
"""Keys that all hold the head width."""
_BOS_BY_DEFAULT = ("llama", "llama-bpe")
"""Tokenizers that begin a text with the begin-of-text token unless the file states otherwise."""
ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Supported architectures, each named as its family in transformers."""


@dataclass(frozen=True)
class GgufHeader:
    """Config, metadata and tensors of a GGUF file."""

    location: str
    """Path of the file, with the config field that names it."""
    config: Mapping[str, Any]
    """Fields of the Hugging Face config, `model_type` included."""
    metadata: Mapping[str, Any]
    """Key -> value of the file, including the tokenizer's lists."""
    tensors: Mapping[str, Any]
    """Name -> quantised tensor, memory-mapped from the file."""

    @property
    def expects_bos(self) -> bool:
        """Whether texts begin with the begin-of-text token; unless stated, the kind of the tokenizer decides."""
        kind = self.metadata.get("tokenizer.ggml.model"), self.metadata.get("tokenizer.ggml.pre")
        return bool(self.metadata.get("tokenizer.ggml.add_bos_token", any(one in _BOS_BY_DEFAULT for one in kind)))

    def token(self, role: str) -> int | None:
        """Return the id of a special token such as "bos"; None if the file names none."""
        return self.metadata.get(f"tokenizer.ggml.{role}_token_id")


def hf_config(location: str, fields: Mapping[str, Any]) -> Any:
    """Return the Hugging Face config with these fields, `model_type` included.

    Raises:
        ConfigError: if its family forbids the sizes.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**fields)
    except Exception as error:  # validators of configs raise several kinds
        raise ConfigError(f"{named(location)}: its sizes cannot be those of a model ({first_line(error)})") from None


def read_header(location: str) -> GgufHeader:
    """Return the header of a file; no weight is read. Takes seconds for a vocabulary of 50,000 entries.

    Raises:
        ConfigError: if it is not a GGUF file, or its model is not supported.
    """
    path = Path(location)
    try:
        status = path.stat()
        config, metadata, tensors = _read(path, status.st_size, status.st_mtime_ns)
    except ConfigError as error:
        raise ConfigError(f"{named(location)}: {error}") from None
    except Exception as error:  # the type depends on where the file is truncated
        raise ConfigError(f"{named(location)}: must be a whole GGUF file ({first_line(error)})") from None
    return GgufHeader(location, config, metadata, tensors)


@functools.lru_cache(maxsize=4)
def _read(path: Path, *unchanged: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return _config(metadata, tensors), metadata, tensors


def _config(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the Hugging Face config."""
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        allowed = ", ".join(ARCHITECTURES)
        raise ConfigError(f"the architecture of a GGUF file must be one of {allowed}, got {architecture!r}")
    prefix = f"{architecture}."
    stated = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    known = {*_FIELDS, *_HEAD_DIM}
    strange = {key: value for key, value in stated.items() if key not in known and value not in (0, "none")}
    strange |= {key: value for key, value in stated.items() if key in known and not isinstance(value, int | float)}
    if strange:
        key, value = next(iter(strange.items()))
        raise ConfigError(f"{prefix}{key} is not understood, got {value!r}; convert the model to safetensors yourself")
    config = {_FIELDS[key]: _short(value) for key, value in stated.items() if key in _FIELDS}
    missing = {*_NEEDED} - {*config}
    if missing:
        raise ConfigError(f"its metadata must give {', '.join(sorted(missing))}")
    heads = config["num_attention_heads"]
    widths = {stated[key] for key in _HEAD_DIM if key in stated} or {config["hidden_size"] // heads}
    if len(widths) > 1:
        raise ConfigError(f"{prefix}{' and '.join(_HEAD_DIM)} must be equal, got {sorted(widths)}")
    config.setdefault("num_key_value_heads", heads)
    config.setdefault("vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())))
    config |= {"model_type": architecture, "head_dim": widths.pop()}
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        config[f"{role}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    return config


def _short(value: Any) -> Any:
    """Return a float32 value as the float of its shortest decimal: 1e-05, not 9.99999974e-06."""
    import numpy

    return float(str(numpy.float32(value))) if isinstance(value, float) else value
