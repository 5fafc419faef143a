"""The report as a page: what is escaped, withheld, left out, and never fetched."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from sample_metrics import sample_metrics

from vlmend.errors import RunError
from vlmend.report.render import render_html, render_report

MAX_BYTES = 1_500_000
"""The limit the report promises; a page above it is slow to open on a phone."""


def find_cells(metrics: dict[str, Any], **want: Any) -> list[dict[str, Any]]:
    return [row for row in metrics["cells"] if all(row[key] == want[key] for key in want)]


def test_full_page_is_well_formed_and_small() -> None:
    html = render_html(sample_metrics())
    page = Page(html)
    assert len(html.encode()) < MAX_BYTES
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert anchors <= {f"#{name}" for name in ids}
    charts = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    # 8 before/after tracks, 3 suites x 2 arms of exits, 2 suites x 3 of shift.
    assert len(charts) == 8 + 6 + 6
    assert all(attrs["aria-label"] for attrs in charts)
    assert "undefined" not in html
    assert "nan" not in re.findall(r"[a-z]+", page.text.lower())


def test_a_long_name_of_an_arm_is_short_wherever_it_stands_beside_a_number() -> None:
    long = "shiftdc(layers=2-4, strength=0.5, caption_tokens=32)"
    text = json.dumps(sample_metrics()).replace('"shiftdc"', json.dumps(long))
    html = render_html(json.loads(text))
    page = Page(html)
    assert "every shiftdc: layers=2-4, strength=0.5, caption_tokens=32" in page.text
    assert long not in html.partition('id="reproduce"')[0].replace("<wbr>", "")
    assert long in page.text.partition("Arms")[2], "in full where it says how to reproduce it"
    plain = Page(render_html(sample_metrics())).text
    assert page.text.count("ShiftDC") == plain.count("ShiftDC") > 20


def test_nothing_is_fetched() -> None:
    metrics = sample_metrics()
    metrics["examples"][0]["answers"][0]["text"] = '<img src="https://example.org/x.png">'
    metrics["model"]["name"] = "https://example.org/model"
    page = Page(render_html(metrics))
    for _, attrs in page.tags:
        for key in ("src", "href", "srcset", "action", "data", "poster"):
            value = attrs.get(key)
            assert value is None or value.startswith(("#", "data:")), (key, value)
    html = render_html(sample_metrics())
    assert "url(" not in html
    assert "@import" not in html
    assert "@font-face" not in html
    assert not re.search(r"https?://", html)


def test_policy_forbids_scripts_and_addresses() -> None:
    page = Page(render_html(sample_metrics()))
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src 'none'" in policy
    assert not any(tag == "script" for tag, _ in page.tags)


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}</details>"


def spread(value: Any, text: str) -> Any:
    """Put a text into every free string of the metrics, keys of free mappings included."""
    fixed = {"kind", "suite_kind", "leak", "label", "arm", "suite", "judge", "before", "after"}
    if isinstance(value, dict):
        return {
            key: item if key in fixed or key == "image_png_base64" else spread(item, text)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [spread(item, text) for item in value]
    return value + text if isinstance(value, str) else value


def test_every_string_is_escaped() -> None:
    metrics = sample_metrics()
    hostile = spread(metrics, HOSTILE)
    hostile["reproduce"]["settings"][HOSTILE] = HOSTILE
    hostile["cells"].append(find_cells(metrics, arm="base")[0] | {"arm": HOSTILE, "judge": HOSTILE})
    hostile["shift"][0]["group"] = HOSTILE
    html = render_html(hostile)
    page = Page(html)
    assert not any(tag == "script" for tag, _ in page.tags)
    assert all(not key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert "<script>alert(1)" in page.text
    assert "{{ 7 * 7 }}" in page.text
    plain = Page(render_html(metrics))
    assert sum(t == "img" for t, _ in page.tags) == sum(t == "img" for t, _ in plain.tags)


def test_forbidden_characters_are_replaced(tmp_path: Path) -> None:
    metrics = sample_metrics()
    metrics["examples"][0]["answers"][0]["text"] = "a\x00b\ud83dc\x1b[31m\x85"
    out = render_report(metrics, tmp_path / "report.html")
    text = out.read_text(encoding="utf-8")
    assert "a\ufffdb\ufffdc\ufffd[31m\ufffd" in text


def test_line_breaks_of_an_answer_survive() -> None:
    metrics = sample_metrics()
    metrics["examples"][0]["answers"][0]["text"] = "one\n\ttwo"
    assert ">one\n\ttwo</p>" in render_html(metrics)


def test_output_is_deterministic_and_input_untouched() -> None:
    metrics = sample_metrics()
    before = copy.deepcopy(metrics)
    assert render_html(metrics) == render_html(json.loads(json.dumps(metrics)))
    assert metrics == before


@pytest.mark.parametrize("section", ["comparisons", "shift", "cost", "examples", "caveats"])
@pytest.mark.parametrize("form", ["missing", "empty", "null"])
def test_optional_section_may_be_absent(section: str, form: str) -> None:
    metrics = sample_metrics()
    metrics[section] = {"missing": 0, "empty": [], "null": None}[form]
    if form == "missing":
        del metrics[section]
    page = Page(render_html(metrics))
    words = {
        "comparisons": "difference not tested",
        "shift": "Not measured.",
        "cost": "Not measured.",
        "examples": "No examples were recorded.",
        "caveats": "That does not mean there are none.",
    }
    assert words[section] in page.text
    assert words[section] not in Page(render_html(sample_metrics())).text


def test_smallest_metrics_render() -> None:
    page = Page(render_html({"schema": 1}))
    assert "No rate can be shown" in page.text
    assert "cannot be reproduced" in page.text
    minimal = {
        "schema": 1,
        "suites": [{"name": "figstep", "kind": "harmful"}],
        "cells": [
            {
                "arm": "base",
                "suite": "figstep",
                "exit": None,
                "judge": "organism",
                "num_samples": 500,
                "num_scored": 500,
                "asr": 0.5,
                "asr_low": 0.456,
                "asr_high": 0.544,
                "refusal_rate": 0.4,
                "incoherent_rate": 0.1,
                "seconds": 3.0,
            }
        ],
    }
    text = Page(render_html(minimal)).text
    assert "No repair was measured" in text
    assert "45.6–54.4" in text


def test_null_rates_are_dashes_not_zeros() -> None:
    metrics = sample_metrics()
    for row in find_cells(metrics, suite="organism/vqa"):
        row.update(refusal_rate=None, refusal_low=None, refusal_high=None)
    html = render_html(metrics)
    row = html[html.index("organism/<wbr>vqa") :]
    row = row[: row.index("</tr>")]
    assert row.count(">–</td>") == 2
    assert ">0.0<" not in row


@pytest.mark.parametrize(
    ("scored", "errors", "reason"),
    [
        (313, 0, "7 of 320 items unscored: coverage 97.8 % is below 98 %"),
        (300, 7, "20 of 320 items unscored, 7 of them errors: coverage 93.7 % is below 98 %"),
        (0, 320, "320 of 320 items unscored, 320 of them errors: coverage 0.0 % is below 98 %"),
    ],
)
def test_rate_with_low_coverage_is_withheld_everywhere(
    scored: int, errors: int, reason: str
) -> None:
    metrics = sample_metrics()
    metrics["cells"] = [row for row in metrics["cells"] if row["exit"] is None]
    rows = find_cells(metrics, suite="organism/icon", arm="base")
    rows[0].update(num_scored=scored, num_errors=errors, asr=0.7412, asr_low=0.6912)
    for item in metrics["comparisons"]:
        if item["suite"] == "organism/icon":
            item.update(asr_before=0.7412, difference=-0.6612)
    html = render_html(metrics)
    assert f"organism/icon, base, default exit: {reason}" in html
    assert "Not in these figures, see the table for why: organism/icon." in html
    for trace in ("74.1", "69.1", "66.1"):
        assert trace not in html


def test_coverage_of_98_percent_is_shown() -> None:
    metrics = sample_metrics()
    for row in metrics["cells"]:
        row.update(num_samples=100, num_scored=98)
    html = render_html(metrics)
    assert "98/100" in html
    assert "Withheld rates" not in html


def test_harmful_examples_are_folded_and_benign_are_not() -> None:
    html = render_html(sample_metrics())
    folded = "".join(re.findall(r"<details class=\"example.*?</details>", html, re.S))
    assert folded.count("gather the parts of the cake") == 2
    assert html.count("gather the parts of the cake") == 2
    assert "gather the parts of the tent" not in folded
    assert '<details class="example harmful">' in html  # and not "open"
    metrics = sample_metrics()
    metrics["examples"][2]["label"] = "harmful"
    assert render_html(metrics).count('<details class="example harmful">') == 3


@pytest.mark.parametrize("picture", ["not base64!", "aGVsbG8=", "iVBORw0KGgo=", ""])
def test_picture_that_is_no_png_is_not_embedded(picture: str) -> None:
    metrics = sample_metrics()
    for example in metrics["examples"]:
        example["image_png_base64"] = picture
    html = render_html(metrics)
    assert "<img" not in html
    assert ("not a complete PNG" if picture else "no picture") in html


def test_pictures_over_the_budget_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = sample_metrics()
    length = len(metrics["examples"][0]["image_png_base64"])
    monkeypatch.setattr("vlmend.report.examples.PICTURE_BUDGET", length)
    html = render_html(metrics)
    assert html.count("<img") == 1
    assert "left out to keep this file small" in html


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema 2"),
        ({"cells": {}}, "'cells' must be a list"),
        ({"cells": [{"suite": "x", "suite_kind": "benign"}]}, "no text 'arm'"),
        ({"cells": [{"arm": "base", "suite": "x"}]}, "Allowed: harmful, benign, utility"),
        ({"suites": [{"name": "x", "kind": "odd"}]}, "kind 'odd'"),
        ({"model": []}, "'model' must be an object"),
        ({"shift": [{"suite": "x", "layers": [0, 1], "cos_median": [0.1]}]}, "2 layers but 1"),
    ],
)
def test_malformed_metrics_are_an_error(change: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=re.escape(words)):
        render_html(sample_metrics() | change)


def test_report_replaces_an_older_one(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "report.html"
    assert render_report(sample_metrics(), out) == out
    first = out.read_bytes()
    render_report(sample_metrics() | {"title": "Another"}, out)
    assert out.read_bytes() != first
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]


def test_failed_write_leaves_the_old_report_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")

    def fail(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlmend.runs._sync", fail)
    with pytest.raises(RunError, match="No space left on device"):
        render_report(sample_metrics(), out)
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot write"):
        render_report(sample_metrics(), tmp_path)


def test_report_imports_no_torch() -> None:
    code = (
        "import sys, vlmend.report.render; "
        "bad = {'torch', 'transformers', 'vlmend.models', 'vlmend.hooks'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
