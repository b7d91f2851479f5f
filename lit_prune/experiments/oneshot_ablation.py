"""Prune once, or prune and distil in turns? Minitron, Figures 7 and 8."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import ConfigError, Profile, sizes_of
from lit_prune.config.table import Changes, Claim, Table

DEPTH: Changes = {"prune.hidden_size": None, "prune.intermediate_size": None, "prune.num_attention_heads": None}
DEPTH_ONCE, DEPTH_IN_TURNS = "depth, at once", "depth, one by one"
AXES_ONCE, AXES_IN_TURNS = "axes, at once", "axes, hidden first"
DEPTH_MATCHED, AXES_MATCHED = f"{DEPTH_IN_TURNS}, one schedule", f"{AXES_IN_TURNS}, one schedule"
FIRST = 250 / 400
"""Share of the steps before the second pruning (Figure 8)."""


def with_turns(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with the layers and steps of each of its prunings at a profile."""
    from lit_prune.pruning.shapes import teacher_config

    student, steps = sizes_of(profile.cell.prune, table.name), profile.cell.distill.max_steps
    if student.num_parameters is not None or student.hidden_size is None:
        raise ConfigError(f"{table.name}: give prune.hidden_size a share or a count, and prune.num_parameters none")
    if student.intermediate_size is None and student.num_attention_heads is None:
        raise ConfigError(f"prune: must prune neurons or heads after the hidden channels in {table.name}, got neither")
    whole = teacher_config(profile.cell).num_hidden_layers
    keep, first = whole // 2, round(FIRST * steps)
    if whole - keep < 2:
        raise ConfigError(f"teacher: must have at least 3 layers for {table.name}, got {whole}")
    if not 0 < first < steps:
        raise ConfigError(f"distill.max_steps: must be at least 2 for {table.name}, got {steps}")
    turns, start = whole - keep, "distill.optimizer.schedule_start"
    one_by_one = {f"{'parent.' * turn}prune.num_hidden_layers": keep + turn for turn in range(turns)}
    starts = {f"{'parent.' * turn}{start}": (turns - 1 - turn) * steps for turn in range(turns)}
    rows: dict[str, Changes] = {
        DEPTH_ONCE: {"parent": None, **DEPTH, "prune.num_hidden_layers": keep,
        "distill.max_steps": (whole - keep) * steps},
        DEPTH_IN_TURNS: {**DEPTH, **one_by_one},
        AXES_ONCE: {"parent": None},
        AXES_IN_TURNS: {
            "parent.prune.hidden_size": student.hidden_size, "parent.prune.intermediate_size": None,
            "parent.prune.num_attention_heads": None,
            "parent.prune.num_hidden_layers": None, "parent.prune.num_key_value_heads": None,
            "parent.distill.max_steps": first, "prune.hidden_size": None, "distill.max_steps": steps - first,
        },
    }  # fmt: skip
    rows[DEPTH_MATCHED] = rows[DEPTH_IN_TURNS] | starts | {"distill.optimizer.schedule_steps": turns * steps}
    rows[AXES_MATCHED] = rows[AXES_IN_TURNS] | {
        f"parent.{start}": 0, start: first, "distill.optimizer.schedule_steps": steps,
    }  # fmt: skip
    return dataclasses.replace(table, rows=rows)


TABLE = Table(
    name="oneshot_ablation",
    question="Is it better to prune once than to prune and distil in turns, layer by layer or axis by axis?",
    source="Minitron (arXiv 2407.14679v2), Figures 7 and 8",
    rows={},
    baseline=DEPTH_ONCE,
    claims=(
        Claim(DEPTH_ONCE, DEPTH_IN_TURNS, "Figure 7: curves of accuracy without numbers"),
        Claim(AXES_ONCE, AXES_IN_TURNS, "Figure 8: curves of LM loss without numbers"),
        Claim(DEPTH_ONCE, DEPTH_MATCHED, "Figure 7, on one learning-rate schedule"),
        Claim(AXES_ONCE, AXES_MATCHED, "Figure 8, on one learning-rate schedule"),
    ),
    metrics=("lm_loss", "perplexity", "parameters"),
    base_overrides={"prune.layer_criterion": "influence"},
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=with_turns,
    profile_fields=("distill.max_steps", "prune.hidden_size"),
    caveats=(
        "Depth: half of the layers go, by influence (BI). One by one, each goes before a retraining of the profile's "
        "steps; at once, all go before one retraining of as many steps together.",
        "Axes: the channels, neurons and heads of the profile's student at once, or channels first and the rest after "
        "250 of 400 steps.",
        "Each retraining has its own warm-up and decay of the learning rate, which the paper does not describe. In the "
        "rows of one schedule the retrainings in turns have the schedule of that at once between them, so that pruning "
        "is all that differs, and the moments of AdamW, which begin anew after each pruning.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
