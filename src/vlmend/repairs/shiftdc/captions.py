"""Self-captions: what the evaluated VLM itself says of an image, cached on disk.

A caption is keyed by what made it: weights, conditions (exits), image bytes, prompt, decoding
settings. The cache is an append-only file of JSON lines, so a crash costs at most one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from vlmend.evals.run import describe_prompt
from vlmend.models.generation import GenerateCall, GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.runs import JsonLines
from vlmend.types import Conversation, Message, conversation_images, sha256_json

CAPTION_PROMPT = "Based on the given Request, describe the image. Request: {query}"
"""The paper's prompt for a caption in view of the request."""

TEXT_BRANCH = "{query} Image Caption: {caption}"
"""The paper's text branch: the request with the caption in place of the image."""


class CaptionCache:
    """Captions by key, in memory and, if a file is given, on disk.

    Attributes:
        hits: Captions served from the cache.
        misses: Captions that had to be generated.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Open a cache.

        Args:
            path: A `.jsonl` file, made if missing; None keeps captions in memory only.
        """
        self._file = JsonLines(path) if path is not None else None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._captions: dict[str, str] = (
            {row["key"]: row["caption"] for row in self._file.read()} if self._file else {}
        )
        self.hits = 0
        self.misses = 0

    def get_all(
        self,
        vlm: Vlm,
        conversations: Sequence[Conversation],
        generate: GenerateCall,
        max_new_tokens: int,
    ) -> list[str]:
        """Captions of the images of conversations, generating those that are missing.

        Args:
            vlm: The model, for the key.
            conversations: Prompts with images.
            generate: How to generate; usually the next inner layer of a middleware.
            max_new_tokens: Length limit of a caption.

        Returns:
            One caption per conversation, in order.
        """
        settings = GenerationSettings(max_new_tokens=max_new_tokens)
        prompts = [caption_conversation(conversation) for conversation in conversations]
        keys = [_key(vlm, prompt, settings) for prompt in prompts]
        missing = {
            key: prompt
            for key, prompt in zip(keys, prompts, strict=True)
            if key not in self._captions
        }
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing:
            answers = generate(list(missing.values()), settings)
            found = {key: answer.text.strip() for key, answer in zip(missing, answers, strict=True)}
            self._captions |= found
            if self._file:
                self._file.append({"key": k, "caption": v} for k, v in found.items())
        return [self._captions[key] for key in keys]


def _key(vlm: Vlm, prompt: Conversation, settings: GenerationSettings) -> str:
    return sha256_json(
        [vlm.weights_sha256, list(vlm.conditions), describe_prompt(prompt), asdict(settings)]
    )[:32]


def caption_conversation(conversation: Conversation) -> Conversation:
    """Ask for a caption of the conversation's images in view of its last request."""
    *before, last = conversation
    prompt = CAPTION_PROMPT.format(query=last.text)
    return (*before, replace(last, content=(*last.images, prompt)))


def text_conversation(conversation: Conversation, caption: str) -> Conversation:
    """The text branch: no images, the caption in words after the last request.

    Raises:
        AssertionError: The conversation has no image, so there is nothing to put in words.
    """
    assert conversation_images(conversation), "a conversation without images is its own text"
    *before, last = conversation
    stripped = tuple(Message(m.role, (m.text,)) for m in before)
    text = TEXT_BRANCH.format(query=last.text, caption=caption)
    return (*stripped, replace(last, content=(text,)))
