from __future__ import annotations

from typing import Any

import pytest

from vlmend.diagnosis.findings import find_all, middle_layer


def rate(value: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"rate": value, "low": low, "high": high, "n": 50}


def stat(value: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 50}


def diagnosis(side: int) -> dict[str, Any]:
    """Numbers that are all on the claimed side (1), on the other (-1), or in between (0)."""

    def around(null: float, scale: float) -> tuple[float, float, float]:
        middle = null + side * scale
        return middle, middle - 0.5 * scale, middle + 0.5 * scale

    home = 0.4
    layer: dict[str, Any] = {"gap": None, "unsafe_as_safe": {"text": rate(home, 0.3, 0.5)}}
    layer["confusion"] = {"transfer": {"safe_as_safe": 7, "safe_as_unsafe": 2}}
    layer["unsafe_as_safe"]["transfer"] = rate(*around(home, 0.2))
    other = {"layer": 9, "gap": "did not run", "unsafe_as_safe": {}}
    asked = around(0.6, -0.2)
    tests = [
        {"exit": 1, "difference": 0.1, "low": 0.0, "high": 0.2, "p_holm": 0.9},
        {
            "exit": 2,
            "difference": 0.3,
            "low": 0.2,
            "high": 0.4,
            "p_holm": 0.01 if side == 1 else 0.2,
        },
    ]
    return {
        "probes": {
            "comparison": {"mean": {"layers": [3], "difference": stat(*around(0, 0.1))}},
            "by_layer": [{"layer": 3, **layer}, other],
        },
        "shift_mean": {"layer": 3, **stat(*around(0, 1.0))},
        "separation_pooled": {
            "auroc": stat(*around(0.5, 0.3)),
            "n_complied": 9,
            "n_refused": 9,
            "gap": None,
        },
        "self_classification": [
            {
                "modality": "text",
                "suite": None,
                "auroc": stat(0.6, 0.5, 0.7),
                "mass_median": 0.9,
                "gap": None,
            },
            {
                "modality": "vision-language",
                "suite": None,
                "auroc": stat(asked[0], *sorted(asked[1:])),
                "mass_median": 0.002,
                "gap": None,
            },
        ],
        "exits": {
            "suite": "tea",
            "tests": tests,
            "refusal_tests": tests,
            "association": [
                {"measure": "mahalanobis", "spearman": stat(*around(0, 0.4)), "gap": None}
            ],
        },
    }


@pytest.mark.parametrize(
    ("side", "verdict"), [(1, "reproduced"), (-1, "refuted"), (0, "undecided")]
)
def test_verdicts_follow_the_interval(side: int, verdict: str) -> None:
    found = find_all(diagnosis(side))
    assert len(found) == 8
    for finding in found:
        # No test can show that exits are equal.
        expected = "undecided" if "exits" in finding["claim"] and side == -1 else verdict
        assert finding["verdict"] == expected, finding
        assert finding["low"] <= finding["value"] <= finding["high"]
        assert finding["text"]


def test_nothing_measured_says_so_for_every_claim() -> None:
    for record in ({}, {name: {"gap": "no images"} for name in diagnosis(1)}):
        found = find_all(record)
        assert {f["verdict"] for f in found} == {"not measured"}
        assert all(f["text"] and f["value"] is None for f in found)


def test_numbers_without_an_interval_decide_nothing() -> None:
    record = diagnosis(1)
    record["probes"]["comparison"]["mean"]["difference"] = stat(0.2, None, None)
    assert find_all(record)[0]["verdict"] == "not measured"


def test_the_exit_finding_names_the_exit_with_the_smallest_p() -> None:
    findings = [f for f in find_all(diagnosis(1)) if "exits differ" in f["claim"]]
    assert len(findings) == 2
    assert all(f["text"].startswith("Exit 2: +30.0 points") for f in findings)


def test_the_middle_layer_is_the_later_of_two() -> None:
    assert middle_layer([0, 1, 2]) == 1
    assert middle_layer([7, 3, 5, 1]) == 5


def test_a_ranking_of_unlikely_answers_counts_but_says_so() -> None:
    record = diagnosis(1)
    record["self_classification"][0]["gap"] = "the model does not take this for a question"
    (finding,) = (f for f in find_all(record) if f["claim"].startswith("Asked outright"))
    assert finding["verdict"] == "reproduced"
    assert "median probability of 0.002" in finding["text"]
