"""POPE: is this thing in the image? Object hallucination, asked as yes-or-no questions.

Nine suites of 3,000 questions, six on each of 500 images, half of them "yes"; they differ in how
the things that are not there were drawn: at random, by how frequent they are, or by what they go
with. `pope-random`, `pope-popular` and `pope-adversarial` are on COCO with human annotations,
`pope-aokvqa-...` on COCO and `pope-gqa-...` on GQA with objects found by SEEM. `pope-v2` asks the
same 500 questions of an image and of its twin with the thing taken out.

Official layouts: JSON lines under `output/coco/coco_pope_<kind>.json`, a JSON array in
`output/seem/<set>/<set>_pope_seem_<kind>.json`, each with `question_id`, `image`, `text` and
`label`; and `POPEv2/dataset/annotations.json` with `image_id`, `image_name`, `query` and `label`,
which is "Yes" or "No" there. Images: COCO's `val2014/`, GQA's `images/`; for `pope-v2` the twins
in `images/` (from its archive) and the originals in `coco/train2017/` or `normal_images/`. All are
looked for in the folder given and beside the question file.

The genuine question files of the three sets on COCO, of `pope-gqa-random` and of `pope-v2` are
tested, with stand-ins for the images; the other five suites on invented files of the same layout.

Reference: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (EMNLP
2023); POPEv2: Li et al., "Analyzing and Mitigating Object Hallucination: A Training Bias
Perspective" (AAAI 2026); https://github.com/AoiDragon/POPE (commit 08d957b, MIT).
Deviation 1: `SHORT_ANSWER` stands behind each question, as in LLaVA's and most others' figures;
POPE asks the bare question.
Deviation 2: a score that would divide by nothing (a model that never says yes) is missing; POPE's
script stops there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vlmend.suites.json_rows import JsonRow, read_json_rows
from vlmend.suites.picture_folders import COCO_VAL, find_picture_folder
from vlmend.suites.pictures import check_images, join_image
from vlmend.suites.registry import SuiteSpec, TestedOn
from vlmend.suites.right_answers import SHORT_ANSWER, divide, is_right, pair_scored
from vlmend.suites.tables import check_row_count, check_unique, find_file
from vlmend.types import ImageRef, Sample, Verdict, user

KINDS = {
    "random": "drawn at random",
    "popular": "the most frequent ones",
    "adversarial": "those that go with what is there",
}
"""How the things that are not in the image were drawn."""

LABELS = ("yes", "no")
NUM_ROWS = 3000
NUM_ROWS_V2 = 1000


@dataclass(frozen=True, slots=True)
class Part:
    """One question file of the three sets that POPE was built on.

    Attributes:
        suite: Name of the suite.
        source: Whose images they are.
        kind: Key of `KINDS`.
        folder: Folder of the question file in the published repository, below `output/`.
        table: Name of the question file.
        pictures: What the image folder may be called.
        tested_on: See `SuiteSpec`.
    """

    suite: str
    source: str
    kind: str
    folder: str
    table: str
    pictures: tuple[str, ...]
    tested_on: TestedOn


def _parts() -> list[Part]:
    parts = [
        Part(
            f"pope-{kind}",
            "COCO",
            kind,
            "coco",
            f"coco_pope_{kind}.json",
            COCO_VAL,
            "genuine-table",
        )
        for kind in KINDS
    ]
    for name, source, pictures in (
        ("aokvqa", "COCO (A-OKVQA)", COCO_VAL),
        ("gqa", "GQA", ("images", "gqa/images")),
    ):
        for kind in KINDS:
            suite, table = f"pope-{name}-{kind}", f"{name}_pope_seem_{kind}.json"
            tested = "genuine-table" if suite == "pope-gqa-random" else "invented"
            parts.append(Part(suite, source, kind, f"seem/{name}", table, pictures, tested))
    return parts


def load(part: Part, folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the questions and check that the images are there; they are opened when they are used.

    Args:
        part: Which of the nine suites.
        folder: The published folder, one above or below it, or the question file.
        limit: Keep the first `limit` rows; only their images must exist.

    Raises:
        DataError: The file or an image is missing, or the file is damaged or not complete.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    places = ("", f"{part.folder}/", f"output/{part.folder}/")
    path = find_file(folder, [place + part.table for place in places])
    rows = read_json_rows(path, ("question_id", "image", "text", "label"))
    check_row_count(path, rows, NUM_ROWS)
    check_unique(path, rows, lambda row: str(row.integer("question_id")))
    asked = [(row.text("text"), _read_label(row)) for row in rows]
    chosen = rows[:limit]
    pictures = find_picture_folder(folder, path, part.pictures)
    files = [join_image(pictures, row.text("image"), row.where) for row in chosen]
    check_images(path, files)
    return [
        _build_sample(part.suite, str(row.integer("question_id")), question, label, file)
        for row, (question, label), file in zip(chosen, asked, files, strict=False)
    ]


def load_v2(folder: Path | None, limit: int | None) -> list[Sample]:
    """Read POPEv2, as `load`; `meta["picture"]` says which of the two images an item shows."""
    assert folder is not None, "load_suite checks that the folder is given"
    places = ("", "dataset/", "POPEv2/", "POPEv2/dataset/")
    path = find_file(folder, [f"{place}annotations.json" for place in places])
    rows = read_json_rows(path, ("image_id", "image_name", "query", "label"))
    check_row_count(path, rows, NUM_ROWS_V2)
    check_unique(path, rows, lambda row: f"{row.integer('image_id')}-{_which_picture(row)}")
    asked = [(row.text("query"), _read_label(row)) for row in rows]
    chosen = rows[:limit]
    files = [_picture_v2(path.parent, row) for row in chosen]
    check_images(path, files)
    samples: list[Sample] = []
    for row, (question, label), file in zip(chosen, asked, files, strict=False):
        image, which = row.integer("image_id"), _which_picture(row)
        sample = _build_sample("pope-v2", f"{image}-{which}", question, label, file)
        # The image and its twin are one unit.
        samples.append(replace(sample, meta={"group": f"pope-v2 {image}", "picture": which}))
    return samples


def _read_label(row: JsonRow) -> str:
    label = row.text("label").lower()
    if label not in LABELS:
        raise row.error(f"'label' holds {row.text('label')!r}, but must be yes or no")
    return label


def _which_picture(row: JsonRow) -> str:
    """The "original" image, or the "edited" one, from which the thing was taken out."""
    return "edited" if row.text("image_name").lstrip("/").startswith("images/") else "original"


def _picture_v2(folder: Path, row: JsonRow) -> Path:
    # The names begin with "/", but mean the folder of the data set.
    named = join_image(folder, row.text("image_name").lstrip("/"), row.where)
    renamed = folder / "normal_images" / named.name
    return renamed if _which_picture(row) == "original" and renamed.is_file() else named


def _build_sample(suite: str, name: str, question: str, label: str, image: Path) -> Sample:
    return Sample(
        id=f"{suite}/{name}",
        suite=suite,
        messages=user(question + SHORT_ANSWER, ImageRef(path=image)),
        label="benign",
        reference=label,
        meta={"group": image.name},
    )


def score(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> Mapping[str, float | None]:
    """POPE's five numbers, 0 to 1; yes is the positive class.

    What an answer said follows from whether it was right. A refusal counts as yes, as in POPE;
    an incoherent answer (of other judges) as the wrong one of the two.

    Returns:
        accuracy, precision, recall, f1 and yes_rate; None where nothing can be divided by.
    """
    hits = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for sample, verdict in pair_scored(samples, verdicts):
        asked = sample.reference == "yes"
        said = asked == is_right((sample, verdict)) or verdict.value == "refused"
        hits[asked, said] += 1
    total = sum(hits.values())
    true_yes, said_yes = hits[True, True], hits[True, True] + hits[False, True]
    return {
        "accuracy": divide(true_yes + hits[False, False], total),
        "precision": divide(true_yes, said_yes),
        "recall": divide(true_yes, true_yes + hits[True, False]),
        # 2PR / (P + R) in counts; without a true yes that divides by nothing.
        "f1": divide(2 * true_yes, 2 * true_yes + hits[False, True] + hits[True, False])
        if true_yes
        else None,
        "yes_rate": divide(said_yes, total),
    }


_SHARED = {
    "licence": "MIT (questions); the images have terms of their own",
    "metric": "accuracy, precision, recall, F1 (yes is positive) and yes-ratio, by string match",
    "default_judge": "yes-no",
    "leak": "no",
    "label_kind": "benign",
    "needs_folder": True,
    "purpose": "utility",
    "source": "https://github.com/AoiDragon/POPE",
    "scores": score,
}


def _build_spec(part: Part) -> SuiteSpec:
    return SuiteSpec(
        name=part.suite,
        description=(
            f"{NUM_ROWS} yes-or-no questions on things in {part.source} images; those that are "
            f"not there are {KINDS[part.kind]}"
        ),
        citation=(
            "li-etal-2023-pope: Li, Du, Zhou, Wang, Zhao and Wen, Evaluating Object Hallucination "
            "in Large Vision-Language Models, EMNLP 2023"
        ),
        load=partial(load, part),
        num_items=NUM_ROWS,
        tested_on=part.tested_on,
        layout=f"{part.table} and the images in {part.pictures[0]}/",
        **_SHARED,
    )


SPECS = (
    *map(_build_spec, _parts()),
    SuiteSpec(
        name="pope-v2",
        description="500 yes-or-no questions on an image and on its twin without the thing",
        citation=(
            "li-etal-2026-popev2: Li, Zhou, Zhao, Fang and Wen, Analyzing and Mitigating Object "
            "Hallucination: A Training Bias Perspective, AAAI 2026"
        ),
        load=load_v2,
        num_items=NUM_ROWS_V2,
        tested_on="genuine-table",
        breakdown=("picture",),
        layout="annotations.json, images/ and coco/train2017/ (or normal_images/)",
        **_SHARED,
    ),
)
