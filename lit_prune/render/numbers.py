"""Format numbers for readers, singly and by column. No torch."""

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
    """Replace the hyphen in the text of a number by a minus sign."""
    return text.replace("-", _MINUS)


def number(value: float, digits: int = 4, sign: str = "") -> str:
    """Format a value; a dash for NaN."""
    if math.isnan(value):
        return NONE
    if abs(value) >= 1e6:
        return signed(f"{value:{sign}.2e}")
    return signed(f"{value:{sign}.{0 if abs(value) >= 1000 else digits}f}")


def amount(value: float) -> str:
    """Format a count, as 1.23 M; a dash for NaN."""
    if math.isnan(value):
        return NONE
    size, unit = next(((size, f" {unit}") for size, unit in _UNITS if abs(value) >= size), (1, ""))
    return f"{value / size:.2f}{unit}" if unit else f"{value:.0f}"


def flops(count: float) -> str:
    """Format a number of floating-point operations; a dash if unknown."""
    return NONE if math.isnan(count) else f"{count:.2e}" if count else "0"


def duration(seconds: float) -> str:
    """Format a time in s, min or h; a dash if unknown."""
    if math.isnan(seconds):
        return NONE
    size, unit = next(((size, unit) for size, unit in _TIMES if seconds >= size), (1, "s"))
    return f"{seconds / size:.1f} {unit}"


def memory(num_bytes: float) -> str:
    """Format an amount of memory; a dash if unknown."""
    return NONE if math.isnan(num_bytes) else f"{num_bytes / 2**20:,.0f} MiB"


def p_value(value: float) -> str:
    return "<.001" if value < 0.001 else number(value, 3)


def as_printed(column: pd.Series) -> list[str]:
    """Format the paper's values with as many digits as it printed."""
    digits = max((len(str(value).partition(".")[2]) for value in column.dropna()), default=0)
    return [number(value, digits) for value in column]


def with_spread(means: Iterable[str], spreads: Iterable[str]) -> list[str]:
    """Format a column of "mean ± spread" with aligned means; the mean alone without a spread."""
    means = list(means)
    width = max(map(len, means))
    return [mean.rjust(width) + (f" ± {spread}" if spread else "") for mean, spread in zip(means, spreads, strict=True)]
