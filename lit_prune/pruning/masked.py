"""Run a model as if the units that a plan prunes were cut, without building the smaller model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lit_prune.data.tokens import IGNORED
from lit_prune.importance.aggregate import double
from lit_prune.importance.layer_ablation import next_token_losses, sequences_at_once
from lit_prune.pruning.gating import LayerGates, gated
from lit_prune.pruning.plan import Indices, PrunePlan


@contextmanager
def masked(model: Any, plan: PrunePlan) -> Iterator[None]:
    """Make the model compute the logits of the model cut by `plan` inside `with`.

    The plan must keep all hidden channels and merge no heads.
    """
    if len(plan.hidden) < plan.original.hidden_size or any(layer.merges for layer in plan.layers):
        raise ValueError("masked: a plan that prunes hidden channels or merges heads needs surgery.apply")
    none = torch.zeros((), device=model.device)
    gates = [LayerGates(update=none)] * plan.original.num_hidden_layers
    for layer in plan.layers:
        neurons = _factors(layer.neurons, plan.original.intermediate_size, model.device)
        heads = _factors(layer.heads, plan.original.num_attention_heads, model.device)
        absent = {"attention": None if layer.heads else none, "mlp": None if layer.neurons else none}
        gates[layer.index] = LayerGates(neurons, heads, **absent)
    with gated(model, gates):
        yield


def _factors(kept: Indices, whole: int, device: torch.device) -> Tensor | None:
    """Return 1 for kept units and 0 for others, float32 [whole]; None if all are kept, or none."""
    return None if len(kept) in (0, whole) else torch.zeros(whole).index_fill(0, torch.tensor(kept), 1.0).to(device)


@torch.inference_mode()
def mean_loss(model: Any, batches: Iterable[dict[str, Tensor]]) -> float:
    """Return the language-model loss in nats per scored token over batches {`input_ids`, `labels`}, without gradients.

    A batch is split into parts whose logits fit the memory limit.
    """
    total, count = 0.0, 0
    for batch in batches:
        size = sequences_at_once(batch["input_ids"], model.config.vocab_size)
        for ids, labels in zip(batch["input_ids"].split(size), batch["labels"].split(size), strict=True):
            losses = next_token_losses(model(input_ids=ids, use_cache=False).logits, labels)
            total += float(double(losses).sum())
            count += int((labels[:, 1:] != IGNORED).sum())
    return total / count
