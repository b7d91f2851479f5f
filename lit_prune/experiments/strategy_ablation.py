"""Where should a small model come from? Minitron, Table 11; LLM Pruning and Distillation in Practice, Figure 6."""

import dataclasses
from pathlib import Path
from typing import Any

from lit_prune.cli.table import main
from lit_prune.config import Cell, ConfigError, Profile, Prune, sizes_of
from lit_prune.config.table import Changes, Claim, Table

SCRATCH: Changes = {"parent": None, "prune.init": "random"}
RANDOM: Changes = {"parent": None, "prune.width_criterion": "random", "prune.layer_criterion": "random"}
PRUNED: Changes = {"parent": None}
MIDDLE = 2 / 3
"""Share of the channels and neurons of the middle model, 8B of 15B; it has all heads."""
CHAINED, BY_MIDDLE = "chained + KD", "chained + KD from the middle model"
TWICE, EQUAL_FLOPS = "pruned + KD, 2 x", "pruned + CE, equal FLOPs"
CE: Changes = {"distill.ce_weight": 1.0, "distill.kd_weight": 0.0}
ROWS: dict[str, tuple[Changes, float]] = {
    "scratch + CE, 4 x": (SCRATCH | CE, 4),
    "scratch + CE, 1.5 x": (SCRATCH | CE, 1.5),
    "scratch + KD": (SCRATCH, 1),
    "randomly pruned + KD": (RANDOM, 1),
    "pruned + CE": (PRUNED | CE, 1),
    "pruned + CE, 1.5 x": (PRUNED | CE, 1.5),
    "pruned + KD": (PRUNED, 1),
    CHAINED: ({}, 1),
    TWICE: (PRUNED, 2),
}
"""Row -> changes, and steps as a multiple of the profile's; `by_way_of_middle` returns the changes of chained."""


def by_way_of_middle(student: Prune, config: Any) -> Changes:
    """Return the changes that prune to the same shape through the middle model.

    Raises:
        ConfigError: if the student keeps more of an axis than the middle model.
    """
    from lit_prune.models.shape import shape_of
    from lit_prune.pruning.prune import config_of
    from lit_prune.pruning.target import target

    cut = [name for name in ("hidden_size", "intermediate_size") if getattr(student, name) is not None]
    source: dict[str, Any] = dict.fromkeys(
        ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "num_parameters")
    ) | dict.fromkeys(cut, MIDDLE)
    middle = config_of(dataclasses.replace(student, **source), config)
    final, most = target(student, config), shape_of(middle)
    for name in cut:
        if getattr(final, name) > getattr(most, name):
            limit = f"{getattr(most, name)} for {CHAINED!r}, whose middle model has no more"
            raise ConfigError(f"prune.{name}: must keep at most {limit}, got {getattr(student, name)}")
    counts = {name: getattr(final, name) for name in (*cut, "num_hidden_layers", "num_attention_heads")}
    shares = {name: getattr(student, name) / MIDDLE for name in cut if isinstance(getattr(student, name), float)}
    sizes: dict[str, Any] = {"num_parameters": None} | counts
    if len(shares) == len(cut) and target(dataclasses.replace(student, **shares), middle) == final:
        sizes = shares  # shares that round to the same counts
    changes = {f"parent.prune.{name}": size for name, size in source.items()}
    return changes | {f"prune.{name}": size for name, size in sizes.items()}


def steps_of_equal_flops(cell: Cell) -> int:
    """Return the steps of cross-entropy alone that take as many FLOPs as the distillation of the cell."""
    from lit_prune.pipeline.work import flops_of_token

    cell = dataclasses.replace(cell, parent=None)
    alone = dataclasses.replace(cell, distill=dataclasses.replace(cell.distill, ce_weight=1.0, kd_weight=0.0))
    return round(cell.distill.max_steps * flops_of_token(cell) / flops_of_token(alone))


def kept_in_words(student: Prune, config: Any) -> str:
    """Return a sentence on the share of each axis that a student keeps, and the requested share if it differs."""
    from lit_prune.models.shape import shape_of
    from lit_prune.pruning.target import target

    final, whole = target(student, config), shape_of(config)
    axes = {
        "num_hidden_layers": "layers",
        "hidden_size": "channels",
        "intermediate_size": "neurons",
        "num_attention_heads": "heads",
    }
    parts = []
    for axis, name in axes.items():
        kept, of, requested = getattr(final, axis), getattr(whole, axis), getattr(student, axis)
        near = isinstance(requested, float) and kept != round(requested * of)
        parts.append(f"{kept} of {of} {name}" + (f" (the nearest allowed to {requested:g})" if near else ""))
    return f"Every student keeps {', '.join(parts)}; each KV group keeps as many heads."


def with_steps(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with the steps of its rows at a profile."""
    from lit_prune.pruning.shapes import teacher_config

    student, steps = sizes_of(profile.cell.prune, table.name), profile.cell.distill.max_steps
    config = teacher_config(profile.cell)
    chained = by_way_of_middle(student, config)
    rows = ROWS | {CHAINED: (chained, 1.0)}
    points = {row: {**changes, "distill.max_steps": round(times * steps)} for row, (changes, times) in rows.items()}
    points[EQUAL_FLOPS] = {**PRUNED, **CE, "distill.max_steps": steps_of_equal_flops(profile.cell)}
    points[BY_MIDDLE] = {**points[CHAINED], "distill.imitate": "parent", "parent.distill.imitate": "teacher"}
    about = kept_in_words(student, config)
    return dataclasses.replace(table, rows=points, caveats=(about, *table.caveats))


TABLE = Table(
    name="strategy_ablation",
    question="Where should a small model come from: random weights, pruning at random or by score, a middle model?",
    source="Minitron (arXiv 2407.14679v2), Table 11; LLM Pruning and Distillation in Practice (2408.11796v4), Figure 6",
    rows={},
    baseline="pruned + KD",
    metrics=("lm_loss", "perplexity", "train_flops"),
    claims=(
        Claim("pruned + CE, 1.5 x", "scratch + CE, 1.5 x", "Table 11: HellaSwag 50.85, 46.22; MMLU 24.57, 24.36"),
        Claim("pruned + KD", "pruned + CE, 1.5 x", "Table 11: HellaSwag 51.04, 50.85; MMLU 37.81, 24.57"),
        Claim("pruned + KD", "scratch + CE, 4 x", "Table 11: HellaSwag 51.04, 48.23; MMLU 37.81, 26.24"),
        Claim(CHAINED, "pruned + KD", "Table 11: HellaSwag 52.04, 51.04; MMLU 42.45, 37.81"),
        Claim("pruned + KD", EQUAL_FLOPS, "Table 11, compute by our count of FLOPs"),
        Claim(CHAINED, TWICE, "Table 11, with the steps of the middle model counted"),
        Claim(CHAINED, BY_MIDDLE, "Table 11, text: the largest model is the better teacher, no number"),
        Claim("pruned + KD", "scratch + KD", "In Practice, Figure 6"),
        Claim("pruned + KD", "randomly pruned + KD", "In Practice, Figure 6"),
        Claim("pruned + KD", "pruned + CE", "In Practice, Figure 6"),
    ),
    base_overrides={"prune.hidden_size": 0.5, "prune.intermediate_size": 0.375, "prune.num_attention_heads": 0.5},
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=with_steps,
    profile_fields=(
        "distill.max_steps",
        "prune.hidden_size",
        "prune.intermediate_size",
        "prune.num_attention_heads",
        "prune.num_parameters",
    ),
    caveats=(
        "Table 11 compares accuracy on HellaSwag and MMLU, in this order in its claims; here they are about LM loss.",
        "CE is cross-entropy alone. 1.5 x and 4 x as many steps stand for the paper's 150B and 400B tokens, where "
        "distillation had 100B: by its count 150B without a teacher are as much compute as 100B with one.",
        "The requested sizes are the paper's shares: 4B has half of the channels and heads and 3/8 of the neurons of "
        "15B; chained is by way of 8B, which has 2/3 of the channels and neurons. Every model imitates the teacher, "
        "but in the last row, where the student imitates the middle model.",
        "The middle model is retrained for as many steps again, which, as in the paper, are not charged to its row: "
        f"{TWICE} is the control with as many steps in all.",
        f"{EQUAL_FLOPS} has as many steps as the FLOPs of pruned + KD allow, its teacher's forward pass included.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
