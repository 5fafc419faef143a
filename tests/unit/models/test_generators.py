"""Models that hand prompts on to a language model inside of them, which generates."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from vlmend.models import vlm as vlm_module
from vlmend.models.generation import GenerationSettings
from vlmend.models.generators import (
    cache_of,
    generators,
    mended_steps,
    past_of,
    settings_of,
    with_past,
)
from vlmend.models.vlm import Steps, Vlm
from vlmend.testing import picture, tiny_vlm
from vlmend.types import user

PREPARE = "prepare_inputs_for_generation"


@pytest.fixture(scope="module")
def kosmos() -> Vlm:
    """Its language model generates, and counts positions by columns behind a cache."""
    return tiny_vlm("kosmos-2")


@pytest.fixture(scope="module")
def blip() -> Vlm:
    """Its language model generates from embeddings."""
    return tiny_vlm("blip-2")


def steps_of(vlm: Vlm, *texts: str, use_cache: bool) -> Steps:
    encoded = vlm.encode([user(text, picture(i)) for i, text in enumerate(texts)])
    return vlm.generate_steps(encoded, GenerationSettings(max_new_tokens=4, use_cache=use_cache))


def largest_step(first: Steps, second: Steps) -> float:
    """The largest difference of logits at the second step, row by row."""
    assert torch.equal(first.token_ids[:, 0], second.token_ids[:, 0])
    return float((first.logits[:, 1] - second.logits[:, 1]).abs().max())


@contextmanager
def unmended(*_: object) -> Generator[None]:
    """Steps as transformers takes them."""
    yield


def test_the_parts_that_generate(kosmos: Vlm, blip: Vlm) -> None:
    assert generators(kosmos.model) == [kosmos.model, kosmos.model.text_model]
    assert generators(blip.model) == [blip.model, blip.model.language_model]
    # The decoder of the second holds settings that nobody generates with.
    for family in ("llava", "smolvlm"):
        model = tiny_vlm(family).model
        assert generators(model) == [model]


def test_settings_of_an_inner_model_do_not_leak_in(kosmos: Vlm) -> None:
    inner = kosmos.model.text_model.generation_config
    before = steps_of(kosmos, "What is this?", use_cache=True)
    inner.repetition_penalty = 9.0
    inner.min_new_tokens = 3
    try:
        after = steps_of(kosmos, "What is this?", use_cache=True)
    finally:
        inner.repetition_penalty = inner.min_new_tokens = None
    assert torch.equal(before.token_ids, after.token_ids)


def test_settings_are_put_back_after_a_failure(kosmos: Vlm) -> None:
    before = [part.generation_config for part in generators(kosmos.model)]
    ours = GenerationConfig()
    with settings_of(kosmos.model, ours):
        assert all(part.generation_config is ours for part in generators(kosmos.model))
    with pytest.raises(ZeroDivisionError), settings_of(kosmos.model, ours):
        raise ZeroDivisionError
    after = [part.generation_config for part in generators(kosmos.model)]
    assert all(a is b for a, b in zip(after, before, strict=True))


def columns_run(vlm: Vlm, *, use_cache: bool) -> tuple[Steps, list[int]]:
    """Columns that the decoder runs at each step, counted from those of the prompt."""
    found: list[int] = []
    handle = vlm.decoder_layers[0].register_forward_hook(
        lambda _module, _args, out: found.append((out if torch.is_tensor(out) else out[0]).shape[1])
    )
    steps = steps_of(vlm, "What is this?", use_cache=use_cache)
    handle.remove()
    return steps, [count - found[0] if count > 1 else count for count in found[1:]]


def test_no_cache_means_no_cache(blip: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, columns = columns_run(blip, use_cache=True)
    assert columns == [1, 1, 1]
    fresh, columns = columns_run(blip, use_cache=False)
    assert columns == [1, 2, 3]
    assert largest_step(cached, fresh) < 1e-4
    monkeypatch.setattr(vlm_module, "mended_steps", unmended)
    columns = columns_run(blip, use_cache=False)[1]
    assert columns == [1, 1, 1], "transformers does without a cache now: drop the mend"


def test_padding_does_not_move_later_tokens(kosmos: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    def short_row(use_cache: bool) -> Steps:
        both = steps_of(kosmos, "What?", "What is this, if not a cup of tea?", use_cache=use_cache)
        return Steps(both.token_ids[:1], both.logits[:1])

    alone = steps_of(kosmos, "What?", use_cache=True)
    assert largest_step(alone, short_row(use_cache=True)) < 1e-4
    monkeypatch.setattr(vlm_module, "mended_steps", unmended)
    assert largest_step(alone, short_row(use_cache=False)) < 1e-4
    assert largest_step(alone, short_row(use_cache=True)) > 0.01


def test_a_model_is_left_as_it_was(blip: Vlm) -> None:
    part = blip.model.language_model
    before = inspect.signature(part.prepare_inputs_for_generation)
    with mended_steps(blip.model, blip.spec):
        assert PREPARE in vars(part)
        # transformers decides by the signature what it hands on.
        assert inspect.signature(part.prepare_inputs_for_generation) == before
    assert PREPARE not in vars(part)
    with pytest.raises(ZeroDivisionError), mended_steps(blip.model, blip.spec):
        raise ZeroDivisionError
    assert PREPARE not in vars(part)


def test_models_that_generate_as_a_whole_are_not_touched() -> None:
    llava = tiny_vlm("llava")
    with mended_steps(llava.model, llava.spec):
        assert PREPARE not in vars(llava.model)


def test_the_cache_is_found_wherever_it_is(blip: Vlm, kosmos: Vlm) -> None:
    for vlm in (blip, kosmos):
        encoded = vlm.encode([user("Hi", picture())])
        with torch.no_grad():
            cache = cache_of(vlm.model(**encoded.inputs, use_cache=True))
        assert cache.get_seq_length() == encoded.columns
    none: Any = SimpleNamespace(values=lambda: (torch.zeros(1),))
    assert cache_of(none) is None


def test_a_cache_is_known_by_what_it_is() -> None:
    """transformers calls it `past_key_values`, and `cache` since 5.24."""
    cache = DynamicCache()
    assert past_of({"past_key_values": cache}) == past_of({"hidden": torch.zeros(1)}) == 0
    cache.update(torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), 0)
    assert past_of({"hidden": torch.zeros(1), "cache": cache}) == 3
    assert past_of({"hidden": torch.zeros(1), "past_key_values": cache}) == 3

    def newer(cache: Any = None) -> Any:
        return cache

    def older(past_key_values: Any = None) -> Any:
        return past_key_values

    for forward in (newer, older):
        assert forward(**with_past(SimpleNamespace(forward=forward), cache)) is cache
