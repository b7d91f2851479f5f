"""Measure the losses of a student against text and teacher on the same validation sequences."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.config import Distill, Evaluation
from lit_prune.data.calibration import CalibrationData
from lit_prune.data.tokens import IGNORED
from lit_prune.evaluate.perplexity import sequence_losses
from lit_prune.losses.logit import logit_loss_of
from lit_prune.losses.sequence_losses import SequenceLosses
from lit_prune.parallel.group import interleaved, rank, world_size


def validation_data(evaluation: Evaluation, tokens: Path) -> CalibrationData:
    """Return the validation sequences, the same for every student."""
    return CalibrationData(
        tokens, num_sequences=evaluation.num_sequences, seq_len=evaluation.seq_len, seed=0, split="validation"
    )


@torch.no_grad()
def validation_losses(
    student: nn.Module, teacher: nn.Module | None, distill: Distill, batches: Iterable[dict[str, Tensor]]
) -> dict[str, SequenceLosses]:
    """Return `lm_loss` in nats and, given a teacher, `kd_loss`, the recipe's logit loss, of each packed sequence.

    Temperature and mixture are the recipe's. The loss is over the whole vocabulary, so that recipes with any top-k
    are compared alike; if a vocabulary is padded, over the entries of both models. Ranks share the sequences as in
    `sequence_losses`. The student's mode is restored.
    """
    was_training, apart = student.training, [torch.empty(0, dtype=torch.float64)]

    def compare(ids: Tensor, ours: Tensor, labels: Tensor) -> None:
        if teacher is not None:
            theirs = teacher.to(ids.device)(input_ids=ids, use_cache=False).logits
            apart.append(_apart(ours[:, :-1], theirs[:, :-1], labels[:, 1:] != IGNORED, distill).cpu())

    found = sequence_losses(student.eval(), batches, compare)
    student.train(was_training)
    if teacher is None:
        return {"lm_loss": found}
    own = len(found.tokens[rank() :: world_size()])
    return {"lm_loss": found, "kd_loss": SequenceLosses(interleaved(torch.cat(apart)[:own]), found.tokens)}


def _apart(ours: Tensor, theirs: Tensor, scored: Tensor, distill: Distill) -> Tensor:
    """Return the logit loss summed over scored tokens, float64 [batch]; one sequence at a time saves memory."""
    loss, tau = logit_loss_of(distill.logit_loss, distill.mixture), distill.temperature
    shared = min(ours.shape[-1], theirs.shape[-1])
    ours, theirs = ours[..., :shared], theirs[..., :shared]
    sums = [
        loss(our[chosen].float() / tau, their[chosen].float() / tau).double().sum()
        for our, their, chosen in zip(ours, theirs, scored, strict=True)
    ]
    return torch.stack(sums)


def sizes_of(model: Any) -> dict[str, int]:
    """Return the number of parameters, with and without those of embedding and output head."""
    tables = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    return {
        "parameters": model.num_parameters(),
        "parameters_without_embeddings": sum(p.numel() for p in model.parameters() if id(p) not in tables),
    }
