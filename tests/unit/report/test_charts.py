"""Charts: marks stand where the numbers are, gaps stay gaps."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from vlmend.report.charts import (
    HEIGHT,
    WIDTH,
    Axes,
    Series,
    dot_track,
    line_chart,
    nice_ticks,
)
from vlmend.report.records import Rate

PIXEL = 0.06
"""Coordinates are written with one decimal."""


def axes(last: int = 8) -> Axes:
    return Axes((0, last), (0.0, 1.0), (0.0, 0.5, 1.0), str, str, "exit", 7, "default")


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_line_passes_through_its_values() -> None:
    frame = axes()
    root = parse(line_chart([Series("asr", "complied", [0, 4, 8], [0.0, 0.25, 1.0])], frame, "a"))
    line = root.find("polyline")
    assert line is not None
    found = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    for (x, y), (at, value) in zip(found, [(0, 0.0), (4, 0.25), (8, 1.0)], strict=True):
        assert x == pytest.approx(frame.px(at), abs=PIXEL)
        assert y == pytest.approx(frame.py(value), abs=PIXEL)
    assert frame.py(1.0) < frame.py(0.0)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in found)


def test_missing_value_is_a_gap() -> None:
    ys = [0.1, 0.2, None, 0.4, 0.5, None, 0.7]
    root = parse(line_chart([Series("asr", "complied", range(7), ys)], axes(), "a"))
    assert [len(line.attrib["points"].split()) for line in root.iter("polyline")] == [2, 2]
    assert len(list(root.iter("circle"))) == 5


def test_band_needs_both_edges() -> None:
    series = Series("asr", "complied", [0, 1, 2], [0.5] * 3, [0.4, None, 0.4], [0.6, 0.6, 0.6])
    bands = list(parse(line_chart([series], axes(), "a")).iter("polygon"))
    assert [len(band.attrib["points"].split()) for band in bands] == [2, 2]
    none = Series("asr", "complied", [0, 1], [0.5] * 2)
    assert not list(parse(line_chart([none], axes(), "a")).iter("polygon"))


def test_text_is_escaped_and_described() -> None:
    svg = line_chart([Series("<b>", "complied", [0], [0.5])], axes(), 'a "chart" <x>')
    root = parse(svg)
    assert root.attrib["aria-label"] == 'a "chart" <x>'
    assert "<b>, exit 0: 0.5" in [title.text for title in root.iter("title")]


@pytest.mark.parametrize("last", [1, 8, 24, 40, 81, 1000])
def test_position_ticks_are_few_and_whole(last: int) -> None:
    root = parse(line_chart([Series("asr", "complied", [0, last], [0, 1])], axes(last), "a"))
    texts = [item.text or "" for item in root.iter("text") if item.get("y") == str(HEIGHT - 24)]
    assert 2 <= len(texts) <= 11
    assert texts[0] == "0"
    assert all(re.fullmatch(r"\d+", text) for text in texts)


def test_track_places_rates_in_percent() -> None:
    root = parse(
        dot_track(
            [("base", Rate(1.0, 0.9, 1.0), "base"), ("arm1", Rate(0.0), "ShiftDC")], "before, after"
        )
    )
    marks = [item.attrib["cx"] for item in root.iter("circle")]
    assert marks == ["97.50%", "2.50%"]
    whiskers = [item for item in root.iter("line") if "whisker" in item.attrib["class"]]
    assert len(whiskers) == 1


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-0.3, 3.2), (0.0, 17.3), (0, 0), (1e-6, 3e-6), (-900, 12345)]
)
def test_ticks_cover_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    assert 2 <= len(ticks) <= 8
    steps = [b - a for a, b in pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps))
