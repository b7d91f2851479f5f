"""Change the shares of the domains in a batch while a module is trained (Sheared LLaMA, 2310.06694, section 2.2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from torch import Tensor
from torch.utils.data import default_collate

from lit_prune.config import ConfigError, DynamicLoading
from lit_prune.data.domains import updated_shares
from lit_prune.data.retraining import RetrainingData
from lit_prune.data.tokens import TokenSequences
from lit_prune.parallel.group import agree, is_main
from lit_prune.store.atomic import atomic_path

Measure = Callable[[list[dict[str, Tensor]]], float]
"""The loss of a model in nats per scored token over batches {`input_ids`, `labels`: int64 [sequences, seq_len]}."""


def check_domains(how: DynamicLoading, tokens: Path, seq_len: int) -> None:
    """Check that the text has domains, sequences of each in both splits, and one reference for each, if any are given.

    Raises:
        ConfigError: if it does not.
    """
    for split in ("train", "validation"):
        sequences = TokenSequences(tokens, split, seq_len)
        sequences.members()
        names, given = sequences.domains, len(how.references)
        if given not in (0, len(names)):
            raise ConfigError(f"references: must be {len(names)} losses ({', '.join(names)}), got {given}")


class DomainLoading(L.Callback):
    """Measure the loss of each domain every `interval` steps, and draw more of those that exceed their reference.

    Losses are those of `module.mean_loss` on validation sequences; references that are not given are measured by
    `reference` before the first step, or by `module.mean_loss` without it. In a group of ranks, those of rank 0 count.
    Rows {step, loss and new share of each domain} go to a CSV file, and with the references to the checkpoint.
    """

    def __init__(
        self, data: RetrainingData, tokens: Path, how: DynamicLoading, path: Path, reference: Measure | None = None
    ) -> None:
        assert data.shares is not None
        self.shares, self.how, self.path, self.reference = data.shares, how, path, reference
        self.domains = data.sequences.domains
        self.references = list(how.references)
        self.rows: list[dict[str, float]] = []
        sequences = TokenSequences(tokens, "validation", data.sequences.seq_len)
        self._validation = [
            default_collate([sequences[int(i)] for i in ours[: how.num_sequences]]) for ours in sequences.members()
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.references:
            self.references = self._losses(pl_module, self.reference)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not ends_step or step % self.how.interval or step == trainer.max_steps:
            return
        losses = self._losses(pl_module)
        shares = updated_shares(self.shares.newest, losses, self.references)
        self.shares.change(step, shares)
        row: dict[str, float] = {"step": step}
        for domain, loss, share in zip(self.domains, losses, shares, strict=True):
            row |= {f"loss_{domain}": loss, f"share_{domain}": share}
        self.rows.append(row)
        if is_main():
            with atomic_path(self.path) as scratch:
                pd.DataFrame(self.rows).to_csv(scratch, index=False)

    def _losses(self, module: Any, measure: Measure | None = None) -> list[float]:
        """Return the loss of each domain, the same on all ranks: other shares would be other sequences."""

        def on_device(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: ids.to(module.device) for name, ids in batch.items()}

        return agree([(measure or module.mean_loss)([on_device(batch)]) for batch in self._validation])

    def state_dict(self) -> dict[str, Any]:
        return {"references": self.references, "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.references, self.rows = state_dict["references"], state_dict["rows"]
