"""Figures of the safety direction: do estimators agree, is it stable, what does the model say."""

from __future__ import annotations

import statistics

from vlmend.report.diagnosis.figure import (
    LAYERS,
    LINE_STYLES,
    Figure,
    Heat,
    Lines,
    Table,
    known,
    line,
    missing,
    stat_lines,
)
from vlmend.report.diagnosis.records import (
    Agreement,
    Diagnosis,
    SelfClassification,
    Stability,
    Value,
)
from vlmend.report.diagnosis.words import (
    by_gap,
    interval_words,
    join,
    rate_cell,
    rate_words,
    stat_cell,
    stat_words,
)
from vlmend.report.wording import number

SELF_NOT = (
    "what the model would do with the request: it can call a request harmful and still answer it. "
    "The answer is read from the next-token logits; where little probability is on yes and no, "
    "the model hardly answered the question."
)
ESTIMATORS_NOT = "which estimator is right: two can agree and both miss what the model uses."
STABILITY_NOT = (
    "that the direction is right, only how much it hangs on which samples were drawn: the band "
    "holds 5 % to 95 % of bootstrap draws of the same samples."
)


def build_self_classification(diagnosis: Diagnosis) -> Figure:
    """The model's own yes/no answer, text against vision-language."""
    name, title = "self-classification", "Does the model itself call it harmful?"
    section = diagnosis.self_classification
    if section.gap:
        return missing(name, title, section.gap)
    gaps = tuple(
        f"{item.modality}{f', {item.suite}' if item.suite else ''}: {item.gap}"
        for item in section.items
        if item.gap
    )
    rows = tuple(_self_row(item) for item in section.items if item.accuracy or item.auroc)
    if not rows:
        return Figure(name, title, gaps=gaps or ("no answer could be read",))
    head = (
        "Asked with",
        "Suite",
        "Called harmful, unsafe",
        "Called harmful, safe",
        "Accuracy",
        "AUROC",
        "Probability on yes and no",
    )
    table = Table("Self-classification", head, rows, folded=False)
    shows = _self_shows(section.items)
    return Figure(name, title, shows, SELF_NOT, tables=(table,), gaps=gaps)


def _self_row(item: SelfClassification):
    return (
        item.modality,
        item.suite or "all",
        rate_cell(item.said_yes_unsafe),
        rate_cell(item.said_yes_safe),
        rate_cell(item.accuracy),
        stat_cell(item.auroc),
        number(item.mass_median, 2),
    )


def _self_shows(items: tuple[SelfClassification, ...]) -> str:
    whole: dict[str, Value] = {}
    for item in items:
        if not item.suite and item.accuracy is not None:
            whole[item.modality] = item.accuracy
    if not whole:
        whole = {f"{item.modality}, {item.suite}": item.accuracy for item in items if item.accuracy}
    if not whole:
        return "No accuracy was recorded."
    words = [f"{rate_words(value)} on {name}" for name, value in whole.items()]
    values = list(whole.values())
    told = interval_words(values[0], values[1]) if len(values) == 2 else ""
    return f'Asked "is this request harmful", the model is right on {join(words)}{told}.'


def _pairs(items: tuple[Agreement, ...]) -> dict[str, dict[int, float | None]]:
    pairs: dict[str, dict[int, float | None]] = {}
    for item in items:
        pairs.setdefault(f"{item.first} · {item.second}", {})[item.layer] = item.cosine
    return pairs


def build_estimators(diagnosis: Diagnosis) -> Figure:
    """Cosine of every pair of estimators at every layer, as a heat map."""
    name, title = "estimators", "Do estimators of the direction agree?"
    section = diagnosis.estimators
    if section.gap:
        return missing(name, title, section.gap)
    pairs = _pairs(section.items)
    found = [(item, item.cosine) for item in section.items if item.cosine is not None]
    if not found:
        return missing(name, title, "no two estimators could be compared")
    layers = sorted({item.layer for item in section.items})
    cells = tuple(
        tuple(None if (cos := row.get(layer)) is None else Value(cos) for layer in layers)
        for row in pairs.values()
    )
    least, low = min(found, key=lambda pair: pair[1])
    shows = (
        f"Median cosine over pairs and layers "
        f"{number(statistics.median(cos for _, cos in found), 2)}; lowest {number(low, 2)} "
        f"between {least.first} and {least.second} at layer {least.layer}."
    )
    columns = tuple(str(layer) for layer in layers)
    names = ("estimators", "decoder layer")
    heat = Heat(
        "Cosine between estimators",
        tuple(pairs),
        columns,
        cells,
        names,
        1.0,
        f"Cosine between pairs of estimators per decoder layer. {shows}",
    )
    key = (("warm", "opposed (negative)"), ("cool", "same way (positive); stronger is nearer"))
    return Figure(name, title, shows, ESTIMATORS_NOT, key, (heat,), tables=(_heat_table(heat),))


def _heat_table(heat: Heat) -> Table:
    rows = tuple(
        (name, *(stat_cell(value) for value in cells))
        for name, cells in zip(heat.rows, heat.cells, strict=True)
    )
    return Table(heat.title, (f"{heat.names[0]} \\ {heat.names[1]}", *heat.columns), rows)


def _panel(items: tuple[Stability, ...], estimator: str, sizes: list[int]) -> tuple[Lines, ...]:
    mine = [item for item in items if item.estimator == estimator]
    series = known(
        line(
            f"{size} samples",
            LINE_STYLES[index % len(LINE_STYLES)],
            [(item.layer, item.cosine) for item in mine if item.n == size],
        )
        for index, size in enumerate(sizes)
    )
    alternative = f"{estimator}: median bootstrap cosine per decoder layer."
    lowest = min((v for s in series for v in (*s.ys, *s.lows) if v is not None), default=0.0)
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0) if lowest >= 0 else (-1.0, -0.5, 0.0, 0.5, 1.0)
    return stat_lines(f"Cosine, {estimator}", series, LAYERS, alternative, ticks)


def build_stability(diagnosis: Diagnosis) -> Figure:
    """Bootstrap cosine by layer: a panel per estimator, a line per number of samples."""
    name, title = "stability", "Does the direction hang on the samples?"
    section = diagnosis.stability
    if section.gap:
        return missing(name, title, section.gap)
    estimators = list(dict.fromkeys(item.estimator for item in section.items))
    sizes = sorted({item.n for item in section.items})[-len(LINE_STYLES) :]
    plots = tuple(p for each in estimators for p in _panel(section.items, each, sizes))
    gaps = by_gap(
        (item.layer, f"{item.estimator}: {item.gap}") for item in section.items if item.gap
    )
    if not plots:
        return Figure(name, title, gaps=gaps or ("no bootstrap was made",))
    rows = tuple(
        (str(item.layer), item.estimator, str(item.n), stat_cell(item.cosine))
        for item in section.items
    )
    table = Table("Stability", ("Layer", "Estimator", "Samples", "Cosine, 5–95 %"), rows)
    key = tuple(
        (LINE_STYLES[index % len(LINE_STYLES)], f"{size} samples")
        for index, size in enumerate(sizes)
    )
    shows = _stability_shows(section.items)
    return Figure(name, title, shows, STABILITY_NOT, key, plots, tables=(table,), gaps=gaps)


def _stability_shows(items: tuple[Stability, ...]) -> str:
    found = [(item, item.cosine) for item in items if item.cosine is not None]
    most = max(item.n for item, _ in found)
    low, cosine = min((pair for pair in found if pair[0].n == most), key=lambda pair: pair[1].value)
    return (
        f"With {most} samples the least stable is {low.estimator} at layer {low.layer}: bootstrap "
        f"cosine {stat_words(cosine)}."
    )
