"""Side-by-side timing: A B A B in one process, so that a busy machine slows all of them alike.

A ratio is taken within a round, where both sides ran seconds apart, and the median and range
over the rounds are reported. The first round is a warm-up: its results are kept to be compared,
its time is not counted. Processor time is kept beside wall time: on one thread it hardly notices
what else the machine is busy with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any


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
        rounds_s: Wall seconds of each counted round, in order.
        rounds_cpu_s: Processor seconds of the same, all threads together.
        seconds: Median and range of the wall seconds.
        ratio: Its wall seconds over those of the first variant, taken round by round.
        cpu_ratio: The same of the processor seconds.
    """

    variant: str
    rounds_s: list[float]
    rounds_cpu_s: list[float]
    seconds: Spread
    ratio: Spread
    cpu_ratio: Spread


def time_alternately(
    variants: Mapping[str, Callable[[], object]], rounds: int
) -> tuple[list[Timing], dict[str, Any]]:
    """Time variants in turns: a warm-up round, then `rounds` counted ones.

    Args:
        variants: By name; the first one is what the others are held against.
        rounds: Counted rounds, at least 1.

    Returns:
        One timing per variant, in their order; and what each returned in the warm-up.
    """
    results = {name: call() for name, call in variants.items()}
    wall_s: dict[str, list[float]] = {name: [] for name in variants}
    cpu_s: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            wall_s[name].append(time.perf_counter() - wall)
            cpu_s[name].append(time.process_time() - cpu)
    first = next(iter(variants))
    timings = [
        Timing(
            name,
            wall_s[name],
            cpu_s[name],
            Spread.of(wall_s[name]),
            _ratio(wall_s[name], wall_s[first]),
            _ratio(cpu_s[name], cpu_s[first]),
        )
        for name in variants
    ]
    return timings, results


def _ratio(mine: list[float], base: list[float]) -> Spread:
    return Spread.of([own / other for own, other in zip(mine, base, strict=True)])
