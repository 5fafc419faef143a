"""Records -> tables and charts of trained arms: does it still write, and what did training cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlmend.report import charts
from vlmend.report.plots import Panel
from vlmend.report.records import Records
from vlmend.report.training_records import Spent, Training, Watched, Writing
from vlmend.report.wording import (
    FLOP_PREFIXES,
    NO_BREAK,
    PERCENT,
    arm_title,
    count_thousands,
    flops_words,
    number,
    percent,
    percent_words,
    span,
)


@dataclass(frozen=True, slots=True)
class WritingRow:
    """One suite; one entry per arm, None where it was not run."""

    suite: str
    arms: tuple[Writing | None, ...]


@dataclass(frozen=True, slots=True)
class SameRow:
    """One benign or utility suite; per repaired arm the shares judged and worded as the base."""

    suite: str
    arms: tuple[tuple[float, float | None] | None, ...]


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """The training of one arm, ready to print."""

    arm: str
    repair: str
    steps: str
    seconds: str
    flops: str
    ratio: str
    memory: str
    tokens: str
    images: str
    reached: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """All trainings, and their curves over what was spent.

    Attributes:
        rows: One per training.
        target: The rate to be reached, in words; empty where nothing was watched.
        panels: One chart per watched training, all to one scale.
    """

    rows: tuple[LedgerRow, ...]
    target: str
    panels: tuple[Panel, ...]


def build_writing(records: Records) -> list[WritingRow]:
    """How answers at the default exit read, where a repaired arm was measured."""
    if not records.repaired:
        return []
    rows: list[WritingRow] = []
    for suite in records.suites:
        for judge in records.judges_of(suite.name)[:1]:  # every judge read the same answers
            cells = [records.default_cell(arm.name, suite.name, judge) for arm in records.arms]
            arms = tuple(cell.writing if cell else None for cell in cells)
            if any(arms):
                rows.append(WritingRow(suite.name, arms))
    return rows


def any_perplexity(rows: Sequence[WritingRow]) -> bool:
    """Whether perplexity was measured: it is only on request."""
    return any(entry is not None and entry.perplexity is not None for r in rows for entry in r.arms)


def build_same(records: Records) -> list[SameRow]:
    """Shares of benign and utility items answered as the base did."""
    rows: list[SameRow] = []
    for suite in records.suites:
        if suite.kind == "harmful":
            continue
        for judge in records.judges_of(suite.name)[:1]:
            found = [records.comparison(suite.name, judge, arm.name) for arm in records.repaired]
            arms = tuple(
                None
                if item is None or item.same_verdict is None
                else (item.same_verdict, item.same_text)
                for item in found
            )
            if any(arms):
                rows.append(SameRow(suite.name, arms))
    return rows


def build_ledger(records: Records) -> Ledger | None:
    """What the training of every arm cost; None where no arm was trained."""
    found = [(arm.name, training) for arm in records.arms for training in arm.training]
    if not found:
        return None
    known = [t.total.flops for _, t in found if t.total.flops]
    least = min(known, default=None)
    targets = [t.target for _, t in found if t.target is not None]
    return Ledger(
        tuple(_ledger_row(arm, training, least) for arm, training in found),
        percent_words(targets[0]) if targets else "",
        tuple(_panels([(arm, training) for arm, training in found if training.curve])),
    )


def _ledger_row(arm: str, training: Training, least: float | None) -> LedgerRow:
    total = training.total
    ratio = "–" if least is None or not total.flops else f"{total.flops / least:.2f}"
    memory = training.peak_memory_bytes
    return LedgerRow(
        arm,
        training.repair,
        _count(total.steps),
        _count(total.seconds),
        ("≈ " if training.estimated and total.flops else "") + flops_words(total.flops),
        ratio,
        "–" if not memory else f"{memory / 2**20:,.0f}",
        _count(total.tokens),
        _count(total.images),
        _reached_words(training),
    )


def _count(value: float | None) -> str:
    return number(value, 0)


def _reached_words(training: Training) -> str:
    if not training.curve:
        return "not watched"
    spent = training.reached
    if spent is None:
        return "not reached"
    if not spent.steps:
        return "low from the start"
    cost = f"{_count(spent.seconds)}{NO_BREAK}s, {flops_words(spent.flops)}"
    return f"{_count(spent.steps)} steps: {cost}"


def _panels(found: Sequence[tuple[str, Training]]) -> list[Panel]:
    """Rate over cumulative cost; FLOPs where every point has them, else seconds."""
    points = [point for _, training in found for point in training.curve]
    by_flops = all(point.spent.flops is not None for point in points)
    most = max((_cost(point.spent, by_flops) for point in points), default=0.0)
    power = count_thousands(most) if by_flops else 0
    unit = f"{FLOP_PREFIXES[power]}FLOP spent" if by_flops else "seconds of training"
    return [_panel(arm, t, by_flops, 1000.0**power, unit, most) for arm, t in found]


def _cost(spent: Spent, by_flops: bool) -> float:
    return (spent.flops if by_flops else spent.seconds) or 0.0


def _panel(
    arm: str, training: Training, by_flops: bool, scale: float, unit: str, most: float
) -> Panel:
    curve = sorted(training.curve, key=lambda point: point.spent.steps or 0)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    axes = charts.Axes(
        x=(0, max(1, math.ceil(most / scale))),
        y=(0.0, 1.0),
        y_ticks=ticks if training.target is None else sorted({*ticks, training.target}),
        y_format=percent_words,
        tip_format=lambda value: f"{percent(value)}{PERCENT}",
        x_name=unit,
        base=0.0 if training.target is None else training.target,
    )
    line = charts.Series(
        "attack success",
        "complied",
        [_cost(point.spent, by_flops) / scale for point in curve],
        [point.rate for point in curve],
        [point.low for point in curve],
        [point.high for point in curve],
    )
    caption = _curve_words(training, curve)
    alternative = f"Attack success rate over {unit}, {arm_title(arm)}. {caption}"
    return Panel(arm_title(arm), charts.line_chart([line], axes, alternative), caption)


def _curve_words(training: Training, curve: Sequence[Watched]) -> str:
    first, last = curve[0], curve[-1]
    several = "the highest of " if "," in training.suite else ""
    where = f" on {several}{training.suite}" if training.suite else ""
    text = f"Attack success{where}: {_rate_words(first)} before, {_rate_words(last)} at the end"
    if training.target is None:
        return f"{text}."
    goal = f"{percent_words(training.target)} or less"
    if training.reached is None:
        return f"{text}; {goal} was not reached for good."
    if not training.reached.steps:
        return f"{text}; it was {goal} from the start."
    return f"{text}; {goal} for good after {_reached_words(training)}."


def _rate_words(point: Watched) -> str:
    bounds = span(point.low, point.high)
    return f"{percent(point.rate)}{PERCENT}" + (f" ({bounds})" if bounds else "")
