"""The costs that Minitron prints beside those that follow from its shapes. Only `costs` loads torch.

Nothing is trained and nothing is random: a printed number holds or fails by a stated tolerance.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from lit_prune.config.profiles import RECORDS

RECORD = Path("cost") / "costs.csv"
"""The computed costs in a folder of records, for reports, which load no torch."""
_COLUMNS = ["quantity", "source", "printed", "computed", "tolerance", "unit", "how"]


@dataclass(frozen=True)
class Cost:
    """A number in the paper, and the same number by `lit_prune.models.flops`."""

    quantity: str
    source: str
    """Place in arXiv 2407.14679v2."""
    printed: float
    computed: float
    tolerance: float
    """Largest difference at which the printed number holds: half a unit of its last digit."""
    unit: str
    how: str
    """How it is computed."""

    @property
    def verdict(self) -> str:
        """Whether the printed number holds."""
        return "holds" if abs(self.computed - self.printed) <= self.tolerance else "fails"


def costs() -> list[Cost]:
    """Compute every cost from the published shapes, with steps of 1,152 sequences of 4,096 tokens."""
    from lit_prune.models.flops import minitron_step
    from lit_prune.models.published import LARGE, SMALL, TEACHER, published_configs

    configs = published_configs()
    alone = {name: minitron_step(configs[name]) for name in (TEACHER, LARGE, SMALL)}
    taught = {name: minitron_step(configs[name], configs[TEACHER]) for name in (LARGE, SMALL)}
    family, students = sum(alone.values()), alone[LARGE] + alone[SMALL]
    printed = {TEACHER: 4.4e17, LARGE: 2.5e17, SMALL: 1.2e17}
    charged = f"the forward passes of {TEACHER} counted"
    saving = "compute of 15B, 8B and 4B, each from scratch over pruned"
    return [
        *(
            Cost(
                f"training step of {name}", "section 4.1", number, alone[name], 0.05e17, "FLOPs",
                "1,152 x 4,096 tokens",
            )
            for name, number in printed.items()
        ),
        Cost(
            f"training tokens, Nemotron-3 8B over {LARGE}", "abstract", 40, 3.8e12 / 94e9, 0.5, "x",
            "3.8T and 94B tokens (Table 2)",
        ),
        Cost(
            saving, "abstract", 1.8, family / (alone[TEACHER] + students / 40), 0.05, "x",
            "8B and 4B on 1/40 of the tokens, no passes of the teacher counted",
        ),
        Cost(
            saving, "abstract", 1.8, family / (alone[TEACHER] + sum(taught.values()) / 40), 0.05, "x",
            f"8B and 4B on 1/40 of the tokens, {charged}",
        ),
        Cost(
            saving, "abstract", 1.8, family / (alone[TEACHER] + sum(taught.values()) * 94e9 / 8e12), 0.05, "x",
            f"8B and 4B on 94B of 8T tokens, {charged}",
        ),
        *(
            Cost(
                f"tokens without a teacher that cost as much as 100B with {teacher}", "Table 11", 150,
                100 * minitron_step(configs[SMALL], configs[teacher]) / alone[SMALL], 5,
                "billion tokens",
                f"{SMALL}, the forward passes of {teacher} counted",
            )
            for teacher in (TEACHER, LARGE)
        ),
    ]  # fmt: skip


def text(found: Iterable[Cost]) -> str:
    """Return costs as CSV, from which `read` returns them."""
    return pd.DataFrame([asdict(cost) for cost in found], columns=_COLUMNS).to_csv(index=False, float_format="%.6g")


def read(records: Path = RECORDS) -> list[Cost]:
    """Return the recorded costs; none if a folder of records has none."""
    path = records / RECORD
    return [Cost(**line) for line in pd.read_csv(path).to_dict("records")] if path.exists() else []


def shown(found: Iterable[Cost]) -> pd.DataFrame:
    """Return costs as text for readers, a line each."""
    return pd.DataFrame(
        {
            "quantity": cost.quantity, "Minitron": cost.source, "paper": _number(cost.printed, cost.unit),
            "computed": _number(cost.computed, cost.unit), "tolerance": _number(cost.tolerance, cost.unit),
            "verdict": cost.verdict, "computed with": cost.how,
        }
        for cost in found
    )  # fmt: skip


def _number(value: float, unit: str) -> str:
    return f"{value:.3g}{unit}" if unit == "x" else f"{value:.3g} {unit}"
