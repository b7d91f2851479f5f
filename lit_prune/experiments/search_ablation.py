"""Does the ranking of candidate shapes before retraining persist? Minitron, Figure 9 and Tables 12 and 19."""

import dataclasses
from pathlib import Path
from typing import Any

from lit_prune.cli.table import main
from lit_prune.config import ConfigError, Profile
from lit_prune.config.table import ORDER, Claim, Table


def search_of(profile: Profile, store: Path) -> Any:
    """Return the shape search of the profile."""
    from lit_prune.pipeline.shape_search import Search
    from lit_prune.pruning.shapes import teacher_config

    if profile.search_space is None:
        raise ConfigError("search_space: must be a section of the profile, as in configs/quick.yaml, got none")
    distill = profile.cell.distill
    return Search(
        teacher_config(profile.cell), profile.search_space, distill.batch_size, distill.seq_len, store / "speeds"
    )


def with_candidates(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table over the shapes of the profile's search space within its bounds."""
    search = search_of(profile, store)
    found = search.found()
    if len(found) < 2:
        raise ConfigError(f"search_space: must have at least 2 shapes within its bounds, got {found[0].label!r} alone")
    pending = "" if search.measured else "shapes slower than search_space.speedup drop out; speeds are measured by run"
    return dataclasses.replace(
        table, rows={one.label: one.changes for one in found}, baseline=found[0].label, pending=pending
    )


TABLE = Table(
    name="search_ablation",
    question="Does the ranking of candidate shapes before retraining last, and when does it settle?",
    source="Minitron (arXiv 2407.14679v2), Figure 9; search space and candidates: Tables 12 and 19",
    rows={},
    baseline="",
    claims=(
        Claim("75 %", "0 %", "Figure 9, best practice 9: rankings change up to 300 of 400 steps", metric=ORDER),
        Claim("100 %", "75 %", "Figure 9: rankings are stable from there", metric=ORDER, tolerance=0.1),
    ),
    metrics=("lm_loss", "lm_loss_before", "parameters"),
    base_overrides={
        "evaluation.num_validations": 5,
        "prune.layer_criterion": "perplexity",
        "prune.num_key_value_heads": None,
    },
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=with_candidates,
    prepare=lambda profile, store: search_of(profile, store).measure(),
    caveats=(
        "A seed draws other calibration sequences and another order of the data.",
        "The paper prints its candidates' losses as curves without numbers: rankings change up to about 300 of 400 "
        "steps and are stable afterwards.",
        "The claims are about Kendall's tau between the order of the candidates after a share of the steps, at the "
        "first check that is not before it, and at the end, by seed.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
