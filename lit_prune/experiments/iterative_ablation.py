"""Does it help to estimate importance again between rounds of pruning? Minitron, Table 14."""

from lit_prune.cli.table import main
from lit_prune.config.table import SMALLEST_EFFECT, Claim, Table

TABLE = Table(
    name="iterative_ablation",
    question="Does estimating importance again between rounds of pruning the hidden channels help?",
    source="Minitron (arXiv 2407.14679v2), Table 14",
    rows={f"T = {number}": {"prune.num_iterations": number} for number in (1, 2, 4)},
    baseline="T = 1",
    paper={
        "T = 1": {"lm_loss_before": 5.43, "lm_loss": 1.92},
        "T = 2": {"lm_loss_before": 5.55, "lm_loss": 1.92},
        "T = 4": {"lm_loss_before": 5.24, "lm_loss": 1.92},
    },
    claims=(
        Claim("T = 4", "T = 1", "Table 14, before retraining", metric="lm_loss_before"),
        Claim("T = 1", "T = 2", "Table 14, before retraining", metric="lm_loss_before"),
        Claim("T = 1", "T = 2", "Table 14: the same to the digits it prints", tolerance=SMALLEST_EFFECT),
        Claim("T = 1", "T = 4", "Table 14: the same to the digits it prints", tolerance=SMALLEST_EFFECT),
    ),
    metrics=("lm_loss", "lm_loss_before"),
    base_overrides={
        "prune.intermediate_size": None,
        "prune.num_attention_heads": None,
        "evaluation.num_validations": 4,
    },
    seed_fields=("seed", "calibration.seed"),
    caveats=(
        "A seed draws other calibration sequences and another order of the data.",
        "The paper prunes 6,144 hidden channels to 4,096; here the share is the profile's.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
