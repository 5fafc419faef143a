from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
from unlearning_data import forget_examples, retain_examples

from vlmend.errors import ConfigError
from vlmend.repairs.unlearning.settings import OBJECTIVES, UnlearningSettings, name_unlearning
from vlmend.training.data_facts import describe_data, name_data


def test_the_default_is_the_published_objective_with_a_heavier_divergence() -> None:
    recipe = UnlearningSettings().recipe
    assert (recipe.forget, recipe.retain) == ("ascent", "kl")
    assert (recipe.w_bad, recipe.w_help, recipe.w_norm) == (0.5, 1.0, 5.0)


def test_every_objective_is_the_difference_to_its_parent() -> None:
    terms = {
        name: (bool(r.w_bad) and r.forget, bool(r.w_help), bool(r.w_norm) and r.retain)
        for name, r in OBJECTIVES.items()
    }
    assert terms == {
        "unlearn": ("ascent", True, "kl"),
        "ga": ("ascent", False, False),
        "grad-diff": ("ascent", False, "nll"),
        "npo": ("npo", False, "nll"),
        "simnpo": ("simnpo", False, "nll"),
        "rmu": ("misdirect", False, "preserve"),
        "sft": (False, True, "nll"),
    }


def test_given_weights_and_terms_replace_the_objectives_own() -> None:
    recipe = UnlearningSettings("npo", w_help=0.25, w_norm=2.0, retain_term="kl").recipe
    assert recipe[:5] == ("npo", "kl", 1.0, 0.25, 2.0)


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"objective='forget'.*unlearn, ga") as error:
        UnlearningSettings(
            "forget",
            w_bad=-1,
            ceiling=0,
            runaway_limit=0,
            match="none",  # pyright: ignore[reportArgumentType]
            adapter="lor",  # pyright: ignore[reportArgumentType]
            rank=0,
            layers=(),
            modules=(),
            max_answer_tokens=0,
        )
    wrong = "w_bad=-1 ceiling=0 runaway_limit=0 match= adapter= rank=0 layers= modules= max_answer"
    assert all(word in str(error.value) for word in wrong.split())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "sft", "w_bad": 1.0}, "w_bad=1.0 with sft, which has no forget term"),
        ({"objective": "ga", "w_norm": 1.0}, "w_norm=1.0 with ga, which has no retain term"),
        ({"objective": "rmu", "retain_term": "kl"}, "retain_term with rmu"),
        ({"objective": "ga", "retain_term": "kl"}, "retain_term=kl with a weight of 0"),
        ({"retain_term": "nll", "w_norm": 0.0}, "retain_term=nll with a weight of 0"),
        ({"w_bad": 0.0}, "w_bad=0 with unlearn"),
        ({"objective": "sft", "w_help": 0.0}, "nothing is trained towards"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        UnlearningSettings(**settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "name",
    ["w_bad", "w_norm", "ceiling", "runaway_limit", "stop_match_nll", "rmu_coefficient", "alpha"],
)
def test_numbers_that_json_cannot_hold_are_refused_at_once(name: str) -> None:
    for value in (math.inf, math.nan):
        with pytest.raises(ConfigError, match=f"{name}={value}"):
            UnlearningSettings(**{name: value})  # pyright: ignore[reportArgumentType]


def test_ga_can_be_given_a_retain_term() -> None:
    recipe = UnlearningSettings("ga", retain_term="nll", w_norm=1.0).recipe
    assert recipe[:5] == OBJECTIVES["grad-diff"][:5]


def test_settings_survive_json() -> None:
    settings = UnlearningSettings("npo", layers=(1, 2), modules=("q_proj",), beta=0.5)
    record = json.loads(json.dumps(settings.record()))
    assert UnlearningSettings.from_record(record) == settings
    with pytest.raises(ConfigError, match="unknown unlearning settings: rnak"):
        UnlearningSettings.from_record({**record, "rnak": 8})


def test_papers_have_their_own_beta() -> None:
    assert UnlearningSettings("npo").npo_beta == 0.1
    assert UnlearningSettings("simnpo").npo_beta == 2.5
    assert UnlearningSettings("simnpo", beta=1.0).npo_beta == 1.0


def test_rmu_trains_its_layer_and_two_below() -> None:
    assert UnlearningSettings("rmu").trained_layers(32) == (6, 7, 8)
    assert UnlearningSettings("rmu", rmu_layer=1).trained_layers(32) == (0, 1)
    assert UnlearningSettings("rmu", layers=(3, 1, 1)).trained_layers(32) == (1, 3)
    assert UnlearningSettings().trained_layers(4) == (0, 1, 2, 3)
    # Layers that only images reach are no place for text.
    assert UnlearningSettings("rmu").steered_layer(8, {2, 3}) == 4


def test_settings_that_an_objective_never_reads() -> None:
    assert UnlearningSettings().unused() == {
        *("beta", "gamma", "rmu_layer", "rmu_coefficient"),
    }
    assert UnlearningSettings("sft", adapter="full").unused() >= {"ceiling", "rank", "modules"}
    assert "match" in UnlearningSettings("ga").unused()
    assert "match" not in UnlearningSettings("ga", w_help=1.0).unused()
    # Terms without a weight are never computed, so no limit on them is read.
    assert "stop_match_nll" in UnlearningSettings(w_help=0.0).unused()
    assert "stop_match_nll" in UnlearningSettings("ga").unused()
    assert "stop_match_nll" not in UnlearningSettings("ga", w_help=1.0).unused()
    # rmu has a measure of its own; without a retain term and a ceiling nothing would tell.
    watched = {n for n in OBJECTIVES if "runaway_limit" not in UnlearningSettings(n).unused()}
    assert watched == set(OBJECTIVES) - {"rmu"}
    assert "runaway_limit" in UnlearningSettings("npo", w_norm=0.0).unused()
    names = set(asdict(UnlearningSettings()))
    assert all(UnlearningSettings(name).unused() <= names for name in OBJECTIVES)


def test_data_that_no_term_reads_is_refused() -> None:
    for name in OBJECTIVES:
        if name != "ga":
            UnlearningSettings(name).refuse_unread("retain", "--retain a")
    UnlearningSettings("ga", retain_term="nll", w_norm=1.0).refuse_unread("retain", "--retain a")
    for settings in (UnlearningSettings("ga"), UnlearningSettings("npo", w_norm=0.0)):
        settings.refuse_unread("forget", "--forget a")
        words = f"--retain a would be ignored: objective '{settings.objective}' with w_norm=0"
        with pytest.raises(ConfigError, match=words) as error:
            settings.refuse_unread("retain", "--retain a")
        assert "has one: unlearn, grad-diff, npo, simnpo, rmu, sft" in str(error.value)


def test_names_tell_what_makes_an_arm_another_one() -> None:
    assert name_unlearning(UnlearningSettings(), "text") == "unlearn(text)"
    assert name_unlearning(UnlearningSettings("sft"), "pictures", seed=2) == "sft(pictures, seed=2)"
    settings = UnlearningSettings(rank=16, modules=("mlp", "q_proj"), layers=(0, 1, 3), beta=1.0)
    assert name_unlearning(settings, "mixed") == (
        "unlearn(mixed, rank=16, layers=0-1,3, modules=mlp+q_proj)"
    )


# ---- the data


def test_the_kind_of_data_is_in_the_name() -> None:
    def named(forget: str, retain: str) -> str:
        return name_data(
            {"forget": forget_examples(forget), "retain": retain_examples(retain)}  # pyright: ignore[reportArgumentType]
        )

    assert named("text", "text") == "text"
    assert named("pictures", "pictures") == "pictures"
    assert named("mixed", "mixed") == "mixed"
    assert named("text", "mixed") == "text, retain=mixed"


def test_the_data_is_described_and_hashed() -> None:
    forget = forget_examples("mixed")
    facts = describe_data({"forget": forget})["forget"]
    assert (facts["count"], facts["with_images"], facts["sources"]) == (5, 2, {"forget": 5})
    hashes = {
        describe_data({"forget": examples})["forget"]["sha256"]
        for examples in (
            forget,
            forget[::-1],
            forget[:-1],
            forget_examples("text"),
            forget_examples("mixed"),
        )
    }
    assert len(hashes) == 4
