"""Which aggregation of activations prunes widths best? Minitron, Table 13 and Figure 5."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Profile
from lit_prune.config.table import Changes, Claim, Table

SYMBOLS = {"L2": "l2", "mean": "mean", "var": "var"}
BEST, SECOND = "(L2, mean)", "(mean, mean)"
AGGREGATIONS: dict[str, Changes] = {
    f"({batch}, {seq})": {"prune.batch_aggregation": SYMBOLS[batch], "prune.seq_aggregation": SYMBOLS[seq]}
    for batch in SYMBOLS
    for seq in SYMBOLS
}
"""Aggregations (batch, sequence) of each row of the paper."""


def with_second_text(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with the profile's second corpus."""
    return dataclasses.replace(table, base_overrides={"evaluation.second_corpus": profile.second_corpus})


PAPER = {
    "(L2, L2)": (8.73, 8.37),
    BEST: (7.18, 7.23),
    "(L2, var)": (8.18, 8.61),
    "(mean, L2)": (8.41, 7.84),
    SECOND: (7.21, 6.89),
    "(mean, var)": (7.94, 8.29),
    "(var, L2)": (9.01, 9.30),
    "(var, mean)": (8.34, 8.72),
    "(var, var)": (10.55, 11.14),
}

TABLE = Table(
    name="aggregation_ablation",
    question="Which aggregation of activations over batch and sequence picks the units a model can spare?",
    source="Minitron (arXiv 2407.14679v2), Table 13; after retraining: Figure 5",
    rows={row: changes | {"distill.max_steps": 0} for row, changes in AGGREGATIONS.items()}
    | {f"{row}, retrained": AGGREGATIONS[row] for row in (BEST, "(L2, L2)")},
    baseline=BEST,
    paper={row: {"lm_loss": ours, "second_lm_loss": second} for row, (ours, second) in PAPER.items()},
    claims=(
        *(Claim(BEST, row, "Table 13") for row in PAPER if row != BEST),
        *(Claim(SECOND, row, "Table 13: the best but one of nine") for row in PAPER if row not in (BEST, SECOND)),
        Claim(SECOND, BEST, "Table 13, WikiText2 column", metric="second_lm_loss"),
        Claim(f"{BEST}, retrained", "(L2, L2), retrained", "Figure 5, after 400 steps"),
    ),
    metrics=("lm_loss", "second_lm_loss"),
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=with_second_text,
    different_texts=(("corpus", "evaluation.second_corpus"),),
    caveats=(
        "A seed draws other calibration sequences, and the order of the data where there is retraining.",
        "The paper's second column is WikiText2, which its text calls a perplexity and its header a loss; ours is the "
        "LM loss on the profile's second text.",
        "The paper prunes 15B to 8B: compare the order of the rows, not their values.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
