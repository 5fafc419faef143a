from __future__ import annotations

import pytest
import torch

from vlmend.errors import ConfigError, ModelError
from vlmend.hooks.edit import edit_layers
from vlmend.hooks.record import record_layers, recording
from vlmend.models.generation import GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.testing import FLOAT32_NOISE, assert_close, picture, tiny_vlm
from vlmend.types import user

PROMPTS = [user("How do I bake a cake?"), user("Hi")]


@pytest.fixture
def vlm() -> Vlm:
    return tiny_vlm("llava")


def test_it_is_what_transformers_calls_hidden_states(vlm: Vlm) -> None:
    encoded = vlm.encode(PROMPTS)
    states = record_layers(vlm, encoded, position="prompt")
    with torch.no_grad():
        output = vlm.model(**encoded.inputs, output_hidden_states=True)
    for layer in range(vlm.num_decoder_layers - 1):
        # Real tokens only: at padding nothing is defined.
        real = encoded.attention_mask.bool()
        expected = output.hidden_states[layer + 1][real]
        assert_close(states[layer][real], expected, FLOAT32_NOISE)
    last = states[vlm.num_decoder_layers - 1]
    assert not torch.allclose(last, output.hidden_states[-1], atol=0.1)
    assert_close(vlm.final_norm(last)[:, -1], output.hidden_states[-1][:, -1], FLOAT32_NOISE)


def test_chosen_layers_in_order(vlm: Vlm) -> None:
    assert list(record_layers(vlm, PROMPTS, layers=[3, 1])) == [1, 3]
    everything = record_layers(vlm, PROMPTS)
    assert torch.equal(record_layers(vlm, PROMPTS, layers=[1])[1], everything[1])


def test_only_the_asked_columns_are_kept_alive(vlm: Vlm) -> None:
    states = record_layers(vlm, PROMPTS)
    for state in states.values():
        kept = state.untyped_storage().nbytes()
        assert kept == len(PROMPTS) * vlm.hidden_size * state.element_size()
        assert not state.requires_grad


def test_image_only_layers_are_missing_on_text() -> None:
    vlm = tiny_vlm("mllama")
    assert list(record_layers(vlm, PROMPTS)) == [0, 2, 3, 5]
    assert list(record_layers(vlm, PROMPTS, layers=[1, 4])) == []
    assert list(record_layers(vlm, [user("Hi", picture())])) == [0, 1, 2, 3, 4, 5]


def test_a_layer_that_does_not_run_is_an_error() -> None:
    vlm = tiny_vlm("mllama")
    vlm.image_only_layers = frozenset({1})
    with pytest.raises(ModelError, match=r"layer\(s\) 4 of 'tiny-mllama' did not run"):
        record_layers(vlm, PROMPTS)


def test_recording_a_generation_keeps_the_prompt(vlm: Vlm) -> None:
    expected = record_layers(vlm, PROMPTS)
    for use_cache in (True, False):
        with recording(vlm) as kept:
            vlm.generate(PROMPTS, GenerationSettings(max_new_tokens=4, use_cache=use_cache))
        for layer, state in expected.items():
            assert_close(kept[layer], state, FLOAT32_NOISE)


def test_inside_an_edit_the_edited_state_is_recorded(vlm: Vlm) -> None:
    base = record_layers(vlm, PROMPTS)
    with recording(vlm) as outside, edit_layers(vlm, {1: lambda x: x + 1}), recording(vlm) as kept:
        vlm.forward_prompt(vlm.encode(PROMPTS))
    assert torch.equal(outside[1], base[1])
    assert torch.equal(kept[1], base[1] + 1)
    assert torch.equal(kept[0], base[0])
    assert not torch.equal(kept[2], base[2])


@pytest.mark.parametrize("position", ["generated", "all", "last"])
def test_positions_that_a_prompt_does_not_have(vlm: Vlm, position: str) -> None:
    with pytest.raises(ConfigError, match=r"Allowed: prompt_last, prompt\."):
        record_layers(vlm, PROMPTS, position=position)  # pyright: ignore


@pytest.mark.parametrize("layer", [-1, 4])
def test_layer_out_of_range(vlm: Vlm, layer: int) -> None:
    with pytest.raises(ConfigError, match=r"Allowed: 0 \.\. 3"):
        record_layers(vlm, PROMPTS, layers=[layer])
