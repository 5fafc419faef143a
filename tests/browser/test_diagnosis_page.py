"""The diagnosis in a real browser: sliders move, nothing is fetched, nothing is cut off.

Drives a Chromium found on the machine (`VLMEND_CHROMIUM`, else the usual names on PATH); without
one, or without the playwright package, the tests skip and say so.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from page_checks import CONTRAST_SCRIPT, SCHEMES, SCREENS, SUBPIXEL, Seen

from vlmend.report.diagnosis.page import render_diagnosis

HERE = Path(__file__).resolve()
SLIDERS = ("confusion", "maps", "violins")


def load(name: str, path: Path) -> ModuleType:
    # Test folders are no packages: the sample is loaded by path.
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


SAMPLE = load(
    "diagnosis_sample", HERE.parents[1] / "unit" / "report" / "diagnosis" / "sample_diagnosis.py"
)


def strained_diagnosis() -> dict[str, Any]:
    """The sample, with what strains a layout: long names, long words, gaps, a hostile text."""
    diagnosis = SAMPLE.sample_diagnosis()
    diagnosis["model"]["name"] = (
        "a-publisher-with-a-long-name/a-model-with-an-even-longer-name-7b-hf"
    )
    diagnosis["findings"][0]["text"] = "<script>document.title = 'owned'</script>"
    diagnosis["findings"][1]["claim"] = "gather" * 60
    diagnosis["exits"]["suite"] = "organism/" + "typographic" * 12
    diagnosis["separation"] = {"gap": "nothing was refused " + "x" * 120}
    diagnosis["gaps"].append("y" * 200)
    diagnosis["reproduce"]["command"] = "vlmend diagnose " + "--suite organism/icon " * 12
    return diagnosis


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_diagnosis(
        strained_diagnosis(), tmp_path_factory.mktemp("diagnosis") / "report.html"
    )


def open_page(browser: Any, report: Path, screen: str, scheme: str, **more: Any) -> Seen:
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, **more
    )
    page = context.new_page()
    record = Seen(page)
    page.on("console", lambda message: record.console.append(message.text))
    page.on("pageerror", lambda error: record.console.append(str(error)))
    page.on("request", lambda asked: record.requests.append(asked.url))
    page.goto(report.as_uri())
    return record


@pytest.fixture(params=[f"{screen}-{scheme}" for screen in SCREENS for scheme in SCHEMES])
def seen(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Seen]:
    record = open_page(browser, report, *request.param.split("-"))
    yield record
    record.page.context.close()


def shown_layers(page: Any, figure: str) -> list[str]:
    return page.evaluate(
        """(id) => [...document.querySelectorAll(`#${id} .slide`)]
        .filter((node) => node.checkVisibility()).map((node) => node.dataset.layer)""",
        figure,
    )


def check_width(page: Any) -> None:
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """(limit) => [...document.querySelectorAll("body *")]
        .filter((node) => node.checkVisibility() && !node.closest(".scroll, pre, .skip, .unseen"))
        .filter((node) => node.getBoundingClientRect().right > limit)
        .map((node) => node.tagName + " " + node.textContent.trim().slice(0, 60))""",
        width + SUBPIXEL,
    )
    assert outside == []


def test_page_reads_well(seen: Seen, report: Path) -> None:
    """One visit, all that can be seen without touching the page."""
    page = seen.page
    assert "owned" not in page.title()
    charts = [chart for chart in page.locator("svg[role=img]").all() if chart.is_visible()]
    assert len(charts) == 31  # 3 probe, 3 by layer, 9 shift, 4 direction, 8 exits, 4 joined
    for chart in charts:
        box = chart.bounding_box()
        assert box is not None
        assert box["width"] > 100
        assert box["height"] > 60
    assert page.locator("table.matrix:visible").count() == 3
    check_width(page)
    assert page.evaluate(CONTRAST_SCRIPT) == []
    assert seen.console == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [report.as_uri()]


def test_sliders_change_what_is_in_sight(seen: Seen) -> None:
    page = seen.page
    for name in SLIDERS:
        assert shown_layers(page, name) == ["3"]
        slider = page.locator(f"#{name}-layer")
        assert slider.is_visible()
        before = page.locator(f"#{name} .slide:visible").inner_html()
        slider.focus()
        slider.press("ArrowRight")
        assert shown_layers(page, name) == ["4"]
        assert page.locator(f"#{name} output").inner_text() == "4"
        assert page.locator(f"#{name} .slide:visible").inner_html() != before
        slider.press("Home")
        assert shown_layers(page, name) == ["0"]
        assert slider.get_attribute("aria-valuetext") == "decoder layer 0"
    others = [shown_layers(page, name) for name in SLIDERS]
    page.locator("#maps-layer").press("End")
    assert [shown_layers(page, name) for name in SLIDERS] == [others[0], ["5"], others[2]]
    check_width(page)
    assert seen.console == []


def test_marks_of_the_four_sets_are_painted(browser: Any, report: Path) -> None:
    record = open_page(browser, report, "laptop", "light")
    chart = record.page.locator("#maps .slide:visible svg").first
    whole = chart.screenshot()
    for style in ("text-safe", "text-unsafe", "vl-safe", "vl-unsafe"):
        record.page.add_style_tag(content=f".dots.s-{style} {{ marker: none !important; }}")
        fewer = chart.screenshot()
        assert fewer != whole
        whole = fewer
    record.page.context.close()


def test_numbers_unfold_and_still_fit(seen: Seen) -> None:
    page = seen.page
    for summary in page.locator("details.numbers > summary").all():
        summary.click()
    assert page.locator("#decoder details table").is_visible()
    check_width(page)
    assert seen.console == []


@pytest.mark.parametrize("screen", SCREENS)
def test_all_layers_can_be_read_without_a_script(browser: Any, report: Path, screen: str) -> None:
    record = open_page(browser, report, screen, "light", java_script_enabled=False)
    page = record.page
    maps = page.locator("#maps .slide")
    assert [slide.get_attribute("data-layer") for slide in maps.all() if slide.is_visible()] == [
        "3"
    ]
    assert not page.locator("#maps-layer").is_visible()
    page.locator("#maps summary", has_text="All other layers").click()
    assert all(slide.is_visible() for slide in maps.all())
    assert maps.count() == 6
    page.context.close()


def test_print_keeps_the_layer_named(browser: Any, report: Path) -> None:
    record = open_page(browser, report, "laptop", "dark")
    record.page.emulate_media(media="print")
    assert record.page.locator("#maps .slide:visible h4").inner_text() == "Decoder layer 3"
    assert not record.page.locator("#maps .control").is_visible()
    record.page.context.close()
