"""MMBench: multiple choice on perception and reasoning, each question asked once per option.

Circular evaluation: a question with n options is asked n times with the options moved on by one
place, and counts as right only when all n answers are. The published tables hold the copies
already: a copy's `index` is that of the question plus a multiple of 1,000,000. In a table without
any (index below 1,000,000 throughout), the copies are made here.

Official layout: a tab-separated table with `index`, `question`, `hint`, `A` to `D`, `answer`,
`category` and `image` (base64; a short cell is the index of the row whose image it shares), and
more columns that vary. `hint`, `C` and `D` may be empty. The tables of the test split have no
answers and cannot be used.

The loader was tested on invented tables in that layout; row counts are those on the data cards of
the hub's mirrors. The folder is searched for the tables in the order of `TABLES`.

Reference: Liu et al., "MMBench: Is Your Multi-modal Model an All-around Player?" (ECCV 2024, arXiv
2307.06281); https://github.com/open-compass/MMBench; prompt as in LLaVA's `model_vqa_mmbench.py`.
Deviation 1: an answer that names no option by letter or text is wrong; the paper has ChatGPT match
it with an option (policy "exact matching" of VLMEvalKit).
"""

from __future__ import annotations

import base64
import binascii
import json
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlmend.errors import DataError
from vlmend.suites.registry import SuiteSpec
from vlmend.suites.right_answers import (
    GROUP_SIZE,
    OPTION_LETTER,
    group_by,
    is_right,
    pair_scored,
    share,
    share_all_right,
)
from vlmend.suites.tables import Row, check_row_count, check_unique, find_file, read_csv_rows
from vlmend.types import ImageRef, Sample, Verdict, user

TABLES: dict[str, int] = {
    "mmbench_dev_20230712.tsv": 4377,
    "mmbench_dev_en_20231003.tsv": 4329,
    "MMBench_DEV_EN.tsv": 4329,
    "mmbench_dev_cn_20231003.tsv": 4329,
    "MMBench_DEV_CN.tsv": 4329,
}
"""Published tables with answers -> rows. A table of another name may have any number."""

LETTERS = "ABCD"
COPY = 1_000_000
"""A copy of a question has this much, or a multiple, added to its index."""

SHORTEST_IMAGE = 65
"""Characters of the shortest cell that is an image and not an index, as in VLMEvalKit."""


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a table.

    Attributes:
        index: Number of the row's question or copy.
        text: Hint and question.
        options: At least two.
        answer: Place of the right option, from 0.
        category: Name of the ability.
        image: Cell with the image, or the index of another row.
        where: File and row, for errors.
    """

    index: int
    text: str
    options: tuple[str, ...]
    answer: int
    category: str
    image: str
    where: str

    @property
    def group(self) -> int:
        """Index of the question that this is a copy of."""
        return self.index % COPY

    @property
    def prompt(self) -> str:
        """What is asked."""
        listed = zip(LETTERS, self.options, strict=False)
        lines = [self.text, *(f"{letter}. {option}" for letter, option in listed)]
        return "\n".join(lines) + OPTION_LETTER

    def turned(self, turns: int) -> Question:
        """The copy whose options are moved on by some places."""
        return replace(
            self,
            index=self.index + turns * COPY,
            options=self.options[turns:] + self.options[:turns],
            answer=(self.answer - turns) % len(self.options),
        )


def load(folder: Path | None, limit: int | None) -> list[Sample]:
    """Read a table with its images, which are decoded to bytes and opened when they are used.

    Args:
        folder: The table, or a folder with one of `TABLES`.
        limit: Keep the first `limit` items. Copies stand behind their question, so that a limit
            cuts at most one question's.

    Raises:
        DataError: The table is missing, damaged, not complete or without answers.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    path = find_file(folder, list(TABLES))
    rows = read_csv_rows(
        path,
        ("index", "question", "A", "B", "answer", "category", "image"),
        may_be_empty=("hint", "C", "D"),
        delimiter="\t",
    )
    if path.name in TABLES:
        check_row_count(path, rows, TABLES[path.name])
    questions = [
        _read_row(row, f"{str(path)!r}, row {number}") for number, row in enumerate(rows, start=1)
    ]
    check_unique(path, questions, lambda question: str(question.index))
    cells = {str(question.index): question.image for question in questions}
    if all(question.index < COPY for question in questions):
        questions = [q.turned(turns) for q in questions for turns in range(len(q.options))]
    # The published order is by copy; by question, a limit leaves whole questions.
    first = {question.group: place for place, question in reversed([*enumerate(questions)])}
    questions.sort(key=lambda question: (first[question.group], question.index))
    sizes = Counter(question.group for question in questions)
    images: dict[str, ImageRef] = {}
    return [
        _build_sample(question, sizes[question.group], _image(question, cells, images))
        for question in questions[:limit]
    ]


def _read_row(row: Row, where: str) -> Question:
    options = [row[letter] for letter in LETTERS]
    while not options[-1].strip():
        options.pop()
    if not all(option.strip() for option in options):
        raise DataError(f"{where}: option C is empty, but D is not. Get the file again.")
    letters = LETTERS[: len(options)]
    if row["answer"] not in letters or len(row["answer"]) != 1:
        raise DataError(
            f"{where}: {row['answer']!r} in column 'answer' is no option. Allowed: "
            f"{', '.join(letters)}. Get the file again."
        )
    if not (row["index"].isascii() and row["index"].isdecimal()):
        raise DataError(f"{where}: {row['index']!r} in column 'index' is no whole number.")
    hint = row["hint"].strip()
    return Question(
        index=int(row["index"]),
        text=f"{hint}\n{row['question']}" if hint else row["question"],
        options=tuple(options),
        answer=letters.index(row["answer"]),
        category=row["category"],
        image=row["image"],
        where=where,
    )


def _image(question: Question, cells: dict[str, str], images: dict[str, ImageRef]) -> ImageRef:
    """The image of a question; copies and rows that share a cell share the bytes."""
    cell = question.image
    if len(cell) < SHORTEST_IMAGE:
        cell = cells.get(cell.strip(), "")
    if len(cell) < SHORTEST_IMAGE:
        raise DataError(
            f"{question.where}: {question.image!r} in column 'image' is neither an image in "
            "base64 nor the index of a row with one. Get the file again."
        )
    if cell not in images:
        try:
            images[cell] = ImageRef(data=base64.b64decode(cell, validate=True))
        except (binascii.Error, ValueError) as error:
            raise DataError(
                f"{question.where}: the image is no base64: {error}. Get the file again."
            ) from error
    return images[cell]


def _build_sample(question: Question, size: int, image: ImageRef) -> Sample:
    return Sample(
        id=f"mmbench/{question.index}",
        suite="mmbench",
        messages=user(question.prompt, image),
        label="benign",
        reference=string.ascii_uppercase[question.answer],
        meta={
            "group": f"mmbench {question.group}",
            GROUP_SIZE: str(size),
            "category": question.category,
            "options": json.dumps(question.options),
        },
    )


def score(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> Mapping[str, float | None]:
    """MMBench's circular accuracy, 0 to 1, of all questions and per category.

    Returns:
        `circular_accuracy`: questions whose copies are all answered rightly; and
        `circular_accuracy/<category>`. `accuracy` is of the copies one by one. A question counts
        only when all its copies are there and scored.
    """
    judged = pair_scored(samples, verdicts)
    categories = group_by(judged, lambda sample: sample.meta["category"])
    return {
        "circular_accuracy": share_all_right(judged),
        "accuracy": share(map(is_right, judged)),
        **{
            f"circular_accuracy/{name}": share_all_right(items)
            for name, items in sorted(categories.items())
        },
    }


SPECS = (
    SuiteSpec(
        name="mmbench",
        description="multiple choice on 20 abilities, each question once per order of its options",
        licence="Apache-2.0",
        citation=(
            "liu2024mmbench: Liu, Duan, Zhang, Li, Zhang, Zhao, Yuan, Wang, He, Liu, Chen and Lin, "
            "MMBench: Is Your Multi-modal Model an All-around Player?, ECCV 2024"
        ),
        metric="circular accuracy: questions right in every order of their options",
        default_judge="option-letter",
        leak="no",
        label_kind="benign",
        needs_folder=True,
        load=load,
        source="https://github.com/open-compass/MMBench",
        layout=f"one of {', '.join(TABLES)}",
        unchecked="a table of another name",
        purpose="utility",
        breakdown=("category",),
        scores=score,
    ),
)
