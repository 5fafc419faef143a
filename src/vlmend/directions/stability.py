"""How far to trust a direction: against other samples, and against other estimators.

Shapes: N = safe items, M = unsafe items, D = width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from vlmend.directions.direction import Direction
from vlmend.directions.estimators import check_estimator, estimate
from vlmend.errors import ConfigError, DataError

_LEAST_GROUPS = 2
"""Groups of a label below which resampling them shows nothing."""


def canonical_cosines(first: Direction, second: Direction) -> list[float]:
    """Cosines of the principal angles between two spans, descending, in 0..1.

    Returns:
        min(rank of the first, rank of the second) cosines.

    Reference:
        Björck and Golub, Numerical methods for computing angles between linear subspaces (1973).
    """
    bases = [torch.linalg.qr(d.vectors.double().cpu().T).Q for d in (first, second)]
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1])
    return [min(float(cosine), 1.0) for cosine in cosines]


def agreement(directions: Mapping[str, Direction]) -> list[dict[str, Any]]:
    """How far estimators agree on one layer, pair by pair.

    Between two lines it is the cosine, with its sign: -1 is a direction the other way round. If
    one of the two is a subspace it is the largest canonical cosine, 0..1: how close the closest
    vectors of both are. A line that lies in a subspace has 1 with it.

    Args:
        directions: By name, of one layer.

    Returns:
        Records {"first", "second", "cosine"}, every pair once.
    """
    return [
        {"first": first, "second": second, "cosine": round(_agreement(a, b), 6)}
        for (first, a), (second, b) in combinations(directions.items(), 2)
    ]


def _agreement(first: Direction, second: Direction) -> float:
    if first.rank == second.rank == 1:
        return _line_cosine(first, second)
    return canonical_cosines(first, second)[0]


def _line_cosine(first: Direction, second: Direction) -> float:
    a, b = first.vectors[0].double().cpu(), second.vectors[0].double().cpu()
    return max(-1.0, min(1.0, float(a @ b / (a.norm() * b.norm()))))


def bootstrap_stability(
    acts_safe: Tensor,
    acts_unsafe: Tensor,
    estimator: str,
    sizes: Sequence[int],
    *,
    rank: int = 1,
    num_resamples: int = 200,
    seed: int = 0,
    groups_safe: Sequence[str] | None = None,
    groups_unsafe: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """How close directions from n resampled items come to the one from all items.

    A resample draws whole groups (things) with replacement until each label has its half of the
    n items; items of one group are alike, so drawing single ones would look too stable. Of the
    last group only the part that still fits is taken. For a subspace the smallest canonical
    cosine is taken: how still the whole of it holds.

    Args:
        acts_safe: (N, D) activations of safe prompts.
        acts_unsafe: (M, D) activations of unsafe prompts.
        estimator: Name of the estimator.
        sizes: Numbers n of items of both labels together; harmful ones get the odd one.
        rank: Dimension; above 1 for "subspace" only. It takes every item as a group of its own.
        num_resamples: Resamples per size.
        seed: Of the resampling.
        groups_safe: Group of every safe item; by default every item is one.
        groups_unsafe: Group of every unsafe item; by default every item is one.

    Returns:
        One record per size: {"estimator", "n", "cosine": {"median", "q05", "q95"}, "gap"}; the
        three are None where the gap says why there is nothing to measure.

    Raises:
        UnknownNameError: No such estimator.
        ConfigError: A rank that it does not have, or less than one resample.
        DataError: As many groups as items are needed.
    """
    check_estimator(estimator, rank)
    if num_resamples < 1:
        raise ConfigError(f"num_resamples={num_resamples} is out of range. Allowed: >= 1.")
    places = [
        _rows_by_group(groups, len(acts), kind)
        for kind, acts, groups in (
            ("safe", acts_safe, groups_safe),
            ("unsafe", acts_unsafe, groups_unsafe),
        )
    ]
    gap = _few_groups(places[0], places[1])
    whole: Direction | None = None
    if gap is None:
        try:
            whole = estimate(estimator, acts_safe, acts_unsafe, rank=rank)
        except DataError as error:
            gap = str(error)
    if whole is None:
        return [_record(estimator, n, [], gap) for n in sizes]
    random = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for n in sizes:
        found, gap = [], _wrong_size(n, len(acts_safe), len(acts_unsafe))
        if gap is None:
            found = [
                _cosine_of_resample(acts_safe, acts_unsafe, places, n, whole, random)
                for _ in range(num_resamples)
            ]
        records.append(_record(estimator, n, found, gap))
    return records


def _rows_by_group(groups: Sequence[str] | None, count: int, kind: str) -> list[list[int]]:
    if groups is None:
        return [[row] for row in range(count)]
    if len(groups) != count:
        raise DataError(f"{len(groups)} groups are given for {count} {kind} items.")
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    return list(rows.values())


def _few_groups(safe: list[list[int]], unsafe: list[list[int]]) -> str | None:
    if min(len(safe), len(unsafe)) >= _LEAST_GROUPS:
        return None
    return (
        f"{len(safe)} group(s) of safe and {len(unsafe)} of unsafe items: resampling shows how "
        f"a direction varies from {_LEAST_GROUPS} of each on."
    )


def _wrong_size(n: int, num_safe: int, num_unsafe: int) -> str | None:
    if n < 2:
        return f"{n} item(s) are no pair of a safe and an unsafe one: at least 2 are needed."
    if n // 2 > num_safe or n - n // 2 > num_unsafe:
        return (
            f"{n} items are more than there are ({num_safe} safe, {num_unsafe} unsafe): drawing "
            "some twice would look like more data."
        )
    return None


def _cosine_of_resample(
    acts_safe: Tensor,
    acts_unsafe: Tensor,
    places: Sequence[list[list[int]]],
    n: int,
    whole: Direction,
    random: Generator,
) -> float | None:
    """Cosine with the direction of all items; None where the resample shows no direction."""
    safe = acts_safe[_draw(places[0], n // 2, random)]
    unsafe = acts_unsafe[_draw(places[1], n - n // 2, random)]
    try:
        drawn = estimate(whole.estimator, safe, unsafe, rank=whole.rank)
    except DataError:
        return None
    if whole.rank == 1:
        return _line_cosine(drawn, whole)
    return canonical_cosines(drawn, whole)[-1]


def _draw(places: list[list[int]], count: int, random: Generator) -> list[int]:
    rows: list[int] = []
    while len(rows) < count:
        rows += places[int(random.integers(len(places)))]
    return rows[:count]


def _record(
    estimator: str, n: int, found: Sequence[float | None], gap: str | None
) -> dict[str, Any]:
    cosines = [cosine for cosine in found if cosine is not None]
    lost = len(found) - len(cosines)
    if lost:
        gap = f"{lost} of {len(found)} resamples show no direction and are left out."
    values: list[float | None] = [None, None, None]
    if cosines:
        values = [round(float(q), 6) for q in np.quantile(cosines, [0.5, 0.05, 0.95])]
    return {
        "estimator": estimator,
        "n": n,
        "cosine": dict(zip(("median", "q05", "q95"), values, strict=True)),
        "gap": gap,
    }
