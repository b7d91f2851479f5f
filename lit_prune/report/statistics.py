"""Compare rows paired by seed, checkpoints paired by document, and orders of rows; correct p values for several tests.
No torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

# Seeds change a loss in its third digit; a relative difference below this is rounding.
_ROUNDING = 1e-9
_RESAMPLED_AT_ONCE = 2**22

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """A difference with its 95 % interval and p-values: of two rows over `n` shared seeds, by t-test (`compare`), or
    over `n` sequences or documents of a text, by resampling them (`paired_bootstrap`)."""

    difference: float
    low: float
    high: float
    p: float
    """Two-sided p of no difference."""
    n: int
    p_alike: float = np.nan
    """p of |difference| >= bound (two one-sided tests); low if the two are alike."""
    p_beyond: float = np.nan
    """Two-sided p of |difference| <= bound; low if the two are further apart."""
    p_below: float = np.nan
    """p of difference >= bound; low if it is less, or below 0."""
    p_above: float = np.nan
    """p of difference <= -bound; low if it is more."""
    identical: bool = False
    """Whether the two are equal up to rounding in every seed."""

    @property
    def constant(self) -> bool:
        """Whether at least two seeds all have the same difference, so that there is no variance to test."""
        return self.n > 1 and bool(np.isnan(self.p))


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b between two orders of `n` rows; `smallest_p` is the p of an order with itself."""

    n: int
    tau: float
    p: float
    smallest_p: float
    low: float = np.nan
    high: float = np.nan
    """`low` and `high` are the ends of a 95 % interval over the seeds; NaN with fewer than two."""


def compare(values: pd.DataFrame, row: str, other: str, bound: float = np.nan) -> Paired:
    """Return `row` minus `other` in a frame of one metric, [seeds, rows], over shared seeds, with a paired t-test.

    Interval and p are NaN with fewer than two seeds, and if the difference is equal in every seed up to rounding, since
    a t-test needs variance; see `constant`. A mean difference within rounding is then 0. `bound` is that of `p_alike`
    and `p_beyond`.
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
    """Return a difference that is equal in at least two seeds with the p-values of sign tests.

    This is for discrete measurements, such as the order of rows, which can stay equal although seeds change the losses:
    all `n` seeds are on one side of a value with probability 2**-n if both sides are equally likely.
    """
    certain = float(stats.binomtest(found.n, found.n, alternative="greater").pvalue)

    def one_sided(value: float, alternative: Literal["less", "greater"]) -> float:
        there = found.difference < value if alternative == "less" else found.difference > value
        return certain if there else 1.0

    return Paired(found.difference, np.nan, np.nan, *_two_sided(one_sided, found.n, bound))


def per_token(loss: Floats, tokens: Floats, axis: int) -> Floats:
    """Return the sum of losses over the sum of tokens."""
    return np.asarray(loss.sum(axis) / tokens.sum(axis))


def bits_per_byte(nll: Floats, num_bytes: Floats, axis: int) -> Floats:
    """Return the sum of nats over the sum of bytes, in bits; long documents have more weight."""
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
    """Return a statistic of one checkpoint minus that of another over the same documents or sequences, by bootstrap.

    Both are [documents], or [documents, columns] for a statistic that is called with each column and an `axis`, such as
    `bits_per_byte`. The interval is by percentiles, and p is twice the share of resamples on the other side of no
    difference (Efron and Tibshirani, "An Introduction to the Bootstrap", sections 13.3 and 15.4). `bound` is that of
    `p_alike` and `p_beyond`. The test generalises to similar documents, not to other seeds of the recipe (`compare`
    does). With one document, or equal differences in all resamples, interval and p are NaN.

    Raises:
        ValueError: if the numbers of documents differ or are 0.
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
        return float(contrary.sum() + 1) / (num_resamples + 1)  # plus one: resamples cannot show p = 0

    low, high = result.confidence_interval
    return Paired(found, float(low), float(high), *_two_sided(one_sided, n, bound))


def holm(p: pd.Series) -> pd.Series:
    """Return p values corrected by Holm's step-down method; NaN is no test and stays NaN."""
    ranked = p.dropna().sort_values()
    return (ranked * np.arange(len(ranked), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def spread(values: pd.Series) -> float:
    """Return the standard deviation: exactly 0 for equal values, NaN for fewer than two."""
    known = values.dropna()
    return 0.0 if len(known) > 1 and known.nunique() == 1 else float(known.std())


def agree(ours: Sequence[float], theirs: Sequence[float]) -> Agreement:
    """Return the rank agreement of two measurements of the same rows; NaN with fewer than two rows."""
    n = len(ours)
    if n < 2:
        return Agreement(n, np.nan, np.nan, np.nan)
    found, perfect = stats.kendalltau(ours, theirs), stats.kendalltau(range(n), range(n))
    return Agreement(n, float(found.statistic), float(found.pvalue), float(perfect.pvalue))


def agree_over_seeds(values: pd.DataFrame, theirs: pd.Series, num_resamples: int = 999, seed: int = 0) -> Agreement:
    """Return the rank agreement of the means over seeds of [seeds, rows] with `theirs`, by row.

    The percentile interval is over resamples of the seeds that all rows share; a seed's rows stay together.
    """
    rows = [row for row in values if values[row].notna().any() and pd.notna(theirs.get(row))]
    found, whole = agree(values[rows].mean().to_list(), theirs[rows].to_list()), values[rows].dropna().to_numpy(float)
    if len(rows) < 2 or len(whole) < 2:
        return found

    order = theirs[rows].to_numpy(float)

    def tau(drawn: npt.NDArray[np.intp], axis: int) -> Floats:
        return kendall_taus(whole[np.sort(drawn, axis)].mean(-2), order)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # raised if no seed changes tau
        low, high = stats.bootstrap(
            (np.arange(len(whole)),), tau, vectorized=True, axis=-1, method="percentile",
            n_resamples=num_resamples, batch=max(1, _RESAMPLED_AT_ONCE // (len(rows) * max(len(rows), len(whole)))),
            rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    return replace(found, low=float(low), high=float(high))


def kendall_taus(ours: Floats, theirs: Floats) -> Floats:
    """Return Kendall's tau-b between each line of [..., rows] and the order [rows]; NaN if either has one value only.

    `scipy.stats.kendalltau` returns the same for one line, a hundred times as slowly.
    """
    first, second = np.triu_indices(len(theirs), 1)
    signs, order = np.sign(ours[..., first] - ours[..., second]), np.sign(theirs[first] - theirs[second])
    with np.errstate(invalid="ignore"):  # 0 / 0 without two different values
        return (signs * order).sum(-1) / np.sqrt(np.abs(signs).sum(-1)) / np.sqrt(np.abs(order).sum())
