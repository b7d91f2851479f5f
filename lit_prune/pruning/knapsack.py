"""Choose one option per group under a limit of their total cost, at the smallest total score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp


@dataclass(frozen=True)
class Option:
    """An option of a group."""

    score: float
    """To be minimised in total."""
    cost: int
    sufficient: bool = True
    """Whether it meets the demand that at least one choice must meet."""


def least_cost(groups: Sequence[Sequence[Option]]) -> int:
    """Return the smallest total cost of one option per group, one of them sufficient."""
    least = [min(one.cost for one in group) for group in groups]
    enough = [min((one.cost for one in group if one.sufficient), default=None) for group in groups]
    more = [cost - least[i] for i, cost in enumerate(enough) if cost is not None]
    return sum(least) + min(more)


def knapsack(groups: Sequence[Sequence[Option]], limit: int) -> list[int]:
    """Return the chosen option of each group; their total cost is at most `limit` and one of them is sufficient.

    The minimum is exact: a mixed-integer linear program (HiGHS) with one binary variable per option.

    Raises:
        ValueError: if no choice costs at most `limit`.
    """
    options = [one for group in groups for one in group]
    ends = np.cumsum([len(group) for group in groups])
    member = np.zeros((len(groups), len(options)))
    for row, (end, group) in enumerate(zip(ends, groups, strict=True)):
        member[row, end - len(group) : end] = 1
    unit = math.gcd(*(one.cost for one in options)) or 1  # small numbers, as the solver's tolerances are absolute
    demands = [
        LinearConstraint(member, 1, 1),
        LinearConstraint([one.cost // unit for one in options], -np.inf, limit // unit),
        LinearConstraint([float(one.sufficient) for one in options], 1, np.inf),
    ]
    while True:
        found = milp(
            [one.score for one in options], integrality=np.ones(len(options)), bounds=Bounds(0, 1),
            constraints=demands, options={"mip_rel_gap": 0.0},
        )  # fmt: skip
        if found.x is None:
            raise ValueError(f"knapsack: no choice costs at most {limit}: {found.message}")
        chosen = [int(found.x[end - len(group) : end].argmax()) for end, group in zip(ends, groups, strict=True)]
        if sum(group[i].cost for group, i in zip(groups, chosen, strict=True)) <= limit:
            return chosen
        # Only the tolerances let this choice through: exclude it.
        places = [end - len(group) + i for end, group, i in zip(ends, groups, chosen, strict=True)]
        demands.append(LinearConstraint(np.isin(range(len(options)), places).astype(float), -np.inf, len(groups) - 1))
