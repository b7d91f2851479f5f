"""Tabulate values by seed and costs by row, the details of a page. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_prune.render import metrics, numbers

if TYPE_CHECKING:
    import pandas as pd

    from lit_prune.report import Report

_COSTS = {
    "tokens": ("tokens", numbers.amount), "train_flops": ("train FLOPs", numbers.flops),
    "wall_seconds": ("wall time", numbers.duration), "peak_memory": ("peak memory", numbers.memory),
}  # fmt: skip


def by_seed(report: Report) -> pd.DataFrame:
    """Return the first metric of every cell as text: a line per row, a column per seed."""
    metric = report.table.metrics[0]
    shown = metrics.SHOWN.get(metric, numbers.number)
    values = report.tidy.pivot(index="row", columns="seed", values=metric).reindex(report.ranked.index)
    found = values.map(shown).rename(columns="seed {}".format)
    found.insert(0, metrics.quantity(metric), found.index.astype(str))
    return found


def cost(report: Report) -> pd.DataFrame | None:
    """Return the costs of the rows as text: mean over finished seeds, and sum of all cells; None if not recorded.

    The total of memory is the maximum. A total is a dash unless all cells have the value.
    """
    import pandas as pd

    done = report.tidy[report.tidy["state"] == "done"]
    known = {name: shown for name, (_, shown) in _COSTS.items() if name in done and done[name].notna().any()}
    if not known:
        return None
    found = done[list(known)].astype(float)
    means = found.groupby(done["row"], sort=False).mean()
    totals = found.agg({name: "max" if name == "peak_memory" else "sum" for name in known})
    totals = totals.where(found.notna().all())
    frame = pd.DataFrame(
        {_COSTS[name][0]: [*map(shown, means[name]), shown(totals[name])] for name, shown in known.items()}
    )
    frame.insert(0, "row", [*map(str, means.index), f"all {len(done)} cells"])
    return frame
