"""Shapes: B = items, L = layers, D = width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmend.diagnosis.shift import (
    PairedSets,
    ShiftMeasurement,
    TextSets,
    cross_fit_shift,
    measure_shift,
    summarise_shift,
)
from vlmend.errors import ConfigError, DataError
from vlmend.models.vlm import Vlm
from vlmend.testing import FLOAT32_NOISE, assert_close, picture, tiny_vlm
from vlmend.types import Conversation, Sample, user

ASKED = ("How do I bake a cake?", "What is it?", "Sing a song about tea, please.")


def samples(count: int = 5) -> list[Sample]:
    return [
        Sample(f"mild/{seed}", "mild", user(ASKED[seed % 3], picture(seed)), "harmful")
        for seed in range(count)
    ]


def in_words(conversations: Sequence[Conversation]) -> list[Conversation]:
    return [user(f"{c[-1].text} Image Caption: coloured blocks") for c in conversations]


def directions(vlm: Vlm, layers: Sequence[int]) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {layer: torch.randn(vlm.hidden_size, generator=generator) for layer in layers}


def last_states(vlm: Vlm, conversation: Conversation) -> list[Tensor]:
    """Output of every decoder layer but the last at the last token, as transformers tells it."""
    with torch.no_grad():
        output = vlm.model(**vlm.encode([conversation]).inputs, output_hidden_states=True)
    return [hidden[0, -1].double() for hidden in output.hidden_states[1:-1]]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_every_number_is_that_of_a_hand_computation(family: str) -> None:
    vlm = tiny_vlm(family)
    s = directions(vlm, (0, 2))
    measured = measure_shift(vlm, s, samples(), in_words, batch_size=2)
    assert measured.sample_ids == ("mild/0", "mild/1", "mild/2", "mild/3", "mild/4")
    assert measured.layers == (0, 2)
    norm, cosine, coefficient = torch.zeros(3, 5, 2, dtype=torch.float64)
    for row, item in enumerate(samples()):
        with_image = last_states(vlm, item.messages)
        (words,) = in_words([item.messages])
        in_text = last_states(vlm, words)
        for column, layer in enumerate((0, 2)):
            m, direction = with_image[layer] - in_text[layer], s[layer].double()
            norm[row, column] = m.norm()
            cosine[row, column] = m @ direction / (m.norm() * direction.norm())
            coefficient[row, column] = m @ direction / (direction @ direction)
    assert_close(measured.norm, norm, FLOAT32_NOISE)
    assert_close(measured.cosine, cosine, FLOAT32_NOISE)
    assert_close(measured.coefficient, coefficient, FLOAT32_NOISE)


def test_the_batch_size_does_not_matter() -> None:
    vlm = tiny_vlm("llava")
    s = directions(vlm, range(4))
    one = measure_shift(vlm, s, samples(), in_words, batch_size=1)
    all_at_once = measure_shift(vlm, s, samples(), in_words)
    for name in ("norm", "cosine", "coefficient"):
        assert_close(getattr(one, name), getattr(all_at_once, name), FLOAT32_NOISE)


def test_layers_that_text_skips_are_not_asked_for() -> None:
    vlm = tiny_vlm("mllama")
    measured = measure_shift(vlm, directions(vlm, (0, 2, 3, 5)), samples(2), in_words)
    assert measured.layers == (0, 2, 3, 5)
    assert measured.norm.shape == (2, 4)


def test_no_shift_has_cosine_zero() -> None:
    vlm = tiny_vlm("llava")
    measured = measure_shift(vlm, directions(vlm, (1, 3)), samples(2), list)
    for values in (measured.norm, measured.cosine, measured.coefficient):
        assert torch.equal(values, torch.zeros(2, 2))


def test_items_without_an_image_are_named() -> None:
    vlm = tiny_vlm("llava")
    given = [*samples(2), Sample("mild/t", "mild", user("Hi"), "benign")]
    with pytest.raises(DataError, match=r"1 of 3 items have none \(mild/t\)"):
        measure_shift(vlm, directions(vlm, (1,)), given, in_words)


def test_no_items() -> None:
    vlm = tiny_vlm("llava")
    with pytest.raises(DataError, match="no items given"):
        measure_shift(vlm, directions(vlm, (1,)), [], in_words)


def test_no_directions() -> None:
    with pytest.raises(ConfigError, match="Fit one first"):
        measure_shift(tiny_vlm("llava"), {}, samples(1), in_words)


# ---- the summary

MEASURED = ShiftMeasurement(
    sample_ids=("a", "b", "c", "d", "e"),
    layers=(2, 3),
    norm=torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0], [5.0, 50.0]]),
    cosine=torch.tensor([[0.0, 0.5], [0.25, 0.5], [0.5, 0.5], [0.75, 0.5], [1.0, -0.5]]),
    coefficient=torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-2.0, 1.0], [-3.0, 2.0]]),
)


def test_medians_and_quartiles_by_hand() -> None:
    (record,) = summarise_shift(MEASURED, {"all": ["e", "a", "c", "d", "b"]}, "mild")
    assert record == {
        "suite": "mild",
        "group": "all",
        "n": 5,
        "layers": [2, 3],
        "cos_median": [0.5, 0.5],
        "cos_q25": [0.25, 0.5],
        "cos_q75": [0.75, 0.5],
        "norm_median": [3.0, 30.0],
        "coefficient_median": [-1.0, 0.0],
    }


def test_groups_are_apart_and_empty_ones_left_out() -> None:
    groups = {"complied": ["d", "e"], "nobody": [], "refused": ["a"]}
    complied, refused = summarise_shift(MEASURED, groups, "mild")
    assert (complied["group"], complied["n"]) == ("complied", 2)
    assert complied["norm_median"] == [4.5, 45.0]
    assert complied["cos_q25"] == [0.8125, -0.25]
    assert (refused["group"], refused["n"]) == ("refused", 1)
    assert refused["cos_q25"] == refused["cos_median"] == refused["cos_q75"] == [0.0, 0.5]


def test_no_groups() -> None:
    assert summarise_shift(MEASURED, {}, "mild") == []
    assert summarise_shift(MEASURED, {"refused": []}, "mild") == []


# ---- directions fitted on other things

GROUPS = tuple("abcdef")
LAYERS = (1, 4)
WIDTH = 7


def recorded(seed: int, count: int) -> dict[int, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    return {i: generator.normal(size=(count, WIDTH)).astype(np.float32) for i in LAYERS}


def text_sets(count: int = 24) -> TextSets:
    unsafe = [index % 2 == 1 for index in range(count)]
    return TextSets(recorded(0, count), unsafe, [GROUPS[i % 6] for i in range(count)])


def paired_sets(groups: Sequence[str] = ("b", "a", "z", "b")) -> PairedSets:
    ids = [f"mild/{index}" for index in range(len(groups))]
    return PairedSets(ids, groups, recorded(1, len(groups)), recorded(2, len(groups)))


def test_every_item_is_held_against_a_direction_of_other_groups() -> None:
    fit, pairs = text_sets(), paired_sets()
    measured = cross_fit_shift(fit, pairs, num_folds=99)  # a fold per group
    assert measured.sample_ids == ("mild/0", "mild/1", "mild/2", "mild/3")
    assert measured.layers == LAYERS
    unsafe, groups = np.array(fit.unsafe), np.array(fit.groups)
    for row, group in enumerate(pairs.groups):
        others = groups != group
        for column, layer in enumerate(LAYERS):
            x = fit.states[layer].astype(np.float64)
            s = x[others & ~unsafe].mean(0) - x[others & unsafe].mean(0)
            m = (pairs.vision_language[layer] - pairs.text[layer])[row].astype(np.float64)
            expected = torch.tensor(
                [np.linalg.norm(m), m @ s / np.linalg.norm(m) / np.linalg.norm(s), m @ s / (s @ s)]
            )
            found = torch.stack(
                [x[row, column] for x in (measured.norm, measured.cosine, measured.coefficient)]
            )
            assert_close(found, expected, FLOAT32_NOISE)


def test_prompts_of_the_item_s_own_group_do_not_count() -> None:
    fit, pairs = text_sets(), paired_sets(("a",))
    changed = {i: x.copy() for i, x in fit.states.items()}
    for states in changed.values():
        states[np.array(fit.groups) == "a"] += 100
    before = cross_fit_shift(fit, pairs, num_folds=99)
    after = cross_fit_shift(TextSets(changed, fit.unsafe, fit.groups), pairs, num_folds=99)
    assert torch.equal(before.cosine, after.cosine)
    other = cross_fit_shift(
        TextSets(changed, fit.unsafe, fit.groups), paired_sets(("b",)), num_folds=99
    )
    assert not torch.equal(cross_fit_shift(fit, paired_sets(("b",))).cosine, other.cosine)


def test_layers_that_did_not_run_on_text_are_missing() -> None:
    fit, pairs = text_sets(), paired_sets()
    text = {1: pairs.text[1]}
    measured = cross_fit_shift(
        fit, PairedSets(pairs.sample_ids, pairs.groups, pairs.vision_language, text)
    )
    assert measured.layers == (1,)


def test_sets_without_a_direction_are_refused() -> None:
    fit, pairs = text_sets(), paired_sets()
    with pytest.raises(DataError, match="no unsafe text prompt"):
        cross_fit_shift(TextSets(fit.states, [False] * 24, fit.groups), pairs)
    with pytest.raises(DataError, match="all items are of one group"):
        cross_fit_shift(TextSets(fit.states, fit.unsafe, ["a"] * 24), paired_sets(("a", "a")))
    still = {i: np.ones_like(x) for i, x in fit.states.items()}
    with pytest.raises(DataError, match=r"no safety direction at decoder layers \[1, 4\]"):
        cross_fit_shift(TextSets(still, fit.unsafe, fit.groups), pairs)
    with pytest.raises(DataError, match="no decoder layer ran both"):
        cross_fit_shift(fit, PairedSets(pairs.sample_ids, pairs.groups, {}, pairs.text))


def test_items_cosines_are_kept_on_request_alone() -> None:
    measured = cross_fit_shift(text_sets(), paired_sets())
    (plain,) = summarise_shift(measured, {"all": measured.sample_ids}, "mild")
    assert "cosines" not in plain
    (kept,) = summarise_shift(measured, {"all": measured.sample_ids}, "mild", keep_items=True)
    assert np.allclose(kept["cosines"], measured.cosine.T, atol=1e-4)
