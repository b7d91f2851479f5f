"""At which temperature do logits distil best? Minitron, appendix A.3."""

from lit_prune.cli.table import main
from lit_prune.config.table import Claim, Table

TEMPERATURES = (0.1, 0.5, 1.0, 3.0)


TABLE = Table(
    name="temperature_ablation",
    question="At which temperature do a teacher's logits distil best?",
    source="Minitron (arXiv 2407.14679v2), appendix A.3: tau of 0.1, 0.5, 1 and 3, of which 1 is best; no numbers",
    rows={
        f"tau = {tau:g}": {"distill.temperature": tau, "distill.scale_by_temperature_squared": False}
        for tau in TEMPERATURES
    }
    | {"tau = 3, times tau^2": {"distill.temperature": 3.0, "distill.scale_by_temperature_squared": True}},
    baseline="tau = 1",
    claims=tuple(Claim("tau = 1", f"tau = {tau:g}", "appendix A.3") for tau in TEMPERATURES if tau != 1),
    caveats=(
        "The paper prints no loss of any temperature, and does not say whether its loss is multiplied by tau squared; "
        "here it is not, but in the row that says so. AdamW does not see the factor, except where it decides whether "
        "the gradient is clipped.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
