"""The layer curve of `vlmend compare`: its tables, its figure, its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import Command
from exit_runs import store_audit, store_diagnosis

BASE: Any = {None: "crrrrrrr", 0: "cccccccc", 1: "cccccccc", 3: "ccccrrrr"}
MENDED: Any = {None: "rrrrrrrr", 0: "ccrrrrrr", 1: "rrrrrrrr", 3: "rrrrrrii"}
SEEDS = ("mend", "mend(seed=1)")


def row(text: str, name: str, part: str) -> str:
    """The line of a table that begins with a name, in the part after a title."""
    lines = text.partition(part)[2].splitlines()
    return next(line for line in lines if line.startswith(name))


def test_every_arm_has_its_curve_and_a_line_in_the_summary(
    tmp_path: Path, command: Command
) -> None:
    run = store_audit(tmp_path / "r", {"base": BASE, "mend": MENDED})
    done = command("compare", run)
    assert done.code == 0, done.err
    words = row(done.out, "0 ", "mend on mild")
    assert "25.0 % [" in words
    assert "-75.0 [" in words
    assert "75.0 % [" in words
    assert "100.0 % [" in row(done.out, "6 (default)", "base on mild") or "12.5 % [" in row(
        done.out, "6 (default)", "base on mild"
    )
    # Early: 8 + 8 of 16 before, 2 of 16 after.
    early = row(done.out, "early: 0-1", "mend on mild")
    assert "12.5 % [" in early
    assert "-87.5 [" in early
    summary = row(done.out, "mend ", "ASR over vision exits of mild")
    assert summary.split()[:3] == ["mend", "12.5", "%"]
    below = done.out.partition("ASR over vision exits")[2]
    assert "-88 %" in below
    assert "exit 0" in below
    assert "8 items about 4 things" in below
    paired = done.out.partition("Paired comparison")[2].partition("base on mild")[0]
    assert paired.count("12.5 % -> 0.0 %") == 1
    assert "among all 4 tests" in paired
    assert "50.0 % ->" not in paired, "exits have tables of their own"


def test_long_names_are_short_in_tables_and_figure_and_whole_in_json(
    tmp_path: Path, command: Command
) -> None:
    long = "mend(exits=random, target_kl=0.02, layers=2-4"
    arms = {"base": BASE, f"{long})": MENDED, f"{long}, rank=4)": MENDED}
    run = store_audit(tmp_path / "r", arms)
    done = command("compare", run, "--figure", tmp_path / "curve.html")
    assert done.code == 0, done.err
    assert long not in done.out
    assert row(done.out, "mend(rank=4) ", "ASR over vision exits of mild")
    assert "base -> mend(rank=4)" in done.out
    said = "every mend: exits=random, target_kl=0.02, layers=2-4"
    assert done.out.splitlines()[-1] == said
    page = (tmp_path / "curve.html").read_text()
    assert said in page
    assert "mend(rank=4)" in page
    assert long not in page
    found = json.loads(command("compare", run, "--json").out)
    assert [curve["arm"] for curve in found["exits"][0]["curves"]] == list(arms)
    assert [entry["arm"] for entry in found["table"]["rows"]] == list(arms)


def test_json_holds_all(tmp_path: Path, command: Command) -> None:
    run = store_audit(tmp_path / "r", {"base": BASE, "mend": MENDED})
    found = json.loads(command("compare", run, "--json").out)
    assert set(found) == {"comparisons", "exits", "table", "unfinished"}
    (suite,) = found["exits"]
    assert [curve["arm"] for curve in suite["curves"]] == ["base", "mend"]
    early = suite["curves"][1]["groups"][0]
    assert (early["name"], early["exits"]) == ("early", [0, 1])
    assert early["estimates"]["asr"]["value"] == pytest.approx(0.125)
    assert early["changes"]["asr"]["difference"] == pytest.approx(-0.875)
    assert early["fall"]["value"] == pytest.approx(0.875)


def test_diagnoses_are_compared_arm_by_arm(tmp_path: Path, command: Command) -> None:
    words = {0: "cccccccc", 6: "crrrrrrr"}
    rewards: dict[int, list[float | None]] = {0: [-2.0] * 8, 6: [1.5] * 8}
    right: Any = {e: [(1.0, 0.0), (1.0, 1.0)] for e in words}
    runs = [store_diagnosis(tmp_path / "base", "base", words, rewards, right)]
    for index, name in enumerate(SEEDS):
        mended = {0: "rrrrrrrr" if index else "crrrrrrr", 6: "rrrrrrrr"}
        runs.append(store_diagnosis(tmp_path / f"{index}", name, mended, rewards, right))
    done = command("compare", *runs)
    assert done.code == 0, done.err
    assert "mend on mild (judge parrot), 2 seeds" in done.out
    assert "lowest, highest seed" in done.out
    words_of = row(done.out, "0 ", "mend on mild")
    assert "6.2 % [0.0, 12.5]" in words_of
    assert "-2.00" in words_of
    assert "100.0 %" in words_of
    assert "50.0 %" in words_of, "what another picture costs"
    assert "Paired comparison" not in done.out
    found = json.loads(command("compare", *runs, "--json").out)
    assert found["comparisons"] == []
    assert found["exits"][0]["curves"][1]["seeds"] == list(SEEDS)


def test_all_that_a_diagnosis_measures_is_compared_by_thirds(
    tmp_path: Path, command: Command
) -> None:
    words = {0: "ccccccii", 3: "cccccccc", 6: "crrrrrrr"}
    mended = {0: "ccrrrrrr", 3: "rrrrrrii", 6: "rrrrrrrr"}
    rewards: dict[int, list[float | None]] = {0: [-2.0] * 8, 3: [0.0] * 8, 6: [1.5] * 8}
    risen = {
        e: [float(n or 0) + 0.25 + i // 4 for i, n in enumerate(v)] for e, v in rewards.items()
    }
    right: Any = {e: [(1.0, 0.0)] * 4 + [(1.0, 1.0)] * 4 for e in words}
    blind: Any = {e: [(1.0, 1.0)] * 4 + [(float(e == 0), 1.0)] * 4 for e in words}
    done = command(
        "compare",
        store_diagnosis(tmp_path / "base", "base", words, rewards, right),
        store_diagnosis(tmp_path / "mend", "mend", mended, risen, blind),
    )
    assert done.code == 0, done.err
    title = "mend less base on mild (judge parrot): paired changes"
    assert done.out.count(title) == 1, "the base is not compared with itself"
    early = row(done.out, "early: 0", title)
    assert "-25.0 [" in early, "less incoherent"
    assert "+0.75 [" in early, "rewards"
    assert "0.0 [0.0, 0.0]" in early, "questions right at exit 0"
    middle = row(done.out, "middle: 3", title)
    assert "+25.0 [" in middle
    assert middle.count("-50.0 [") == 1, "questions right"
    assert "-100.0 [" in middle, "what another picture costs"
    assert "all: 0,3,6" in done.out.partition(title)[2]
    low = float(early.partition("+0.75 [")[2].partition(",")[0])
    assert low < 0.75


def test_an_arm_that_measured_less_is_compared_by_what_it_has(
    tmp_path: Path, command: Command
) -> None:
    words = {0: "cccccccc", 6: "crrrrrrr"}
    rewards: dict[int, list[float | None]] = {0: [-2.0] * 8, 6: [1.5] * 8}
    done = command(
        "compare",
        store_diagnosis(tmp_path / "base", "base", words, rewards),
        store_diagnosis(tmp_path / "mend", "mend", words),
    )
    assert done.code == 0, done.err
    changes = done.out.partition("mend less base on mild")[2].partition("ASR over")[0]
    assert "incoherent" in changes
    assert "reward" not in changes


@pytest.mark.parametrize("kind", ["html", "svg", "pdf"])
def test_the_curves_can_be_drawn(tmp_path: Path, command: Command, kind: str) -> None:
    run = store_audit(tmp_path / "r", {"base": BASE, "mend": MENDED})
    figure = tmp_path / "new" / f"curve.{kind}"
    done = command("compare", run, "--figure", figure)
    assert done.code == 0, done.err
    assert f"figure: {figure}" in done.err
    assert figure.stat().st_size > 5000


def test_a_figure_of_nothing_or_of_no_kind_is_refused(tmp_path: Path, command: Command) -> None:
    flat = store_audit(tmp_path / "r", {"base": {None: "cc"}, "mend": {None: "rr"}})
    done = command("compare", flat, "--figure", tmp_path / "curve.png")
    assert done.code == 2
    assert "Allowed: .html, .svg, .pdf" in done.error_line
    done = command("compare", flat, "--figure", tmp_path / "curve.svg")
    assert done.code == 2
    assert "no curves over vision exits" in done.error_line
    assert "--exits all" in done.error_line
    assert "vision exits" not in command("compare", flat).out
