"""Which blocks can a model spare? Minitron, Table 10; LLM Pruning and Distillation in Practice, Figure 8."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Profile
from lit_prune.config.table import UNPRUNED, Changes, Claim, Grid, Table

METHODS: dict[str, Changes] = {
    "PPL": {"prune.layer_criterion": "perplexity", "prune.layer_selection": "lowest_score"},
    "BI": {"prune.layer_criterion": "influence", "prune.layer_selection": "lowest_score"},
    "PPL, contiguous": {"prune.layer_criterion": "perplexity", "prune.layer_selection": "contiguous"},
    "angular, contiguous": {"prune.layer_criterion": "angular", "prune.layer_selection": "contiguous"},
    "random": {"prune.layer_criterion": "random", "prune.layer_selection": "lowest_score"},
    "tail": {"prune.layer_selection": "last"},
    "tail but last": {"prune.layer_selection": "last_but_final"},
}
KEEP = {0.84: "5/6", 0.67: "2/3", 0.5: "1/2"}
RETRAINED = ("PPL", "BI", "PPL, contiguous", "angular, contiguous", "tail but last")


def label(point: Changes) -> str:
    """Blocks kept and how they were chosen."""
    method = next(name for name, changes in METHODS.items() if changes.items() <= point.items())
    row = f"{KEEP[point['prune.num_hidden_layers']]}, {method}"
    return row if "distill.max_steps" in point else f"{row}, retrained"


def without_spans_of_one(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table without contiguous PPL where a single layer goes: there it chooses the same one as PPL."""
    from lit_prune.pruning.shapes import teacher_config

    whole = teacher_config(profile.cell).num_hidden_layers
    span = METHODS["PPL, contiguous"].items()
    points = (
        p for p in table.grid if not (span <= p.items() and whole - round(p["prune.num_hidden_layers"] * whole) == 1)
    )
    return dataclasses.replace(table, grid=Grid(tuple(points)))


TABLE = Table(
    name="depth_ablation",
    question="Which blocks can a model spare: the least important one by one, a contiguous span, the last ones?",
    source="Minitron (arXiv 2407.14679v2), Table 10; LLM Pruning and Distillation in Practice (2408.11796v4), Figure 8",
    grid=Grid(
        tuple({"prune.num_hidden_layers": keep, **m, "distill.max_steps": 0} for keep in KEEP for m in METHODS.values())
        + tuple({"prune.num_hidden_layers": 0.5, **METHODS[name]} for name in RETRAINED)
    ),
    label=label,
    baseline="1/2, PPL, retrained",
    paper={"1/2, PPL, retrained": {"lm_loss": 2.155}, "1/2, BI, retrained": {"lm_loss": 2.177}},
    claims=(
        Claim("1/2, PPL, retrained", "1/2, BI, retrained", "Minitron, Table 10"),
        Claim("1/2, PPL", "1/2, PPL, contiguous", "In Practice, Figure 8: the dashed line, LM loss only"),
    ),
    metrics=("lm_loss", "parameters"),
    reference_rows={"teacher": UNPRUNED},
    base_overrides={"prune.hidden_size": None, "prune.intermediate_size": None, "prune.num_attention_heads": None},
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=without_spans_of_one,
    caveats=(
        "A seed draws other calibration sequences, and the order of the data where there is retraining; where every "
        "draw chooses the same blocks, the loss without retraining is the same for every seed.",
        "In Practice chose contiguous blocks in spite of their higher LM loss, for their accuracy on Winogrande (0.595 "
        "against 0.5), which this table does not measure.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
