"""Models whose weights are sharded over the ranks while they train, by PyTorch's FSDP2, and whole before and after."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_prune.config import ConfigError, Distill, Execution
from lit_prune.models.model_family import anatomy_of, layers_of


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

    Layers compute with weights in `dtype`, if given. Gradients are averaged, and weights outside layers gathered, in
    the dtype of the weights: the logits of a loss are float32.
    """
    root = Gathered([module, *models])
    for tensor in (*root.parameters(), *root.buffers()):
        distributed.broadcast(tensor.data, 0)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in (layer for model in models for layer in layers_of(model)):
        _shard(layer, mesh=mesh, mp_policy=policy)
    _shard(root, mesh=mesh)
    return root


def _shard(module: nn.Module, **how: Any) -> None:
    """Shard the weights of a module that are still whole; the whole ones remain in the memory of the CPU."""
    values = [(parameter, parameter.data.cpu()) for parameter in module.parameters() if not is_sharded(parameter)]
    fully_shard(module, **how)
    for parameter, value in values:
        parameter.data = value


@contextlib.contextmanager
def whole_afterwards(*models: Any) -> Iterator[None]:
    """Undo on exit what `shard` does to Hugging Face models inside `with`; each rank then has all trained weights.

    FSDP2 has no inverse. It changes classes and hooks of layers, of which models have copies inside `with`, and
    replaces parameters. If the training fails, models leave with the weights they came with.
    """
    named = [dict(model.named_parameters()) for model in models]
    places = [
        (part, name, parameter)
        for model in models for part in model.modules() for name, parameter in part.named_parameters(recurse=False)
    ]  # fmt: skip
    layers = [(model, anatomy_of(model.config).layers) for model in models]
    before = [model.get_submodule(path) for model, path in layers]
    for (model, path), ours in zip(layers, before, strict=True):
        model.set_submodule(path, copy.deepcopy(ours, {id(parameter): parameter for parameter in ours.parameters()}))
    trained: list[tuple[nn.Parameter, Tensor]] = []
    try:
        yield
        for model, parameters in zip(models, named, strict=True):
            found = dict(model.named_parameters())
            trained += [(p, whole(found[name].detach()).cpu()) for name, p in parameters.items() if p.requires_grad]
    finally:
        for (model, path), ours in zip(layers, before, strict=True):
            model.set_submodule(path, ours)
        for part, name, parameter in places:
            setattr(part, name, parameter)
    for parameter, value in trained:
        parameter.data = value


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
