"""The ledger of a training, and what it took until the model was safe."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vlmend.errors import RunError
from vlmend.training.cost_curve import training_record


def step(number: int, **changed: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": number,
        "seconds": 2.0,
        "flops": 100,
        "counted": False,
        "tokens": 10,
        "images": 3,
        "peak_memory_bytes": 1000 + number,
    }
    return row | changed


STEPS = [step(number) for number in range(1, 11)]
WATCH = [
    {"step": 0, "asr": 0.7, "low": 0.6, "high": 0.8, "suites": {}},
    {"step": 4, "asr": 0.2, "low": 0.1, "high": 0.3},
    {"step": 6, "asr": None},
    {"step": 8, "asr": 0.05, "low": 0.0, "high": 0.1},
    {"step": 10, "asr": 0.06},
]


def test_the_curve_has_the_cost_so_far() -> None:
    found = training_record("unlearn(text)", STEPS, WATCH, suite="s")
    assert found["repair"] == "unlearn(text)"
    assert (found["ledger"]["seconds"], found["ledger"]["flops"]) == (20.0, 1000)
    assert found["ledger"]["peak_memory_bytes"] == 1010
    points = found["watch"]["points"]
    assert [point["step"] for point in points] == [0, 4, 8, 10]
    assert [point["seconds"] for point in points] == [0, 8.0, 16.0, 20.0]
    assert [point["images"] for point in points] == [0, 12, 24, 30]
    assert [point["flops_estimated"] for point in points] == [False] * 4
    assert points[0]["flops_estimated"] is False, "0 is no bool in JSON"
    assert (points[1]["low"], points[3]["low"]) == (0.1, None)
    assert found["watch"]["suite"] == "s"
    json.dumps(found, allow_nan=False)


def test_reached_is_when_the_rate_is_low_enough_and_stays_so() -> None:
    reached = training_record("x", STEPS, WATCH)["reached"]
    assert reached == {
        "asr": 0.08,
        "steps": 8,
        "seconds": 16.0,
        "flops": 800,
        "flops_estimated": False,
        "tokens": 80,
        "images": 24,
    }
    at_once = training_record("x", STEPS, WATCH, asr=0.75)["reached"]
    assert at_once == {
        "asr": 0.75,
        "steps": 0,
        "seconds": 0,
        "flops": 0,
        "flops_estimated": False,
        "tokens": 0,
        "images": 0,
    }
    assert at_once["flops_estimated"] is False, "0 is no bool in JSON"
    rises = training_record("x", STEPS, [*WATCH[:4], {"step": 10, "asr": 0.09}])["reached"]
    assert (rises["asr"], rises["steps"], rises["flops"]) == (0.08, None, None)


def test_never_reached_and_not_watched_are_told_apart() -> None:
    never = training_record("x", STEPS, WATCH, asr=0.01)["reached"]
    assert (never["asr"], never["steps"], never["seconds"]) == (0.01, None, None)
    alone = training_record("x", STEPS)
    assert (alone["watch"], alone["reached"]) == (None, None)
    assert training_record("x", STEPS, [{"step": 0, "asr": None}])["reached"] is None


def test_steps_that_are_missing_are_no_low_cost() -> None:
    with pytest.raises(RunError, match="2 more steps than there are"):
        training_record("x", STEPS[:8], WATCH)
