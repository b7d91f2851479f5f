"""Ridge regression in closed form, for many more coefficients than observations."""

from __future__ import annotations

import torch
from torch import Tensor

PENALTIES = torch.logspace(-6, 3, 19, dtype=torch.float64)
"""Penalties to choose from, relative to the mean squared norm of an observation."""


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """Return the coefficients [features] of y [observations] on x [observations, features], with an intercept.

    beta = X^T (X X^T + penalty I)^-1 y for centred X and y. The penalty is the one of `PENALTIES` with the smallest
    squared error of leave-one-out predictions, which follows from the fit to all observations: the residual of an
    observation divided by 1 - H_ii, with the hat matrix H.
    """
    x, y = x.double(), y.double()
    x, y = x - x.mean(0), y - y.mean()
    values, vectors = torch.linalg.eigh(x @ x.T)
    values = values.clamp_min(0)
    scale = values.mean().clamp_min(torch.finfo(torch.float64).tiny)
    turned = vectors.T @ y
    penalties = PENALTIES[:, None] * scale
    shrunk = values / (values + penalties)  # [penalties, observations]
    residuals = y - (shrunk * turned) @ vectors.T
    leverage = shrunk @ vectors.square().T + 1 / len(y)  # the intercept's share is 1 / n
    errors = (residuals / (1 - leverage).clamp_min(_LEAST)).square().sum(1)
    best = penalties[int(errors.argmin())]
    return x.T @ (vectors @ (turned / (values + best)))


_LEAST = 1e-9
"""Smallest 1 - H_ii: an observation that determines its own prediction would divide by zero."""
