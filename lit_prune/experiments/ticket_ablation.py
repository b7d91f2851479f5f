"""Does a network hold a subnetwork that trains as well from its first weights? The Lottery Ticket Hypothesis."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import ConfigError, Profile
from lit_prune.config.table import SMALLEST_EFFECT, WHOLE, Changes, Claim, Table

ROUNDS = 4
SPARSITY = round(1 - 0.8**ROUNDS, 4)
LATE = 0.05
"""Share of the steps to which weights are rewound late."""
FASTER = 100.0
"""Learning rate of SGD as a multiple of that of AdamW; the decay of the weights in a step is the same."""
DENSE, TICKET, REWOUND, ONE_SHOT, RANDOM = "dense", "IMP", "IMP, rewound to 5 %", "one shot", "random masks"
REINITIALISED, MOVED, BY_SGD = "reinitialised", "IMP of another text", "IMP by SGD"


def at_scale(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with trainings as long as that of the profile, from the same weights and in the same way."""
    distill, optimizer = profile.cell.distill, profile.cell.distill.optimizer
    late = round(LATE * distill.max_steps)
    if not late:
        raise ConfigError(f"distill.max_steps: must be at least 11 for {table.name}, got {distill.max_steps}")
    imp: Changes = {
        "prune.method": "imp", "prune.sparsity": SPARSITY, "prune.num_rounds": ROUNDS,
        "prune.max_steps": distill.max_steps, "prune.batch_size": distill.batch_size, "prune.optimizer": optimizer,
    }  # fmt: skip
    after = {
        "prune.rewind_step": late, "distill.max_steps": distill.max_steps - late,
        "distill.optimizer.schedule_start": late, "distill.optimizer.schedule_steps": distill.max_steps,
    }  # fmt: skip
    sgd = dataclasses.replace(
        optimizer, algorithm="sgd", lr=FASTER * optimizer.lr, min_lr=FASTER * optimizer.min_lr,
        weight_decay=optimizer.weight_decay / FASTER,
    )  # fmt: skip
    found = {f"parent.{path}": value for path, value in [*imp.items(), *profile.new_text]}
    rows: dict[str, Changes] = {
        DENSE: {**WHOLE, "prune.init": "random"},
        TICKET: imp,
        REWOUND: imp | after,
        ONE_SHOT: imp | {"prune.num_rounds": 1},
        RANDOM: imp | {"prune.control": "random_masks"},
        REINITIALISED: imp | {"prune.control": "reinitialised"},
        BY_SGD: imp | {"prune.optimizer": sgd},
    }
    alone = {row: {"parent": None, **changes} for row, changes in rows.items()}
    return dataclasses.replace(
        table,
        base_overrides=table.base_overrides | {"calibration.seq_len": distill.seq_len},
        rows=alone | {MOVED: {**WHOLE, **found, "parent.distill.max_steps": 0}},
    )


TABLE = Table(
    name="ticket_ablation",
    question="Does a network hold a sparse one that trains as well from its first weights, and what makes it so?",
    source="The Lottery Ticket Hypothesis (arXiv 1803.03635); late resetting (1903.01611); transfer (1906.02773); "
    "basins (1906.03291)",
    rows={},
    baseline=TICKET,
    claims=(
        Claim(
            TICKET, DENSE, "Lottery Ticket, abstract: accuracy comparable to the original network in as many steps",
            tolerance=SMALLEST_EFFECT, or_better=True,
        ),
        Claim(TICKET, REINITIALISED, "Lottery Ticket, abstract: the first weights make training effective"),
        Claim(TICKET, RANDOM, "Lottery Ticket, section 1: random sparse networks learn slower; a curve, no number"),
        Claim(TICKET, ONE_SHOT, "Lottery Ticket, section 1: iterative pruning finds smaller tickets; no number"),
        Claim(REWOUND, TICKET, "Late resetting, abstract: it finds tickets of deep networks; no number"),
        Claim(
            MOVED, TICKET, "Ticket transfer, abstract: often close to tickets of the same data",
            tolerance=SMALLEST_EFFECT, or_better=True,
        ),
        Claim(MOVED, RANDOM, "Ticket transfer, abstract: tickets generalise across data"),
        Claim(BY_SGD, RANDOM, "Ticket transfer, abstract: tickets generalise across optimizers"),
    ),
    metrics=("lm_loss", "perplexity", "nonzero_parameters"),
    base_overrides={
        "distill.ce_weight": 1.0, "distill.kd_weight": 0.0, "evaluation.basin.num_directions": 20,
    },
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=at_scale,
    profile_fields=(
        "distill.max_steps", "distill.optimizer.schedule_start", "distill.optimizer.schedule_steps", *WHOLE,
    ),
    different_texts=(("corpus", "parent.corpus"),),
    caveats=(
        "Sparsity is not compression: all rows have the parameters, memory and speed of the dense network.",
        f"Every row but the teacher starts from random weights, the same for all rows of a seed but {REINITIALISED}, "
        f"and is trained with cross-entropy for as many steps. {ROUNDS} rounds prune 20 % of the remaining weights of "
        "the linears in the layers each; their trainings are not charged to the rows.",
        f"{REWOUND}: the survivors get the weights after 5 % of the steps, from which the network is trained for the "
        "others. The papers name no such share for language models.",
        f"{MOVED}: the mask is found on the other text of the profile from the same weights. {BY_SGD}: the mask is "
        f"found by SGD with momentum at {FASTER:g} times the learning rate, and trained with AdamW.",
        "The papers train image classifiers to convergence and compare accuracies; here the LM loss after a short "
        "training is compared.",
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
