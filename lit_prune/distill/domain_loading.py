"""Change the shares of the domains in a batch while a module is trained (Sheared LLaMA, 2310.06694, section 2.2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from torch import Tensor
from torch.utils.data import default_collate

from lit_prune.data.domains import references_of, updated_shares
from lit_prune.data.retraining import RetrainingData
from lit_prune.data.tokens import TokenSequences
from lit_prune.pruning.context import DynamicLoading
from lit_prune.store.atomic import atomic_path


class DomainLoading(L.Callback):
    """Measure the loss of each domain every `interval` steps, and draw more of those that exceed their reference.

    Losses are those of `module.mean_loss` on validation sequences. Rows {step, loss and new share of each domain} go to
    a CSV file, and with the references to the checkpoint.

    Raises:
        ConfigError: if the number of references is not that of domains.
    """

    def __init__(self, data: RetrainingData, tokens: Path, how: DynamicLoading, path: Path) -> None:
        assert data.shares is not None
        self.shares, self.how, self.path = data.shares, how, path
        self.domains = data.sequences.domains
        self.references = references_of(how.references, self.domains) if how.references else []
        self.rows: list[dict[str, float]] = []
        sequences = TokenSequences(tokens, "validation", data.sequences.seq_len)
        self._validation = [
            default_collate([sequences[int(i)] for i in ours[: how.num_sequences]]) for ours in sequences.members()
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.references:
            self.references = self._losses(pl_module)

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
        with atomic_path(self.path) as scratch:
            pd.DataFrame(self.rows).to_csv(scratch, index=False)

    def _losses(self, module: Any) -> list[float]:
        def on_device(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: ids.to(module.device) for name, ids in batch.items()}

        return [module.mean_loss([on_device(batch)]) for batch in self._validation]

    def state_dict(self) -> dict[str, Any]:
        return {"references": self.references, "rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.references, self.rows = state_dict["references"], state_dict["rows"]
