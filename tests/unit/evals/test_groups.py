from __future__ import annotations

import pytest

from vlmend.evals.controls import CONTROL_KINDS, ControlKind, replace_images
from vlmend.evals.groups import group_of
from vlmend.suites.registry import load_suite
from vlmend.testing import picture
from vlmend.types import Sample, user


def of(name: str, **meta: str) -> str:
    return group_of(Sample(name, "s", user("x"), "benign", meta=meta))


def test_the_rule_of_groups() -> None:
    assert of("a/1", thing="pie") == of("b/2", thing=" Pie ", group="g") == "thing:pie"
    assert of("a/1", group="g7", instruction="Bake  it") == "group:g7"
    assert of("a/1", instruction="Bake  it.") == of("b/9", instruction="bake it.")
    assert of("a/1", thing="pie") != of("a/1", group="pie")
    same = [of(f"a/7{end}") for end in ("", "-SD", "_typo", "-sd_TYPO", "/ocr", ".blank")]
    assert set(same) == {"item:a/7"}
    # No ending of a picture: another number, a word that only ends like one.
    assert len({of("a/7"), of("a/71"), of("a/7sd"), of("a/7-b"), of("a/8-SD")}) == 5


def test_a_fact_without_a_word_is_none() -> None:
    assert of("a/1", thing="  ", group="", instruction="Bake it.") == "instruction:bake it."


def test_one_thing_of_the_organism_is_one_group_in_every_suite() -> None:
    icons, words = load_suite("organism/icon", 30), load_suite("organism/typographic", 30)
    groups = [group_of(s) for s in icons]
    assert groups == [group_of(s) for s in words] == [f"thing:{s.meta['thing']}" for s in icons]
    assert len(set(groups)) == 24  # then the things come again


@pytest.mark.parametrize("kind", CONTROL_KINDS)
@pytest.mark.parametrize("meta", [{}, {"thing": "pie"}, {"instruction": "Bake it."}])
def test_control_twins_have_the_group_of_their_item(
    kind: ControlKind, meta: dict[str, str]
) -> None:
    names = ("s/7", "s/7-SD", "s/8_typo")
    given = [
        Sample(name, "s", user("What is it?", picture(i)), "benign", meta=meta)
        for i, name in enumerate(names)
    ]
    other = Sample("s/9", "s", user("And this?", picture(9)), "benign", meta={"thing": "cup"})
    twins = replace_images([*given, other], kind)
    assert [twin.id for twin in twins[:3]] == [f"{name}@{kind}" for name in names]
    assert [group_of(twin) for twin in twins] == [group_of(s) for s in (*given, other)]
    assert group_of(twins[0]) == group_of(twins[1]) != group_of(twins[3])
