"""The benchmarks run, compare what is equal, and their arithmetic is right."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

LIMIT_S = 900
"""Seven seconds of processor time; more where many others want the processor."""

NO_DIFFERENCE = 1e-5
"""Relative; float32 sums in another order differ by some 1e-7 per layer."""


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("timing")


def clock_of(ticks: list[float]) -> Callable[[], float]:
    """A clock that shows the next of these seconds whenever it is read."""
    rest = iter(ticks)
    return lambda: next(rest)


def test_rounds_alternate_after_a_warm_up(timing: Any) -> None:
    calls: list[str] = []
    _, results = timing.time_alternately(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b") or "result"}, 2
    )
    assert "".join(calls) == "ab" + "abab"
    assert results == {"a": None, "b": "result"}


def test_ratios_are_taken_within_a_round(timing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Wall: a takes 1, 2, 4 s and b takes 2, 3, 16 s; processor: a always 1 s, b always 3 s.
    wall = [0, 1, 0, 2, 0, 2, 0, 3, 0, 4, 0, 16]
    cpu = [0, 1, 0, 3] * 3
    monkeypatch.setattr(timing.time, "perf_counter", clock_of([float(t) for t in wall]))
    monkeypatch.setattr(timing.time, "process_time", clock_of([float(t) for t in cpu]))
    (a, b), _ = timing.time_alternately({"a": lambda: None, "b": lambda: None}, 3)
    assert a.seconds == timing.Spread(2, 1, 4)
    assert a.ratio == timing.Spread(1, 1, 1)
    assert b.seconds == timing.Spread(3, 2, 16)
    assert b.ratio == timing.Spread(2, 1.5, 4)
    assert b.cpu_ratio == timing.Spread(3, 3, 3)


@pytest.mark.slow
def test_a_quick_run_measures_all_and_finds_equal_results(tmp_path: Path) -> None:
    out = tmp_path / "new" / "bench.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run.py"), "--quick", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["model"]["name"] == "random-tiny"
    assert record["machine"]["threads"] == 1
    names = ["a. recording", "b. exit sweep, encoder and projector", "b. exit sweep, one token"]
    assert [case["name"] for case in record["cases"]] == [*names, "c. answering", "d. batches"]
    recording, sides, whole, answering, batches = (case["facts"] for case in record["cases"])
    assert recording["largest_relative_difference"] < NO_DIFFERENCE
    assert sides["largest_relative_difference"] < NO_DIFFERENCE
    assert whole["equal_answers"] == whole["answers"] == 2 * 5
    for facts in (sides, whole):
        # Exits 0 to 4 of 4 blocks: 0 + 1 + 2 + 3 + 4 runs, and each block once.
        assert facts["block_runs, exit_vision_at, one run per exit"] == 10
        assert facts["block_runs, VisionReplay, one run for all"] == 4
    assert answering["layers"] == [2, 3]
    assert answering["new_tokens, plain"] == record["settings"]["new_tokens"]
    assert batches["equal_answers, batches of 4"] == batches["prompts"] == 4
    for case in record["cases"]:
        first, *others = case["timings"]
        assert first["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
        assert others
        assert all(timing["seconds"]["low"] > 0 for timing in case["timings"])
        assert all(timing["variant"] in done.stdout for timing in case["timings"])


def test_settings_out_of_range_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with pytest.raises(SystemExit, match="2"):
        import_module("run").parse_arguments(["--rounds", "0"])
    assert "--rounds 0 is not possible: at least 1" in capsys.readouterr().err
