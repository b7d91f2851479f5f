"""Dynamic batch loading in a run: references, more of the domain that lags behind, and resumption."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from refusals import refuses
from trained import RECIPE, equal, small_teacher, word_tokenizer
from trained import SEQ_LEN as TEXT_LEN
from trained import run as retrain

from lit_prune.config import Cell, Corpus, DynamicLoading, Execution, Optimizer
from lit_prune.config.overrides import override
from lit_prune.data.tokens import IGNORED, TokenSequences, write_tokens
from lit_prune.distill.domain_loading import check_domains
from lit_prune.distill.objective import check_objective
from lit_prune.distill.train import fit
from lit_prune.pipeline.validate import check_names
from lit_prune.pipeline.validate_text import check_tokens

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


def test_references_in_another_number_are_refused(tokens: Path) -> None:
    check_domains(DynamicLoading(references=(1.0, 1.0)), tokens, SEQ_LEN)
    with refuses("references", 2, "easy, hard", 3):
        check_domains(DynamicLoading(references=(1.0, 1.0, 1.0)), tokens, SEQ_LEN)


INTERVAL = 2
BY_DOMAIN = dataclasses.replace(RECIPE, dynamic_loading=DynamicLoading(INTERVAL, num_sequences=2))


@pytest.fixture(scope="module")
def two_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of the domains `loop`, a word and then a cycle of 5, and `random`."""
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    lines = {
        "loop": lambda i: [f"w{i}", *(f"w{(i + k) % 5}" for k in range(40))],
        "random": lambda i: [f"w{draw.randrange(40)}" for _ in range(40)],
    }
    documents = [{"text": " ".join(words(i)), "kind": kind} for i in range(40) for kind, words in lines.items()]
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in documents))
    corpus = Corpus(path=str(folder / "texts.jsonl"), domain="kind", holdout_fraction=0.2)
    write_tokens(corpus, word_tokenizer(), folder / "tokens")
    return folder / "tokens"


@torch.no_grad()
def losses_by_hand(model: torch.nn.Module, tokens: Path) -> list[float]:
    """Cross-entropy on the first two validation sequences of each domain, in float64."""
    sequences, losses = TokenSequences(tokens, "validation", TEXT_LEN), []
    for ours in sequences.members():
        found: list[torch.Tensor] = []
        for one in (sequences[int(i)] for i in ours[:2]):
            scored = one["labels"][1:] != IGNORED
            logits = model.double()(one["input_ids"][None]).logits[0, :-1][scored]
            found += [torch.nn.functional.cross_entropy(logits, one["labels"][1:][scored], reduction="none")]
        losses.append(torch.cat(found).mean().item())
    return losses


def test_a_student_reads_more_of_the_domain_where_the_teacher_is_further_ahead(two_texts: Path, tmp_path: Path) -> None:
    student = retrain(two_texts, tmp_path / "whole", recipe=BY_DOMAIN)
    found = pd.read_csv(tmp_path / "whole" / "domains.csv")
    assert found["step"].tolist() == [2, 4, 6]
    references = losses_by_hand(small_teacher(), two_texts)
    sequences = TokenSequences(two_texts, "train", TEXT_LEN)
    shares = [len(ours) / len(sequences) for ours in sequences.members()]
    for _, row in found.iterrows():
        losses = [row["loss_loop"], row["loss_random"]]
        raised = [s * math.exp(max(loss - r, 0)) for s, loss, r in zip(shares, losses, references, strict=True)]
        shares = [r / sum(raised) for r in raised]
        assert [row["share_loop"], row["share_random"]] == pytest.approx(shares, rel=1e-4)
    retrain(two_texts, tmp_path / "cut", recipe=BY_DOMAIN, stop_at=5)
    assert equal(retrain(two_texts, tmp_path / "cut", recipe=BY_DOMAIN), student)
    assert (tmp_path / "cut" / "domains.csv").read_text() == (tmp_path / "whole" / "domains.csv").read_text()


def test_the_losses_of_domains_are_those_of_the_student_at_that_step(two_texts: Path, tmp_path: Path) -> None:
    """A run of 3 steps with a constant learning rate begins as one of 2, whose student is known."""
    constant = Optimizer(lr=3e-3, min_lr=3e-3, warmup_steps=1)
    recipe = dataclasses.replace(BY_DOMAIN, optimizer=constant, max_steps=INTERVAL)
    student = retrain(two_texts, tmp_path / "two", recipe=recipe)
    retrain(two_texts, tmp_path / "three", recipe=dataclasses.replace(recipe, max_steps=INTERVAL + 1))
    (row,) = pd.read_csv(tmp_path / "three" / "domains.csv").to_dict("records")
    assert [row["loss_loop"], row["loss_random"]] == pytest.approx(losses_by_hand(student, two_texts), rel=1e-5)


def test_measuring_the_losses_changes_no_weight(two_texts: Path, tmp_path: Path) -> None:
    """With references above every loss the shares stay, and sequences depend on them alone."""

    def weights(interval: int) -> torch.nn.Module:
        how = DynamicLoading(interval, references=(1e3, 1e3))
        recipe = dataclasses.replace(RECIPE, dynamic_loading=how)
        return retrain(two_texts, tmp_path / str(interval), recipe=recipe, dropout=0.1)

    assert equal(weights(1), weights(100))


def test_dynamic_loading_needs_domains_references_and_a_text_with_both(two_texts: Path) -> None:
    settings = {"distill.dynamic_loading.interval": 5}
    with refuses("corpus.domain"):
        check_names(override(Cell(), settings))
    cell = override(Cell(), settings | {"corpus.domain": "kind", "distill.dynamic_loading.references": [1.0]})
    check_names(cell)
    sizes = {"calibration.num_sequences": 1, "calibration.seq_len": 16, "evaluation.num_sequences": 1}
    cell = override(cell, sizes | {"evaluation.seq_len": 16, "distill.seq_len": 16})
    with refuses("distill.dynamic_loading.references", 2, "loop, random", 1):
        check_tokens(cell, two_texts)
    teacher = small_teacher().config
    alone = dataclasses.replace(BY_DOMAIN, alpha=0.0, kd_weight=0.0, ce_weight=1.0, match_embedding=False)
    alone = dataclasses.replace(alone, match_mlp_input=(), match_layer_output=())
    with refuses("distill.dynamic_loading.references"):
        check_objective(alone, teacher, teacher, 3)
    how = DynamicLoading(references=(1.0, 1.0))
    check_objective(dataclasses.replace(alone, dynamic_loading=how), teacher, teacher, 3)
