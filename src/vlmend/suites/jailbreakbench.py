"""JailbreakBench: 100 plainly harmful requests in text under 10 categories, and a benign half.

Two suites: `jailbreakbench` (harmful) and `jailbreakbench-benign` (100 requests on the same
topics that may be answered; refusing one is over-refusal). Official layout on the hub:
`data/harmful-behaviors.csv` and `data/benign-behaviors.csv` with the columns `Index`, `Goal`,
`Target` (an affirmative opening), `Behavior` (a short name), `Category` and `Source`. The older
`behaviors.csv` of the authors' package holds the harmful half alone, and its first column has no
name; it is read, too. The genuine `behaviors.csv` is tested; for the benign half an invented file
is, whose columns and index were checked against a copy of the published table.

Reference: Chao et al., "JailbreakBench: An Open Robustness Benchmark for Jailbreaking Large
Language Models" (NeurIPS 2024, arXiv 2404.01318); data
https://huggingface.co/datasets/JailbreakBench/JBB-Behaviors (MIT).
Deviation 1: the paper attacks each behaviour with jailbreak strings; here the goals are asked as
they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlmend.errors import DataError
from vlmend.suites.registry import SuiteSpec, TestedOn
from vlmend.suites.tables import Row, check_row_count, check_unique, find_file, read_csv_rows
from vlmend.types import Label, Sample, user

NUM_ROWS = 100

INDEX_COLUMNS = ("Index", "")
"""What the first column is called: on the hub, and in the older file."""


@dataclass(frozen=True, slots=True)
class Half:
    """One of the two halves.

    Attributes:
        suite: Name of the suite.
        label: Of its samples.
        files: Where its table lies in the published layouts.
    """

    suite: str
    label: Label
    files: tuple[str, ...]


HARMFUL = Half(
    "jailbreakbench",
    "harmful",
    (
        "data/harmful-behaviors.csv",
        "harmful-behaviors.csv",
        "src/jailbreakbench/data/behaviors.csv",
        "behaviors.csv",
    ),
)
BENIGN = Half(
    "jailbreakbench-benign", "benign", ("data/benign-behaviors.csv", "benign-behaviors.csv")
)


def load(half: Half, folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the requests of a half; `reference` of a harmful one is the opening an attack aims for.

    Args:
        half: Which half.
        folder: The published folder, or the half's table.
        limit: Keep the first `limit` rows. The table is sorted by category.

    Raises:
        DataError: The file is missing, damaged, not complete, or that of the other half.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    path = find_file(folder, half.files)
    other = BENIGN if half is HARMFUL else HARMFUL
    if path.name in {Path(name).name for name in other.files}:
        raise DataError(
            f"{str(path)!r} is the {other.label} half of JailbreakBench, and suite "
            f"{half.suite!r} is the {half.label} one. Write {other.suite}={path!s}, or give "
            f"{half.files[0]!r}."
        )
    rows = read_csv_rows(path, ("Goal", "Target", "Behavior", "Category"), may_be_empty=("Source",))
    check_row_count(path, rows, NUM_ROWS)
    column = _find_index(path, rows[0])
    _check_index(path, rows, column)
    return [_build_sample(half, row, row[column]) for row in rows[:limit]]


def _find_index(path: Path, row: Row) -> str:
    for column in INDEX_COLUMNS:
        if column in row:
            return column
    raise DataError(
        f"{str(path)!r} has no column with the index. Found: {', '.join(map(repr, row))}. Allowed: "
        "'Index', or a first column without a name. Get the published file."
    )


def _check_index(path: Path, rows: list[Row], column: str) -> None:
    """Refuse an index that is none; ids come from it."""
    known = {str(number) for number in range(NUM_ROWS)}
    for number, row in enumerate(rows, start=1):
        if row[column] not in known:
            raise DataError(
                f"{str(path)!r}, row {number}: {row[column]!r} in column {column!r} is no index. "
                f"Allowed: 0 to {NUM_ROWS - 1}. Mend the row or get the file again."
            )
    check_unique(path, rows, lambda row: row[column])


def _build_sample(half: Half, row: Row, index: str) -> Sample:
    return Sample(
        id=f"{half.suite}/{index}",
        suite=half.suite,
        messages=user(row["Goal"]),
        label=half.label,
        # A benign target is an opening, too: no answer to compare with.
        reference=row["Target"] if half is HARMFUL else None,
        meta={
            "category": row["Category"],
            # Not "behavior": judges take that for what is asked for.
            "name": row["Behavior"],
            "source": row["Source"],
            "target": row["Target"],
        },
    )


def _build_spec(
    half: Half,
    description: str,
    metric: str,
    tested_on: TestedOn,
    paper_judge: str,
) -> SuiteSpec:
    return SuiteSpec(
        name=half.suite,
        description=description,
        licence="MIT",
        citation=(
            "chao2024jailbreakbench: Chao, Debenedetti, Robey, Andriushchenko, Croce, Sehwag, "
            "Dobriban, Flammarion, Pappas, Tramer, Hassani and Wong, JailbreakBench: An Open "
            "Robustness Benchmark for Jailbreaking Large Language Models, NeurIPS 2024"
        ),
        metric=metric,
        default_judge="xstest-prefix",
        leak="yes",
        label_kind=half.label,
        needs_folder=True,
        load=partial(load, half),
        purpose="safety" if half is HARMFUL else "over-refusal",
        num_items=NUM_ROWS,
        tested_on=tested_on,
        paper_judge=paper_judge,
        breakdown=("category",),
        source="https://huggingface.co/datasets/JailbreakBench/JBB-Behaviors",
        layout=half.files[0],
        harmful_reference=half is HARMFUL,
    )


SPECS = (
    _build_spec(
        HARMFUL,
        "100 plainly harmful requests in text under 10 categories, no image",
        "ASR: share of answers that a Llama-3-70B prompt calls jailbroken",
        "genuine",
        "endpoint/jailbreakbench",
    ),
    _build_spec(
        BENIGN,
        "100 benign requests in text on the topics of the harmful ones, no image",
        "share of answers that a Llama-3-8B prompt calls a refusal",
        "invented",
        "endpoint/jailbreakbench-refusal",
    ),
)
