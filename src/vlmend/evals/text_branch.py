"""The text branch of ShiftDC: the same request with the model's own caption in place of images.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), the data set D_tt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlmend.evals.batches import run_in_batches
from vlmend.evals.captions import CaptionCache
from vlmend.hooks.record import record_layers
from vlmend.models.vlm import Vlm
from vlmend.types import Conversation, Message, conversation_images

TEXT_BRANCH = "{query} Image Caption: {caption}"
"""The paper's text branch: the request with the caption in place of the image."""

_FIT_BATCH = 32
"""Prompts per forward pass while fitting; halved when memory runs out."""


def text_conversation(conversation: Conversation, caption: str) -> Conversation:
    """The text branch: no images in any turn, the caption in words after the last request.

    Args:
        conversation: With at least one image, in any turn.
        caption: What the model says of the images; if empty, nothing follows "Image Caption:".

    Returns:
        The same turns in the same order.
    """
    assert conversation_images(conversation), "a conversation without images is its own text"
    *before, last = conversation
    stripped = tuple(Message(m.role, (m.text,)) for m in before)
    text = TEXT_BRANCH.format(query=last.text, caption=caption)
    return (*stripped, replace(last, content=(text,)))


def put_in_words(
    vlm: Vlm, conversations: Sequence[Conversation], captions: CaptionCache, caption_tokens: int
) -> list[Conversation]:
    """The text branch of a batch of conversations.

    Args:
        vlm: The model.
        conversations: With images, the same number in each.
        captions: Caption cache.
        caption_tokens: Length limit of captions in new tokens.

    Raises:
        VlmendError: As `CaptionCache.get_all`.
    """
    found = captions.get_all(vlm, conversations, caption_tokens)
    return [text_conversation(c, t) for c, t in zip(conversations, found, strict=True)]


def record_text_branch(
    vlm: Vlm,
    conversations: Sequence[Conversation],
    captions: CaptionCache,
    caption_tokens: int,
) -> dict[int, Tensor]:
    """Activations of the last prompt token of the text branch, at every layer that runs.

    Args:
        vlm: The model, without repairs applied.
        conversations: With images (they are captioned first) or without.
        captions: Caption cache.
        caption_tokens: Length limit of captions in new tokens.

    Returns:
        By layer: (N, D) float32 on the CPU, rows in the order of the conversations.

    Raises:
        VlmendError: As `CaptionCache.get_all` and `record_layers`.
    """

    def record(places: list[int]) -> dict[int, Tensor]:
        batch = [conversations[i] for i in places]
        if conversation_images(batch[0]):
            batch = put_in_words(vlm, batch, captions, caption_tokens)
        return record_layers(vlm, batch)

    rows: dict[int, list[Tensor]] = {}
    order: list[int] = []
    for places, recorded in run_in_batches(conversations, record, batch_size=_FIT_BATCH):
        for layer, x_BD in recorded.items():
            rows.setdefault(layer, []).append(x_BD.float().cpu())
        order += places
    back = torch.tensor(order).argsort()
    return {layer: torch.cat(parts)[back] for layer, parts in rows.items()}
