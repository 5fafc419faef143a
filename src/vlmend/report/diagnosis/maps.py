"""Figures of the maps: the sets in a plane, one slide per layer, with the text boundary."""

from __future__ import annotations

from vlmend.report.diagnosis.figure import Dots, Figure, Scatter, Slide, missing
from vlmend.report.diagnosis.records import Diagnosis, Map, SampleSet
from vlmend.report.diagnosis.words import by_gap
from vlmend.report.wording import PERCENT, percent, percent_words

METHODS = {"pca": "PCA", "tsne": "t-SNE", "pacmap": "PaCMAP"}
MAPS_NOT = (
    "distances in the full space: PCA keeps only part of the variance, and in t-SNE and PaCMAP "
    "neither the gaps between clusters nor their sizes mean anything. The line is fitted to the "
    "text points in the plane, not to the activations; every layer has its own axes."
)


def _side(point: tuple[float, float], line: tuple[tuple[float, float], tuple[float, float]]):
    (x1, y1), (x2, y2) = line
    return (x2 - x1) * (point[1] - y1) - (y2 - y1) * (point[0] - x1)


def share_on_safe_side(item: Map, sets: tuple[SampleSet, ...]) -> float | None:
    """Share of the unsafe vision-language points on the safe side of the text boundary.

    The safe side is the one on which the mean of the safe text points lies.
    """
    if item.boundary is None:
        return None
    sides: dict[str, list[float]] = {}
    for x, y, index in item.points:
        if 0 <= index < len(sets):
            sides.setdefault(sets[index].style, []).append(_side((x, y), item.boundary))
    safe, unsafe = sides.get("text-safe"), sides.get("vl-unsafe")
    if not safe or not unsafe or not sum(safe):
        return None
    positive = sum(safe) > 0
    return sum((value > 0) == positive for value in unsafe) / len(unsafe)


def _map_shows(item: Map, sets: tuple[SampleSet, ...]) -> str:
    method, parts = METHODS.get(item.method, item.method), []
    if item.boundary_accuracy is not None:
        words = percent_words(item.boundary_accuracy)
        parts.append(f"the line has {words} of the text points on their side")
    share = share_on_safe_side(item, sets)
    if share is not None:
        parts.append(
            f"{percent_words(share)} of the unsafe vision-language points lie on its safe side"
        )
    return f"{method}: {' and '.join(parts) or 'no boundary could be drawn'}"


def _scatter(item: Map, sets: tuple[SampleSet, ...]) -> Scatter:
    method = METHODS.get(item.method, item.method)
    dots: list[Dots] = []
    for index, entry in enumerate(sets):
        places = tuple((x, y) for x, y, at in item.points if at == index)
        if places:
            dots.append(Dots(entry.name, entry.style, places))
    names = (f"{method} 1", f"{method} 2")
    if item.explained is not None:
        first, second = (
            f"{name}: {percent(share)}{PERCENT} of variance"
            for name, share in zip(("PC 1", "PC 2"), item.explained, strict=True)
        )
        names = (first, second)
    counts = ", ".join(f"{len(group.places)} {group.label}" for group in dots)
    shows = _map_shows(item, sets)
    alternative = f"Map of layer {item.layer} with {counts}. {shows}."
    return Scatter(method, tuple(dots), item.boundary, names, alternative)


def build_maps(diagnosis: Diagnosis) -> Figure:
    """One slide per layer that has a map; methods side by side."""
    name, title = "maps", "Where the four sets lie"
    maps, sets = diagnosis.maps, diagnosis.sets.items
    if maps.gap:
        return missing(name, title, maps.gap)
    known = [item for item in maps.items if any(0 <= p[2] < len(sets) for p in item.points)]
    slides: list[Slide] = []
    for layer in sorted({item.layer for item in known}):
        here = [item for item in known if item.layer == layer]
        shows = "; ".join(_map_shows(item, sets) for item in here)
        plots = tuple(_scatter(item, sets) for item in here)
        slides.append(Slide(layer, plots, f"At layer {layer}. {shows}."))
    gaps = list(
        by_gap(
            (item.layer, f"{METHODS.get(item.method, item.method)}: {item.gap}")
            for item in maps.items
            if item.gap
        )
    )
    if not slides:
        without = "the sets that the points belong to were not recorded"
        gaps = gaps or [without if any(m.points for m in maps.items) else "no map has points"]
        return Figure(name, title, gaps=tuple(gaps))
    key = tuple((item.style, f"{item.name} (n = {item.n})") for item in sets)
    lead = (
        "Each point is one request. Circles are safe, triangles unsafe; filled is text, hollow is "
        "vision-language."
    )
    return Figure(
        name,
        title,
        shows_not=MAPS_NOT,
        key=(*key, ("boundary", "boundary of text safe and text unsafe")),
        slides=tuple(slides),
        gaps=tuple(gaps),
        lead=lead,
    )
