"""Masks of the weights that stay zero: stored beside the model, and kept by every later step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_prune.config import ConfigError
from lit_prune.models.files import MASKS, first_line
from lit_prune.models.linears import linears_of, rows_of

Masks = Mapping[str, Tensor]
"""Name of a parameter -> bool tensor of its shape, False where the weight stays zero."""


@torch.no_grad()
def apply_masks(model: Any, masks: Masks) -> None:
    """Set the masked weights of a model to zero, in place."""
    for name, kept in masks.items():
        weight = model.get_parameter(name)
        weight.masked_fill_(~kept.to(weight.device), 0)


@contextmanager
def masked_weights(weights: Sequence[nn.Parameter], masks: Sequence[Tensor]) -> Iterator[None]:
    """Multiply parameters by masks inside `with`, where they require gradients; what they were is restored."""
    before = [(weight.data, weight.requires_grad) for weight in weights]
    try:
        for weight, kept in zip(weights, masks, strict=True):
            weight.data = weight.data * kept
            weight.requires_grad_(True)
        yield
    finally:
        for weight, (data, trained) in zip(weights, before, strict=True):
            weight.data = data
            weight.requires_grad_(trained)


def check_fit(model: Any, masks: Masks, where: str) -> None:
    """Check that masks have the names and shapes of weights of a model.

    Raises:
        ConfigError: if they have not; the message begins with `where`.
    """
    shapes = {name: list(weight.shape) for name, weight in model.named_parameters()}
    for name, kept in masks.items():
        if shapes.get(name) != list(kept.shape):
            wanted = f"{shapes[name]}" if name in shapes else "no such weight"
            raise ConfigError(f"{where}: masks must fit the model, got {name} {list(kept.shape)} for {wanted}")


def check_zero(model: Any, masks: Masks, where: str) -> None:
    """Check that the masked weights of a model are zero.

    Raises:
        ConfigError: if one is not, or the masks do not fit; the message begins with `where`.
    """
    check_fit(model, masks, where)
    weights = dict(model.named_parameters())
    for name, kept in masks.items():
        if weights[name].detach()[~kept.to(weights[name].device)].any():
            raise ConfigError(f"{where}: {name} must be zero where {MASKS} says, got other values")


def both(first: Masks, second: Masks) -> dict[str, Tensor]:
    """Return masks that keep only what both keep; a weight that one of them lacks is masked by the other."""
    names = dict.fromkeys([*first, *second])
    found = {name: [masks[name].cpu() for masks in (first, second) if name in masks] for name in names}
    return {name: kept[0] if len(kept) == 1 else kept[0] & kept[1] for name, kept in found.items()}


def sparsity_of(model: Any, masks: Masks) -> dict[str, float]:
    """Return `sparsity`, the share of zeros in the linear modules of the layers, and `nonzero_parameters`.

    Only masked weights count as zeros. Masked weights outside those modules, such as embeddings, count in both.
    """
    sizes = {name: rows_of(module).numel() for name, module in linears_of(model)}
    sizes |= {name: kept.numel() for name, kept in masks.items()}
    zeros = sum(kept.numel() - int(kept.sum()) for kept in masks.values())
    return {"sparsity": zeros / sum(sizes.values()), "nonzero_parameters": model.num_parameters() - zeros}


def save_masks(masks: Masks, folder: str | Path) -> None:
    """Write masks to the folder of their model, one bit per weight; nothing if there are none."""
    if not masks:
        return
    path = Path(folder) / MASKS
    path.parent.mkdir(parents=True, exist_ok=True)
    bits = {name: torch.from_numpy(np.packbits(kept.cpu().numpy())) for name, kept in masks.items()}
    save_file(bits, path, {"shapes": json.dumps({name: list(kept.shape) for name, kept in masks.items()})})


def load_masks(folder: str | Path) -> dict[str, Tensor]:
    """Return the masks of the model in a folder; empty if none of its weights are masked."""
    path = Path(folder) / MASKS
    return read_masks(path) if path.is_file() else {}


def read_masks(path: Path, field: str = "") -> dict[str, Tensor]:
    """Return the masks in a file.

    Raises:
        ConfigError: if it holds none; the message names the config field with the path, if given.
    """
    try:
        with safe_open(path, "np") as file:
            shapes = json.loads((file.metadata() or {})["shapes"])
            return {name: _unpacked(file.get_tensor(name), shape) for name, shape in shapes.items()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        where = f"{field}: {path}" if field else f"{path}:"
        raise ConfigError(f"{where} must hold masks, as {MASKS} of a sparse model ({first_line(error)})") from None


def _unpacked(bits: np.ndarray[Any, Any], shape: list[int]) -> Tensor:
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(bits, count=count).astype(bool)).view(shape)
