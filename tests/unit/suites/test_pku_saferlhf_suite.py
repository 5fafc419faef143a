from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from harm_layouts import pku_rows, put, to_lines, write_pku_saferlhf

from vlmend.errors import DataError
from vlmend.suites.pku_saferlhf import SOURCES
from vlmend.suites.registry import load_suite
from vlmend.training.data.registry import load_training_data


def test_requests_with_an_unsafe_response_are_asked_once(tmp_path: Path) -> None:
    write_pku_saferlhf(tmp_path)
    samples = load_suite(f"pku-saferlhf={tmp_path}")
    assert [(s.id, s.text) for s in samples] == [
        ("pku-saferlhf/Alpaca-7B/test/0", "Hide sock 0?"),
        ("pku-saferlhf/Alpaca-7B/test/2", "Burn a sock?"),
        ("pku-saferlhf/Alpaca2-7B/test/0", "Hide sock 1?"),
        ("pku-saferlhf/Alpaca3-8B/test/0", "Hide sock 2?"),
    ]
    assert {s.label for s in samples} == {"harmful"}
    assert load_suite(f"pku-saferlhf={tmp_path}", 2) == samples[:2]
    one = tmp_path / "data" / "Alpaca2-7B" / "train.jsonl"
    assert [s.id for s in load_suite(f"pku-saferlhf={one}")] == [
        "pku-saferlhf/Alpaca2-7B/train/0",
        "pku-saferlhf/Alpaca2-7B/train/2",
    ]


def test_training_data_are_the_other_split_of_the_same_rows(tmp_path: Path) -> None:
    write_pku_saferlhf(tmp_path)
    forget = load_training_data(f"pku-saferlhf={tmp_path}", role="forget")
    assert {e.messages for e in forget} == {
        s.messages for s in load_suite(f"pku-saferlhf={tmp_path}")
    }
    assert forget[0].id == "pku-saferlhf/Alpaca-7B/train/0-1"
    assert forget[0].target == "In a lake, 0."


def test_one_table_as_in_earlier_releases(tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl.gz", gzip.compress(to_lines(pku_rows(0))))
    samples = load_suite(f"pku-saferlhf={tmp_path}")
    assert [s.id for s in samples] == ["pku-saferlhf/train/0", "pku-saferlhf/train/2"]
    put(tmp_path / "test.jsonl", to_lines(pku_rows(1)[:1]))
    [sample] = load_suite(f"pku-saferlhf={tmp_path}")
    assert sample.text == "Hide sock 1?", "the test split is preferred"


def test_a_missing_table_is_named_and_so_are_missing_rows(tmp_path: Path) -> None:
    write_pku_saferlhf(tmp_path)
    first, middle, last = (tmp_path / "data" / name / "test.jsonl" for name in SOURCES)
    whole = first.read_bytes()
    put(first, to_lines(pku_rows(0)[:2]))
    with pytest.raises(DataError, match="have 8210 rows together, but the published files have"):
        load_suite(f"pku-saferlhf={tmp_path}")
    assert len(load_suite(f"pku-saferlhf={first}")) == 1, "how many rows it has is not known"
    put(first, whole)
    put(last, to_lines(pku_rows(2)))
    with pytest.raises(DataError, match=r"Alpaca3-8B/test\.jsonl' has 3 rows"):
        load_suite(f"pku-saferlhf={tmp_path}")
    middle.unlink()
    with pytest.raises(DataError, match=r"data' lacks 'Alpaca2-7B/test\.jsonl': a part"):
        load_suite(f"pku-saferlhf={tmp_path}")
    middle.with_name("train.jsonl").unlink()
    with pytest.raises(DataError, match=r"lacks 'Alpaca2-7B/train\.jsonl'"):
        load_training_data(f"pku-saferlhf={tmp_path}", role="forget")


def test_damage_is_named(tmp_path: Path) -> None:
    rows = pku_rows(0)
    file = tmp_path / "test.jsonl"
    with pytest.raises(DataError, match=r"does not hold 'test\.jsonl' or"):
        load_suite(f"pku-saferlhf={tmp_path}")
    put(file, to_lines([rows[0], {**rows[1], "is_response_1_safe": "yes"}]))
    with pytest.raises(DataError, match=r"row 2 \(line 2\): 'is_response_1_safe' holds 'yes'"):
        load_suite(f"pku-saferlhf={tmp_path}")
    put(file, to_lines(rows[1:2]))
    with pytest.raises(DataError, match=r"test\.jsonl': no response is marked unsafe"):
        load_suite(f"pku-saferlhf={tmp_path}")
