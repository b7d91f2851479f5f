"""Which single weights can be zeroed? Wanda (arXiv 2306.11695); AlphaPruning (arXiv 2410.10912)."""

from lit_prune.cli.table import main
from lit_prune.config.table import Changes, Claim, Table

ZEROED: dict[str, Changes] = {
    "50 %, wanda": {"prune.method": "wanda"},
    "50 %, magnitude": {"prune.method": "magnitude"},
    "50 %, alpha_pruning": {"prune.method": "alpha_pruning", "prune.sparsity": 0.5},
    "2:4, wanda": {"prune.method": "wanda", "prune.pattern": "2:4"},
    "2:4, magnitude": {"prune.method": "magnitude", "prune.pattern": "2:4"},
    "70 %, wanda": {"prune.method": "wanda", "prune.sparsity": 0.7},
    "70 %, magnitude": {"prune.method": "magnitude", "prune.sparsity": 0.7},
    "70 %, alpha_pruning": {"prune.method": "alpha_pruning", "prune.sparsity": 0.7},
}

TABLE = Table(
    name="unstructured_ablation",
    question="Which single weights can a model spare, in which pattern, and does retraining with their mask level it?",
    source="Wanda (arXiv 2306.11695), abstract; AlphaPruning (arXiv 2410.10912), abstract",
    rows={row: {**changes, "distill.max_steps": 0} for row, changes in ZEROED.items()}
    | {f"{row}, retrained": changes for row, changes in ZEROED.items()},
    baseline="50 %, wanda",
    paper={
        "50 %, wanda": {"perplexity": 6.42}, "50 %, magnitude": {"perplexity": 14.89},
        "2:4, wanda": {"perplexity": 11.02},
    },
    claims=(
        Claim("50 %, wanda", "50 %, magnitude", "Wanda, abstract; perplexity 6.42 against 14.89 of LLaMA-2-7B"),
        Claim("2:4, wanda", "2:4, magnitude", "Wanda, abstract"),
        Claim("50 %, wanda", "2:4, wanda", "Wanda, abstract; perplexity 6.42 against 11.02 of LLaMA-2-7B"),
        Claim("70 %, alpha_pruning", "70 %, wanda", "AlphaPruning, abstract"),
    ),
    metrics=("lm_loss", "perplexity"),
    seed_fields=("seed", "calibration.seed"),
    caveats=(
        "Sparsity is not compression: all rows have the parameters, memory and speed of the teacher.",
        "A seed draws other calibration sequences, and the order of the data where there is retraining. Magnitude "
        "needs no calibration: without retraining its loss is the same for every seed.",
        "The papers retrain with cross-entropy, if at all; here the student is distilled as the profile says, with the "
        "zeros kept. Their models have 7B parameters: compare the order of the rows, not their values.",
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
