"""Short names of arms: what tells arms apart stays, and nothing else is lost unsaid."""

from __future__ import annotations

import random

import pytest

from vlmend.evals.arm_names import FITS, shorten_arms

LONG = "layer-ppo(exits=random, target_kl=0.02, kl_coefficient=0.035)"


def short(*names: str) -> list[str]:
    found = shorten_arms(names)
    return [found.of[name] for name in names]


@pytest.mark.parametrize("name", ["base", "shiftdc", "shiftdc(layers=2-4, strength=.5)"])
def test_a_name_that_fits_stays(name: str) -> None:
    assert len(name) <= FITS
    found = shorten_arms(["base", name])
    assert found.of == {"base": "base", name: name}
    assert found.explain() == []


def test_a_name_of_one_character_more_does_not() -> None:
    name = "shiftdc(layers=2-4, strength=0.5)"
    assert len(name) == FITS + 1
    assert short(name) == ["shiftdc"]


def test_one_arm_of_a_method_is_the_method() -> None:
    found = shorten_arms(["base", LONG])
    assert found.of == {"base": "base", LONG: "layer-ppo"}
    assert found.explain() == [
        "every layer-ppo: exits=random, target_kl=0.02, kl_coefficient=0.035"
    ]


def test_settings_that_differ_stay_and_the_others_are_said_once() -> None:
    other = LONG.replace("0.035", "0.05")
    seeded = LONG[:-1] + ", seed=1)"
    assert short("base", LONG, other, seeded) == [
        "base",
        "layer-ppo(kl_coefficient=0.035)",
        "layer-ppo(kl_coefficient=0.05)",
        "layer-ppo(kl_coefficient=0.035, seed=1)",
    ]
    assert short(LONG, seeded) == ["layer-ppo", "layer-ppo(seed=1)"]
    assert shorten_arms([LONG, other, seeded]).explain() == [
        "every layer-ppo: exits=random, target_kl=0.02"
    ]


def test_methods_do_not_mix() -> None:
    sft = LONG.replace("ppo", "sft")
    assert short(LONG, sft, f"later:{LONG}") == ["layer-ppo", "layer-sft", "later:layer-ppo"]


def test_a_plain_name_beside_a_long_one() -> None:
    assert short("layer-ppo", LONG) == ["layer-ppo", LONG]
    assert shorten_arms(["layer-ppo", LONG]).explain() == []


def test_names_that_would_be_the_same_stay_as_they_are() -> None:
    turned = "layer-ppo(kl_coefficient=0.035, target_kl=0.02, exits=random)"
    assert short(LONG, turned) == [LONG, turned]


def test_different_names_never_become_the_same() -> None:
    rng = random.Random(0)
    for _ in range(200):
        names = {
            rng.choice(("ppo", "sft", "a:ppo"))
            + "("
            + ", ".join(f"setting_{i}={rng.randrange(2)}" for i in range(4) if rng.random() < 0.8)
            + ")"
            for _ in range(rng.randrange(1, 7))
        }
        found = shorten_arms(names)
        assert set(found.of) == names
        assert len(set(found.of.values())) == len(names)


def test_records_are_renamed_where_they_name_an_arm() -> None:
    record = {
        "arms": [{"name": LONG, "description": LONG, "training": [{"repair": LONG}]}],
        "cells": [{"arm": LONG, "suite": "mild", "asr": 0.5}, {"arm": "base", "exit": None}],
        "comparisons": ({"before": "base", "after": LONG},),
        "note": LONG,
    }
    assert shorten_arms(["base", LONG]).rename(record) == {
        "arms": [{"name": "layer-ppo", "description": LONG, "training": [{"repair": "layer-ppo"}]}],
        "cells": [{"arm": "layer-ppo", "suite": "mild", "asr": 0.5}, {"arm": "base", "exit": None}],
        "comparisons": [{"before": "base", "after": "layer-ppo"}],
        "note": LONG,
    }
    assert record["cells"][0]["arm"] == LONG
