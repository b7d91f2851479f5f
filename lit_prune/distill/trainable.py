"""The trained part of a student: all weights, low-rank adapters of its linears (LoRA, QLoRA), or its last layers."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lit_prune.config import ConfigError, Distill, Lora
from lit_prune.distill.quantized import check_quantizable, dequantize, quantize
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.pruning.masks import Masks


@contextlib.contextmanager
def trained_part(student: Any, distill: Distill, masks: Masks | None = None) -> Iterator[None]:
    """Make only the part that the recipe trains require gradients inside `with`; adapters are merged on exit.

    Adapters change no weight that is masked, neither in training nor when they are merged. With 4-bit weights the
    student leaves with the weights that it was trained with, dequantised, and not with those that it came with.
    """
    if distill.lora is not None:
        adapted = _adapt(student, distill.lora)
        _mask_adapters(student, masks or {})
        yield
        _merge(student, adapted, distill.lora)
    elif distill.train_last_layers is not None:
        _freeze_all_but(student, distill.train_last_layers)
        yield
    else:
        yield
        return
    student.requires_grad_(True)


def _adapt(student: Any, lora: Lora) -> Any:
    """Insert adapters into a model in place and return peft's wrapper of it."""
    import peft

    targets = targets_of(student, lora)
    if lora.quantize is not None:
        quantize(student)
    how = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets,
        fan_in_fan_out=student.config.model_type == "gpt2",
    )  # fmt: skip
    return peft.get_peft_model(student, how)


def _merge(student: Any, adapted: Any, lora: Lora) -> None:
    """Add the adapters to the weights and remove them."""
    if lora.quantize is None:
        adapted.merge_and_unload()
        return
    from peft.tuners.lora import LoraLayer

    from lit_prune.distill.masked_lora import update_of

    adapters = [(name, module) for name, module in student.named_modules() if isinstance(module, LoraLayer)]
    updates = {name: update_of(module, *module.lora_A).detach() for name, module in adapters}
    adapted.unload()
    dequantize(student, updates)


def _mask_adapters(student: Any, masks: Masks) -> None:
    """Mask the adapters of the weights that are masked."""
    from peft.tuners.lora import LoraLayer

    from lit_prune.distill.masked_lora import PRUNED, MaskedLora

    for name, kept in masks.items():
        module = student.get_submodule(name.rpartition(".")[0])
        if isinstance(module, LoraLayer):
            module.register_buffer(PRUNED, ~kept.to(module.weight.device), persistent=False)
            module.lora_variant |= dict.fromkeys(module.lora_A, MaskedLora())


_FACTOR = re.compile(r"\.[01]$")
"""The place of a low-rank factor in the linear that it belongs to."""


def targets_of(model: Any, lora: Lora) -> list[str]:
    """Return the names, within a layer, of the linear modules that get an adapter.

    Raises:
        ConfigError: if a target matches no linear module.
    """
    anatomy = anatomy_of(model.config)
    parameters = dict.fromkeys(name for layer in layers_of(model) for name, _ in layer.named_parameters())
    names = [name.removesuffix(".weight") for name in parameters if anatomy.is_linear(name)]
    if lora.target_modules is None:
        return names
    chosen: dict[str, None] = {}
    for target in lora.target_modules:
        found = [name for name in names if f".{_FACTOR.sub('', name)}".endswith(f".{target}")]
        if not found:
            allowed = ", ".join(names)
            raise ConfigError(f"distill.lora.target_modules: no linear layer is named {target!r}; there are: {allowed}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _freeze_all_but(student: Any, last: int) -> None:
    """Freeze all but the last layers, the final norm and the head, which includes a tied embedding."""
    student.requires_grad_(False)
    norm = student.get_submodule(anatomy_of(student.config).final_norm)
    for part in (*layers_of(student)[-last:], norm, student.get_output_embeddings()):
        part.requires_grad_(True)


def check_trained(distill: Distill, config: Any, num_layers: int) -> None:
    """Check that a student with this config and `num_layers` layers has the part that the recipe trains.

    Raises:
        ConfigError: if it has not, LoRA and last layers are both requested, or peft is not installed.
    """
    if distill.lora is not None and distill.train_last_layers is not None:
        raise ConfigError("distill.lora: goes without distill.train_last_layers; set one of the two to null")
    if distill.train_last_layers is not None and distill.train_last_layers > num_layers:
        raise ConfigError(
            f"distill.train_last_layers: must be <= {num_layers}, the layers of the student, got "
            f"{distill.train_last_layers}"
        )
    if distill.lora is not None:
        _check_lora(distill.lora, config)


def _check_lora(lora: Lora, config: Any) -> None:
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("distill.lora: needs peft, which is not installed (pip install 'lit-prune[lora]')")
    if lora.quantize is not None:
        check_quantizable(_without_weights(config))
    if lora.target_modules is not None:
        if not lora.target_modules or len(set(lora.target_modules)) < len(lora.target_modules):
            raise ConfigError("distill.lora.target_modules: name one linear layer at least, each once, or null for all")
        targets_of(_without_weights(config), lora)


def _without_weights(config: Any) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))
