"""Should the weight of the hidden loss be constant, or balance it with the logit loss? Minitron, section 3."""

import dataclasses
from pathlib import Path

from lit_prune.cli.table import main
from lit_prune.config import Profile
from lit_prune.config.table import Claim, Table

DYNAMIC, CONSTANTS = "alpha dynamic", (0.1, 1.0, 10.0)


def with_deep_teacher(table: Table, profile: Profile, store: Path) -> Table:
    """Return the table with a teacher deep enough to lose half of its layers."""
    from lit_prune.pruning.shapes import deep_teacher

    teacher, _ = deep_teacher(profile, least=12)
    return dataclasses.replace(table, base_overrides={**table.base_overrides, "teacher": teacher})


TABLE = Table(
    name="alpha_ablation",
    question="Is the weight of the intermediate states better a constant, or measured by the logit loss at every step?",
    source="Minitron (arXiv 2407.14679v2), section 3: better dynamic; no numbers",
    rows={
        f"alpha {alpha if isinstance(alpha, str) else format(alpha, 'g')}": {
            "distill.alpha": alpha, "distill.match_embedding": True, "distill.match_layer_output": ["last-2:last-2"],
        }
        for alpha in ("dynamic", *CONSTANTS)
    }
    | {"alpha 0": {"distill.alpha": 0.0}},
    baseline=DYNAMIC,
    claims=tuple(Claim(DYNAMIC, f"alpha {alpha:g}", "section 3") for alpha in CONSTANTS),
    metrics=("lm_loss", "parameters"),
    base_overrides={
        "prune.num_hidden_layers": 0.5, "prune.hidden_size": None, "prune.intermediate_size": None,
        "prune.num_attention_heads": None,
        "prune.layer_criterion": "perplexity",
    },
    build_for_profile=with_deep_teacher,
    caveats=(
        "L_logits + alpha (L_o(last-2:last-2) + L_emb), the best of Table 17, on a student of half the depth; alpha 0 "
        "is L_logits alone. The paper does not say which constants it tried.",
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
