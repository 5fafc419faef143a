"""Stored runs are compared in pairs, or refused with the difference named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from vlmend.errors import RunError
from vlmend.evals.compare import compare_paired, compare_runs
from vlmend.runs import JsonLines, write_json

CONFIG: dict[str, Any] = {
    "model": "m",
    "suites": {"mild": {"items": 4, "exits": [], "exit_limit": None, "sha256": "abc"}},
    "judges": {"mild": ["parrot"]},
    "generation": {"max_new_tokens": 8},
}

Verdicts = dict[str, dict[int | None, list[str]]]
"""Arm -> exit -> verdict values."""


def store(folder: Path, verdicts: Verdicts, config: Any = CONFIG, status: str = "finished") -> Path:
    write_json(folder / "run.json", {"schema": 1, "status": status, "config": config})
    arms = [{"name": arm} for arm in verdicts]
    write_json(folder / "metrics.json", {"arms": arms, "judges": [{"name": "parrot"}]})
    JsonLines(folder / "verdicts.parrot.jsonl").append(
        {
            "response_id": "x",
            "sample_id": f"mild/{index}",
            "judge": "parrot",
            "value": value,
            "arm": arm,
            "suite": "mild",
            "exit": exit_layer,
        }
        for arm, exits in verdicts.items()
        for exit_layer, values in exits.items()
        for index, value in enumerate(values)
    )
    return folder


BEFORE = ["complied", "complied", "complied", "refused"]
AFTER = ["refused", "refused", "complied", "unscored"]


def test_the_arms_of_one_run_against_its_first(tmp_path: Path) -> None:
    run = store(
        tmp_path / "r",
        {"base": {None: BEFORE, 2: AFTER}, "a": {None: AFTER, 2: AFTER}, "b": {None: BEFORE}},
    )
    records = compare_runs([run])
    assert [(r["before"], r["after"], r["exit"], r["n"]) for r in records] == [
        ("base", "a", None, 3),
        ("base", "a", 2, 3),
        ("base", "b", None, 4),
    ]
    assert records[0]["difference"] == pytest.approx(-2 / 3)
    json.dumps(records, allow_nan=False)


def test_a_run_with_one_arm_has_nothing_to_compare(tmp_path: Path) -> None:
    assert compare_runs([store(tmp_path, {"base": {None: BEFORE}})]) == []


def test_runs_against_the_first_runs_base(tmp_path: Path) -> None:
    first = store(tmp_path / "one", {"base": {None: BEFORE}, "a": {None: BEFORE}})
    other = copy.deepcopy(CONFIG)
    other["model"] = "another"
    other["suites"]["mild"]["exits"] = [0]  # what was measured besides does not matter
    second = store(tmp_path / "two", {"base": {None: AFTER, 0: AFTER}}, other)
    records = compare_runs([first, second])
    assert [(r["before"], r["after"], r["exit"]) for r in records] == [
        ("base", "a", None),
        ("base", "two:base", None),
    ]


def test_runs_in_folders_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [store(tmp_path / name / "r", {"base": {None: BEFORE}}) for name in ("x", "y")]
    (record,) = compare_runs(runs)
    assert record["after"] == f"{runs[1]}:base"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("suites", "mild", "sha256"), "xyz", r"suites\.mild\.sha256: abc in the first, xyz in"),
        (("suites", "mild", "items"), 3, r"suites\.mild\.items: 4 in the first, 3 in the second"),
        (("suites", "other"), {"items": 1, "sha256": "d"}, r"suites\.other: nothing in the first"),
        (("judges", "mild"), ["other"], r'judges\.mild: \["parrot"\] in the first'),
        (("generation", "max_new_tokens"), 9, r"generation\.max_new_tokens: 8 in the first, 9"),
    ],
)
def test_other_items_judges_or_settings_are_refused(
    tmp_path: Path, path: tuple[str, ...], value: object, words: str
) -> None:
    config = copy.deepcopy(CONFIG)
    place = config
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    runs = [
        store(tmp_path / "a", {"base": {None: BEFORE}}),
        store(tmp_path / "b", {"base": {None: AFTER}}, config),
    ]
    with pytest.raises(RunError, match=words):
        compare_runs(runs)


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"'.*none' is no run folder.*vlmend audit --out"):
        compare_runs([tmp_path / "none"])
    run = store(tmp_path / "r", {"base": {None: BEFORE}}, status="interrupted")
    with pytest.raises(RunError, match=r"not finished \(status 'interrupted'\).*--resume"):
        compare_runs([run])


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    run = store(tmp_path / "r", {"base": {None: BEFORE}})
    JsonLines(run / "verdicts.parrot.jsonl").append([{"arm": "stranger", "judge": "parrot"}])
    with pytest.raises(RunError, match=r"do not belong together.*judges the stored answers anew"):
        compare_runs([run])


def test_comparing_changes_no_file(tmp_path: Path) -> None:
    run = store(tmp_path / "r", {"base": {None: BEFORE}, "a": {None: AFTER}})
    with (run / "verdicts.parrot.jsonl").open("ab") as file:
        file.write(b'{"half a line')
    before = {path: path.read_bytes() for path in run.iterdir()}
    assert len(compare_runs([run])) == 1
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_no_pairs_are_no_records() -> None:
    assert compare_paired([]) == []
