"""Averages as plain records with 95 % intervals, in one form for all of a diagnosis.

`Stat` = {"value", "low", "high", "n"}. What is not there is None, never NaN: the interval of
fewer than two groups, everything of no value.

Items that share something (a thing drawn in several ways) come out alike, so that intervals are
over what they share: over groups. Means have Student's limits with one degree of freedom less
than there are groups; a percentile bootstrap of a handful of values is far too narrow. Medians
have no such formula and are bootstrapped, from `LEAST_FOR_MEDIAN` groups on.

Shapes: N = items, G = groups, R = resamples, E = exits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlmend.errors import ConfigError
from vlmend.evals.clustered import (
    clustered_error,
    clustered_limits,
    draw_groups,
    number_groups,
    student_quantile,
)

Floats = NDArray[np.float64]

RESAMPLES = 2000
"""Bootstrap resamples of an interval."""

LEAST_FOR_MEDIAN = 6
"""Groups below which a median has no interval: even the smallest and the largest of five values
hold the median of where they come from with 94 % only."""

_BLOCK = 2_000_000
"""Weights held at a time: bounds the memory of a bootstrap to about 64 MB."""


def empty_stat(n: int = 0) -> dict[str, Any]:
    """A statistic that is not there."""
    return {"value": None, "low": None, "high": None, "n": n}


def average(
    values: Sequence[float],
    *,
    kind: Literal["mean", "median"] = "mean",
    groups: Sequence[str] | None = None,
    within: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The mean or median of values with a 95 % interval over groups.

    Every item weighs the same. The limits of a mean are `clustered_limits`: Student's t with
    G - 1 degrees of freedom, and the variance of a ratio of sums over groups. Those of a median
    are the percentile bootstrap's, a group being drawn with all its items, from
    `LEAST_FOR_MEDIAN` groups on. Where nothing varies both limits are the value.

    Args:
        values: One finite value per item.
        kind: Which average.
        groups: What an item shares with others; None: every item stands for itself.
        within: The smallest and the largest value there can be; limits are cut there.
        seed: Seed of a median's resampling; a mean draws nothing.
        resamples: Bootstrap resamples of a median, at least 1.

    Returns:
        A `Stat`; n is the number of items. Without an interval for a single group, and empty
        for no value.

    Raises:
        ConfigError: A value that is not finite, groups of other items, or no resamples.

    Reference:
        Cochran, "Sampling Techniques" (3rd ed. 1977), section 9A, for means. Davison and
        Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8, for medians.

    Example:
        >>> average([1.0, 2.0, 6.0])["value"], average([1.0, 2.0, 6.0], kind="median")["value"]
        (3.0, 2.0)
        >>> average([2.0])
        {'value': 2.0, 'low': None, 'high': None, 'n': 1}
    """
    values_N = np.asarray(values, dtype=np.float64)
    wrong = int((~np.isfinite(values_N)).sum())
    if wrong or resamples < 1 or (groups is not None and len(groups) != len(values_N)):
        raise ConfigError(
            f"an interval of {len(values_N)} values ({wrong} not finite, "
            f"{'no' if groups is None else len(groups)} groups given) from {resamples} resamples "
            "is not possible. Leave out what could not be measured; one group per value, if any; "
            "at least 1 resample."
        )
    n = len(values_N)
    if not n:
        return empty_stat()
    group_N = np.arange(n) if groups is None else number_groups(groups)
    value = float(np.mean(values_N) if kind == "mean" else np.median(values_N))
    limits = (
        clustered_limits(values_N, group_N)
        if kind == "mean"
        else _median_limits(values_N, group_N, seed, resamples)
    )
    return {"value": value, **_cut(limits, within), "n": n}


def average_by_group(values: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """The mean over groups of each group's mean, with Student's limits; n is their number.

    Every group weighs the same, however many items it has.

    Args:
        values: One finite value per item.
        groups: What each item shares with others.

    Raises:
        ConfigError: As `average`.
    """
    by_group: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        by_group.setdefault(group, []).append(value)
    return average([float(np.mean(mine)) for mine in by_group.values()])


def _cut(limits: tuple[float, float] | None, within: tuple[float, float]) -> dict[str, Any]:
    if limits is None:
        return {"low": None, "high": None}
    return {"low": max(within[0], limits[0]), "high": min(within[1], limits[1])}


def _median_limits(
    values_N: Floats, group_N: NDArray[np.intp], seed: int, resamples: int
) -> tuple[float, float] | None:
    """Percentile limits of the median of all items of resampled groups."""
    num_groups = int(group_N.max()) + 1
    if num_groups < LEAST_FOR_MEDIAN:
        return None
    order = np.argsort(values_N, kind="stable")
    sorted_N, group_N = values_N[order], group_N[order]
    generator = np.random.default_rng(seed)
    one_kind_G = np.zeros(num_groups, dtype=np.intp)
    found: list[float] = []
    while len(found) < resamples:
        rows = min(resamples - len(found), max(1, _BLOCK // len(values_N)))
        # Items up to and including each, when every item comes as often as its group.
        upto_RN = draw_groups(one_kind_G, rows, generator)[:, group_N].cumsum(axis=1)
        total_R = upto_RN[:, -1]
        # Of an even number the two in the middle, of an odd one the same twice.
        middle = [(upto_RN <= at[:, None]).sum(axis=1) for at in ((total_R - 1) // 2, total_R // 2)]
        found += ((sorted_N[middle[0]] + sorted_N[middle[1]]) / 2).tolist()
    limits = percentile_limits(found)
    return limits["low"], limits["high"]


def average_over_exits(
    values_EN: Sequence[Sequence[float | None]],
    *,
    groups: Sequence[str] | None = None,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> dict[str, Any]:
    """The mean over exits of each exit's mean over items, with a 95 % interval over groups.

    A group counts with its items' values at all exits, so what the exits share (hard items are
    hard at every exit) stays in the interval. Student's limits from the variance of a sum of
    ratios, linearised: with one exit they are those of `average`.

    Args:
        values_EN: Per exit, one value per item in one order; None where there is none. An exit
            without any value is left out.
        groups: What an item shares with others; None: every item stands for itself.
        within: The smallest and the largest value there can be; limits are cut there.

    Returns:
        A `Stat`; n is the number of items with a value at any exit. Without an interval where
        an exit has values in fewer than two groups.

    Raises:
        ConfigError: Exits with different numbers of items, or groups of other items.
    """
    lengths = [len(row) for row in values_EN]
    names = list(groups) if groups is not None else [str(i) for i in range(max(lengths, default=0))]
    if {*lengths} - {len(names)}:
        raise ConfigError(
            f"exits with {', '.join(map(str, lengths))} items and {len(names)} groups are not "
            "comparable. Give the same items in the same order, None where there is no value."
        )
    table_EN = np.asarray(
        [[math.nan if v is None else float(v) for v in row] for row in values_EN], dtype=np.float64
    )
    there_EN = np.isfinite(table_EN)
    if not there_EN.any():
        return empty_stat()
    kept, items = there_EN.any(axis=1), there_EN.any(axis=0)
    table_EN, there_EN = table_EN[kept][:, items], there_EN[kept][:, items]
    count_E1 = there_EN.sum(axis=1, keepdims=True)
    mean_E1 = np.where(there_EN, table_EN, 0.0).sum(axis=1, keepdims=True) / count_E1
    stat = {"value": float(mean_E1.mean()), "low": None, "high": None, "n": int(items.sum())}
    group_N = number_groups([names[i] for i in np.flatnonzero(items)])
    if any(len(np.unique(group_N[there_EN[e]])) < 2 for e in range(len(there_EN))):
        return stat
    influence_EN = np.where(there_EN, table_EN - mean_E1, 0.0) / count_E1
    influence_N = np.asarray(influence_EN.mean(axis=0))
    half = student_quantile(int(group_N.max()) + 1) * clustered_error(influence_N, group_N)
    return {**stat, **_cut((stat["value"] - half, stat["value"] + half), within)}


def percentile_limits(values: Iterable[float]) -> dict[str, float]:
    """2.5 % and 97.5 % quantile, as the limits of a record."""
    resampled: NDArray[np.float64] = np.asarray(list(values), dtype=np.float64)
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    return {"low": float(low), "high": float(high)}
