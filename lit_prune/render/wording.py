"""Word a report: every number, name and sentence as all renderers show it. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lit_prune.render import verdict_notes
from lit_prune.render.metrics import SHOWN, quantity, title
from lit_prune.render.numbers import NONE, as_printed, number, p_value, with_spread

if TYPE_CHECKING:
    import pandas as pd

    from lit_prune.config.table import Claim, Table
    from lit_prune.report import Report

VERDICTS = {
    "holds": ("✓", "green"), "fails": ("✗", "red"), "negligible": ("≈", "cyan"), "identical": ("=", "cyan"),
    "undecided": ("?", "yellow"), "not run": (NONE, "dim"),
}  # fmt: skip
LEFT = ("row", "claim", "verdict", "source")
# Row labels are wrapped before a table is split, but not below this width.
_LABEL = 24


def better(report: Report, metric: str) -> str:
    """Return the better direction of a metric, for an axis."""
    return "higher is better" if metric in report.table.higher_is_better else "lower is better"


def relation(table: Table, claim: Claim) -> str:
    """Return a claim with its direction, quantity and unit."""
    metric = table.metric_of(claim)
    if claim.before is not None:
        return f"order of {quantity(metric)} flips: {table.relation(claim)}"
    direction = "higher" if table.prefers_more(metric) else "lower"
    if claim.tolerance is not None:
        direction = "no worse" if claim.or_better else "same"
    return f"{direction} {quantity(metric)}: {table.relation(claim)}"


def order(report: Report) -> str:
    """Return the legend of the main table: metric, direction, order, and meaning of bold."""
    metric, summary = report.table.metrics[0], report.summary
    apart = summary.index[~(summary["compared"] | summary["reference"])]
    below = []
    if report.table.sections:
        below.append("the other sections, in which the rows are sorted alike")
    elif len(apart):
        retrained = (report.tidy.loc[report.tidy["row"].isin(apart), "tokens"] > 0).any()
        below.append("retrained rows" if retrained else "rows that are not retrained")
    if summary["reference"].any():
        below.append("reference models, measured once")
    last = f"; below them {', then '.join(below)}" if below else ""
    return f"{quantity(metric)}, {better(report, metric)}. Rows are sorted by it, the best one is bold{last}."


def main_table(report: Report) -> pd.DataFrame:
    """Return the main table as text: row, mean ± sd, n, Δ baseline, p, the other metrics, the paper's values.

    The paper's values come last, or beside ours if there are more than two metrics. A heading is a line of its own.
    """
    import pandas as pd

    summary, (first, *others) = report.ranked, report.table.metrics
    beside = len(others) > 1
    columns: dict[str, Iterable[str]] = {
        "row": summary.index.astype(str),
        title(first): _measured(first, summary["mean"], summary["sd"]),
        **(_paper(report, first) if beside else {}),
        "n": counts(report),
        "Δ baseline": [number(delta, sign="+") for delta in summary["delta"]],
        "p": summary["p"].map(p_value),
    }
    for metric in others:
        columns[title(metric)] = _measured(metric, summary[metric], summary[f"sd {metric}"])
        columns |= _paper(report, metric) if beside else {}
    for metric in () if beside else report.table.metrics:
        columns |= _paper(report, metric)
    frame = pd.DataFrame({name: list(values) for name, values in columns.items()})
    frame.loc[summary.index == report.table.baseline, "Δ baseline"] = "baseline"
    lines = frame.to_dict("records")
    shown = [{"row": place} if isinstance(place, str) else lines[place] for place in _layout(report)]
    return pd.DataFrame(shown, columns=frame.columns).fillna("")


def _layout(report: Report) -> list[int | str]:
    """Return the lines of the main table: headings, and places of rows in the order of `Report.ranked`."""
    lines: list[int | str] = []
    for place, (row, is_reference) in enumerate(report.ranked["reference"].items()):
        heading = "Reference models" if is_reference else report.table.section_of(row)
        if report.table.sections and heading not in lines:
            lines.append(heading)
        lines.append(place)
    return lines


def _measured(metric: str, means: pd.Series, sds: pd.Series) -> list[str]:
    """Return a column of means with their spread, without it if every seed gave the same number."""
    if metric == "perplexity":  # its spread repeats that of the loss
        return [number(mean, 2) for mean in means]
    shown = SHOWN.get(metric, number)
    return with_spread(map(shown, means), (shown(sd) if sd > 0 else "" for sd in sds))


def _paper(report: Report, metric: str) -> dict[str, list[str]]:
    """Return title -> the paper's values of one metric; empty if it has none."""
    values = report.ranked[f"paper {metric}"]
    column = list(map(SHOWN[metric], values)) if metric in SHOWN else as_printed(values)
    return {f"paper {title(metric)}": column} if values.notna().any() else {}


def intervals(report: Report) -> list[str]:
    """Return half widths of the 95 % t intervals of the first metric's means; a dash if seeds change nothing.

    There is one for each line of the main table; headings have none.
    """
    halves = [f"± {number(half)}" if half > 0 else NONE for half in report.ranked["interval"]]
    return ["" if isinstance(place, str) else halves[place] for place in _layout(report)]


def parts(frame: pd.DataFrame, width: int, gap: int = 2) -> list[pd.DataFrame]:
    """Split the columns of a table into tables of at most `width` characters, with `gap` between two columns.

    All begin with the first column, which can be wrapped; the paper's columns stay beside the measured ones.
    """
    first, *names = frame.columns
    groups: list[list[str]] = []
    for name in names:
        if name.startswith("paper") and groups:
            groups[-1].append(name)
        else:
            groups.append([name])
    needed = {name: max(map(len, [*name.split("\n"), *frame[name]])) + gap for name in names}
    label = min(max(map(len, frame[first])), _LABEL)
    found: list[list[str]] = [[]]
    for group in groups:
        if found[-1] and label + sum(map(needed.__getitem__, found[-1] + group)) > width:
            found.append([])
        found[-1] += group
    return [frame[[first, *part]] for part in found]


def has_spread(column: Iterable[str]) -> bool:
    """Return whether a column of text holds means with their spread, which are left-aligned."""
    return any("±" in cell for cell in column)


def kinds(report: Report) -> list[set[str]]:
    """Return the kinds of each line of the main table: heading, or best, baseline, apart (not compared with it),
    reference."""
    ranked, best = report.ranked, report.best
    marks = {
        "best": ranked.index == (best.row if best else None), "baseline": ranked.index == report.table.baseline,
        "apart": ~(ranked["compared"] | ranked["reference"]).to_numpy(), "reference": ranked["reference"].to_numpy(),
    }  # fmt: skip
    return [
        {"heading"} if isinstance(place, str) else {name for name, applies in marks.items() if applies[place]}
        for place in _layout(report)
    ]


def counts(report: Report) -> list[str]:
    """Return the finished seeds of each row; "done/requested" if some are missing, "n = 1" for a single seed."""
    requested = report.tidy.groupby("row", sort=False).size()
    counts = []
    for row, n in report.ranked["n"].items():
        alone = requested[row] == n == 1 and not report.summary.loc[row, "reference"]
        counts.append("n = 1" if alone else str(n) if n == requested[row] else f"{n}/{requested[row]}")
    return counts


def claims_table(report: Report) -> pd.DataFrame:
    """Return the verdicts as text: claim, verdict, difference with its interval, p, n, source."""
    frame = report.verdicts[["claim", "verdict"]].copy()
    frame["claim"] = [relation(report.table, claim) for claim in report.table.claims]
    frame["difference [95 %]"] = [interval(v) for v in report.verdicts.to_dict("records")]
    frame["p"] = report.verdicts["p"].map(p_value)
    frame["n"] = [_count(verdict) for verdict in report.verdicts.to_dict("records")]
    return frame.assign(source=report.verdicts["source"])


def interval(verdict: Mapping[str, Any]) -> str:
    """Return a difference and its interval, or the reason for a missing one."""
    difference, low, high = (number(verdict[name], sign="+") for name in ("difference", "low", "high"))
    if low == NONE:
        return f"{difference} [same for every seed]" if verdict["n"] > 1 else difference
    return f"{difference} [{low}, {high}]"


def _count(verdict: Mapping[str, Any]) -> str:
    """Return the number of seeds of a test, or of sequences, marked as such."""
    return f"{verdict['n']} seq." if verdict["over"] == "sequences" else str(verdict["n"])


def notes(report: Report) -> list[str]:
    """Return caveats for comparing the columns, and a note on rows that seeds do not change."""
    found, losses = list(report.table.caveats), [m for m in report.table.metrics if m not in SHOWN]
    spreads = report.summary[["sd", *(f"sd {metric}" for metric in losses if metric != report.table.metrics[0])]]
    if (spreads == 0).any(axis=None):
        found.append("A mean of several seeds without ± is the number each of them gave: seeds change nothing there.")
    return [*found, *verdict_notes.about(report)]


def rank_table(report: Report) -> pd.DataFrame:
    """Return the agreement of the order at each validation with the final one, as text: step, Kendall's tau, rows."""
    ranks = report.ranks
    shown = {"step": ranks["step"].astype(str), "Kendall's tau": [number(tau, 2, "+") for tau in ranks["tau"]]}
    return ranks.assign(**shown, rows=ranks["n"].astype(str))[[*shown, "rows"]]


def flips(report: Report) -> list[str]:
    """Return a sentence for each claim whose two rows swap their order by LM loss during retraining."""
    if report.checks.empty or not any(claim.rows for claim in report.table.claims):
        return []
    found = []
    for flip in report.flips.to_dict("records"):
        claim, times = report.table.claims[flip["claim"]], flip["changes"]
        found.append(
            f"{claim.better} and {claim.worse}: the order of their LM loss flips at step "
            f"{flip['step']} (the check before is at {flip['before']}), {flip['ahead']} is lower from there on"
            + (f"; it flips {times} times in all" if times > 1 else "")
        )
    return found or ["the two rows of no claim change their order between the checks"]


def headline(report: Report) -> str:
    """Return profile, seeds, corpus and teacher in one line."""
    seeds = f"{report.num_seeds} seed{'' if report.num_seeds == 1 else 's'}"
    corpus = f"corpus sha256 {report.corpus[:12]}" if report.corpus else "corpus not read yet"
    return f"profile {report.profile} · {seeds} · {corpus} · teacher {teacher(report)}"


def teacher(report: Report) -> str:
    recipe, fingerprint = report.teacher["pretraining"], report.teacher["fingerprint"]
    name = report.teacher["model"]
    if name is None and recipe:
        name = f"of {recipe['num_hidden_layers']} layers x {recipe['hidden_size']}, trained {recipe['max_steps']} steps"
    return f"{name} ({fingerprint[:12]})" if fingerprint else str(name)


def agreement(report: Report) -> str:
    """Return a sentence on the agreement of the order of rows with the paper's."""
    found = report.agreement
    if found.n < 2:
        return "fewer than two rows of the paper are measured"
    if math.isnan(found.tau):
        return f"none to compare, as all {found.n} rows have the same value in the paper, or here"
    tau, p, least = number(found.tau, 2, "+"), p_value(found.p), p_value(found.smallest_p)
    low, high = (number(bound, 2, "+") for bound in (found.low, found.high))
    over = "" if low == NONE else f", 95 % over seeds [{low}, {high}]"
    return f"Kendall's tau {tau} over {found.n} rows{over}, p {p} (with {found.n} rows never below {least})"


def absent(report: Report) -> str:
    """Return the number of unfinished cells by state; empty if all are done."""
    counts = report.tidy["state"].value_counts()
    absent = {state: counts[state] for state in ("damaged", "failed", "unfinished", "missing") if state in counts}
    listed = ", ".join(f"{count} {state}" for state, count in absent.items())
    return f"{sum(absent.values())} of {len(report.tidy)} cells are not done: {listed}" if absent else ""


def later_rows(report: Report) -> list[str]:
    """Return the rows of the table without a cell in the report, added after it was recorded."""
    if "--filter" in report.flags:  # it removes rows on purpose
        return []
    return [row for row in report.table.named_rows if row not in report.summary.index]


def warnings(report: Report) -> list[str]:
    """Return warnings about the reliability of the numbers."""
    found, commits = [], ", ".join(sorted(report.commits))
    if report.mixed:
        found.append(f"the cells come from {len(report.commits)} versions of the code: {commits}")
    elif commits.endswith("+"):
        found.append(f"the code had changes that are not in commit {commits[:-1]}")
    if report.num_seeds == 1:
        found.append("n = 1: one seed has no error bar and decides no claim")
    if rows := later_rows(report):
        found.append(f"rows added to the table since, not measured here: {', '.join(rows)}")
    return found


def provenance(report: Report) -> dict[str, str]:
    """Return the provenance of the numbers: text, teacher, code, versions, machine."""
    teacher = report.teacher
    found = {
        "corpus sha256": report.corpus,
        "teacher": f"{teacher['model'] or 'trained here'}, sha256 {teacher['fingerprint'] or NONE}",
        "commit": ", ".join(sorted(report.commits)),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "machine": "; ".join(report.hardware),
    }
    return {name: value or NONE for name, value in found.items()}
