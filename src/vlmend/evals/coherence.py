"""Is it language? Perplexity, repetition and length of answers.

An answer of an early vision exit may be unsafe or merely incoherent; these numbers tell the two
apart without another model.

- *Perplexity* under the same model on text only: the request without its pictures is the
  prompt, and every token of the answer is scored after those before it: exp(mean negative
  log-likelihood). Fluent text that does not fit the request scores high as well.
- *Repetition*: the share of the answer's token 3-grams that occurred earlier in it,
  1 - distinct / all; 0 below three tokens.
- *Length* in tokens of the model's tokenizer.

Deviation: 1. The answer's text is tokenized anew, after the prompt's tokens. Its own tokens may
have begun with a blank that the decoded text has lost. 2. The end-of-sequence token is not
scored, because an answer that was cut has none.

Shapes: A = tokens of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vlmend.errors import ConfigError
from vlmend.evals.answer_log_probs import log_probabilities, tokenize_answer
from vlmend.evals.batches import run_in_batches
from vlmend.evals.controls import strip_images
from vlmend.evals.text_quality import repetition_rate
from vlmend.models.vlm import Vlm
from vlmend.types import Conversation, user

_MAX_NLL = 700.0
"""Largest mean negative log-likelihood told apart: exp() of more is no finite number."""


@dataclass(frozen=True, slots=True)
class Coherence:
    """How an answer reads.

    Attributes:
        perplexity: Of its tokens after the request in words, 1 at best; None for an empty
            answer, which has no tokens.
        repetition: Share of repeated 3-grams, 0..1.
        tokens: Its length in tokens.
    """

    perplexity: float | None
    repetition: float
    tokens: int


def measure_coherence(
    vlm: Vlm,
    conversations: Sequence[Conversation],
    answers: Sequence[str],
    *,
    batch_size: int = 32,
) -> list[Coherence]:
    """Score answers under the model itself, on text only.

    Args:
        vlm: The model, without repairs applied.
        conversations: What was asked, with or without pictures; they are left out. The same
            answer to the same words is scored once.
        answers: One per conversation; may be empty.
        batch_size: Answers per forward pass; halved when memory runs out.

    Returns:
        One entry per answer, in order.

    Raises:
        ConfigError: Different numbers of conversations and answers, or no batch size.
        ModelError: The chat template fails, or the model has inputs that text does not fill.
    """
    if len(conversations) != len(answers) or batch_size < 1:
        raise ConfigError(
            f"{len(answers)} answers to {len(conversations)} requests in batches of {batch_size} "
            "cannot be scored. Give one answer per request, and a batch size of at least 1."
        )
    ids = [tokenize_answer(vlm, answer) for answer in answers]
    asked = [strip_images(conversation) for conversation in conversations]
    # The same answer to the same words is scored once: exits often answer alike.
    first: dict[tuple[Conversation, tuple[int, ...]], int] = {}
    same = [first.setdefault((asked[i], tuple(ids[i])), i) for i in range(len(ids))]
    todo = [i for i in first.values() if ids[i]]

    def score(places: list[int]) -> list[float]:
        rows = [todo[place] for place in places]
        return _score(vlm, [asked[i] for i in rows], [ids[i] for i in rows])

    nll: dict[int, float] = {}
    # Batches by the length of the answers: it is their logits that take the memory.
    by_answer = [user(answers[i]) for i in todo]
    for places, scores in run_in_batches(by_answer, score, batch_size=batch_size):
        nll |= {todo[place]: value for place, value in zip(places, scores, strict=True)}
    return [
        Coherence(
            perplexity=math.exp(min(nll[same[i]], _MAX_NLL)) if tokens else None,
            repetition=repetition_rate(tokens),
            tokens=len(tokens),
        )
        for i, tokens in enumerate(ids)
    ]


def _score(vlm: Vlm, prompts: Sequence[Conversation], answers: Sequence[list[int]]) -> list[float]:
    """Mean negative log-likelihood of every answer's tokens; one forward pass."""
    found = log_probabilities(vlm, prompts, answers)
    return [-float(row_A.mean()) for row_A in found]
