"""The caption in place of the picture: what the model would say if it had been told in words.

Not a repair but the mark that ShiftDC is measured against: its calibration moves the picture's
answer to where this one lies.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), the text branch t_tt.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from vlmend.errors import ConfigError
from vlmend.evals.arms import Arm
from vlmend.evals.captions import CAPTION_PROMPT, CaptionCache
from vlmend.evals.text_branch import TEXT_BRANCH, put_in_words
from vlmend.models.generation import GenerateCall, Generation, GenerationSettings
from vlmend.models.vlm import Vlm
from vlmend.types import Conversation, conversation_images, sha256_json


@dataclass
class CaptionInstead:
    """Answers requests with pictures from the model's own caption alone.

    Attributes:
        captions: Where self-captions are kept.
        caption_tokens: Length limit of a caption in new tokens.
    """

    captions: CaptionCache = field(default_factory=CaptionCache)
    caption_tokens: int = 128

    def __post_init__(self) -> None:
        if self.caption_tokens < 1:
            raise ConfigError(f"caption_tokens={self.caption_tokens} is not possible: at least 1.")

    @property
    def name(self) -> str:
        """The name "caption instead of image"."""
        return "caption instead of image"

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides an answer."""
        return sha256_json(["caption instead", CAPTION_PROMPT, TEXT_BRANCH, self.caption_tokens])

    @contextmanager
    def apply(self, vlm: Vlm) -> Generator[None]:
        """Take pictures away and put captions in while the context is open."""
        with vlm.using(partial(self._answer, vlm)):
            yield

    def _answer(
        self,
        vlm: Vlm,
        conversations: Sequence[Conversation],
        settings: GenerationSettings,
        call_next: GenerateCall,
    ) -> list[Generation]:
        if all(conversation_images(conversation) for conversation in conversations):
            conversations = put_in_words(vlm, conversations, self.captions, self.caption_tokens)
        return call_next(conversations, settings)


def text_branch_arm(captions: CaptionCache, caption_tokens: int) -> Arm:
    """The arm "text branch".

    Args:
        captions: Caption cache.
        caption_tokens: Length limit of a caption in new tokens.
    """
    return Arm("text branch", (CaptionInstead(captions, caption_tokens),))
