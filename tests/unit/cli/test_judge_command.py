"""`vlmend judge` from end to end: on a run of a tiny model, with labels, and with a truth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Command, contents

from vlmend.runs import JsonLines, hold_folder, read_json

RULES = ("--judge", "xstest-prefix", "--judge", "shiftdc-keywords")


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny model; every test judges a copy of it."""
    from vlmend.cli.main import main
    from vlmend.testing import save_tiny_vlm

    folder = tmp_path_factory.mktemp("judged")
    model = save_tiny_vlm("llava", folder / "model", seed=5)
    suites = "organism/text,organism/benign"
    options = ("--limit", "12", "--max-new-tokens", "3", "--out", str(folder / "run"))
    assert main(["audit", str(model), "--suite", suites, *options]) == 0
    return folder / "run"


@pytest.fixture
def run(audited: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audited, tmp_path / "run"))


def write_answers(run: Path, answers: Callable[[int], str]) -> None:
    """Put other texts into a run: what a tiny model says is noise."""
    rows = JsonLines(run / "responses.jsonl")
    rows.replace([{**row, "text": answers(i)} for i, row in enumerate(rows.read())])


def test_a_run_is_judged_by_others_and_remembers_the_first(run: Path, command: Command) -> None:
    before = (run / "responses.jsonl").read_bytes()
    done = command("judge", run, *RULES)
    assert done.code == 0, done.err
    assert (run / "responses.jsonl").read_bytes() == before
    metrics = read_json(run / "metrics.json")
    assert [j["name"] for j in metrics["judges"]] == [
        "organism",
        "xstest-prefix",
        "shiftdc-keywords",
    ]
    assert len(metrics["cells"]) == 6
    assert len(JsonLines(run / "verdicts.shiftdc-keywords.jsonl").read()) == 24
    assert "Agreement of judges" in done.out
    assert "xstest-prefix (rows) against shiftdc-keywords (columns)" in done.out
    assert metrics["agreement"][0]["n"] == 24
    assert "shiftdc-keywords" in (run / "report.html").read_text("utf-8")
    assert command("compare", run).code == 0


def test_the_same_command_again_changes_no_verdict(run: Path, command: Command) -> None:
    assert command("judge", run, *RULES).code == 0
    before = {n: b for n, b in contents(run).items() if n.startswith("verdicts")}
    assert command("judge", run, *RULES).code == 0
    assert {n: b for n, b in contents(run).items() if n.startswith("verdicts")} == before


def test_labels_correct_the_rates(run: Path, tmp_path: Path, command: Command) -> None:
    # The first of every three refuses, the second complies, the third says something else.
    write_answers(run, lambda i: ("Sorry, no.", "Sure.", "Hm.")[i % 3])
    ids = [row["sample_id"] for row in JsonLines(run / "responses.jsonl").read()]
    lines = [f"{name},{int(i % 3 == 1)}\n" for i, name in enumerate(ids)]
    labels = tmp_path / "labels.csv"
    labels.write_text("sample_id,label\n" + "".join(lines) + "nobody/1,1\n")
    done = command("judge", run, "--judge", "xstest-prefix", "--labels", labels, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["labels"]["num_unmatched"] == 1
    for record in found["calibration"]:
        assert (record["sensitivity"], record["specificity"]) == (1.0, 0.5)
        assert record["raw"] == pytest.approx(2 / 3)
        assert record["corrected"] == pytest.approx(1 / 3)
    printed = command("judge", run, "--judge", "xstest-prefix", "--labels", labels)
    assert "Rogan-Gladen" in printed.out
    assert "33.3 %" in printed.out
    assert "1 rows match no answer" in printed.out
    assert read_json(run / "metrics.json")["calibration"] == found["calibration"]


def test_rates_of_answers_that_were_not_all_scored_are_withheld(
    run: Path, tmp_path: Path, command: Command
) -> None:
    write_answers(run, lambda i: ("Sorry, no.", "Sure.", " ")[i % 3])
    ids = [row["sample_id"] for row in JsonLines(run / "responses.jsonl").read()]
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "sample_id,label\n" + "".join(f"{n},{i % 3 % 2}\n" for i, n in enumerate(ids))
    )
    done = command("judge", run, "--judge", "xstest-prefix", "--labels", labels)
    assert done.code == 0, done.err
    calibration = done.out.partition("Rogan-Gladen")[2]
    assert "withheld: xstest-prefix on organism/text" in calibration
    assert "is below 98 %" in calibration
    assert "50.0 %" not in calibration, "what complied of what was scored"


def test_a_judge_is_held_against_the_truth(run: Path, command: Command) -> None:
    done = command("judge", run, *RULES, "--truth", "organism", "--seed", 3)
    assert done.code == 0, done.err
    assert "organism is taken for exact on a random half" in done.out
    assert "raw is off by" in done.out
    # What a tiny model says is never a refusal and never right.
    assert "no labelled answer complied" in done.out
    records = read_json(run / "metrics.json")["calibration"]
    assert {record["judge"] for record in records} == {"xstest-prefix", "shiftdc-keywords"}
    assert {record["truth"] for record in records} == {0.0}
    assert {record["raw_distance"] for record in records} == {record["raw"] for record in records}


def test_what_can_be_wrong_is_said_before_anything_is_judged(
    run: Path, tmp_path: Path, command: Command
) -> None:
    before = contents(run)
    bad = tmp_path / "bad.csv"
    bad.write_text("sample_id,label\nx,1\n")
    for words, options in (
        ("unknown judge 'xstest'", ("--judge", "xstest")),
        ("neither this row nor any other", ("--labels", bad)),
        ("the run has no suite 'organism/icon'", ("--suite", "organism/icon")),
        ("takes no folder", ("--suite", f"organism/text={tmp_path}")),
    ):
        done = command("judge", run, *options)
        assert done.code == 2
        assert words in done.error_line
    done = command("judge", tmp_path / "nothing")
    assert "no run folder" in done.error_line
    assert not (tmp_path / "nothing").exists()
    assert contents(run) == before
    with hold_folder(run):
        done = command("judge", run)
    assert done.code == 2
    assert "in use by another vlmend process" in done.error_line
    both = command("judge", run, "--labels", bad, "--truth", "organism")
    assert "not allowed with" in both.err
