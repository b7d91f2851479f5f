"""Print a plan: what a request takes on a GPU. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_prune.escape import printable, terminal_text
from lit_prune.render.numbers import amount, flops
from lit_prune.render.terminal import table_of_numbers

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from lit_prune.pipeline.plan import Plan, Planned


def print_plan(plan: Plan, price: float | None, console: Console) -> None:
    """Print the work of each row with its hours, and dollars at a price per GPU-hour; then the memory by part."""
    several = plan.devices > 1
    on = f"{plan.devices} x {plan.gpu}" if several else plan.gpu
    console.print(terminal_text(f"On {on}, at {plan.utilization:.0%} of the peak speed", "bold"))
    dollars = [] if price is None else ["$"]
    work = table_of_numbers("row", "cells", "student", "teacher", "tokens", "FLOPs", "hours", *dollars)
    for line in plan.lines:
        sizes = [amount(size) if size else "" for size in (line.student, line.teacher, line.tokens)]
        cost = [] if price is None else [f"{price * line.hours * (plan.devices if line.memory else 1):,.0f}"]
        cells = str(line.cells or "")
        work.add_row(terminal_text(line.what), cells, *sizes, flops(line.flops), f"{line.hours:,.1f}", *cost)
    hours, spent = sum(line.hours for line in plan.lines), sum(line.flops for line in plan.lines)
    cost = [] if price is None else [f"{price * plan.gpu_hours:,.0f}"]
    work.add_row("total", "", "", "", "", flops(spent), f"{hours:,.1f}", *cost, style="bold")
    console.print(work)
    trained = [line for line in plan.lines if line.memory]
    if trained:
        about = "\nMemory of each device in GB; activations, logits and validation are estimates"
        console.print(terminal_text(about, "bold", keep="\n"))
        console.print(_memory(trained))


def _memory(trained: list[Planned]) -> RichTable:
    """Return the parts by row, with one column for the trainings that take the same."""
    alike: dict[tuple[object, ...], list[Planned]] = {}
    for line in trained:
        alike.setdefault((*line.memory.items(), line.micro_batches), []).append(line)
    names = [f"{first.what} and {len(rest)} more" if rest else first.what for first, *rest in alike.values()]
    lines = [first for first, *_ in alike.values()]
    parts = table_of_numbers("", *map(printable, names))
    for part in trained[0].memory:
        parts.add_row(part, *(f"{line.memory[part] / 1e9:,.1f}" for line in lines))
    parts.add_row("peak", *(f"{line.peak / 1e9:,.1f}" for line in lines), style="bold")
    parts.add_row("micro-batches", *(str(line.micro_batches) for line in lines))
    return parts
