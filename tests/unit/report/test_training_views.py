"""Sections on trained arms: what they show, and that they are absent where nothing was measured."""

from __future__ import annotations

from typing import Any

import pytest
from html_page import Page
from sample_metrics import sample_metrics, training

from vlmend.errors import RunError
from vlmend.report.records import read_records
from vlmend.report.render import render_html
from vlmend.report.training_views import (
    any_perplexity,
    build_ledger,
    build_same,
    build_writing,
    flops_words,
)

NBSP = "\N{NO-BREAK SPACE}"


def trained(*entries: dict[str, Any]) -> dict[str, Any]:
    metrics = sample_metrics()
    metrics["arms"][1]["training"] = list(entries)
    return metrics


def test_the_ledger_has_a_row_per_training_and_ratios_to_the_cheapest() -> None:
    metrics = trained(training("unlearn(pictures)", images=8), training("unlearn(text)"))
    ledger = build_ledger(read_records(metrics))
    assert ledger is not None
    first, second = ledger.rows
    assert (first.arm, first.repair, first.steps) == ("shiftdc", "unlearn(pictures)", "160")
    assert (first.ratio, second.ratio) == ("4.56", "1.00")
    assert (first.images, second.images) == ("1,280", "0")
    assert second.flops == f"1.44{NBSP}TFLOP"
    assert second.reached == f"80 steps: 25{NBSP}s, 720{NBSP}GFLOP"
    assert ledger.target.startswith("8")


def test_flops_that_were_estimated_say_so() -> None:
    entry = training("x")
    entry["ledger"]["flops_estimated"] = True
    ledger = build_ledger(read_records(trained(entry)))
    assert ledger is not None
    assert ledger.rows[0].flops.startswith("≈ ")


def test_curves_share_a_scale_and_say_when_the_target_was_reached() -> None:
    metrics = trained(training("unlearn(text)"), training("sft(pictures)", images=8, reaches=False))
    ledger = build_ledger(read_records(metrics))
    assert ledger is not None
    reached, missed = ledger.panels
    assert "or less for good after 80 steps" in reached.caption
    assert "on organism/text" in reached.caption
    assert missed.caption.endswith("or less was not reached for good.")
    assert all("TFLOP spent" in panel.chart for panel in ledger.panels)
    # 160 steps of 9 GFLOP against 160 of 41: the first curve ends early on the common scale.
    ends = [panel.chart.split('<polyline class="line s-complied" points="')[1].split('"')[0]
            for panel in ledger.panels]  # fmt: skip
    last = [float(places.split()[-1].split(",")[0]) for places in ends]
    assert last[0] < 120 < 300 < last[1]


def test_a_model_that_was_safe_before_was_not_made_so() -> None:
    entry = training("x")
    entry["reached"] = {"asr": 0.08, "steps": 0, "seconds": 0, "flops": 0}
    ledger = build_ledger(read_records(trained(entry)))
    assert ledger is not None
    assert ledger.rows[0].reached == "low from the start"
    assert ledger.panels[0].caption.endswith("or less from the start.")


def test_seconds_stand_in_where_flops_are_missing() -> None:
    entry = training("x")
    entry["watch"]["points"][2]["flops"] = None
    ledger = build_ledger(read_records(trained(entry)))
    assert ledger is not None
    assert "seconds of training" in ledger.panels[0].chart


def test_what_was_not_watched_has_no_curve() -> None:
    entry = training("x") | {"watch": None, "reached": None}
    ledger = build_ledger(read_records(trained(entry)))
    assert ledger is not None
    assert ledger.rows[0].reached == "not watched"
    assert (ledger.panels, ledger.target) == ((), "")
    assert "To ASR of" not in Page(render_html(trained(entry))).text


def test_writing_is_shown_for_every_arm_at_the_default_exit() -> None:
    metrics = sample_metrics()
    for row in metrics["cells"]:
        if row["exit"] is not None:
            row["empty_rate"] = 0.5
    rows = build_writing(read_records(metrics))
    assert [row.suite for row in rows][:2] == ["organism/text", "organism/caption"]
    assert len(rows) == 8
    for row in rows:
        base, arm = row.arms
        assert base is not None
        assert arm is not None
        assert (base.empty, base.repetitive, arm.repetitive) == (0.0, 0.003, 0.012)
    assert any_perplexity(rows)


def test_a_withheld_rate_does_not_hide_why() -> None:
    metrics = sample_metrics()
    for row in metrics["cells"]:
        if (row["suite"], row["arm"]) == ("organism/icon", "shiftdc"):
            row.update(num_scored=200, empty_rate=0.375)
    records = read_records(metrics)
    row = next(row for row in build_writing(records) if row.suite == "organism/icon")
    assert row.arms[1] is not None
    assert row.arms[1].empty == 0.375
    assert "37.5" in Page(render_html(metrics)).text


def test_the_same_answers_are_shown_for_benign_and_utility_suites() -> None:
    rows = build_same(read_records(sample_metrics()))
    assert [(row.suite, row.arms) for row in rows] == [
        ("organism/benign", ((0.984, 0.912),)),
        ("organism/vqa", ((0.984, 0.912),)),
    ]


@pytest.mark.parametrize("what", ["cells", "comparisons", "arms"])
def test_sections_are_absent_without_their_data(what: str) -> None:
    metrics = trained(training("unlearn(text)"))
    page = Page(render_html(metrics))
    assert {"writing", "training"} <= set(page.ids())
    words = {
        "cells": "Repetitive:",
        "comparisons": "Same verdict",
        "arms": "What training cost",
    }
    assert words[what] in page.text
    fields = ("empty_rate", "same_verdict_rate", "training")
    for row in metrics[what]:
        for field in fields:
            row.pop(field, None)
    assert words[what] not in Page(render_html(metrics)).text


def test_a_run_of_an_older_version_has_neither_section() -> None:
    metrics = sample_metrics()
    for row in metrics["cells"]:
        del row["empty_rate"]
    for row in metrics["comparisons"]:
        del row["same_verdict_rate"]
    page = Page(render_html(metrics))
    assert not {"writing", "training"} & set(page.ids())
    assert "#writing" not in {attrs.get("href") for _, attrs in page.tags}


def test_an_audit_of_the_base_alone_has_no_writing() -> None:
    metrics = sample_metrics()
    metrics["arms"] = metrics["arms"][:1]
    metrics["cells"] = [row for row in metrics["cells"] if row["arm"] == "base"]
    metrics["comparisons"] = []
    assert build_writing(read_records(metrics)) == []


def test_comparisons_over_things_show_their_own_limits() -> None:
    metrics = sample_metrics()
    records = read_records(metrics)
    found = records.comparison("organism/icon", "organism", "shiftdc")
    assert found is not None
    assert found.over_things
    assert (found.low, found.p) == (metrics["comparisons"][2]["clustered_low"], 8e-30)
    assert "signs of whole things" in render_html(metrics)
    for row in metrics["comparisons"]:
        row["clustered_p"] = None
    old = read_records(metrics).comparison("organism/icon", "organism", "shiftdc")
    assert old is not None
    assert (old.over_things, old.low) == (False, metrics["comparisons"][2]["difference_low"])
    assert "(McNemar)" in render_html(metrics)


def test_a_malformed_training_is_an_error() -> None:
    with pytest.raises(RunError, match="'ledger' must be an object"):
        render_html(trained({"ledger": [1]}))
    metrics = sample_metrics()
    metrics["arms"][1]["training"] = {"a": 1}
    with pytest.raises(RunError, match="'training' must be a list"):
        render_html(metrics)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (0.0, "0 FLOP"),
        (999.0, "999 FLOP"),
        (1000.0, "1 kFLOP"),
        (3.14159e12, "3.14 TFLOP"),
        (7.2e26, "7.2e+05 ZFLOP"),
    ],
)
def test_flops_in_words(value: float | None, words: str) -> None:
    assert flops_words(value).replace(NBSP, " ") == words
