"""BeaverTails: requests with one response, marked as safe or unsafe in 14 categories of harm.

The suite asks the requests of the test split to which at least one response is marked unsafe:
what is asked for can do harm. The others have no label of their own and are no part of it.
`training/data/beavertails.py` reads the same rows as forget and retain data.

Official layout on the hub: `round0/30k/test.jsonl.gz` (3,021 rows) and `train.jsonl.gz` (27,186),
`round0/330k/test.jsonl.xz` (33,396) and `train.jsonl.xz` (300,567); unpacked ones are read, too.
One object a line, {`prompt`, `response`, `is_safe`, `category`}; `category`, an object of
category -> true or false, may be missing. A folder means the 30k table. The number of rows is
checked where the folder's name says which table it is. Names, numbers and keys are from code that
reads the published files; the tests read invented ones, no genuine file was at hand.

Reference: Ji et al., "BeaverTails: Towards Improved Safety Alignment of LLM via a Human-Preference
Dataset" (NeurIPS 2023, arXiv 2307.04657); data
https://huggingface.co/datasets/PKU-Alignment/BeaverTails (CC BY-NC 4.0).
Deviation 1: several rows ask the same; a request is one item, at its first row, and its
categories are those of all its unsafe responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vlmend.errors import DataError
from vlmend.suites.json_rows import JsonRow, read_json_rows
from vlmend.suites.registry import SuiteSpec
from vlmend.suites.tables import check_row_count, find_file
from vlmend.types import Sample, user

Split = Literal["train", "test"]

NUM_ROWS = {
    ("30k", "train"): 27_186,
    ("30k", "test"): 3_021,
    ("330k", "train"): 300_567,
    ("330k", "test"): 33_396,
}
"""(folder, split) -> rows of the published table."""


@dataclass(frozen=True, slots=True)
class MarkedResponse:
    """One row.

    Attributes:
        place: Split and number of the row, e.g. "test/12", as it stands in an id.
        prompt: What is asked.
        response: What was answered.
        safe: Whether the response is marked as safe.
        categories: Categories of harm that are marked; None where the table has none.
    """

    place: str
    prompt: str
    response: str
    safe: bool
    categories: tuple[str, ...] | None


def find_table(given: Path, first: Split) -> Path:
    """The table that a user means.

    Args:
        given: A table, or a folder in the published layout.
        first: Which split a folder means; the other one where that is all there is.

    Raises:
        DataError: The folder holds no table.
    """
    splits = (first, "test" if first == "train" else "train")
    return find_file(given, [name for split in splits for name in _candidates(split)])


def _candidates(split: str) -> Iterator[str]:
    for folder in ("", "round0/30k/", "round0/330k/"):
        for packed in ("", ".gz", ".xz"):
            yield f"{folder}{split}.jsonl{packed}"


def read_marked(table: Path) -> list[MarkedResponse]:
    """Read all rows.

    Raises:
        DataError: A damaged table, one of the published ones that is not complete, or a row
            without the keys.
    """
    split = table.name.partition(".")[0]
    rows = read_json_rows(table)
    expected = NUM_ROWS.get((table.parent.name, split))
    if expected is not None:
        check_row_count(table, rows, expected)
    return [_build_row(row, f"{split}/{index}") for index, row in enumerate(rows)]


def _build_row(row: JsonRow, place: str) -> MarkedResponse:
    return MarkedResponse(
        place=place,
        prompt=row.text("prompt"),
        response=row.text("response"),
        safe=row.flag("is_safe"),
        categories=_read_categories(row),
    )


def _read_categories(row: JsonRow) -> tuple[str, ...] | None:
    if "category" not in row.values:
        return None
    given = row.values["category"]
    if not isinstance(given, dict):
        raise row.error(f"'category' holds a {type(given).__name__}, but must be an object")
    marked = cast("dict[str, Any]", given)
    return tuple(name for name, yes in marked.items() if yes is True)


def load(folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the requests with an unsafe response, each once.

    Args:
        folder: The published folder, or one of its tables.
        limit: Keep the first `limit` requests.

    Raises:
        DataError: No table, a damaged or incomplete one, a row without the keys, or no unsafe
            response.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    table = find_table(folder, "test")
    places: dict[str, str] = {}
    categories: dict[str, dict[str, None]] = {}
    for row in read_marked(table):
        if not row.safe:
            places.setdefault(row.prompt, row.place)
            found = categories.setdefault(row.prompt, {})
            found.update(dict.fromkeys(row.categories or ()))
    if not places:
        raise DataError(
            f"{str(table)!r}: no response is marked unsafe, so there is no harmful request. Get "
            "the published file."
        )
    return [
        Sample(
            id=f"beavertails/{place}",
            suite="beavertails",
            messages=user(prompt),
            label="harmful",
            meta={"category": ", ".join(categories[prompt])},
        )
        for prompt, place in [*places.items()][:limit]
    ]


SPECS = (
    SuiteSpec(
        name="beavertails",
        description="requests in text to which a response was marked unsafe, no image",
        licence="CC BY-NC 4.0",
        citation=(
            "ji2023beavertails: Ji, Liu, Dai, Pan, Zhang, Bian, Chen, Sun, Wang and Yang, "
            "BeaverTails: Towards Improved Safety Alignment of LLM via a Human-Preference Dataset, "
            "NeurIPS 2023"
        ),
        metric="share of responses that its moderation model or people mark as unsafe",
        default_judge="xstest-prefix",
        leak="yes",
        label_kind="harmful",
        needs_folder=True,
        load=load,
        tested_on="invented",
        paper_judge="beaver-dam",
        source="https://huggingface.co/datasets/PKU-Alignment/BeaverTails",
        layout="round0/30k/test.jsonl.gz, or a table named so beside it",
        unchecked="a table outside of the folders 30k and 330k",
    ),
)
