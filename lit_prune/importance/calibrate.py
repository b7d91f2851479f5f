"""The calibration pass: the teacher reads each calibration sequence once, and every statistic is taken on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_prune.data.calibration import CalibrationData
from lit_prune.execution import Execution
from lit_prune.importance.aggregate import SequenceMoments
from lit_prune.models.anatomy import anatomy_of, blocks_of, head_dim_of


class Calibrator(L.LightningModule):
    """Streams the teacher's activations into the moments of every site, in one forward pass without gradients.

    Neurons are read after their activation, at the input of the down projection; heads as the L2 norm of each head's
    output at each token, at the input of the output projection; hidden channels after the two norms of each block
    (Minitron, section 2.2; decisions where the paper is silent: post-activation, per-token norm first).
    """

    def __init__(self, model: nn.Module, tell: Callable[[int], None]) -> None:
        super().__init__()
        self.model, self.tell = model.eval(), tell
        self.sites: dict[str, SequenceMoments] = {}
        self._seen = 0

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Read one batch {`input_ids`: int64 [batch, seq]}; the head's logits are not computed."""
        with _reading(self.model, self.sites):
            self.model.base_model(input_ids=batch["input_ids"], use_cache=False)  # type: ignore[operator]
        self._seen += len(batch["input_ids"])
        self.tell(self._seen)

    def on_predict_end(self) -> None:
        """Add up the ranks."""
        for site in self.sites.values():
            assert site.sums is not None
            site.sums = self.trainer.strategy.reduce(site.sums, reduce_op="sum")
            site.count = int(
                self.trainer.strategy.reduce(torch.tensor(site.count, device=self.device), reduce_op="sum")
            )


def calibrate(
    model: nn.Module, data: CalibrationData, path: Path, execution: Execution, tell: Callable[[int], None]
) -> int:
    """Write the moments of every site to a safetensors file; returns the sequences seen."""
    calibrator = Calibrator(model, tell)
    trainer = L.Trainer(
        accelerator=execution.accelerator, devices=1, logger=False, use_distributed_sampler=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=True,
    )  # fmt: skip
    trainer.predict(calibrator, datamodule=data, return_predictions=False)
    save_file({name: site.sums.cpu() for name, site in calibrator.sites.items() if site.sums is not None}, path)
    return next(iter(calibrator.sites.values())).count


def load_moments(path: Path) -> dict[str, Tensor]:
    """The moments a calibration pass wrote."""
    return load_file(path)


@contextmanager
def _reading(model: nn.Module, sites: dict[str, SequenceMoments]) -> Iterator[None]:
    """Hooks that add what passes each site to its moments."""
    anatomy, head_dim = anatomy_of(model.config), head_dim_of(model.config)

    def moments(name: str) -> SequenceMoments:
        return sites.setdefault(name, SequenceMoments())

    def entering(name: str, heads: bool) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()
            moments(name).add(x.unflatten(-1, (-1, head_dim)).float().norm(dim=-1) if heads else x)

        return hook

    def leaving(name: str) -> Any:
        return lambda module, inputs, output: moments(name).add(output.detach())

    hooks = []
    for i, block in enumerate(blocks_of(model)):
        output, down = block.get_submodule(anatomy.attention_output), block.get_submodule(anatomy.mlp_output)
        hooks.append(output.register_forward_pre_hook(entering(f"{i}.head", heads=True)))
        hooks.append(down.register_forward_pre_hook(entering(f"{i}.neuron", heads=False)))
        for norm in ("input_norm", "mlp_norm"):
            module = block.get_submodule(getattr(anatomy, norm))
            hooks.append(module.register_forward_hook(leaving(f"{i}.{norm}")))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
