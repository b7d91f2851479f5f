"""Which layers can a model spare? Minitron, Table 10; LLM Pruning and Distillation in Practice, Figure 8."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Profile
from lit_prune.config.table import ACCURACY, Changes, Claim, Table

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


def without_spans_of_one(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table without contiguous PPL if a single layer is dropped, as PPL then drops the same one."""
    from lit_prune.pruning.shapes import teacher_config

    whole = teacher_config(profile.cell).num_hidden_layers
    span = METHODS["PPL, contiguous"].items()
    rows = {
        row: changes
        for row, changes in table.rows.items()
        if not (span <= changes.items() and whole - round(changes["prune.num_hidden_layers"] * whole) == 1)
    }
    return dataclasses.replace(table, rows=rows)


TABLE = Table(
    name="depth_ablation",
    question="Which layers can a model spare: the least important one by one, a contiguous span, the last ones?",
    source="Minitron (arXiv 2407.14679v2), Table 10; LLM Pruning and Distillation in Practice (2408.11796v4), Figure 8",
    rows={
        f"{name}, {method}": {"prune.num_hidden_layers": keep, **changes, "distill.max_steps": 0}
        for keep, name in KEEP.items()
        for method, changes in METHODS.items()
    }
    | {f"1/2, {method}, retrained": {"prune.num_hidden_layers": 0.5, **METHODS[method]} for method in RETRAINED},
    baseline="1/2, PPL, retrained",
    paper={"1/2, PPL, retrained": {"lm_loss": 2.155}, "1/2, BI, retrained": {"lm_loss": 2.177}},
    claims=(
        Claim("1/2, PPL, retrained", "1/2, BI, retrained", "Minitron, Table 10"),
        Claim("1/2, PPL", "1/2, PPL, contiguous", "In Practice, Figure 8: the dashed line, LM loss only"),
    ),
    accuracy_claims=(
        Claim("1/2, PPL, contiguous", "1/2, PPL", "In Practice, Figure 9: Winogrande 0.595, 0.5", metric=ACCURACY),
        Claim(
            "1/2, PPL, contiguous, retrained",
            "1/2, PPL, retrained",
            "In Practice, Figure 9, retrained",
            metric=ACCURACY,
        ),
    ),
    metrics=("lm_loss", "parameters"),
    base_overrides={"prune.hidden_size": None, "prune.intermediate_size": None, "prune.num_attention_heads": None},
    seed_fields=("seed", "calibration.seed"),
    build_for_profile=without_spans_of_one,
    caveats=(
        "A seed draws other calibration sequences, and the order of the data where there is retraining; where every "
        "draw chooses the same layers, the loss without retraining is the same for every seed.",
        "In Practice chose contiguous layers in spite of their higher LM loss, for their accuracy on Winogrande (0.595 "
        "against 0.5). This table measures accuracy where evaluation.tasks asks for it, in tasks that are read from "
        "files, of which Winogrande is none.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
