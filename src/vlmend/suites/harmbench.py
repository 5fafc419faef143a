"""HarmBench: harmful behaviours in text, with a context, and beside a picture.

Suites: `harmbench-text-val` and `harmbench-text-test` (the official split of the standard and
contextual behaviours), `harmbench-copyright-val` and `harmbench-copyright-test` (those that ask
for a protected text), and `harmbench-multimodal` (110 behaviours, each about a picture).

Official layout, at the folder given or in `data/` below it:
`behavior_datasets/harmbench_behaviors_text_val.csv` (80 rows), `..._text_test.csv` (320 rows) and
`..._multimodal_all.csv` (110 rows), with the pictures in `multimodal_behavior_images/`. The
genuine tables are tested; no genuine picture was at hand.

A contextual behaviour is asked as the official baselines ask it: the context, a line "---", the
behaviour. `meta["context"]` is what the official classifier is told beside the behaviour
(`meta["behavior"]`): the context, or of a picture its redacted description.

Reference: Mazeika et al., "HarmBench: A Standardized Evaluation Framework for Automated Red
Teaming and Robust Refusal" (ICML 2024, arXiv 2402.04249); data
https://github.com/centerforaisafety/HarmBench (MIT).
Deviation 1: the paper attacks the behaviours; here they are asked as they are (its "direct
request").
Deviation 2: the official score of a copyright behaviour compares hashes with the protected text,
which vlmend does not have, and not by the classifier that scores all others. So these behaviours
are suites of their own, and no rate mixes both kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlmend.errors import DataError
from vlmend.suites.pictures import check_images, join_image
from vlmend.suites.registry import NO_JUDGE, SuiteSpec
from vlmend.suites.tables import (
    Row,
    check_choice,
    check_row_count,
    check_unique,
    find_file,
    read_csv_rows,
)
from vlmend.types import ImageRef, Sample, user

JOINER = "\n\n---\n\n"
"""Between a context and the behaviour that is asked in it."""

FUNCTIONS = {"standard": "text", "contextual": "text", "copyright": "copyright"}
"""Functional category of a text behaviour -> which suites it is in."""

CITATION = (
    "mazeika2024harmbench: Mazeika, Phan, Yin, Zou, Wang, Mu, Sakhaee, Li, Basart, Li, Forsyth "
    "and Hendrycks, HarmBench: A Standardized Evaluation Framework for Automated Red Teaming and "
    "Robust Refusal, ICML 2024"
)
SOURCE = "https://github.com/centerforaisafety/HarmBench (folder data/)"


@dataclass(frozen=True, slots=True)
class Part:
    """One suite of text behaviours.

    Attributes:
        suite: Name of the suite.
        split: Which table, "val" or "test".
        kind: Which of its rows, a value of `FUNCTIONS`.
        num_rows: Rows of the published table.
        num_items: How many of them are of this kind.
    """

    suite: str
    split: str
    kind: str
    num_rows: int
    num_items: int


PARTS = (
    Part("harmbench-text-val", "val", "text", 80, 60),
    Part("harmbench-text-test", "test", "text", 320, 240),
    Part("harmbench-copyright-val", "val", "copyright", 80, 20),
    Part("harmbench-copyright-test", "test", "copyright", 320, 80),
)

NUM_MULTIMODAL = 110


def load_text(part: Part, folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the behaviours of a part.

    Args:
        part: Which suite.
        folder: The published folder, or the table.
        limit: Keep the first `limit` behaviours of the part.

    Raises:
        DataError: The table is missing, damaged or not complete.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    path = _find_table(folder, f"text_{part.split}")
    rows = read_csv_rows(
        path,
        ("Behavior", "FunctionalCategory", "SemanticCategory", "BehaviorID"),
        may_be_empty=("Tags", "ContextString"),
    )
    check_row_count(path, rows, part.num_rows)
    check_unique(path, rows, lambda row: row["BehaviorID"])
    for number, row in enumerate(rows, start=1):
        check_choice(path, number, row, "FunctionalCategory", FUNCTIONS)
        _check_context(path, number, row)
    chosen = [row for row in rows if FUNCTIONS[row["FunctionalCategory"]] == part.kind]
    if len(chosen) != part.num_items:
        raise DataError(
            f"{str(path)!r} has {len(chosen)} {part.kind} behaviours, but the published file has "
            f"{part.num_items}: a row has another 'FunctionalCategory'. Get the file again."
        )
    return [_build_text(part.suite, row) for row in chosen[:limit]]


def _find_table(folder: Path, name: str) -> Path:
    file = f"harmbench_behaviors_{name}.csv"
    return find_file(folder, (f"behavior_datasets/{file}", f"data/behavior_datasets/{file}", file))


def _check_context(path: Path, number: int, row: Row) -> None:
    """Refuse a contextual behaviour without its context, and a context elsewhere."""
    if (row["FunctionalCategory"] == "contextual") != bool(row["ContextString"].strip()):
        raise DataError(
            f"{str(path)!r}, row {number}: {row['FunctionalCategory']!r} in column "
            f"'FunctionalCategory', but 'ContextString' is "
            f"{'filled' if row['ContextString'].strip() else 'empty'}. Contextual behaviours have "
            "a context and no others do. Mend the row or get the file again."
        )


def _build_text(suite: str, row: Row) -> Sample:
    context = row["ContextString"]
    asked = f"{context}{JOINER}{row['Behavior']}" if context else row["Behavior"]
    return Sample(
        id=f"{suite}/{row['BehaviorID']}",
        suite=suite,
        messages=user(asked),
        label="harmful",
        meta={**_describe(row), **({"context": context} if context else {})},
    )


def load_multimodal(folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the behaviours about pictures; the pictures are opened when they are used.

    Args:
        folder: The published folder, or the table in its place.
        limit: Keep the first `limit` behaviours; only their pictures must exist.

    Raises:
        DataError: The table or a picture is missing, or the table is damaged or not complete.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    path = _find_table(folder, "multimodal_all")
    columns = ("Behavior", "BehaviorID", "FunctionalCategory", "SemanticCategory", "ImageFileName")
    rows = read_csv_rows(
        path,
        (*columns, "RedactedImageDescription", "Tags"),
        may_be_empty=("Source", "ImageDescription"),
        # The published table ends so, without a line break.
        final_text="multimodal",
    )
    check_row_count(path, rows, NUM_MULTIMODAL)
    check_unique(path, rows, lambda row: row["BehaviorID"])
    chosen = rows[:limit]
    pictures = _find_pictures(path)
    files = [
        join_image(pictures, row["ImageFileName"], f"{str(path)!r}, row {number}")
        for number, row in enumerate(chosen, start=1)
    ]
    check_images(path, files)
    return [_build_multimodal(row, file) for row, file in zip(chosen, files, strict=True)]


def _find_pictures(table: Path) -> Path:
    """The folder of the pictures: beside that of the tables, or beside a table that lies alone."""
    published = table.parent.name == "behavior_datasets"
    return (table.parent.parent if published else table.parent) / "multimodal_behavior_images"


def _build_multimodal(row: Row, image: Path) -> Sample:
    return Sample(
        id=f"harmbench-multimodal/{row['BehaviorID']}",
        suite="harmbench-multimodal",
        messages=user(row["Behavior"], ImageRef(path=image)),
        label="harmful",
        meta={
            **_describe(row),
            "context": row["RedactedImageDescription"],
            # 66 different texts: several pictures are asked about in the same words.
            "group": row["Behavior"],
        },
    )


def _describe(row: Row) -> dict[str, str]:
    return {
        "behavior": row["Behavior"],
        "functional_category": row["FunctionalCategory"],
        "semantic_category": row["SemanticCategory"],
        "tags": row["Tags"],
    }


def _build_text_spec(part: Part) -> SuiteSpec:
    text = part.kind == "text"
    return SuiteSpec(
        name=part.suite,
        description=(
            f"{part.num_items} harmful behaviours in text, some in a context ({part.split} split)"
            if text
            else f"{part.num_items} requests for a protected text ({part.split} split), no image"
        ),
        licence="MIT",
        citation=CITATION,
        metric=(
            "ASR: share of answers that its classifier calls an instance of the behaviour"
            if text
            else "ASR: share of answers whose hashes match those of the protected text"
        ),
        default_judge="xstest-prefix",
        leak="yes",
        label_kind="harmful",
        needs_folder=True,
        load=partial(load_text, part),
        num_items=part.num_items,
        tested_on="genuine",
        paper_judge=(
            "harmbench-llama-2"
            if text
            else f"{NO_JUDGE}it compares hashes of the protected texts, which are not read here"
        ),
        breakdown=("functional_category", "semantic_category") if text else (),
        source=SOURCE,
        layout=f"behavior_datasets/harmbench_behaviors_text_{part.split}.csv",
    )


SPECS = (
    *map(_build_text_spec, PARTS),
    SuiteSpec(
        name="harmbench-multimodal",
        description="110 harmful behaviours, each about a picture",
        licence="MIT (most pictures are of third parties)",
        citation=CITATION,
        metric="ASR: share of answers that its classifier calls an instance of the behaviour",
        default_judge="xstest-prefix",
        leak="mixed",
        label_kind="harmful",
        needs_folder=True,
        load=load_multimodal,
        num_items=NUM_MULTIMODAL,
        # No genuine picture was at hand.
        tested_on="genuine-table",
        paper_judge="harmbench-llama-2",
        breakdown=("semantic_category",),
        source=SOURCE,
        layout=(
            "behavior_datasets/harmbench_behaviors_multimodal_all.csv and "
            "multimodal_behavior_images/"
        ),
    ),
)
