"""Numbers against numbers: rows paired by seed, checkpoints paired by document, p values for several tests, one order
against another. No torch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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
    """One minus the other, with a 95 % interval and p-values: of rows over the `n` seeds both have, by t (`compare`),
    or over `n` sequences or documents of one text, by resampling these (`paired_bootstrap`)."""

    difference: float
    low: float
    high: float
    p: float
    """Two-sided, that there is no difference."""
    n: int
    p_alike: float = np.nan
    """That the difference is at least the bound, in either direction (two one-sided tests); low where it is less."""
    p_beyond: float = np.nan
    """Two-sided, that the difference is no more than the bound; low where it is more."""
    p_below: float = np.nan
    """That the difference is the bound or more; low where it is less, or below 0."""
    p_above: float = np.nan
    """That the difference is minus the bound or less; low where it is more."""
    identical: bool = False
    """Whether the two are the same up to rounding, for every seed."""

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
    low: float = np.nan
    high: float = np.nan
    """Of a 95 % interval over the seeds; NaN with fewer than two."""


def compare(values: pd.DataFrame, row: str, other: str, bound: float = np.nan) -> Paired:
    """`row` minus `other` in a frame of one metric, [seeds, rows], over the seeds both have: paired t-test.

    With fewer than two seeds there is no estimate of the noise: interval and p are NaN. They are NaN too where the
    difference is the same for every seed up to rounding, since a t-test needs variance; see `constant`. A mean that is
    rounding then is 0. `bound` is that of `p_alike` and `p_beyond`.
    """
    pair = values.reindex(columns=[row, other]).dropna().to_numpy(float)
    difference, n = pair[:, 0] - pair[:, 1], len(pair)
    if not n:
        return Paired(np.nan, np.nan, np.nan, np.nan, 0)
    rounding = _ROUNDING * np.abs(pair).max()
    if np.abs(difference).max() <= rounding:
        return Paired(0.0, np.nan, np.nan, np.nan, n, identical=True)
    mean = float(difference.mean())
    if n < 2 or np.ptp(difference) <= rounding:
        return Paired(mean, np.nan, np.nan, np.nan, n)
    low, high = stats.ttest_1samp(difference, 0).confidence_interval()

    def one_sided(bound: float, alternative: Literal["less", "greater"]) -> float:
        return float(stats.ttest_1samp(difference, bound, alternative=alternative).pvalue)

    return Paired(mean, float(low), float(high), *_two_sided(one_sided, n, bound))


def _two_sided(
    one_sided: Callable[[float, Literal["less", "greater"]], float], n: int, bound: float
) -> tuple[float, int, float, float, float, float]:
    """Return the fields p, n, p_alike, p_beyond, p_below and p_above from the p of one-sided tests against a value."""
    p = min(1.0, 2 * min(one_sided(0, "less"), one_sided(0, "greater")))
    if np.isnan(bound):
        return p, n, np.nan, np.nan, np.nan, np.nan
    below, above = one_sided(bound, "less"), one_sided(-bound, "greater")
    beyond = 2 * min(one_sided(bound, "greater"), one_sided(-bound, "less"))
    return p, n, max(below, above), min(1.0, beyond), below, above


def sign_test(found: Paired, bound: float) -> Paired:
    """Return a difference that is the same for all of at least two seeds with the p-values of sign tests.

    This is for discrete measurements, such as the order of rows, which seeds can leave as they are although they change
    what is measured: all `n` seeds are on one side of a value with probability 2**-n if both sides are as likely.
    """
    certain = float(stats.binomtest(found.n, found.n, alternative="greater").pvalue)

    def one_sided(value: float, alternative: Literal["less", "greater"]) -> float:
        there = found.difference < value if alternative == "less" else found.difference > value
        return certain if there else 1.0

    return Paired(found.difference, np.nan, np.nan, *_two_sided(one_sided, found.n, bound))


def per_token(loss: Floats, tokens: Floats, axis: int) -> Floats:
    """Return all loss over all tokens: a ratio of sums."""
    return np.asarray(loss.sum(axis) / tokens.sum(axis))


def bits_per_byte(nll: Floats, num_bytes: Floats, axis: int) -> Floats:
    """Return all nats over all bytes, in bits: a ratio of sums, in which a long document counts for more."""
    return np.asarray(nll.sum(axis) / num_bytes.sum(axis) / np.log(2))


def paired_bootstrap(
    ours: npt.ArrayLike,
    theirs: npt.ArrayLike,
    *,
    statistic: Callable[..., Floats] = np.mean,
    num_resamples: int = 9999,
    seed: int = 0,
    bound: float = np.nan,
) -> Paired:
    """A statistic of one checkpoint minus that of another, over the same documents or sequences of a text or a task.

    Both are [documents], or [documents, columns] for a statistic of several columns, which is called with each and an
    `axis`, as `bits_per_byte` is. The interval is that of percentiles, and p twice the share of resamples on the far
    side of no difference (Efron and Tibshirani, "An Introduction to the Bootstrap", sections 13.3 and 15.4). `bound` is
    that of `p_alike` and `p_beyond`.

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

    def one_sided(bound: float, alternative: Literal["less", "greater"]) -> float:
        contrary = (drawn >= bound) if alternative == "less" else (drawn <= bound)
        return float(contrary.sum() + 1) / (num_resamples + 1)  # one more, as resamples can never say that p is 0

    low, high = result.confidence_interval
    return Paired(found, float(low), float(high), *_two_sided(one_sided, n, bound))


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for their number by Holm's step-down method; NaN is no test and stays NaN."""
    ranked = p.dropna().sort_values()
    return (ranked * np.arange(len(ranked), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def spread(values: pd.Series) -> float:
    """Standard deviation; exactly 0 where all values are one number, NaN where there are fewer than two."""
    known = values.dropna()
    return 0.0 if len(known) > 1 and known.nunique() == 1 else float(known.std())


def agree(ours: Sequence[float], theirs: Sequence[float]) -> Agreement:
    """Return how far two measurements put the same rows in one order; NaN with fewer than two rows."""
    n = len(ours)
    if n < 2:
        return Agreement(n, np.nan, np.nan, np.nan)
    found, perfect = stats.kendalltau(ours, theirs), stats.kendalltau(range(n), range(n))
    return Agreement(n, float(found.statistic), float(found.pvalue), float(perfect.pvalue))


def agree_over_seeds(values: pd.DataFrame, theirs: pd.Series, num_resamples: int = 999, seed: int = 0) -> Agreement:
    """Return how far the means of rows over seeds, [seeds, rows], are in the order of `theirs`, by row.

    The interval is of percentiles, over resamples of the seeds that all rows have, which stay together.
    """
    rows = [row for row in values if values[row].notna().any() and pd.notna(theirs.get(row))]
    found, whole = agree(values[rows].mean().to_list(), theirs[rows].to_list()), values[rows].dropna().to_numpy(float)
    if len(rows) < 2 or len(whole) < 2:
        return found

    @functools.cache
    def tau(drawn: tuple[int, ...]) -> float:
        return float(stats.kendalltau(whole[list(drawn)].mean(0), theirs[rows]).statistic)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of a tau that no seed changes
        low, high = stats.bootstrap(
            (np.arange(len(whole)),), lambda drawn: tau(tuple(sorted(drawn))), vectorized=False,
            n_resamples=num_resamples, method="percentile", rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    return replace(found, low=float(low), high=float(high))
