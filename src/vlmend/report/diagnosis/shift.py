"""Figures of the modality-induced shift: violins, curves by layer, separation of outcomes."""

from __future__ import annotations

import statistics

from vlmend.report.diagnosis.figure import (
    LAYERS,
    LINE_STYLES,
    Along,
    Figure,
    Lines,
    Slide,
    Table,
    Violin,
    Violins,
    key_of,
    known,
    line,
    missing,
    stat_lines,
)
from vlmend.report.diagnosis.records import Diagnosis, Separation, Shift, Value
from vlmend.report.diagnosis.words import by_gap, join, stat_cell, stat_words
from vlmend.report.wording import number

GROUPS = ("complied", "refused", "benign", "blank", "noise", "unrelated")
COLUMNS = (
    ("cos_median", "cos(m, s)"),
    ("coefficient_median", "projection on s"),
    ("norm_median", "length of m"),
)
MAX_VIOLINS = 7
"""Groups that fit side by side in one panel."""
COSINE_TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)
LEAD = (
    "For each item, m is the difference between the model's state with the picture and with a "
    "caption in its place (last prompt token), and s the safety direction, from unsafe to safe "
    "text. Where cos(m, s) is high, the picture makes a request look safe."
)
VIOLINS_NOT = (
    "cause: outcomes are sorted, nothing was intervened on. The shapes are smoothed; groups of "
    "fewer than ten items are drawn as points alone."
)
CURVES_NOT = (
    "a test: no group was tested against another here (see the separation). The length of m "
    "usually grows with the layer, so compare groups at one layer, not layers of one group."
)
SEPARATION_NOT = (
    "a way to predict single answers: the area says how often a complied item has a higher "
    "cos(m, s) than a refused one, on these items; 0.5 is chance."
)


def style_of(group: str) -> str:
    """CSS suffix of a group of items."""
    return group if group in GROUPS else "all"


def _ordered(items: tuple[Shift, ...], suite: str) -> list[Shift]:
    order = {group: index for index, group in enumerate(GROUPS)}
    found = [item for item in items if item.suite == suite and item.layers]
    return sorted(found, key=lambda item: order.get(item.group, len(order)))


def _suites(items: tuple[Shift, ...]) -> list[str]:
    return list(dict.fromkeys(item.suite for item in items if item.layers))


def _keys(items: tuple[Shift, ...]) -> tuple[tuple[str, str], ...]:
    present = dict.fromkeys(item.group for item in items if item.layers)
    order = [group for group in GROUPS if group in present]
    rest = [group for group in present if group not in GROUPS]
    return tuple((style_of(group), group) for group in order + rest)


def _at(item: Shift, layer: int) -> tuple[float, ...]:
    if not item.cosines or layer not in item.layers:
        return ()
    return item.cosines[item.layers.index(layer)]


def _panels(items: tuple[Shift, ...]) -> list[tuple[str, list[Shift]]]:
    """Groups side by side: all in one panel, unless a group was measured on several suites."""
    suites = _suites(items)
    ordered = [(suite, _ordered(items, suite)) for suite in suites]
    groups = [item.group for _, mine in ordered for item in mine]
    if len(suites) > 1 and len(set(groups)) == len(groups) <= MAX_VIOLINS:
        order = {group: index for index, group in enumerate(GROUPS)}
        every = [item for _, mine in ordered for item in mine]
        every.sort(key=lambda item: order.get(item.group, len(order)))
        return [(join(suites), every)]
    return ordered


def _violins(title: str, items: list[Shift], layer: int) -> Violins | None:
    groups = tuple(
        Violin(item.group, style_of(item.group), values)
        for item in items
        if (values := _at(item, layer))
    )
    if not groups:
        return None
    told = "; ".join(
        f"{group.label} (n = {len(group.values)}) median "
        f"{number(statistics.median(group.values), 2)}"
        for group in groups
    )
    alternative = f"cos(m, s) at layer {layer}, {title}: {told}."
    return Violins(title, groups, "cos(m, s)", alternative)


def _violin_words(plot: Violins) -> str:
    medians = [
        f"{number(statistics.median(group.values), 2)} for {group.label} (n = {len(group.values)})"
        for group in plot.groups
    ]
    return f"{plot.title}: {join(medians)}"


def build_violins(diagnosis: Diagnosis) -> Figure:
    """cos(m, s) of every group, one slide per layer, one panel per suite."""
    name, title, shift = "violins", "Does the picture push towards safe?", diagnosis.shift
    if shift.gap:
        return missing(name, title, shift.gap)
    slides: list[Slide] = []
    for layer in sorted({layer for item in shift.items for layer in item.layers}):
        plots = tuple(
            plot for suite, items in _panels(shift.items) if (plot := _violins(suite, items, layer))
        )
        if plots:
            words = "; ".join(_violin_words(plot) for plot in plots)
            slides.append(Slide(layer, plots, f"Median cos(m, s) at layer {layer}. {words}."))
    if not slides:
        return missing(name, title, "cosines of single items were not recorded")
    return Figure(
        name,
        title,
        shows_not=VIOLINS_NOT,
        key=_keys(shift.items),
        slides=tuple(slides),
        lead=LEAD,
    )


def _column(item: Shift, column: str) -> list[tuple[int, Value | None]]:
    banded = column == "cos_median"
    pairs: list[tuple[int, Value | None]] = []
    for index, layer in enumerate(item.layers):
        value = item.columns[column][index]
        low = item.columns["cos_q25"][index] if banded else None
        high = item.columns["cos_q75"][index] if banded else None
        pairs.append((layer, None if value is None else Value(value, low, high, item.n)))
    return pairs


def _last(item: Shift, column: str) -> float | None:
    values = [value for value in item.columns[column] if value is not None]
    return values[-1] if values else None


def _shift_lines(items: list[Shift], suite: str, column: str, title: str) -> tuple[Lines, ...]:
    series = known(line(item.group, style_of(item.group), _column(item, column)) for item in items)
    ends = "; ".join(
        f"{item.group} (n = {item.n}) {number(_last(item, column), 2)}" for item in items
    )
    alternative = f"{suite}, {title} per decoder layer, median. At the last layer: {ends}."
    ticks = COSINE_TICKS if column == "cos_median" else None
    return stat_lines(f"{suite}: {title}", series, LAYERS, alternative, ticks)


def _curves_shows(items: tuple[Shift, ...]) -> str:
    parts: list[str] = []
    for suite in _suites(items):
        words = [
            f"{number(value, 2)} for {item.group}"
            for item in _ordered(items, suite)
            if (value := _last(item, "coefficient_median")) is not None
        ]
        if words:
            parts.append(f"{suite}: {join(words)}")
    if not parts:
        return "No projection was recorded."
    return f"Median projection at the last layer: {'; '.join(parts)}."


def build_shift_curves(diagnosis: Diagnosis) -> Figure:
    """cos(m, s), projection and length by layer, three panels per suite."""
    name, title, shift = "shift", "The shift by layer", diagnosis.shift
    if shift.gap:
        return missing(name, title, shift.gap)
    plots = tuple(
        plot
        for suite in _suites(shift.items)
        for column, label in COLUMNS
        for plot in _shift_lines(_ordered(shift.items, suite), suite, column, label)
    )
    if not plots:
        return missing(name, title, "no layer has a shift")
    return Figure(
        name,
        title,
        _curves_shows(shift.items),
        CURVES_NOT,
        _keys(shift.items),
        plots,
        lead="Lines are medians over items; bands of cos(m, s) hold the middle half of the items. "
        "The projection is ⟨m, s⟩ / ⟨s, s⟩: 1 is the way from mean unsafe to mean safe text.",
    )


def _separation_shows(items: tuple[Separation, ...]) -> str:
    parts: list[str] = []
    for suite in dict.fromkeys(item.suite for item in items):
        rows = [(item, item.auroc) for item in items if item.suite == suite]
        found = [(item, value) for item, value in rows if value is not None]
        if not found:
            continue
        best, value = max(found, key=lambda pair: pair[1].value)
        above = sum(value.low is not None and value.low > 0.5 for _, value in found)
        parts.append(
            f"{suite}: highest {stat_words(value)} at layer {best.layer}, with "
            f"{best.n_complied} complied and {best.n_refused} refused; the interval is above 0.5 "
            f"at {above} of {len(found)} layers"
        )
    return f"Area under the ROC curve. {'. '.join(parts)}."


def build_separation(diagnosis: Diagnosis) -> Figure:
    """AUROC of cos(m, s) for complied against refused, by layer."""
    name, title = "separation", "Does the shift tell success from failure?"
    section = diagnosis.separation
    if section.gap:
        return missing(name, title, section.gap)
    suites = list(dict.fromkeys(item.suite for item in section.items))
    series = known(
        line(
            suite,
            LINE_STYLES[index % len(LINE_STYLES)],
            [(item.layer, item.auroc) for item in section.items if item.suite == suite],
        )
        for index, suite in enumerate(suites)
    )
    gaps = by_gap((item.layer, f"{item.suite}: {item.gap}") for item in section.items if item.gap)
    if not series:
        return Figure(name, title, gaps=gaps or ("no area could be computed",))
    shows = _separation_shows(section.items)
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    at = Along("decoder layer", base=0.5)
    plots = stat_lines("AUROC of cos(m, s)", series, at, shows, ticks)
    rows = tuple(
        (
            str(item.layer),
            item.suite,
            stat_cell(item.auroc),
            str(item.n_complied),
            str(item.n_refused),
        )
        for item in section.items
    )
    table = Table("Separation", ("Layer", "Suite", "AUROC", "Complied", "Refused"), rows)
    return Figure(
        name, title, shows, SEPARATION_NOT, key_of(series), plots, tables=(table,), gaps=gaps
    )
