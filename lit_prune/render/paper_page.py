"""The page of all tables: what stands of the papers first, then every table with its figures, notes and cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from lit_prune.config.table import Table
from lit_prune.progress import Progress
from lit_prune.render import catalog, figures, numbers, page, svg, wording
from lit_prune.render.evaluations import all_scores
from lit_prune.render.notes import as_html
from lit_prune.report import Report
from lit_prune.report.claims_summary import PAPERS, VERDICTS, standing
from lit_prune.report.command import extra_flags
from lit_prune.report.load import Answer
from lit_prune.store.address import digest

_COSTS = {
    "tokens": ("tokens", numbers.amount), "train_flops": ("train FLOPs", numbers.flops),
    "wall_seconds": ("wall time", numbers.duration), "peak_memory": ("peak memory", numbers.memory),
}  # fmt: skip


def render(
    answers: Sequence[Answer], ledger: pd.DataFrame, not_run: Sequence[Table], scores: pd.DataFrame, digest: str,
    progress: Progress,
) -> str:  # fmt: skip
    """The page as one HTML document that fetches nothing, with `digest` in its head; `progress` counts the answers.

    `scores` are what models got in benchmarks, as of `report.benchmarks.read`.
    """
    sections = []
    for place, answer in enumerate(answers):
        progress.at(place, f"drawing {answer.report.table.name} at {answer.report.profile}")
        sections.append(_section(answer, place))
    template = page.environment(Path(__file__).parent).get_template("paper_page.html.j2")
    return template.render(
        standing=_standing(ledger), papers=_by_paper(answers, ledger, not_run), verdicts=VERDICTS,
        marks=wording.VERDICTS,
        titles=PAPERS, sections_of=sections, not_run=not_run, index=_index(answers, ledger),
        panels=figures.PANELS, digest=digest, dash=numbers.NONE,
        benchmarks=None if scores.empty else all_scores(scores),
    )  # fmt: skip


def anchor(table: str, profile: str, settings: str = "") -> str:
    """Name of a table at a profile, in the page and among files; of a table alone where the profile is empty.

    Where it does not say all of the settings, as they may be long or differ in a sign, it ends with a digest of them.
    """
    asked = f"{table} {profile} {settings}".strip()
    name = re.sub(r"[^a-zA-Z0-9_]+", "-", asked).strip("-")
    return name if name.replace("-", " ") == asked else f"{name[:80]}-{digest([asked])[:6]}"


def anchor_of(report: Report) -> str:
    """As `anchor`, of a report."""
    return anchor(report.table.name, report.profile, extra_flags(report))


def _standing(ledger: pd.DataFrame) -> list[dict[str, Any]]:
    """For each profile: its name, counts by verdict of all claims and of those of each paper."""
    return [
        {
            "profile": profile, "all": (counts := found.sum()).to_dict(), "claims": counts.sum(),
            "measured": (measured := counts.drop("not run").sum()),
            "share": _percent(counts["holds"], counts.sum()), "share_of_measured": _percent(counts["holds"], measured),
            "papers": {paper: line.to_dict() for (_, paper), line in found.iterrows()},
        }
        for profile, found in standing(ledger).groupby(level=0, sort=False)
    ]  # fmt: skip


def _percent(part: int, whole: int) -> int:
    return round(100 * part / max(whole, 1))


def _by_paper(answers: Iterable[Answer], ledger: pd.DataFrame, not_run: Iterable[Table]) -> list[dict[str, Any]]:
    """The ledger as it is read: paper, table, and a line for each claim and profile."""
    # Profiles in the order in which they are counted above, not by name.
    ledger = ledger.assign(scale=pd.factorize(ledger["profile"])[0])
    tables = {table.name: table for table in [*(answer.report.table for answer in answers), *not_run]}
    return [
        {
            "name": paper,
            "tables": [
                {"table": tables[str(name)], "lines": _lines(tables[str(name)], claims)}
                for name, claims in of_paper.groupby("table")
            ],
        }
        for paper, of_paper in ledger.groupby("paper", sort=False)
    ]


def _lines(table: Table, claims: pd.DataFrame) -> list[dict[str, Any]]:
    """A line for each claim of a table and profile, in the order of the table, as text."""
    said = {table.stated(claim): wording.relation(table, claim) for claim in table.claims}
    ordered = claims.assign(place=claims["claim"].map({claim: place for place, claim in enumerate(said)}))
    ordered = ordered.sort_values(["place", "scale"], kind="stable")
    return [
        {
            "claim": said[line["claim"]], "source": line["source"], "profile": line["profile"],
            "settings": line["settings"],
            "verdict": line["verdict"], "n": line["n"], "p": numbers.p_value(line["p"]),
            "difference": wording.interval(line), "standardized": numbers.number(line["standardized"], 1, "+"),
            "link": anchor(table.name, line["profile"], line["settings"]),
        }
        for line in ordered.to_dict("records")
    ]  # fmt: skip


def _index(answers: Iterable[Answer], ledger: pd.DataFrame) -> list[dict[str, Any]]:
    """For each answer: name, profile, question, link, and how many claims have which verdict."""
    found = []
    for answer in answers:
        report, settings = answer.report, extra_flags(answer.report)
        asked = (report.table.name, report.profile, settings)
        of_it = (ledger["table"] == asked[0]) & (ledger["profile"] == asked[1]) & (ledger["settings"] == asked[2])
        counts = ledger.loc[of_it, "verdict"].value_counts().reindex(VERDICTS, fill_value=0)
        found.append(
            {
                "table": report.table, "profile": report.profile, "settings": settings, "link": anchor(*asked),
                "counts": counts.to_dict(), "absent": wording.absent(report),
            }
        )  # fmt: skip
    return found


def _section(answer: Answer, place: int) -> dict[str, Any]:
    """What the page says and draws of one table at one profile; the ids of its figures begin with `place`."""
    report = answer.report
    told = page.told(report)
    told["main"].insert(2, "95\u00a0%\u00a0t", wording.intervals(report))
    told["spread"].insert(2, True)
    with mpl.rc_context(svg.style(report.table.name)):
        drawn = [
            {"name": shown.name, "caption": shown.caption, "svg": _inline(shown, f"t{place}-{shown.name}")}
            for shown in catalog.pictures(report)
        ]
        losses = figures.panels(report, "loss", f"t{place}-") if "loss" in report.histories else {}
    return {
        "told": told, "anchor": anchor_of(report), "settings": extra_flags(report), "origin": answer.origin,
        "notices": answer.notices, "figures": drawn, "losses": losses, "cost": cost(report),
        "notes": as_html(answer.notes, report.profile),
    }  # fmt: skip


def _inline(picture: catalog.Picture, name: str) -> str:
    return svg.inline(picture.draw(), name, picture.caption)


def cost(report: Report) -> pd.DataFrame | None:
    """What the rows cost, as text: mean over the seeds that are done, and the sum of all cells; None if not recorded.

    Of memory, the most that any of them took. There is neither where it is not known of all.
    """
    done = report.tidy[report.tidy["state"] == "done"]
    known = {name: shown for name, shown in _COSTS.items() if name in done and done[name].notna().any()}
    if not known:
        return None
    found = done[list(known)].astype(float)
    means = found.groupby(done["row"], sort=False).mean()
    totals = found.agg({name: "max" if name == "peak_memory" else "sum" for name in known})
    totals = totals.where(found.notna().all())
    lines = {name: [*map(shown, means[name]), shown(totals[name])] for name, (_, shown) in known.items()}
    frame = pd.DataFrame({title: lines[name] for name, (title, _) in known.items()})
    frame.insert(0, "row", [*map(str, means.index), f"all {len(done)} cells"])
    return frame
