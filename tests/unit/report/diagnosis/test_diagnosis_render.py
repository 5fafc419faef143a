"""The diagnosis as a page: complete, escaped, never fetched, and honest about what is missing."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from sample_diagnosis import sample_diagnosis

from vlmend.errors import RunError
from vlmend.report.diagnosis.page import (
    build_lead,
    finding_value,
    render_diagnosis,
    render_diagnosis_html,
)
from vlmend.report.diagnosis.read import read_diagnosis

MAX_BYTES = 3_000_000
"""A page of 32 layers with four sets of 200 points must stay below: it is sent by mail."""
FIGURES = {
    "probes",
    "confusion",
    "maps",
    "self-classification",
    "violins",
    "separation",
    "shift",
    "estimators",
    "stability",
    "exits",
    "coherence",
    "groups",
    "tests",
    "grounding",
    "embeddings",
    "decoder",
}


@pytest.fixture(scope="module")
def html() -> str:
    return render_diagnosis_html(sample_diagnosis())


def check_no_nan(page: Page) -> None:
    words = re.findall(r"[a-z]+", page.text.lower())
    assert not {"nan", "inf", "null", "undefined"} & set(words)
    assert "None" not in page.text
    for tag, attrs in page.tags:
        for key in ("points", "d", "x", "y", "cx", "cy", "width", "height", "y1", "x1"):
            value = attrs.get(key) or ""
            assert not re.search(r"nan|inf", value), (tag, key, value)


def test_page_is_well_formed_and_complete(html: str) -> None:
    page = Page(html)
    ids = page.ids()
    assert len(ids) == len(set(ids))
    assert set(ids) >= FIGURES | {"findings", "sets", "cost", "gaps", "reproduce"}
    anchors = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert anchors <= {f"#{name}" for name in ids}
    charts = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert all(attrs["aria-label"] for attrs in charts)
    # Always in sight: 3 probe, 1 separation, 9 shift, 1 + 3 direction, 1 + 4 + 1 + 2 exits,
    # 3 embeddings, 1 decoder; per layer 2 maps and 1 violin panel.
    assert len(charts) == 3 + 1 + 9 + 4 + 8 + 4 + 6 * 3
    assert sum("matrix" in (a.get("class") or "") for t, a in page.tags if t == "table") == 18
    assert page.text.count("Does not show") == len(FIGURES)
    assert "Not shown" not in page.text
    check_no_nan(page)


def test_every_figure_says_what_it_shows(html: str) -> None:
    for block in re.split(r'<div class="block diag" ', html)[1:]:
        name = re.match(r'id="([^"]+)"', block)
        assert name is not None
        says = re.findall(r"<dt>(Shows|Does not show)</dt><dd>(.*?)</dd>", block, re.S)
        assert {kind for kind, _ in says} == {"Shows", "Does not show"}, name[1]
        assert all(len(text) > 20 for _, text in says)


def test_nothing_is_fetched_and_one_script_is_allowed(html: str) -> None:
    page = Page(html)
    for _, attrs in page.tags:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            value = attrs.get(key)
            assert value is None or value.startswith(("#", "data:")), (key, value)
    assert not re.search(r"https?://", html)
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}</details>"


def spread(value: Any, text: str) -> Any:
    """Put a text into every free string."""
    fixed = {"kind", "verdict", "modality", "label", "method"}
    if isinstance(value, dict):
        return {k: item if k in fixed else spread(item, text) for k, item in value.items()}
    if isinstance(value, list):
        return [spread(item, text) for item in value]
    return value + text if isinstance(value, str) else value


def test_every_string_is_escaped() -> None:
    hostile = spread(sample_diagnosis(), HOSTILE)
    hostile["sets"][0].update(modality=HOSTILE, label=HOSTILE)
    hostile["maps"][0]["method"] = hostile["exits"]["tests"][0]["method"] = HOSTILE
    hostile["self_classification"][0]["gap"] = HOSTILE
    page = Page(render_diagnosis_html(hostile))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "img" for tag, _ in page.tags)
    assert all(not key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert "<script>alert(1)" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_middle_layer_is_in_sight_without_a_script(html: str) -> None:
    for name in ("confusion", "maps", "violins"):
        block = html[html.index(f'<div class="block diag" id="{name}"') :]
        first = re.search(r'<div class="slide" data-layer="(\d+)"', block)
        assert first is not None
        assert first[1] == "3"
        assert block.index('class="slide"') < block.index("<details")
        control = re.search(r'<div class="control" (\w+)>', block)
        assert control is not None
        assert control[1] == "hidden"


@pytest.mark.parametrize(
    "section",
    [
        "sets",
        "probes",
        "maps",
        "shift",
        "separation",
        "self_classification",
        "estimators",
        "stability",
        "exits",
        "findings",
        "cost",
    ],
)
def test_page_with_one_section_states_the_rest(section: str) -> None:
    whole = sample_diagnosis()
    part = {"schema": 1, "kind": "diagnosis", section: whole[section]}
    page = Page(render_diagnosis_html(part))
    assert "not measured" in page.text
    check_no_nan(page)
    gap = {"gap": "the model folder holds <one> layer"}
    page = Page(render_diagnosis_html(whole | {section: gap}))
    assert "Not shown: the model folder holds <one> layer" in page.text
    check_no_nan(page)


@pytest.mark.parametrize(
    "part",
    ["rows", "groups", "tests", "grounding", "embeddings", "association", "decoder"],
)
@pytest.mark.parametrize("form", ["missing", "gap", "empty"])
def test_parts_of_the_sweep_may_be_absent(part: str, form: str) -> None:
    diagnosis = sample_diagnosis()
    forms = {"missing": None, "gap": {"gap": "ran out of time"}, "empty": []}
    diagnosis["exits"][part] = forms[form]
    page = Page(render_diagnosis_html(diagnosis))
    assert ("ran out of time" if form == "gap" else "not measured") in page.text
    check_no_nan(page)


def all_numbers(value: Any, new: float) -> Any:
    """Replace every measured number (floats) by another."""
    if isinstance(value, dict):
        return {key: all_numbers(item, new) for key, item in value.items()}
    if isinstance(value, list):
        return [all_numbers(item, new) for item in value]
    return new if isinstance(value, float) else value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.0, 1.0, -1.0, 1e9])
def test_degenerate_numbers_never_reach_the_page(number: float) -> None:
    diagnosis = all_numbers(sample_diagnosis(layers=2, exits=3, per_set=3), number)
    page = Page(render_diagnosis_html(diagnosis))
    check_no_nan(page)
    assert ("not finite" in page.text) == (number != number or number == float("inf"))


def test_smallest_diagnosis_renders() -> None:
    page = Page(render_diagnosis_html({"schema": 1, "kind": "diagnosis"}))
    assert "No claim was tested on this model." in page.text
    assert page.text.count("Not shown: not measured") == len(FIGURES) + 3
    assert "cannot be reproduced" in page.text
    check_no_nan(page)


def test_one_layer_has_no_slider_to_move() -> None:
    html = render_diagnosis_html(sample_diagnosis(layers=1, exits=3, per_set=3))
    assert "All other layers" not in html
    check_no_nan(Page(html))


def test_lead_counts_verdicts() -> None:
    lead = build_lead(read_diagnosis(sample_diagnosis()))
    assert lead[0] == (
        "5 claims put to this model: 2 reproduced, 1 refuted, 1 undecided and 1 not measured."
    )
    assert lead[1].startswith("Most vulnerable while still coherent: exit 4, where 65")


def test_verdicts_have_words_and_icons(html: str) -> None:
    findings = html[html.index('id="findings"') : html.index('id="sets"')]
    icons = re.findall(r'<path d="([^"]+)"/></svg>\s*([a-z ]+)</td>', findings)
    assert [word for _, word in icons] == [
        "reproduced",
        "reproduced",
        "undecided",
        "refuted",
        "not measured",
    ]
    assert len({path for path, _ in icons}) == 4


def test_finding_values() -> None:
    minus = "\N{MINUS SIGN}"
    assert finding_value(0.262, 0.181, 0.343) == ("0.26", "0.18 to 0.34")
    assert finding_value(-0.004, -0.01, 0.002) == (f"{minus}0.004", f"{minus}0.010 to 0.002")
    assert finding_value(0.5, None, 0.6) == ("0.50", "")
    assert finding_value(None, None, None) == ("–", "")


def test_large_page_stays_small(tmp_path: Path) -> None:
    out = render_diagnosis(sample_diagnosis(32, 24, 200), tmp_path / "deep" / "report.html")
    assert out.stat().st_size < MAX_BYTES
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_output_is_deterministic_and_input_untouched() -> None:
    diagnosis = sample_diagnosis(layers=3, exits=3, per_set=4)
    before = copy.deepcopy(diagnosis)
    first = render_diagnosis_html(diagnosis)
    assert first == render_diagnosis_html(json.loads(json.dumps(diagnosis)))
    assert diagnosis == before


def test_wrong_document_leaves_an_older_page_alone(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("older")
    with pytest.raises(RunError, match="kind 'audit'"):
        render_diagnosis({"schema": 1, "kind": "audit"}, out)
    assert out.read_text() == "older"


def test_page_and_figures_import_no_model_code() -> None:
    code = (
        "import sys, vlmend.report.diagnosis.page, vlmend.report.figures;"
        "print({'torch', 'transformers', 'matplotlib', 'vlmend.models'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
