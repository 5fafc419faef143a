"""Stored runs are compared in pairs, or refused with the difference named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from vlmend.errors import RunError
from vlmend.evals.clustered import clustered_difference
from vlmend.evals.compare import CellVerdicts, compare_paired, compare_runs, label_arms, primary_p
from vlmend.evals.power import min_detectable_difference
from vlmend.evals.stats import mcnemar
from vlmend.runs import JsonLines, read_json, write_json

CONFIG: dict[str, Any] = {
    "model": "m",
    "suites": {"mild": {"items": 4, "exits": [], "exit_limit": None, "sha256": "abc"}},
    "judges": {"mild": ["parrot"]},
    "generation": {"max_new_tokens": 8},
}

Verdicts = dict[str, dict[int | None, list[str]]]
"""Arm -> exit -> verdict values."""


def store(
    folder: Path,
    verdicts: Verdicts,
    config: Any = CONFIG,
    status: str = "finished",
    groups: tuple[str, ...] = (),
) -> Path:
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
            **({"group": groups[index]} if groups else {}),
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


def test_a_run_is_compared_once(tmp_path: Path) -> None:
    run = store(tmp_path / "one", {"base": {None: BEFORE}, "a": {None: AFTER}})
    with pytest.raises(RunError, match="given twice"):
        compare_runs([run, tmp_path / "x" / ".." / "one"])


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


def test_other_labels_or_references_are_refused_where_both_runs_know_theirs(
    tmp_path: Path,
) -> None:
    runs = [
        store(tmp_path / name, {"base": {None: values}})
        for name, values in (("a", BEFORE), ("b", AFTER), ("old", BEFORE))
    ]
    for run, labels in zip(runs, ("abc", "xyz"), strict=False):
        info = read_json(run / "run.json")
        write_json(run / "run.json", {**info, "labels": {"mild": labels}})
    with pytest.raises(RunError, match=r"labels\.mild: abc in the first, xyz in the second"):
        compare_runs(runs[:2])
    assert len(compare_runs(runs[1:])) == 1, "a run of an older version does not know"


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"'.*none' is no run folder.*vlmend audit --out"):
        compare_runs([tmp_path / "none"])
    run = store(tmp_path / "r", {"base": {None: BEFORE}}, status="interrupted")
    (run / "metrics.json").unlink()
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


def cell(values: str, things: int = 0, texts: str = "") -> CellVerdicts:
    """One item per letter: c complied, r refused, u unscored; `things` items share a thing."""
    names = {"c": "complied", "r": "refused", "u": "unscored"}
    return CellVerdicts(
        {f"s/{i}": names[letter] for i, letter in enumerate(values)},
        {f"s/{i}": f"thing:{i // things}" for i in range(len(values))} if things else {},
        {f"s/{i}": text for i, text in enumerate(texts)},
    )


AT = {"suite": "s", "exit": None, "judge": "j", "before": "base", "after": "a"}


def test_items_about_one_thing_are_tested_together() -> None:
    """Forty items of five things: McNemar sees forty witnesses, there are five."""
    (record,) = compare_paired([(AT, cell("c" * 40, 8), cell("r" * 40, 8))])
    plain = mcnemar([True] * 40, [False] * 40)
    assert record["p_value"] == plain.p_value < 1e-6
    assert (record["difference_low"], record["difference_high"]) == (plain.low, plain.high)
    assert record["num_groups"] == 5
    assert record["clustered_p"] == 2 * 0.5**5
    assert record["clustered_low"] <= -1.0 < record["difference_high"] < record["clustered_high"]
    assert record["p_holm"] == record["clustered_p"] == primary_p(record)


def test_holm_adjusts_the_clustered_p() -> None:
    pairs = [(AT | {"after": a}, cell("c" * 40, 8), cell("r" * 40, 8)) for a in "abc"]
    assert [r["p_holm"] for r in compare_paired(pairs)] == pytest.approx([3 * 2 * 0.5**5] * 3)


def test_only_items_scored_in_both_are_tested() -> None:
    before, after = cell("cccuccrr", 2), cell("rrrrcucc", 2)
    (record,) = compare_paired([(AT, before, after)])
    expected = clustered_difference(
        [1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], ["0", "0", "1", "2", "3", "3"], resamples=None
    )
    assert (record["n"], record["num_groups"]) == (6, 4)
    assert record["clustered_p"] == expected.p_value
    assert (record["clustered_low"], record["clustered_high"]) == (expected.low, expected.high)


def test_without_groups_mcnemars_test_counts() -> None:
    (record,) = compare_paired([(AT, cell("c" * 9), cell("r" * 9))])
    assert record["num_groups"] is record["clustered_p"] is record["clustered_low"] is None
    assert record["p_holm"] == record["p_value"] == primary_p(record)


def test_the_same_verdicts_and_the_same_words_are_counted() -> None:
    before, after = cell("ccrru", texts="abcde"), cell("crrcc", texts="abxye")
    (record,) = compare_paired([(AT, before, after)])
    assert record["same_verdict_rate"] == 2 / 4
    assert record["same_text_rate"] == 2 / 4
    (record,) = compare_paired([(AT, cell("cc"), cell("cc"))])
    assert (record["same_verdict_rate"], record["same_text_rate"]) == (1.0, None)


def test_stored_groups_and_answers_are_used(tmp_path: Path) -> None:
    groups = ("thing:a", "thing:a", "thing:b", "thing:b")
    refused = ["refused"] * 4
    run = store(tmp_path / "r", {"base": {None: BEFORE}, "a": {None: refused}}, groups=groups)
    JsonLines(run / "responses.jsonl").append(
        {"id": "x", "sample_id": f"mild/{i}", "text": "Tea."} for i in range(4)
    )
    (record,) = compare_runs([run])
    assert record["num_groups"] == 2
    assert record["clustered_p"] == 0.5, "two things, both changed"
    assert (record["same_verdict_rate"], record["same_text_rate"]) == (0.25, 1.0)


def test_a_run_of_an_older_version_is_compared_by_items(tmp_path: Path) -> None:
    run = store(tmp_path / "r", {"base": {None: BEFORE}, "a": {None: AFTER}})
    (record,) = compare_runs([run])
    assert record["clustered_p"] is None
    assert record["same_text_rate"] is None
    newer = store(tmp_path / "n", {"base": {None: AFTER}}, groups=("a", "b", "c", "d"))
    both = compare_runs([run, newer])
    assert both[1]["num_groups"] == 3, "one of the two knows what items share"


def test_arms_are_named_by_their_run() -> None:
    runs = [Path("x/one"), Path("y/two"), Path("z/two")]
    assert label_arms(runs, [["base"], ["base"], ["base", "a"]]) == [
        ["base"],
        ["y/two:base"],
        ["z/two:base", "z/two:a"],
    ]


def cells_of(
    before: str, after: str, groups: str = "", scores: tuple[list[float], list[float]] | None = None
) -> list[tuple[dict[str, Any], CellVerdicts, CellVerdicts]]:
    """Verdicts by their first letters: c(omplied), r(efused), u(nscored)."""
    words = {"c": "complied", "r": "refused", "u": "unscored"}
    shared = {str(i): group for i, group in enumerate(groups)}
    found = [
        CellVerdicts(
            {str(i): words[letter] for i, letter in enumerate(letters)},
            shared,
            {},
            {} if scores is None else {str(i): x for i, x in enumerate(scores[number])},
        )
        for number, letters in enumerate((before, after))
    ]
    return [({"suite": "s", "exit": None, "judge": "j"}, found[0], found[1])]


def test_no_difference_shown_says_what_would_have_been() -> None:
    (shown,) = compare_paired(cells_of("c" * 100, "r" * 100))
    assert (shown["detectable"], shown["changed_rate"]) == (None, 1.0)
    (same,) = compare_paired(cells_of("c" * 98 + "rr", "c" * 97 + "rrc"))
    assert same["p_holm"] == 1
    assert same["detectable"] == pytest.approx(min_detectable_difference(100, 0.02))
    twice = compare_paired(cells_of("c" * 98 + "rr", "c" * 97 + "rrc") * 2)
    assert twice[0]["detectable"] > same["detectable"], "one test of two shows less"
    (in_pairs,) = compare_paired(
        cells_of("c" * 100, "c" * 96 + "rrcc", "".join(chr(200 + i // 2) for i in range(100)))
    )
    assert in_pairs["n_effective"] == pytest.approx(49, abs=1), "50 things, not 100 items"


def test_a_pair_that_was_not_judged_completely_is_withheld_and_says_why() -> None:
    (record,) = compare_paired(cells_of("c" * 40, "r" * 38 + "uu"))
    assert record["withheld"] == "2 of 40 items unscored: coverage 95.0 % is below 98 %"
    (fine,) = compare_paired(cells_of("c" * 40, "r" * 40))
    assert fine["withheld"] == ""


def test_items_that_share_nothing_are_also_resampled() -> None:
    before, after = "c" * 30 + "r" * 20, "c" * 18 + "r" * 32
    (alone,) = compare_paired(cells_of(before, after, "".join(chr(200 + i) for i in range(50))))
    assert alone["bootstrap_low"] == pytest.approx(alone["clustered_low"], abs=0.03)
    assert alone["bootstrap_high"] == pytest.approx(alone["clustered_high"], abs=0.03)
    assert alone["coverage"] == 1.0


def test_items_about_one_thing_are_resampled_together() -> None:
    before, after = "c" * 30 + "r" * 20, "c" * 18 + "r" * 32
    alone, shared, one = (
        compare_paired(cells_of(before, after, groups))[0]
        for groups in ("", "".join(chr(200 + i // 6) for i in range(50)), "a" * 50)
    )
    width = shared["bootstrap_high"] - shared["bootstrap_low"]
    # Twelve changes in a row, in two or three things: much less is known than of 50 items.
    assert width > 1.5 * (alone["bootstrap_high"] - alone["bootstrap_low"])
    assert shared["bootstrap_low"] < shared["difference"] < shared["bootstrap_high"]
    assert one["bootstrap_low"] is one["bootstrap_high"] is None
    (part,) = compare_paired(cells_of(before, after[:-1] + "u"))
    assert part["coverage"] == 0.98


def test_grades_are_compared_where_every_item_has_one() -> None:
    grades = ([0.0, 0.5, 1.0, 0.5], [0.5, 0.5, 1.0, 1.0])
    (record,) = compare_paired(cells_of("crcr", "crcr", scores=grades))
    assert (record["score_before"], record["score_after"]) == (0.5, 0.75)
    assert record["score_difference"] == 0.25
    assert record["score_low"] < 0.25 < record["score_high"]
    (plain,) = compare_paired(cells_of("crcr", "crcr", scores=(grades[0], grades[1][:3])))
    assert "score_difference" not in plain
