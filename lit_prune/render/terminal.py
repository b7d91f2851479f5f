"""A report in a terminal, and the lists behind `status` and `diff`. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_prune.render import words

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console
    from rich.table import Table as RichTable

    from lit_prune.report import Report
    from lit_prune.store import Node

_STYLES = {"": "", "baseline": "bold", "reference": "dim"}
_STATES = {"done": "", "failed": "red", "unfinished": "yellow", "missing": "dim"}
_AS_IS: dict[str, Any] = {"markup": False, "highlight": False}
# Columns of a terminal below which the tables leave out what only makes them airy.
_ROOMY = 96


def print_report(report: Report, console: Console) -> None:
    """The report on a console: question, table, what failed, claims, order of the rows, caveats."""
    from rich.text import Text

    table, tight = report.table, console.width < _ROOMY
    console.print(Text(f"\n{table.question}", "bold"))
    console.print(Text(table.source, "dim"))
    console.print(Text(f"{words.headline(report)}\n"))
    console.print(_rich_main(report, tight))
    if words.absent(report):
        console.print(Text(f"\n{words.absent(report)}", "bold yellow"))
    for row, seed, error in words.failed(report):
        console.print(_hanging("✗", f"{row}, seed {seed}: {error}", "red"))
    console.print(Text(f"\nClaims of the paper, at profile {report.profile}", "bold"))
    console.print(_rich_claims(report, tight))
    console.print(Text.assemble(("\nOrder of the rows: ", "bold"), words.agreement(report), "\n"))
    for caveat in table.caveats:
        console.print(_hanging("·", caveat, "dim"))
    for warning in words.warnings(report):
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

    frame, kinds, shown = words.main_table(report), words.kinds(report), _rich_table(tight)
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
    for line in words.claims_table(report).to_dict("records"):
        mark, style = words.VERDICTS[line["verdict"]]
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
        values = [side.get(name, words.NONE) for side in sides]
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
