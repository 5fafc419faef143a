"""The report in a real browser: offline, no errors, nothing cut off, at laptop and phone width.

Drives a Chromium found on the machine (`VLMEND_CHROMIUM`, else the usual names on PATH); without
one, or without the playwright package, the tests skip and say so.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlmend.report.render import render_report

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="browser test skipped: the playwright package is not installed"
)

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENS = {"laptop": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
MIN_CONTRAST = 4.5
"""WCAG 2 level AA for text of normal size."""
SUBPIXEL = 1
"""Browsers round layout boxes to whole pixels."""

CONTRAST_SCRIPT = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
    if (!own || !node.checkVisibility() || ["title", "style"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const ink = parse(node.closest("svg") ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(ground(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < LIMIT) poor.push(`${ratio.toFixed(2)} ${node.tagName} ${node.textContent.trim()}`);
  }
  return poor;
}""".replace("LIMIT", str(MIN_CONTRAST))


def find_chromium() -> str | None:
    named = os.environ.get("VLMEND_CHROMIUM")
    if named:
        return shutil.which(named)
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def load_sample() -> ModuleType:
    # The sample metrics belong to the unit tests of the report; test folders are no packages.
    path = Path(__file__).resolve().parents[1] / "unit" / "report" / "sample_metrics.py"
    spec = importlib.util.spec_from_file_location("report_sample_metrics", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def long_metrics() -> dict[str, Any]:
    """The sample, with what strains a layout: a withheld rate, long words, long names."""
    metrics = load_sample().sample_metrics()
    metrics["cells"][6].update(num_scored=300, num_errors=7)
    metrics["model"]["name"] = "a-publisher-with-a-long-name/a-model-with-an-even-longer-name-7b-hf"
    metrics["examples"][0]["answers"][0]["text"] = "gather" * 120
    metrics["examples"][2]["answers"][0]["text"] = "<script>document.title = 'owned'</script>"
    metrics["reproduce"]["command"] = "vlmend audit " + "--suite organism/icon " * 12
    return metrics


@dataclass
class Seen:
    """What the page did while it was open."""

    page: Any
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = find_chromium()
    if executable is None:
        pytest.skip(
            "browser test skipped: no Chromium on this machine; install one of "
            f"{', '.join(NAMES)}, or set VLMEND_CHROMIUM to its path"
        )
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_report(long_metrics(), tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(params=[f"{screen}-{scheme}" for screen in SCREENS for scheme in SCHEMES])
def seen(request: pytest.FixtureRequest, browser: Any, report: Path) -> Iterator[Seen]:
    screen, scheme = request.param.split("-")
    width, height = SCREENS[screen]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    page = context.new_page()
    record = Seen(page)
    page.on("console", lambda message: record.console.append(message.text))
    page.on("pageerror", lambda error: record.console.append(str(error)))
    page.on("request", lambda asked: record.requests.append(asked.url))
    page.goto(report.as_uri())
    yield record
    context.close()


def test_page_reads_well(seen: Seen, report: Path) -> None:
    """One visit, all that can be seen without touching the page."""
    page = seen.page
    assert "owned" not in page.title()
    assert page.locator("svg[role=img]").count() == 19  # 20 less the withheld suite's
    for chart in page.locator("svg[role=img]").all():
        box = chart.bounding_box()
        assert box is not None
        assert box["width"] > 100
        assert box["height"] > 20
    page_width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= page_width
    outside = page.evaluate(
        """(limit) => [...document.querySelectorAll("body *")]
        .filter((node) => node.checkVisibility() && !node.closest(".scroll, pre, .skip"))
        .filter((node) => node.getBoundingClientRect().right > limit)
        .map((node) => node.tagName + " " + node.textContent.trim().slice(0, 60))""",
        page_width + SUBPIXEL,
    )
    assert outside == []
    assert page.evaluate(CONTRAST_SCRIPT) == []
    assert seen.console == []
    assert [url for url in seen.requests if not url.startswith("data:")] == [report.as_uri()]


def test_wide_tables_scroll_in_their_own_box(seen: Seen) -> None:
    box = seen.page.locator("#results .scroll")
    inner, outer = box.evaluate("node => [node.scrollWidth, node.clientWidth]")
    narrow = seen.page.viewport_size["width"] < 1000
    assert (inner > outer) == narrow
    if narrow:
        box.evaluate("node => node.scrollTo(node.scrollWidth, 0)")
        name = box.locator("tbody tr:nth-child(2) th").first.bounding_box()
        assert name is not None
        assert name["x"] >= 0  # the suite's name stays in sight


def test_harmful_examples_open_on_a_click(seen: Seen) -> None:
    page = seen.page
    folded = page.locator("details.harmful")
    assert folded.count() == 2
    assert not any(folded.nth(index).get_attribute("open") is not None for index in range(2))
    assert not folded.first.locator(".answers").is_visible()
    assert page.locator("article.example .answers").is_visible()
    folded.first.locator("summary").click()
    assert folded.first.locator(".answers").is_visible()
    folded.nth(1).locator("summary").press("Enter")
    assert folded.nth(1).locator(".answers").is_visible()
    width = page.evaluate("document.documentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert "<script>document.title" in page.locator("article.example").inner_text()
    pictures = page.evaluate(
        """async () => { const images = [...document.images];
        await Promise.all(images.map((image) => image.decode()));
        return images.map((image) => [image.naturalWidth, image.width]); }"""
    )
    assert len(pictures) == 3
    assert all(natural == 64 and shown >= 64 for natural, shown in pictures)
    assert seen.console == []


def test_exit_numbers_and_links_work_without_script(seen: Seen) -> None:
    page = seen.page
    page.locator("#exits summary").first.click()
    assert page.locator("#exits details table").first.is_visible()
    page.locator("nav a", has_text="Cost").click()
    top = page.locator("#cost").bounding_box()
    assert top is not None
    assert 0 <= top["y"] < page.viewport_size["height"]
    assert seen.console == []
