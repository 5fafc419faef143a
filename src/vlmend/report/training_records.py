"""Reads what `metrics.json` says of trained arms: the ledger of the training, and the writing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmend.report.reading import read_int, read_number, read_rows, read_section, read_text


@dataclass(frozen=True, slots=True)
class Writing:
    """How the answers of a cell read.

    Attributes:
        empty: Share that say nothing.
        repetitive: Share that are loops.
        perplexity: Median under the base model; `None` where not measured.
    """

    empty: float
    repetitive: float
    perplexity: float | None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a training had cost after so many steps; `None` where not recorded."""

    steps: int | None
    seconds: float | None
    flops: float | None
    tokens: int | None
    images: int | None


@dataclass(frozen=True, slots=True)
class Watched:
    """The attack success rate on the way, with its limits, and the cost until then."""

    rate: float
    low: float | None
    high: float | None
    spent: Spent


@dataclass(frozen=True, slots=True)
class Training:
    """The training of one repair.

    Attributes:
        repair: Its name.
        total: What it cost.
        peak_memory_bytes: The most memory that a step took.
        estimated: FLOPs of some steps are taken from those of others.
        suite: What was watched; empty where nothing was.
        curve: The rate on the way.
        target: The rate that was to be reached.
        reached: The cost until it was for good; `None` if it never was, or nothing was watched.
    """

    repair: str
    total: Spent
    peak_memory_bytes: int | None
    estimated: bool
    suite: str
    curve: tuple[Watched, ...]
    target: float | None
    reached: Spent | None


def read_writing(row: Mapping[str, Any]) -> Writing | None:
    """How the answers of a cell read; `None` in runs of older versions."""
    empty, repetitive = read_number(row.get("empty_rate")), read_number(row.get("repetitive_rate"))
    if empty is None or repetitive is None:
        return None
    return Writing(empty, repetitive, read_number(row.get("median_perplexity")))


def read_training(row: Mapping[str, Any]) -> Training:
    """One entry of an arm's `training`.

    Raises:
        RunError: A part of it is malformed.
    """
    ledger, watch = read_section(row, "ledger"), read_section(row, "watch")
    reached = read_section(row, "reached")
    curve = [
        Watched(rate, read_number(p.get("low")), read_number(p.get("high")), _spent(p, "step"))
        for p in read_rows(watch, "points")
        if (rate := read_number(p.get("asr"))) is not None
    ]
    return Training(
        repair=read_text(row, "repair"),
        total=_spent(ledger, "steps"),
        peak_memory_bytes=read_int(ledger.get("peak_memory_bytes")),
        estimated=bool(ledger.get("flops_estimated")),
        suite=read_text(watch, "suite"),
        curve=tuple(curve),
        target=read_number(reached.get("asr")),
        reached=_spent(reached, "steps") if read_int(reached.get("steps")) is not None else None,
    )


def _spent(row: Mapping[str, Any], steps: str) -> Spent:
    return Spent(
        read_int(row.get(steps)),
        read_number(row.get("seconds")),
        read_number(row.get("flops")),
        read_int(row.get("tokens")),
        read_int(row.get("images")),
    )
