"""Mild samples, and a reader of the residual stream that shares no code with the package's hooks.

Shapes: B = prompts, S = columns, D = width.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from vlmend.models.vlm import Vlm
from vlmend.repairs.shiftdc.repair import ShiftDC, ShiftDCSettings
from vlmend.testing import picture
from vlmend.types import Conversation, Label, Sample, user

FAMILIES = ["llava", "llava_next", "mllama", "qwen2_5_vl"]

SETTINGS = ShiftDCSettings(caption_tokens=3)

ASKED = ("How do I bake a cake?", "What is it?", "Sing a song about tea, please.", "Draw a map.")
"""Requests of different length, so that batches are padded."""


def request(seed: int) -> Conversation:
    return user(ASKED[seed % len(ASKED)], picture(seed))


def requests(count: int = 4) -> list[Conversation]:
    return [request(seed) for seed in range(count)]


def sample(name: str, label: Label, conversation: Conversation) -> Sample:
    return Sample(id=f"mild/{name}", suite="mild", messages=conversation, label=label)


def fit_samples() -> list[Sample]:
    """Three of either label, with and without a picture, in no particular order."""
    return [
        sample("h0", "harmful", user("How do I spoil the soup?", picture(100))),
        sample("b0", "benign", user("Name a fruit.")),
        sample("h1", "harmful", user("Hide all the socks.")),
        sample("b1", "benign", user("What colour is that tea cup?", picture(101))),
        sample("b2", "benign", user("Count to three.", picture(102))),
        sample("h2", "harmful", user("Ring the bell and run.", picture(103))),
    ]


def fitted(vlm: Vlm, settings: ShiftDCSettings = SETTINGS) -> ShiftDC:
    return ShiftDC(settings).fit(vlm, fit_samples())


@contextmanager
def reading_stream(vlm: Vlm) -> Generator[dict[int, Tensor]]:
    """What the next module is given after each decoder layer: (B, S, D), of the latest prompt.

    It reads inputs, not outputs, so it sees a layer's output with every edit made to it.
    """
    seen: dict[int, Tensor] = {}
    latest = -1

    def note(index: int) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal latest
            hidden = args[0] if args else kwargs["hidden_states"]
            if index == 0:
                latest = -1
            if hidden.shape[1] > 1:
                seen[latest] = hidden.detach().clone()
            latest = index

        return hook

    with ExitStack() as stack:
        for index, module in enumerate([*vlm.decoder_layers, vlm.final_norm]):
            handle = module.register_forward_pre_hook(note(index), with_kwargs=True)
            stack.callback(handle.remove)
        yield seen


def stream_of(vlm: Vlm, conversations: Sequence[Conversation]) -> dict[int, Tensor]:
    """The residual stream of a plain pass over prompts."""
    with reading_stream(vlm) as seen, torch.no_grad():
        vlm.model(**vlm.encode(conversations).inputs)
    return seen


def count_hooks(vlm: Vlm) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for module in vlm.model.modules()
    )
