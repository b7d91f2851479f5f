"""How good is an untrained network with the right mask? Deconstructing Lottery Tickets; edge-popup."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Profile
from lit_prune.config.table import Changes, Claim, Table

UNTRAINED, RANDOM, LARGE, SAME = "untrained, dense", "random mask", "large final", "large final, same sign"
SIGNED, LEARNED = "large final, same sign, signed constants", "edge-popup"
NO_ZEROS = 1e-12
"""Sparsity that rounds to no zero."""


def at_scale(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with masks that are found in as many steps, and in the same way, as the profile trains."""
    distill = profile.cell.distill
    how: Changes = {"prune.max_steps": distill.max_steps, "prune.batch_size": distill.batch_size}
    rule = {**how, "prune.method": "supermask", "prune.optimizer": distill.optimizer}
    control = {"prune.method": "imp", "prune.start": "random_linears", "prune.control": "random_masks"}
    rows: dict[str, Changes] = {
        UNTRAINED: {**control, "prune.sparsity": NO_ZEROS},
        RANDOM: {**control, "prune.sparsity": 0.5},
        LARGE: {**rule, "prune.rule": "large_final"},
        SAME: {**rule, "prune.rule": "large_final_same_sign"},
        SIGNED: {**rule, "prune.rule": "large_final_same_sign", "prune.values": "signed_constant"},
        LEARNED: {**how, "prune.method": "edge_popup"},
    }
    return dataclasses.replace(
        table,
        base_overrides=table.base_overrides | {"calibration.seq_len": distill.seq_len},
        rows={row: {**changes, "distill.max_steps": 0} for row, changes in rows.items()},
    )


TABLE = Table(
    name="supermask_ablation",
    question="How far does a mask alone take a network whose linears are random, and which mask?",
    source="Deconstructing Lottery Tickets (arXiv 1905.01067); edge-popup (arXiv 1911.13299)",
    rows={},
    baseline=SAME,
    claims=(
        Claim(SAME, UNTRAINED, "Deconstructing Lottery Tickets, abstract: far better than chance"),
        Claim(SAME, RANDOM, "Deconstructing Lottery Tickets, abstract"),
        Claim(LARGE, RANDOM, "Deconstructing Lottery Tickets, abstract: masking behaves like training"),
        Claim(SAME, LARGE, "Deconstructing Lottery Tickets, section 5: it masks changed signs; no number"),
        Claim(SIGNED, SAME, "Deconstructing Lottery Tickets, section 5: constants of the same sign; no number"),
        Claim(LEARNED, SAME, "Deconstructing Lottery Tickets, section 5.1: learned masks; no number"),
    ),
    metrics=("lm_loss", "perplexity", "nonzero_parameters"),
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=at_scale,
    profile_fields=("distill.max_steps",),
    caveats=(
        "Sparsity is not compression: all rows have the parameters, memory and speed of the teacher.",
        "Only the linears in the layers are random and masked, half of their weights in each matrix. Embeddings, norms "
        "and output head are those of the teacher, so a network without a trained linear is far better than chance; "
        "the papers leave no weight trained.",
        f"A seed draws other random weights. {LEARNED} draws signed Kaiming constants, which are larger than the "
        "weights with which transformers initialises models and the other rows start.",
        "No row is retrained; the teacher, trained and dense, is the reference. The papers classify images and report "
        "accuracies: 86 % on MNIST and 41 % on CIFAR-10 for masks by rule.",
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
