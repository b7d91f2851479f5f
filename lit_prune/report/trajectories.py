"""Track the order of rows by validation loss during retraining. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from lit_prune.config.table import Claim, Table
from lit_prune.report.results_frame import read_all
from lit_prune.report.statistics import agree
from lit_prune.store import Node
from lit_prune.store.store import CHECKS

_COLUMNS = ["row", "seed", "step", "lm_loss", "kd_loss"]


def read_checks(done: dict[tuple[str, int], Node]) -> pd.DataFrame:
    """Return checks.csv of finished cells: columns row, seed, step, lm_loss, kd_loss; empty without validations.

    Losses are in nats per token; kd_loss is NaN if it was not measured.
    """
    whole = read_all(done, CHECKS)
    return pd.DataFrame(columns=_COLUMNS) if whole is None else whole[_COLUMNS]


def ranks(checks: pd.DataFrame) -> pd.DataFrame:
    """Return the agreement of the rows' order at each validation with the last: step, tau (Kendall's tau-b), n (rows).

    Rows are ordered by mean LM loss over seeds (Minitron, Fig. 9); rows that end before the last step are skipped.
    """
    losses = checks.pivot_table(index="step", columns="row", values="lm_loss")
    if len(losses) < 2 or losses.iloc[-1].count() < 2:
        return pd.DataFrame(columns=["step", "tau", "n"])
    last = losses.iloc[-1].dropna()
    known = [(step, found.dropna()) for step, found in losses[last.index].iterrows()]
    orders = [(step, agree(found, last[found.index])) for step, found in known]
    return pd.DataFrame([{"step": step, "tau": order.tau, "n": order.n} for step, order in orders])


def order_by_seed(checks: pd.DataFrame, shares: Iterable[str]) -> pd.DataFrame:
    """Return Kendall's tau-b between the order of the rows by LM loss after a share of the steps and at the end.

    [seeds, shares]; a share such as "75 %" is read at the first validation at or after it. Rows that end before the
    last step are skipped; NaN with fewer than two.
    """
    shares = list(shares)
    taus = {}
    for seed, found in checks.groupby("seed"):
        losses = found.pivot_table(index="step", columns="row", values="lm_loss").dropna(axis="columns")
        places = {share: float(share.removesuffix("%")) / 100 * losses.index[-1] for share in shares}
        at = {share: losses[losses.index >= place].iloc[0] for share, place in places.items()}
        taus[seed] = {share: agree(order, losses.iloc[-1]).tau for share, order in at.items()}
    return pd.DataFrame.from_dict(taus, orient="index", columns=shares, dtype=float)


def flips(table: Table, checks: pd.DataFrame) -> pd.DataFrame:
    """Return the last steps at which the two rows of a claim swap their order by LM loss: a line per pair that swaps.

    Columns: claim (its index in the table), before and step (the validations between which the sign of the mean
    difference over shared seeds last changes), ahead (the row with the lower loss from then on), changes (number of
    sign changes).
    """
    losses = checks.pivot_table(index=["step", "seed"], columns="row", values="lm_loss")
    # The first of several claims about the same two rows represents all.
    pairs = {frozenset(claim.rows): place for place, claim in reversed([*enumerate(table.claims)]) if claim.rows}
    found = {place: _last_flip(table.claims[place], losses) for place in sorted(pairs.values())}
    lines = [{"claim": place, **flip} for place, flip in found.items() if flip]
    return pd.DataFrame(lines, columns=["claim", "before", "step", "ahead", "changes"])


def _last_flip(claim: Claim, losses: pd.DataFrame) -> dict[str, Any] | None:
    pair = losses.reindex(columns=[claim.better, claim.worse]).dropna()
    difference = (pair[claim.better] - pair[claim.worse]).groupby("step").mean()
    signs = np.sign(difference[difference != 0])  # a tie has no sign
    changes = np.flatnonzero(np.diff(signs))
    if not len(changes):
        return None
    before, step = signs.index[changes[-1]], signs.index[changes[-1] + 1]
    ahead = claim.better if signs[step] < 0 else claim.worse
    return {"before": before, "step": step, "ahead": ahead, "changes": len(changes)}
