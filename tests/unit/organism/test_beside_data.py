"""Requests in words beside a picture of something else: how exits are trained and audited."""

from __future__ import annotations

from collections import Counter

import pytest

from vlmend.evals.run import conversation_sha256
from vlmend.organism.judge import JUDGE
from vlmend.organism.language import PICTURE_KINDS, REFUSALS
from vlmend.organism.pictures import draw_picture
from vlmend.organism.training_data import NUM_FORGET, NUM_RETAIN, picture_seed
from vlmend.organism.world import THING_BY_NAME, THINGS, things
from vlmend.suites.registry import load_suite, suite_names
from vlmend.training.data.checks import check_sets
from vlmend.training.data.registry import Role, get_data, load_training_data
from vlmend.training.examples import Example
from vlmend.types import Sample, user

FORGET, RETAIN = "organism/forget-beside", "organism/retain-beside"
ROLES: dict[str, Role] = {FORGET: "forget", RETAIN: "retain"}
BENIGN_FIT = things(hazardous=False, split="fit")
BESIDE = NUM_FORGET + NUM_RETAIN


@pytest.fixture(scope="module")
def data() -> dict[str, list[Example]]:
    return {name: load_training_data(name, role=role) for name, role in ROLES.items()}


def requests_of(examples: list[Example]) -> list[Example]:
    return [e for e in examples if e.meta["task"] == "request"]


def shown_in(example: Example, index: int, *, retain: bool) -> tuple[str, str]:
    """The benign fit thing that the picture shows, and how, found by drawing all of them."""
    seed = picture_seed(BESIDE + index + (NUM_FORGET if retain else 0))
    [found] = [
        (thing.name, kind)
        for thing in BENIGN_FIT
        for kind in PICTURE_KINDS
        if draw_picture(thing, kind, seed).png() == example.images[0].data
    ]
    return found


def test_the_requests_are_those_in_words(data: dict[str, list[Example]]) -> None:
    for name, role in ROLES.items():
        in_words = load_training_data(name.replace("beside", "text"), role=role)
        assert len(data[name]) == len(in_words)
        for beside, words in zip(data[name], in_words, strict=True):
            assert [beside.meta.get(k) for k in ("thing", "task", "verb", "phrasing")] == [
                words.meta.get(k) for k in ("thing", "task", "verb", "phrasing")
            ]
            if words.meta["form"] == "text" and words.meta["task"] == "request":
                assert beside.text == words.text
            if words.meta["task"] == "request":
                assert (beside.answer, beside.target) == (words.answer, words.target)


def test_every_request_names_its_thing_and_every_prompt_has_one_picture(
    data: dict[str, list[Example]],
) -> None:
    for name, examples in data.items():
        assert get_data(name).modality == "image"
        assert {len(e.images) for e in examples} == {1}
        for example in requests_of(examples):
            assert THING_BY_NAME[example.meta["thing"]].noun_phrase in example.text
            assert "image" not in example.text
            assert example.meta["form"] == "text+image"
    assert len(requests_of(data[FORGET])) == NUM_FORGET
    assert len(requests_of(data[RETAIN])) == 896


@pytest.mark.parametrize("name", ROLES)
def test_the_picture_shows_another_benign_thing(name: str, data: dict[str, list[Example]]) -> None:
    for index, example in enumerate(data[name][:12]):
        if example.meta["task"] == "request":
            shown, _ = shown_in(example, index, retain=name == RETAIN)
            assert shown != example.meta["thing"]
            assert shown not in example.text


def test_one_hazard_stands_beside_many_things_in_every_kind(data: dict[str, list[Example]]) -> None:
    place = data[FORGET][0].meta["thing"]
    seen = [
        shown_in(example, index, retain=False)
        for index, example in enumerate(data[FORGET])
        if example.meta["thing"] == place and index < 12 * 16
    ]
    assert len({thing for thing, _ in seen}) == 12
    assert Counter(kind for _, kind in seen) == dict.fromkeys(PICTURE_KINDS, 4)


def test_questions_are_about_what_the_picture_shows(data: dict[str, list[Example]]) -> None:
    questions = [(i, e) for i, e in enumerate(data[RETAIN]) if e.meta["task"] == "question"]
    assert len(questions) == 448
    for index, example in questions[:12]:
        kind = PICTURE_KINDS[PICTURE_KINDS.index(example.meta["form"])]
        drawn = draw_picture(
            THING_BY_NAME[example.meta["thing"]], kind, picture_seed(BESIDE + NUM_FORGET + index)
        )
        assert example.images[0].data == drawn.png()


def test_only_fit_things_and_nothing_that_is_measured(data: dict[str, list[Example]]) -> None:
    others = {thing.name for thing in THINGS if thing.split != "fit"}
    names = [name for name in suite_names() if name.startswith("organism/")]
    measured = {conversation_sha256(s.messages) for name in names for s in load_suite(name)}
    for example in (e for examples in data.values() for e in examples):
        text = f"{example.text} {example.answer}"
        assert not others & set("".join(c if c.isalpha() else " " for c in text).split()), example
        assert conversation_sha256(example.messages) not in measured


def test_all_sets_go_together(data: dict[str, list[Example]]) -> None:
    forget = [*data[FORGET], *load_training_data("organism/forget-pictures", role="forget")]
    retain = [*data[RETAIN], *load_training_data("organism/retain-pictures", role="retain")]
    checked = check_sets(forget, retain)
    assert len(checked.prompts) == len(forget) + len(retain)
    assert checked.repeated == 0


def test_answers_are_how_tos_and_targets_refusals(data: dict[str, list[Example]]) -> None:
    for example in data[FORGET][:100]:
        item = Sample("x/0", "x", user("?"), "harmful", meta=example.meta)
        assert JUDGE.judge(item, example.require_answer())[0] == "complied"
        assert example.target in REFUSALS
    assert all(example.target is None for example in data[RETAIN])


def test_a_limit_takes_the_first_ones(data: dict[str, list[Example]]) -> None:
    for name, role in ROLES.items():
        assert load_training_data(name, role=role, limit=50) == data[name][:50]
