"""MOSSBench: benign questions about pictures that only look unsafe, and harmful contrasts.

Two suites: `mossbench` (300 benign questions; refusing one is over-refusal) and
`mossbench-contrast` (244 harmful counterparts of the same types). Official layout, at the folder
given: `data/images_information/information.json` with `data/images/<number>.png`, and
`data_contrast/images_information/information.json` with `data_contrast/images/<number>.png`; a
folder with `images_information/` and `images/`, or with `contrast_images_information/` and
`contrast_images/`, is read, too. Each file is one object, number -> {`image`, `question`,
`metadata`, ...}. `metadata["over"]` is "type 1" to "type 3"; `harm` is a list, although the
readme calls it an integer. The genuine files are tested, with invented pictures.

Reference: Li et al., "MOSSBench: Is Your Multimodal Language Model Oversensitive to Safe
Queries?" (ICLR 2025, arXiv 2406.17806); data https://github.com/xirui-li/MOSSBench (CC BY-SA 4.0;
a test set: its readme prohibits training on it).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from vlmend.suites.json_rows import JsonRow, read_named_rows
from vlmend.suites.pictures import check_images, join_image
from vlmend.suites.registry import SuiteSpec
from vlmend.suites.tables import check_row_count, find_file
from vlmend.types import ImageRef, Label, Sample, user

TYPES = {
    "type 1": "exaggerated risk",
    "type 2": "negated harm",
    "type 3": "counterintuitive interpretation",
}
"""Name in the file -> name in the paper of what makes a question look unsafe."""

FLAGS = ("human", "child", "syn", "ocr")
"""What the file says of a picture of the benign half, as 0 or 1."""


@dataclass(frozen=True, slots=True)
class Half:
    """One of the two halves.

    Attributes:
        suite: Name of the suite.
        label: Of its samples.
        files: Where its file lies in the known layouts.
        num_rows: Rows of the published file.
    """

    suite: str
    label: Label
    files: tuple[str, ...]
    num_rows: int


BENIGN = Half(
    "mossbench",
    "benign",
    ("data/images_information/information.json", "images_information/information.json"),
    300,
)
CONTRAST = Half(
    "mossbench-contrast",
    "harmful",
    (
        "data_contrast/images_information/information.json",
        "contrast_images_information/information.json",
        "images_information/information.json",
    ),
    244,
)


def load(half: Half, folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the questions and check that their pictures are there.

    Args:
        half: Which half.
        folder: The published folder, or the half's file in its place.
        limit: Keep the first `limit` questions; only their pictures must exist.

    Raises:
        DataError: The file or a picture is missing, or the file is damaged or not complete.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    path = find_file(folder, half.files)
    rows = read_named_rows(path, ("image", "question", "metadata"))
    check_row_count(path, [*rows], half.num_rows)
    metas = [_read_meta(half, row) for row in rows.values()]
    chosen = [*rows.items()][:limit]
    files = [_find_picture(path, row) for _, row in chosen]
    check_images(path, files, [f"row {name!r}" for name, _ in chosen])
    return [
        Sample(
            id=f"{half.suite}/{name}",
            suite=half.suite,
            messages=user(row.text("question"), ImageRef(path=file)),
            label=half.label,
            meta=meta,
        )
        for (name, row), file, meta in zip(chosen, files, metas, strict=False)
    ]


def _find_picture(path: Path, row: JsonRow) -> Path:
    """Where a picture lies, below the folder that holds the file's folder."""
    root = path.parent.parent
    name = row.text("image")
    if path.parent.name.startswith("contrast_"):
        # Both halves in one folder: the names in the file are those of the benign pictures.
        name = f"contrast_{name}"
    return join_image(root, name, row.where)


def _read_meta(half: Half, row: JsonRow) -> dict[str, str]:
    """What the file says of a question, as text."""
    given = row.values["metadata"]
    if not isinstance(given, dict):
        raise row.error(f"'metadata' holds a {type(given).__name__}, but must be an object")
    inner = JsonRow(f"{row.where}, 'metadata'", cast("dict[str, Any]", given))
    kind = inner.text("over")
    if kind not in TYPES:
        raise inner.error(f"'over' holds {kind!r}, but must be one of {', '.join(TYPES)}")
    meta = {"type": TYPES[kind]}
    if half is BENIGN:
        for key in FLAGS:
            number = inner.integer(key)
            if number not in (0, 1):
                raise inner.error(f"{key!r} holds {number}, but must be 0 or 1")
            meta[key] = "yes" if number else "no"
        meta["harm"] = _read_harm(inner)
    return meta


def _read_harm(row: JsonRow) -> str:
    """Numbers of the kinds of harm that a question resembles: a list, or one."""
    given: Any = row.values.get("harm")
    numbers = cast("list[Any]", given) if isinstance(given, list) else [given]
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise row.error(f"'harm' holds {given!r}, but must be a list of whole numbers")
    return ", ".join(map(str, numbers))


def _build_spec(half: Half, description: str) -> SuiteSpec:
    return SuiteSpec(
        name=half.suite,
        description=description,
        licence="CC BY-SA 4.0, for testing only",
        citation=(
            "li2024mossbench: Li, Zhou, Wang, Zhou, Cheng and Hsieh, MOSSBench: Is Your "
            "Multimodal Language Model Oversensitive to Safe Queries?, ICLR 2025"
        ),
        metric="refusal rate, by a GPT-4 prompt that sees the picture",
        default_judge="xstest-prefix",
        # 43 contrasts are asked in the very words of their benign twin.
        leak="no" if half is BENIGN else "mixed",
        label_kind=half.label,
        needs_folder=True,
        load=partial(load, half),
        purpose="over-refusal" if half is BENIGN else "safety",
        num_items=half.num_rows,
        # No genuine picture was at hand.
        tested_on="genuine-table",
        paper_judge="endpoint/mossbench",
        breakdown=("type",),
        source="https://github.com/xirui-li/MOSSBench",
        layout=f"{half.files[0]} and images/ beside its folder",
    )


SPECS = (
    _build_spec(BENIGN, "300 benign questions about pictures that only look unsafe"),
    _build_spec(CONTRAST, "244 harmful questions about pictures, contrasts of MOSSBench's benign"),
)
