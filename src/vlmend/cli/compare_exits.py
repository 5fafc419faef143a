"""The layer curve in the terminal: what every arm does at every vision exit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmend.evals.exit_curves import Change, Curve, Estimate, Point, SuiteCurves

_COMPLIED = {"harmful": "ASR", "benign": "answered", "utility": "right"}
"""What complying is called, by kind of suite."""

_SHARES = {
    "partial": "partial",
    "refusal": "refused",
    "incoherent": "incoherent",
    "toxicity": "toxicity",
    "accuracy": "questions\nright",
    "drop": "less with\nanother picture",
}
"""Measures printed in percent besides the first, and their headings."""

_CHANGES = {
    "incoherent": "incoherent\npoints",
    "reward": "reward",
    "toxicity": "toxicity\npoints",
    "accuracy": "questions\nright, points",
    "drop": "less with another\npicture, points",
}
"""Measures whose changes are printed by thirds besides that of the first, and their headings."""

_ALPHA = 0.05


def print_exits(suites: Sequence[SuiteCurves]) -> None:
    """For every suite the curve of each arm, and last what it comes down to."""
    for suite in suites:
        for curve in suite.curves:
            _print_curve(suite, curve)
            _print_changes(suite, curve)
    for suite in suites:
        _print_summary(suite)


def _print_curve(suite: SuiteCurves, curve: Curve) -> None:
    """One row per exit and per third, one column per measure."""
    from vlmend.cli.console import print_wide_table

    points = [*curve.exits, *curve.groups]
    columns: list[tuple[str, Callable[[Point], str]]] = [
        (f"{_COMPLIED[suite.kind]}\n{_limits_are(curve)}", lambda p: _rate(p, "asr"))
    ]
    if any(p.changes for p in points):
        columns += [
            ("change, points\n95 %", lambda p: _points(p.changes.get("asr"))),
            ("Holm p", lambda p: _p(p.changes.get("asr"))),
        ]
    if any(p.fall for p in points):
        columns.append(("falls by\n95 %", _fall))
    columns += [(head, _shower(name)) for name, head in _SHARES.items() if _has(points, name)]
    if _has(points, "reward"):
        columns.append(("reward", _reward))
    title = f"{curve.arm} on {suite.suite}" + _judge(suite) + _seeds(curve)
    print_wide_table(
        title,
        ("exit", [_row_name(suite, p) for p in points]),
        [(heading, [write(p) for p in points]) for heading, write in columns],
    )


def _print_changes(suite: SuiteCurves, curve: Curve) -> None:
    """By thirds: how else the arm differs from the base, on the same items at the same exits."""
    from vlmend.cli.console import print_wide_table

    measures = [name for name in _CHANGES if any(name in p.changes for p in curve.groups)]
    if not measures:
        return
    print_wide_table(
        f"{curve.arm} less {suite.curves[0].arm} on {suite.suite}{_judge(suite)}: paired changes, "
        "95 % over things, not corrected",
        ("exits", [_row_name(suite, p) for p in curve.groups]),
        [
            (_CHANGES[name], [_change(p.changes.get(name), name) for p in curve.groups])
            for name in measures
        ],
    )


def _change(change: Change | None, measure: str) -> str:
    if measure != "reward" or change is None:
        return _points(change)
    limits = "" if change.low is None else f" [{change.low:.2f}, {change.high:.2f}]"
    return f"{change.difference:+.2f}{limits}"


def _print_summary(suite: SuiteCurves) -> None:
    """Arms below one another: thirds, all exits, the worst and the default exit."""
    from vlmend.cli.console import print_wide_table, results

    columns: list[tuple[str, list[str]]] = []
    for name in dict.fromkeys(p.name for curve in suite.curves for p in curve.groups):
        found = [next((p for p in c.groups if p.name == name), None) for c in suite.curves]
        heading = next(_row_name(suite, p) for p in found if p is not None)
        columns.append((heading.replace(": ", "\n"), [_with_fall(p) for p in found]))
    columns += [
        ("worst exit", [_worst(c) for c in suite.curves]),
        (f"default\nexit {suite.default_exit}", [_at(c, suite.default_exit) for c in suite.curves]),
    ]
    base = suite.curves[0].arm
    title = (
        f"{_COMPLIED[suite.kind]} over vision exits of {suite.suite}{_judge(suite)}, "
        f"{suite.num_items} items about {suite.num_things} things"
    )
    falls = any(p.fall for c in suite.curves for p in chain(c.exits, c.groups))
    print_wide_table(
        f"{title}; below: change relative to {base}" if falls else title,
        ("arm", [c.arm + _seeds(c) for c in suite.curves]),
        columns,
    )
    tested = any(p.changes for c in suite.curves for p in chain(c.exits, c.groups))
    mark = f"* differs from {base}: sign flips of things, Holm-adjusted p < 0.05"
    notes = (*((mark,) if tested else ()), *suite.notes)
    if notes:
        results.print("\n".join(notes) + "\n", highlight=False, markup=False)


def _row_name(suite: SuiteCurves, point: Point) -> str:
    if len(point.exits) == 1 and point.name == str(point.exits[0]):
        return f"{point.name} (default)" if point.exits[0] == suite.default_exit else point.name
    first, last = point.exits[0], point.exits[-1]
    whole = len(point.exits) == last - first + 1
    exits = f"{first}-{last}" if whole and last > first else ",".join(map(str, point.exits))
    return f"{point.name}: {exits}"


def _judge(suite: SuiteCurves) -> str:
    return f" (judge {suite.judge})"


def _seeds(curve: Curve) -> str:
    return f", {len(curve.seeds)} seeds" if len(curve.seeds) > 1 else ""


def _limits_are(curve: Curve) -> str:
    return "lowest, highest seed" if len(curve.seeds) > 1 else "95 %"


def _has(points: Sequence[Point], measure: str) -> bool:
    return any(measure in p.estimates for p in points)


def _rate(point: Point, measure: str) -> str:
    from vlmend.cli.console import interval, percent

    found = point.estimates.get(measure)
    if found is None:
        return "-"
    if found.value is None:
        return "withheld"
    return f"{percent(found.value)} {interval(found.low, found.high)}".rstrip()


def _shower(measure: str) -> Callable[[Point], str]:
    def show(point: Point) -> str:
        from vlmend.cli.console import percent

        found = point.estimates.get(measure)
        return "-" if found is None else "withheld" if found.value is None else percent(found.value)

    return show


def _reward(point: Point) -> str:
    found = point.estimates.get("reward")
    return "-" if found is None or found.value is None else f"{found.value:.2f}"


def _points(change: Change | None) -> str:
    from vlmend.cli.console import interval

    if change is None:
        return "-"
    return f"{100 * change.difference:+.1f} {interval(change.low, change.high)}".rstrip()


def _p(change: Change | None) -> str:
    return "-" if change is None or change.p_holm is None else f"{change.p_holm:.2g}"


def _fall(point: Point) -> str:
    from vlmend.cli.console import interval, percent

    found = point.fall
    if found is None:
        return "-"
    return f"{percent(found.value)} {interval(found.low, found.high)}".rstrip()


def _with_fall(point: Point | None) -> str:
    """A rate, its mark, and below it the relative change."""
    from vlmend.cli.console import percent

    if point is None:
        return "-"
    rate, fall = point.estimates["asr"], point.fall
    if rate.value is None:
        return "withheld"
    text = f"{percent(rate.value)}{_mark(point)}"
    return text if fall is None else f"{text}\n{_percent_change(fall)}"


def _percent_change(fall: Estimate) -> str:
    assert fall.value is not None
    return f"{-100 * fall.value:+.0f} %"


def _mark(point: Point) -> str:
    change = point.changes.get("asr")
    differs = change is not None and change.p_holm is not None and change.p_holm < _ALPHA
    return " *" if differs and change is not None and change.difference else ""


def _at(curve: Curve, exit_layer: int) -> str:
    return _with_fall(next((p for p in curve.exits if p.exits == (exit_layer,)), None))


def _worst(curve: Curve) -> str:
    """The highest rate at a single exit, and where; not the base's worst, so nothing beside it."""
    from vlmend.cli.console import percent

    point = next((p for p in curve.exits if p.exits == (curve.worst_exit,)), None)
    if point is None:
        return "-"
    return f"{percent(point.estimates['asr'].value)}\nexit {curve.worst_exit}"
