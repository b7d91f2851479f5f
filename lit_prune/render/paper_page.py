"""Render the page of all tables: the claims of the papers, then every table with figures, notes and cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from lit_prune.config.table import Table
from lit_prune.progress import Progress
from lit_prune.render import catalog, figures, page, svg, wording
from lit_prune.render.answer import answer_line
from lit_prune.render.evaluations import all_scores
from lit_prune.render.notes import as_html
from lit_prune.report import Report, costs, paper_claims
from lit_prune.report.claims_summary import PAPERS, VERDICTS, standing
from lit_prune.report.command import extra_flags
from lit_prune.report.load import Answer
from lit_prune.store.address import digest


def render(
    answers: Sequence[Answer], ledger: pd.DataFrame, not_run: Sequence[Table], scores: pd.DataFrame, digest: str,
    progress: Progress,
) -> str:  # fmt: skip
    """Return the page as one self-contained HTML document with `digest` in its head; `progress` counts the answers.

    `scores` are the evaluation results, from `report.evaluations.read`.
    """
    sections = []
    for place, answer in enumerate(answers):
        progress.at(place, f"drawing {answer.report.table.name} at {answer.report.profile}")
        sections.append(_section(answer, place))
    scales = _standing(ledger)
    titles = {paper: title for paper, title in PAPERS.items() if any(paper in scale["papers"] for scale in scales)}
    template = page.environment(Path(__file__).parent).get_template("paper_page.html.j2")
    return template.render(
        standing=scales, verdicts=VERDICTS, marks=wording.VERDICTS, titles=titles, sections_of=sections,
        not_run=list(map(_not_run, not_run)), index=_index(answers, ledger), panels=figures.PANELS, digest=digest,
        benchmarks=None if scores.empty else all_scores(scores), keys=_keys(sections),
        paper_claims=paper_claims.shown(), costs=costs.shown(costs.read()),
    )  # fmt: skip


def anchor(table: str, profile: str, settings: str = "") -> str:
    """Return the name of a table at a profile, in the page and among files; of the table alone if the profile is empty.

    If the settings do not fit in the name, being long or different only in a sign, it ends with their digest.
    """
    label = f"{table} {profile} {settings}".strip()
    name = re.sub(r"[^a-zA-Z0-9_]+", "-", label).strip("-")
    return name if name.replace("-", " ") == label else f"{name[:80]}-{digest([label])[:6]}"


def anchor_of(report: Report) -> str:
    """Return the anchor of a report."""
    return anchor(report.table.name, report.profile, extra_flags(report))


def _standing(ledger: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each profile its name, a sentence about all claims, and the counts of each paper by verdict."""
    claims = len(ledger.drop_duplicates(["paper", "table", "claim"]))
    return [
        {
            "profile": profile, "sentence": _tally(found.sum().drop("not run").to_dict(), claims),
            "papers": {paper: line.to_dict() for (_, paper), line in found.iterrows()},
        }
        for profile, found in standing(ledger).groupby(level=0, sort=False)
    ]  # fmt: skip


_VERBS = {
    "fails": ("fails", "fail"), "negligible": ("is about a negligible difference", "are about negligible differences"),
    "identical": ("is about identical students", "are about identical students"),
    "undecided": ("is undecided", "are undecided"),
}  # fmt: skip
"""Verdict -> what is said of one claim and of several."""


def _tally(counts: dict[str, int], claims: int) -> tuple[str, str]:
    """Return how many of the measured claims hold, and the other counts by verdict that are not 0."""
    measured, holds = sum(counts.values()), counts["holds"]
    others = [f"{counts[verdict]} {verbs[counts[verdict] > 1]}" for verdict, verbs in _VERBS.items() if counts[verdict]]
    left = claims - measured
    ends = [f"{left} of {claims} claims {'was' if left == 1 else 'were'} not run"] if left else []
    return f"{holds} of {measured} measured claims hold ({round(100 * holds / measured)} %)", ", ".join(others + ends)


def _not_run(table: Table) -> dict[str, Any]:
    claims = [f"{wording.relation(table, claim)} ({claim.source})" for claim in table.claims]
    return {"table": table, "claims": claims}


def _index(answers: Iterable[Answer], ledger: pd.DataFrame) -> list[dict[str, Any]]:
    """Return for each answer its name, profile, question, link, and number of claims by verdict."""
    found = []
    for answer in answers:
        report, settings = answer.report, extra_flags(answer.report)
        request = (report.table.name, report.profile, settings)
        of_it = (ledger["table"] == request[0]) & (ledger["profile"] == request[1]) & (ledger["settings"] == request[2])
        counts = ledger.loc[of_it, "verdict"].value_counts().reindex(VERDICTS, fill_value=0)
        found.append(
            {
                "table": report.table, "profile": report.profile, "settings": settings, "link": anchor(*request),
                "counts": counts.to_dict(), "absent": wording.absent(report), "answer": answer_line(report),
            }
        )  # fmt: skip
    return found


def _section(answer: Answer, place: int) -> dict[str, Any]:
    """Return texts and figures of one table at one profile; the ids of its figures begin with `place`.

    A caption is the title of its figure; the key of a kind of figures is printed once for the whole page.
    """
    report = answer.report
    drawn = [figure | {"caption": figure["title"]} for figure in catalog.inline(report, f"t{place}-")]
    with mpl.rc_context(svg.style(report.table.name)):
        losses = figures.panels(report, "loss", f"t{place}-") if "loss" in report.histories else {}
    return {
        "context": page.context(report), "anchor": anchor_of(report), "settings": extra_flags(report),
        "origin": answer.origin, "notices": answer.notices,
        "leading": [figure for figure in drawn if figure["leading"]],
        "others": [figure for figure in drawn if not figure["leading"]],
        "losses": losses, "notes": as_html(answer.notes, report.profile),
    }  # fmt: skip


def _keys(sections: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return kind -> key of all figures of the page, in reading order."""
    drawn = [figure for section in sections for figure in (*section["leading"], *section["others"])]
    found = {figure["name"]: figure["key"] for figure in drawn if figure["key"]}
    return {kind: found[name] for name, kind in catalog.KINDS.items() if name in found}
