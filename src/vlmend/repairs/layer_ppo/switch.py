"""An adapter for each exit: which one answers is decided by the exit that the model is at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

from vlmend.models.generation import GenerateCall, Generation, GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.repairs.adapter_artifact import Weights
from vlmend.training.adapter_loading import put_on
from vlmend.types import Conversation


class ExitSwitch:
    """A middleware: the adapter of the exit that the model is at answers, and no other."""

    def __init__(self, vlm: Vlm, weights: Weights, condition: str) -> None:
        """Note what to switch; it is put on the model by `with`, and by `vlm.using`.

        Args:
            vlm: The model.
            weights: Adapters by exit.
            condition: What to call them in `vlm.conditions`.
        """
        self._vlm = vlm
        self._weights = weights
        self._condition = condition
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Prove that every adapter does something, and note them on the model."""
        for exit_layer, weights in self._weights.items():
            with put_on(self._vlm, weights, f"exit {exit_layer}"):
                pass
        before = self._vlm.conditions
        self._vlm.conditions = (*before, self._condition)
        self._stack.callback(setattr, self._vlm, "conditions", before)
        return self

    def __exit__(self, *_error: object) -> None:
        """Take the note off again."""
        self._stack.close()

    def __call__(
        self,
        conversations: Sequence[Conversation],
        settings: GenerationSettings,
        call_next: GenerateCall,
    ) -> list[Generation]:
        """Answer with the adapter of the exit, or without one where it has none."""
        exit_layer = self._vlm.vision_exit
        if exit_layer not in self._vlm.distinct_exits:  # none, or one that changes nothing
            exit_layer = self._vlm.default_exit
        found = self._weights.get(exit_layer)
        if found is None:
            return call_next(conversations, settings)
        # Another proof would run its probe's picture through the encoder, at every batch and exit.
        with put_on(self._vlm, found, f"exit {exit_layer}", proven=True):
            return call_next(conversations, settings)
