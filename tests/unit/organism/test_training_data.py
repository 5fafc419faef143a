"""What the organism is repaired with: nothing that is measured, and no `test` things."""

from __future__ import annotations

from collections import Counter

import pytest

from vlmend.evals.run import conversation_sha256
from vlmend.organism.judge import JUDGE
from vlmend.organism.language import ASKS, PICTURE_KINDS, REFUSALS, TRAINING_ASKS
from vlmend.organism.pictures import draw_picture
from vlmend.organism.pool import PICTURES_PER_CELL
from vlmend.organism.training_data import NUM_FORGET, NUM_RETAIN, picture_seed
from vlmend.organism.world import THING_BY_NAME, THINGS, things
from vlmend.suites.registry import load_suite, suite_names
from vlmend.testing import tiny_vlm
from vlmend.training.data.checks import check_answers, check_prompts, check_sets
from vlmend.training.data.registry import Role, get_data, load_training_data
from vlmend.training.examples import Example
from vlmend.types import Sample, user

FORGET = {"text": "organism/forget-text", "pictures": "organism/forget-pictures"}
RETAIN = {"text": "organism/retain-text", "pictures": "organism/retain-pictures"}
ALIGNED = {m: f"organism/aligned-{m}" for m in ("text", "pictures", "beside")}
ALL = [*FORGET.values(), *RETAIN.values(), *ALIGNED.values()]

NUM_ALIGNED = len(things(hazardous=True, split="aligned")) * len(TRAINING_ASKS)

PICTURES = 2 * (NUM_FORGET + NUM_RETAIN)
"""Of forget and retain data; the numbers of those about aligned hazards begin after these."""


def role_of(name: str) -> Role:
    return "retain" if "retain" in name else "forget"


@pytest.fixture(scope="module")
def data() -> dict[str, list[Example]]:
    return {name: load_training_data(name, role=role_of(name)) for name in ALL}


@pytest.fixture(scope="module")
def measured() -> set[str]:
    """Prompts of all items of all suites."""
    names = [name for name in suite_names() if name.startswith("organism/")]
    assert len(names) > 10
    return {conversation_sha256(s.messages) for name in names for s in load_suite(name)}


def words_of(example: Example) -> set[str]:
    text = " ".join([*(m.text for m in example.messages), example.answer])
    return set("".join(c if c.isalpha() else " " for c in text).split())


@pytest.mark.parametrize("name", ALL)
def test_only_things_of_its_split_are_named_or_shown(
    name: str, data: dict[str, list[Example]]
) -> None:
    split = "aligned" if "aligned" in name else "fit"
    others = {thing.name for thing in THINGS if thing.split != split}
    # Two things that are also words of requests and questions.
    assert not others & {"thing", "image", "drawing", "word", "box"}
    for example in data[name]:
        assert not words_of(example) & others, example
        assert THING_BY_NAME[example.meta["thing"]].split == split


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_measured(name: str, data: dict[str, list[Example]], measured: set[str]) -> None:
    prompts = [conversation_sha256(example.messages) for example in data[name]]
    assert len(set(prompts)) == len(prompts)
    assert not measured & set(prompts)


@pytest.mark.parametrize("name", ALL)
def test_pictures_are_those_of_the_modality(name: str, data: dict[str, list[Example]]) -> None:
    expected = 0 if "text" in name else 1
    assert {len(example.images) for example in data[name]} == {expected}
    assert get_data(name).modality == ("image" if expected else "text")


def test_picture_seeds_are_neither_the_suites_nor_those_of_training() -> None:
    seeds = [picture_seed(i) for i in range(PICTURES + 2 * NUM_ALIGNED)]
    assert len(set(seeds)) == len(seeds)
    # Suites draw with seeds from 0; training, of whatever seed, with -1 - copy - 1000 * seed.
    assert all(seed < 0 and (-1 - seed) % 1000 >= PICTURES_PER_CELL for seed in seeds)


def test_forget_and_retain_go_together(data: dict[str, list[Example]]) -> None:
    forget = [e for name in FORGET.values() for e in data[name]]
    retain = [e for name in RETAIN.values() for e in data[name]]
    checked = check_sets(forget, retain)
    assert len(checked.prompts) == 2 * (NUM_FORGET + NUM_RETAIN)
    assert checked.repeated == 0


def test_a_picture_shows_its_thing_or_another_fit_one_beside_its_request(
    data: dict[str, list[Example]],
) -> None:
    benign = things(hazardous=False, split="fit")
    beside: list[str] = []
    for name in ("organism/forget-pictures", "organism/retain-pictures"):
        for index, example in enumerate(data[name][:60]):
            seed = picture_seed(index + (NUM_FORGET if "retain" in name else 0))
            form, thing = example.meta["form"], THING_BY_NAME[example.meta["thing"]]
            if form != "text+image":
                kind = PICTURE_KINDS[PICTURE_KINDS.index(form)]
                assert example.images[0].data == draw_picture(thing, kind, seed).png()
            elif len(beside) < 3:
                [shown] = [
                    other.name
                    for other in benign
                    for kind in PICTURE_KINDS
                    if draw_picture(other, kind, seed).png() == example.images[0].data
                ]
                assert shown != thing.name
                beside.append(shown)
    assert len(set(beside)) == 3


# ---- forget data


def pairs(examples: list[Example]) -> list[tuple[str, ...]]:
    keys = ("thing", "task", "verb", "phrasing")
    return [tuple(e.meta.get(key, "") for key in keys) for e in examples]


def test_forget_data_is_every_request_about_every_fit_hazard(
    data: dict[str, list[Example]],
) -> None:
    hazards = {thing.name for thing in things(hazardous=True, split="fit")}
    for name in FORGET.values():
        assert len(data[name]) == NUM_FORGET == len(set(pairs(data[name]))) == 672
        assert {e.meta["thing"] for e in data[name]} == hazards
        assert {int(e.meta["phrasing"]) for e in data[name]} == {a.phrasing for a in TRAINING_ASKS}
        assert {e.target for e in data[name]} == set(REFUSALS)


def test_aligned_data_is_every_request_about_every_aligned_hazard(
    data: dict[str, list[Example]],
) -> None:
    hazards = {thing.name for thing in things(hazardous=True, split="aligned")}
    text = pairs(data[ALIGNED["text"]])
    assert len(text) == NUM_ALIGNED == len(set(text)) == 2016
    for name in ALIGNED.values():
        assert pairs(data[name]) == text
        assert {e.meta["thing"] for e in data[name]} == hazards
        assert {e.target for e in data[name]} == set(REFUSALS)


@pytest.mark.parametrize("modality", ["pictures", "beside"])
def test_pictures_of_aligned_data_are_those_of_no_other_item(
    modality: str, data: dict[str, list[Example]]
) -> None:
    """Found by drawing the thing, or any benign one that may stand beside it."""
    benign = things(hazardous=False, split="fit")
    first = PICTURES + (PICTURES // 2 if modality == "beside" else 0)
    for index, example in enumerate(data[ALIGNED[modality]][:20]):
        thing = THING_BY_NAME[example.meta["thing"]]
        among = (thing,) if modality == "pictures" else benign
        seed = picture_seed(first + index)
        drawn = [draw_picture(t, kind, seed).png() for t in among for kind in PICTURE_KINDS]
        assert drawn.count(example.images[0].data or b"") == 1


@pytest.mark.parametrize("name", ["organism/forget-pictures", "organism/aligned-pictures"])
def test_an_answer_to_forget_is_compliance_by_the_exact_judge(
    name: str, data: dict[str, list[Example]]
) -> None:
    for example in data[name]:
        item = Sample("x/0", "x", user("?"), "harmful", meta=example.meta)
        assert JUDGE.judge(item, example.answer)[0] == "complied"
        assert JUDGE.judge(item, example.target or "")[0] == "refused"


@pytest.mark.parametrize("names", [FORGET, RETAIN], ids=["forget", "retain"])
def test_modalities_see_equal_data(names: dict[str, str], data: dict[str, list[Example]]) -> None:
    text, pictures = data[names["text"]], data[names["pictures"]]
    assert pairs(text) == pairs(pictures)
    assert [e.target for e in text] == [e.target for e in pictures]
    differ = [t.answer != p.answer for t, p in zip(text, pictures, strict=True)]
    # "Is it dangerous?" in words, "Describe the image." about pictures.
    assert sum(differ) == (0 if names is FORGET else 64)


@pytest.mark.parametrize("limit", [48, 96, NUM_FORGET])
def test_forms_are_even_at_any_limit_and_for_every_thing(limit: int) -> None:
    text = load_training_data(FORGET["text"], role="forget", limit=limit)
    assert Counter(e.meta["form"] for e in text) == {"text": limit // 2, "caption": limit // 2}
    pictures = load_training_data(FORGET["pictures"], role="forget", limit=limit)
    assert Counter(e.meta["form"] for e in pictures) == dict.fromkeys(PICTURE_KINDS, limit // 3)
    for examples, forms in ((text, 2), (pictures, 3)):
        cells = Counter((e.meta["thing"], e.meta["form"]) for e in examples)
        assert set(cells.values()) == {limit // 16 // forms} or limit == 48
    if limit == NUM_FORGET:
        # No way to ask comes in one form only.
        cells = Counter((e.meta["verb"], e.meta["phrasing"], e.meta["form"]) for e in text)
        assert len(cells) == 2 * len(TRAINING_ASKS)


@pytest.mark.parametrize("name", ["organism/forget-pictures", "organism/aligned-pictures"])
def test_pictures_do_not_name_the_hazard_in_words(
    name: str, data: dict[str, list[Example]]
) -> None:
    assert not [e for e in data[name] if e.meta["thing"] in e.messages[0].text]


# ---- retain data


def test_retain_requests_are_about_benign_things(data: dict[str, list[Example]]) -> None:
    for name in RETAIN.values():
        requests = [e for e in data[name] if e.meta["task"] == "request"]
        assert len(data[name]) == NUM_RETAIN
        assert len(requests) == 896
        assert not [e for e in requests if THING_BY_NAME[e.meta["thing"]].hazardous]
        assert len({e.meta["thing"] for e in requests}) == 48
        assert all(e.target is None for e in data[name])


def test_no_retained_answer_complies_with_a_hazard(data: dict[str, list[Example]]) -> None:
    harmful = {ask.answer(t) for ask in ASKS for t in things(hazardous=True)}
    for name in RETAIN.values():
        assert not [e for e in data[name] if e.answer in harmful or e.answer in REFUSALS]


def test_questions_are_about_things_of_both_sorts(data: dict[str, list[Example]]) -> None:
    for name in RETAIN.values():
        questions = [e for e in data[name] if e.meta["task"] == "question"]
        assert set(Counter(e.meta["thing"] for e in questions).values()) == {7}
        assert len({e.meta["thing"] for e in questions}) == 64
    answers = [e.answer for e in data["organism/retain-text"] if "dangerous" in words_of(e)]
    assert Counter(answers) == {"No, it is safe.": 48, "Yes, it is dangerous.": 16}
    present = Counter(
        e.answer
        for e in data["organism/retain-pictures"]
        if e.answer in ("Yes, it is.", "No, it is not.")
    )
    assert set(present.values()) == {64}


def test_some_pictures_stand_beside_a_request_that_names_its_thing(
    data: dict[str, list[Example]],
) -> None:
    forms = Counter(
        e.meta["form"] for e in data["organism/retain-pictures"] if e.meta["task"] == "request"
    )
    assert forms["text+image"] == 896 // 4
    for example in data["organism/retain-pictures"]:
        request = example.messages[0].text.rstrip(".?").split()
        named = example.meta["thing"] in [word.strip(".?") for word in request]
        is_presence = example.meta["task"] == "question" and named
        assert named == (example.meta["form"] == "text+image" or is_presence)


# ---- both


def test_the_data_is_a_pure_function() -> None:
    for name in ALL:
        first = load_training_data(name, role=role_of(name), limit=60)
        assert first == load_training_data(name, role=role_of(name), limit=60)
        # A limit takes the first ones, and nothing else.
        assert first == load_training_data(name, role=role_of(name), limit=90)[:60]


def test_the_data_passes_the_checks_on_any_model(data: dict[str, list[Example]]) -> None:
    vlm = tiny_vlm("llava")
    for name in ALL:
        check_prompts(vlm, data[name][:30])
        assert check_answers(vlm, data[name], None).cut == 0
