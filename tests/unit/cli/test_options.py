"""Parsing of what is typed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from vlmend.cli.options import (
    join_command,
    parse_batch_size,
    parse_exits,
    parse_numbers,
    positive,
    refuse_foreign_folder,
    split_names,
)
from vlmend.errors import RunError


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0", (0,)),
        ("0,3,6", (0, 3, 6)),
        ("6, 3,3", (3, 6)),
        ("2-4", (2, 3, 4)),
        ("5-5", (5,)),
        ("0,2-4,3-5", (0, 2, 3, 4, 5)),
    ],
)
def test_numbers_and_ranges(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_numbers(text) == numbers
    assert parse_exits(text) == numbers


@pytest.mark.parametrize(
    "text", ["", "a", "1,,2", "-1", "1-", "4-2", "1.5", "0-99999999999", "1;2"]
)
def test_what_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_numbers(text)


def test_exits_by_name() -> None:
    assert parse_exits("default") == "default"
    assert parse_exits("all") == "all"


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (positive, "0"),
        (positive, "-3"),
        (positive, "two"),
        (positive, "1.0"),
        (parse_batch_size, "none"),
        (split_names, " , "),
        (split_names, "a,b,a"),
    ],
)
def test_what_is_refused(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)


def test_what_is_taken() -> None:
    assert positive("12") == 12
    assert parse_batch_size("auto") is None
    assert parse_batch_size("4") == 4
    assert split_names(" a, b=/x y ,") == ("a", "b=/x y")


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    refuse_foreign_folder(tmp_path / "new", "run.json")
    refuse_foreign_folder(tmp_path, "run.json")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="did not write"):
        refuse_foreign_folder(tmp_path, "run.json")
    for out in (tmp_path / "thesis.txt", tmp_path / "thesis.txt" / "deep" / "run"):
        with pytest.raises(RunError, match=r"thesis\.txt' is a file"):
            refuse_foreign_folder(out, "run.json")
    (tmp_path / "run.json").write_text("{}")
    refuse_foreign_folder(tmp_path, "run.json")


def test_a_command_line_can_be_typed_again() -> None:
    assert (
        join_command(["audit", "my model", "--limit", "3"]) == "vlmend audit 'my model' --limit 3"
    )
