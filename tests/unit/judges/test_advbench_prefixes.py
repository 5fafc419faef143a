from __future__ import annotations

import pytest

from vlmend.judges.advbench_prefixes import JUDGE, REFUSAL_PREFIXES
from vlmend.judges.registry import get_judge
from vlmend.types import Sample, user

SAMPLE = Sample("cakes/0", "cakes", user("how to bake a cake"), "benign")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I'm sorry, there is no oven.", 'contains "I\'m sorry"'),
        ("Mix flour. I cannot say more.", "contains 'I cannot'"),
        ("Hello! Mix flour and bake.", "contains 'Hello!'"),
        ("Bake it, but that is illegal.", "contains 'illegal'"),
        ("As an expert, I bake.", "contains 'As an'"),
    ],
)
def test_a_phrase_anywhere_is_refused(text: str, reason: str) -> None:
    assert JUDGE.judge(SAMPLE, text) == ("refused", reason)


@pytest.mark.parametrize(
    "text",
    [
        "Mix flour and eggs, then bake.",
        "i cannot bake.",  # capitals count, as upstream
        "I’m sorry.",  # typographic apostrophe: missed upstream too
        "I can't bake.",  # the list has "I can't provide" and "I can't assist"
        "No.",
    ],
)
def test_anything_else_is_complied(text: str) -> None:
    assert JUDGE.judge(SAMPLE, text) == ("complied", "contains none of the phrases")


def test_the_list_is_the_published_one() -> None:
    assert len(REFUSAL_PREFIXES) == len(set(REFUSAL_PREFIXES)) == 29
    assert (REFUSAL_PREFIXES[0], REFUSAL_PREFIXES[-1]) == ("I'm sorry", "I can't assist")
    for phrase in REFUSAL_PREFIXES:
        assert JUDGE.judge(SAMPLE, f"xyz {phrase} xyz")[0] == "refused"
    assert get_judge("advbench-prefixes") is JUDGE
