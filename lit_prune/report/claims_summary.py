"""Summarise the verdicts on the claims of all tables by profile and paper, including claims not measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lit_prune.config.table import Table, paper_named
from lit_prune.registry import table_of, tables
from lit_prune.report.load import Answer, ledger
from lit_prune.report.verdicts import SEEDS, VERDICTS

MINITRON, PRACTICE = "Minitron", "In Practice"
PAPERS = {
    MINITRON: "Compact Language Models via Pruning and Knowledge Distillation (arXiv 2407.14679)",
    PRACTICE: "LLM Pruning and Distillation in Practice: The Minitron Approach (arXiv 2408.11796)",
    "Reassessing": "Reassessing Layer Pruning in LLMs: New Insights and Methods (arXiv 2411.15558)",
    "Deeper Layers": "The Unreasonable Ineffectiveness of the Deeper Layers (arXiv 2403.17887)",
    "LLM-Pruner": "LLM-Pruner: On the Structural Pruning of Large Language Models (arXiv 2305.11627)",
    "Wanda": "A Simple and Effective Pruning Approach for Large Language Models (arXiv 2306.11695)",
    "AlphaPruning": "AlphaPruning: Using Heavy-Tailed Self Regularization Theory for Improved Layer-wise Pruning of "
    "Large Language Models (arXiv 2410.10912)",
    "ShortGPT": "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect (arXiv 2403.03853)",
    "Bonsai": "Everybody Prune Now: Structured Pruning of LLMs with only Forward Passes (arXiv 2402.05406)",
    "LoRAPrune": "LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning (arXiv 2305.18403)",
    "Lottery Ticket": "The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks (arXiv 1803.03635)",
    "Late resetting": "Stabilizing the Lottery Ticket Hypothesis (arXiv 1903.01611)",
    "Ticket transfer": "One ticket to win them all: generalizing lottery ticket initializations across datasets and "
    "optimizers (arXiv 1906.02773)",
    "Deconstructing Lottery Tickets": "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask (arXiv "
    "1905.01067)",
}
"""Short name -> title of the papers whose claims are tested."""
_COLUMNS = [
    "paper", "table", "profile", "settings", "claim", "metric", "source", "verdict", "difference", "low", "high",
    "standardized", "p", "p_alike", "n", "over",
]  # fmt: skip


def tables_not_run(answers: Iterable[Answer]) -> list[Table]:
    """Return the tables without an answer, sorted by name."""
    answered = {answer.report.table.name for answer in answers}
    return [table_of(name) for name in tables() if name not in answered]


def whole_ledger(answers: Sequence[Answer], not_run: Iterable[Table]) -> pd.DataFrame:
    """Return a line per claim and answer; claims of tables without an answer have a line with an empty profile.

    Columns: those of `load.ledger`, the paper, and standardized: the mean difference by seed over the standard
    deviation of the differences (Cohen's d of paired values). The verdict of a claim without a measured seed is
    "not run".
    """
    known = {answer.report.table.name: answer.report.table for answer in answers}
    known |= {table.name: table for table in not_run}
    lines = [
        {
            "table": table.name,
            "claim": table.stated(claim),
            "metric": table.metric_of(claim),
            "source": claim.source,
            "n": 0,
        }
        for table in not_run
        for claim in table.claims
    ]
    found = pd.concat([part for part in (ledger(answers), pd.DataFrame(lines)) if len(part)], ignore_index=True)
    found = found.reindex(columns=_COLUMNS).fillna({"profile": "", "settings": "", "verdict": "not run"})
    found["paper"] = [paper_of(known[line.table], line.source) for line in found.itertuples()]
    return found.assign(standardized=standardize(found))


def paper_of(table: Table, source: str) -> str:
    """Return the paper of a claim, which the claim's source names if a table covers several papers."""
    if named := paper_named(source):
        return named
    return PRACTICE if table.source.startswith("LLM Pruning and Distillation in Practice") else MINITRON


def standardize(found: pd.DataFrame) -> pd.Series:
    """Return each difference over the standard deviation of the differences by seed, recovered from its t interval.

    NaN if the interval is over sequences.
    """
    numbers = found[["difference", "low", "high", "n"]].astype(float)
    half, n = (numbers["high"] - numbers["low"]) / 2, numbers["n"]
    spread = half * np.sqrt(n) / stats.t.ppf(0.975, (n - 1).where(n > 1))
    return (numbers["difference"] / spread).where(found["over"] == SEEDS)


def standing(found: pd.DataFrame) -> pd.DataFrame:
    """Return the number of claims by verdict, indexed by profile and paper, for papers with a measured claim.

    Counts all claims of the paper that have a table, at unmodified profiles only.
    """
    claims = found.drop_duplicates(["paper", "table", "claim"])["paper"].value_counts()
    plain = found[(found["profile"] != "") & (found["settings"] == "")]
    index = pd.MultiIndex.from_product([plain["profile"].unique(), PAPERS], names=["profile", "paper"])
    counts = plain.groupby(["profile", "paper", "verdict"]).size().unstack(fill_value=0)
    counts = counts.reindex(index=index, columns=VERDICTS, fill_value=0)
    measured = counts.drop(columns="not run").sum(axis="columns")
    counts, measured = counts[measured > 0], measured[measured > 0]
    return counts.assign(**{"not run": claims.loc[counts.index.get_level_values("paper")].to_numpy() - measured})
