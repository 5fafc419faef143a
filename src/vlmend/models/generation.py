"""Settings, results and middleware of generation. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from vlmend.errors import ConfigError
from vlmend.types import Conversation


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How answers are generated. Nothing is inherited from the model's own defaults.

    Attributes:
        max_new_tokens: Most tokens per answer, end-of-sequence included.
        temperature: 0 = greedy; above, the sampling temperature.
        top_p: Nucleus: smallest set of tokens with this probability mass; 1 = all tokens.
        seed: Seed of the sampling, used when temperature > 0. A sampled answer depends on
            the other prompts of its batch as well.
        use_cache: Keep keys and values between steps. Off is slow and for proofs only.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    use_cache: bool = True

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (self.max_new_tokens < 1, f"max_new_tokens={self.max_new_tokens} (allowed: >= 1)"),
                (self.temperature < 0, f"temperature={self.temperature} (allowed: >= 0)"),
                (not 0 < self.top_p <= 1, f"top_p={self.top_p} (allowed: above 0, at most 1)"),
            )
            if wrong
        ]
        if problems:
            raise ConfigError(f"generation settings out of range: {'; '.join(problems)}.")


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated answer.

    Attributes:
        text: Decoded answer without special tokens.
        finish: "eos", or "length" when it was cut at the token limit.
        prompt_tokens: Prompt length in tokens, padding excluded, image tokens included.
        new_tokens: Generated tokens, end-of-sequence included.
        token_ids: The generated tokens, end-of-sequence included.
    """

    text: str
    finish: Literal["eos", "length"]
    prompt_tokens: int
    new_tokens: int
    token_ids: tuple[int, ...]


GenerateCall = Callable[[Sequence[Conversation], GenerationSettings], list[Generation]]
"""Something that answers a batch: the plain generation, or a middleware around it."""


class Middleware(Protocol):
    """A layer around generation, e.g. one that rewrites prompts or edits activations.

    It may change the conversations and settings, call `call_next` any number of times, and
    must return one generation per conversation, in order.
    """

    def __call__(
        self,
        conversations: Sequence[Conversation],
        settings: GenerationSettings,
        call_next: GenerateCall,
    ) -> list[Generation]:
        """Answer the batch; `call_next` is the next inner layer."""
        ...
