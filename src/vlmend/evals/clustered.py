"""A rate and its interval when several items share a thing. Pure.

Items about one thing tend to be right or wrong together, so n items carry less than n
independent observations; a plain Wilson interval is then too narrow.

Shapes: N = items, G = groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vlmend.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ClusteredRate:
    """A share of items with a 95 % interval over groups.

    Attributes:
        rate: The share, 0..1; None without items (or, where classes are given, without one of
            the two).
        low: Lower limit; None as well when all items are of one group.
        high: Upper limit, as `low`.
        n: Items.
    """

    rate: float | None
    low: float | None
    high: float | None
    n: int

    def record(self) -> dict[str, float | int | None]:
        """As plain data for a record."""
        return {"rate": self.rate, "low": self.low, "high": self.high, "n": self.n}


def clustered_rate(
    hits: Sequence[bool], groups: Sequence[str], classes: Sequence[bool] | None = None
) -> ClusteredRate:
    """A rate with Wilson's interval at the effective number of items.

    The effective number is the one at which independent items would have the variance that is
    found between groups (linearised, with G / (G - 1)), at most n, and reduced to allow for
    estimating that variance from G groups (squared ratio of the normal to the t quantile with
    G - 1 degrees of freedom). Where nothing varies (no hit, all hits) that variance cannot be
    estimated, and every group counts as one observation.

    Args:
        hits: Per item, whether it has the property.
        groups: Per item, what it shares with others.
        classes: Per item, its class. If given, both classes weigh the same however many items
            they have: with hits = "predicted right" the rate is the balanced accuracy, which
            is 0.5 for any probe that ignores its input.

    Raises:
        ConfigError: Lengths differ.

    Reference:
        Korn and Graubard, "Confidence intervals for proportions with small expected number of
        positive counts estimated from survey data", Survey Methodology 24 (1998), with Wilson's
        limits as in Dean and Pagano, Journal of Survey Statistics and Methodology 3 (2015).

    Example:
        >>> rate = clustered_rate([True, True, False, True], ["a", "a", "b", "c"])
        >>> rate.rate, rate.n
        (0.75, 4)
    """
    kinds = [True] * len(hits) if classes is None else list(classes)
    if not len(hits) == len(groups) == len(kinds):
        raise ConfigError(
            f"{len(hits)} outcomes, {len(groups)} groups and {len(kinds)} classes do not belong "
            "together. Give one of each per item."
        )
    n = len(hits)
    hit_N = np.asarray(hits, dtype=np.float64)
    kind_N = np.asarray(kinds, dtype=bool)
    if n == 0 or (classes is not None and (kind_N.all() or not kind_N.any())):
        return ClusteredRate(None, None, None, n)
    present = [kind_N == kind for kind in np.unique(kind_N)]
    rate = float(np.mean([hit_N[rows].mean() for rows in present]))
    group_N = np.unique(list(groups), return_inverse=True)[1]
    num_groups = int(group_N.max()) + 1
    if num_groups < 2:
        return ClusteredRate(rate, None, None, n)
    n_effective = _effective_number(rate, hit_N, present, group_N)
    low, high = _wilson(rate, _allow_for_groups(n_effective, num_groups))
    return ClusteredRate(rate, low, high, n)


def _effective_number(
    rate: float, hit_N: NDArray[np.float64], classes: Sequence[NDArray[np.bool_]], group_N: NDArray
) -> float:
    """Independent items with the same variance of the rate."""
    share_N = np.zeros(len(hit_N))
    for rows in classes:
        share_N[rows] = (hit_N[rows] - hit_N[rows].mean()) / (len(classes) * rows.sum())
    by_group_G = np.bincount(group_N, share_N)
    num_groups = len(by_group_G)
    variance = float((by_group_G**2).sum() * num_groups / (num_groups - 1))
    # Below is rounding error of a sum of at most a million terms of size 1/n.
    if variance < 1e-18 or rate in (0.0, 1.0):
        return float(num_groups)
    return float(np.clip(rate * (1 - rate) / variance, 1.0, len(hit_N)))


def _allow_for_groups(n_effective: float, num_groups: int) -> float:
    from scipy.stats import t

    ratio = NormalDist().inv_cdf(0.975) / float(t.ppf(0.975, num_groups - 1))
    return n_effective * ratio**2


def _wilson(rate: float, n: float) -> tuple[float, float]:
    """Wilson's limits for a number of items that need not be whole."""
    z2 = NormalDist().inv_cdf(0.975) ** 2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At 0 and 1 the closed form leaves a rounding error beyond the rate.
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))
