"""A table of three rows about nothing."""

from __future__ import annotations

from lit_prune.config.table import Claim, Table, axis

LOSSES = ("kld", "mse", "cosine")


def table(**changed) -> Table:
    fields = {
        "name": "toy",
        "question": "Which?",
        "source": "nowhere",
        "grid": axis("distill.logit_loss", *LOSSES),
        "label": lambda point: point["distill.logit_loss"],
        "baseline": "kld",
        "paper": {"kld": {"lm_loss": 2.0}},
        "claims": (Claim("kld", "mse", "Table 0"),),
    }
    return Table(**fields | changed)
