"""What a page shows of a report below its tables: values by seed, and what the rows cost. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_prune.render import numbers, wording

if TYPE_CHECKING:
    import pandas as pd

    from lit_prune.report import Report

_COSTS = {
    "tokens": ("tokens", numbers.amount), "train_flops": ("train FLOPs", numbers.flops),
    "wall_seconds": ("wall time", numbers.duration), "peak_memory": ("peak memory", numbers.memory),
}  # fmt: skip


def by_seed(report: Report) -> pd.DataFrame:
    """Return the first metric of every cell as text: a line a row, a column a seed."""
    metric = report.table.metrics[0]
    shown = wording.SHOWN.get(metric, numbers.number)
    values = report.tidy.pivot(index="row", columns="seed", values=metric).reindex(report.ranked.index)
    found = values.map(shown).rename(columns="seed {}".format)
    found.insert(0, wording.quantity(metric), found.index.astype(str))
    return found


def cost(report: Report) -> pd.DataFrame | None:
    """Return what the rows cost, as text: mean over the finished seeds, and the sum of all cells; None if not recorded.

    Of memory, the most that any of them took. A value that is not known of all cells is left out of both.
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
