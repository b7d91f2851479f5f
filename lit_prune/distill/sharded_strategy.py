"""Lightning's strategy for sharded models: training steps, validations and checkpoints."""

from __future__ import annotations

import secrets
import shutil
from collections import ChainMap
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

from lit_prune.distill.checkpoint_io import read, renamed
from lit_prune.distill.sharding import Gathered, shard
from lit_prune.parallel.group import agree, is_main, rank, world_size
from lit_prune.store.integrity import SHARDS, sha256_of

Found = TypeVar("Found")


class ShardedStrategy(ModelParallelStrategy):
    """Shard models over all ranks by FSDP2.

    A checkpoint is a small file, written last and atomically, and a folder with the weights and optimizer states of
    each rank, which it names. It and the one file of other strategies resume on any number of ranks.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size=world_size(), tensor_parallel_size=1)
        self.root: Gathered | None = None

    def shard(self, module: L.LightningModule, *models: torch.nn.Module) -> None:
        """Shard a module and Hugging Face models; it is that of the trainer, and calls this in `configure_model`."""
        mixed = isinstance(self.precision_plugin, MixedPrecision)
        self.root = shard(module, models, self.device_mesh["data_parallel"], torch.bfloat16 if mixed else None)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a micro-batch; the weights outside layers stay gathered until the backward pass."""
        assert self.root is not None
        return self.root(lambda: super(ShardedStrategy, self).training_step(*args, **kwargs))

    def gathered(self, call: Any, *args: Any) -> Any:
        """Return `call(*args)`, which may call the models in every way but backward."""
        assert self.root is not None
        found = self.root(call, *args)
        self.root.reshard()  # type: ignore[operator]
        return found

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Save the shards of all ranks, then the file, and remove the shards of the checkpoint before."""
        path = Path(filepath)
        folder = path.parent / SHARDS / agree(secrets.token_hex(4))
        states = {"state_dict": checkpoint.pop("state_dict"), "optimizer": checkpoint.pop("optimizer_states")[0]}
        dcp.save(states, checkpoint_id=folder)
        shares: list[Any] = [None] * world_size()
        mine = sorted(folder.iterdir())[rank() :: world_size()]
        distributed.all_gather_object(shares, {file.name: sha256_of(file) for file in mine})
        if is_main():
            about = {"folder": folder.name, "digests": dict(ChainMap(*shares))}
            self.checkpoint_io.save_checkpoint({**checkpoint, SHARDS: about}, path)
            for other in folder.parent.iterdir():
                if other != folder:
                    shutil.rmtree(other)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights and optimizer states, of shards or of one file; return the rest of a checkpoint."""
        path, module, optimizer = Path(checkpoint_path), self.lightning_module, self.optimizers[0]
        assert module is not None
        checkpoint = read(path)
        if about := checkpoint.get(SHARDS):
            states = {"state_dict": self.lightning_module_state_dict(), "optimizer": self.optimizer_state(optimizer)}
            dcp.load(states, checkpoint_id=path.parent / SHARDS / about["folder"])
        else:
            names = {parameter: name for name, parameter in module.named_parameters()}
            ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            whole = renamed(checkpoint.pop("optimizer_states")[0], dict(enumerate(ordered)))
            states = {"state_dict": checkpoint.pop("state_dict"), "optimizer": whole}
        options = StateDictOptions(full_state_dict=about is None)
        set_model_state_dict(module, states["state_dict"], options=options)
        set_optimizer_state_dict(module, optimizer, states["optimizer"], options=options)
        return checkpoint


def gathered(trainer: L.Trainer, call: Any, *args: Any) -> Any:
    """Return `call(*args)` with models that a strategy may have sharded."""
    strategy = trainer.strategy
    return strategy.gathered(call, *args) if isinstance(strategy, ShardedStrategy) else call(*args)
