"""The parts of a model that generate, with their settings and their steps.

Most models generate as a whole. Some hand a prompt on to a language model inside of them, which
has settings of its own, and may be given embeddings beside the ids: then transformers (5.23) uses
a cache whatever it is told, and what is said of runs without one would be about runs with one. And
one family counts positions by columns behind a cache, padding included.

Shapes: B = prompts, S = columns of the prompts, N = columns so far, D = width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin

from vlmend.models.spec import FamilySpec, read_config


def generators(model: Any) -> list[Any]:
    """The model, and every model inside of it that can generate as well."""
    inner = [
        part
        for part in model.modules()
        if part is not model
        and isinstance(part, GenerationMixin)  # some only hold settings (SmolVLM)
        and isinstance(getattr(part, "generation_config", None), GenerationConfig)
    ]
    return [model, *inner]


def cache_of(output: Any) -> Any:
    """The keys and values that a pass left, wherever its output holds them; None without any."""
    for holder in (output, *output.values()):
        held = vars(holder).values() if hasattr(holder, "__dict__") else ()
        found = next((value for value in held if isinstance(value, Cache)), None)
        if found is not None:
            return found
    return None


def with_past(model: Any, cache: Any) -> dict[str, Any]:
    """A cache as the named argument by which a model takes one."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    return {name: cache}


def past_of(given: Mapping[str, Any]) -> int:
    """Columns that a module's call has behind it, from the cache among its named arguments.

    Found by what it is: transformers has renamed it (`past_key_values`, `cache` since 5.24).
    """
    cache = next((value for value in given.values() if isinstance(value, Cache)), None)
    return 0 if cache is None else int(cache.get_seq_length())


@contextmanager
def settings_of(model: Any, config: GenerationConfig) -> Generator[None]:
    """Give every part that generates one set of settings, while the context is open.

    transformers fills every unset value from a part's own generation_config (temperature,
    repetition penalty ...); this one takes its place meanwhile, so that nothing leaks in.

    Args:
        model: The model; it is left as it was.
        config: The settings.
    """
    before = [(part, part.generation_config) for part in generators(model)]
    for part, _ in before:
        part.generation_config = config
    try:
        yield
    finally:
        for part, own in before:
            part.generation_config = own


@contextmanager
def mended_steps(model: Any, spec: FamilySpec) -> Generator[None]:
    """Keep embeddings and positions right from step to step, while the context is open.

    Args:
        model: The model; it is left as it was.
        spec: The map of its family.
    """
    path = spec.position_before
    before = None if path is None else int(read_config(model.config, path))
    parts = generators(model)
    with ExitStack() as stack:
        # A model that generates as a whole embeds its ids at every step.
        for part in parts[1:] or (parts if before is not None else []):
            stack.enter_context(_replaced(part, _mended(part, before)))
        yield


def _mended(part: Any, position_before: int | None) -> dict[str, Callable[..., Any]]:
    """What takes the place of two methods of a part that generates."""
    own_generate, own_prepare = part.generate, part.prepare_inputs_for_generation
    held: list[Tensor] = []

    @wraps(own_generate)
    def generate(*args: Any, **kwargs: Any) -> Any:
        config = kwargs.get("generation_config")
        if kwargs.get("inputs_embeds") is None or config is None or config.use_cache:
            return own_generate(*args, **kwargs)
        held.append(kwargs.pop("inputs_embeds"))
        try:
            return own_generate(*args, **kwargs)
        finally:
            held.pop()

    @wraps(own_prepare)  # transformers reads its signature
    def prepare(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        given = own_prepare(input_ids, *args, **kwargs)
        ids, mask = given.get("input_ids"), kwargs.get("attention_mask")
        # No mask where there is no padding.
        if position_before is not None and ids is not None and mask is not None:
            positions = _positions(mask, position_before)
            given["position_ids"] = positions[:, -ids.shape[1] :]
        if held:
            given |= {"input_ids": None, "inputs_embeds": _lengthen(part, input_ids, held[-1])}
        return given

    return {"generate": generate, "prepare_inputs_for_generation": prepare}


@contextmanager
def _replaced(part: Any, methods: Mapping[str, Callable[..., Any]]) -> Generator[None]:
    before = {name: vars(part)[name] for name in methods if name in vars(part)}
    for name, method in methods.items():
        setattr(part, name, method)
    try:
        yield
    finally:
        for name in methods:
            delattr(part, name)
        for name, method in before.items():
            setattr(part, name, method)


def _lengthen(part: Any, ids_BN: Tensor, embeds_BSD: Tensor) -> Tensor:
    """(B, N, D): what the prompt was embedded as, and the tokens behind it."""
    # All ids are embedded, as whoever watches the embedding reads them all.
    own_BND = part.get_input_embeddings()(ids_BN)
    return torch.cat((embeds_BSD.to(own_BND), own_BND[:, embeds_BSD.shape[1] :]), dim=1)


def _positions(mask_BN: Tensor, before: int) -> Tensor:
    """(B, N) positions that padding has no part in."""
    return mask_BN.cumsum(dim=1) * mask_BN + before
