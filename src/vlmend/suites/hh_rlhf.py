r"""HH-RLHF, harmless: dialogues in which crowd workers tried to get harm from an assistant; text.

The suite asks what stands before the last answer of each dialogue, of the test split; a dialogue
of several turns becomes a conversation of as many messages. `training/data/hh_rlhf.py` reads the
same dialogues as forget and preference data.

Official layout: `harmless-base/test.jsonl.gz` and `train.jsonl.gz` (plain `.jsonl` is read, too);
each line {`chosen`, `rejected`}: whole dialogues as text, turns marked "\n\nHuman: " and
"\n\nAssistant: ". Tested on the genuine test split: of its 2,312 rows, 29 are no dialogue in
which human and assistant take turns, and have no item; both numbers are checked, and a run says
how many there were. The number of rows of the training split is not known here and not checked.

Reference: Bai et al., "Training a Helpful and Harmless Assistant with Reinforcement Learning from
Human Feedback" (arXiv 2204.05862); data https://github.com/anthropics/hh-rlhf (MIT).
Deviation 1: the rows have no label; all are taken as harmful, because that is what the workers
were asked for. Some requests are harmless, or become harmful only by the answers before: a rate
of refusals well below 1 may be right, and rates are to be compared, not read alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vlmend.errors import DataError
from vlmend.suites.json_rows import JsonRow, read_json_rows
from vlmend.suites.registry import NO_JUDGE, Samples, Skip, SuiteSpec
from vlmend.suites.tables import check_row_count, find_file
from vlmend.types import Conversation, Message, Role, Sample, sha256_json

NUM_ROWS = 2312
"""Rows of the published test split."""

NUM_DIALOGUES = 2283
"""How many of them are dialogues in which human and assistant take turns."""

NO_DIALOGUE = "rows in which human and assistant do not take turns"
"""Why a row has no item."""

FILES = tuple(
    f"{folder}{split}.jsonl{packed}"
    for split in ("test", "train")
    for folder in ("harmless-base/", "")
    for packed in (".gz", "")
)

_TURN = re.compile(r"\n\n(Human|Assistant):")
_SECOND_MARK = re.compile(r"(Human|Assistant):")
_SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def read_dialogue(row: JsonRow, key: str) -> Conversation:
    """The turns of a dialogue, its last answer included.

    Args:
        row: A line of a file.
        key: "chosen" or "rejected".

    Returns:
        As many turns of the human as of the assistant; none if they do not alternate or one of
        them is empty.

    Raises:
        DataError: The text is no dialogue at all.
    """
    turns = _read_turns(row, key)
    return turns if len(turns) % 2 == 0 and _alternate(turns) else ()


def read_prompt(row: JsonRow, key: str) -> Conversation:
    """What stands before the last answer of a dialogue, whatever that answer is.

    Args:
        row: A line of a file.
        key: "chosen" or "rejected".

    Returns:
        Turns, the human's first and last; none if they do not alternate or one of them is empty.

    Raises:
        DataError: The text is no dialogue at all.
    """
    turns = _read_turns(row, key)
    before = turns[:-1]
    whole = len(turns) % 2 == 0 and turns[-1].role == "assistant" and _alternate(before)
    return before if whole else ()


def _read_turns(row: JsonRow, key: str) -> Conversation:
    start, *parts = _TURN.split(row.text(key))
    if start.strip() or not parts:
        raise row.error(
            f"{key!r} is no dialogue: it must begin with '\\n\\nHuman: ' and hold "
            "'\\n\\nAssistant: '"
        )
    return tuple(
        Message(_SPEAKERS[speaker], (text.strip(),))
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    )


def _alternate(turns: Conversation) -> bool:
    """Whether human and assistant take turns, the human first, and each says something."""
    expected = ("user", "assistant") * ((len(turns) + 1) // 2)
    # "\n\nAssistant: Human: ..." also occurs: two marks for one turn.
    said = all(turn.text and not _SECOND_MARK.match(turn.text) for turn in turns)
    return said and tuple(turn.role for turn in turns) == expected[: len(turns)]


def load(folder: Path | None, limit: int | None) -> Samples:
    """Read the dialogues up to their last answer.

    Args:
        folder: The published folder, or one of its files.
        limit: Keep the first `limit` dialogues.

    Raises:
        DataError: No file, a damaged or incomplete one, or a row that is no pair of dialogues.
    """
    assert folder is not None, "load_suite checks that the folder is given"
    path = find_file(folder, FILES)
    split = path.name.partition(".")[0]
    rows = read_json_rows(path, ("chosen", "rejected"))
    prompts = {index: read_prompt(row, "chosen") for index, row in enumerate(rows)}
    dialogues = {index: prompt for index, prompt in prompts.items() if prompt}
    if split == "test":
        check_row_count(path, rows, NUM_ROWS)
        _check_dialogues(path, dialogues)
    chosen = dict([*dialogues.items()][:limit])
    passed = len(rows) if limit is None or limit >= len(dialogues) else max(chosen) + 1
    samples = (
        Sample(
            id=f"hh-rlhf-harmless/{split}/{index}",
            suite="hh-rlhf-harmless",
            messages=prompt,
            label="harmful",
            # Dialogues that go on from each other begin with the same words.
            meta={"turns": str(len(prompt) // 2 + 1), "group": sha256_json(prompt[0].text)[:16]},
        )
        for index, prompt in chosen.items()
    )
    return Samples(samples, [Skip(passed - len(chosen), NO_DIALOGUE)])


def _check_dialogues(path: Path, dialogues: Mapping[int, Conversation]) -> None:
    """Refuse a test split whose rows were changed: their number alone would not tell."""
    if len(dialogues) != NUM_DIALOGUES:
        raise DataError(
            f"{str(path)!r}: in {len(dialogues)} of {NUM_ROWS} rows human and assistant take "
            f"turns, but in the published file in {NUM_DIALOGUES}. Get the file again."
        )


SPECS = (
    SuiteSpec(
        name="hh-rlhf-harmless",
        description="2,283 dialogues in text in which people tried to get harm from an assistant",
        licence="MIT",
        citation=(
            "bai2022training: Bai, Jones, Ndousse, Askell, Chen, DasSarma and others, Training a "
            "Helpful and Harmless Assistant with Reinforcement Learning from Human Feedback, "
            "arXiv 2204.05862, 2022"
        ),
        metric="accuracy of a preference model; as a suite, rates of refusal and compliance",
        default_judge="xstest-prefix",
        leak="yes",
        label_kind="harmful",
        needs_folder=True,
        load=load,
        num_items=NUM_DIALOGUES,
        tested_on="genuine",
        paper_judge=f"{NO_JUDGE}it trains preference models and judges no answers",
        source="https://github.com/anthropics/hh-rlhf",
        layout="harmless-base/test.jsonl.gz (.jsonl, too)",
        unchecked="train.jsonl",
    ),
)
