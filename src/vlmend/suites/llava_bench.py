"""LLaVA-Bench (COCO): 90 open questions on 30 images, graded against a reference by a text model.

Official layout: `qa90_questions.jsonl`, `qa90_gpt4_answer.jsonl` (the reference answers) and
`caps_boxes_coco2014_val_80.jsonl` (captions and boxes, which the grader reads in place of the
image), in one folder or where LLaVA's repository has them; images in COCO's `val2014/`, with or
without the prefix "COCO_val2014_", which the questions leave out.

No judge of these answers does without a model, so the default one leaves them unscored. The
paper's is GPT-4, which gives reference and answer 1 to 10 each ("endpoint/llava-bench"). It reads
`Sample.reference` (the first answer shown) and `meta["context"]`; see `read_scores` for how both
of its scores reach the number that the paper reports.

The loader was run on the genuine text files, with stand-ins for the images.

Reference: Liu et al., "Visual Instruction Tuning" (NeurIPS 2023, arXiv 2304.08485);
https://github.com/haotian-liu/LLaVA (commit c121f04): `eval_gpt_review_visual.py` builds the
context, `summarize_gpt_review.py` the score.
Deviation 1: a review without two scores is unscored; upstream counts it as -1 for both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmend.errors import DataError
from vlmend.suites.json_rows import JsonRow, read_json_rows
from vlmend.suites.picture_folders import COCO_VAL, find_picture_folder
from vlmend.suites.pictures import check_images, join_image
from vlmend.suites.registry import SuiteSpec
from vlmend.suites.right_answers import Judged, group_by, pair_scored
from vlmend.suites.tables import check_row_count, check_unique, find_file, is_file
from vlmend.types import ImageRef, Sample, Verdict, user

NUM_ROWS = 90
CATEGORIES = ("conv", "detail", "complex")
"""Short conversation, detailed description, complex reasoning; 30 questions each."""

QUESTIONS = "qa90_questions.jsonl"
REFERENCES = "qa90_gpt4_answer.jsonl"
CONTEXTS = "caps_boxes_coco2014_val_80.jsonl"
_PLACES = ("", "playground/data/coco2014_val_qa_eval/", "llava/eval/table/")

_SCORES = re.compile(r"\breference (\d+(?:\.\d+)?), candidate (\d+(?:\.\d+)?)\b")


def load(folder: Path | None, limit: int | None) -> list[Sample]:
    """Read questions, references and contexts, and check that the images are there.

    Args:
        folder: The folder with the three files, LLaVA's repository, or the questions' file.
        limit: Keep the first `limit` rows; only their images must exist.

    Raises:
        DataError: A file or an image is missing, or a file is damaged or not complete.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    path = find_file(folder, [place + QUESTIONS for place in _PLACES])
    top = folder if folder.is_dir() else folder.parent
    rows = read_json_rows(path, ("question_id", "image", "text", "category"))
    check_row_count(path, rows, NUM_ROWS)
    check_unique(path, rows, _question_id)
    for row in rows:
        if row.text("category") not in CATEGORIES:
            raise row.error(
                f"'category' holds {row.text('category')!r}, but must be one of "
                f"{', '.join(CATEGORIES)}"
            )
    references = _read_references(find_file(top, [place + REFERENCES for place in _PLACES]), rows)
    contexts = _read_contexts(find_file(top, [place + CONTEXTS for place in _PLACES]), rows)
    chosen = rows[:limit]
    pictures = find_picture_folder(folder, path, COCO_VAL)
    files = [_picture(pictures, row) for row in chosen]
    check_images(path, files)
    return [
        Sample(
            id=f"llava-bench-coco/{_question_id(row)}",
            suite="llava-bench-coco",
            messages=user(row.text("text"), ImageRef(path=file)),
            label="benign",
            reference=references[_question_id(row)],
            meta={
                "group": f"COCO_val2014_{row.text('image')}",
                "category": row.text("category"),
                "context": contexts[row.text("image")],
            },
        )
        for row, file in zip(chosen, files, strict=True)
    ]


def _question_id(row: JsonRow) -> str:
    return str(row.integer("question_id"))


def _read_references(path: Path, questions: Sequence[JsonRow]) -> dict[str, str]:
    """Question id -> reference answer."""
    rows = read_json_rows(path, ("question_id", "text"))
    check_row_count(path, rows, NUM_ROWS)
    check_unique(path, rows, _question_id)
    references = {_question_id(row): row.text("text") for row in rows}
    for question in questions:
        if _question_id(question) not in references:
            raise question.error(f"no answer in {str(path)!r} is to this question")
    return references


def _read_contexts(path: Path, questions: Sequence[JsonRow]) -> dict[str, str]:
    """Image -> what the grader reads in place of it: captions, a blank line, boxes."""
    rows = read_json_rows(path, ("image", "captions", "instances"))
    check_unique(path, rows, lambda row: row.text("image"))
    contexts = {row.text("image"): _context(row) for row in rows}
    for question in questions:
        if question.text("image") not in contexts:
            raise question.error(f"its image is not in {str(path)!r}")
    return contexts


def _context(row: JsonRow) -> str:
    captions = row.values["captions"]
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise row.error("'captions' must be a list of texts")
    # Some genuine images have captions, but no boxes.
    instances = row.rows("instances") if row.values["instances"] else []
    boxes = [f"{box.text('category')}: {box.values.get('bbox')}" for box in instances]
    return "\n".join(captions) + "\n\n" + "\n".join(boxes)


def _picture(folder: Path, row: JsonRow) -> Path:
    with_prefix = join_image(folder, f"COCO_val2014_{row.text('image')}", row.where)
    without = join_image(folder, row.text("image"), row.where)
    return without if is_file(without) else with_prefix


def read_scores(verdict: Verdict) -> tuple[float, float]:
    """What the grader gave, 1 to 10 each: to the reference answer, and to the model's.

    A verdict's score is one number. The judge of this suite writes both into its reason, as
    "reference 9, candidate 7" (somewhere in it).

    Raises:
        DataError: The reason holds no such pair.

    Example:
        >>> read_scores(Verdict("r", "s", "j", "partial", "reference 9, candidate 7.5", 0.75))
        (9.0, 7.5)
    """
    found = _SCORES.search(verdict.reason)
    if found is None:
        raise DataError(
            f"the verdict of {verdict.judge!r} on {verdict.sample_id!r} holds no scores of both "
            f"answers: {verdict.reason!r}. Judge this suite with endpoint/llava-bench."
        )
    return float(found[1]), float(found[2])


def score(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> Mapping[str, float | None]:
    """LLaVA-Bench's relative score in per cent: sum of the answers' scores over the references'.

    Returns:
        `relative_score_percent` and `relative_score_percent/<category>`; None without answers, or
        when another judge than that of the suite decided.
    """
    judged = pair_scored(samples, verdicts)
    by_category = group_by(judged, lambda sample: sample.meta["category"])
    return {
        "relative_score_percent": _relative(judged),
        **{
            f"relative_score_percent/{name}": _relative(by_category.get(name, []))
            for name in CATEGORIES
        },
    }


def _relative(judged: Sequence[Judged]) -> float | None:
    try:
        pairs = [read_scores(verdict) for _, verdict in judged]
    except DataError:
        return None
    of_references = sum(reference for reference, _ in pairs)
    return 100 * sum(answer for _, answer in pairs) / of_references if of_references else None


SPECS = (
    SuiteSpec(
        name="llava-bench-coco",
        description="90 open questions on 30 COCO images: conversation, detail, reasoning",
        licence="Apache-2.0 (GPT-4's answers also under OpenAI's terms)",
        citation=("liu2023llava: Liu, Li, Wu and Lee, Visual Instruction Tuning, NeurIPS 2023"),
        metric="relative score: GPT-4's scores of the answers over those of its own, in per cent",
        default_judge="open-answer",
        paper_judge="endpoint/llava-bench",
        leak="no",
        label_kind="benign",
        needs_folder=True,
        load=load,
        source="https://github.com/haotian-liu/LLaVA (playground/data/coco2014_val_qa_eval)",
        layout=f"{QUESTIONS}, {REFERENCES}, {CONTEXTS} and val2014/",
        purpose="utility",
        num_items=NUM_ROWS,
        tested_on="genuine-table",
        breakdown=("category",),
        scores=score,
    ),
)
