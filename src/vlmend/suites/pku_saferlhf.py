"""PKU-SafeRLHF: requests with two responses, each marked as safe or unsafe; text, no image.

The suite asks the requests of the test split to which at least one response is marked unsafe:
what is asked for can do harm. The others, most of them everyday questions, have no label of their
own and are no part of it. `training/data/pku_saferlhf.py` reads the same rows as forget and
retain data.

Official layout on the hub: `data/Alpaca-7B/test.jsonl`, `data/Alpaca2-7B/test.jsonl` and
`data/Alpaca3-8B/test.jsonl` (and `train.jsonl` alike), one object a line, {`prompt`,
`response_0`, `response_1`, `is_response_0_safe`, `is_response_1_safe`, ...}; further keys (harm
categories, which response is better, which safer) are not needed. A folder means all three; a
single `test.jsonl` or `train.jsonl`, as earlier releases have it, is read, too. Layout and keys
were checked against the data card and rows of a published file; the tests read invented files.
The test tables together have 8,211 rows, that of Alpaca3-8B 2,327: numbers from public code and
notes on commit 9421ffa, which are checked. Those of other tables are not known here.

Reference: Ji et al., "PKU-SafeRLHF: Towards Multi-Level Safety Alignment for LLMs with Human
Preference" (arXiv 2406.15513); data https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF
(CC BY-NC 4.0). As a suite: Chakraborty et al., "Cross-Modal Safety Alignment: Is Textual
Unlearning All You Need?" (arXiv 2406.02575).
Deviation 1: several rows ask the same; a request is one item, at its first row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlmend.errors import DataError
from vlmend.suites.json_rows import JsonRow, read_json_rows
from vlmend.suites.registry import NO_JUDGE, SuiteSpec
from vlmend.suites.tables import check_row_count, find_file, is_file
from vlmend.types import Sample, user

Split = Literal["train", "test"]

SOURCES = ("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B")
"""Models that wrote the responses; a folder each in the published layout."""


NUM_TEST_ROWS = 8_211
"""Rows of the three test tables together."""

NUM_ROWS = {("Alpaca3-8B", "test"): 2_327}
"""(source, split) -> rows of the published table, where that is known."""


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """One row.

    Attributes:
        place: File and number of the row, e.g. "Alpaca-7B/test/12", as it stands in an id.
        prompt: What is asked.
        responses: Both responses.
        safe: Whether each is marked as safe.
    """

    place: str
    prompt: str
    responses: tuple[str, str]
    safe: tuple[bool, bool]


def find_tables(given: Path, first: Split) -> list[Path]:
    """The tables that a user means.

    Args:
        given: A table, or a folder in one of the published layouts.
        first: Which split a folder means; the other one where that is all there is.

    Returns:
        One table, or one of each source, all of one split.

    Raises:
        DataError: The folder holds no table, or lacks that of a source.
    """
    splits = (first, "test" if first == "train" else "train")
    if not is_file(given):
        for split in splits:
            for root in (given / "data", given):
                tables = [root / source / f"{split}.jsonl" for source in SOURCES]
                missing = [table for table in tables if not is_file(table)]
                if not missing:
                    return tables
                if len(missing) < len(tables):
                    raise DataError(
                        f"folder {str(root)!r} lacks {_list(root, missing)}: a part of the data "
                        "set would be left out. Get all three tables, or give the one that is "
                        "meant."
                    )
    return [find_file(given, [name for split in splits for name in _candidates(split)])]


def _list(root: Path, tables: list[Path]) -> str:
    return ", ".join(repr(table.relative_to(root).as_posix()) for table in tables)


def _candidates(split: str) -> Iterator[str]:
    for folder in ("", "data/"):
        for packed in ("", ".gz"):
            yield f"{folder}{split}.jsonl{packed}"


def read_answered(tables: list[Path]) -> list[AnsweredRequest]:
    """Read the rows of all tables.

    Raises:
        DataError: A damaged table, one that is not complete, or a row without the keys.
    """
    rows: list[AnsweredRequest] = []
    for table in tables:
        found, split = read_json_rows(table), table.name.partition(".")[0]
        expected = NUM_ROWS.get((table.parent.name, split))
        if expected is not None:
            check_row_count(table, found, expected)
        rows += [_build_row(row, f"{_name_table(table)}/{i}") for i, row in enumerate(found)]
    _check_total(tables, len(rows))
    return rows


def _check_total(tables: list[Path], num_rows: int) -> None:
    """Refuse the test tables if they are not complete together."""
    is_test = all(table.name.startswith("test.") for table in tables)
    if is_test and len(tables) == len(SOURCES) and num_rows != NUM_TEST_ROWS:
        raise DataError(
            f"{', '.join(repr(str(table)) for table in tables)} have {num_rows} rows together, "
            f"but the published files have {NUM_TEST_ROWS}. Get them again; for fewer samples "
            "keep the files whole and set a limit."
        )


def _name_table(table: Path) -> str:
    split = table.name.partition(".")[0]
    return f"{table.parent.name}/{split}" if table.parent.name in SOURCES else split


def _build_row(row: JsonRow, place: str) -> AnsweredRequest:
    return AnsweredRequest(
        place=place,
        prompt=row.text("prompt"),
        responses=(row.text("response_0"), row.text("response_1")),
        safe=(row.flag("is_response_0_safe"), row.flag("is_response_1_safe")),
    )


def load(folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the requests with an unsafe response, each once.

    Args:
        folder: The published folder, or one of its tables.
        limit: Keep the first `limit` requests.

    Raises:
        DataError: No table, a damaged one, a row without the keys, or no unsafe response.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    tables = find_tables(folder, "test")
    places: dict[str, str] = {}
    for row in read_answered(tables):
        if not all(row.safe):
            places.setdefault(row.prompt, row.place)
    if not places:
        raise DataError(
            f"{', '.join(repr(str(table)) for table in tables)}: no response is marked unsafe, so "
            "there is no harmful request. Get the published files."
        )
    return [
        Sample(
            id=f"pku-saferlhf/{place}",
            suite="pku-saferlhf",
            messages=user(prompt),
            label="harmful",
        )
        for prompt, place in [*places.items()][:limit]
    ]


SPECS = (
    SuiteSpec(
        name="pku-saferlhf",
        description="requests in text to which a response was marked unsafe, no image",
        licence="CC BY-NC 4.0",
        citation=(
            "ji2024pku: Ji, Hong, Zhang, Chen, Dai, Zheng, Qiu, Li and Yang, PKU-SafeRLHF: Towards "
            "Multi-Level Safety Alignment for LLMs with Human Preference, arXiv 2406.15513, 2024"
        ),
        metric="share of responses marked unsafe, by people and models together",
        default_judge="xstest-prefix",
        leak="yes",
        label_kind="harmful",
        needs_folder=True,
        load=load,
        tested_on="invented",
        paper_judge=f"{NO_JUDGE}its labels are by people and models together",
        source="https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF",
        layout="data/Alpaca-7B/test.jsonl, data/Alpaca2-7B/... and data/Alpaca3-8B/...",
        unchecked="train.jsonl, a single table of Alpaca-7B or Alpaca2-7B, and earlier releases",
    ),
)
