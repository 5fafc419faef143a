"""Figures for papers: which files, equal bytes, embedded fonts, no titles and no dates."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sample_diagnosis import sample_diagnosis

from vlmend.report.figures import COLUMN, LISTING, PAGE, write_figures

NAMES = [
    "probes",
    "confusion-layer-1",
    "maps-pca-layer-1",
    "maps-t-sne-layer-1",
    "violins-layer-1",
    "separation",
    "shift",
    "estimators",
    "stability",
    "exits",
    "coherence",
    "tests",
    "grounding",
    "embeddings",
    "decoder",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures") / "new"
    paths = write_figures(sample_diagnosis(layers=2, exits=4, per_set=12), folder)
    assert [path.name for path in paths] == [f"{n}.{k}" for n in NAMES for k in ("svg", "pdf")]
    assert sorted(paths) == sorted(p for p in folder.iterdir() if p.name != LISTING)
    return folder


def test_svg_is_one_or_two_columns_wide_with_text_as_text(folder: Path) -> None:
    for path in folder.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        width = float((root.get("width") or "").removesuffix("pt")) / 72
        assert COLUMN - 0.01 <= width <= PAGE + 0.01, path.name
        text = path.read_text()
        assert "<text" in text
        assert "<dc:date>" not in text
        assert "nan" not in re.findall(r"[a-z]+", text.lower())


def test_pdf_embeds_its_fonts_and_has_no_date(folder: Path) -> None:
    for path in folder.glob("*.pdf"):
        content = path.read_bytes()
        assert content.startswith(b"%PDF")
        assert b"/FontFile2" in content, path.name
        assert b"/Type3" not in content
        assert b"Date" not in content


def test_curves_hold_the_numbers(folder: Path) -> None:
    words = "".join(ElementTree.parse(folder / "decoder.svg").getroot().itertext())
    assert "4" in words
    assert "3 (default)" in words
    assert "decoder layer" in words


def test_only_what_was_measured_is_drawn_and_twice_the_same(tmp_path: Path) -> None:
    whole = sample_diagnosis(layers=3, exits=3, per_set=4)
    part = {"schema": 1, "kind": "diagnosis", "separation": whole["separation"]}
    first = write_figures(part, tmp_path / "a")
    second = write_figures(part, tmp_path / "b")
    assert [path.name for path in first] == ["separation.svg", "separation.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    nothing = {"schema": 1, "kind": "diagnosis", "probes": {"gap": "x"}}
    assert write_figures(nothing, tmp_path / "a") == []


def test_the_same_numbers_are_not_drawn_again(tmp_path: Path) -> None:
    part = {**sample_diagnosis(layers=2, exits=4, per_set=12), "probes": {"gap": "x"}}
    first = write_figures(part, tmp_path)
    before = [path.stat().st_mtime_ns for path in first]
    assert write_figures({**part, "created": "later", "cost": []}, tmp_path) == first
    assert [path.stat().st_mtime_ns for path in first] == before
    first[0].unlink()
    assert write_figures(part, tmp_path) == first
    assert first[0].exists()
    changed = {**part, "shift": part["shift"][:1]}
    write_figures(changed, tmp_path)
    assert first[0].stat().st_mtime_ns != before[0]
