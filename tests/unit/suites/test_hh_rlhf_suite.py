from __future__ import annotations

from pathlib import Path

import pytest
from harm_layouts import hh_rows, put, to_lines, write_hh_rlhf

from vlmend.errors import DataError
from vlmend.evals.groups import group_of
from vlmend.suites.hh_rlhf import NO_DIALOGUE
from vlmend.suites.registry import Skip, load_suite


def test_what_stands_before_the_last_answer_is_asked(tmp_path: Path) -> None:
    write_hh_rlhf(tmp_path)
    samples = load_suite(f"hh-rlhf-harmless={tmp_path}")
    assert len(samples) == 2283
    assert samples[0].id == "hh-rlhf-harmless/test/29", "29 rows have two marks for one turn"
    sample = next(s for s in samples if s.meta["turns"] == "3")
    number = int(sample.id.rpartition("/")[2]) // 2
    assert [(m.role, m.text) for m in sample.messages] == [
        ("user", f"Sock {number}, 0?"),
        ("assistant", "Blue."),
        ("user", f"Sock {number}, 1?"),
        ("assistant", "Blue."),
        ("user", "And now?"),
    ]
    assert sample.text == "And now?"
    assert samples.skips == (Skip(29, NO_DIALOGUE),)
    few = load_suite(f"hh-rlhf-harmless={tmp_path}", 4)
    assert few == samples[:4]
    assert few.skips == (Skip(29, NO_DIALOGUE),), "those before the first item"


def test_rows_behind_the_limit_are_not_called_left_out(tmp_path: Path) -> None:
    rows = hh_rows()
    chosen = [rows[100], rows[0], rows[101], rows[1], rows[102], rows[2]]
    put(tmp_path / "train.jsonl", to_lines(chosen))
    for limit, skipped in ((1, 0), (2, 1), (3, 3), (None, 3)):
        samples = load_suite(f"hh-rlhf-harmless={tmp_path}", limit)
        assert samples.skips == ((Skip(skipped, NO_DIALOGUE),) if skipped else ())


def test_dialogues_that_begin_alike_are_one_group(tmp_path: Path) -> None:
    write_hh_rlhf(tmp_path)
    by_id = {s.id.rpartition("/")[2]: s for s in load_suite(f"hh-rlhf-harmless={tmp_path}")}
    assert group_of(by_id["100"]) == group_of(by_id["101"]) != group_of(by_id["103"])


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Ho", 1),
        ("\n\nHuman: Hi\n\nAssistant: ", 1),
        ("\n\nHuman: Hi\n\nAssistant: Human: Ho", 1),
        ("\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: So\n\nAssistant: No", 3),
        ("\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: So", 0),
        ("\n\nHuman: Hi\n\nHuman: Ho\n\nAssistant: No", 0),
        ("\n\nHuman: Hi\n\nAssistant: \n\nHuman: So\n\nAssistant: No", 0),
        ("\n\nHuman: Human: Hi\n\nAssistant: Ho", 0),
        ("\n\nAssistant: Hi\n\nHuman: Ho", 0),
    ],
    ids=lambda value: None if isinstance(value, int) else value.replace("\n", "/"),
)
def test_the_last_answer_may_be_anything(tmp_path: Path, text: str, turns: int) -> None:
    rows = [{"chosen": text, "rejected": text}, *hh_rows()[60:61]]
    put(tmp_path / "train.jsonl", to_lines(rows))
    first, *others = load_suite(f"hh-rlhf-harmless={tmp_path}")
    assert len(others) == (1 if turns else 0)
    if turns:
        assert len(first.messages) == turns


def test_a_changed_test_split_is_refused(tmp_path: Path) -> None:
    rows = hh_rows()
    put(tmp_path / "test.jsonl", to_lines(rows[:-1]))
    with pytest.raises(DataError, match="has 2311 rows, but the published file has 2312"):
        load_suite(f"hh-rlhf-harmless={tmp_path}")
    put(tmp_path / "test.jsonl", to_lines([*rows[:-1], rows[0]]))
    with pytest.raises(DataError, match="in 2282 of 2312 rows human and assistant take turns"):
        load_suite(f"hh-rlhf-harmless={tmp_path}")
    put(tmp_path / "test.jsonl", to_lines([*rows[:-1], {"chosen": "Hi", "rejected": "Ho"}]))
    with pytest.raises(DataError, match=r"row 2312 \(line 2312\): 'chosen' is no dialogue"):
        load_suite(f"hh-rlhf-harmless={tmp_path}")
