"""Where should a small model come from? Minitron, Table 11; LLM Pruning and Distillation in Practice, Figure 6."""

import dataclasses
from pathlib import Path

from lit_prune.cli import main
from lit_prune.config import Profile
from lit_prune.grid import UNPRUNED, Changes, Claim, Grid, Table

SCRATCH: Changes = {"source": None, "student.weights": "random"}
RANDOM: Changes = {"source": None, "student.criterion": "random", "student.block_criterion": "random"}
PRUNED: Changes = {"source": None}
CHAINED: Changes = {
    "source.student.hidden": 2 / 3, "source.student.neurons": 2 / 3, "source.student.heads": None,
    "student.hidden": 0.75, "student.neurons": 0.5625,
}  # fmt: skip
CE: Changes = {"distill.w_clm": 1.0, "distill.w_logits": 0.0}
ROWS: dict[str, tuple[Changes, float]] = {
    "scratch + CE, 4 x": (SCRATCH | CE, 4),
    "scratch + CE, 1.5 x": (SCRATCH | CE, 1.5),
    "scratch + KD": (SCRATCH, 1),
    "randomly pruned + KD": (RANDOM, 1),
    "pruned + CE": (PRUNED | CE, 1),
    "pruned + CE, 1.5 x": (PRUNED | CE, 1.5),
    "pruned + KD": (PRUNED, 1),
    "chained + KD": (CHAINED, 1),
}
"""What each row changes, and its steps in those of the profile."""


def with_steps(table: Table, profile: Profile, store: Path) -> Table:
    """The table with as many steps as its rows have at a profile."""
    steps = profile.cell.distill.steps
    points = {row: {**changes, "distill.steps": round(times * steps)} for row, (changes, times) in ROWS.items()}
    nearest_last = sorted(points, key=lambda row: len(points[row]), reverse=True)

    def label(point: Changes) -> str:
        return next(row for row in nearest_last if points[row].items() <= point.items())

    return dataclasses.replace(table, grid=Grid(tuple(points.values())), label=label)


TABLE = Table(
    name="strategy_ablation",
    question="Where should a small model come from: random weights, pruning at random or by score, a middle model?",
    source="Minitron (arXiv 2407.14679v2), Table 11; LLM Pruning and Distillation in Practice (2408.11796v4), Figure 6",
    grid=Grid(()),
    label=str,
    baseline="pruned + KD",
    paper={},
    metrics=("lm_loss", "perplexity", "train_flops"),
    claims=(
        Claim("pruned + CE, 1.5 x", "scratch + CE, 1.5 x", "Table 11: HellaSwag 50.85, 46.22; MMLU 24.57, 24.36"),
        Claim("pruned + KD", "pruned + CE, 1.5 x", "Table 11: HellaSwag 51.04, 50.85; MMLU 37.81, 24.57"),
        Claim("pruned + KD", "scratch + CE, 4 x", "Table 11: HellaSwag 51.04, 48.23; MMLU 37.81, 26.24"),
        Claim("chained + KD", "pruned + KD", "Table 11: HellaSwag 52.04, 51.04; MMLU 42.45, 37.81"),
        Claim("pruned + KD", "scratch + KD", "In Practice, Figure 6"),
        Claim("pruned + KD", "randomly pruned + KD", "In Practice, Figure 6"),
        Claim("pruned + KD", "pruned + CE", "In Practice, Figure 6"),
    ),
    references={"teacher": UNPRUNED},
    base={"student.hidden": 0.5, "student.neurons": 0.375, "student.heads": 0.5},
    seeded=("seed", "importance.seed"),
    for_profile=with_steps,
    follows=("distill.steps",),
    caveats=(
        "Table 11 compares accuracy on HellaSwag and MMLU, in this order in its claims; here they are about LM loss.",
        "CE is cross-entropy alone. 1.5 x and 4 x as many steps stand for the paper's 150B and 400B tokens, where "
        "distillation had 100B: by its count 150B without a teacher are as much compute as 100B with one.",
        "Sizes are the paper's shares: 4B has half of the channels and heads and 3/8 of the neurons of 15B; chained is "
        "by way of 8B, which has 2/3 of the channels and neurons. Every model imitates the teacher.",
        "The middle model is retrained for as many steps again, which, as in the paper, are not charged to its row.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
