"""Values into words, for tables and for the sentences under the figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlmend.report.diagnosis.records import Value
from vlmend.report.wording import PERCENT, number, percent, percent_words, span

ALPHA = 0.05


def rate_words(value: Value | None) -> str:
    """A rate for a sentence: "93 % (90.1–95.4)"."""
    if value is None:
        return "not measured"
    bounds = span(value.low, value.high)
    return percent_words(value.value) + (f" ({bounds})" if bounds else "")


def digits_of(value: Value) -> int:
    """Decimals that are worth reading: fewer for large numbers."""
    size = max(abs(number) for number in (value.value, value.low, value.high) if number is not None)
    return 0 if size >= 200 else 1 if size >= 20 else 2


def stat_words(value: Value | None) -> str:
    """A plain number for a sentence: "0.91 (0.88 to 0.94)"."""
    if value is None:
        return "not measured"
    digits = digits_of(value)
    return f"{number(value.value, digits)}{_bounds(value, digits)}"


def _bounds(value: Value, digits: int) -> str:
    if value.low is None or value.high is None:
        return ""
    return f" ({number(value.low, digits)} to {number(value.high, digits)})"


def rate_cell(value: Value | None) -> tuple[str, str]:
    """A rate for a table: percent, and its interval."""
    if value is None:
        return "–", ""
    return f"{percent(value.value)}{PERCENT}", span(value.low, value.high)


def stat_cell(value: Value | None, digits: int | None = None) -> tuple[str, str]:
    """A plain number for a table, and its interval."""
    if value is None:
        return "–", ""
    digits = digits_of(value) if digits is None else digits
    return number(value.value, digits), _bounds(value, digits).strip(" ()")


def p_cell(p: float | None) -> str:
    """A p value for a table."""
    if p is None:
        return "–"
    if p < 0.001:
        return "< 0.001"
    # Rounded to three decimals, 0.0496 would read 0.050: a shown effect would look unshown.
    return f"{p:.{4 if abs(p - ALPHA) < 0.0005 else 3}f}"


def apart(first: Value | None, second: Value | None) -> bool | None:
    """Whether two intervals do not touch; `None` when one of them was not recorded."""
    bounds = [
        (value.low, value.high)
        for value in (first, second)
        if value is not None and value.low is not None and value.high is not None
    ]
    if len(bounds) < 2:
        return None
    (low_1, high_1), (low_2, high_2) = bounds
    assert low_1 is not None
    assert high_1 is not None
    assert low_2 is not None
    assert high_2 is not None
    return low_1 > high_2 or low_2 > high_1


def interval_words(first: Value | None, second: Value | None) -> str:
    """Say whether two intervals are apart or overlap; nothing when one was not recorded."""
    told = apart(first, second)
    if told is None:
        return ""
    return ", intervals apart" if told else ", intervals overlap"


def join(items: Sequence[str], last: str = "and") -> str:
    """Write a list: "a", "a and b", "a, b and c"."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as ranges: "0–2, 5"."""
    found: list[list[int]] = []
    for item in sorted(set(numbers)):
        if found and item == found[-1][1] + 1:
            found[-1][1] = item
        else:
            found.append([item, item])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in found)


def count_words(noun: str, numbers: Iterable[int]) -> str:
    """A noun with its numbers: "exit 3", "exits 0–2, 5"."""
    known = set(numbers)
    return f"{noun}{'s' if len(known) > 1 else ''} {ranges(known)}"


def by_gap(gaps: Iterable[tuple[int, str]], noun: str = "Layer") -> tuple[str, ...]:
    """One line per reason, with the places it holds for: "Layers 0–2: it did not run."."""
    places: dict[str, list[int]] = {}
    for place, gap in gaps:
        if gap:
            places.setdefault(gap, []).append(place)
    return tuple(f"{count_words(noun, where)}: {gap}" for gap, where in places.items())
