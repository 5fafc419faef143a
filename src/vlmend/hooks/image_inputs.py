"""What the decoder is fed of the pictures, row by row at the row's own exit.

`record_image_inputs` runs the vision part alone: the blocks once per picture for all exits (see
`VisionReplay`), what follows them once per exit, and nothing from the decoder on. `feeding`
serves the record to any later pass over the same rows, with other padding, with answers behind
the prompts, with gradients: exits are mixed in one batch, and the vision blocks do not run.

Decoders get pictures in one of these ways, told apart by what they are called with: as embeddings
that stand at the image placeholders, or as states of their own: to cross-attend to, or to put at
columns that a mask names. (Where a decoder puts embeddings among the words itself, the map names
the part that does.) Some get more embeddings for the same places, which they add behind their
first layers (DeepStack). A decoder that is handed pictures in any other way is refused.

Shapes: B = rows, S = columns of the fed ids, N = columns of a pass, T_b = image tokens of row b,
D = width, I = tiles or pictures of a row, P = states of one of them.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vlmend.errors import ConfigError, ModelError
from vlmend.hooks.exits import VisionReplay, skipping_blocks
from vlmend.models.encode import PIXELS, no_states
from vlmend.models.generators import past_of
from vlmend.models.spec import check_exit
from vlmend.models.vlm import EncodedBatch, Vlm

EMBEDDINGS = "inputs_embeds"
CROSS_STATES = "cross_attention_states"
IMAGE_STATES = "image_embeds"
"""The decoder's arguments that carry pictures, as transformers names them in every family."""

DEEP_TOKENS = "deepstack_visual_embeds"
DEEP_COLUMNS = "visual_pos_masks"
"""Those of DeepStack: a list of (T, D), one per layer, and which columns they are added at."""

WORDS_BY_LAYER = "per_layer_inputs"
"""The decoder's argument that embeds the ids for each layer, with padding for pictures."""


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """What the decoder gets of the pictures, by row: embeddings, or states to cross-attend to.

    Without gradient. Where several rows show one picture at one exit, they share a tensor.

    Attributes:
        exits: The vision exit of each row, None for the model's own.
        tokens: (T_b, D) the embeddings that stand at the row's image placeholders, in order; None
            without a picture, or where the decoder cross-attends.
        cross_states: (I, P, D) the states that the row cross-attends to, or that the decoder puts
            in place itself; None without a picture, or where the decoder gets embeddings.
        deep_tokens: (T_b, D) each, what is added at the same columns behind the first decoder
            layers, layer after layer; none without a picture or without DeepStack.
    """

    exits: tuple[int | None, ...]
    tokens: tuple[Tensor | None, ...]
    cross_states: tuple[Tensor | None, ...]
    deep_tokens: tuple[tuple[Tensor, ...], ...]

    def __post_init__(self) -> None:
        parts = (self.tokens, self.cross_states, self.deep_tokens)
        assert all(len(part) == len(self.exits) for part in parts), "one of each a row"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.exits)

    @property
    def have_picture(self) -> tuple[bool, ...]:
        """By row: whether it shows a picture."""
        return tuple(
            tokens is not None or states is not None
            for tokens, states in zip(self.tokens, self.cross_states, strict=True)
        )

    def take(self, rows: Sequence[int]) -> ImageInputs:
        """Some of the rows, in any order; a row may be taken several times."""
        return ImageInputs(
            exits=tuple(self.exits[row] for row in rows),
            tokens=tuple(self.tokens[row] for row in rows),
            cross_states=tuple(self.cross_states[row] for row in rows),
            deep_tokens=tuple(self.deep_tokens[row] for row in rows),
        )

    @classmethod
    def join(cls, parts: Sequence[ImageInputs]) -> ImageInputs:
        """The rows of several records, one after the other."""
        return cls(
            exits=tuple(item for part in parts for item in part.exits),
            tokens=tuple(item for part in parts for item in part.tokens),
            cross_states=tuple(item for part in parts for item in part.cross_states),
            deep_tokens=tuple(item for part in parts for item in part.deep_tokens),
        )


class _DecoderReachedError(Exception):
    """Ends a forward pass at the decoder; never seen outside of this module.

    Attributes:
        call: What the decoder was given, by name.
    """

    def __init__(self, call: dict[str, Any]) -> None:
        super().__init__()
        self.call = call


def take_prompts(encoded: EncodedBatch, rows: Sequence[int]) -> EncodedBatch:
    """Some prompts of a batch without their pixels, to be run while `feeding`.

    A model that asks for pictures in every prompt is left some; they are put aside for the record.

    Args:
        encoded: The batch, from `Vlm.encode`.
        rows: Which prompts, in any order; one may be taken several times.

    Returns:
        A batch with the same columns; padding that all of its rows share is kept.

    Raises:
        ModelError: An input of the model goes neither by prompts nor by images.
    """
    total, asked = encoded.batch_size, encoded.always_asked
    ids = encoded.inputs["input_ids"]
    inputs = {name: no_states().to(ids.device) for name in asked if name not in encoded.inputs}
    for name, tensor in encoded.inputs.items():
        if PIXELS in name and name not in asked:
            continue
        if name in asked and not encoded.num_images:
            inputs[name] = tensor
            continue
        if tensor.shape[0] not in {total, total * encoded.num_images}:
            raise ModelError(
                f"the model's processor returns {name!r} with shape {tuple(tensor.shape)} for "
                f"{total} prompts with {encoded.num_images} image(s) each, so it cannot be told "
                "which part of it belongs to which prompt. Run such a model on whole batches."
            )
        inputs[name] = tensor.unflatten(0, (total, -1))[list(rows)].flatten(0, 1)
    return EncodedBatch(
        inputs=inputs,
        prompt_lengths=encoded.prompt_lengths[list(rows)],
        num_images=encoded.num_images,
        always_asked=asked,
    )


def record_image_inputs(
    vlm: Vlm,
    encoded: EncodedBatch,
    exits: Sequence[int | None],
    *,
    prompts: Sequence[int] | None = None,
) -> ImageInputs:
    """What the decoder would get of each row's pictures at the row's exit.

    The vision blocks run once per picture for all exits, as far as the exits need them; see
    `VisionReplay` for encoders with several stacks. The decoder does not run.

    Args:
        vlm: The model, not at an exit; adapters may be on.
        encoded: The prompts, from `Vlm.encode`.
        exits: One per row: 0 .. N, or None for the model's own.
        prompts: Which prompt each row shows, so that a prompt can have rows at several exits; by
            default the prompts are the rows.

    Returns:
        The record, on the model's device, one row per exit.

    Raises:
        ConfigError: Another number of exits than rows, an exit or prompt out of range, or a model
            that is at an exit already.
        ModelError: The decoder is not called in one of the known ways.
    """
    if prompts is None:
        prompts = range(encoded.batch_size)
    _check_rows(vlm, encoded, exits, prompts)
    rows = list(zip(prompts, exits, strict=True))
    none, no_deep = (None,) * len(rows), ((),) * len(rows)
    if not encoded.num_images:
        return ImageInputs(tuple(exits), tokens=none, cross_states=none, deep_tokens=no_deep)
    found: dict[tuple[int, int | None], Tensor] = {}
    deep: dict[tuple[int, int | None], tuple[Tensor, ...]] = {}
    carrier = EMBEDDINGS
    with VisionReplay(vlm) as replay:
        for replay.exit in dict.fromkeys(exits):
            carrier, call = _read_decoder_call(vlm, encoded)
            for prompt, exit_layer in set(rows):
                if exit_layer == replay.exit:
                    found[prompt, exit_layer] = _read_prompt(vlm, encoded, carrier, call, prompt)
                    deep[prompt, exit_layer] = _read_deep(vlm, encoded, call, prompt)
    given, added = tuple(found[row] for row in rows), tuple(deep[row] for row in rows)
    if carrier == EMBEDDINGS:
        return ImageInputs(tuple(exits), tokens=given, cross_states=none, deep_tokens=added)
    return ImageInputs(tuple(exits), tokens=none, cross_states=given, deep_tokens=no_deep)


@contextmanager
def feeding(vlm: Vlm, inputs: ImageInputs, input_ids: Tensor) -> Generator[None]:
    """Feed the decoder recorded pictures while the context is open.

    It applies to passes over exactly these ids, which may have more columns behind them
    (generation with or without a cache); decode steps with a cache see no picture and are left
    alone. Vision blocks are the identity meanwhile, and the pixels may be missing altogether
    (`take_prompts`), so that a pass costs what the decoder costs. Whatever else the model is
    given, such as image sizes that positions depend on, must be that of these rows.

    Args:
        vlm: The model, not at an exit; adapters may be on, gradients too.
        inputs: The record, one row per row of the ids.
        input_ids: (B, S) the ids of the prompts, padded on any side, answers included or not.

    Raises:
        ConfigError: Another number of rows; a row whose placeholders are not as many as its
            embeddings; rows that cannot be one batch; a model at an exit already; or, during a
            pass, other ids than these.
        ModelError: During a pass, the decoder is not called as it was while recording.
    """
    _refuse_other_exits(vlm)
    feed = _Feed(vlm, inputs, input_ids)
    with ExitStack() as stack:
        stack.enter_context(skipping_blocks(vlm, range(vlm.num_vision_blocks)))
        embedding: nn.Module = vlm.model.get_input_embeddings()
        for module, hook in ((embedding, feed.note_ids), (vlm.decoder, feed.replace)):
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        if vlm.inserter is not None:
            stack.callback(vlm.inserter.register_forward_hook(feed.insert).remove)
        stack.callback(setattr, vlm, "conditions", vlm.conditions)
        vlm.conditions = (*vlm.conditions, *_name_exits(inputs))
        yield


class _Feed:
    """The hooks of `feeding`."""

    def __init__(self, vlm: Vlm, inputs: ImageInputs, input_ids: Tensor) -> None:
        self._name = vlm.name
        self._inserts_later = vlm.inserter is not None
        self._decoding = False
        self._ids = input_ids
        self._is_image = is_picture(vlm, input_ids)  # (B, S)
        self._seen: Tensor | None = None
        _check_fits(inputs, self._is_image)
        tokens = [item for item in inputs.tokens if item is not None]
        states = [item for item in inputs.cross_states if item is not None]
        # One tensor for all passes: rows follow each other in either way of feeding.
        self._tokens = torch.cat(tokens) if tokens else None
        self._states = torch.cat(states) if states else None
        deep = [item for item in inputs.deep_tokens if item]
        self._deep = [torch.cat(layer) for layer in zip(*deep, strict=True)]

    def note_ids(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the ids that are being embedded: the decoder may be given embeddings alone."""
        self._seen = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)

    def replace(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Put the recorded pictures into the decoder's call."""
        self._decoding = past_of(kwargs) > 0
        if self._inserts_later:
            return None
        seen, self._seen = self._seen, None
        if self._decoding:
            return None
        own = kwargs.get("input_ids")
        self._check_ids(seen if own is None else own)
        if self._states is not None:
            carrier = IMAGE_STATES if IMAGE_STATES in kwargs else CROSS_STATES
            return args, {**kwargs, carrier: self._states}
        if self._tokens is None:
            return None
        embeds = kwargs.get(EMBEDDINGS)
        if not isinstance(embeds, Tensor):
            raise ModelError(
                f"the decoder of {self._name!r} is called without {EMBEDDINGS!r}, although it was "
                "called with it when its pictures were recorded."
            )
        is_image = self._columns_of(embeds)
        given = {EMBEDDINGS: embeds.masked_scatter(is_image[..., None], self._tokens.to(embeds))}
        if self._deep:
            deep = [layer.to(embeds) for layer in self._deep]
            return args, {**kwargs, **given, DEEP_COLUMNS: is_image, DEEP_TOKENS: deep}
        return args, {**kwargs, **given}

    def insert(self, _module: nn.Module, _args: tuple[Any, ...], embeds: Tensor) -> Tensor | None:
        """Put the recorded pictures among the words, where the decoder does that itself."""
        seen, self._seen = self._seen, None
        if self._decoding:
            return None
        self._check_ids(seen)
        if self._tokens is None:
            return None
        return embeds.masked_scatter(self._columns_of(embeds)[..., None], self._tokens.to(embeds))

    def _columns_of(self, embeds: Tensor) -> Tensor:
        """(B, N) where pictures stand in a pass, which may have columns behind the prompts."""
        more = embeds.shape[1] - self._is_image.shape[1]
        return nn.functional.pad(self._is_image.to(embeds.device), (0, more))

    def _check_ids(self, seen: Tensor | None) -> None:
        rows, columns = self._ids.shape
        if (
            seen is None
            or seen.shape[0] != rows
            or seen.shape[1] < columns
            or not self._same_words(seen[:, :columns])
        ):
            given = "no ids" if seen is None else f"ids of shape {tuple(seen.shape)}"
            raise ConfigError(
                f"the model was run on {given} while it is fed the pictures of other prompts, of "
                f"shape {(rows, columns)}. Run exactly the given ids, with or without columns "
                "behind them, or leave the context first."
            )

    def _same_words(self, seen: Tensor) -> bool:
        # Some models embed padding where a picture will stand.
        same = (seen == self._ids.to(seen.device)) | self._is_image.to(seen.device)
        return bool(same.all())


def _read_decoder_call(vlm: Vlm, encoded: EncodedBatch) -> tuple[str, dict[str, Any]]:
    """Name of the argument that carries the pictures, and all that the decoder is called with."""

    def stop(_module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _DecoderReachedError(kwargs)

    def stop_behind(_module: nn.Module, _args: tuple[Any, ...], embeds: Tensor) -> None:
        raise _DecoderReachedError({EMBEDDINGS: embeds})

    if vlm.inserter is None:
        handle = vlm.decoder.register_forward_pre_hook(stop, with_kwargs=True)
    else:
        handle = vlm.inserter.register_forward_hook(stop_behind)
    try:
        vlm.forward_prompt(encoded)
    except _DecoderReachedError as reached:
        return _find_carrier(vlm, reached.call), reached.call
    finally:
        handle.remove()
    raise ModelError(
        f"the decoder {vlm.spec.decoder!r} of {vlm.name!r} did not run on a prompt, although "
        f"{vlm.spec.title} models are known to run it. The model is not what its config says."
    )


def _find_carrier(vlm: Vlm, call: Mapping[str, Any]) -> str:
    floating = [name for name, value in call.items() if _holds_floats(value)]
    # Masks are made of the text and the sizes of pictures, not of what the pictures show.
    known = {EMBEDDINGS, CROSS_STATES, IMAGE_STATES, DEEP_TOKENS, WORDS_BY_LAYER}
    other = [name for name in floating if name not in known and not name.endswith("mask")]
    carriers = [name for name in (CROSS_STATES, IMAGE_STATES, EMBEDDINGS) if name in floating]
    if other or len(carriers) != 1:
        raise ModelError(
            f"the decoder of {vlm.name!r} is called with {', '.join(sorted(call)) or 'nothing'}, "
            f"of which {', '.join(floating) or 'nothing'} may hold pictures. Allowed: exactly one "
            f"of {EMBEDDINGS!r}, {CROSS_STATES!r} and {IMAGE_STATES!r}. Pictures of this family "
            "cannot be recorded."
        )
    return carriers[0]


def _holds_floats(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    if isinstance(value, dict):
        return _holds_floats(list(cast("dict[object, object]", value).values()))
    return isinstance(value, list | tuple) and any(map(_holds_floats, value))


def _read_prompt(
    vlm: Vlm, encoded: EncodedBatch, carrier: str, call: Mapping[str, Any], prompt: int
) -> Tensor:
    """What one prompt gets of its pictures: (T_b, D) embeddings or (I, P, D) states."""
    given: Tensor = call[carrier]
    if carrier != EMBEDDINGS and given.shape[0] % encoded.batch_size == 0:
        # A copy: a part of the whole would keep all of it in memory.
        return given.unflatten(0, (encoded.batch_size, -1))[prompt].clone()
    is_image = is_picture(vlm, encoded.inputs["input_ids"])
    if carrier == EMBEDDINGS and bool(is_image[prompt].any()):
        return given[prompt, is_image[prompt].to(given.device)]
    raise ModelError(
        f"the decoder of {vlm.name!r} gets {carrier!r} of shape {tuple(given.shape)} for "
        f"{encoded.batch_size} prompts with {encoded.num_images} image(s) each, in which the part "
        f"of prompt {prompt} cannot be found. Pictures of this family cannot be recorded."
    )


def _read_deep(
    vlm: Vlm, encoded: EncodedBatch, call: Mapping[str, Any], prompt: int
) -> tuple[Tensor, ...]:
    """(T_b, D) per layer: what a prompt gets of its pictures behind the first layers."""
    layers: list[Tensor] = call.get(DEEP_TOKENS) or []
    is_image = is_picture(vlm, encoded.inputs["input_ids"]).cpu()
    columns: Tensor | None = call.get(DEEP_COLUMNS)
    total = int(is_image.sum())
    if layers and (
        columns is None
        or not torch.equal(columns.cpu(), is_image)
        or any(layer.shape[0] != total for layer in layers)
    ):
        raise ModelError(
            f"the decoder of {vlm.name!r} adds {DEEP_TOKENS!r} at other columns than those of "
            "pictures. Pictures of this family cannot be recorded."
        )
    start = int(is_image[:prompt].sum())
    end = start + int(is_image[prompt].sum())
    # Copies: a part of the whole would keep all of it in memory.
    return tuple(layer[start:end].clone() for layer in layers)


def is_picture(vlm: Vlm, ids: Tensor) -> Tensor:
    """Where a picture stands; nowhere, where a family has no id for that."""
    return torch.isin(ids, torch.tensor(vlm.picture_ids, dtype=ids.dtype, device=ids.device))


def _check_rows(
    vlm: Vlm, encoded: EncodedBatch, exits: Sequence[int | None], prompts: Sequence[int]
) -> None:
    _refuse_other_exits(vlm)
    if not exits or len(exits) != len(prompts):
        raise ConfigError(
            f"{len(exits)} exits were given for {len(prompts)} rows. Give one exit per row, None "
            "for the model's own."
        )
    for exit_layer in exits:
        if exit_layer is not None:
            check_exit(exit_layer, vlm.num_vision_blocks)
    wrong = sorted({prompt for prompt in prompts if not 0 <= prompt < encoded.batch_size})
    if wrong:
        raise ConfigError(
            f"prompt(s) {', '.join(map(str, wrong))} are out of range. Allowed: 0 .. "
            f"{encoded.batch_size - 1} (the prompts of the encoded batch)."
        )


def _refuse_other_exits(vlm: Vlm) -> None:
    at_exit = [condition for condition in vlm.conditions if condition.startswith("vision exit")]
    if at_exit:
        raise ConfigError(
            f"the model is already at an exit ({', '.join(at_exit)}), and a row can have one exit "
            "only. Leave that context first."
        )


def _check_fits(inputs: ImageInputs, is_image: Tensor) -> None:
    """Refuse rows that do not belong to the ids; is_image is (B, S)."""
    if len(inputs) != is_image.shape[0]:
        raise ConfigError(
            f"the pictures of {len(inputs)} rows were given for {is_image.shape[0]} rows of ids. "
            "Give one row each; `ImageInputs.take` repeats and leaves out rows."
        )
    states = [item for item in inputs.cross_states if item is not None]
    shapes = {tuple(item.shape) for item in states}
    if len(shapes) > 1 or (states and len(states) < len(inputs)):
        raise ConfigError(
            f"{len(states)} of {len(inputs)} rows have pictures to cross-attend to, in shapes "
            f"{', '.join(map(str, sorted(shapes)))}. One batch needs the same in all rows. Group "
            "the rows by number of images."
        )
    counts: list[int] = is_image.sum(dim=1).tolist()
    wrong: list[str] = []
    for row, (count, tokens) in enumerate(zip(counts, inputs.tokens, strict=True)):
        if states and count:
            continue
        wanted = "some" if states else 0 if tokens is None else len(tokens)
        if count != wanted:
            wrong.append(f"row {row} has {count} instead of {wanted}")
    if wrong:
        raise ConfigError(
            f"the ids do not have the image placeholders of the recorded prompts: "
            f"{'; '.join(wrong)}. Give the ids of the same prompts in the same order."
        )


def _name_exits(inputs: ImageInputs) -> list[str]:
    """The condition of a model that is fed: its exits, without those of rows without a picture."""
    pairs = zip(inputs.exits, inputs.have_picture, strict=True)
    exits = {exit_layer for exit_layer, has_picture in pairs if has_picture}
    if not exits:
        return []
    numbers = [str(exit_layer) for exit_layer in sorted(item for item in exits if item is not None)]
    return [f"vision exits {', '.join([*(['none'] if None in exits else []), *numbers])}"]
