"""Where should a small model come from? Minitron, Table 11; LLM Pruning and Distillation in Practice, Figure 6."""

import dataclasses
from pathlib import Path
from typing import Any

from lit_prune.cli.table import main
from lit_prune.config import ConfigError, Profile, Student
from lit_prune.config.table import UNPRUNED, Changes, Claim, Grid, Table

SCRATCH: Changes = {"source": None, "student.weights": "random"}
RANDOM: Changes = {"source": None, "student.criterion": "random", "student.block_criterion": "random"}
PRUNED: Changes = {"source": None}
MIDDLE = 2 / 3
"""Share of the channels and neurons of the middle model, 8B of 15B; it has all heads."""
CHAINED = "chained + KD"
CE: Changes = {"distill.w_clm": 1.0, "distill.w_logits": 0.0}
ROWS: dict[str, tuple[Changes, float]] = {
    "scratch + CE, 4 x": (SCRATCH | CE, 4),
    "scratch + CE, 1.5 x": (SCRATCH | CE, 1.5),
    "scratch + KD": (SCRATCH, 1),
    "randomly pruned + KD": (RANDOM, 1),
    "pruned + CE": (PRUNED | CE, 1),
    "pruned + CE, 1.5 x": (PRUNED | CE, 1.5),
    "pruned + KD": (PRUNED, 1),
    CHAINED: ({}, 1),
}
"""What each row changes, and its steps in those of the profile; `by_way_of_middle` has the changes of the last."""


def by_way_of_middle(student: Student, config: Any) -> Changes:
    """Return the changes that lead to the same shape by way of the middle model.

    Raises:
        ConfigError: if the student keeps more of an axis than the middle model.
    """
    from lit_prune.models.shape import shape_of
    from lit_prune.pruning.prune import config_of
    from lit_prune.pruning.target import target

    cut = [name for name in ("hidden", "neurons") if getattr(student, name) is not None]
    source: dict[str, Any] = dict.fromkeys(("layers", "heads", "kv_groups", "parameters")) | dict.fromkeys(cut, MIDDLE)
    middle = config_of(dataclasses.replace(student, **source), config)
    final, most = target(student, config), shape_of(middle)
    for name in cut:
        if getattr(final, name) > getattr(most, name):
            limit = f"{getattr(most, name)} for {CHAINED!r}, whose middle model has no more"
            raise ConfigError(f"student.{name}: must keep at most {limit}, got {getattr(student, name)}")
    counts = {name: getattr(final, name) for name in (*cut, "layers", "heads")}
    shares = {name: getattr(student, name) / MIDDLE for name in cut if isinstance(getattr(student, name), float)}
    sizes: dict[str, Any] = {"parameters": None} | counts
    if len(shares) == len(cut) and target(dataclasses.replace(student, **shares), middle) == final:
        sizes = shares  # shares of the middle model that round to the same counts
    changes = {f"source.student.{name}": size for name, size in source.items()}
    return changes | {f"student.{name}": size for name, size in sizes.items()}


def with_steps(table: Table, profile: Profile, store: Path) -> Table:
    """The table with as many steps as its rows have at a profile."""
    from lit_prune.models.shape import shape_of
    from lit_prune.pruning.shapes import teacher_config
    from lit_prune.pruning.target import target

    student, steps, config = profile.cell.student, profile.cell.distill.steps, teacher_config(profile.cell)
    final, whole = target(student, config), shape_of(config)
    rows = ROWS | {CHAINED: (by_way_of_middle(student, config), 1.0)}
    points = {row: {**changes, "distill.steps": round(times * steps)} for row, (changes, times) in rows.items()}
    axes = {"layers": "layers", "hidden": "channels", "neurons": "neurons", "heads": "heads"}
    kept = ", ".join(f"{getattr(final, a)} of {getattr(whole, a)} {name}" for a, name in axes.items())
    about = f"Every student keeps {kept}; each KV group keeps as many heads."
    nearest_last = sorted(points, key=lambda row: len(points[row]), reverse=True)

    def label(point: Changes) -> str:
        return next(row for row in nearest_last if points[row].items() <= point.items())

    grid = Grid(tuple(points.values()))
    return dataclasses.replace(table, grid=grid, label=label, caveats=(about, *table.caveats))


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
        Claim("pruned + KD", "scratch + KD", "In Practice, Figure 6", family="Figure 6"),
        Claim("pruned + KD", "randomly pruned + KD", "In Practice, Figure 6", family="Figure 6"),
        Claim("pruned + KD", "pruned + CE", "In Practice, Figure 6", family="Figure 6"),
    ),
    references={"teacher": UNPRUNED},
    base={"student.hidden": 0.5, "student.neurons": 0.375, "student.heads": 0.5},
    seeded=("seed", "importance.seed"),
    for_profile=with_steps,
    follows=("distill.steps", "student.hidden", "student.neurons", "student.heads", "student.parameters"),
    caveats=(
        "Table 11 compares accuracy on HellaSwag and MMLU, in this order in its claims; here they are about LM loss.",
        "CE is cross-entropy alone. 1.5 x and 4 x as many steps stand for the paper's 150B and 400B tokens, where "
        "distillation had 100B: by its count 150B without a teacher are as much compute as 100B with one.",
        "The sizes asked for are the paper's shares: 4B has half of the channels and heads and 3/8 of the neurons of "
        "15B; chained is by way of 8B, which has 2/3 of the channels and neurons. Every model imitates the teacher.",
        "The middle model is retrained for as many steps again, which, as in the paper, are not charged to its row.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
