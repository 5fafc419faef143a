from __future__ import annotations

from collections.abc import Sequence

import pytest

from vlmend.diagnosis.four_sets import (
    SETS,
    build_four_sets,
    build_with_given_captions,
    build_with_self_captions,
)
from vlmend.errors import ConfigError, DataError
from vlmend.evals.captions import CaptionCache
from vlmend.testing import picture, tiny_vlm
from vlmend.types import Conversation, Label, Sample, conversation_images, user


def sample(number: int, label: Label, *, images: int = 1, **meta: str) -> Sample:
    pictures = [picture(10 * number + i) for i in range(images)]
    asked = user(f"Question {number}?", *pictures)
    return Sample(f"mild/{number}", "mild", asked, label, meta=meta)


def mixed() -> list[Sample]:
    return [
        sample(0, "harmful", thing="pie", caption="a pie"),
        sample(1, "benign", thing="cup", caption="a cup"),
        sample(2, "benign", images=0, thing="tea"),
        sample(3, "harmful", images=2, thing="pie", caption="two pies"),
        sample(4, "harmful", images=0, thing="jam"),
        sample(5, "benign", thing="Cup", caption="another cup"),
    ]


def in_words(conversations: Sequence[Conversation]) -> list[Conversation]:
    assert all(conversation_images(c) for c in conversations), "only what has an image"
    return [user(f"{c[-1].text} In words.") for c in conversations]


def test_every_item_is_in_its_sets() -> None:
    sets = build_four_sets(mixed(), in_words)
    found = {
        (modality, label): [
            (item.item_id, item.conversation[-1].text, len(conversation_images(item.conversation)))
            for item in sets.items
            if (item.modality, item.label) == (modality, label)
        ]
        for modality, label in SETS
    }
    assert found == {
        ("text", "safe"): [
            ("mild/1", "Question 1? In words.", 0),
            ("mild/2", "Question 2?", 0),
            ("mild/5", "Question 5? In words.", 0),
        ],
        ("text", "unsafe"): [
            ("mild/0", "Question 0? In words.", 0),
            ("mild/3", "Question 3? In words.", 0),
            ("mild/4", "Question 4?", 0),
        ],
        ("vision-language", "safe"): [("mild/1", "Question 1?", 1), ("mild/5", "Question 5?", 1)],
        ("vision-language", "unsafe"): [("mild/0", "Question 0?", 1), ("mild/3", "Question 3?", 2)],
    }
    assert [(i.modality, i.label) for i in sets.items] == sorted(
        ((i.modality, i.label) for i in sets.items), key=SETS.index
    )
    assert sets.gaps == ("2 item(s) of mild have no image: they are in the text sets alone.",)
    assert [i.item_id for i in sets.of("vision-language")] == [
        "mild/1",
        "mild/5",
        "mild/0",
        "mild/3",
    ]


def test_records() -> None:
    records = build_four_sets(mixed(), in_words).records()
    assert [(r["modality"], r["label"]) for r in records] == list(SETS)
    assert [(r["n"], r["groups"]) for r in records] == [(3, 2), (3, 2), (2, 1), (2, 1)]
    assert records[0]["suites"] == ["mild"]


def test_given_captions_are_the_papers_words() -> None:
    sets = build_with_given_captions(mixed())
    texts = [item.conversation[-1].text for item in sets.of("text")]
    assert texts == [
        "Question 1? Image Caption: a cup",
        "Question 2?",
        "Question 5? Image Caption: another cup",
        "Question 0? Image Caption: a pie",
        "Question 3? Image Caption: two pies",
        "Question 4?",
    ]


def test_missing_captions_are_named() -> None:
    with pytest.raises(DataError, match=r"1 of 7 items .*no caption.*\(mild/6\)"):
        build_with_given_captions([*mixed(), sample(6, "benign")])


def test_captions_that_contradict_each_other() -> None:
    first = sample(0, "harmful", caption="a pie")
    second = Sample("mild/x", "mild", first.messages, "harmful", meta={"caption": "a cup"})
    with pytest.raises(DataError, match="'mild/x' repeats"):
        build_with_given_captions([first, second])


def test_given_captions_of_one_picture_agree_but_for_space() -> None:
    first = sample(0, "harmful", caption="a pie")
    second = Sample("mild/x", "mild", first.messages, "harmful", meta={"caption": " a pie\n"})
    sets = build_with_given_captions([first, second, sample(1, "benign", caption="a cup")])
    texts = [item.conversation[-1].text for item in sets.of("text")]
    assert texts[1:] == ["Question 0? Image Caption: a pie"] * 2


def test_self_captions_are_the_models_own() -> None:
    vlm, cache = tiny_vlm("llava"), CaptionCache()
    given = [s for s in mixed() if s.images]
    assert {len(s.images) for s in given} == {1, 2}
    sets = build_with_self_captions(vlm, given, cache, caption_tokens=3, batch_size=2)
    assert cache.misses == len(given)
    captions = {s.id: cache.get_all(vlm, [s.messages], 3)[0] for s in given}
    assert cache.misses == len(given)
    for item in sets.of("text"):
        number = item.item_id.removeprefix("mild/")
        words = f"Question {number}? Image Caption: {captions[item.item_id]}"
        assert item.conversation == user(words)


# ---- errors


def test_no_images() -> None:
    text_only = [sample(0, "benign", images=0), sample(1, "harmful", images=0)]
    with pytest.raises(DataError, match="none of the 2 items of mild has an image"):
        build_four_sets(text_only, in_words)
    with pytest.raises(DataError, match="none of the 0 items of no suite"):
        build_four_sets([], in_words)


def test_a_missing_label_names_suites_to_add() -> None:
    # A benign item without an image does not help: the vision-language set stays empty.
    given = [sample(0, "harmful"), sample(1, "benign", images=0)]
    with pytest.raises(DataError, match="safe vision-language set is empty") as error:
        build_four_sets(given, in_words)
    assert "organism/benign" in str(error.value)
    assert "organism/fit" in str(error.value)
    assert "organism/icon" not in str(error.value)
    with pytest.raises(DataError, match=r"unsafe vision-language set .*organism/icon"):
        build_four_sets([sample(0, "benign")], in_words)


def test_an_item_given_twice() -> None:
    with pytest.raises(DataError, match="the first is 'mild/0'"):
        build_four_sets([*mixed(), mixed()[0]], in_words)


def test_batch_size() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        build_with_self_captions(
            tiny_vlm("llava"), mixed(), CaptionCache(), caption_tokens=3, batch_size=0
        )
