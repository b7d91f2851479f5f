"""Does adding the difference to pruned heads back to kept ones help? Minitron, section 2.3."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Profile, sizes_of
from lit_prune.config.table import Claim, Table

ROWS = {"off": "off", "as printed": "paper", "opposite sign": "reversed_sign"}

KEPT = 2 / 3
"""Share of the query heads to keep if the profile keeps all: 32 of 48 in Minitron, Table 1."""


def with_fewer_heads(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with pruned heads, also at a profile that prunes none."""
    if sizes_of(profile.cell.prune, table.name).num_attention_heads is not None:
        return table
    return dataclasses.replace(table, base_overrides={**table.base_overrides, "prune.num_attention_heads": KEPT})


TABLE = Table(
    name="residual_ablation",
    question="Does adding the difference to pruned heads back to the weakest kept ones help?",
    source="Minitron (arXiv 2407.14679v2), section 2.3",
    rows={row: {"prune.head_merging": value} for row, value in ROWS.items()},
    baseline="off",
    claims=(Claim("as printed", "off", "section 2.3: a boost to accuracy"),),
    metrics=("lm_loss", "lm_loss_before"),
    base_overrides={"prune.hidden_size": None, "prune.intermediate_size": None, "evaluation.num_validations": 2},
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=with_fewer_heads,
    caveats=(
        "The paper does not say whether the boost is before or after retraining; the claim is about the latter.",
        "A seed draws other calibration sequences and another order of the data.",
        "The paper prints head_i + (head_i - head_j) and no number; LaCo, which it likens it to, has the opposite "
        "sign, with which a kept head takes the place of the pruned one. Only query weights are merged, within KV "
        "groups.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
