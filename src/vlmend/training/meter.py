"""What training costs: seconds, FLOPs, peak memory, tokens and images, per optimiser step.

Counting FLOPs goes through Python at every operator: some 15 microseconds each, whatever its
size. Measured as processor time of one forward and backward pass on one core:

    organism, 2 prompts              77 ms ->  111 ms   (+44 %; FlopCounterMode: +133 %)
    organism, 8 prompts             255 ms ->  295 ms   (+16 %; +51 %)
    random LLaVA, width 256, 4      467 ms ->  534 ms   (+14 %; +37 %)
    random LLaVA, width 512, 4     4871 ms -> 5127 ms   (+5 %; +13 %)

So a large model is counted at every step, and a small one at every n-th (`count_every`), or
once per shape where the caller knows what decides the shapes. Steps that were counted are
marked, and no median of seconds takes them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Hashable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import takewhile
from statistics import median
from typing import Any

import torch

from vlmend.errors import ConfigError, RunError
from vlmend.evals.flops import FlopCounter
from vlmend.evals.ledger import peak_memory_bytes, reset_peak_memory


@dataclass(slots=True)
class StepReading:
    """What one step cost; complete when its context has ended.

    Attributes:
        seconds: Wall time, the device's work included.
        flops: None where this step was not counted, or ran an attention kernel that has no
            formula (`Meter.uncounted` names it).
        counted: FLOPs were counted during the step, so its seconds are too long.
        peak_memory_bytes: On a GPU the most allocated during the step; on a CPU the most that
            the process held: during the step on Linux, since its start elsewhere.
    """

    seconds: float = 0.0
    flops: int | None = None
    counted: bool = False
    peak_memory_bytes: int = 0


class Meter:
    """Measures steps, one after the other.

    Attributes:
        device: Where the work is done.
        count_every: FLOPs of every n-th step are counted, see `step`.
        uncounted: Attention kernels without a formula that ran; while there is one, FLOPs are
            None rather than too low.
    """

    def __init__(self, device: torch.device, *, count_every: int = 1) -> None:
        """Set up; nothing is measured yet.

        Raises:
            ConfigError: `count_every` below 1.
        """
        if count_every < 1:
            raise ConfigError(
                f"count_every {count_every} is not possible: at least 1 (FLOPs at every step)."
            )
        self.device = device
        self.count_every = count_every
        self.uncounted: set[str] = set()
        self._known: dict[Hashable, int | None] = {}

    @contextmanager
    def step(
        self, key: Hashable | None = None, *, index: int | None = None
    ) -> Generator[StepReading]:
        """Measure what runs inside the context; one step at a time.

        Args:
            key: What decides every tensor's shape in the step. FLOPs depend on shapes alone: a
                key that was seen is not counted again. None: not known.
            index: Number of the step in the whole run; only multiples of `count_every` are
                counted. Absolute, so that a run that goes on after a crash counts the same
                steps. None: counted.

        Yields:
            The reading, filled in when the context ends without an exception.
        """
        reading = StepReading()
        known = key is not None and key in self._known
        reading.counted = not known and (index is None or index % self.count_every == 0)
        reset_peak_memory(self.device)
        start = self._now()
        if reading.counted:
            with FlopCounter() as counter:
                yield reading
            self.uncounted |= counter.uncounted
            reading.flops = None if counter.uncounted else counter.total
            if key is not None:
                self._known[key] = reading.flops
        else:
            yield reading
            reading.flops = self._known.get(key)
        reading.seconds = self._now() - start
        reading.peak_memory_bytes = peak_memory_bytes(self.device)

    def _now(self) -> float:
        if self.device.type == "cuda":
            # Kernels are started, not awaited.
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a number of steps cost.

    Attributes:
        steps: How many.
        seconds: Wall time of all. A step in which FLOPs were counted enters with the median of
            the others, so that the meter's own time is not charged to the method.
        seconds_per_step: Median, of steps in which nothing was counted if there are any; None
            without steps.
        flops: Of all steps: those of steps without a count are taken from the FLOPs per token
            of the counted ones. None where no step has a count.
        flops_estimated: Some steps had none.
        tokens: Tokens run, every pass counted.
        images: Images run, every pass counted.
        peak_memory_bytes: The highest.
    """

    steps: int
    seconds: float
    seconds_per_step: float | None
    flops: int | None
    flops_estimated: bool
    tokens: int
    images: int
    peak_memory_bytes: int

    def record(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def sum_ledger(records: Iterable[Mapping[str, Any]]) -> Ledger:
    """Add up steps.

    Args:
        records: Rows of `steps.jsonl`: seconds, flops, tokens, images, peak_memory_bytes, and
            counted where the loop says it (else a step with FLOPs was counted).
    """
    rows = list(records)
    plain = [row["seconds"] for row in rows if not _was_counted(row)]
    usual = median(plain) if plain else None
    known = [row for row in rows if row["flops"] is not None]
    tokens = sum(row["tokens"] for row in rows)
    known_tokens = sum(row["tokens"] for row in known)
    flops = None
    if len(known) == len(rows):
        flops = sum(row["flops"] for row in rows)
    elif known_tokens:
        flops = round(sum(row["flops"] for row in known) / known_tokens * tokens)
    return Ledger(
        steps=len(rows),
        seconds=sum(
            row["seconds"] if usual is None or not _was_counted(row) else usual for row in rows
        ),
        seconds_per_step=usual or (median(row["seconds"] for row in rows) if rows else None),
        flops=flops,
        flops_estimated=len(known) < len(rows),
        tokens=tokens,
        images=sum(row["images"] for row in rows),
        peak_memory_bytes=max((row["peak_memory_bytes"] for row in rows), default=0),
    )


def _was_counted(row: Mapping[str, Any]) -> bool:
    return bool(row.get("counted", row["flops"] is not None))


def cost_to_reach(
    records: Iterable[Mapping[str, Any]],
    watch: Iterable[Mapping[str, Any]],
    *,
    asr: float = 0.08,
    field: str = "asr",
) -> tuple[int, Ledger] | None:
    """What it cost until the attack success rate was at or below a value, and stayed there.

    A rate that dips below and rises again was not reached: what counts is the first look from
    which on no later one is above.

    Args:
        records: Rows of `steps.jsonl`, each with the number of its step.
        watch: Rows of `watch.jsonl` in order: `step`, the number of steps done, and the rate;
            looks without one say nothing.
        asr: The value, 0..1.
        field: Where a watched row holds the rate.

    Returns:
        The number of steps after which it was held, and their cost; None if it was not in the
        end.

    Raises:
        RunError: Steps are missing, so that a sum would be too low.
    """
    looks = [(row["step"], row[field]) for row in watch if row.get(field) is not None]
    held = list(takewhile(lambda look: look[1] <= asr, reversed(looks)))
    if not held:
        return None
    steps = held[-1][0]
    rows = [row for row in records if row["step"] <= steps]
    if len(rows) != steps:
        raise RunError(
            f"the rate was reached after {steps} steps, but the records hold {len(rows)} of them. "
            "Give the whole steps.jsonl of the run that was watched."
        )
    return steps, sum_ledger(rows)
