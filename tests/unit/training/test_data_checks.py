from __future__ import annotations

import pytest
from training_tables import example

from vlmend.errors import ConfigError, DataError, ModelError
from vlmend.models.vlm import Vlm
from vlmend.repairs.protocol import prompt_sha256
from vlmend.testing import picture, tiny_vlm
from vlmend.training.data.checks import check_answers, check_prompts, check_sets
from vlmend.training.examples import Example
from vlmend.types import ImageRef, Message, Sample, user

FORGET = [example(str(i), f"Hide {i} socks?", target="No.", source="forget") for i in range(4)]
RETAIN = [example(str(i), f"Bake {i} cakes?", source="retain") for i in range(4)]


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return tiny_vlm("llava")


# ---- sets


def test_prompts_are_hashed_as_items_to_be_measured_are() -> None:
    assert set(check_sets(FORGET).prompts) == {e.id for e in FORGET}, "no retain data is read"
    checked = check_sets(FORGET, RETAIN)
    assert len(checked.prompts) == 8
    assert checked.repeated == 0
    asked_again = Sample("other/0", "other", FORGET[0].messages, "harmful")
    assert checked.prompts["forget/0"] == prompt_sha256(asked_again)


@pytest.mark.parametrize(("forget", "retain", "name"), [([], RETAIN, "for"), (FORGET, [], "ret")])
def test_an_empty_set_is_named(forget: list[Example], retain: list[Example], name: str) -> None:
    with pytest.raises(DataError, match=f"the {name}.* set is empty"):
        check_sets(forget, retain)


def test_a_prompt_in_both_sets_is_refused_whatever_its_id_and_answer() -> None:
    same = example("9", "Hide 2 socks?", answer="Never.", source="retain")
    with pytest.raises(DataError, match=r"1 of 4 forget .*\(forget/2 = retain/9\)"):
        check_sets(FORGET, [*RETAIN, same])
    # The same words beside a picture are another prompt; beside the same picture they are not.
    shown = Example("retain/9", "retain", user("Hide 2 socks?", picture(1)), "Never.")
    check_sets(FORGET, [*RETAIN, shown])
    again = Example("forget/9", "forget", user("Hide 2 socks?", picture(1)), "Yes.")
    with pytest.raises(DataError, match=r"\(forget/9 = retain/9\)"):
        check_sets([*FORGET, again], [*RETAIN, shown])


def test_an_id_in_both_sets_is_refused() -> None:
    with pytest.raises(DataError, match="example 5 has the id 'forget/0'"):
        check_sets(FORGET, [example("0", "Bake?", source="forget")])


def test_an_answer_that_is_its_own_target_is_refused() -> None:
    odd = example("9", "Hide a hat?", answer="No.", target=" No.")
    with pytest.raises(DataError, match=r"1 of 5 forget examples have a target .* \(mild/9\)"):
        check_sets([*FORGET, odd], RETAIN)


def test_repeated_pairs_are_counted() -> None:
    again = example("9", "Hide 2 socks?", target="No.")
    other = example("8", "Hide 2 socks?", answer="Maybe.", target="No.")
    assert check_sets([*FORGET, again, other], RETAIN).repeated == 1


# ---- prompts


def test_a_template_without_a_system_role_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vlm = tiny_vlm("llava")
    rude = Example("mild/s", "mild", user("Tea?", system="Be rude."), "No.")
    check_prompts(vlm, [*FORGET, rude])
    silent = "{% for m in messages if m['role'] != 'system' %}{{ m['content'][0]['text'] }}"
    failing = "{{ raise_exception('system role not supported') }}"
    for template, message in (
        (silent + "{% endfor %}", "drops the system text"),
        ("{% if messages[0]['role'] == 'system' %}" + failing + "{% endif %}", "no system role"),
    ):
        monkeypatch.setattr(vlm.processor, "chat_template", template)
        with pytest.raises(ModelError, match=message) as caught:
            check_prompts(vlm, [rude])
        assert str(caught.value).startswith("example 'mild/s': ")


def test_earlier_turns_must_be_said_too(vlm: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = (*user("Hi"), Message("assistant", ("Ho",)), *user("Tea?"))
    long = Example("mild/long", "mild", turns, "No.")
    check_prompts(vlm, [long])
    monkeypatch.setattr(vlm.processor, "chat_template", "{{ messages[-1]['content'][0]['text'] }}")
    with pytest.raises(ModelError, match=r"'mild/long': .* drops the user text 'Hi'"):
        check_prompts(vlm, [long])


def test_placeholders_and_damaged_pictures_are_named(vlm: Vlm) -> None:
    with pytest.raises(DataError, match="'mild/p': a user text contains '<image>'"):
        check_prompts(vlm, [example("p", "Look at <image>!")])
    damaged = Example("mild/d", "mild", user("Tea?", ImageRef(data=b"no picture")), "Yes.")
    with pytest.raises(DataError, match="'mild/d': cannot decode image"):
        check_prompts(vlm, [*FORGET, damaged])


# ---- answers


def test_answers_and_targets_are_measured(vlm: Vlm) -> None:
    texts = [text for e in (*FORGET, *RETAIN) for text in (e.answer, e.target) if text]
    lengths = [len(vlm.tokenizer(t, add_special_tokens=False).input_ids) + 1 for t in texts]
    report = check_answers(vlm, [*FORGET, *RETAIN], None)
    assert report.record() == {
        "answers": 12,
        "tokens": sum(lengths),
        "longest": max(lengths),
        "cut": 0,
    }


def test_cut_answers_are_counted_up_to_a_half_and_refused_above(vlm: Vlm) -> None:
    longer = [example(f"l{i}", "Tea?", answer="Yes, with milk and sugar.") for i in range(9)]
    limit = check_answers(vlm, RETAIN, None).longest
    assert check_answers(vlm, [*RETAIN, *longer[:4]], limit).cut == 4
    with pytest.raises(DataError, match=rf"5 of 9 answers are longer than max_.*={limit}"):
        check_answers(vlm, [*RETAIN, *longer[:5]], limit)
    with pytest.raises(ConfigError, match="max_answer_tokens=0 is not possible"):
        check_answers(vlm, RETAIN, 0)


@pytest.mark.parametrize("text", ["", "  ", "A <image> here."])
def test_an_answer_that_is_none_to_the_tokenizer_is_named(vlm: Vlm, text: str) -> None:
    for odd in (example("o", "Tea?", answer=text), example("o", "Tea?", target=text)):
        with pytest.raises(DataError, match="example 'mild/o': the answer"):
            check_answers(vlm, [*RETAIN, odd], None)
