"""Every claim of both papers, and the tables that ask it: what is answered here, and what is not. No torch."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

NO_TABLE = "no table yet"


def read() -> pd.DataFrame:
    """Return one line a claim of a paper: paper, place (where it stands), claim, tables (names) and why (may be empty).

    `why` is the reason why no table asks it, or why the one that shows it has no verdict.
    """
    plain = yaml.safe_load(Path(__file__).with_name("paper_claims.yaml").read_text())
    lines = [{"paper": paper, **line} for paper, claims in plain.items() for line in claims]
    return pd.DataFrame(lines, columns=["paper", "place", "claim", "tables", "why"]).fillna({"why": ""})


def shown() -> pd.DataFrame:
    """Return the same as text, with what a reader finds of each claim: its tables, or that there is none yet, and
    why."""
    found = read()
    answered = [", ".join(tables) or NO_TABLE for tables in found["tables"]]
    why = [f": {why}" if why else "" for why in found["why"]]
    return found[["claim", "paper", "place"]].assign(here=[a + b for a, b in zip(answered, why, strict=True)])
