"""Prune once, or prune and distil in turns? Minitron, Figures 7 and 8."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import ConfigError, Profile
from lit_prune.config.table import UNPRUNED, Changes, Claim, Grid, Table

DEPTH: Changes = {"student.hidden": None, "student.neurons": None, "student.heads": None}
DEPTH_ONCE, DEPTH_IN_TURNS = "depth, at once", "depth, one by one"
AXES_ONCE, AXES_IN_TURNS = "axes, at once", "axes, hidden first"
FIRST = 250 / 400
"""Share of the steps before the second pruning (Figure 8)."""


def with_turns(table: Table, profile: Profile, store: Path) -> Table:
    """The table with the blocks and steps that each of its prunings has at a profile."""
    from lit_prune.pruning.shapes import teacher_config

    student, steps = profile.cell.student, profile.cell.distill.steps
    if student.parameters is not None or student.hidden is None:
        raise ConfigError(f"{table.name}: give student.hidden a share or a count, and student.parameters none")
    if student.neurons is None and student.heads is None:
        raise ConfigError(
            f"student: must prune neurons or heads after the hidden channels in {table.name}, got neither"
        )
    whole = teacher_config(profile.cell).num_hidden_layers
    keep, first = whole // 2, round(FIRST * steps)
    if whole - keep < 2:
        raise ConfigError(f"teacher: must have at least 3 layers for {table.name}, got {whole}")
    if not 0 < first < steps:
        raise ConfigError(f"distill.steps: must be at least 2 for {table.name}, got {steps}")
    one_by_one = {f"{'source.' * turn}student.layers": keep + turn for turn in range(whole - keep)}
    rows: dict[str, Changes] = {
        DEPTH_ONCE: {"source": None, **DEPTH, "student.layers": keep, "distill.steps": (whole - keep) * steps},
        DEPTH_IN_TURNS: {**DEPTH, **one_by_one},
        AXES_ONCE: {"source": None},
        AXES_IN_TURNS: {
            "source.student.hidden": student.hidden, "source.student.neurons": None, "source.student.heads": None,
            "source.student.layers": None, "source.student.kv_groups": None,
            "source.distill.steps": first, "student.hidden": None, "distill.steps": steps - first,
        },
    }  # fmt: skip

    def label(point: Changes) -> str:
        return next(
            row for row in (AXES_IN_TURNS, DEPTH_ONCE, DEPTH_IN_TURNS, AXES_ONCE) if rows[row].items() <= point.items()
        )

    return dataclasses.replace(table, grid=Grid(tuple(rows.values())), label=label)


TABLE = Table(
    name="oneshot_ablation",
    question="Is it better to prune once than to prune and distil in turns, block by block or axis by axis?",
    source="Minitron (arXiv 2407.14679v2), Figures 7 and 8",
    grid=Grid(()),
    label=str,
    baseline=DEPTH_ONCE,
    paper={},
    claims=(
        Claim(DEPTH_ONCE, DEPTH_IN_TURNS, "Figure 7: curves of accuracy without numbers"),
        Claim(AXES_ONCE, AXES_IN_TURNS, "Figure 8: curves of LM loss without numbers", family="Figure 8"),
    ),
    metrics=("lm_loss", "perplexity", "parameters"),
    references={"teacher": UNPRUNED},
    base={"student.block_criterion": "influence"},
    seeded=("seed", "importance.seed"),
    for_profile=with_turns,
    follows=("distill.steps", "student.hidden"),
    caveats=(
        "Depth: half of the blocks go, by influence (BI). One by one, each goes before a retraining of the profile's "
        "steps; at once, all go before one retraining of as many steps together.",
        "Axes: the channels, neurons and heads of the profile's student at once, or channels first and the rest after "
        "250 of 400 steps.",
        "Each retraining has its own warm-up and decay of the learning rate.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
