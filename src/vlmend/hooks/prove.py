"""Proves the map of a model that no family file describes, and remembers what was proven.

A map is proposed from two traced passes (`vlmend.models.discover`) and put through the whole
contract, with and without pictures. What fails is told clause by clause, with the `FamilySpec`
that one would have to write; only vision exits may be left out, with the clause they failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vlmend.errors import ConfigError, ModelError, VlmendError
from vlmend.hooks.contract import default_conversations, run_contract
from vlmend.hooks.exits import exit_vision_at
from vlmend.hooks.layer_inputs import measure_changes, measure_picture_columns
from vlmend.hooks.record import recording
from vlmend.hooks.tolerances import bar_alike, relative_difference
from vlmend.hooks.trace import trace_pass
from vlmend.models.checks import CheckResult, cheap_checks, run_clause
from vlmend.models.discover import Evidence, propose_spec
from vlmend.models.encode import encode_conversations
from vlmend.models.placement import main_device
from vlmend.models.proven import recall_spec, remember_spec
from vlmend.models.spec import (
    PROMPT_FIELDS,
    UNKNOWN,
    FamilySpec,
    advise_map,
    format_layers,
    sketch_spec,
)
from vlmend.models.vlm import Vlm

_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)
"""What a model raises that is run in a way it was not made for."""


def prove_spec(
    model: Any, processor: Any, name: str, hints: FamilySpec | None = None
) -> FamilySpec:
    """The proven map of a model: from memory, or discovered and proven now.

    Args:
        model: A transformers model.
        processor: Its processor.
        name: What the user called it.
        hints: The map of another model of its type, which tells how prompts are written.

    Returns:
        The map. Without vision stacks, `no_exits` says which clause they failed.

    Raises:
        ModelError: The map cannot be proven; names every failed clause and shows the map.
    """
    known = recall_spec(model.config)
    if known is not None:
        return known
    spec = propose_spec(gather_evidence(model, processor, hints))
    if hints is not None:
        spec = replace(spec, **{name: getattr(hints, name) for name in PROMPT_FIELDS})
    spec = _measure_logits(model, processor, name, spec)
    spec = _measure_pictures(model, processor, name, spec)
    spec, results = _prove(model, processor, name, spec)
    remember_spec(model.config, spec, results)
    return spec


def prove_given(model: Any, processor: Any, name: str, spec: FamilySpec) -> FamilySpec:
    """Prove a map that was written by hand; it is not remembered.

    Raises:
        ConfigError: It is of another type than the model.
        ModelError: It does not hold; names every failed clause.
    """
    if spec.model_type != model.config.model_type:
        raise ConfigError(
            f"the map of {spec.model_type!r} was given for {name!r}, whose config says "
            f"{model.config.model_type!r}. Give a map of that type."
        )
    results = _results(model, processor, name, spec)
    if not all(result.passed for result in results):
        raise ModelError(
            f"the map that was given for {name!r} does not hold. Failed: {_describe(results)}. "
            "Mend it, or leave it out to have one discovered."
        )
    return spec


def gather_evidence(model: Any, processor: Any, hints: FamilySpec | None = None) -> Evidence:
    """Run a model twice, with and without pictures, and note what its modules do.

    Raises:
        ModelError: It has no unembedding, or cannot be run.
    """
    head = model.get_output_embeddings()
    path = next((path for path, module in model.named_modules() if module is head), None)
    if head is None or path is None or not hasattr(head, "in_features"):
        raise ModelError(
            f"{type(model).__name__} has no unembedding of one matrix, so its decoder cannot be "
            f"told from its other parts. {_advise(model, UNKNOWN)}"
        )
    passes: list[Any] = []
    for images in (False, True):
        encoded = encode_conversations(
            processor,
            default_conversations(images)[:1],
            device=main_device(model),
            dtype=model.dtype,
            spec=hints,
        )
        try:
            passes.append(trace_pass(model, encoded.inputs))
        except _FAILURES as error:
            what = "a prompt with a picture" if images else "a prompt of words alone"
            raise ModelError(
                f"{type(model).__name__} cannot be run on {what} ({type(error).__name__}: "
                f"{error}), so its parts cannot be told apart. Of a model that asks for a picture "
                "in every prompt the map must say so (always_asked); one that encodes prompts "
                f"apart from its answers cannot be audited. {_advise(model, path)}"
            ) from error
    return Evidence(
        model_type=model.config.model_type,
        title=type(model).__name__,
        lists={
            path: len(module)
            for path, module in model.named_modules()
            if isinstance(module, nn.ModuleList | nn.Sequential)
            # A chain of single matrices and activations is no stack of layers or blocks.
            and any(next(member.children(), None) is not None for member in module)
        },
        lm_head=path,
        width=int(head.in_features),
        on_text=passes[0],
        on_image=passes[1],
        config=model.config.to_dict(),
    )


def _advise(model: Any, lm_head: str) -> str:
    title = type(model).__name__
    known = sketch_spec(model.config.model_type, title, lm_head=lm_head, decoder_layers=UNKNOWN)
    return advise_map(known)


def _prove(
    model: Any, processor: Any, name: str, spec: FamilySpec
) -> tuple[FamilySpec, list[CheckResult]]:
    proposed = spec
    if spec.vision_stacks:
        measured = _measure_exit(model, processor, name, spec)
        if isinstance(measured, FamilySpec):
            results = _results(model, processor, name, measured)
            if all(result.passed for result in results):
                return measured, results
            why = _describe(results)
        else:
            why = measured
        spec = replace(
            spec, vision_stacks=(), vision_block_counts=(), no_exits=f"not proven: {why}"
        )
    results = _results(model, processor, name, spec)
    if not all(result.passed for result in results):
        raise ModelError(
            f"{name!r} is of a family that no file describes ({spec.model_type!r}), and the map "
            f"that its modules suggest does not hold. Failed: {_describe(results)}. "
            f"{advise_map(proposed)}"
        )
    return spec, results


def _measure_logits(model: Any, processor: Any, name: str, spec: FamilySpec) -> FamilySpec:
    """The map that says whether logits are scaled: of the two, the one that comes closer.

    The config of a decoder may name a scaling that the class around it does not apply.
    """
    found: list[tuple[float, FamilySpec]] = []
    for scaled in (False, True):
        candidate = replace(spec, scaled_logits=scaled)
        vlm = Vlm(model, processor, name=name, spec=candidate)
        encoded = vlm.encode(default_conversations(images=False))
        try:
            with recording(vlm) as kept:
                logits = vlm.forward_prompt(encoded)
        except VlmendError:  # the contract says what does not hold
            return spec
        if not kept:
            return spec
        with torch.no_grad():
            own = vlm.unembed(kept[max(kept)])
        own = bar_alike(own.float(), logits)
        found.append((relative_difference(own, logits), candidate))
    return min(found, key=lambda pair: pair[0])[1]


def _measure_pictures(model: Any, processor: Any, name: str, spec: FamilySpec) -> FamilySpec:
    """The map that says where pictures enter the decoder; that nothing else does, is proven."""
    vlm = Vlm(model, processor, name=name, spec=spec)
    try:
        encoded = vlm.encode(default_conversations(images=True))
        columns = measure_picture_columns(vlm, encoded)
        changed = measure_changes(vlm, encoded)
    except VlmendError:  # the contract says what does not hold
        return spec
    note = (
        f"What decoder layer(s) {format_layers(changed)} return is changed by the model before the "
        "next layer reads it, in prompts with a picture; recordings hold it as it was returned, "
        "and edits come before the change."
    )
    return replace(
        spec,
        picture_columns=columns or spec.picture_columns,
        changed_after=changed,
        notes=(*spec.notes, *([note] if changed else [])),
    )


def _measure_exit(model: Any, processor: Any, name: str, spec: FamilySpec) -> FamilySpec | str:
    """The map with the smallest exit that equals no exit, or why there is none."""
    try:
        vlm = Vlm(model, processor, name=name, spec=spec)
        encoded = vlm.encode(default_conversations(images=True))
        base = vlm.forward_prompt(encoded)
        first = vlm.vision_stack_sizes[0]
        smallest = first + 1
        for layer in range(first, -1, -1):
            with exit_vision_at(vlm, layer):
                if not torch.equal(vlm.forward_prompt(encoded), base):
                    break
            smallest = layer
    except (VlmendError, *_FAILURES) as error:
        return f"an exit cannot be run: {error}"
    if smallest == first:
        return spec
    if smallest > first:
        return "the exit at the end of the first vision stack differs from no exit"
    return replace(spec, measured_exit=smallest)


def _results(model: Any, processor: Any, name: str, spec: FamilySpec) -> list[CheckResult]:
    """All clauses, with and without pictures; one that cannot even be run has failed."""
    found = cheap_checks(Vlm(model, processor, name=name, spec=spec))
    if not all(result.passed for result in found):
        return found  # what a wrong map does in a pass says no more about it
    found = []
    for images in (True, False):
        what = "with a picture" if images else "words alone"

        def run(images: bool = images, what: str = what) -> tuple[bool, str]:
            try:
                results = run_contract(Vlm(model, processor, name=name, spec=spec), images=images)
            except _FAILURES as error:
                return False, f"{type(error).__name__}: {error}"
            found.extend(replace(result, clause=f"{result.clause} ({what})") for result in results)
            return True, "all clauses were run"

        found.append(run_clause(f"the contract can be run ({what})", run))
    return found


def _describe(results: Sequence[CheckResult]) -> str:
    return "; ".join(f"{r.clause}: {r.evidence}" for r in results if not r.passed)
