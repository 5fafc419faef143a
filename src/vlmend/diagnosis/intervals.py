"""Rates and averages as plain records with 95 % intervals, in one form for all of a diagnosis.

`Rate` = {"rate", "low", "high", "n"}, `Stat` = {"value", "low", "high", "n"}. What is not there
is None, never NaN: the interval of fewer than two values, everything of no value.

Shapes: N = items, R = resamples, E = exits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlmend.errors import ConfigError
from vlmend.evals.stats import Rate

RESAMPLES = 2000
"""Bootstrap resamples of an interval."""

_BLOCK = 2_000_000
"""Indices drawn at a time: bounds the memory of a bootstrap to about 32 MB."""


def rate_record(rate: Rate) -> dict[str, Any]:
    """A rate of `evals.stats` as a record."""
    return {"rate": rate.rate, "low": rate.low, "high": rate.high, "n": rate.n}


def empty_stat(n: int = 0) -> dict[str, Any]:
    """A statistic that is not there."""
    return {"value": None, "low": None, "high": None, "n": n}


def average(
    values: Sequence[float],
    *,
    kind: Literal["mean", "median"] = "mean",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The mean or median of values with a percentile bootstrap interval over them.

    Args:
        values: One finite value per item.
        kind: Which average.
        seed: Seed of the resampling; the same seed gives the same interval.
        resamples: Bootstrap resamples, at least 1.

    Returns:
        A `Stat`; without an interval for a single value, and empty for none.

    Raises:
        ConfigError: A value that is not finite, or no resamples.

    Reference:
        Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.

    Example:
        >>> average([1.0, 2.0, 6.0])["value"], average([1.0, 2.0, 6.0], kind="median")["value"]
        (3.0, 2.0)
        >>> average([2.0])
        {'value': 2.0, 'low': None, 'high': None, 'n': 1}
    """
    values_N = np.asarray(values, dtype=np.float64)
    wrong = int((~np.isfinite(values_N)).sum())
    if wrong or resamples < 1:
        raise ConfigError(
            f"an interval of {len(values_N)} values ({wrong} not finite) from {resamples} "
            "resamples is not possible. Leave out what could not be measured; at least 1 resample."
        )
    if not len(values_N):
        return empty_stat()
    reduce = np.mean if kind == "mean" else np.median
    value = float(reduce(values_N))
    if len(values_N) < 2:
        return {"value": value, "low": None, "high": None, "n": 1}
    generator = np.random.default_rng(seed)
    found: list[float] = []
    while len(found) < resamples:
        rows = min(resamples - len(found), max(1, _BLOCK // len(values_N)))
        drawn_RN = values_N[generator.integers(0, len(values_N), size=(rows, len(values_N)))]
        found += reduce(drawn_RN, axis=1).tolist()
    return {"value": value, **percentile_limits(found), "n": len(values_N)}


def average_over_exits(
    values_EN: Sequence[Sequence[float | None]],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The mean over exits of each exit's mean over items, with a bootstrap over items.

    An item is drawn with its values at all exits, so what the exits share (hard items are hard
    at every exit) stays in the interval.

    Args:
        values_EN: Per exit, one value per item in one order; None where there is none. An exit
            without any value is left out.
        seed: Seed of the resampling.
        resamples: Bootstrap resamples.

    Returns:
        A `Stat`; n is the number of items with a value at any exit.

    Raises:
        ConfigError: Exits with different numbers of items.
    """
    if len({len(row) for row in values_EN}) > 1:
        raise ConfigError(
            f"exits with {', '.join(str(len(row)) for row in values_EN)} items are not comparable. "
            "Give the same items in the same order, None where there is no value."
        )
    table_EN = np.asarray(
        [[math.nan if v is None else float(v) for v in row] for row in values_EN], dtype=np.float64
    )
    if table_EN.size == 0:
        return empty_stat()
    there_EN = np.isfinite(table_EN)
    kept = there_EN.any(axis=1)
    items = there_EN.any(axis=0)
    n = int(items.sum())
    if not n:
        return empty_stat()
    table_EN, there_EN = table_EN[kept][:, items], there_EN[kept][:, items]
    filled_EN = np.where(there_EN, table_EN, 0.0)
    value = float((filled_EN.sum(axis=1) / there_EN.sum(axis=1)).mean())
    if n < 2:
        return {"value": value, "low": None, "high": None, "n": n}
    times_RN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    counts_RE = times_RN @ there_EN.T
    # A resample in which some exit has no value at all says nothing of that exit.
    usable = (counts_RE > 0).all(axis=1)
    if not usable.any():
        return {"value": value, "low": None, "high": None, "n": n}
    means_R = ((times_RN[usable] @ filled_EN.T) / counts_RE[usable]).mean(axis=1)
    return {"value": value, **percentile_limits(means_R), "n": n}


def percentile_limits(values: Iterable[float]) -> dict[str, float]:
    """2.5 % and 97.5 % quantile, as the limits of a record."""
    resampled: NDArray[np.float64] = np.asarray(list(values), dtype=np.float64)
    low, high = np.quantile(resampled, [0.025, 0.975]).tolist()
    return {"low": float(low), "high": float(high)}
