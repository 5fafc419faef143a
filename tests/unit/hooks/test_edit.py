from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vlmend.errors import ConfigError, ModelError
from vlmend.hooks.edit import edit_layers
from vlmend.hooks.positions import POSITIONS, Position
from vlmend.hooks.record import record_layers
from vlmend.models.generation import GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.testing import FLOAT32_NOISE, assert_close, picture, tiny_vlm
from vlmend.types import user

PROMPTS = [user("How do I bake a cake?"), user("Hi")]
STEPS = 4


@pytest.fixture
def vlm() -> Vlm:
    return tiny_vlm("llava")


def shift(states: Tensor) -> Tensor:
    return states + 1.0


def settings(use_cache: bool = True) -> GenerationSettings:
    return GenerationSettings(max_new_tokens=STEPS, use_cache=use_cache)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_report_counts_columns(vlm: Vlm, position: Position, use_cache: bool) -> None:
    encoded = vlm.encode(PROMPTS)
    with edit_layers(vlm, {1: shift, 3: shift}, position) as report:
        steps = vlm.generate_steps(encoded, settings(use_cache)).logits.shape[1]
    assert steps == STEPS
    prompt = encoded.columns
    cached = {
        "prompt_last": (1, 1),
        "prompt": (prompt, 1),
        "generated": (STEPS - 1, STEPS - 1),
        "all": (prompt + STEPS - 1, STEPS),
    }
    uncached = {
        "prompt_last": (STEPS, STEPS),
        "prompt": (prompt * STEPS, STEPS),
        "generated": (1 + 2 + 3, STEPS - 1),
        "all": (prompt * STEPS + 1 + 2 + 3, STEPS),
    }
    columns, calls = (cached if use_cache else uncached)[position]
    assert report.columns == {1: columns, 3: columns}
    assert report.calls == {1: calls, 3: calls}
    report.require_all_edited()


def test_the_edit_touches_its_columns_alone(vlm: Vlm) -> None:
    encoded = vlm.encode(PROMPTS)
    base = record_layers(vlm, encoded, position="prompt")
    with edit_layers(vlm, {1: shift}):
        states = record_layers(vlm, encoded, position="prompt")
    assert torch.equal(states[1][:, :-1], base[1][:, :-1])
    assert torch.equal(states[1][:, -1], base[1][:, -1] + 1)
    # Earlier columns cannot see the last one.
    assert torch.equal(states[3][:, :-1], base[3][:, :-1])
    assert not torch.equal(states[3][:, -1], base[3][:, -1])


def test_rows_are_the_batch_in_order(vlm: Vlm) -> None:
    encoded = vlm.encode(PROMPTS)
    per_row = torch.tensor([0.0, 2.0])[:, None, None]
    base = record_layers(vlm, encoded)
    with edit_layers(vlm, {2: lambda x: x + per_row}):
        states = record_layers(vlm, encoded)
    assert torch.equal(states[2][0], base[2][0])
    assert torch.equal(states[2][1], base[2][1] + 2)


def test_the_function_gets_the_shape_it_was_promised(vlm: Vlm) -> None:
    seen: list[tuple[int, ...]] = []

    def look(states: Tensor) -> Tensor:
        seen.append(tuple(states.shape))
        return states

    encoded = vlm.encode(PROMPTS)
    with edit_layers(vlm, {0: look}, "prompt"):
        vlm.forward_prompt(encoded)
    with edit_layers(vlm, {0: look}):
        vlm.forward_prompt(encoded)
    assert seen == [(2, encoded.columns, vlm.hidden_size), (2, 1, vlm.hidden_size)]


def test_a_function_that_works_in_place_harms_nothing(vlm: Vlm) -> None:
    encoded = vlm.encode(PROMPTS)
    with edit_layers(vlm, {1: shift}):
        expected = vlm.forward_prompt(encoded)
    outputs: list[Tensor] = []
    handle = vlm.decoder_layers[1].register_forward_hook(lambda *args: outputs.append(args[-1]))
    with edit_layers(vlm, {1: lambda x: x.add_(1.0)}):
        assert torch.equal(vlm.forward_prompt(encoded), expected)
    handle.remove()
    assert torch.equal(outputs[0][:, -1], record_layers(vlm, encoded)[1])


def test_another_dtype_is_cast_back() -> None:
    vlm = tiny_vlm("llava", dtype=torch.bfloat16)
    base = record_layers(vlm, PROMPTS)
    with edit_layers(vlm, {1: lambda x: x.float() * 2}):
        states = record_layers(vlm, PROMPTS)
    assert torch.equal(states[1], base[1] * 2)
    assert states[1].dtype == torch.bfloat16


def test_contexts_nest_outer_first(vlm: Vlm) -> None:
    base = record_layers(vlm, PROMPTS)
    with edit_layers(vlm, {1: lambda x: x + 1}), edit_layers(vlm, {1: lambda x: x * 2}):
        states = record_layers(vlm, PROMPTS)
    assert torch.equal(states[1], (base[1] + 1) * 2)


def test_an_edit_carries_gradients(vlm: Vlm) -> None:
    push = torch.zeros(vlm.hidden_size, requires_grad=True)
    encoded = vlm.encode(PROMPTS)
    with edit_layers(vlm, {1: lambda x: x + push}, prompt_columns=encoded.columns) as report:
        vlm.model(**encoded.inputs).logits[:, -1].sum().backward()
    assert report.columns == {1: 1}
    assert push.grad is not None
    assert bool(push.grad.abs().sum() > 0)


def test_direct_passes_must_say_where_the_prompt_ends(vlm: Vlm) -> None:
    encoded = vlm.encode(PROMPTS)
    with edit_layers(vlm, {1: shift}), pytest.raises(ConfigError, match="where the prompt ends"):
        vlm.model(**encoded.inputs)
    with edit_layers(vlm, {1: shift}, "all") as report:
        vlm.model(**encoded.inputs)
    assert report.columns == {1: encoded.columns}


def test_a_step_whose_cache_is_not_found_is_not_taken_for_a_prompt(
    vlm: Vlm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a release of transformers may hide it."""
    monkeypatch.setattr("vlmend.hooks.chunks.past_of", lambda _given: 0)
    with edit_layers(vlm, {1: shift}, "all"), pytest.raises(ModelError, match="has no cache"):
        vlm.generate(PROMPTS, settings())


def test_prompt_columns_may_be_given_for_a_teacher_forced_pass(vlm: Vlm) -> None:
    """Prompt and answer in one pass: "prompt_last" is inside the chunk."""
    encoded = vlm.encode(PROMPTS)
    expected = [encoded.columns - 3]
    seen: list[int] = []
    ramp = torch.arange(encoded.columns, dtype=torch.float32)[None, :, None]

    def mark(_module: Any, _args: Any, output: Tensor) -> Tensor:
        return output * 0 + ramp

    handle = vlm.decoder_layers[1].register_forward_hook(mark)

    def read(states: Tensor) -> Tensor:
        seen.append(int(states[0, 0, 0]))
        return states

    with torch.no_grad(), edit_layers(vlm, {1: read}, prompt_columns=encoded.columns - 2):
        vlm.model(**encoded.inputs)
    handle.remove()
    assert seen == expected


def test_wrong_shape(vlm: Vlm) -> None:
    with (
        edit_layers(vlm, {2: lambda x: x[:1]}),
        pytest.raises(ConfigError, match=r"layer 2 returned shape \(1, 1, 32\) for \(2, 1, 32\)"),
    ):
        vlm.generate(PROMPTS)


def test_an_edit_that_does_nothing_is_reported() -> None:
    vlm = tiny_vlm("mllama")
    with edit_layers(vlm, {1: shift, 2: shift}) as report:
        vlm.generate(PROMPTS, settings())
    assert report.columns == {1: 0, 2: 1}
    with pytest.raises(ModelError, match=r"did nothing at decoder layer\(s\) 1:"):
        report.require_all_edited()
    with edit_layers(vlm, {1: shift, 2: shift}) as report:
        vlm.generate([user("Hi", picture())], settings())
    report.require_all_edited()


@pytest.mark.parametrize("layer", [-1, 4, 40])
def test_layer_out_of_range(vlm: Vlm, layer: int) -> None:
    with (
        pytest.raises(ConfigError, match=rf"layer\(s\) {layer} out of range. Allowed: 0 \.\. 3"),
        edit_layers(vlm, {0: shift, layer: shift}),
    ):
        pytest.fail("the context was entered")
    assert not any(layer._forward_hooks for layer in vlm.decoder_layers)


def test_unknown_position(vlm: Vlm) -> None:
    with (
        pytest.raises(ConfigError, match="unknown position 'last'"),
        edit_layers(vlm, {0: shift}, "last"),  # pyright: ignore
    ):
        pytest.fail("the context was entered")


@pytest.mark.parametrize("family", ["llava", "llava_next", "mllama", "qwen2_5_vl"])
def test_edits_mean_the_same_in_a_batch(family: str) -> None:
    vlm = tiny_vlm(family)
    prompts = [user("What is this?", picture(0)), user("And this one here?", picture(1))]
    with edit_layers(vlm, {1: shift, 2: lambda x: x * 1.5}):
        together = vlm.forward_prompt(vlm.encode(prompts))
        alone = [vlm.forward_prompt(vlm.encode([prompt])) for prompt in prompts]
    assert_close(together, torch.cat(alone), FLOAT32_NOISE)
