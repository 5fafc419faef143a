"""Proposes the map of a model that no family file describes.

From what its modules did in two passes, one over words alone and one with a picture, and from
its config; module names play no part. A proposal is a guess: `vlmend.hooks.prove` puts it
through the whole contract, and what is not proven is not used.

How the parts are told apart:

- *decoder layers*: the list whose members run in both passes, hand states of the decoder's width
  on, and the last of which feeds what is unembedded;
- *vision stacks*: lists whose members run only with a picture, before the decoder, keep the shape
  of what they are given, and follow one another; a later list counts if it sees as many states as
  the first one handed on (a resampler, which looks at them with queries of its own, does not);
- *projector*: the last module outside of these that makes states of the decoder's width out of
  what the vision stacks made, before the decoder runs.

Shapes: B = prompts, S = columns, D = the decoder's width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from vlmend.errors import ModelError
from vlmend.models.spec import UNKNOWN, FamilySpec, advise_map, sketch_spec

Shape = tuple[int, ...]

_COUNT_NAMES = ("layers", "depth", "blocks")
"""Endings of config entries that count layers or blocks."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module in a pass.

    Attributes:
        path: The module.
        in_shape: Shape of the first states it was given; None without any.
        out_shape: Shape of the first states it returned; None without any.
        given_by: Path of the innermost module that made what it was given, if one did.
        as_tuple: Whether it returned a tuple.
    """

    path: str
    in_shape: Shape | None
    out_shape: Shape | None
    given_by: str | None
    as_tuple: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a model that is to be mapped.

    Attributes:
        model_type: Of its config.
        title: Name of its class.
        lists: Paths of its lists of modules that have parts of their own (layers, blocks) with the
            number of members, outer ones before inner.
        lm_head: Path of the unembedding.
        width: What the unembedding takes: the decoder's width D.
        on_text: Calls of the pass over words alone.
        on_image: Calls of the pass with a picture.
        config: The config as a dict.
    """

    model_type: str
    title: str
    lists: Mapping[str, int]
    lm_head: str
    width: int
    on_text: tuple[Call, ...]
    on_image: tuple[Call, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Stack:
    """A list of modules and what its members did with a picture."""

    path: str
    calls: tuple[Call | None, ...]
    starts: tuple[int, ...]

    @property
    def members(self) -> tuple[Call, ...]:
        """First calls of the members that ran."""
        return tuple(call for call in self.calls if call is not None)


def propose_spec(evidence: Evidence) -> FamilySpec:
    """Propose a map.

    Args:
        evidence: What the model did.

    Returns:
        A map to be proven. Where no vision stack is found, `no_exits` says so.

    Raises:
        ModelError: No list of modules is a decoder; says what was looked at.
    """
    stacks = [_read_stack(evidence, path) for path in _outermost(evidence.lists)]
    decoder = _find_decoder(evidence, stacks)
    norm = _find_norm(evidence, decoder)
    begin = min(decoder.starts)
    ran_on_text = {call.path for call in evidence.on_text}
    vision = _find_vision(stacks, ran_on_text, begin)
    projector = _find_projector(evidence, vision, decoder, ran_on_text)
    image_only = tuple(
        number
        for number in range(evidence.lists[decoder.path])
        if f"{decoder.path}.{number}" not in ran_on_text
    )
    return FamilySpec(
        model_type=evidence.model_type,
        title=evidence.title,
        source="discovered from what its modules do, and proven by the contract",
        decoder_layers=decoder.path,
        final_norm=norm,
        lm_head=evidence.lm_head,
        vision_stacks=tuple(stack.path for stack in vision),
        projector=projector,
        decoder_layer_count=_count_path(evidence, evidence.lists[decoder.path]),
        vision_block_counts=_vision_counts(evidence, vision),
        image_only_layers=image_only or None,
        no_exits="" if vision else "no list of modules runs only with a picture and keeps shapes",
        tuple_blocks=any(call.as_tuple for stack in vision for call in stack.members),
    )


def _outermost(lists: Mapping[str, int]) -> list[str]:
    """Lists that lie in no member of another list."""
    return [
        path
        for path in lists
        if not any(path != other and path.startswith(f"{other}.") for other in lists)
    ]


def _read_stack(evidence: Evidence, path: str) -> _Stack:
    first: dict[str, tuple[int, Call]] = {}
    for start, call in enumerate(evidence.on_image):
        first.setdefault(call.path, (start, call))
    found = [first.get(f"{path}.{number}") for number in range(evidence.lists[path])]
    return _Stack(
        path,
        tuple(None if entry is None else entry[1] for entry in found),
        tuple(entry[0] for entry in found if entry is not None),
    )


def _find_decoder(evidence: Evidence, stacks: Sequence[_Stack]) -> _Stack:
    """The list that feeds the unembedding."""
    on_text = {call.path for call in evidence.on_text}

    def fits(stack: _Stack) -> bool:
        ran = [call.path for call in stack.members]
        return (
            len(ran) == evidence.lists[stack.path] > 0
            and any(path in on_text for path in ran)
            and all(_width(call.out_shape) == evidence.width for call in stack.members)
        )

    found = [stack for stack in stacks if fits(stack)]
    if not found:
        looked = ", ".join(f"{path} ({count})" for path, count in evidence.lists.items())
        raise ModelError(
            f"no decoder was found in {evidence.title}: no list of modules runs with and without "
            f"a picture and keeps states of width {evidence.width}, which {evidence.lm_head!r} "
            f"takes. Lists looked at: {looked or 'none'}. {_advise(evidence)}"
        )
    # The one that ends last: what is unembedded comes from it.
    return max(found, key=lambda stack: max(stack.starts))


def _find_norm(evidence: Evidence, decoder: _Stack) -> str:
    """What stands between the last layer and the unembedding, in the pass over words."""
    last = f"{decoder.path}.{evidence.lists[decoder.path] - 1}"
    candidates = [
        call.path
        for call in evidence.on_text
        if call.given_by is not None
        and (call.given_by == last or call.given_by.startswith(f"{last}."))
        and not call.path.startswith(f"{last}.")
        and call.path != evidence.lm_head
        and _width(call.out_shape) == evidence.width
    ]
    if not candidates:
        raise ModelError(
            f"no norm was found in {evidence.title} between the last decoder layer {last!r} and "
            f"the unembedding {evidence.lm_head!r}. {_advise(evidence, decoder.path)}"
        )
    return candidates[-1]


def _advise(evidence: Evidence, decoder_layers: str = UNKNOWN) -> str:
    return advise_map(
        sketch_spec(
            evidence.model_type,
            evidence.title,
            lm_head=evidence.lm_head,
            decoder_layers=decoder_layers,
        )
    )


def _find_vision(stacks: Sequence[_Stack], ran_on_text: set[str], begin: int) -> list[_Stack]:
    """Stacks whose members run in their order; only without any, those that run in another one.

    The latter are proposed so that the contract says what is wrong with them.
    """
    in_order = _follow_up(stacks, ran_on_text, begin, ordered=True)
    return in_order or _follow_up(stacks, ran_on_text, begin, ordered=False)


def _follow_up(
    stacks: Sequence[_Stack], ran_on_text: set[str], begin: int, *, ordered: bool
) -> list[_Stack]:
    found: list[_Stack] = []
    for stack in sorted(stacks, key=lambda s: s.starts[:1]):
        if not _is_vision(stack, ran_on_text, begin):
            continue
        if ordered and list(stack.starts) != sorted(stack.starts):
            continue
        if found and _count(found[-1].members[-1].out_shape) != _count(stack.members[0].in_shape):
            continue
        found.append(stack)
    return found


def _is_vision(stack: _Stack, ran_on_text: set[str], begin: int) -> bool:
    calls = stack.members
    return (
        len(calls) == len(stack.calls) >= 2
        and max(stack.starts) < begin
        and all(call.path not in ran_on_text for call in calls)
        and all(call.in_shape is not None and call.in_shape == call.out_shape for call in calls)
    )


def _find_projector(
    evidence: Evidence, vision: Sequence[_Stack], decoder: _Stack, ran_on_text: set[str]
) -> str | None:
    if not vision:
        return None
    parts = [*(stack.path for stack in vision), decoder.path, evidence.lm_head]
    found: str | None = None
    # What is given as many states as a prompt has columns comes after pictures are put there.
    prompt = decoder.members[0].in_shape
    for call in evidence.on_image[vision[-1].starts[-1] : min(decoder.starts)]:
        outside = not any(_overlap(part, call.path) for part in parts)
        if not outside or call.path in ran_on_text or _width(call.out_shape) != evidence.width:
            continue
        if call.in_shape == prompt:
            continue
        if found is None or not call.path.startswith(f"{found}."):
            found = call.path
    # One of several side by side is not all that stands between.
    return None if found is not None and found.rpartition(".")[0] in evidence.lists else found


def _overlap(first: str, second: str) -> bool:
    """Whether one module is the other one or lies inside of it."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _vision_counts(evidence: Evidence, vision: Sequence[_Stack]) -> tuple[str, ...]:
    """Where the config tells the number of blocks of every stack; none if it does not tell all."""
    paths = [_count_path(evidence, len(stack.calls)) for stack in vision]
    return cast("tuple[str, ...]", tuple(paths)) if all(paths) else ()


def _count_path(evidence: Evidence, count: int) -> str | None:
    """The only entry of the config that can mean this number of layers, if there is one."""
    found = [
        path
        for path, value in _entries(evidence.config)
        if value == count and path.rpartition(".")[2].endswith(_COUNT_NAMES)
    ]
    return found[0] if len(found) == 1 else None


def _entries(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, int]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _entries(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _width(shape: Shape | None) -> int | None:
    return None if shape is None else shape[-1]


def _count(shape: Shape | None) -> int:
    """Number of values."""
    count = 1
    for size in shape or (0,):
        count *= size
    return count
