"""4-bit weights under low-rank adapters (QLoRA, arXiv 2305.14314, section 3), by bitsandbytes."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_prune.config import ConfigError
from lit_prune.models.linears import linears_of

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit

FIELD = "distill.lora.quantize"
_FLAG = "is_loaded_in_4bit"
"""Attribute of a model by which peft selects its adapters of 4-bit linears."""


def check_quantizable(model: Any) -> None:
    """Check that the linears of a model's layers can be quantised here.

    Raises:
        ConfigError: if bitsandbytes is not installed or does not support this device, or the linears are of another
            class than nn.Linear.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"{FIELD}: needs bitsandbytes, which is not installed (pip install 'lit-prune[qlora]')")
    if any(not isinstance(module, nn.Linear) for _, module in linears_of(model)):
        why = f"for {model.config.model_type}, whose linear layers are not of the class nn.Linear"
        raise ConfigError(f"{FIELD}: must be null {why}, got nf4")
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        _dequantized(_quantized(nn.Linear(64, 64, bias=False)).to(device))
    except Exception as error:  # bitsandbytes raises several kinds if it lacks the kernels of a device
        reason = " ".join(str(error).split())
        raise ConfigError(f"{FIELD}: must be null, since bitsandbytes fails on {device.type} ({reason})") from None


def quantize(student: Any) -> None:
    """Replace the linears of all layers in place by frozen ones in NF4 with double quantisation."""
    for name, module in [*linears_of(student)]:
        student.set_submodule(name.removesuffix(".weight"), _quantized(module))
    setattr(student, _FLAG, True)


def dequantize(student: Any, updates: Mapping[str, Tensor]) -> None:
    """Replace the 4-bit linears in place by float ones, and add an update to those that `updates` names.

    The result is the model that was trained. Adding the updates to the original weights would give another one, and
    quantising the sum again, as peft does, a third.
    """
    for name, module in [*student.named_modules()]:
        if isinstance(module, _frozen_class()):
            linear = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            weight = _dequantized(module)
            if name in updates:
                weight = (weight.float() + updates[name].float()).to(weight.dtype)
            linear.weight, linear.bias = nn.Parameter(weight.detach()), module.bias
            student.set_submodule(name, linear.train(module.training))
    delattr(student, _FLAG)


def _quantized(linear: Any) -> Linear4bit:
    """Return a linear with the same weights in NF4: blocks of 64, whose scales are quantised to 8 bits."""
    from bitsandbytes.nn import Params4bit

    new = _frozen_class()(linear.in_features, linear.out_features, bias=False, quant_type="nf4", device="meta")
    weight = linear.weight.detach().contiguous()
    new.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", module=new).to(weight.device)
    new.bias = linear.bias
    return new.requires_grad_(False).train(linear.training)


def _dequantized(module: Linear4bit) -> Tensor:
    """Return the weight [out, in] that a 4-bit linear multiplies with, in the type it had before."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.data, module.weight.quant_state)


@functools.cache
def _frozen_class() -> type[Linear4bit]:
    """Return the class of the 4-bit linears, which exists only where bitsandbytes does."""
    from bitsandbytes.nn import Linear4bit

    class FrozenLinear4bit(Linear4bit):
        """A 4-bit linear that no checkpoint contains: a resumed run quantises the same student again."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.support_avx512bf16_for_cpu = False  # that kernel rounds to bfloat16 and cannot be trained through

        def _save_to_state_dict(self, *args: Any) -> None:
            """Save nothing."""

        def _load_from_state_dict(self, *args: Any) -> None:
            """Load nothing."""

    return FrozenLinear4bit
