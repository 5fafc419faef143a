"""Reading the residual stream: the output of decoder layers, at the positions asked for.

A hook sees exactly the place where `edit_layers` edits. (The last entry of transformers'
`hidden_states` is another place: after the final norm.)

Shapes: B = prompts, S = prompt columns, D = width.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Literal

from torch import Tensor

from vlmend.errors import ModelError
from vlmend.hooks.chunks import hook_layers
from vlmend.hooks.positions import check_position
from vlmend.models.vlm import EncodedBatch, Vlm
from vlmend.types import Conversation

RecordPosition = Literal["prompt_last", "prompt"]


@contextmanager
def recording(
    vlm: Vlm, layers: Sequence[int] | None = None, position: RecordPosition = "prompt_last"
) -> Generator[dict[int, Tensor]]:
    """Record whatever runs inside, e.g. a `Vlm.generate` under an edit.

    Later passes overwrite earlier ones. A recording opened inside an edit sees edited states,
    one opened outside of it the states before that edit.

    Args:
        vlm: The model.
        layers: Decoder layers, 0-based; all of them by default.
        position: "prompt_last" keeps (B, D) per layer and nothing of the other columns;
            "prompt" keeps (B, S, D), padding columns included.

    Yields:
        A dict by layer, filled while the model runs; layers that do not run are missing. Own
        copies, on the model's device, in its dtype, without gradient.

    Raises:
        ConfigError: Layer or position unknown.
    """
    check_position(position, ("prompt_last", "prompt"))
    wanted = range(vlm.num_decoder_layers) if layers is None else layers
    kept: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor, start: int, stop: int) -> None:
        # A copy: a view would keep every column of the layer alive.
        if position == "prompt_last":
            kept[layer] = hidden[:, stop - 1].detach().clone()
        else:
            kept[layer] = hidden[:, start:stop].detach().clone()

    with hook_layers(vlm, dict.fromkeys(wanted, keep), position):
        yield kept


def record_layers(
    vlm: Vlm,
    prompts: EncodedBatch | Sequence[Conversation],
    layers: Sequence[int] | None = None,
    position: RecordPosition = "prompt_last",
) -> dict[int, Tensor]:
    """Run prompts once, without answering, and return the layers' outputs.

    Args:
        vlm: The model.
        prompts: An encoded batch, or conversations to encode.
        layers: Decoder layers, 0-based; all of them by default.
        position: See `recording`. For "prompt" the padding mask is
            `EncodedBatch.attention_mask`.

    Returns:
        By layer, in ascending order: (B, D) for "prompt_last", (B, S, D) for "prompt"; on the
        model's device, in its dtype. On text-only input the layers that the family declares
        as image-only are missing.

    Raises:
        ConfigError: Layer or position unknown.
        ModelError: A layer did not run although the family says that it does.
    """
    encoded = prompts if isinstance(prompts, EncodedBatch) else vlm.encode(prompts)
    wanted = set(range(vlm.num_decoder_layers) if layers is None else layers)
    with recording(vlm, sorted(wanted), position) as kept:
        vlm.forward_prompt(encoded)
    excused = frozenset() if encoded.num_images else vlm.image_only_layers
    missing = sorted(wanted - set(kept) - excused)
    if missing:
        raise ModelError(
            f"decoder layer(s) {', '.join(map(str, missing))} of {vlm.name!r} did not run on "
            f"prompts with {encoded.num_images} image(s), although {vlm.spec.title} models are "
            "known to run them. The model is not what its config says."
        )
    return {layer: kept[layer] for layer in sorted(kept)}
