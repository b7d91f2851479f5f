"""Numbers as they are read, one by one and by the column. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NONE = "—"
_MINUS = "\N{MINUS SIGN}"
_TIMES = ((3600, "h"), (60, "min"))
_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))


def signed(text: str) -> str:
    """Return the text of a number with a real minus sign."""
    return text.replace("-", _MINUS)


def number(value: float, digits: int = 4, sign: str = "") -> str:
    """Return a value to read; a dash if there is none."""
    if math.isnan(value):
        return NONE
    if abs(value) >= 1e6:
        return signed(f"{value:{sign}.2e}")
    return signed(f"{value:{sign}.{0 if abs(value) >= 1000 else digits}f}")


def amount(value: float) -> str:
    """Return a count to read, as 1.23 M; a dash if there is none."""
    if math.isnan(value):
        return NONE
    size, unit = next(((size, f" {unit}") for size, unit in _UNITS if abs(value) >= size), (1, ""))
    return f"{value / size:.2f}{unit}" if unit else f"{value:.0f}"


def flops(count: float) -> str:
    """Floating-point operations to read; a dash where the count is not known."""
    return NONE if math.isnan(count) else f"{count:.2e}" if count else "0"


def duration(seconds: float) -> str:
    """Return a time to read, in s, min or h; a dash if there is none."""
    if math.isnan(seconds):
        return NONE
    size, unit = next(((size, unit) for size, unit in _TIMES if seconds >= size), (1, "s"))
    return f"{seconds / size:.1f} {unit}"


def memory(num_bytes: float) -> str:
    """Return an amount of memory to read; a dash if there is none."""
    return NONE if math.isnan(num_bytes) else f"{num_bytes / 2**20:,.0f} MiB"


def p_value(value: float) -> str:
    return "<.001" if value < 0.001 else number(value, 3)


def as_printed(column: pd.Series) -> list[str]:
    """Return the paper's values with as many digits as it printed."""
    digits = max((len(str(value).partition(".")[2]) for value in column.dropna()), default=0)
    return [number(value, digits) for value in column]


def with_spread(means: Iterable[str], spreads: Iterable[str]) -> list[str]:
    """ "mean ± spread" in a column, the means in line; the mean alone where there is no spread."""
    means = list(means)
    width = max(map(len, means))
    return [mean.rjust(width) + (f" ± {spread}" if spread else "") for mean, spread in zip(means, spreads, strict=True)]
