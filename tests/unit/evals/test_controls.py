from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vlmend.errors import ConfigError, DataError
from vlmend.evals.controls import CONTROL_KINDS, GREY, replace_images, strip_images
from vlmend.evals.run import describe_prompt
from vlmend.images import image_sha256, open_image
from vlmend.suites.registry import load_suite
from vlmend.testing import picture, tiny_vlm
from vlmend.types import Message, Sample, sha256_json, user


def item(index: int, suite: str = "mild", **meta: str) -> Sample:
    size = (40 + index, 32)
    messages = user(f"What is on plate {index}?", picture(index, size), system="Be brief.")
    return Sample(f"{suite}/{index}", suite, messages, "benign", reference="cake", meta=meta)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.mark.parametrize("kind", CONTROL_KINDS)
def test_only_the_picture_changes(kind: str) -> None:
    given = [item(i, thing=f"t{i}") for i in range(4)]
    for sample, twin in zip(given, replace_images(given, kind), strict=True):  # pyright: ignore
        assert twin.id == f"{sample.id}@{kind}"
        assert twin.meta.items() >= {**sample.meta, "control": kind}.items()
        assert (twin.suite, twin.label, twin.reference) == ("mild", "benign", "cake")
        assert [m.role for m in twin.messages] == ["system", "user"]
        assert [m.text for m in twin.messages] == [m.text for m in sample.messages]
        assert len(twin.images) == (0 if kind == "none" else 1)
        if twin.images:
            assert image_sha256(twin.images[0]) != image_sha256(sample.images[0])


def test_blank_is_grey_and_of_the_same_size() -> None:
    (twin,) = replace_images([item(5)], "blank")
    drawn = open_image(twin.images[0])
    assert drawn.size == (45, 32)
    assert drawn.getcolors() == [(45 * 32, GREY)]


def test_noise_is_of_the_same_size_and_even_over_all_values() -> None:
    one, other = replace_images([item(5), item(6)], "noise")
    drawn = pixels(open_image(one.images[0]))
    assert drawn.shape == (32, 45, 3)
    assert (drawn.min(), drawn.max()) == (0, 255)
    # Uniform on 0..255: mean 127.5, standard deviation 73.9; 4320 values, so +-1.1.
    assert abs(drawn.mean() - 127.5) < 6
    assert abs(drawn.std() - 73.9) < 4
    assert not np.array_equal(drawn[:, :40], pixels(open_image(other.images[0]))[:, :40])


def test_noise_is_the_same_in_another_process() -> None:
    """Python salts `hash` per process; a seed from it would draw another picture every run."""
    code = (
        "from vlmend.evals.controls import replace_images;"
        "from vlmend.images import image_sha256;"
        "from vlmend.testing.pictures import picture;"
        "from vlmend.types import Sample, user;"
        "s = Sample('mild/1', 'mild', user('What is it?', picture(1)), 'benign');"
        "print(image_sha256(replace_images([s], 'noise')[0].images[0]))"
    )
    here = Sample("mild/1", "mild", user("What is it?", picture(1)), "benign")
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == image_sha256(replace_images([here], "noise")[0].images[0])


def test_every_picture_of_a_conversation_is_replaced() -> None:
    turns = (
        Message("user", ("Look.", picture(0, (10, 20)))),
        Message("assistant", ("Tea.",)),
        Message("user", (picture(1, (30, 40)), "And this?", picture(2, (50, 60)))),
    )
    sample = Sample("mild/0", "mild", turns, "benign")
    (noise,) = replace_images([sample], "noise")
    sizes = [open_image(image).size for image in noise.images]
    assert sizes == [(10, 20), (30, 40), (50, 60)]
    assert isinstance(noise.messages[0].content[0], str)
    assert isinstance(noise.messages[2].content[1], str)
    corners = {pixels(open_image(i))[:10, :10].tobytes() for i in noise.images}
    assert len(corners) == 3, "one seed per picture"


def test_strip_images_keeps_every_turn() -> None:
    given = user("What is it?", picture(0), system="Be brief.")
    assert strip_images(given) == user("What is it?", system="Be brief.")


def test_strip_images_joins_what_stands_around_a_picture_and_nothing_else() -> None:
    given = (
        Message("system", ("Be", "brief.")),
        Message("user", (picture(0), "Look", picture(1), "here.")),
        Message("user", (picture(2),)),
    )
    assert strip_images(given) == (
        Message("system", ("Be", "brief.")),
        Message("user", ("Look here.",)),
        Message("user", ("",)),
    )


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_strip_images_leaves_the_hash_of_one_text_as_it_was(system: str | None) -> None:
    for given in (user("What?", picture(0), picture(1), system=system), user("Hi", system=system)):
        only_texts = tuple(
            Message(turn.role, tuple(p for p in turn.content if isinstance(p, str)))
            for turn in given
        )
        stripped = strip_images(given)
        assert sha256_json(describe_prompt(stripped)) == sha256_json(describe_prompt(only_texts))


# ---- unrelated pictures


def test_unrelated_pictures_are_of_another_thing_of_the_same_suite() -> None:
    given = [
        *(item(i, thing="cup" if i < 4 else "cake") for i in range(6)),
        *(item(i, suite="other", thing=f"x{i}") for i in range(10, 13)),
    ]
    by_id = {sample.id: sample for sample in given}
    for sample, twin in zip(given, replace_images(given, "unrelated"), strict=True):
        source = by_id[twin.meta["control_source"]]
        assert source.suite == sample.suite
        assert source.meta["thing"] != sample.meta["thing"]
        assert twin.images == source.images
        assert twin.meta["thing"] == sample.meta["thing"]


def test_unrelated_pictures_are_of_another_group() -> None:
    """Two pictures of one request are not unrelated; two requests of one category are."""
    given = [
        Sample(f"m/{name}", "m", user("What?", picture(i)), "harmful", meta={"category": "a"})
        for i, name in enumerate(("1-SD", "2-SD", "1-TYPO"))
    ]
    twins = replace_images(given, "unrelated")
    assert [t.meta["control_source"] for t in twins][::2] == ["m/2-SD", "m/2-SD"]
    shown = [
        replace(s, meta={"instruction": "Bake IT." if i % 2 else "Bake it."})
        for i, s in enumerate(given)
    ]
    with pytest.raises(DataError, match="about the same thing"):
        replace_images(shown, "unrelated")


def test_the_same_picture_under_another_name_is_not_unrelated() -> None:
    def shared(index: int, seed: int) -> Sample:
        return Sample(f"m/{index}", "m", user(f"Say {index}.", picture(seed)), "harmful")

    twins = replace_images([shared(0, 0), shared(1, 1), shared(2, 0), shared(3, 0)], "unrelated")
    assert [twin.meta["control_source"] for twin in twins] == ["m/1", "m/3", "m/1", "m/1"]


def test_no_unrelated_picture_to_be_had() -> None:
    with pytest.raises(DataError, match=r"no unrelated picture for 'mild/0': .* 2 given items"):
        replace_images([item(0, thing="cup"), item(1, thing="cup")], "unrelated")


def test_donors_with_fewer_pictures_are_repeated() -> None:
    two = Sample("m/0", "m", user("Compare.", picture(0), picture(1)), "benign")
    one = Sample("m/1", "m", user("Look.", picture(2)), "benign")
    twin, _ = replace_images([two, one], "unrelated")
    assert twin.images == (one.images[0], one.images[0])


def test_the_organisms_pictures_go_to_other_things() -> None:
    given = load_suite("organism/vqa", 24)
    by_id = {sample.id: sample for sample in given}
    for twin in replace_images(given, "unrelated"):
        assert by_id[twin.meta["control_source"]].meta["thing"] != twin.meta["thing"]


# ---- refusals


def test_items_without_a_picture_are_named() -> None:
    given = [item(0), Sample("mild/t", "mild", user("Hi"), "benign")]
    with pytest.raises(DataError, match=r"'blank' control .* 1 of 2 items have none \(mild/t\)"):
        replace_images(given, "blank")


def test_an_unknown_kind() -> None:
    with pytest.raises(ConfigError, match=r"unknown control 'black'\. Allowed: blank, noise"):
        replace_images([item(0)], "black")  # pyright: ignore[reportArgumentType]


def test_nothing_in_nothing_out() -> None:
    for kind in CONTROL_KINDS:
        assert replace_images([], kind) == []


def test_a_model_takes_the_twins() -> None:
    vlm = tiny_vlm("qwen2_5_vl")
    given = [item(i, thing=f"t{i}") for i in range(2)]
    for kind in CONTROL_KINDS:
        assert vlm.encode([t.messages for t in replace_images(given, kind)]).batch_size == 2
