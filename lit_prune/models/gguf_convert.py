"""Convert a GGUF file to a Hugging Face model folder with config, tokenizer and dequantised weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lit_prune.config import ConfigError
from lit_prune.models.files import first_line, named
from lit_prune.models.gguf_header import GgufHeader, hf_config

_INTERLEAVED = ("llama",)
"""Architectures that store query and key rows of a head as rotary pairs (0, d/2), (1, d/2 + 1), ..."""


def convert(header: GgufHeader, folder: Path, count: Callable[[int, int], None]) -> str:
    """Write the model of a file to `folder`; return the sha256 of its weights in float32, sorted by name.

    Weights are stored in bfloat16 or float16 if that is lossless for all of them, else in float32. `count` is called
    with the number of finished tensors and their total.

    Raises:
        ConfigError: if the tensors are not those of the config, the tokenizer is not understood, or the disk is full.
    """
    from transformers import GenerationConfig

    from lit_prune.models.gguf_tokenizer import tokenizer_of
    from lit_prune.models.shape import meta_model

    config = hf_config(header.location, header.config)
    tokenizer_of(header).save_pretrained(folder)
    dtype, digest = _write_weights(header, config, folder / "model.safetensors", count)
    config.architectures = [type(meta_model(config)).__name__]
    config.dtype = dtype
    config.save_pretrained(folder)
    special = {name: value for name, value in header.config.items() if name.endswith("_token_id")}
    GenerationConfig(**special).save_pretrained(folder)
    return digest


def _write_weights(header: GgufHeader, config: Any, path: Path, count: Callable[[int, int], None]) -> tuple[Any, str]:
    """Write the weights in the smallest lossless dtype; return it and the digest."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    names, weights, digest = _names(header, config), {}, hashlib.sha256()
    dtypes = [torch.bfloat16, torch.float16]
    for done, name in enumerate(sorted(names)):
        count(done, len(names))
        weight = _dequantised(header, names[name], config)
        digest.update(name.encode() + b"\0" + weight.astype("<f4", copy=False).tobytes())
        weights[name] = torch.from_numpy(weight)
        dtypes = [dtype for dtype in dtypes if torch.equal(weights[name].to(dtype).float(), weights[name])]
    dtype = [*dtypes, torch.float32][0]
    try:
        save_file({name: weight.to(dtype) for name, weight in weights.items()}, path, {"format": "pt"})
    except SafetensorError as error:  # raised for a full disk too
        raise ConfigError(f"{named(header.location)}: {path} cannot be written ({first_line(error)})") from None
    count(len(names), len(names))
    return dtype, digest.hexdigest()


def _names(header: GgufHeader, config: Any) -> dict[str, str]:
    """Return the name in the file of each parameter.

    Raises:
        ConfigError: if a tensor is missing, surplus or of another shape.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    from lit_prune.models.shape import meta_model

    architecture = next(one for one, name in MODEL_ARCH_NAMES.items() if name == config.model_type)
    in_file = get_tensor_name_map(architecture, config.num_hidden_layers)
    shapes = {name: tuple(parameter.shape) for name, parameter in meta_model(config).named_parameters()}
    found = {name: f"{in_file.get_name(name.rpartition('.')[0])}.{name.rpartition('.')[2]}" for name in shapes}
    wrong = [f"{name} is missing" for name in sorted({*found.values()} - {*header.tensors})]
    wrong += [f"{name} is not understood" for name in sorted({*header.tensors} - {*found.values()})]
    for name, theirs in found.items():
        if theirs in header.tensors and (shape := _shape(header.tensors[theirs])) != shapes[name]:
            wrong.append(f"{theirs} is {list(shape)} instead of {list(shapes[name])}")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ConfigError(f"{named(header.location)}: its tensors must be those of its metadata, but {wrong[0]}{more}")
    return found


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _dequantised(header: GgufHeader, name: str, config: Any) -> Any:
    """Return a tensor of the file in float32, with rows in Hugging Face order.

    Raises:
        ConfigError: if it is stored in a type that cannot be read.
    """
    from gguf import dequantize

    tensor = header.tensors[name]
    try:
        weight = dequantize(tensor.data, tensor.tensor_type).reshape(_shape(tensor))
    except Exception as error:  # an unknown type, or malformed blocks
        stored = f"{name}, stored as {tensor.tensor_type.name},"
        raise ConfigError(f"{named(header.location)}: {stored} cannot be read ({first_line(error)})") from None
    if config.model_type in _INTERLEAVED and ".attn_q." in name:
        weight = halves_of_pairs(weight, config.num_attention_heads)
    if config.model_type in _INTERLEAVED and ".attn_k." in name:
        weight = halves_of_pairs(weight, config.num_key_value_heads)
    return np.array(weight, dtype=np.float32, order="C")


def halves_of_pairs(weight: Any, heads: int) -> Any:
    """Reorder rows of each head from rotary pairs (0, d/2, 1, d/2 + 1, ...) to Hugging Face's order (0, 1, ...).

    The weight is [heads * d, ...], and so is the result.
    """
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)
