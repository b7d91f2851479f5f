"""Models whose weights are sharded over the ranks while they train, by PyTorch's FSDP2.

Rank 0 alone loads them, and sends every rank its share.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_prune.config import ConfigError, Distill, Execution
from lit_prune.models.model_family import anatomy_of, layers_of
from lit_prune.parallel.group import is_main


def loading_device(execution: Execution) -> Literal["cpu", "meta"]:
    """Return where this rank loads the models of a training: on the meta device if rank 0 sends it their weights."""
    return "meta" if execution.strategy == "fsdp" and not is_main() else "cpu"


class Gathered(nn.Module):
    """The root of sharded models: it gathers the weights outside their layers, such as those of heads, for a call."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, call: Callable[..., Any], *args: Any) -> Any:
        """Return `call(*args)`. Layers gather their own weights when they run."""
        return call(*args)


def shard(module: nn.Module, models: Iterable[nn.Module], mesh: DeviceMesh, dtype: torch.dtype | None) -> Gathered:
    """Shard a module and Hugging Face models in place, of which it may contain some; all get the weights of rank 0.

    Beside its share, a rank above 0 holds the weights of one layer at a time, or at the end all those outside layers.
    Its models may be on the meta device. Rank 0 keeps the whole weights in the memory of the CPU.

    Layers compute with weights in `dtype`, if given. Gradients are averaged, and weights outside layers gathered, in
    the dtype of the weights: the logits of a loss are float32.
    """
    root = Gathered([module, *models])
    for buffer in root.buffers():
        _set(buffer, _sent(buffer, mesh))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in (layer for model in models for layer in layers_of(model)):
        _shard(layer, mesh, mp_policy=policy)
    _shard(root, mesh)
    return root


def _shard(module: nn.Module, mesh: DeviceMesh, **how: Any) -> None:
    """Shard the weights of a module that are still whole."""
    remaining = []
    for parameter in module.parameters():
        if not is_sharded(parameter):
            remaining.append((parameter, parameter.data.to("cpu" if is_main() else "meta")))
            _set(parameter, _sent(parameter, mesh))
    fully_shard(module, mesh=mesh, **how)
    for parameter, value in remaining:
        _set(parameter, value)


def _sent(tensor: Tensor, mesh: DeviceMesh) -> Tensor:
    """Return the values that rank 0 has in a tensor of this shape, on the device of this rank."""
    device = torch.device(mesh.device_type)
    value = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.data.to(device)
    distributed.broadcast(value, 0)
    return value


def _set(tensor: Tensor, value: Tensor) -> None:
    """Replace the values of a tensor; it and the new ones may be on the meta device."""
    if tensor.is_meta == value.is_meta:
        tensor.data = value
        return
    new = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value.detach()
    torch.utils.swap_tensors(tensor, new)


_HOOKS = ("_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
"""Attributes of modules with the hooks that FSDP2 adds to those whose parameters it shards."""


@contextlib.contextmanager
def whole_afterwards(*models: Any) -> Iterator[None]:
    """Undo on exit what `shard` does to Hugging Face models inside `with`.

    Every rank leaves with the whole weights of models that were trained, at least in part. Frozen models are whole on
    rank 0 and on the meta device of others, and so are all if the training fails, with the weights they came with.

    FSDP2 has no inverse. It changes classes and hooks of layers, of which models have copies inside `with`, replaces
    parameters, and adds hooks to the modules of those outside layers.
    """
    named = [dict(model.named_parameters()) for model in models]
    places = [
        (part, name, parameter)
        for model in models for part in model.modules() for name, parameter in part.named_parameters(recurse=False)
    ]  # fmt: skip
    hooks = [
        (ours, set(ours))
        for model in models for part in model.modules() for ours in map(part.__dict__.__getitem__, _HOOKS)
    ]  # fmt: skip
    layers = [(model, anatomy_of(model.config).layers) for model in models]
    before = [model.get_submodule(path) for model, path in layers]
    for (model, path), ours in zip(layers, before, strict=True):
        shared = {id(tensor): tensor for tensor in (*ours.parameters(), *ours.buffers())}
        model.set_submodule(path, copy.deepcopy(ours, shared))
    try:
        yield
        for model, parameters in zip(models, named, strict=True):
            found = dict(model.named_parameters())
            if any(parameter.requires_grad for parameter in parameters.values()):
                for name, parameter in parameters.items():
                    _set(parameter, whole(found[name].detach()).cpu())
    finally:
        for (model, path), ours in zip(layers, before, strict=True):
            model.set_submodule(path, ours)
        for part, name, parameter in places:
            setattr(part, name, parameter)
        for ours, before_sharding in hooks:
            for key in ours.keys() - before_sharding:
                del ours[key]  # it refers to the shards


def check_sharded(execution: Execution, recipes: Iterable[Distill]) -> None:
    """Check that students can be divided over the devices while they are trained, if that is requested.

    Raises:
        ConfigError: if they cannot.
    """
    if execution.strategy != "fsdp":
        return
    for why, holds in (("on one device", execution.devices == 1), ("with --compile", execution.compile)):
        if holds:
            raise ConfigError(f"--strategy: must be ddp {why}, got fsdp")
    for recipe in recipes:
        quantize = None if recipe.lora is None else recipe.lora.quantize
        for name, value in (("lora.quantize", quantize), ("dynamic_loading", recipe.dynamic_loading)):
            if value is not None:
                raise ConfigError(f"distill.{name}: must be null with --strategy fsdp, got {value}")


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each rank holds a part of a tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return the values of all ranks of a tensor that may be sharded; all ranks call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return the values that this rank holds of a tensor that may be sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the values of a whole tensor in the places that this rank holds of `like`."""
    if isinstance(like, DTensor):
        tensor = distribute_tensor(tensor, like.device_mesh, like.placements).to_local()
    return tensor
