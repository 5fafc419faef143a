"""Where in the decoder a vision exit acts: how far it moves a request along the safety direction.

For every exit and decoder layer, the mean over things of the mean over a thing's requests of

    <x_exit - x_default, s> / <s, s>

at the last prompt token, s being the layer's safety direction (from unsafe to safe, see
`vlmend.diagnosis.shift`). Above 0 the exit makes requests look safer to the decoder than the
default exit does, below 0 less safe; 1 is the distance between the mean unsafe and the mean safe
text prompt. It says that the exit moves what the direction measures, not that this is why the
answers change. Intervals are over things (`group_of`): requests about one thing in several
pictures are moved alike, and do not say how another thing would be.

Shapes: N = requests, B = requests of a batch, L = layers with a direction, D = width.

Reference: joins Bachu et al. (arXiv 2411.04291), exits, and Zou et al. (arXiv 2502.13095),
projection on the safety direction; neither measures this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmend.diagnosis.intervals import average_by_group
from vlmend.errors import ConfigError, DataError
from vlmend.evals.batches import run_in_batches
from vlmend.evals.groups import group_of
from vlmend.hooks.exits import VisionReplay
from vlmend.hooks.record import record_layers
from vlmend.models.spec import check_exit, check_layers
from vlmend.models.vlm import EncodedBatch, Vlm
from vlmend.types import Sample


def measure_exit_decoder(
    vlm: Vlm,
    directions: Mapping[int, Tensor],
    samples: Sequence[Sample],
    exits: Sequence[int],
    batch_size: int = 32,
) -> list[dict[str, Any]]:
    """Mean position of every exit along the safety direction, relative to the default exit.

    The vision blocks run once per batch for all exits, the decoder once per exit.

    Args:
        vlm: The model, without repairs applied and not at an exit.
        directions: Safety direction s by decoder layer, (D,) each, not zero. Layers without one
            are not measured.
        samples: Requests with pictures.
        exits: Vision exits, 0 .. N. The default exit is 0 at every layer by construction.
        batch_size: Most prompts per forward pass; halved whenever memory runs out.

    Returns:
        "decoder" records {"exit", "layer", "coefficient": Stat}, by exit, then by layer; n is
        the number of things.

    Raises:
        ConfigError: No or unusable directions, an exit out of range, no batch size, or a model
            that is at an exit already.
        DataError: No items, items without a picture, or one that cannot be opened.
    """
    _check(vlm, directions, samples, exits, batch_size)
    layers = sorted(directions)
    s_LD = torch.stack([directions[layer].double().cpu() for layer in layers])
    wanted = sorted(set(exits))
    conversations = [sample.messages for sample in samples]
    moved: dict[int, Tensor] = {
        exit_layer: torch.zeros(len(samples), len(layers), dtype=torch.float64)
        for exit_layer in wanted
    }
    with VisionReplay(vlm) as replay:

        def run(places: list[int]) -> dict[int, Tensor]:
            encoded = vlm.encode([conversations[place] for place in places])
            replay.exit = None
            default_BLD = _read(vlm, encoded, layers)
            found: dict[int, Tensor] = {}
            for exit_layer in wanted:
                replay.exit = exit_layer
                is_default = exit_layer == vlm.default_exit
                x_BLD = default_BLD if is_default else _read(vlm, encoded, layers)
                found[exit_layer] = ((x_BLD - default_BLD) * s_LD).sum(-1) / (s_LD * s_LD).sum(-1)
            return found

        for places, found in run_in_batches(conversations, run, batch_size=batch_size):
            for exit_layer, moved_BL in found.items():
                moved[exit_layer][places] = moved_BL
    groups = [group_of(sample) for sample in samples]
    return [
        {
            "exit": exit_layer,
            "layer": layer,
            "coefficient": average_by_group(moved_NL[:, column].tolist(), groups),
        }
        for exit_layer, moved_NL in moved.items()
        for column, layer in enumerate(layers)
    ]


def _read(vlm: Vlm, encoded: EncodedBatch, layers: Sequence[int]) -> Tensor:
    """(B, L, D) float64 states of the last prompt token, on the CPU."""
    recorded = record_layers(vlm, encoded, layers)
    return torch.stack([recorded[layer].double().cpu() for layer in layers], dim=1)


def _check(
    vlm: Vlm,
    directions: Mapping[int, Tensor],
    samples: Sequence[Sample],
    exits: Sequence[int],
    batch_size: int,
) -> None:
    check_layers(list(directions), vlm.num_decoder_layers)
    unusable = [
        layer
        for layer, s_D in directions.items()
        if s_D.shape != (vlm.hidden_size,) or not bool(s_D.isfinite().all()) or not bool(s_D.any())
    ]
    if not directions or unusable:
        raise ConfigError(
            f"{len(directions)} directions were given, and those of layer(s) "
            f"{', '.join(map(str, unusable)) or 'none'} are zero, not finite or not of width "
            f"{vlm.hidden_size}: nothing has a position along them. Fit directions on safe and "
            "unsafe text, and leave out layers where the two do not differ."
        )
    if not exits or batch_size < 1:
        raise ConfigError(
            f"{len(exits)} exits in batches of {batch_size} cannot be measured. Give at least one "
            f"exit of 0 .. {vlm.num_vision_blocks}, and a batch size of at least 1."
        )
    for exit_layer in exits:
        check_exit(exit_layer, vlm.num_vision_blocks)
    if vlm.conditions:
        raise ConfigError(
            f"the model is already changed ({', '.join(vlm.conditions)}), so that its default exit "
            "is not its own. Measure outside of that context."
        )
    without = [sample.id for sample in samples if not sample.images]
    if without or not samples:
        raise DataError(
            f"exits change what a picture becomes, but {len(without)} of {len(samples)} items have "
            f"none ({', '.join(without[:3]) or 'no items given'}). Give items with pictures only."
        )
