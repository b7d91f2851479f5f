"""Lottery tickets: the weights with which a network starts, and the masks that its training finds.

Sources: The Lottery Ticket Hypothesis, arXiv 1803.03635; Deconstructing Lottery Tickets, arXiv 1905.01067.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from lit_prune.config import Optimizer
from lit_prune.models.linears import linears_of, oriented, rows_of
from lit_prune.models.random_weights import random_model
from lit_prune.pruning.context import PruneContext
from lit_prune.pruning.masks import Masks, apply_masks
from lit_prune.pruning.sparsity import Scores, chooser, keep_in_model, magnitudes, stored

Start = Literal["model", "random_linears", "random"]
"""Weights theta_0 with which a network starts: those of the model, those with the linears of the layers drawn anew, or
all drawn anew."""
Comparison = Literal["matrix", "model"]
"""Weights that are compared with each other: those of a matrix, or of all matrices together."""
Control = Literal["random_masks", "reinitialised"]
"""Masks at random places, or other weights with which the network starts."""

_NO_MASKS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class TicketTrainer:
    """Train a network with cross-entropy from theta_0, over parts of one schedule of `max_steps` steps."""

    ctx: PruneContext
    start: Start
    optimizer: Optimizer
    max_steps: int
    batch_size: int

    def rewind(self, model: Any, step: int = 0) -> None:
        """Give a model the weights theta_k in place, those after the first k steps from theta_0."""
        set_start(model, self.start, self.ctx.seed)
        if step:
            network = copy.deepcopy(model)
            self.train(network, "training to rewind", last=step)
            model.load_state_dict(network.state_dict())

    def train(
        self, network: Any, what: str, masks: Masks = _NO_MASKS, *, first: int = 0, last: int | None = None
    ) -> None:
        """Train a network in place from one step of the schedule to another, with its masked weights held at zero.

        The optimizer starts without moments, and the data from their beginning.
        """
        steps = (self.max_steps if last is None else last) - first
        optimizer = replace(self.optimizer, schedule_start=first, schedule_steps=self.max_steps)
        module = self.ctx.cross_entropy(network, optimizer, steps, masks)
        self.ctx.fit(module, what, max_steps=steps, batch_size=self.batch_size)
        network.eval().to(self.ctx.device)

    def ticket(
        self, model: Any, *, rewind_step: int, rounds: int, sparsity: float, comparison: Comparison,
        control: Control | None = None,
    ) -> Masks:  # fmt: skip
        """Give a model the weights of a ticket, untrained, and return its masks (IMP, arXiv 1903.01611, section 3).

        A round trains theta_k with the masks found so far, prunes the smallest weights and rewinds the others to
        theta_k. Without rounds, the smallest weights of theta_k itself are pruned.
        """
        rewound = copy.deepcopy(model)
        self.rewind(rewound, rewind_step)
        masks: Masks = _NO_MASKS if rounds else keep_largest(rewound, _NO_MASKS, 1 - sparsity, comparison)
        for number, density in enumerate(densities(sparsity, rounds), 1):
            network = copy.deepcopy(rewound)
            apply_masks(network, masks)
            self.train(network, f"round {number} of {rounds}", masks, first=rewind_step)
            masks = keep_largest(network, masks, density, comparison)
        if control == "reinitialised":
            other = torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(self.ctx.seed))
            set_start(model, self.start, int(other))
            return masks
        model.load_state_dict(rewound.state_dict())
        return shuffled(masks, self.ctx.seed) if control == "random_masks" else masks


def set_start(model: Any, start: Start, seed: int) -> None:
    """Give a model its weights theta_0, in place; random ones are those of a new model of its family."""
    if start == "model":
        return
    drawn = random_model(model.config, seed=seed)
    if start == "random":
        model.load_state_dict(drawn.state_dict())
        return
    others = dict(linears_of(drawn))
    for name, module in linears_of(model):
        module.load_state_dict(others[name].state_dict())


def densities(sparsity: float, num_rounds: int) -> list[float]:
    """Return the share of weights left after each round, if every round prunes the same share of the remaining ones.

    The last is 1 - `sparsity`: with 1 - 0.8^n in n rounds, each prunes 20 %.
    """
    return [(1 - sparsity) ** (done / num_rounds) for done in range(1, num_rounds + 1)]


def keep_largest(model: Any, masks: Masks, density: float, comparison: Comparison) -> Masks:
    """Return masks of the largest |W| that are left by `masks`, compared in each matrix or in all together."""
    scores = magnitudes(model)
    if masks:  # what is pruned stays pruned, also if a weight that is left has become zero
        for name, module in linears_of(model):
            scores[name] = scores[name].masked_fill(~oriented(module, masks[name]).to(scores[name].device), -1.0)
    if comparison == "matrix":
        choose = chooser(1 - density, None, "matrix")
        return stored(model, {name: choose(name, score) for name, score in scores.items()})
    zeros = round((1 - density) * sum(score.numel() for score in scores.values()))
    return stored(model, keep_in_model(scores, zeros))


def shuffled(masks: Masks, seed: int) -> Masks:
    """Return masks with as many zeros in each matrix, at random places."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: kept.flatten().cpu()[torch.randperm(kept.numel(), generator=generator)].view(kept.shape)
        for name, kept in masks.items()
    }


def final_scores(trained: Any, start: Any, *, same_sign: bool) -> Scores:
    """Return the scores of supermasks, [out, in] by matrix: |w_f|, or with `same_sign` w_f * sign(w_i).

    w_i are the weights before the training and w_f those after it. The paper has max(0, w_f * sign(w_i)), and prunes
    those that changed their sign in random order; here those that moved farthest go first.
    """
    if not same_sign:
        return magnitudes(trained)
    first = {name: rows_of(module) for name, module in linears_of(start)}
    return {name: rows_of(module) * first[name].sign() for name, module in linears_of(trained)}


@torch.no_grad()
def set_signed_constants(model: Any) -> None:
    """Replace each weight of the linears in the layers by its sign times the standard deviation of its matrix."""
    for _, module in linears_of(model):
        weight = rows_of(module)
        weight.copy_(weight.sign() * weight.std())
