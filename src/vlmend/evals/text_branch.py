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
from vlmend.evals.controls import strip_images
from vlmend.hooks.record import record_layers
from vlmend.models.vlm import Vlm
from vlmend.types import Conversation, conversation_images

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
    *before, last = strip_images(conversation)
    text = TEXT_BRANCH.format(query=last.text, caption=caption)
    return (*before, replace(last, content=(text,)))


def put_in_words(
    vlm: Vlm, conversations: Sequence[Conversation], captions: CaptionCache, caption_tokens: int
) -> list[Conversation]:
    """The text branch of one batch of conversations; `put_all_in_words` makes the batches.

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


def put_all_in_words(
    vlm: Vlm,
    conversations: Sequence[Conversation],
    captions: CaptionCache,
    caption_tokens: int,
    *,
    batch_size: int,
) -> list[Conversation]:
    """The text branch of any conversations; those without images stay as they are.

    Args:
        vlm: The model.
        conversations: With any numbers of images.
        captions: Caption cache.
        caption_tokens: Length limit of captions in new tokens.
        batch_size: Most captions generated at a time; halved when memory runs out.

    Returns:
        One per conversation, in order.

    Raises:
        VlmendError: As `caption_all`.
    """
    places = [i for i, c in enumerate(conversations) if conversation_images(c)]
    pictured = [conversations[i] for i in places]
    found = caption_all(vlm, pictured, captions, caption_tokens, batch_size=batch_size)
    words = list(conversations)
    for place, caption in zip(places, found, strict=True):
        words[place] = text_conversation(conversations[place], caption)
    return words


def caption_all(
    vlm: Vlm,
    conversations: Sequence[Conversation],
    captions: CaptionCache,
    caption_tokens: int,
    *,
    batch_size: int,
) -> list[str]:
    """Captions of any number of conversations, whatever the number of their images.

    Args:
        vlm: The model.
        conversations: With at least one image each.
        captions: Caption cache.
        caption_tokens: Length limit of captions in new tokens.
        batch_size: Most captions generated at a time; halved when memory runs out.

    Returns:
        One caption per conversation, in order.

    Raises:
        ConfigError: A batch size below 1.
        VlmendError: As `CaptionCache.get_all`.
    """

    def caption(places: list[int]) -> list[str]:
        return captions.get_all(vlm, [conversations[i] for i in places], caption_tokens)

    found: dict[int, str] = {}
    for places, texts in run_in_batches(conversations, caption, batch_size=batch_size):
        found |= dict(zip(places, texts, strict=True))
    return [found[i] for i in range(len(conversations))]


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
    words = put_all_in_words(vlm, conversations, captions, caption_tokens, batch_size=_FIT_BATCH)

    def record(places: list[int]) -> dict[int, Tensor]:
        return record_layers(vlm, [words[i] for i in places])

    rows: dict[int, list[Tensor]] = {}
    order: list[int] = []
    for places, recorded in run_in_batches(words, record, batch_size=_FIT_BATCH):
        for layer, x_BD in recorded.items():
            rows.setdefault(layer, []).append(x_BD.float().cpu())
        order += places
    back = torch.tensor(order).argsort()
    return {layer: torch.cat(parts)[back] for layer, parts in rows.items()}
