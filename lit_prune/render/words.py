"""A report in words: every number, name and sentence as it is shown, wherever that is. No torch."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lit_prune.settings import parse_setting

if TYPE_CHECKING:
    import pandas as pd

    from lit_prune.report import Report

NONE = "—"
VERDICTS = {"holds": ("✓", "green"), "fails": ("✗", "red"), "undecided": ("?", "yellow")}
LEFT = ("row", "claim", "verdict", "source")
_TITLES = {"lm_loss": "LM loss", "perplexity": "PPL"}


def title(metric: str) -> str:
    return _TITLES.get(metric, metric.replace("_", " "))


def number(value: float, digits: int = 4, sign: str = "") -> str:
    """A value to read; a dash where there is none."""
    if math.isnan(value):
        return NONE
    if abs(value) >= 1e6:
        return f"{value:{sign}.2e}"
    return f"{value:{sign}.{0 if abs(value) >= 1000 else digits}f}"


def p_value(value: float) -> str:
    return "<.001" if value < 0.001 else number(value, 3)


def as_printed(column: pd.Series) -> list[str]:
    """The paper's values with as many digits as it printed."""
    digits = max((len(str(value).partition(".")[2]) for value in column.dropna()), default=0)
    return [number(value, digits) for value in column]


def main_table(report: Report) -> pd.DataFrame:
    """The main table as text: row, mean ± sd, n, Δ baseline, p, the other metrics, the paper's values."""
    import pandas as pd

    summary = report.summary
    first, *others = report.table.metrics
    columns: dict[str, Iterable[str]] = {
        "row": summary.index.astype(str),
        title(first): with_sd(summary),
        "n": counts(report),
        "Δ baseline": [number(delta, sign="+") for delta in summary["delta"]],
        "p": summary["p"].map(p_value),
        **{title(metric): [number(value, 2) for value in summary[metric]] for metric in others},
    }
    for metric in report.table.metrics:
        if summary[f"paper {metric}"].notna().any():
            columns[f"paper {title(metric)}"] = as_printed(summary[f"paper {metric}"])
    frame = pd.DataFrame({name: list(values) for name, values in columns.items()})
    frame.loc[[kind == "baseline" for kind in kinds(report)], "Δ baseline"] = "baseline"
    return frame


def kinds(report: Report) -> list[str]:
    """What each line of the main table is: "baseline", "reference" or nothing special."""
    baseline, rows = report.table.baseline, report.summary["reference"].items()
    return ["reference" if reference else "baseline" if row == baseline else "" for row, reference in rows]


def with_sd(summary: pd.DataFrame) -> list[str]:
    means = [number(mean) for mean in summary["mean"]]
    width = max(map(len, means))
    spread = ["" if math.isnan(sd) else f" ± {number(sd)}" for sd in summary["sd"]]
    return [mean.rjust(width) + sd for mean, sd in zip(means, spread, strict=True)]


def counts(report: Report) -> list[str]:
    """Seeds done; "done/asked" where some are not, and "n = 1" where one was asked and more are needed."""
    asked = report.tidy.groupby("row", sort=False).size()
    counts = []
    for row, n in report.summary["n"].items():
        alone = asked[row] == n == 1 and not report.summary.loc[row, "reference"]
        counts.append("n = 1" if alone else str(n) if n == asked[row] else f"{n}/{asked[row]}")
    return counts


def claims_table(report: Report) -> pd.DataFrame:
    """The verdicts as text: claim, verdict, difference with its interval, p, n, source."""
    frame = report.verdicts[["claim", "verdict"]].copy()
    frame["difference [95 %]"] = [interval(v) for v in report.verdicts.to_dict("records")]
    frame["p"] = report.verdicts["p"].map(p_value)
    frame["n"] = report.verdicts["n"].astype(str)
    return frame.assign(source=report.verdicts["source"])


def interval(verdict: Mapping[str, float]) -> str:
    difference, low, high = (number(verdict[name], sign="+") for name in ("difference", "low", "high"))
    return difference if low == NONE else f"{difference} [{low}, {high}]"


def headline(report: Report) -> str:
    """Profile, seeds, corpus and teacher in one line."""
    seeds = f"{report.num_seeds} seed{'' if report.num_seeds == 1 else 's'}"
    corpus = f"corpus sha256 {report.corpus[:12]}" if report.corpus else "corpus not read yet"
    return f"profile {report.profile} · {seeds} · {corpus} · teacher {teacher(report)}"


def teacher(report: Report) -> str:
    recipe, fingerprint = report.teacher["pretraining"], report.teacher["fingerprint"]
    name = report.teacher["model"]
    if name is None and recipe:
        name = f"of {recipe['layers']} layers x {recipe['hidden']}, trained {recipe['steps']} steps"
    return f"{name} ({fingerprint[:12]})" if fingerprint else str(name)


def agreement(report: Report) -> str:
    """How far the order of the rows is the paper's, in one sentence."""
    found = report.agreement
    if found.n < 2:
        return "fewer than two rows of the paper are measured"
    tau, p, least = number(found.tau, 2, "+"), p_value(found.p), p_value(found.smallest_p)
    return f"Kendall's tau {tau} over {found.n} rows, p {p} (with {found.n} rows never below {least})"


def absent(report: Report) -> str:
    """How many cells are not done, by state; empty when all are."""
    counts = report.tidy["state"].value_counts()
    absent = {state: counts[state] for state in ("failed", "unfinished", "missing") if state in counts}
    listed = ", ".join(f"{count} {state}" for state, count in absent.items())
    return f"{sum(absent.values())} of {len(report.tidy)} cells are not done: {listed}" if absent else ""


def failed(report: Report) -> list[tuple[str, int, str]]:
    failed = report.tidy[report.tidy["state"] == "failed"]
    return list(failed[["row", "seed", "error"]].itertuples(index=False, name=None))


def warnings(report: Report) -> list[str]:
    """What makes the numbers worth less than they seem."""
    found, commits = [], ", ".join(sorted(report.commits))
    if report.mixed:
        found.append(f"the cells come from {len(report.commits)} versions of the code: {commits}")
    elif commits.endswith("+"):
        found.append(f"the code had changes that are not in commit {commits[:-1]}")
    if report.num_seeds == 1:
        found.append("n = 1: one seed has no error bar and decides no claim")
    return found


def command(report: Report) -> str:
    """The command that asks the same question again."""
    words = ["python", "-m", f"lit_prune.experiments.{report.table.name}", "--profile", report.profile]
    for path, value in report.settings.items():
        words += ["--set", f"{path}={setting(value)}"]
    return shlex.join([*words, *report.flags])


def setting(value: Any) -> str:
    """A value in the form --set reads back."""
    readable = isinstance(value, str) and parse_setting(f"field={value}")[1] == value
    return value if readable else json.dumps(value)


def provenance(report: Report) -> dict[str, str]:
    """What the numbers depend on beside the question: text, teacher, code, versions, machine."""
    teacher = report.teacher
    found = {
        "corpus sha256": report.corpus,
        "teacher": f"{teacher['model'] or 'trained here'}, sha256 {teacher['fingerprint'] or NONE}",
        "commit": ", ".join(sorted(report.commits)),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "machine": "; ".join(report.hardware),
    }
    return {name: value or NONE for name, value in found.items()}
