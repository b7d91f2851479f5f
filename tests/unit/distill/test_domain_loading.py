"""Dynamic batch loading in a run: references, more of the domain that lags behind, and resumption."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refuses

from lit_prune.config import Execution
from lit_prune.distill.train import fit
from lit_prune.pruning.context import DynamicLoading

SEQ_LEN, BATCH, STEPS = 4, 8, 60
EASY, HARD = range(20), range(20, 40)
"""Sequences of the two domains, which are equally large."""


class Stop(Exception):
    """The interruption."""


class Planted(L.LightningModule):
    """Notes the sequences of every step; the loss of the second domain exceeds that of the first by ln 3."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.terms = {"loss": torch.zeros(())}
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen[self.global_step] = (batch["input_ids"][:, 0] // SEQ_LEN).tolist()
        return self.weight * 0

    def mean_loss(self, batches: list[dict[str, torch.Tensor]]) -> float:
        (batch,) = batches
        assert batch["input_ids"].shape == (3, SEQ_LEN)
        return 1.0 + math.log(3) * float(batch["input_ids"].min() >= HARD[0] * SEQ_LEN)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Tokens whose ids are their positions, half of them of each domain."""
    folder, count = tmp_path / "tokens", len(EASY) * SEQ_LEN
    folder.mkdir()
    for split in ("train", "validation"):
        np.arange(2 * count, dtype=np.uint16).tofile(folder / f"{split}.bin")
    splits = ("train", "validation")
    about = {"dtype": "uint16", "eos": 0, "num_tokens": dict.fromkeys(splits, 2 * count)}
    about |= {"domains": {split: {"easy": count, "hard": count} for split in splits}}
    (folder / "tokens.json").write_text(json.dumps(about))
    return folder


def run(tokens: Path, folder: Path, *references: float, stop: int | None = None, interval: int = 20) -> Planted:
    """A run with a checkpoint after every step, interrupted after step `stop`."""
    module = Planted()

    def on_progress(step: int, row: dict[str, float]) -> None:
        if step == stop:
            raise Stop

    fit(
        module, tokens, folder, max_steps=STEPS, batch_size=BATCH, seq_len=SEQ_LEN, seed=0, precision="32-true",
        execution=Execution(accelerator="cpu", checkpoint_seconds=0, log_every=1, num_workers=2),
        on_progress=on_progress, loading=DynamicLoading(interval, references, 3),
    )  # fmt: skip
    return module


def share(seen: dict[int, list[int]], steps: range) -> float:
    """Share of the second domain."""
    return sum(i in HARD for step in steps for i in seen[step]) / (BATCH * len(steps))


def test_more_is_drawn_of_a_domain_with_excess_loss(tokens: Path, tmp_path: Path) -> None:
    module = run(tokens, tmp_path / "run", 1.0, 1.0)
    rows = pd.read_csv(tmp_path / "run" / "domains.csv")
    assert rows["step"].tolist() == [20, 40]
    assert rows["loss_hard"].tolist() == pytest.approx([1 + math.log(3)] * 2)
    assert rows["share_hard"].tolist() == pytest.approx([3 / 4, 9 / 10])  # shares 1 : 3, then 1 : 9
    for steps, expected in ((range(20), 0.5), (range(20, 40), 0.75), (range(40, 60), 0.9)):
        assert share(module.seen, steps) == pytest.approx(expected, abs=0.1)


def test_references_are_the_losses_at_the_start_by_default(tokens: Path, tmp_path: Path) -> None:
    run(tokens, tmp_path / "run")
    assert pd.read_csv(tmp_path / "run" / "domains.csv")["share_hard"].tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("stop", [19, 20, 33])
def test_a_resumed_run_draws_what_the_whole_one_draws(tokens: Path, tmp_path: Path, stop: int) -> None:
    whole = run(tokens, tmp_path / "whole", 1.0, 1.0)
    with pytest.raises(Stop):
        run(tokens, tmp_path / "cut", 1.0, 1.0, stop=stop)
    rest = run(tokens, tmp_path / "cut", 1.0, 1.0)
    first = min(rest.seen)
    assert 0 < first <= stop
    assert rest.seen == {step: seen for step, seen in whole.seen.items() if step >= first}
    assert (tmp_path / "cut" / "domains.csv").read_text() == (tmp_path / "whole" / "domains.csv").read_text()


def test_references_in_another_number_are_refused(tokens: Path, tmp_path: Path) -> None:
    with refuses("prune.domain_losses", 2, "easy, hard", 3):
        run(tokens, tmp_path / "run", 1.0, 1.0, 1.0)
