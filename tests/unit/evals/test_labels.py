"""Labels find their answers, contradictions are refused, and rates are held against the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from stored_runs import SORRY, SURE, asked, response_id

from vlmend.errors import ConfigError, DataError
from vlmend.evals.labels import Answer, Labels, match_labels, read_labels, split_truth
from vlmend.evals.metrics import JudgedCell
from vlmend.evals.panel import ALL_SUITES, agreement_records, calibration_records
from vlmend.evals.rejudge import PastJudge
from vlmend.evals.run import Cell, CellResponses
from vlmend.judges.xstest_prefix import JUDGE
from vlmend.types import Response, Verdict, VerdictValue

HEAD = "sample_id,arm,exit,label\n"


def cell(arm: str = "base", exit_layer: int | None = None, count: int = 12) -> CellResponses:
    samples = asked(count)
    responses = [
        Response(response_id(arm, exit_layer, s), s.id, s.suite, SURE if i % 2 else SORRY, "eos")
        for i, s in enumerate(samples)
    ]
    return CellResponses(Cell(arm, "mild", exit_layer), tuple(samples), tuple(responses))


def by(name: str, answered: CellResponses, values: Sequence[VerdictValue]) -> JudgedCell:
    verdicts = [
        Verdict(r.id, r.sample_id, name, value)
        for r, value in zip(answered.responses, values, strict=True)
    ]
    return JudgedCell(answered, PastJudge(name, "1"), verdicts)


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_tables_and_json_lines_say_the_same(tmp_path: Path) -> None:
    table = write(tmp_path / "l.csv", "sample_id,label\nmild/0,1\nmild/1,0\nmild/2,partial\n")
    lines = [
        {"sample_id": "mild/0", "label": 1},
        {"sample_id": "mild/1", "label": False},
        {"sample_id": "mild/2", "label": "Partial"},
    ]
    rows = write(tmp_path / "l.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    first, second = (match_labels(read_labels(p), [cell()]) for p in (table, rows))
    assert first == second
    assert first.values == {
        ("base", "mild", None, "mild/0"): "complied",
        ("base", "mild", None, "mild/1"): "refused",
        ("base", "mild", None, "mild/2"): "partial",
    }


def test_response_ids_and_arms_tell_which_answer_is_meant(tmp_path: Path) -> None:
    cells = [cell(), cell("mended"), cell(exit_layer=3)]
    wanted = response_id("mended", None, asked()[4])
    rows = read_labels(
        write(
            tmp_path / "l.csv",
            "response_id,sample_id,arm,exit,label\n"
            f"{wanted},,,,1\n,mild/0,base,3,0\n,mild/0,base,,1\n,mild/1,base,3,unscored\n"
            ",mild/99,base,,1\n",
        )
    )
    found = match_labels(rows, cells)
    assert found.values == {
        ("mended", "mild", None, "mild/4"): "complied",
        ("base", "mild", 3, "mild/0"): "refused",
        ("base", "mild", None, "mild/0"): "complied",
    }
    assert (found.num_unsure, found.num_unmatched) == (1, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sample_id,label\nmild/0,yes\n", r"row 1: the label 'yes' is not known"),
        ("sample_id,label\n,1\n", "row 1: neither response_id nor sample_id"),
        ("sample_id,label\nmild/0,1\nmild/0,0\n", "row 2: 'mild/0' is labelled 'refused' here"),
        ("sample_id,label\nx,1\ny,0\n", "neither this row nor any other"),
        ("sample_id,label\nmild/0,1\nmild/1\n", "row 2 .*1 cells"),
    ],
)
def test_bad_labels_are_refused_by_row(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        match_labels(read_labels(write(tmp_path / "l.csv", text)), [cell()])


def test_a_row_that_may_mean_several_answers_is_refused(tmp_path: Path) -> None:
    rows = read_labels(write(tmp_path / "l.csv", "sample_id,label\nmild/0,1\n"))
    with pytest.raises(DataError, match=r"answered more than once .*arm 'mended'"):
        match_labels(rows, [cell(), cell("mended")])


def test_halves_are_random_disjoint_and_decided_by_the_seed() -> None:
    exact = by("exact", cell(), ["complied"] * 10 + ["unscored"] * 2)
    labels, others = split_truth([exact], 0)
    assert (len(labels.values), len(others), labels.num_unsure) == (5, 5, 2)
    assert not labels.values.keys() & others.keys()
    assert split_truth([exact], 0) == (labels, others)
    assert split_truth([exact], 1) != (labels, others)
    with pytest.raises(ConfigError, match="scored no two answers"):
        split_truth([by("exact", cell(), ["unscored"] * 12)], 0)


def test_rates_are_corrected_and_held_against_the_truth() -> None:
    answered = cell(count=400)
    # Half complied; the judge sees all of these, and one in five of the others as well.
    exact = by("exact", answered, ["complied" if i % 2 else "partial" for i in range(400)])
    rule = by(
        "rule", answered, ["complied" if i % 2 or i % 10 == 0 else "refused" for i in range(400)]
    )
    labels, others = split_truth([exact], 0)
    (record,) = calibration_records([rule], {"mild": "harmful"}, labels, truth=others)
    assert (record["n"], record["num_labelled"], record["sensitivity"]) == (200, 200, 1.0)
    assert record["specificity"] == pytest.approx(0.8, abs=0.1)
    assert record["truth"] == pytest.approx(0.5, abs=0.1)
    assert record["raw_distance"] == pytest.approx(0.1, abs=0.04)
    assert record["corrected_distance"] < 0.04
    assert record["corrected_low"] < record["truth"] < record["corrected_high"]
    assert (record["reason"], record["withheld"], record["coverage"]) == ("", "", 1.0)
    assert (record["judge"], record["judge_prompt_sha256"]) == ("rule", "")
    assert record["judge_revision"] == rule.judge.revision


def test_labels_count_where_they_belong() -> None:
    cells = [cell(), cell("mended")]
    rule = [by("rule", c, ["complied" if i % 2 else "refused" for i in range(12)]) for c in cells]
    labels = Labels(
        {("base", "mild", None, f"mild/{i}"): "complied" if i % 2 else "refused" for i in range(6)}
    )
    kinds = {"mild": "harmful"}
    own, other = calibration_records(rule, kinds, labels)
    assert (own["num_labelled"], own["corrected"]) == (6, 0.5)
    assert (other["num_labelled"], other["corrected"]) == (0, None)
    assert "wider --pool" in other["reason"]
    _, other = calibration_records(rule, kinds, labels, "suite")
    assert (other["num_labelled"], other["corrected"]) == (6, 0.5)


def test_what_a_judge_left_unscored_is_in_no_rate() -> None:
    answered = cell()
    says: list[VerdictValue] = ["complied" if i % 2 else "refused" for i in range(12)]
    says[:2] = ["unscored", "unscored"]
    labels = Labels(
        {("base", "mild", None, f"mild/{i}"): "complied" if i % 2 else "refused" for i in range(4)}
    )
    (record,) = calibration_records([by("rule", answered, says)], {"mild": "harmful"}, labels)
    assert (record["n"], record["num_labelled"], record["num_labelled_unscored"]) == (10, 2, 2)
    assert record["withheld"] == record["reason"] != ""
    assert "coverage 83.3 % is below 98 %" in record["withheld"]
    assert {record[name] for name in ("raw", "raw_low", "corrected", "corrected_high")} == {None}
    truth: dict[Answer, VerdictValue] = {("base", "mild", None, "mild/0"): "complied"}
    (hidden,) = calibration_records(
        [by("rule", answered, says)], {"mild": "harmful"}, labels, truth=truth
    )
    assert (hidden["truth"], hidden["raw_distance"]) == (None, None)


def test_a_blind_judge_is_not_corrected() -> None:
    labels = Labels(
        {("base", "mild", None, f"mild/{i}"): "complied" if i % 2 else "refused" for i in range(12)}
    )
    rule = by("rule", cell(), ["complied"] * 12)
    (record,) = calibration_records([rule], {"mild": "harmful"}, labels)
    assert record["corrected"] is None
    assert record["raw"] == 1.0
    assert "sensitivity 1.000 + specificity 0.000 is not above 1" in record["reason"]


def test_every_pair_and_all_judges_together() -> None:
    answered = cell()
    first = JudgedCell(answered, JUDGE)
    values: list[VerdictValue] = [v.value for v in first.verdicts]
    second = by("second", answered, [*values[:11], "unscored"])
    third = by("third", answered, ["complied"] * 12)
    records = agreement_records([first, second, third])
    assert [len(r["judges"]) for r in records] == [2, 2, 2, 3]
    assert {r["suite"] for r in records} == {"mild"}, "one suite is all suites"
    assert (records[0]["kappa"], records[0]["n"], records[0]["num_unscored"]) == (1.0, 11, 1)
    assert sum(map(sum, records[0]["confusion"])) == 12
    assert [*records[0]["revisions"]] == records[0]["judges"]
    assert records[0]["revisions"][JUDGE.name]["revision"] == JUDGE.revision
    assert "confusion" not in records[3]
    assert agreement_records([first]) == []
    other = by("second", CellResponses(Cell("base", "more", None), *_of(answered)), values)
    suites = [r["suite"] for r in agreement_records([first, second, other])]
    assert suites == [ALL_SUITES, "mild"], "on the other suite there is one judge only"


def _of(answered: CellResponses) -> tuple[tuple, tuple]:
    return answered.samples, answered.responses
