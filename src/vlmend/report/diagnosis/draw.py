"""Plots of a figure -> inline SVG, coloured by CSS classes alone like `vlmend.report.charts`.

Points are drawn as markers of one polyline per set: a map of 800 points costs 10 kB, so all
layers fit in one file that needs no script to draw them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from vlmend.report import charts
from vlmend.report.diagnosis.figure import Heat, Lines, Matrix, Plot, Scatter, Violin, Violins
from vlmend.report.diagnosis.records import Value
from vlmend.report.wording import number, percent_words

DOTS = {
    "text-safe": '<circle cx="5" cy="5" r="3"/>',
    "text-unsafe": '<path d="M5 1.2 8.6 7.6H1.4z"/>',
    "vl-safe": '<circle cx="5" cy="5" r="3"/>',
    "vl-unsafe": '<path d="M5 1.2 8.6 7.6H1.4z"/>',
}
"""Circles are safe, triangles unsafe; the style sheet fills text and leaves pictures hollow."""
MAP_WIDTH, MAP_HEIGHT, MAP_EDGE = 360, 300, 14
FRAME_TOP, FRAME_BOTTOM = 4, 276
MIN_VIOLIN = 10
"""Fewer values than this are drawn as points: a smoothed shape would pretend to know more."""
MAX_POINTS = 60
DENSITY_STEPS = 36
VIOLIN_WIDTH, VIOLIN_HEIGHT = 360, 252
VIOLIN_LEFT, VIOLIN_RIGHT, VIOLIN_TOP, VIOLIN_BOTTOM = 38, 6, 10, 44
WIDE_CELL, NARROW_CELL, ROW = 46, 24, 22
MAX_WIDE = 14
"""Heat maps of more columns print no numbers in their cells, only the sign."""

Box = tuple[float, float, float, float]
Point = tuple[float, float]


def _open(kind: str, width: int, height: int, alternative: str) -> Markup:
    return Markup(
        f'<svg class="plot {kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{{}}">'
    ).format(alternative)


def marker_defs() -> Markup:
    """The point markers, once per page."""
    markers = "".join(
        f'<marker id="dot-{style}" class="dot s-{style}" markerWidth="10" markerHeight="10" '
        f'refX="5" refY="5" markerUnits="userSpaceOnUse">{shape}</marker>'
        for style, shape in DOTS.items()
    )
    return Markup(f'<svg class="defs" width="0" height="0" aria-hidden="true">{markers}</svg>')


def swatch(style: str) -> Markup:
    """A legend key: the mark, line or shade that a style is drawn with."""
    head = Markup('<svg class="swatch" width="30" height="12" aria-hidden="true">')
    if style in DOTS:
        body = f'<g class="dot s-{style}" transform="translate(10 1)">{DOTS[style]}</g>'
    elif style == "shade":
        body = '<rect class="shade" x="1" y="0" width="28" height="12"/>'
    elif style in ("warm", "cool"):
        body = f'<rect class="heat {style}" x="1" y="0" width="28" height="12" fill-opacity="0.6"/>'
    elif style == "boundary":
        body = '<line class="boundary" x1="1" x2="29" y1="6" y2="6"/>'
    else:
        return charts.swatch(style)
    return head + Markup(body + "</svg>")


def _extent(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    low, high = min(found), max(found)
    room = 0.03 * (high - low) or 0.5
    return low - room, high + room


def clip(first: Point, second: Point, box: Box) -> tuple[Point, Point] | None:
    """The part inside a box of the endless line through two points.

    Args:
        first: A point on the line.
        second: Another point on it.
        box: Left, bottom, right, top.

    Returns:
        The two ends, or `None` when the line misses the box or the points coincide.
    """
    (x, y), (dx, dy) = first, (second[0] - first[0], second[1] - first[1])
    if dx == 0 and dy == 0:
        return None
    start, end = -math.inf, math.inf
    for at, step, low, high in ((x, dx, box[0], box[2]), (y, dy, box[1], box[3])):
        if step == 0:
            if not low <= at <= high:
                return None
            continue
        near, far = sorted(((low - at) / step, (high - at) / step))
        start, end = max(start, near), min(end, far)
    if start >= end:
        return None
    return (x + start * dx, y + start * dy), (x + end * dx, y + end * dy)


def scatter_frame(plot: Scatter) -> Box:
    """Left, bottom, right and top of a map, in its own units."""
    places = [place for group in plot.sets for place in group.places]
    left, right = _extent(x for x, _ in places)
    bottom, top = _extent(y for _, y in places)
    return left, bottom, right, top


def _scatter(plot: Scatter) -> Markup:
    box = scatter_frame(plot)
    left, bottom, right, top = box

    def place(point: Point) -> str:
        x = MAP_EDGE + (point[0] - left) / (right - left) * (MAP_WIDTH - 2 * MAP_EDGE)
        y = FRAME_BOTTOM - (point[1] - bottom) / (top - bottom) * (FRAME_BOTTOM - FRAME_TOP)
        return f"{x:.1f},{y:.1f}"

    parts = [_open("map", MAP_WIDTH, MAP_HEIGHT, plot.alternative)]
    parts.append(
        Markup(
            f'<rect class="frame" x="{MAP_EDGE}" y="{FRAME_TOP}" '
            f'width="{MAP_WIDTH - 2 * MAP_EDGE}" height="{FRAME_BOTTOM - FRAME_TOP}"/>'
            f'<text class="axis" x="{MAP_WIDTH / 2}" y="{MAP_HEIGHT - 6}" text-anchor="middle">{{}}'
            f'</text><text class="axis" text-anchor="middle" transform="translate(10 '
            f'{(FRAME_TOP + FRAME_BOTTOM) / 2}) rotate(-90)">{{}}</text>'
        ).format(*plot.names)
    )
    for group in plot.sets:
        points = " ".join(place(point) for point in group.places)
        parts.append(Markup(f'<polyline class="dots s-{group.style}" points="{points}"/>'))
    ends = None if plot.boundary is None else clip(*plot.boundary, box)
    if ends is not None:
        points = " ".join(place(end) for end in ends)
        parts.append(Markup(f'<polyline class="boundary" points="{points}"/>'))
    return Markup().join([*parts, Markup("</svg>")])


def density(values: Sequence[float]) -> list[tuple[float, float]]:
    """Gaussian kernel density over the range of the values, highest point 1.

    Args:
        values: At least two different numbers.

    Returns:
        (value, density) from low to high; empty where the values do not differ.

    Reference: Silverman (1986), eq. 3.31, for the bandwidth.
    """
    low, high = min(values), max(values)
    spread = statistics.pstdev(values)
    if not high > low or not spread > 0:
        return []
    quarter, _, three = statistics.quantiles(values, n=4, method="inclusive")
    scale = min(spread, (three - quarter) / 1.34) or spread
    width = 0.9 * scale * len(values) ** -0.2
    steps = [low + (high - low) * step / DENSITY_STEPS for step in range(DENSITY_STEPS + 1)]
    heights = [
        sum(math.exp(-0.5 * ((at - value) / width) ** 2) for value in values) for at in steps
    ]
    tallest = max(heights)
    return [(at, height / tallest) for at, height in zip(steps, heights, strict=True)]


def _violin_y(value: float) -> float:
    share = (min(max(value, -1.0), 1.0) + 1) / 2
    return VIOLIN_TOP + (1 - share) * (VIOLIN_HEIGHT - VIOLIN_TOP - VIOLIN_BOTTOM)


def jitter(index: int) -> float:
    """A place in -1..1 for a point, the same every time (golden-ratio sequence)."""
    return 2 * ((index * 0.6180339887498949) % 1) - 1


def _violin(group: Violin, x: float, half: float) -> Iterable[Markup]:
    shape = density(group.values) if len(group.values) >= MIN_VIOLIN else []
    if shape:
        edge = [f"{x + half * d:.1f},{_violin_y(v):.1f}" for v, d in shape]
        edge += [f"{x - half * d:.1f},{_violin_y(v):.1f}" for v, d in reversed(shape)]
        yield Markup(f'<polygon class="violin s-{group.style}" points="{" ".join(edge)}"/>')
    if len(group.values) <= MAX_POINTS:
        for index, value in enumerate(group.values):
            at = x + 0.55 * half * jitter(index)
            yield Markup(
                f'<circle class="grain s-{group.style}" cx="{at:.1f}" cy="{_violin_y(value):.1f}" '
                'r="1.7"/>'
            )
    if len(group.values) >= MIN_VIOLIN:
        low, _, high = statistics.quantiles(group.values, n=4, method="inclusive")
        yield Markup(
            f'<line class="quartiles s-{group.style}" x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{_violin_y(low):.1f}" y2="{_violin_y(high):.1f}"/>'
        )
    tip = f"{group.label}: median {number(statistics.median(group.values), 2)}"
    yield charts.mark(group.style, x, _violin_y(statistics.median(group.values)), tip)


def _violins(plot: Violins) -> Markup:
    parts = [_open("violins", VIOLIN_WIDTH, VIOLIN_HEIGHT, plot.alternative)]
    for value in (-1.0, -0.5, 0.0, 0.5, 1.0):
        y, zero = _violin_y(value), " zero" if value == 0 else ""
        parts.append(
            Markup(
                f'<line class="grid{zero}" x1="{VIOLIN_LEFT}" x2="{VIOLIN_WIDTH - VIOLIN_RIGHT}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/><text class="tick" x="{VIOLIN_LEFT - 6}" '
                f'y="{y + 4:.1f}" text-anchor="end">{{}}</text>'
            ).format(number(value))
        )
    slot = (VIOLIN_WIDTH - VIOLIN_LEFT - VIOLIN_RIGHT) / len(plot.groups)
    for index, group in enumerate(plot.groups):
        x = VIOLIN_LEFT + (index + 0.5) * slot
        parts += _violin(group, x, min(0.42 * slot, 34.0))
        y = VIOLIN_HEIGHT - VIOLIN_BOTTOM + 18
        parts.append(
            Markup(
                f'<g text-anchor="middle"><text class="tick small" x="{x:.1f}" y="{y}">{{}}</text>'
                f'<text class="tick small" x="{x:.1f}" y="{y + 15}">{{}}</text></g>'
            ).format(group.label, f"n = {len(group.values)}")
        )
    return Markup().join([*parts, Markup("</svg>")])


def _heat_cell(value: Value, box: Box, limit: float, tip: str, wide: bool) -> Markup:
    x, y, width, height = box
    share = min(abs(value.value) / limit, 1.0) if limit else 0.0
    side = "warm" if value.value < 0 else "cool"
    text = number(value.value, 2) if wide else ("−" if side == "warm" and share > 0.05 else "")
    return Markup(
        f'<g><title>{{}}</title><rect class="heat {side}" x="{x}" y="{y}" width="{width - 1}" '
        f'height="{height - 1}" fill-opacity="{0.04 + 0.62 * share:.2f}"/>'
        f'<text class="cell" x="{x + width / 2 - 0.5}" y="{y + height / 2 + 4}" '
        'text-anchor="middle">{}</text></g>'
    ).format(tip, text)


def _heat(plot: Heat) -> Markup:
    wide = len(plot.columns) <= MAX_WIDE
    side = WIDE_CELL if wide else NARROW_CELL
    left = 40 + round(6.6 * max(len(name) for name in plot.rows))
    width, height = left + side * len(plot.columns) + 2, ROW * len(plot.rows) + 42
    parts = [
        Markup(
            f'<svg class="plot heatmap" width="{width}" height="{height}" role="img" '
            'aria-label="{}">'
        ).format(plot.alternative)
    ]
    for row, (name, cells) in enumerate(zip(plot.rows, plot.cells, strict=True)):
        y = row * ROW
        parts.append(
            Markup(
                f'<text class="tick" x="{left - 7}" y="{y + ROW / 2 + 4}" text-anchor="end">{{}}'
                "</text>"
            ).format(name)
        )
        for column, value in enumerate(cells):
            if value is None:
                continue
            where = f"{plot.names[0]} {name}, {plot.names[1]} {plot.columns[column]}: "
            bounds = ""
            if value.low is not None and value.high is not None:
                bounds = f" ({number(value.low, 2)} to {number(value.high, 2)})"
            tip = f"{where}{number(value.value, 2)}{bounds}"
            box = (left + side * column, y, side, ROW)
            parts.append(_heat_cell(value, box, plot.limit, tip, wide))
    for column, name in enumerate(plot.columns):
        x = left + side * (column + 0.5)
        parts.append(
            Markup(
                f'<text class="tick" x="{x}" y="{ROW * len(plot.rows) + 16}" '
                'text-anchor="middle">{}</text>'
            ).format(name)
        )
    middle = left + side * len(plot.columns) / 2
    parts.append(
        Markup(
            f'<text class="axis" x="{middle}" y="{height - 6}" text-anchor="middle">{{}}</text>'
            f'<text class="axis" text-anchor="middle" transform="translate(14 '
            f'{ROW * len(plot.rows) / 2}) rotate(-90)">{{}}</text>'
        ).format(plot.names[1], plot.names[0])
    )
    return Markup().join([*parts, Markup("</svg>")])


def _matrix(plot: Matrix) -> Markup:
    counts = plot.counts
    rows = (
        ("unsafe", counts.unsafe_as_unsafe, counts.unsafe_as_safe, ("right", "wrong")),
        ("safe", counts.safe_as_unsafe, counts.safe_as_safe, ("wrong", "right")),
    )
    parts = [
        Markup(
            '<table class="matrix"><caption class="unseen">{}</caption><thead><tr><td></td>'
            '<th scope="col">called unsafe</th><th scope="col">called safe</th></tr></thead><tbody>'
        ).format(plot.alternative)
    ]
    for name, unsafe, safe, kinds in rows:
        parts.append(Markup('<tr><th scope="row">{}</th>').format(name))
        total = unsafe + safe
        for count, kind in zip((unsafe, safe), kinds, strict=True):
            share = count / total if total else 0.0
            words = percent_words(share) if total else "–"
            parts.append(
                Markup(
                    f'<td class="{kind}"><b>{{}}</b> <small>{{}} of {{}}</small>'
                    f'<i style="width:{100 * share:.1f}%"></i></td>'
                ).format(words, count, total)
            )
        parts.append(Markup("</tr>"))
    return Markup().join([*parts, Markup("</tbody></table>")])


def draw(plot: Plot) -> Markup:
    """Draw a plot of any kind.

    Args:
        plot: The data.

    Returns:
        One `<svg>`, or a `<table>` for a confusion matrix.
    """
    if isinstance(plot, Lines):
        return charts.line_chart(plot.series, plot.axes, plot.alternative)
    if isinstance(plot, Scatter):
        return _scatter(plot)
    if isinstance(plot, Violins):
        return _violins(plot)
    if isinstance(plot, Heat):
        return _heat(plot)
    return _matrix(plot)
