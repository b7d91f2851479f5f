"""A report as people read it: in a terminal, and as CSV, Markdown, LaTeX and one self-contained HTML page.

Also the lists behind `status` and `diff`. Computes no statistics (report.py does). Rich, pandas, Jinja and
matplotlib are imported when used. No torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_prune.config import ConfigError, parse_setting, plain_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table as RichTable

    from lit_prune.report import Report
    from lit_prune.store import Node

_TEMPLATES = Path(__file__).parent / "templates"
_NONE = "—"
_TITLES = {"lm_loss": "LM loss", "perplexity": "PPL"}
_TERMS = {
    "clm": "cross-entropy on the labels (clm)",
    "logits": "logit loss (logits)",
    "hidden": "intermediate loss (hidden)",
    "grad_norm": "gradient norm before clipping (grad_norm)",
}
_NOT_TERMS = ("row", "seed", "step", "loss", "lr", "tokens_per_second")
_VERDICTS = {"holds": ("✓", "green"), "fails": ("✗", "red"), "undecided": ("?", "yellow")}
_STYLES = {"": "", "baseline": "bold", "reference": "dim"}
_STATES = {"done": "", "failed": "red", "unfinished": "yellow", "missing": "dim"}
_AS_IS: dict[str, Any] = {"markup": False, "highlight": False}
# Columns of a terminal below which the tables leave out what only makes them airy.
_ROOMY = 96
_LEFT = ("row", "claim", "verdict", "source")
_MATH = {"±": "$\\pm$", "Δ": "$\\Delta$", "<": "$<$", "·": "$\\cdot$", _NONE: "---"}
# Colours matplotlib is given; in the page they become those of its light or dark theme.
_INK, _LINE, _DIM = "#010203", "#040506", "#070809"
_THEME = {_INK: "currentColor", _LINE: "var(--accent)", _DIM: "var(--dim)"}
_POINTS = 150


# ---- text ----


def _title(metric: str) -> str:
    return _TITLES.get(metric, metric.replace("_", " "))


def _number(value: float, digits: int = 4, sign: str = "") -> str:
    """A value to read; a dash where there is none."""
    if math.isnan(value):
        return _NONE
    if abs(value) >= 1e6:
        return f"{value:{sign}.2e}"
    return f"{value:{sign}.{0 if abs(value) >= 1000 else digits}f}"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else _number(value, 3)


def _as_printed(column: pd.Series) -> list[str]:
    """The paper's values with as many digits as it printed."""
    digits = max((len(str(value).partition(".")[2]) for value in column.dropna()), default=0)
    return [_number(value, digits) for value in column]


def _main_table(report: Report) -> pd.DataFrame:
    """The main table as text: row, mean ± sd, n, Δ baseline, p, the other metrics, the paper's values."""
    import pandas as pd

    summary = report.summary
    first, *others = report.table.metrics
    columns: dict[str, Iterable[str]] = {
        "row": summary.index.astype(str),
        _title(first): _with_sd(summary),
        "n": _counts(report),
        "Δ baseline": [_number(delta, sign="+") for delta in summary["delta"]],
        "p": summary["p"].map(_p),
        **{_title(metric): [_number(value, 2) for value in summary[metric]] for metric in others},
    }
    for metric in report.table.metrics:
        if summary[f"paper {metric}"].notna().any():
            columns[f"paper {_title(metric)}"] = _as_printed(summary[f"paper {metric}"])
    frame = pd.DataFrame({name: list(values) for name, values in columns.items()})
    frame.loc[[kind == "baseline" for kind in _kinds(report)], "Δ baseline"] = "baseline"
    return frame


def _kinds(report: Report) -> list[str]:
    """What each line of the main table is: "baseline", "reference" or nothing special."""
    kinds = {(report.table.baseline, False): "baseline"}
    rows = zip(report.summary.index, report.summary["reference"], strict=True)
    return ["reference" if reference else kinds.get((row, reference), "") for row, reference in rows]


def _with_sd(summary: pd.DataFrame) -> list[str]:
    means = [_number(mean) for mean in summary["mean"]]
    width = max(map(len, means))
    spread = ["" if math.isnan(sd) else f" ± {_number(sd)}" for sd in summary["sd"]]
    return [mean.rjust(width) + sd for mean, sd in zip(means, spread, strict=True)]


def _counts(report: Report) -> list[str]:
    """Seeds done; "done/asked" where some are not, and "n = 1" where one was asked and more are needed."""
    asked = report.tidy.groupby("row", sort=False).size()
    counts = []
    for row, n in report.summary["n"].items():
        alone = asked[row] == n == 1 and not report.summary.loc[row, "reference"]
        counts.append("n = 1" if alone else str(n) if n == asked[row] else f"{n}/{asked[row]}")
    return counts


def _claims_table(report: Report) -> pd.DataFrame:
    """The verdicts as text: claim, verdict, difference with its interval, p, n, source."""
    frame = report.verdicts[["claim", "verdict"]].copy()
    frame["difference [95 %]"] = [_interval(v) for v in report.verdicts.to_dict("records")]
    frame["p"] = report.verdicts["p"].map(_p)
    frame["n"] = report.verdicts["n"].astype(str)
    return frame.assign(source=report.verdicts["source"])


def _interval(verdict: Mapping[str, float]) -> str:
    difference, low, high = (_number(verdict[name], sign="+") for name in ("difference", "low", "high"))
    return difference if low == _NONE else f"{difference} [{low}, {high}]"


def _headline(report: Report) -> str:
    """Profile, seeds, corpus and teacher in one line."""
    seeds = f"{report.num_seeds} seed{'' if report.num_seeds == 1 else 's'}"
    corpus = f"corpus sha256 {report.corpus[:12]}" if report.corpus else "corpus not read yet"
    return f"profile {report.profile} · {seeds} · {corpus} · teacher {_teacher(report)}"


def _teacher(report: Report) -> str:
    recipe, fingerprint = report.teacher["pretraining"], report.teacher["fingerprint"]
    name = report.teacher["model"]
    if name is None and recipe:
        name = f"of {recipe['layers']} layers x {recipe['hidden']}, trained {recipe['steps']} steps"
    return f"{name} ({fingerprint[:12]})" if fingerprint else str(name)


def _agreement(report: Report) -> str:
    """How far the order of the rows is the paper's, in one sentence."""
    found = report.agreement
    if found.n < 2:
        return "fewer than two rows of the paper are measured"
    tau, p, least = _number(found.tau, 2, "+"), _p(found.p), _p(found.smallest_p)
    return f"Kendall's tau {tau} over {found.n} rows, p {p} (with {found.n} rows never below {least})"


def _absent(report: Report) -> str:
    """How many cells are not done, by state; empty when all are."""
    counts = report.tidy["state"].value_counts()
    absent = {state: counts[state] for state in ("failed", "unfinished", "missing") if state in counts}
    listed = ", ".join(f"{count} {state}" for state, count in absent.items())
    return f"{sum(absent.values())} of {len(report.tidy)} cells are not done: {listed}" if absent else ""


def _failed(report: Report) -> list[tuple[str, int, str]]:
    failed = report.tidy[report.tidy["state"] == "failed"]
    return list(failed[["row", "seed", "error"]].itertuples(index=False, name=None))


def _warnings(report: Report) -> list[str]:
    """What makes the numbers worth less than they seem."""
    found, commits = [], ", ".join(sorted(report.commits))
    if report.mixed:
        found.append(f"the cells come from {len(report.commits)} versions of the code: {commits}")
    elif commits.endswith("+"):
        found.append(f"the code had changes that are not in commit {commits[:-1]}")
    if report.num_seeds == 1:
        found.append("n = 1: one seed has no error bar and decides no claim")
    return found


def _command(report: Report) -> str:
    """The command that asks the same question again."""
    words = ["python", "-m", f"lit_prune.experiments.{report.table.name}", "--profile", report.profile]
    for path, value in report.settings.items():
        words += ["--set", f"{path}={_setting(value)}"]
    return shlex.join([*words, *report.flags])


def _setting(value: Any) -> str:
    """A value in the form --set reads back."""
    readable = isinstance(value, str) and parse_setting(f"field={value}")[1] == value
    return value if readable else json.dumps(value)


# ---- terminal ----


def print_report(report: Report, console: Console) -> None:
    """The report on a console: question, table, what failed, claims, order of the rows, caveats."""
    from rich.text import Text

    table, tight = report.table, console.width < _ROOMY
    console.print(Text(f"\n{table.question}", "bold"))
    console.print(Text(table.source, "dim"))
    console.print(Text(f"{_headline(report)}\n"))
    console.print(_rich_main(report, tight))
    if _absent(report):
        console.print(Text(f"\n{_absent(report)}", "bold yellow"))
    for row, seed, error in _failed(report):
        console.print(_hanging("✗", f"{row}, seed {seed}: {error}", "red"))
    console.print(Text(f"\nClaims of the paper, at profile {report.profile}", "bold"))
    console.print(_rich_claims(report, tight))
    console.print(Text.assemble(("\nOrder of the rows: ", "bold"), _agreement(report), "\n"))
    for caveat in table.caveats:
        console.print(_hanging("·", caveat, "dim"))
    for warning in _warnings(report):
        console.print(_hanging("!", warning, "bold yellow"))


def _rich_table(tight: bool = False) -> RichTable:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0 if tight else 1, 0, 0))


def _hanging(mark: str, text: str, style: str) -> RichTable:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(Text(mark, style), Text(text, style))
    return grid


def _rich_main(report: Report, tight: bool) -> RichTable:
    from rich.text import Text

    frame, kinds, shown = _main_table(report), _kinds(report), _rich_table(tight)
    for place, name in enumerate(frame):
        left, heading = place < 2, name if place < 2 else name.replace(" ", "\n")
        shown.add_column(heading, justify="left" if left else "right", no_wrap=place > 0, overflow="fold")
    for place, (line, kind) in enumerate(zip(frame.to_numpy().tolist(), kinds, strict=True)):
        cells = [Text(cell, _STYLES[kind]) for cell in line]
        if not cells[2].plain.isdigit():
            cells[2].stylize("yellow")
        last = kind != "reference" and kinds[place + 1 : place + 2] == ["reference"]
        shown.add_row(*cells, end_section=last)
    return shown


def _rich_claims(report: Report, tight: bool) -> RichTable:
    from rich.text import Text

    shown = _rich_table(tight)
    for name in ("verdict", "claim", "difference [95 %]", "p", "n"):
        shown.add_column(Text(name), justify="right" if name in "pn" else "left", no_wrap=name != "claim")
    for line in _claims_table(report).to_dict("records"):
        mark, style = _VERDICTS[line["verdict"]]
        claim = line["claim"].replace(" < ", "\n< ") if tight else line["claim"]
        shown.add_row(
            Text(f"{mark} {line['verdict']}", style), Text.assemble(claim, (f"\n{line['source']}", "dim")),
            line["difference [95 %]"].replace(" [", "\n\\["), line["p"], line["n"],
        )  # fmt: skip
    return shown


def print_status(tidy: pd.DataFrame, console: Console) -> None:
    """Every cell with its address and state, and how many there are of each state."""
    from rich.text import Text

    shown = _rich_table()
    for name in ("key", "row", "seed", "state"):
        shown.add_column(name, overflow="fold")
    for line in tidy.to_dict("records"):
        state = line["state"] + (f": {line['error']}" if line["error"] else "")
        cells = (line["key"], line["row"], str(line["seed"]), state)
        shown.add_row(*(Text(cell, _STATES[line["state"]]) for cell in cells))
    counts = ", ".join(f"{count} {state}" for state, count in tidy["state"].value_counts().items())
    console.print(shown)
    console.print(f"\n{len(tidy)} cells: {counts}", **_AS_IS)


def print_diff(first: Node, second: Node, console: Console) -> None:
    """The fields in which two nodes differ, what both found, and where code, versions or machine differ."""
    from rich.text import Text

    nodes = (first, second)
    sides = [_flat({"": node.config, "result": node.result or {}, "env": _code(node)}) for node in nodes]
    shown = _rich_table()
    for name in ("", *(f"{node.folder.parent.name}/{node.key}" for node in nodes)):
        shown.add_column(name, overflow="fold")
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get(name, _NONE) for side in sides]
        if values[0] != values[1] or name.startswith("result."):
            shown.add_row(*(Text(str(value)) for value in (name, *values)))
    console.print(shown if shown.row_count else "the two nodes do not differ", **_AS_IS)


def _code(node: Node) -> dict[str, Any]:
    return {name: node.env.get(name) for name in ("commit", "python", "processor", "versions")}


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        path = f"{prefix}.{name}".strip(".")
        flat |= _flat(value, path) if isinstance(value, Mapping) else {path: value}
    return flat


# ---- files ----


def write_files(report: Report, folder: Path) -> list[Path]:
    """Write results.csv, report.md, report.tex and report.html; nothing is written that is there already.

    Raises:
        ConfigError: the folder cannot be written.
    """
    csv, markdown = report.tidy.to_csv(index=False), _markdown(report)
    digest = _digest(report, csv, markdown)
    paths = [folder / name for name in ("results.csv", "report.md", "report.tex", "report.html")]
    if not all(path.exists() for path in paths) or digest not in paths[-1].read_text()[:500]:
        # The page, which holds the digest, comes last: cut off before it, the next call writes all again.
        _write(folder, dict(zip(paths, (csv, markdown, _latex(report), _html(report, digest)), strict=True)))
    return paths


def write_record(report: Report, folder: Path) -> list[Path]:
    """Write what is committed of an answer, results.csv and report.md, and nothing else in the folder.

    Raises:
        ConfigError: the folder cannot be written.
    """
    texts = {folder / "results.csv": report.tidy.to_csv(index=False), folder / "report.md": _markdown(report)}
    _write(folder, texts)
    return list(texts)


def _write(folder: Path, texts: Mapping[Path, str]) -> None:
    """Write each file whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            scratch = path.with_name(f".{path.name}.{os.getpid()}")
            scratch.write_text(text)
            scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"the report cannot be written to {folder} ({error.strerror})") from None


def _digest(report: Report, *texts: str) -> str:
    """What the files say, and the code that says it, as 16 hexadecimal digits."""
    code = [path.read_text() for path in (Path(__file__), _TEMPLATES / "report.html.j2")]
    said = [repr(report.cell), report.histories.to_csv(), *code, *texts]
    return hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]


def _markdown(report: Report) -> str:
    table, absent = report.table, _absent(report)
    failed = [f"{row}, seed {seed}: {error}" for row, seed, error in _failed(report)]
    parts = [
        f"# {table.name}", table.question, f"*{table.source}*", _headline(report),
        "## Claims of the paper", _pipes(_claims_table(report)), f"Order of the rows: {_agreement(report)}.",
        "## Table", _pipes(_main_table(report)), _bullets([*table.caveats, *_warnings(report)]),
        *(["## Cells that are not done", absent, _bullets(failed)] if absent else []),
        "## How to run it again", f"```\n{_command(report)}\n```",
        _bullets([f"{name}: {value}" for name, value in _provenance(report).items()]),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _pipes(frame: pd.DataFrame) -> str:
    escaped = frame.map(lambda cell: cell.replace("|", "\\|"))
    sides = ["left" if name in _LEFT else "right" for name in frame]
    return escaped.to_markdown(index=False, disable_numparse=True, colalign=sides)


def _provenance(report: Report) -> dict[str, str]:
    """What the numbers depend on beside the question: text, teacher, code, versions, machine."""
    teacher = report.teacher
    found = {
        "corpus sha256": report.corpus,
        "teacher": f"{teacher['model'] or 'trained here'}, sha256 {teacher['fingerprint'] or _NONE}",
        "commit": ", ".join(sorted(report.commits)),
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        "machine": "; ".join(report.hardware),
    }
    return {name: value or _NONE for name, value in found.items()}


def _latex(report: Report) -> str:
    """Two booktabs tables: rows and claims."""
    name, question, source = report.table.name, report.table.question, report.table.source
    tables = [
        (f"tab:{name}", f"{question} ({_headline(report)})", _main_table(report)),
        (f"claims:{name}", f"Claims of {source}.", _claims_table(report)),
    ]
    tex = "% \\usepackage{booktabs}\n"
    for label, caption, frame in tables:
        style = frame.style.hide(axis="index").format(escape="latex")
        tex += style.format_index(escape="latex", axis="columns").to_latex(
            column_format="".join("l" if name in _LEFT else "r" for name in frame), hrules=True, label=label,
            caption=re.sub(r"([&%$#_{}])", r"\\\1", caption), position_float="centering",
        )  # fmt: skip
    return "".join(_MATH.get(character, character) for character in tex)


# ---- page ----


def _html(report: Report, digest: str) -> str:
    import jinja2
    import yaml

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        table=report.table, profile=report.profile, digest=digest, headline=_headline(report),
        main=_main_table(report), kinds=_kinds(report), claims=_claims_table(report).to_dict("records"),
        marks=_VERDICTS, agreement=_agreement(report), absent=_absent(report), failed=_failed(report),
        warnings=_warnings(report), command=_command(report), provenance=_provenance(report),
        **_figures(report),
        # Through JSON, which turns tuples into the lists that YAML has.
        recipe=yaml.safe_dump(json.loads(json.dumps(plain_of(report.cell))), sort_keys=False),
    )  # fmt: skip


def _figures(report: Report) -> dict[str, Any]:
    """Inline SVG: `final`, and `terms`, each with title, whether panels share a scale, row -> panel."""
    import matplotlib as mpl
    from markupsafe import Markup

    style = {
        "svg.fonttype": "none", "svg.hashsalt": report.table.name, "font.size": 9, "text.color": _INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": _DIM, "axes.labelcolor": _INK,
        "xtick.color": _DIM, "ytick.color": _DIM, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK,
    }  # fmt: skip
    logged = [name for name in report.histories if name not in _NOT_TERMS]
    with mpl.rc_context(style):
        final = Markup(_svg(_final(report), "final")) if report.summary["n"].any() else ""
        terms = [
            {"title": _TERMS.get(name, name), "shared": name == "clm", "panels": _panels(report, name)}
            for name in sorted(logged, key=[*_TERMS, *logged].index)
        ]
    return {"final": final, "terms": terms}


def _panels(report: Report, term: str) -> dict[str, str]:
    """Row -> SVG of one logged term over the steps, of the rows that have it."""
    from markupsafe import Markup

    logged = report.histories.dropna(subset=[term])
    curves = {str(row): _curve(history, term) for row, history in logged.groupby("row", sort=False)}
    # Cross-entropy on the labels is one quantity in all rows; a logit loss is another in each.
    shared = (logged[term].min(), logged[term].max()) if term == "clm" else None
    return {
        row: Markup(_svg(_panel(curve, shared), f"{term}-{place}"))
        for place, (row, curve) in enumerate(curves.items())
    }


def _curve(history: pd.DataFrame, term: str) -> pd.DataFrame:
    """Columns step, mean, min and max over the seeds, in at most 150 lines."""
    import numpy as np

    # Seeds may have been logged at different steps: the interval of the log is no part of their address.
    runs = history.pivot_table(index="step", columns="seed", values=term)
    curve = runs.interpolate("index", limit_area="inside").agg(["mean", "min", "max"], axis=1).reset_index()
    window = np.arange(len(curve)) // math.ceil(len(curve) / _POINTS)
    return curve.groupby(window).agg({"step": "mean", "mean": "mean", "min": "min", "max": "max"})


def _panel(curve: pd.DataFrame, shared: tuple[float, float] | None) -> Figure:
    """Mean over the seeds and a band from least to greatest, which has no width where there is one seed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(3.2, 1.9), layout="constrained")
    axes = figure.add_subplot(xlabel="step")
    if shared:
        # Stretches the scale and draws nothing.
        axes.update_datalim([(curve["step"].iloc[0], value) for value in shared])
    axes.fill_between(curve["step"], curve["min"], curve["max"], color=_LINE, alpha=0.25, linewidth=0)
    axes.plot(curve["step"], curve["mean"], color=_LINE, linewidth=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return figure


def _final(report: Report) -> Figure:
    """The first metric of every row: seeds, mean, t interval; baseline and references as vertical lines."""
    from matplotlib.figure import Figure

    metric, summary = report.table.metrics[0], report.summary
    rows = summary[~summary["reference"] & (summary["n"] > 0)]
    lines = summary["mean"][[kind != "" for kind in _kinds(report)]].dropna().sort_values(ascending=False)
    figure = Figure(figsize=(6.2, 0.8 + 0.34 * len(rows) + 0.17 * len(lines)), layout="constrained")
    axes = figure.add_subplot(xlabel=f"{_title(metric)} (lower is better)", ylim=(len(rows) - 0.4, -0.6))
    for place, (row, mean) in enumerate(rows["mean"].items()):
        seeds = report.tidy.loc[(report.tidy["row"] == row) & ~report.tidy["reference"], metric].dropna()
        axes.errorbar(mean, place, xerr=rows.loc[row, "interval"], color=_LINE, linewidth=1.5)
        axes.plot(mean, place, "|", color=_LINE, markersize=11, markeredgewidth=2)
        axes.scatter(seeds, [place + 0.25] * len(seeds), s=15, color=_LINE, alpha=0.6, linewidth=0)
    axes.set_yticks(range(len(rows)), list(rows.index))
    axes.tick_params(axis="y", length=0)
    _lines_for_scale(axes, lines.rename({report.table.baseline: "baseline"}).to_dict())
    return figure


def _lines_for_scale(axes: Axes, lines: Mapping[str, float]) -> None:
    """Vertical lines, named above the axes; one that would squeeze the rows is only named, at the edge."""
    low, high = axes.get_xlim()
    near = [x for x in lines.values() if abs(x - (low + high) / 2) < 2 * (high - low)]
    low, high = min([low, *near]), max([high, *near])
    room = 0.03 * (high - low)
    axes.set_xlim(low - room, high + room)
    for place, (name, x) in enumerate(lines.items()):
        text = f"← {name} {x:.4f}" if x < low else f"{name} {x:.4f} →" if x > high else f"{name} {x:.4f}"
        if low <= x <= high:
            axes.axvline(x, color=_DIM, linewidth=1, linestyle="-" if name == "baseline" else ":", zorder=0)
        share = min(max((x - low) / (high - low), 0), 1)
        axes.annotate(
            text, (share, 1), (0, 3 + 11 * place), "axes fraction", "offset points", fontsize=8, color=_DIM,
            ha="left" if share < 0.25 else "right" if share > 0.75 else "center",
        )  # fmt: skip


def _svg(figure: Figure, name: str) -> str:
    """Inline SVG with the page's colours and font; its ids begin with `name`, which is unique in the page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    head, _, body = stream.getvalue().partition("<svg")[2].partition(">")
    # HTML knows the namespaces, the page is as wide as its reader's, and nobody reads the metadata.
    box = re.findall(r'viewBox="[^"]*"', head)[0]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    for placeholder, colour in _THEME.items():
        body = body.replace(placeholder, colour)
    return f'<svg role="img" aria-label="{name}" {box}>{body}'
