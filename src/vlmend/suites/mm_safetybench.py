"""MM-SafetyBench: 1,680 unsafe questions of 13 scenarios, their key phrase moved into a picture.

Eight suites: `mm-safetybench-sd` (the phrase as a generated picture), `-typo` (as drawn letters),
`-sd-typo` (both) and `-text` (the original question, no picture), and `mm-safetybench-tiny-...`,
the 168 questions that the authors chose to save cost. Official layout, at the folder given or in
`data/` below it: `processed_questions/<scenario>.json`, `imgs/<scenario>/<KIND>/<key>.jpg`; the
choice is `TinyVersion_ID_List.json` there or above. Pairing, as its readme says: SD pictures go
with `Rephrased Question(SD)`, TYPO and SD_TYPO pictures with `Rephrased Question`.

Traps of the files: the first scenario is spelled `01-Illegal_Activitiy`; the keys of 05 and 08
have gaps (up to "132" and "180") and are numbers in text, so "10" comes after "9" here; 08 asks 19
of its questions twice (`meta["group"]` ties them, over kinds and suites); that a text names no
harm is meant, yet 107 rephrased questions have words of intent, 40 of them of 97 in scenario 01.

Scenarios 08 and 13 ask for opinions and 10 to 12 for advice that is not harmful in itself, and
the authors judge them by other rubrics: `meta["question_kind"]` tells "harm", "political" and
"advice" apart (972, 302 and 406 questions).

Read once on the authors' genuine questions and choice, all rows; their pictures were not at hand,
and the tests read invented files of that layout.

Reference: Liu et al., "MM-SafetyBench: A Benchmark for Safety Evaluation of Multimodal Large
Language Models" (ECCV 2024, arXiv 2311.17600); data https://github.com/isXinLiu/MM-SafetyBench.
Deviation 1: the readme defines the three kinds with a picture; of the text of a question without
one it says nothing. `Question` is asked; works that ask `Changed Question` have other numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from vlmend.errors import DataError
from vlmend.suites.json_rows import JsonRow, read_json_rows, read_named_rows
from vlmend.suites.pictures import check_images
from vlmend.suites.registry import SuiteSpec
from vlmend.suites.tables import find_file
from vlmend.types import ImageRef, Sample, user

SCENARIOS: dict[str, tuple[str, int]] = {
    "01-Illegal_Activitiy": ("harm", 97),
    "02-HateSpeech": ("harm", 163),
    "03-Malware_Generation": ("harm", 44),
    "04-Physical_Harm": ("harm", 144),
    "05-EconomicHarm": ("harm", 122),
    "06-Fraud": ("harm", 154),
    "07-Sex": ("harm", 109),
    "08-Political_Lobbying": ("political", 153),
    "09-Privacy_Violence": ("harm", 139),
    "10-Legal_Opinion": ("advice", 130),
    "11-Financial_Advice": ("advice", 167),
    "12-Health_Consultation": ("advice", 109),
    "13-Gov_Decision": ("political", 149),
}
"""Published spelling of a scenario -> kind of its questions, number of its questions."""

NUM_QUESTIONS = 1680
NUM_TINY = 168
TINY_LIST = "TinyVersion_ID_List.json"

KEYS = ("Question", "Key Phrase", "Phrase Type", "Rephrased Question", "Rephrased Question(SD)")
"""What a question must have; further keys are passed over."""

_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to ask a question.

    Attributes:
        name: End of the suite's name.
        folder: Folder of its pictures below a scenario's; empty without pictures.
        key: Which of a question's texts is asked.
        description: How the question is put.
    """

    name: str
    folder: str
    key: str
    description: str


KINDS = (
    Kind("sd", "SD", "Rephrased Question(SD)", "with its key phrase as a generated picture"),
    Kind("typo", "TYPO", "Rephrased Question", "with its key phrase drawn as letters"),
    Kind("sd-typo", "SD_TYPO", "Rephrased Question", "with its key phrase as picture and letters"),
    Kind("text", "", "Question", "in text, no image"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a scenario's file.

    Attributes:
        scenario: As spelled in the published files.
        key: Its number in that file, as text.
        row: Its texts.
        group: What it shares with questions of the same words.
    """

    scenario: str
    key: str
    row: JsonRow
    group: str


def load(kind: Kind, tiny: bool, folder: Path | None, limit: int | None) -> list[Sample]:
    """Read the questions of all scenarios in their order and check that the pictures are there.

    Args:
        kind: How the questions are asked.
        tiny: Only the 168 that the authors chose.
        folder: The published repository, or its `data/`.
        limit: Keep the first `limit` questions, all of scenario 01 unless it is large; only their
            pictures must exist.

    Raises:
        DataError: A file or a picture is missing, or a file is damaged or not complete.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    first = f"processed_questions/{next(iter(SCENARIOS))}.json"
    data = find_file(folder, (f"data/{first}", first)).parent.parent
    by_scenario = {scenario: _read_scenario(data, scenario) for scenario in SCENARIOS}
    if tiny:
        by_scenario = _choose(find_file(data, (TINY_LIST, f"../{TINY_LIST}")), by_scenario)
    chosen = [*chain.from_iterable(by_scenario.values())][:limit]
    suite = _suite_name(kind, tiny)
    if not kind.folder:
        return [_build_sample(suite, kind, question, ()) for question in chosen]
    files = [data / "imgs" / q.scenario / kind.folder / f"{q.key}.jpg" for q in chosen]
    check_images(data / "processed_questions", files, [f"{q.scenario} {q.key}" for q in chosen])
    return [
        _build_sample(suite, kind, question, (ImageRef(path=file),))
        for question, file in zip(chosen, files, strict=True)
    ]


def _read_scenario(data: Path, scenario: str) -> list[Question]:
    """The questions of one scenario, by their numbers.

    Raises:
        DataError: The file is missing or damaged, a key is no number, or the number of questions
            is not the published one.
    """
    path = find_file(data, (f"processed_questions/{scenario}.json",))
    rows = read_named_rows(path, KEYS)
    odd = [key for key in rows if not _NUMBER.fullmatch(key)]
    if odd:
        raise DataError(
            f"{str(path)!r}, row {odd[0]!r}: the key is no number. Allowed: '0', '1' ...; they "
            "are the names of the images. Get the published file."
        )
    expected = SCENARIOS[scenario][1]
    if len(rows) != expected:
        raise DataError(
            f"{str(path)!r} has {len(rows)} questions, but the published file has {expected}. "
            "Get the file again; for fewer samples keep the file whole and set a limit."
        )
    first_key: dict[str, str] = {}
    questions: list[Question] = []
    for key in sorted(rows, key=int):
        for name in KEYS:
            rows[key].text(name)
        words = " ".join(rows[key].text("Question").casefold().split())
        group = f"mm-safetybench/{scenario}/{first_key.setdefault(words, key)}"
        questions.append(Question(scenario, key, rows[key], group))
    return questions


def _choose(path: Path, by_scenario: dict[str, list[Question]]) -> dict[str, list[Question]]:
    """The questions that the authors' list names.

    Raises:
        DataError: The list is damaged, lacks a scenario, names a question that there is not, or
            does not hold the published number of them.
    """
    keys: dict[str, set[str]] = {}
    for row in read_json_rows(path):
        scenario, numbers = row.text("Scenario"), row.values.get("Sampled_ID_List")
        if scenario not in by_scenario or scenario in keys or not isinstance(numbers, list):
            raise row.error(
                "'Scenario' must name each of the 13 scenarios once, with a list 'Sampled_ID_List'"
            )
        keys[scenario] = {str(number) for number in numbers}
        unknown = keys[scenario] - {question.key for question in by_scenario[scenario]}
        if unknown:
            raise row.error(f"{scenario} has no question {min(unknown)!r}")
    found = sum(map(len, keys.values()))
    if len(keys) != len(SCENARIOS) or found != NUM_TINY:
        raise DataError(
            f"{str(path)!r} names {found} questions of {len(keys)} scenarios, but the published "
            f"list has {NUM_TINY} of {len(SCENARIOS)}. Get the file again."
        )
    return {
        scenario: [question for question in questions if question.key in keys[scenario]]
        for scenario, questions in by_scenario.items()
    }


def _build_sample(
    suite: str, kind: Kind, question: Question, images: tuple[ImageRef, ...]
) -> Sample:
    return Sample(
        id=f"{suite}/{question.scenario}/{question.key}",
        suite=suite,
        messages=user(question.row.text(kind.key), *images),
        label="harmful",
        meta={
            "scenario": question.scenario,
            "question_kind": SCENARIOS[question.scenario][0],
            "question": question.row.text("Question"),
            "key_phrase": question.row.text("Key Phrase"),
            "phrase_type": question.row.text("Phrase Type"),
            "group": question.group,
        },
    )


def _suite_name(kind: Kind, tiny: bool) -> str:
    return f"mm-safetybench-{'tiny-' if tiny else ''}{kind.name}"


def _build_spec(kind: Kind, tiny: bool) -> SuiteSpec:
    count = NUM_TINY if tiny else NUM_QUESTIONS
    images = f" and imgs/<scenario>/{kind.folder}/" if kind.folder else ""
    return SuiteSpec(
        name=_suite_name(kind, tiny),
        description=f"{count:,} unsafe questions of 13 scenarios, {kind.description}",
        licence="CC-BY-NC-4.0",
        citation=(
            "liu2024mmsafetybench: Liu, Zhu, Gu, Lan, Yang and Qiao, MM-SafetyBench: A Benchmark "
            "for Safety Evaluation of Multimodal Large Language Models, ECCV 2024"
        ),
        metric=(
            "ASR per scenario and its mean over the 13 scenarios: share of answers that GPT-4 "
            "calls unsafe, by a rubric of its own for each of scenarios 08 and 10 to 13"
        ),
        default_judge="shiftdc-keywords",
        # The texts are meant to name no harm, but see the words of intent above.
        leak="mixed" if kind.folder else "yes",
        label_kind="harmful",
        needs_folder=True,
        load=partial(load, kind, tiny),
        num_items=count,
        # The genuine questions were read once, but no test can read them again.
        tested_on="invented",
        paper_judge="endpoint/mm-safetybench",
        breakdown=("scenario", "question_kind"),
        macro="scenario",
        source="https://github.com/isXinLiu/MM-SafetyBench (images: the link in its readme)",
        layout=f"processed_questions/{images}{f' and {TINY_LIST}' if tiny else ''}",
    )


SPECS = tuple(_build_spec(kind, tiny) for tiny in (False, True) for kind in KINDS)
