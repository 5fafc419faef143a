"""Figures that join encoder and decoder: what exits hand the projector, where they end up."""

from __future__ import annotations

from vlmend.report.diagnosis.exits import along
from vlmend.report.diagnosis.figure import (
    Figure,
    Heat,
    Lines,
    Table,
    known,
    line,
    missing,
    stat_lines,
)
from vlmend.report.diagnosis.records import Diagnosis, Value
from vlmend.report.diagnosis.words import join, stat_cell, stat_words

MEASURES = {
    "norm": "Length of the embeddings",
    "cka": "CKA with default",
    "mahalanobis": "Mahalanobis distance to default",
}
EMBEDDINGS_NOT = (
    "cause: exits differ in many ways at once, and a correlation over a handful of exits is weak "
    "evidence. The projector was trained on the default exit alone."
)
DECODER_NOT = (
    "that the decoder acts on it: a position along s is a reading, not an intervention. Values are "
    "means over requests, relative to the same requests at the default exit, whose row is zero by "
    "definition."
)


def build_embeddings(diagnosis: Diagnosis) -> Figure:
    """Norm, CKA and Mahalanobis distance over exits, and how they go with attack success."""
    name, title, exits = "embeddings", "How far from what the projector knows?", diagnosis.exits
    gap = exits.gap or exits.embeddings.gap
    if gap:
        return missing(name, title, gap)
    rows, at = exits.embeddings.items, along(exits)
    plots: list[Lines] = []
    gaps: list[str] = []
    for key, label in MEASURES.items():
        series = known([line(label, "all", [(row.exit, row.values.get(key)) for row in rows])])
        ticks = (0.0, 0.25, 0.5, 0.75, 1.0) if key == "cka" else None
        plots += stat_lines(
            label, series, at, f"{label} by vision exit.", ticks, far=key == "mahalanobis"
        )
        if not series:
            gaps.append(f"{label} was not measured.")
    if not plots:
        return missing(name, title, "no embedding was measured")
    shows, table, more = _association(diagnosis)
    body = tuple(
        (str(row.exit), *(stat_cell(row.values.get(key)) for key in MEASURES)) for row in rows
    )
    tables = (*table, Table("Embeddings", ("Exit", *MEASURES.values()), body))
    key = (("all", "mean or median with its 95 % interval"),)
    key += (("shade", "answers no longer coherent"),) if at.shaded else ()
    return Figure(
        name, title, shows, EMBEDDINGS_NOT, key, tuple(plots), tables=tables, gaps=(*gaps, *more)
    )


def _short(measure: str) -> str:
    """How a measure is called in a sentence."""
    names = {"norm": "length", "cka": "CKA", "mahalanobis": "Mahalanobis distance"}
    return names.get(measure, measure)


def _association(diagnosis: Diagnosis) -> tuple[str, tuple[Table, ...], tuple[str, ...]]:
    """Sentence, table and gaps of the rank correlations with attack success."""
    section = diagnosis.exits.association
    if section.gap:
        return (
            "The three distances per exit.",
            (),
            (f"Association with attack success: {section.gap}",),
        )
    found = [(item, item.spearman) for item in section.items if item.spearman is not None]
    gaps = tuple(f"{_short(item.measure)}: {item.gap}" for item in section.items if item.gap)
    if not found:
        return "No rank correlation with attack success could be computed.", (), gaps
    words = [f"{stat_words(value)} for {_short(item.measure)}" for item, value in found]
    shown = [
        _short(item.measure)
        for item, value in found
        if value.low is not None and value.high is not None and (value.low > 0 or value.high < 0)
    ]
    text = f"Spearman correlation with attack success over exits: {join(words)}; "
    if shown:
        text += f"the interval leaves out zero for {join(shown)}."
    else:
        text += "no interval leaves out zero."
    rows = tuple(
        (MEASURES.get(item.measure, item.measure), stat_cell(value)) for item, value in found
    )
    head = ("Measure", "Spearman with ASR")
    return text, (Table("Association with attack success", head, rows, False),), gaps


def build_decoder(diagnosis: Diagnosis) -> Figure:
    """Position along the safety direction: exits by decoder layers."""
    name, title, exits = "decoder", "Where in the decoder does an exit act?", diagnosis.exits
    gap = exits.gap or exits.decoder.gap
    if gap:
        return missing(name, title, gap)
    items = exits.decoder.items
    values = {(item.exit, item.layer): item.coefficient for item in items}
    found = [(item, item.coefficient) for item in items if item.coefficient is not None]
    if not found:
        return missing(name, title, "no position along the direction was recorded")
    at, layers = sorted({i.exit for i in items}), sorted({i.layer for i in items})
    cells = tuple(tuple(values.get((row, layer)) for layer in layers) for row in at)
    far, value = max(found, key=lambda pair: abs(pair[1].value))
    side = "safe" if value.value > 0 else "unsafe"
    shows = (
        f"The largest move is at exit {far.exit}, decoder layer {far.layer}: "
        f"{stat_words(value)} towards {side}, where 1 is the way from mean unsafe to mean safe "
        f"text. {_clear_share([item for _, item in found])}"
    )
    rows = tuple(f"{row}{' (default)' if row == exits.default else ''}" for row in at)
    heat = Heat(
        "Position along s, relative to the default exit",
        rows,
        tuple(str(layer) for layer in layers),
        cells,
        ("vision exit", "decoder layer"),
        max(abs(item.value) for _, item in found) or 1.0,
        f"Exits by decoder layers. {shows}",
    )
    body = tuple(
        (name, *(stat_cell(cell) for cell in row)) for name, row in zip(rows, cells, strict=True)
    )
    table = Table(heat.title, ("Exit \\ layer", *heat.columns), body)
    key = (("cool", "towards safe (positive)"), ("warm", "towards unsafe (negative)"))
    return Figure(name, title, shows, DECODER_NOT, key, (heat,), tables=(table,))


def _clear_share(values: list[Value]) -> str:
    bounded = [(v.low, v.high) for v in values if v.low is not None and v.high is not None]
    if not bounded:
        return "No intervals were recorded."
    clear = sum(low > 0 or high < 0 for low, high in bounded)
    return f"In {clear} of {len(bounded)} cells the interval leaves out zero."
