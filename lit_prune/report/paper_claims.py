"""List the claims of the papers with the tables that test it, or the reason why none does. No torch."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

NO_TABLE = "no table yet"


def read() -> pd.DataFrame:
    """Return a line per claim of a paper: paper, place (in the paper), claim, tables (names) and why (may be empty).

    `why` is the reason why no table tests it, or why its table gives no verdict.
    """
    plain = yaml.safe_load(Path(__file__).with_name("paper_claims.yaml").read_text())
    lines = [{"paper": paper, **line} for paper, claims in plain.items() for line in claims]
    return pd.DataFrame(lines, columns=["paper", "place", "claim", "tables", "why"]).fillna({"why": ""})


def shown() -> pd.DataFrame:
    """Return the same lines as text for readers: the tables of each claim, or that no table tests it yet, and why."""
    found = read()
    answered = [", ".join(tables) or NO_TABLE for tables in found["tables"]]
    why = [f": {why}" if why else "" for why in found["why"]]
    return found[["claim", "paper", "place"]].assign(here=[a + b for a, b in zip(answered, why, strict=True)])
