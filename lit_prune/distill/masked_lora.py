"""Low-rank adapters of a sparse weight: the update is masked as the weight is. Importing it imports peft."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor

PRUNED = "pruned"
"""Buffer of an adapted linear: bool, in the shape of its weight, True where the weight stays zero."""


class MaskedLora(LoraVariant):
    """Train and merge s * M * (B A) in place of s * B A, where M is the mask of the weight.

    Masking only the merged update would export another model than the one that was trained. Costs one product of the
    weight's size per forward pass.
    """

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """Return the output of the frozen weight plus that of the masked update."""
        update = update_of(module, active_adapter)
        return result + F.linear(module.lora_dropout[active_adapter](x), update.T if module.fan_in_fan_out else update)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight plus the masked update."""
        return orig_weight + update_of(module, active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        """Add the masked update to the weight, in place."""
        orig_weight.data = MaskedLora.merge_safe(module, active_adapter, orig_weight.data)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Return the weight without the masked update."""
        return orig_weight - update_of(module, active_adapter).to(orig_weight.dtype)


def update_of(module: Any, adapter: str) -> Tensor:
    """Return the update of an adapted linear in the shape of its weight, masked if the weight is."""
    update, pruned = module.get_delta_weight(adapter), getattr(module, PRUNED, None)
    return update if pruned is None else update.masked_fill(pruned, 0)
