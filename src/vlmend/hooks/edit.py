"""Editing the residual stream: the output of decoder layers, at named positions.

Shapes: B = rows of the batch in order, K = columns edited in this chunk, D = width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlmend.errors import ConfigError, ModelError
from vlmend.hooks.chunks import hook_layers
from vlmend.hooks.positions import Position
from vlmend.models.vlm import Vlm

EditFunction = Callable[[Tensor], Tensor]
"""(B, K, D) -> (B, K, D)."""


@dataclass(slots=True)
class EditReport:
    """What an edit did; counts by layer, complete once the context is left.

    Attributes:
        columns: Columns edited, summed over the calls (not multiplied by the rows).
        calls: Forward passes in which at least one column was edited.
    """

    columns: dict[int, int] = field(default_factory=dict[int, int])
    calls: dict[int, int] = field(default_factory=dict[int, int])

    def require_all_edited(self) -> None:
        """Refuse an edit that did nothing at some layer.

        Raises:
            ModelError: Naming the layers.
        """
        idle = sorted(layer for layer, count in self.columns.items() if count == 0)
        if idle:
            raise ModelError(
                f"the edit did nothing at decoder layer(s) {', '.join(map(str, idle))}: no "
                "forward pass ran them at the named position. Layers that run only with an "
                "image do nothing on text; otherwise check the position."
            )


@contextmanager
def edit_layers(
    vlm: Vlm,
    functions: Mapping[int, EditFunction],
    position: Position = "prompt_last",
    *,
    prompt_columns: int | None = None,
) -> Generator[EditReport]:
    """Edit the outputs of decoder layers while the context is open.

    The model's tensors are never changed in place, and every hook is removed on the way out.
    Edits at several layers add up along the stream, as later layers read edited states.
    Contexts nest; the outer one's edit comes first.

    Args:
        vlm: The model.
        functions: By layer (0-based): takes a copy of the named columns, (B, K, D), and
            returns their replacement. K is 1 for "prompt_last". The rows are those of the
            batch in order; it may be computed in another dtype.
        position: "prompt_last" and "prompt" touch the prompt alone (with a cache that is the
            first pass, without one every pass), "generated" only new tokens, "all" both.
        prompt_columns: Padded prompt length, for forward passes outside `Vlm.generate` and
            `Vlm.forward_prompt`, which know it themselves.

    Yields:
        A report that counts as it goes.

    Raises:
        ConfigError: Layer or position unknown, or a function that changes the shape.
    """
    report = EditReport(dict.fromkeys(functions, 0), dict.fromkeys(functions, 0))

    def edit(layer: int, hidden: Tensor, start: int, stop: int) -> Tensor:
        chosen = hidden[:, start:stop].clone()
        edited = functions[layer](chosen)
        if edited.shape != chosen.shape:
            raise ConfigError(
                f"the edit function of layer {layer} returned shape {tuple(edited.shape)} for "
                f"{tuple(chosen.shape)} (rows, columns, width). It must keep the shape; an edit "
                "with one value per row must be given exactly the rows of the batch."
            )
        report.columns[layer] += stop - start
        report.calls[layer] += 1
        edited = edited.to(device=hidden.device, dtype=hidden.dtype)
        return torch.cat((hidden[:, :start], edited, hidden[:, stop:]), dim=1)

    with hook_layers(vlm, dict.fromkeys(functions, edit), position, prompt_columns=prompt_columns):
        yield report
