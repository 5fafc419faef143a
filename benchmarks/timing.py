"""Side-by-side timing: A B A B in one process, so that a busy machine slows all of them alike.

A ratio is taken within a round, where both sides ran seconds apart, and the median and range
over the rounds are reported. The first round is a warm-up and is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Spread:
    """Median and range over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarise the rounds."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Timing:
    """One way of doing a thing, timed beside the others.

    Attributes:
        variant: What it is called.
        rounds_s: Seconds of each counted round, in order.
        seconds: Their median and range.
        ratio: Its seconds over those of the first variant, taken round by round.
    """

    variant: str
    rounds_s: list[float]
    seconds: Spread
    ratio: Spread


def time_alternately(variants: Mapping[str, Callable[[], object]], rounds: int) -> list[Timing]:
    """Time variants in turns: a warm-up round, then `rounds` counted ones.

    Args:
        variants: By name; the first one is what the others are held against.
        rounds: Counted rounds, at least 1.

    Returns:
        One timing per variant, in their order.
    """
    rounds_s: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(1 + rounds):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if number:
                rounds_s[name].append(time.perf_counter() - start)
    first = next(iter(rounds_s.values()))
    return [
        Timing(
            name,
            mine,
            Spread.of(mine),
            Spread.of([own / base for own, base in zip(mine, first, strict=True)]),
        )
        for name, mine in rounds_s.items()
    ]
