"""What decoder layers are given: clauses of the contract that edit nothing.

An edit proves what follows from one layer. What the layers are given says of all of them, in one
pass, that they run in their order, that each reads what the one before it returned, and that none
is dead; and what the first one is given says which columns hold a picture.

Shapes: B = prompts, S = columns, D = width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vlmend.errors import ModelError
from vlmend.hooks.image_inputs import is_picture
from vlmend.models.encode import PIXELS
from vlmend.models.spec import PictureColumns, format_layers
from vlmend.models.vlm import EncodedBatch, Vlm


@dataclass(frozen=True, slots=True)
class _Step:
    """One call of a decoder layer.

    Attributes:
        layer: Its number.
        changed: (B, S), where it was given something else than the call before it returned;
            nowhere for the first one.
        idle: Whether it returned what it was given, to the bit.
    """

    layer: int
    changed: Tensor
    idle: bool


def check_handover(vlm: Vlm, encoded: EncodedBatch) -> tuple[bool, str]:
    """Layers run in their order, each on what the one before it returned, and none is dead.

    What the map declares is allowed, and must be so: layers whose output the model changes at the
    columns of pictures (DeepStack).
    """
    steps = _follow(vlm, encoded)
    shown = picture_columns(vlm, encoded).cpu()
    for before, after in pairwise(steps):
        if after.layer <= before.layer:
            return False, f"layer {after.layer} runs behind layer {before.layer}"
        if bool((after.changed & ~shown).any()):
            return False, f"layer {after.layer} is not given what layer {before.layer} returned"
    idle = [step.layer for step in steps if step.idle]
    if idle:
        return False, f"layer {idle[0]} returns what it is given: it is dead"
    changed, said = _changed(steps), vlm.spec.changed_after if encoded.num_images else ()
    if changed != said:
        return False, (
            f"pictures are added behind layers {list(changed)}, the map says {list(said)} "
            "(changed_after)"
        )
    behind = f", with pictures added behind layers {format_layers(changed)}" if changed else ""
    return True, f"{len(steps)} layers in their order{behind}"


def measure_changes(vlm: Vlm, encoded: EncodedBatch) -> tuple[int, ...]:
    """Decoder layers whose output is not what the next one is given."""
    return _changed(_follow(vlm, encoded))


def _changed(steps: Sequence[_Step]) -> tuple[int, ...]:
    return tuple(before.layer for before, after in pairwise(steps) if bool(after.changed.any()))


def check_picture_columns(vlm: Vlm, encoded: EncodedBatch) -> tuple[bool, str]:
    """Other pixels change what the first layer is given at the columns of pictures alone."""
    found = measure_picture_columns(vlm, encoded)
    said = vlm.spec.picture_columns
    if found is None:
        return False, (
            "other pixels change nothing, or columns that hold no token of a picture "
            f"({', '.join(map(str, vlm.picture_ids)) or 'none is known'})"
        )
    # Codes of a quantiser may all differ between two pictures.
    if found == said or (said, found) == ("some", "all"):
        return True, f"other pixels change {found} of the columns of pictures, and no other"
    return False, (
        f"other pixels change {found} of the columns of pictures, the map says {said} "
        "(picture_columns)"
    )


def measure_picture_columns(vlm: Vlm, encoded: EncodedBatch) -> PictureColumns | None:
    """Which columns of pictures change with what they show, in what the first layer is given.

    Args:
        vlm: The model.
        encoded: Prompts with pictures.

    Returns:
        As in `FamilySpec.picture_columns`; None where columns without a picture change, or
        nothing does.
    """
    other = {
        name: -tensor if PIXELS in name and tensor.is_floating_point() else tensor
        for name, tensor in encoded.inputs.items()
    }
    given, logits = zip(
        *(_first_input(vlm, batch) for batch in (encoded, replace(encoded, inputs=other))),
        strict=True,
    )
    real = encoded.attention_mask.bool().to(given[0].device)  # padding may hold anything
    moved = (given[0] != given[1]).any(dim=-1) & real  # (B, S)
    shown = picture_columns(vlm, encoded).to(moved.device)
    if not bool(moved.any()):
        return None if torch.equal(*logits) else "none"
    if bool((moved & ~shown).any()):
        return None
    return "all" if torch.equal(moved, shown) else "some"


def picture_columns(vlm: Vlm, encoded: EncodedBatch) -> Tensor:
    """(B, S), where pictures stand."""
    mask = vlm.spec.picture_mask
    if mask is not None:
        return encoded.inputs[mask].bool()
    return is_picture(vlm, encoded.inputs["input_ids"])


def _first_input(vlm: Vlm, encoded: EncodedBatch) -> tuple[Tensor, Tensor]:
    """(B, S, D) that the first layer is given, and the logits (B, V)."""
    kept: list[Tensor] = []

    def keep(_layer: int, states: Tensor) -> None:
        if not kept:
            kept.append(states.clone())

    with _reading_inputs(vlm, keep):
        logits = vlm.forward_prompt(encoded)
    return kept[0], logits


def _follow(vlm: Vlm, encoded: EncodedBatch) -> list[_Step]:
    """Every call of a decoder layer in one pass; at most two states are kept at a time."""
    steps: list[_Step] = []
    given: dict[int, Tensor] = {}
    last: list[Tensor] = []
    real = encoded.attention_mask.bool().cpu()  # padding may hold anything

    def differ(first: Tensor, second: Tensor) -> Tensor:
        return (first != second.to(first.device)).any(dim=-1).cpu() & real

    def begin(layer: int, states: Tensor) -> None:
        # Copies: a model may go on writing into either of them.
        given[layer] = states.clone()

    def end(layer: int, _module: nn.Module, _args: object, output: Any) -> None:
        made: Tensor = output[0] if isinstance(output, tuple) else output
        states = given.pop(layer)
        changed = differ(states, last.pop() if last else states)
        steps.append(_Step(layer, changed, idle=not bool(differ(made, states).any())))
        last.append(made.clone())

    with ExitStack() as stack:
        stack.enter_context(_reading_inputs(vlm, begin))
        for number, module in enumerate(vlm.decoder_layers):
            stack.callback(module.register_forward_hook(partial(end, number)).remove)
        vlm.forward_prompt(encoded)
    return steps


@contextmanager
def _reading_inputs(vlm: Vlm, keep: Callable[[int, Tensor], None]) -> Generator[None]:
    """Call a function with the number of each decoder layer and the states it is given."""

    def begin(
        layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point():
                keep(layer, value.detach())
                return
        raise ModelError(
            f"decoder layer {layer} of {vlm.name!r} is given no states of three dimensions, but "
            f"{[type(value).__name__ for value in args]} and {sorted(kwargs)}. The list "
            f"{vlm.spec.decoder_layers!r} holds no decoder layers."
        )

    with ExitStack() as stack:
        for number, module in enumerate(vlm.decoder_layers):
            handle = module.register_forward_pre_hook(partial(begin, number), with_kwargs=True)
            stack.callback(handle.remove)
        yield
