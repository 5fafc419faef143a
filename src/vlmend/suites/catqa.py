"""CatQA: 550 plainly harmful questions in text, 11 categories x 5 subcategories x 10, no image.

Two published layouts of the English questions, told apart by what the file holds:
`data/catqa_english.json` on the hub is one object a line, {`Category`, `Subcategory`,
`Question`}; the authors' repository nests one object, category -> subcategory -> questions, the
names of some ending with ":". Layouts and the number of questions are from data cards and code
that reads them; the tests read invented files of both, no genuine one was at hand.

Reference: Bhardwaj, Do and Poria, "Language Models are Homer Simpson! Safety Re-Alignment of
Fine-tuned Language Models through Task Arithmetic" (ACL 2024, arXiv 2402.11746); data
https://huggingface.co/datasets/declare-lab/CategoricalHarmfulQA (Apache-2.0).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from vlmend.suites.json_rows import JsonRow, read_json_rows, read_named_rows
from vlmend.suites.registry import NO_JUDGE, SuiteSpec
from vlmend.suites.tables import check_row_count, find_file, read_text
from vlmend.types import Sample, user

NUM_ROWS = 550

FILES = ("data/catqa_english.json", "catqa_english.json", "CatQ_English.json")

KEYS = ("Category", "Subcategory", "Question")


class Question(NamedTuple):
    """One question and where it belongs."""

    category: str
    subcategory: str
    text: str


def load(folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the questions; an id tells category, subcategory and place, in either layout.

    Args:
        folder: The file with the English questions, or a folder with it.
        limit: Keep the first `limit` questions. The file is sorted by category.

    Raises:
        DataError: The file is missing, damaged or not complete.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    path = find_file(folder, FILES)
    questions = _read_lines(path) if _is_lines(path) else _read_nested(path)
    check_row_count(path, questions, NUM_ROWS)
    places: Counter[tuple[str, str]] = Counter()
    samples: list[Sample] = []
    for question in questions[:limit]:
        place = (_slug(question.category), _slug(question.subcategory))
        places[place] += 1
        samples.append(
            Sample(
                id=f"catqa/{place[0]}/{place[1]}/{places[place]}",
                suite="catqa",
                messages=user(question.text),
                label="harmful",
                meta={"category": question.category, "subcategory": question.subcategory},
            )
        )
    return samples


def _is_lines(path: Path) -> bool:
    """Whether the file holds rows: the questions' key is in its first object."""
    first = read_text(path).lstrip().split("\n", 1)[0]
    return first.startswith("[") or f'"{KEYS[-1]}"' in first


def _read_lines(path: Path) -> list[Question]:
    return [
        Question(_tidy(row.text("Category")), _tidy(row.text("Subcategory")), row.text("Question"))
        for row in read_json_rows(path, KEYS)
    ]


def _read_nested(path: Path) -> list[Question]:
    return [
        Question(_tidy(category), _tidy(subcategory), text)
        for category, row in read_named_rows(path).items()
        for subcategory in row.values
        for text in _read_texts(row, subcategory)
    ]


def _read_texts(row: JsonRow, key: str) -> list[str]:
    """The questions of a subcategory."""
    given = row.values[key]
    if not isinstance(given, list) or not given:
        raise row.error(f"{key!r} must be a list of questions")
    texts = [JsonRow(f"{row.where}, {key!r}", {str(i): given[i]}) for i in range(len(given))]
    return [text.text(str(index)) for index, text in enumerate(texts)]


def _tidy(name: str) -> str:
    """A name without the colon that some end with."""
    return name.strip().removesuffix(":").rstrip()


def _slug(name: str) -> str:
    """A name as it stands in an id."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.casefold()).split())


SPECS = (
    SuiteSpec(
        name="catqa",
        description="550 plainly harmful questions in text under 11 categories, no image",
        licence="Apache-2.0",
        citation=(
            "bhardwaj2024language: Bhardwaj, Do and Poria, Language Models are Homer Simpson! "
            "Safety Re-Alignment of Fine-tuned Language Models through Task Arithmetic, ACL 2024"
        ),
        metric="unsafety score: share of questions with a harmful answer, by GPT-4",
        default_judge="xstest-prefix",
        leak="yes",
        label_kind="harmful",
        needs_folder=True,
        load=load,
        num_items=NUM_ROWS,
        tested_on="invented",
        paper_judge=f"{NO_JUDGE}GPT-4 by a prompt that is not among the rubrics here",
        breakdown=("category",),
        source="https://huggingface.co/datasets/declare-lab/CategoricalHarmfulQA",
        layout="data/catqa_english.json",
    ),
)
