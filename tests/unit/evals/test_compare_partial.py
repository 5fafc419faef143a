"""Which stored runs may be compared: unfinished ones, and runs by other judges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from written_runs import write_run

from vlmend.cli.main import main
from vlmend.errors import RunError
from vlmend.evals.compare import compare_runs, describe_unfinished
from vlmend.runs import JsonLines, read_json, write_json


def change(path: Path, **facts: Any) -> None:
    write_json(path, {**read_json(path), **facts})


def interrupt(run: Path) -> Path:
    """Three of its eight answers are there."""
    rows = JsonLines(run / "responses.jsonl").read()
    JsonLines(run / "timings.jsonl").replace([])
    JsonLines(run / "responses.jsonl").replace(rows[:3])
    change(run / "run.json", status="running")
    return run


def judged_by(run: Path, **facts: str) -> Path:
    change(run / "metrics.json", judges=[{"name": "parrot", **facts}])
    return run


def test_an_unfinished_run_without_numbers_says_how_much_is_there(tmp_path: Path) -> None:
    run = interrupt(write_run(tmp_path / "run"))
    (run / "metrics.json").unlink()
    words = (
        r"not finished \(status 'running'\): 3 of 8 answers are there \(base on mild 3 of 4, no "
        r"image on mild 0 of 4\)\. Go on with the same command and --resume, or .*vlmend judge"
    )
    with pytest.raises(RunError, match=words):
        compare_runs([run])


def test_an_unfinished_run_is_compared_as_far_as_it_was_judged(tmp_path: Path) -> None:
    finished, run = write_run(tmp_path / "a"), interrupt(write_run(tmp_path / "b"))
    verdicts = JsonLines(run / "verdicts.parrot.jsonl")
    verdicts.replace(verdicts.read()[:3])
    records = compare_runs([finished, run])
    assert [(r["after"], r["n"]) for r in records] == [("no image", 3), ("b:base", 2)]
    (line,) = describe_unfinished([finished, run])
    assert line.startswith(f"{run} is not finished (status running): 3 of 8 answers")


def test_the_command_says_that_a_run_is_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = interrupt(write_run(tmp_path / "run"))
    assert main(["compare", str(run), "--json"]) == 0
    assert "3 of 8 answers are there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"revision": "2"}, r"judge\.parrot\.revision: 1 in the first, 2 in the second"),
        ({"revision": "1", "prompt_sha256": "ff"}, r"judge\.parrot\.prompt_sha256:  in .*, ff in"),
    ],
)
def test_the_same_judge_in_another_revision_or_with_another_prompt_is_refused(
    tmp_path: Path, facts: dict[str, str], words: str
) -> None:
    first = judged_by(write_run(tmp_path / "a"), revision="1")
    second = judged_by(write_run(tmp_path / "b"), **facts)
    with pytest.raises(RunError, match=words):
        compare_runs([first, second])
    assert compare_runs([first, judged_by(second, revision="1")])


def test_runs_judged_by_others_later_are_refused(tmp_path: Path) -> None:
    """What counts is who judged the numbers, not who was asked for when the run began."""
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    cells = read_json(second / "metrics.json")["cells"]
    more = [*cells, *({**cell, "judge": "raven"} for cell in cells)]
    change(second / "metrics.json", cells=more)
    with pytest.raises(RunError, match=r'judges\.mild: \["parrot"\] in the first, \["parrot", "ra'):
        compare_runs([first, second])
