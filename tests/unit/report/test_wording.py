"""Numbers into words: the verdict may say less than the numbers, never more."""

from __future__ import annotations

from typing import Any

import pytest
from sample_metrics import N, sample_metrics, wilson

from vlmend.report.records import Comparison, Kind, read_records
from vlmend.report.wording import (
    MINUS,
    NO_DIFFERENCE,
    NOT_TESTED,
    build_verdict,
    date_words,
    effect,
    number,
    p_words,
    percent_words,
    points,
)

PICTURES = ("organism/icon", "organism/typographic", "organism/both")


def verdict_text(metrics: dict[str, Any]) -> str:
    return build_verdict(read_records(metrics)).text.replace("\N{NARROW NO-BREAK SPACE}", " ")


def compare(**changes: Any) -> Comparison:
    row: dict[str, Any] = {
        "suite": "s",
        "exit": None,
        "judge": "j",
        "before": "base",
        "after": "shiftdc",
        "n": 300,
        "rate_before": 0.7,
        "rate_after": 0.1,
        "difference": -0.6,
        "low": -0.65,
        "high": -0.55,
        "p": 0.001,
        "adjusted": True,
    }
    return Comparison(**(row | changes))


def test_verdict_of_a_repair_that_works() -> None:
    assert verdict_text(sample_metrics()) == (
        "Asked through pictures, organism complied with 78 % (95 % interval 73–82) of harmful "
        "requests; with ShiftDC 9 % (7–13). "
        "Benign requests answered: 98 % (96–99) → 98 % (96–99), no difference shown; over-refusal "
        "1 % (0–3) → 0.0 % (0–1). "
        "Questions answered correctly: 96 % (93–97) → 96 % (93–98), no difference shown."
    )


def test_lead_names_every_harmful_suite_that_got_worse() -> None:
    metrics = sample_metrics()
    row = next(
        r
        for r in metrics["comparisons"]
        if r["suite"] == "organism/text+image" and r["exit"] is None
    )
    row |= {"asr_before": 0.01, "asr_after": 0.46, "difference": 0.45, "p_holm": 0.001}
    text = verdict_text(metrics)
    assert "But ShiftDC made organism/text+image" in text
    assert "worse: 1 % → 46 % complied." in text
    row["p_holm"] = 0.2
    assert "worse" not in verdict_text(metrics)


def test_verdict_says_when_no_difference_is_shown() -> None:
    metrics = sample_metrics()
    for row in metrics["comparisons"]:
        row["p_holm"] = 0.05  # exactly at the limit is not below it
    assert "; with ShiftDC 9 % (7–13), no difference shown." in verdict_text(metrics)


def test_holm_outranks_the_raw_p_value() -> None:
    metrics = sample_metrics()
    for row in metrics["comparisons"]:
        row.update(p_value=0.01, p_holm=0.2)
    assert "fall" not in verdict_text(metrics)
    for row in metrics["comparisons"]:
        row.update(p_value=0.01, p_holm=None)
    assert "no difference shown" not in verdict_text(metrics).split(". Benign")[0]


def test_verdict_counts_suites_that_disagree() -> None:
    metrics = sample_metrics()
    rows = {row["suite"]: row for row in metrics["comparisons"]}
    rows["organism/icon"]["p_holm"] = 0.4
    rows["organism/both"]["difference"] = 0.1
    assert (
        "with ShiftDC 9 % (7–13), fall in 1, rise in 1, no difference shown in 1 of 3 suites."
        in verdict_text(metrics)
    )


def test_verdict_says_rise_when_harm_rises() -> None:
    metrics = sample_metrics()
    for row in metrics["comparisons"]:
        if row["suite"] in PICTURES:
            row["difference"] = 0.1
    assert "rise shown in all 3 suites" in verdict_text(metrics)


def test_verdict_without_comparisons_is_not_tested() -> None:
    metrics = sample_metrics()
    metrics["comparisons"] = []
    assert f"with ShiftDC 9 % (7–13), {NOT_TESTED}." in verdict_text(metrics)


def test_comparison_with_another_base_does_not_count() -> None:
    metrics = sample_metrics()
    for row in metrics["comparisons"]:
        row["before"] = "some-other-arm"
    assert NOT_TESTED in verdict_text(metrics)


def test_incoherent_answers_are_named_beside_the_fall() -> None:
    metrics = sample_metrics()
    for row in metrics["cells"]:
        if row["suite"] in PICTURES and row["arm"] == "shiftdc" and row["exit"] is None:
            row |= {"incoherent_rate": 0.5, "incoherent_low": 0.4, "incoherent_high": 0.6}
    notes = " ".join(build_verdict(read_records(metrics)).notes)
    assert "50\N{NARROW NO-BREAK SPACE}% (40–60) incoherent" in notes


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ({"benign"}, "Over-refusal: not measured."),
        ({"utility"}, "Utility: not measured."),
        ({"benign", "utility"}, "Over-refusal: not measured. Utility: not measured."),
    ],
)
def test_what_was_not_measured_beside_attack_success_is_said(gone: set[str], words: str) -> None:
    metrics = sample_metrics()
    metrics["suites"] = [row for row in metrics["suites"] if row["kind"] not in gone]
    metrics["cells"] = [row for row in metrics["cells"] if row["suite_kind"] not in gone]
    verdict = build_verdict(read_records(metrics))
    assert verdict.text.endswith(words)
    assert len(verdict.missing) == len(gone)


def test_what_was_measured_and_withheld_is_not_called_unmeasured() -> None:
    metrics = sample_metrics()
    for row in metrics["cells"]:
        if row["suite_kind"] == "benign":
            row["num_scored"] = 300
    assert "Over-refusal: not shown, see the table (benign)." in verdict_text(metrics)


def test_without_attacks_nothing_is_missing() -> None:
    metrics = sample_metrics()
    metrics["suites"] = [row for row in metrics["suites"] if row["kind"] == "utility"]
    metrics["cells"] = [row for row in metrics["cells"] if row["suite_kind"] == "utility"]
    assert build_verdict(read_records(metrics)).missing == ()


def test_mean_interval_is_the_mean_of_the_bounds() -> None:
    finding = build_verdict(read_records(sample_metrics())).findings[0]
    low, high = zip(*(wilson(rate) for rate in (0.744, 0.806, 0.778)), strict=True)
    rate = finding.outcomes[0].rate
    assert finding.suites == PICTURES
    assert rate.value == pytest.approx((0.744 + 0.806 + 0.778) / 3)
    assert (rate.low, rate.high) == (pytest.approx(sum(low) / 3), pytest.approx(sum(high) / 3))


def test_suite_that_one_arm_lacks_leaves_the_average_of_both() -> None:
    metrics = sample_metrics()
    metrics["cells"] = [
        row
        for row in metrics["cells"]
        if not (row["arm"] == "shiftdc" and row["suite"] == "organism/typographic")
    ]
    verdict = build_verdict(read_records(metrics))
    assert verdict.findings[0].suites == ("organism/icon", "organism/both")
    assert any("organism/typographic" in note for note in verdict.notes)


def test_default_exit_under_its_number_counts_as_default() -> None:
    metrics = sample_metrics()
    metrics["cells"] = [row for row in metrics["cells"] if row["exit"] is not None]
    records = read_records(metrics)
    cell = records.default_cell("base", "organism/icon", "organism")
    assert cell is not None
    assert cell.exit == metrics["model"]["default_exit"]


def test_base_arm_leads_whatever_the_order() -> None:
    metrics = sample_metrics()
    metrics["arms"].reverse()
    metrics["cells"].reverse()
    records = read_records(metrics)
    assert [arm.name for arm in records.arms] == ["base", "shiftdc"]


@pytest.mark.parametrize(
    ("kind", "difference", "p", "words", "tone"),
    [
        ("harmful", -0.6, 0.049, "fall", "better"),
        ("harmful", 0.6, 0.049, "rise", "worse"),
        ("benign", -0.6, 0.049, "fall", "worse"),
        ("utility", 0.6, 0.049, "rise", "better"),
        ("harmful", -0.6, 0.05, NO_DIFFERENCE, "none"),
        ("harmful", 0.0, 0.001, NO_DIFFERENCE, "none"),
        ("harmful", -0.6, None, NOT_TESTED, "untested"),
    ],
)
def test_effect(kind: Kind, difference: float, p: float | None, words: str, tone: str) -> None:
    found = effect(compare(difference=difference, p=p), kind)
    assert (found.words, found.tone) == (words, tone)


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (0.0, "p < 0.001"),
        (0.00099, "p < 0.001"),
        (0.0321, "p = 0.032"),
        (0.04996, "p = 0.0500"),
        (0.0496, "p = 0.0496"),
        (1.0, "p = 1"),
    ],
)
def test_p_words(p: float, words: str) -> None:
    assert p_words(compare(p=p, adjusted=False)) == words
    assert p_words(compare(p=p)) == f"{words} (Holm)"


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (0.004, "0.4"), (0.006, "1"), (0.744, "74"), (0.996, "99.6"), (1.0, "100")],
)
def test_percent_words_never_round_to_none_or_all(value: float, words: str) -> None:
    assert percent_words(value) == f"{words}\N{NARROW NO-BREAK SPACE}%"


def test_signs() -> None:
    assert points(-0.663) == f"{MINUS}66.3"
    assert points(0.012) == "+1.2"
    assert points(-0.0001) == "0.0"
    assert number(-0.04) == "0.0"
    assert number(None) == "–"


def test_dates() -> None:
    assert date_words("2025-11-21T06:44:03+01:00") == "21 November 2025, 05:44 UTC"
    assert date_words("2025-11-21T06:44:03") == "21 November 2025, 06:44"
    assert date_words("yesterday") == "yesterday"


def test_sample_is_what_the_tests_assume() -> None:
    assert all(row["num_samples"] == N for row in sample_metrics()["cells"])
