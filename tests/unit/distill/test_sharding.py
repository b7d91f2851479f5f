"""Sharded models have the weights that rank 0 loaded, and no other rank ever holds a whole model."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from distilled import llama
from families import CASES, config_of, logits, model_of, plan_for
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_prune.config import Execution
from lit_prune.distill.sharding import loading_device, shard, whole_afterwards
from lit_prune.models.loading import load_model
from lit_prune.models.model_family import layers_of
from lit_prune.models.random_weights import random_model
from lit_prune.models.transformed import transformed_config
from lit_prune.parallel.group import agree, rank
from lit_prune.pruning import surgery

SHARDED = Execution(accelerator="cpu", strategy="fsdp")
WORLD = 2


def models() -> dict[str, Any]:
    """Return a model of every family, one whose layers differ in width, and one with shortcuts and low-rank linears."""
    transformed = transformed_config(config_of("llama"), shortcuts=True, ranks={"mlp.up_proj": 3})
    return {name: model_of(name) for name in CASES} | {
        "widths": surgery.apply(model_of("llama"), plan_for("llama", "uneven")),
        "transformed": random_model(transformed, seed=1),
    }


def sharded(model: Any) -> Any:
    return shard(nn.Identity(), [model], init_device_mesh("cpu", (WORLD,)), None)


@pytest.mark.parametrize("frozen", [False, True])
def test_models_loaded_by_rank_0_compute_on_all_ranks(tmp_path, frozen):
    names = []
    for name, model in models().items():
        model.save_pretrained(tmp_path / name)
        names.append(name)

    def call() -> None:
        for name in names:
            model = load_model(str(tmp_path / name), loading_device(SHARDED)).requires_grad_(not frozen)
            assert {parameter.is_meta for parameter in model.parameters()} == {rank() > 0}
            expected = agree(None if rank() else (logits(model), model.state_dict()))
            with whole_afterwards(model):
                root = sharded(model)
                torch.testing.assert_close(root(logits, model), expected[0], msg=name)
                root.reshard()
            shards = weakref.ref(root)
            del root
            gc.collect()
            assert shards() is None, name
            if rank() and frozen:
                assert all(parameter.is_meta for parameter in model.parameters()), name
            else:
                assert torch.equal(logits(model), expected[0]), name
                assert model.state_dict().keys() == expected[1].keys()
                assert all(torch.equal(value, expected[1][key]) for key, value in model.state_dict().items()), name

    on_ranks(WORLD, call)


class Held(TorchDispatchMode):
    """The bytes of the tensors that are created inside `with`, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._sizes = 0, {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                self._sizes[StorageWeakRef(storage)] = storage.nbytes()
        self._sizes = {storage: size for storage, size in self._sizes.items() if not storage.expired()}
        self.most = max(self.most, sum(self._sizes.values()))
        return found


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_other_ranks_hold_their_share_and_one_layer():
    layers = 8
    model = llama(64, layers=layers)
    size, layer = bytes_of(*model.parameters()), bytes_of(*layers_of(model)[0].parameters())
    buffers = bytes_of(*model.buffers())
    assert layer > bytes_of(*model.parameters()) - layers * layer  # more than all weights outside layers

    def call() -> None:
        ours = model if rank() == 0 else random_model(model.config, loading_device(SHARDED))
        with Held() as held:
            root = sharded(ours)
        assert sum(bytes_of(part.to_local()) for part in root.parameters()) == size / WORLD
        if rank():
            assert size / WORLD < held.most <= size / WORLD + layer + buffers

    on_ranks(WORLD, call)
