"""Numbers against numbers: rows paired by seed, checkpoints paired by document, p values for several tests, one order
against another. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

# Seeds spread a loss in its third digit; what is below this share of its value is rounding.
_ROUNDING = 1e-9
_RESAMPLED_AT_ONCE = 2**22

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """One minus the other, a 95 % interval and a two-sided p: of rows over the `n` seeds both have, by t (`compare`),
    or of two checkpoints over `n` documents, by resampling these (`paired_bootstrap`)."""

    difference: float
    low: float
    high: float
    p: float
    n: int

    @property
    def constant(self) -> bool:
        """Whether all of at least two seeds have the same difference, so that there is no variance to test."""
        return self.n > 1 and bool(np.isnan(self.p))


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b between two orders of `n` rows; `smallest_p` is that of one order with itself."""

    n: int
    tau: float
    p: float
    smallest_p: float


def compare(values: pd.DataFrame, row: str, other: str) -> Paired:
    """`row` minus `other` in a frame of one metric, [seeds, rows], over the seeds both have.

    With fewer than two seeds there is no estimate of the noise: interval and p are NaN. They are NaN too where the
    difference is the same for every seed up to rounding, since a t-test needs variance; see `constant`. A mean that is
    rounding then is 0.
    """
    pair = values.reindex(columns=[row, other]).dropna().to_numpy(float)
    difference = pair[:, 0] - pair[:, 1]
    mean = float(difference.mean()) if len(pair) else np.nan
    if len(pair) < 2:
        return Paired(mean, np.nan, np.nan, np.nan, len(pair))
    rounding = _ROUNDING * np.abs(pair).max()
    if np.ptp(difference) <= rounding:
        return Paired(mean if abs(mean) > rounding else 0.0, np.nan, np.nan, np.nan, len(pair))
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


def bits_per_byte(nll: Floats, num_bytes: Floats, axis: int) -> Floats:
    """All nats over all bytes, in bits: a ratio of sums, in which a long document counts for more."""
    return np.asarray(nll.sum(axis) / num_bytes.sum(axis) / np.log(2))


def paired_bootstrap(
    ours: npt.ArrayLike,
    theirs: npt.ArrayLike,
    *,
    statistic: Callable[..., Floats] = np.mean,
    num_resamples: int = 9999,
    seed: int = 0,
) -> Paired:
    """A statistic of one checkpoint minus that of another, over the same documents of a text or a task.

    Both are [documents], or [documents, columns] for a statistic of several columns, which is called with each and an
    `axis`, as `bits_per_byte` is. The interval is that of percentiles, and p twice the share of resamples on the far
    side of no difference (Efron and Tibshirani, "An Introduction to the Bootstrap", sections 13.3 and 15.4).

    This is about these two checkpoints on further documents like these. It knows nothing of how much another seed of
    the same recipe would differ: that is what `compare` is for. With one document, or where every resample gives the
    same difference, interval and p are NaN.

    Raises:
        ValueError: not the same number of documents, or none.
    """
    pair = [np.atleast_2d(np.asarray(values, float).T) for values in (ours, theirs)]
    n, split = pair[0].shape[1], len(pair[0])
    if n != pair[1].shape[1] or not n:
        raise ValueError(f"{n} documents cannot be paired with {pair[1].shape[1]}")

    def difference(*columns: Floats, axis: int) -> Floats:
        return statistic(*columns[:split], axis=axis) - statistic(*columns[split:], axis=axis)

    columns = (*pair[0], *pair[1])
    found = float(difference(*columns, axis=0))
    if n < 2:
        return Paired(found, np.nan, np.nan, np.nan, n)
    result = stats.bootstrap(
        columns, difference, paired=True, vectorized=True, n_resamples=num_resamples, method="percentile",
        batch=max(1, _RESAMPLED_AT_ONCE // n), rng=np.random.default_rng(seed),
    )  # fmt: skip
    drawn = result.bootstrap_distribution
    if np.ptp(drawn) <= _ROUNDING * np.abs(statistic(*pair[0], axis=0)):
        return Paired(found, np.nan, np.nan, np.nan, n)
    # One more on each side, as resamples can never say that p is 0.
    tail = (min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1) / (num_resamples + 1)
    low, high = result.confidence_interval
    return Paired(found, float(low), float(high), min(1.0, float(2 * tail)), n)


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
