"""Explain verdicts on claims that do not come from a t-test over seeds. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_prune.config.table import LEVEL, SMALLEST_EFFECT

if TYPE_CHECKING:
    from lit_prune.report import Report


def about(report: Report) -> list[str]:
    """Return sentences on the verdicts of a report that do not come from a t-test over seeds."""
    verdicts, found = report.verdicts, []
    untested = verdicts["p"].isna() & (verdicts["n"] > 1) & (verdicts["verdict"] == "undecided")
    if (verdicts["verdict"] == "identical").any():
        found.append("identical: both rows give the same value in every seed, so that the claim is not put to a test.")
    if (verdicts["verdict"] == "negligible").any():
        found.append(
            "negligible: two one-sided tests show the difference to be smaller than the smallest one of interest, "
            f"{SMALLEST_EFFECT:g} nats per token of a loss, or {100 * SMALLEST_EFFECT:g} % of another metric."
        )
    if ((verdicts["verdict"] == "undecided") & (verdicts["p"] < LEVEL)).any():
        found.append(
            "undecided with a low p: there is a difference, but it may be smaller than the smallest one of interest."
        )
    if (verdicts["over"] == "sequences").any():
        found.append(
            "n in seq.: seeds change neither row, so that the text is the only noise; interval and p are of a paired "
            "bootstrap over the validation sequences."
        )
    if untested.any():
        found.append(
            "A difference that is the same for every seed is tested over validation sequences. These cells are from "
            "before their losses by sequence were kept: the claim is undecided until they are computed again."
        )
    return found
