"""Print reports in a terminal, and the lists of `status` and `diff`. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_prune.escape import printable, terminal_text
from lit_prune.render import wording
from lit_prune.render.answer import answer_line
from lit_prune.render.numbers import amount, duration

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table as RichTable

    from lit_prune.pipeline.costs import Cost
    from lit_prune.report import Report
    from lit_prune.report.costs import Cost as PublishedCost
    from lit_prune.report.students import Student
    from lit_prune.store import Node

_STYLES = {"best": "bold", "reference": "dim", "heading": "italic"}
_STATES = {"done": "", "damaged": "red", "failed": "red", "unfinished": "yellow", "missing": "dim"}
# Terminals narrower than this get compact tables.
_ROOMY = 96
_STUDENTS = 3
"""Most students listed one by one."""


def print_report(report: Report, console: Console) -> None:
    """Print a report: request and answer, warnings, claims, table, notes."""
    from rich.text import Text

    table, tight = report.table, console.width < _ROOMY
    console.print()
    console.print(terminal_text(table.question))
    console.print(terminal_text(answer_line(report), "bold"))
    console.print(terminal_text(f"{table.source} · {wording.headline(report)}", "dim"))
    for warning in filter(None, [*wording.warnings(report), wording.absent(report)]):
        console.print(_hanging("!", warning, "bold yellow"))
    for row, seed, error in report.failures:
        console.print(_hanging("✗", f"{row}, seed {seed}: {error}", "red"))
    console.print(terminal_text("\nClaims of the paper", "bold", keep="\n"))
    console.print(_rich_claims(report, tight))
    console.print(Text.assemble(("\nOrder of the rows: ", "bold"), printable(wording.agreement(report))))
    console.print(terminal_text("\nResults", "bold", keep="\n"))
    for shown in _rich_main(report, console.width, tight):
        console.print(shown)
    console.print()
    _print_checks(report, console)
    for note in [wording.order(report), *wording.notes(report)]:
        console.print(_hanging("·", note, "dim"))


def _print_checks(report: Report, console: Console) -> None:
    """Print the order of rows during retraining, if there were validations."""
    from rich.text import Text

    if not report.ranks.empty:
        frame, shown = wording.rank_table(report), _rich_table()
        for name in frame:
            shown.add_column(name, justify="right")
        for line in frame.to_numpy().tolist():
            shown.add_row(*map(terminal_text, line))
        console.print(Text("Order of the rows by LM loss at each check, against that at the end", "bold"))
        console.print(shown)
        console.print()
    for sentence in wording.flips(report):
        console.print(_hanging("·", sentence, ""))
    if not report.checks.empty:
        console.print()


def _rich_table(tight: bool = False) -> RichTable:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0 if tight else 1, 0, 0))


def table_of_numbers(first: str, *others: str, tight: bool = True) -> RichTable:
    """Return an empty table with a column of names and columns of numbers."""
    shown = _rich_table(tight)
    shown.add_column(first, overflow="fold")
    for name in others:
        shown.add_column(name, justify="right")
    return shown


def _hanging(mark: str, text: str, style: str) -> RichTable:
    from rich.table import Table

    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(terminal_text(mark, style), terminal_text(text, style))
    return grid


def _rich_main(report: Report, width: int, tight: bool) -> Iterator[RichTable | str]:
    """Yield the main table, in parts with an empty line between them if it is wider than the console."""
    frame = wording.main_table(report)
    broken = frame.map(printable).rename(columns={name: name.replace(" ", "\n") for name in frame.columns[2:]})
    for place, part in enumerate(wording.parts(broken, width, 1 if tight else 2)):
        if place:
            yield ""
        yield _rich_part(part, wording.kinds(report), tight)


def _rich_part(frame: pd.DataFrame, kinds: list[set[str]], tight: bool) -> RichTable:
    shown = _rich_table(tight)
    for place, name in enumerate(frame):
        left = place < 2 or wording.has_spread(frame[name])
        header = terminal_text(name, keep="\n")
        shown.add_column(header, justify="left" if left else "right", no_wrap=place > 0, overflow="fold")
    for place, (line, kind) in enumerate(zip(frame.to_dict("records"), kinds, strict=True)):
        style = " ".join(_STYLES[name] for name in _STYLES if name in kind)
        cells = {name: terminal_text(cell, style) for name, cell in line.items()}
        if not line.get("n", "0").isdigit() and "heading" not in kind:
            cells["n"].stylize("yellow")
        group, *below = (of_row & {"apart", "reference", "heading"} for of_row in kinds[place : place + 2])
        ends = bool(below) and below[0] != group and "heading" not in group
        shown.add_row(*cells.values(), end_section=ends)
    return shown


def _rich_claims(report: Report, tight: bool) -> RichTable:
    from rich.text import Text

    shown = _rich_table(tight)
    for name in ("verdict", "claim", "difference [95 %]", "p", "n"):
        shown.add_column(Text(name), justify="right" if name in "pn" else "left", no_wrap=name != "claim")
    for line in wording.claims_table(report).map(printable).to_dict("records"):
        mark, style = wording.VERDICTS[line["verdict"]]
        claim = re.sub(r"(?<=:) | (?=[<>] )", "\n", line["claim"]) if tight else line["claim"]
        shown.add_row(
            Text(f"{mark} {line['verdict']}", style), Text.assemble(claim, (f"\n{line['source']}", "dim")),
            Text(line["difference [95 %]"].replace(" [", "\n[")), line["p"], line["n"],
        )  # fmt: skip
    return shown


def print_students(found: Sequence[Student], console: Console) -> None:
    """Print the folders and sizes of the best students, and the number of the others."""
    from rich.filesize import decimal

    if not found:
        return
    console.print(terminal_text("\nStudents, best first", "bold", keep="\n"))
    for student in found[:_STUDENTS]:
        size = [] if math.isnan(student.parameters) else [f"{amount(student.parameters)} parameters"]
        about = ", ".join([f"{student.row}, seed {student.seed}", *size, decimal(student.num_bytes)])
        console.print(terminal_text(about))
        console.print(terminal_text(f"  {student.folder}", "dim"), soft_wrap=True)
    if len(found) > _STUDENTS:
        console.print(terminal_text(f"and {len(found) - _STUDENTS} more; `status` lists the addresses of all cells"))


def print_status(tidy: pd.DataFrame, console: Console, work: Mapping[str, str] | None = None) -> None:
    """Print every cell with its address and state, and the number of cells by state.

    `work` maps the stage and address of what processes are computing to who does it since when; cells say so, and
    other stages follow the table.
    """
    work = dict(work or {})
    shown = _rich_table()
    for name in ("key", "row", "seed", "state"):
        shown.add_column(name, overflow="fold")
    for line in tidy.to_dict("records"):
        state = line["state"] + (f": {line['error']}" if line["error"] else "")
        state = work.pop(f"cell-{line['key']}", state)
        cells = (line["key"], line["row"], str(line["seed"]), state)
        shown.add_row(*(terminal_text(cell, _STATES[line["state"]]) for cell in cells))
    counts = ", ".join(f"{count} {state}" for state, count in tidy["state"].value_counts().items())
    console.print(shown)
    console.print()
    console.print(terminal_text(f"{len(tidy)} cells: {counts}"))
    for name, text in work.items():
        console.print(terminal_text(f"{name}: {text}"), soft_wrap=True)


def print_costs(costs: Sequence[Cost], console: Console) -> None:
    """Print the cost of each row and the totals; a time is unknown without earlier results."""
    shown = table_of_numbers("row", "cells", "parameters", "steps", "tokens", "time", tight=console.width < _ROOMY)
    for cost in costs:
        time = "unknown" if cost.seconds is None else duration(cost.seconds)
        numbers = (str(cost.cells), amount(cost.parameters), f"{cost.steps:,}", amount(cost.tokens))
        shown.add_row(terminal_text(cost.row), *(numbers if cost.cells else [""] * len(numbers)), time)
    if costs:
        known = [cost.seconds for cost in costs if cost.seconds is not None]
        total = ("at least " if len(known) < len(costs) else "") + duration(sum(known)) if known else "unknown"
        steps = sum(cost.cells * cost.steps for cost in costs)
        tokens = amount(sum(cost.tokens for cost in costs))
        shown.add_row("total", str(sum(cost.cells for cost in costs)), "", f"{steps:,}", tokens, total, style="bold")
        console.print(shown)


def print_published_costs(costs: Sequence[PublishedCost], console: Console) -> None:
    """Print the costs in a paper beside those computed from its shapes, with a verdict on each as on a claim."""
    from rich.text import Text

    from lit_prune.report.costs import shown as tabulated

    tight = console.width < _ROOMY
    shown = _rich_table(tight)
    for name in ("verdict", "quantity", "paper", "computed", "tolerance"):
        shown.add_column(name, no_wrap=name != "quantity")
    for line in tabulated(costs).map(printable).to_dict("records"):
        mark, style = wording.VERDICTS[line["verdict"]]
        numbers = (line[name].replace(" ", "\n" if tight else " ") for name in ("paper", "computed", "tolerance"))
        about = (f"\n{line['Minitron']}: {line['computed with']}", "dim")
        shown.add_row(Text(f"{mark} {line['verdict']}", style), Text.assemble(line["quantity"], about), *numbers)
    console.print(shown)


def print_diff(first: Node, second: Node, console: Console) -> None:
    """Print the fields in which two nodes differ, the results of both, and differences in code, versions or machine."""
    nodes = (first, second)
    sides = [_flat({"": node.config, "result": node.result or {}, "env": _code(node)}) for node in nodes]
    shown = _rich_table()
    for name in ("", *(f"{node.folder.parent.name}/{node.key}" for node in nodes)):
        shown.add_column(terminal_text(name), overflow="fold")
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        values = [side.get(name, wording.NONE) for side in sides]
        if values[0] != values[1] or name.startswith("result."):
            shown.add_row(*(terminal_text(str(value)) for value in (name, *values)))
    console.print(shown if shown.row_count else terminal_text("the two nodes do not differ"))


def _code(node: Node) -> dict[str, Any]:
    return {name: node.env.get(name) for name in ("commit", "python", "processor", "versions")}


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        path = f"{prefix}.{name}".strip(".")
        flat |= _flat(value, path) if isinstance(value, Mapping) else {path: value}
    return flat
