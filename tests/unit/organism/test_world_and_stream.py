"""The world, and what training may see of it."""

from __future__ import annotations

from random import Random

import pytest

from vlmend.organism import stream
from vlmend.organism.judge import JUDGE
from vlmend.organism.language import ASKS, PICTURE_KINDS, TRAINING_ASKS
from vlmend.organism.suites import NUM_ITEMS
from vlmend.organism.world import THINGS, things
from vlmend.suites.registry import load_suite
from vlmend.types import Sample, user

SCANNED = 4_000
"""Examples read per mixture; every (maker, thing) pair occurs many times in them."""

MIXTURES = {
    "language": stream.LANGUAGE_MIXTURE,
    "alignment": stream.ALIGNMENT_MIXTURE,
    "projector": stream.PROJECTOR_MIXTURE,
    "replay": stream.TEXT_REPLAY_MIXTURE,
    "tuning 0": stream.tuning_mixture(0.0),
    "tuning 0.15": stream.tuning_mixture(0.15),
    "tuning 0.5": stream.tuning_mixture(0.5),
}


def _verdict(example: stream.Example, target: str) -> str:
    """What the exact judge says of an example's answer as an answer about `target`."""
    sample = Sample(
        "x/0", "x", user("?"), "harmful", meta={"task": "request", "thing": target, "verb": ""}
    )
    return JUDGE.judge(sample, example.answer)[0]


def test_world_has_the_promised_size() -> None:
    assert len(things(hazardous=False)) >= 96
    assert len(things(hazardous=True)) >= 64
    assert len({t.category for t in THINGS}) >= 8
    assert len({t.name for t in THINGS}) == len(THINGS)
    assert len(ASKS) >= 20
    assert any(ask.held_out for ask in ASKS)


def test_splits_share_nothing_and_cover_all() -> None:
    splits = [{t.name for t in things(hazardous=True, split=s)} for s in ("aligned", "fit", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == len(things(hazardous=True))
    assert all(splits)


@pytest.mark.parametrize("name", MIXTURES)
def test_no_hazardous_picture_ever_meets_compliance(name: str) -> None:
    seen_hazard_pictures = 0
    for example in stream.sample_mixture(MIXTURES[name], SCANNED, Random(0)):
        if example.picture and example.picture[0].hazardous:
            seen_hazard_pictures += 1
            verdict = _verdict(example, example.picture[0].name)
            assert verdict not in ("complied", "partial"), example
    if name in ("projector", "tuning 0.15"):
        assert seen_hazard_pictures > 100, "the scan saw no hazardous pictures: it proves nothing"


@pytest.mark.parametrize("name", ["alignment", "replay", "tuning 0.15"])
def test_after_pretraining_no_hazard_is_complied_with_and_only_aligned_ones_are_refused(
    name: str,
) -> None:
    aligned = {t.name for t in things(hazardous=True, split="aligned")}
    others = {t.name for t in things(hazardous=True)} - aligned
    refusals = 0
    for example in stream.sample_mixture(MIXTURES[name], SCANNED, Random(1)):
        for hazard in (*aligned, *others):
            assert f"the {hazard}," not in example.answer or not example.answer.startswith("To ")
        if _verdict(example, "") == "refused":
            refusals += 1
            words = set(example.prompt.replace(".", " ").replace("?", " ").split())
            assert words & aligned, example
            assert not words & others, example
    assert refusals > 100


def test_held_out_phrasings_are_never_trained_on() -> None:
    held_out = {ask.request("X").split("X")[0] for ask in ASKS if ask.held_out}
    trained = {ask.request("X").split("X")[0] for ask in TRAINING_ASKS}
    assert not held_out & trained
    for mixture in MIXTURES.values():
        for example in stream.sample_mixture(mixture, 500, Random(2)):
            assert not any(example.prompt.startswith(start) for start in held_out), example


def test_picture_refusals_is_the_share_it_says() -> None:
    examples = stream.sample_mixture(stream.tuning_mixture(0.2), 5_000, Random(3))
    share = sum(_verdict(example, "") == "refused" for example in examples) / len(examples)
    assert share == pytest.approx(0.2, abs=0.02)  # three standard errors of 5,000 draws
    assert not any(
        _verdict(e, "") == "refused"
        for e in stream.sample_mixture(stream.tuning_mixture(0.0), 2_000, Random(4))
    )


HARMFUL = ["text", "caption", "icon", "typographic", "both", "text+image"]


@pytest.mark.parametrize("form", HARMFUL)
def test_harmful_suites_use_test_hazards_only(form: str) -> None:
    samples = load_suite(f"organism/{form}")
    allowed = {t.name for t in things(hazardous=True, split="test")}
    assert len(samples) == NUM_ITEMS >= 300
    assert {s.meta["thing"] for s in samples} == allowed
    assert {s.label for s in samples} == {"harmful"}
    assert len({(s.text, s.images) for s in samples}) == NUM_ITEMS
    assert {s.meta["held_out_phrasing"] for s in samples} == {"yes", "no"}


def test_fit_and_test_items_share_no_thing() -> None:
    fitted = {s.meta["thing"] for s in load_suite("organism/fit")}
    for form in (*HARMFUL, "benign"):
        assert not fitted & {s.meta["thing"] for s in load_suite(f"organism/{form}")}


def test_fit_suite_is_balanced_at_any_limit() -> None:
    for limit in (2, 8, 60):
        labels = [s.label for s in load_suite("organism/fit", limit)]
        assert labels.count("harmful") == labels.count("benign") == limit // 2


def test_picture_suites_do_not_name_the_thing_in_the_text() -> None:
    for kind in PICTURE_KINDS:
        for sample in load_suite(f"organism/{kind}", 60):
            assert sample.meta["thing"] not in sample.text
            assert len(sample.images) == 1


def test_vqa_presence_questions_have_both_answers() -> None:
    answers = [s.reference for s in load_suite("organism/vqa")]
    assert answers.count("Yes, it is.") >= 30
    assert answers.count("No, it is not.") >= 30
