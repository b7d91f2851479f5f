"""Scores: how much each unit matters, by which evidence.

A criterion takes the evidence of the calibration pass and the student's section, and returns for each axis one float
tensor a block, higher = keep: "neuron" [neurons], "head" [query heads]; "hidden" has one tensor for the whole model,
since the residual stream is shared. `random` and `magnitude` are the controls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_prune.config import Student
from lit_prune.importance.aggregate import aggregate
from lit_prune.models.anatomy import anatomy_of, blocks_of, head_dim_of
from lit_prune.registry import Registry


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at."""

    model: nn.Module
    """The teacher."""
    moments: dict[str, Tensor]
    """Site ("3.neuron", "3.head", "3.input_norm", "3.mlp_norm") -> sums [2, 3, units] of `SequenceMoments`."""
    count: int
    """Calibration sequences seen."""
    seed: int
    """For criteria that draw."""


Scores = dict[str, list[Tensor]]
Criterion = Callable[[Evidence, Student], Scores]
criteria: Registry[Criterion] = Registry("criterion")


@criteria.register("activation")
def activation(evidence: Evidence, student: Student) -> Scores:
    """Aggregated activations (Minitron, section 2.2); hidden channels are summed over all block norms."""
    by_site = {s: aggregate(m, evidence.count, student.batch, student.seq) for s, m in evidence.moments.items()}
    blocks = range(len(blocks_of(evidence.model)))
    norms = [by_site[f"{i}.{norm}"] for i in blocks for norm in ("input_norm", "mlp_norm")]
    return {
        "neuron": [by_site[f"{i}.neuron"] for i in blocks],
        "head": [by_site[f"{i}.head"] for i in blocks],
        "hidden": [torch.stack(norms).sum(0)],
    }


@criteria.register("magnitude")
def magnitude(evidence: Evidence, student: Student) -> Scores:
    """L2 norm of all the weights that belong to a unit."""
    scores: Scores = {"neuron": [], "head": [], "hidden": []}
    blocks = anatomy_of(evidence.model.config).blocks
    for i in range(len(blocks_of(evidence.model))):
        for axis in ("neuron", "head"):
            scores[axis].append(_squares(evidence, axis, f"{blocks}.{i}.").sqrt())
    scores["hidden"].append(_squares(evidence, "hidden", "").sqrt())
    return scores


@criteria.register("random")
def random(evidence: Evidence, student: Student) -> Scores:
    """A seeded draw."""
    generator = torch.Generator().manual_seed(evidence.seed)
    shapes = magnitude(evidence, student)
    return {a: [torch.rand(s.shape, generator=generator) for s in scores] for a, scores in shapes.items()}


def _squares(evidence: Evidence, axis: str, within: str) -> Tensor:
    """Sum of squares of the weights of each unit of an axis, over the parameters within a module."""
    return torch.stack([*_squares_by_parameter(evidence, axis, within)]).sum(0)


def _squares_by_parameter(evidence: Evidence, axis: str, within: str) -> Iterator[Tensor]:
    anatomy, head_dim = anatomy_of(evidence.model.config), head_dim_of(evidence.model.config)
    for name, parameter in evidence.model.named_parameters():
        axes = anatomy.axes_of(name)
        if name.startswith(within) and axis in axes:
            squares = parameter.detach().double().square().movedim(axes.index(axis), 0)
            squares = squares.reshape(len(squares), -1).sum(1)
            yield squares.unflatten(0, (-1, head_dim)).sum(1) if axis == "head" else squares
