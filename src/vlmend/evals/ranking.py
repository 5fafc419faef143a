"""How well a score ranks one class above another: AUROC with an interval over groups. Pure.

Shapes: N = items, S = strata, T = distinct scores, R = resamples at a time, G = groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vlmend.errors import ConfigError
from vlmend.evals.clustered import draw_groups, number_groups

_BLOCK = 1_000_000
"""Weights held at a time by the bootstrap: bounds its memory to about 30 MB."""


@dataclass(frozen=True, slots=True)
class Auroc:
    """Area under the ROC curve with its 95 % interval.

    Attributes:
        value: Chance that a positive item scores above a negative one (of its stratum, if there
            are strata), ties counted half; None when there is no such pair.
        low: Lower limit; None as well when a class lies in a single group, which says nothing
            about other groups.
        high: Upper limit, as `low`.
        n_positive: Positive items.
        n_negative: Negative items.
    """

    value: float | None
    low: float | None
    high: float | None
    n_positive: int
    n_negative: int


def auroc(
    scores: Sequence[float],
    positive: Sequence[bool],
    *,
    groups: Sequence[str] | None = None,
    strata: Sequence[str] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Auroc:
    """AUROC of a score, with a percentile bootstrap over groups of items.

    With strata (e.g. suites) only pairs within a stratum are compared, and all pairs weigh the
    same: pooled without them, a score that only tells suites apart would seem to tell classes
    apart wherever suites differ in their share of positives. Items of a stratum without the
    other class are in no pair and decide nothing.

    Groups are drawn with replacement among groups that hold the same classes (positive only,
    negative only, both), so that no resample lacks a class. Where the ranking is perfect (0 or
    1) every resample repeats it and a percentile interval has no width; there the limits are
    Newcombe's, with the numbers of groups that hold a class as the sizes of the classes.
    Resamples without a pair in any stratum are left out; without limits where these are most.

    Args:
        scores: One finite score per item; higher should mean positive.
        positive: The class of each item.
        groups: What an item shares with others (a thing, a topic); None: every item stands for
            itself.
        strata: Within which items are compared; None: all with all.
        num_resamples: Bootstrap resamples, at least 1.
        seed: Seed of the resampling; the same seed gives the same interval.

    Raises:
        ConfigError: Lengths differ, a score is not finite, or `num_resamples` is below 1.

    Reference:
        Hanley and McNeil, Radiology 143 (1982). Newcombe, "Confidence intervals for an effect
        size measure based on the Mann-Whitney statistic", Statistics in Medicine 25 (2006),
        method 5.

    Example:
        >>> result = auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
        >>> result.value, result.n_positive, result.n_negative
        (0.75, 2, 2)
    """
    scores_N = np.asarray(scores, dtype=np.float64)
    positive_N = np.asarray(positive, dtype=bool)
    names = [str(i) for i in range(len(scores_N))] if groups is None else list(groups)
    within = [""] * len(scores_N) if strata is None else list(strata)
    _check(scores_N, positive_N, (names, within), num_resamples)
    n_positive = int(positive_N.sum())
    n_negative = len(positive_N) - n_positive
    compared_N = _has_opponent(positive_N, number_groups(within))
    if not compared_N.any():
        return Auroc(None, None, None, n_positive, n_negative)
    positive_N, group_N = positive_N[compared_N], number_groups(names)[compared_N]
    group_N = np.unique(group_N, return_inverse=True)[1]
    areas = _weighted_areas(scores_N[compared_N], positive_N, number_groups(within)[compared_N])
    value = float(areas(np.ones((1, len(group_N))))[0])
    sizes = len(np.unique(group_N[positive_N])), len(np.unique(group_N[~positive_N]))
    limits = None
    if min(sizes) >= 2:
        limits = (
            _newcombe_limits(value, *sizes)
            if value in (0.0, 1.0)
            else _bootstrap_limits(areas, positive_N, group_N, num_resamples, seed)
        )
    return Auroc(value, *(limits or (None, None)), n_positive, n_negative)


def _check(
    scores_N: NDArray[np.float64],
    positive_N: NDArray[np.bool_],
    names: tuple[Sequence[str], Sequence[str]],
    num_resamples: int,
) -> None:
    groups, strata = names
    if not len(scores_N) == len(positive_N) == len(groups) == len(strata):
        raise ConfigError(
            f"{len(scores_N)} scores, {len(positive_N)} classes, {len(groups)} groups and "
            f"{len(strata)} strata do not belong together. Give one of each per item."
        )
    wrong = int((~np.isfinite(scores_N)).sum())
    if wrong:
        raise ConfigError(
            f"{wrong} of {len(scores_N)} scores are not finite and cannot be ranked. "
            "Leave those items out, and say so."
        )
    if num_resamples < 1:
        raise ConfigError(f"num_resamples {num_resamples} is not possible: at least 1.")


def _has_opponent(positive_N: NDArray[np.bool_], stratum_N: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether an item's stratum holds both classes."""
    if not len(positive_N):
        return positive_N
    both_S = (np.bincount(stratum_N, positive_N) > 0) & (np.bincount(stratum_N, ~positive_N) > 0)
    return both_S[stratum_N]


def _weighted_areas(
    scores_N: NDArray[np.float64], positive_N: NDArray[np.bool_], stratum_N: NDArray[np.intp]
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A function from item weights (R, N) to AUROC (R,); NaN where no pair has weight."""
    parts: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for stratum in np.unique(stratum_N):
        mine = np.flatnonzero(stratum_N == stratum)
        order = mine[np.argsort(scores_N[mine], kind="stable")]
        parts.append((order, np.unique(scores_N[order], return_index=True)[1]))

    def areas(weights_RN: NDArray[np.float64]) -> NDArray[np.float64]:
        wins_R, pairs_R = np.zeros((2, len(weights_RN)))
        for order, starts_T in parts:
            mine_RN, sorted_N = weights_RN[:, order], positive_N[order]
            pos_RT = np.add.reduceat(mine_RN * sorted_N, starts_T, axis=1)
            neg_RT = np.add.reduceat(mine_RN * ~sorted_N, starts_T, axis=1)
            beaten_RT = np.cumsum(neg_RT, axis=1) - neg_RT / 2
            wins_R += (pos_RT * beaten_RT).sum(axis=1)
            pairs_R += pos_RT.sum(axis=1) * neg_RT.sum(axis=1)
        return np.where(pairs_R > 0, wins_R / np.maximum(pairs_R, 1), np.nan)

    return areas


def _bootstrap_limits(
    areas: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    positive_N: NDArray[np.bool_],
    group_N: NDArray[np.intp],
    num_resamples: int,
    seed: int,
) -> tuple[float, float] | None:
    """2.5 % and 97.5 % quantile of the AUROC over resampled groups."""
    num_groups = int(group_N.max()) + 1
    has_pos = np.bincount(group_N, positive_N, num_groups) > 0
    has_neg = np.bincount(group_N, ~positive_N, num_groups) > 0
    # Not by stratum as well: where each group is of a kind of its own, nothing would be drawn.
    kind_G = 2 * has_pos.astype(np.intp) + has_neg
    generator = np.random.default_rng(seed)
    values: list[float] = []
    while len(values) < num_resamples:
        rows = min(num_resamples - len(values), max(1, _BLOCK // len(group_N)))
        values += areas(draw_groups(kind_G, rows, generator)[:, group_N]).tolist()
    usable = np.asarray(values)[np.isfinite(values)]
    if 2 * len(usable) < num_resamples:
        return None
    low, high = np.quantile(usable, [0.025, 0.975]).tolist()
    return float(low), float(high)


def _newcombe_limits(value: float, m: int, n: int) -> tuple[float, float]:
    """Limits for a perfect ranking (0 or 1) of m positive against n negative."""
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf(0.975)
    spread = (m + n) / 2 - 1

    def excess(theta: float) -> float:
        # By symmetry as if the ranking were 1: (1 - theta)^2 = z^2 V(theta), over (1 - theta).
        shape = 1 + spread * (1 - theta) / (2 - theta) + spread * theta / (1 + theta)
        return (1 - theta) - z**2 * theta * shape / (m * n)

    limit = cast("float", brentq(excess, 0.0, 1.0))
    return (limit, 1.0) if value == 1.0 else (0.0, 1.0 - limit)
