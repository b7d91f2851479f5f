"""Numbers against numbers: rows paired by seed, p values for several tests, one order against another. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

# Seeds spread a loss in its third digit; what is below this share of its value is rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Paired:
    """Row minus row over the `n` seeds both have: mean, 95 % t interval, p of the paired t-test."""

    difference: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b between two orders of `n` rows; `smallest_p` is that of one order with itself."""

    n: int
    tau: float
    p: float
    smallest_p: float


def compare(values: pd.DataFrame, row: str, other: str) -> Paired:
    """`row` minus `other` in a frame of one metric, [seeds, rows], over the seeds both have.

    With fewer than two seeds there is no estimate of the noise: interval and p are NaN. So they are where the
    difference is the same for every seed up to rounding: it is what seeds that change nothing give.
    """
    pair = values.reindex(columns=[row, other]).dropna().to_numpy(float)
    difference = pair[:, 0] - pair[:, 1]
    mean = float(difference.mean()) if len(pair) else np.nan
    if len(pair) < 2 or np.ptp(difference) <= _ROUNDING * np.abs(pair).max():
        return Paired(mean, np.nan, np.nan, np.nan, len(pair))
    test = stats.ttest_rel(pair[:, 0], pair[:, 1])
    low, high = test.confidence_interval()
    return Paired(mean, float(low), float(high), float(test.pvalue), len(pair))


def alike(values: pd.DataFrame, row: str, other: str, within: float) -> Paired:
    """As `compare`, with the p of two one-sided paired t-tests: that the difference is less than `within` either way,
    where its mean is, and else that it is more."""
    found = compare(values, row, other)
    if np.isnan(found.p):
        return found
    pair = values.reindex(columns=[row, other]).dropna().to_numpy(float)
    differences = pair[:, 0] - pair[:, 1]
    less = stats.ttest_1samp(differences, within, alternative="less").pvalue
    more = stats.ttest_1samp(differences, -within, alternative="greater").pvalue
    p = max(less, more) if abs(found.difference) <= within else 2 * (1 - max(less, more))
    return replace(found, p=min(1.0, float(p)))


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for their number by Holm's step-down method; NaN is no test and stays NaN."""
    ranked = p.dropna().sort_values()
    return (ranked * np.arange(len(ranked), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def spread(values: pd.Series) -> float:
    """Standard deviation; exactly 0 where all values are one number, NaN where there are fewer than two."""
    known = values.dropna()
    return 0.0 if len(known) > 1 and known.nunique() == 1 else float(known.std())


def agree(ours: Sequence[float], theirs: Sequence[float]) -> Agreement:
    """How far two measurements put the same rows in one order; NaN with fewer than two rows."""
    n = len(ours)
    if n < 2:
        return Agreement(n, np.nan, np.nan, np.nan)
    found, perfect = stats.kendalltau(ours, theirs), stats.kendalltau(range(n), range(n))
    return Agreement(n, float(found.statistic), float(found.pvalue), float(perfect.pvalue))
