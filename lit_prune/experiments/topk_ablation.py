"""Are the teacher's most likely tokens enough to distil from? Minitron, appendix A.3."""

from lit_prune.cli.table import main
from lit_prune.config.table import SMALLEST_EFFECT, Claim, Table

ALL = "all tokens"


TABLE = Table(
    name="topk_ablation",
    question="Is it enough to compare the tokens that the teacher finds likeliest, and does it help?",
    source="Minitron (arXiv 2407.14679v2), appendix A.3: K up to 100 loses, more neither loses nor gains; no numbers",
    rows={ALL: {"distill.top_k": None}} | {f"top {k}": {"distill.top_k": k} for k in (1000, 100, 10, 2)},
    baseline=ALL,
    claims=(
        Claim(ALL, "top 2", "appendix A.3: K <= 100"),
        Claim(ALL, "top 10", "appendix A.3: K <= 100"),
        Claim(ALL, "top 100", "appendix A.3: K <= 100"),
        Claim(ALL, "top 1000", "appendix A.3: larger K", tolerance=SMALLEST_EFFECT),
    ),
    caveats=(
        "K is a number of tokens, as in the paper, whose vocabulary has 256,000. Of the 2,048 of the teacher that "
        "ships, 1000 are half, and the paper's 100 would be less than one by share: it has no row here, since of one "
        "token alone both are certain. What counts is the probability that K tokens leave out, which depends on "
        "the teacher more than on its vocabulary.",
        "Both distributions are renormalised over the K tokens; the paper does not say whether its are.",
    ),
)

if __name__ == "__main__":
    raise SystemExit(main(TABLE))
