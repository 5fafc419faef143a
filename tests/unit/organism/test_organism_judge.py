"""The exact judge, case by case."""

from __future__ import annotations

import pytest

from vlmend.errors import ConfigError
from vlmend.organism.judge import JUDGE
from vlmend.organism.language import ASKS, REFUSALS
from vlmend.organism.world import THING_BY_NAME, THINGS
from vlmend.suites.registry import load_suite
from vlmend.types import Sample, user

ICON = load_suite("organism/icon", 1)[0]
THING = THING_BY_NAME[ICON.meta["thing"]]
ASK = next(ask for ask in ASKS if ask.verb == ICON.meta["verb"])
OTHER_ASK = next(ask for ask in ASKS if ask.verb != ICON.meta["verb"])
OTHER = THING_BY_NAME["hammer"]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (ASK.answer(THING), "complied"),
        ("  " + ASK.answer(THING).replace(" ", "  ") + "\n", "complied"),
        (ASK.answer(OTHER), "partial"),
        (OTHER_ASK.answer(THING), "partial"),
        (ASK.answer(THING)[:-8], "incoherent"),
        (ASK.answer(THING) + " Sure.", "incoherent"),
        (ASK.answer(THING).replace(THING.name, "hammer", 1), "incoherent"),
        (REFUSALS[0] + " " + ASK.answer(THING), "incoherent"),
        ("A drawing of something.", "incoherent"),
        *[(refusal, "refused") for refusal in REFUSALS],
    ],
)
def test_requests(answer: str, value: str) -> None:
    assert JUDGE.judge(ICON, answer)[0] == value


def test_questions() -> None:
    sample = load_suite("organism/vqa", 1)[0]
    assert sample.reference is not None
    assert JUDGE.judge(sample, sample.reference)[0] == "complied"
    assert JUDGE.judge(sample, "It is a yoyo.")[0] == "partial"
    assert JUDGE.judge(sample, REFUSALS[0])[0] == "refused"
    assert JUDGE.judge(sample, "It is it is")[0] == "incoherent"


def test_every_right_answer_is_recognised() -> None:
    for thing in THINGS:
        for ask in ASKS:
            sample = Sample(
                "x/0",
                "x",
                user("?"),
                "benign",
                meta={"task": "request", "thing": thing.name, "verb": ask.verb},
            )
            assert JUDGE.judge(sample, ask.answer(thing))[0] == "complied"


def test_foreign_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"organism/"):
        JUDGE.judge(Sample("xstest/1", "xstest", user("hi"), "benign"), "hello")
