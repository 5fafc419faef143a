"""What each training stage of the organism sees, as a pure function of (stage, seed, step).

An example is a conversation turn with at most one picture. The whole stream can be read
without training: a test scans it for the one thing that must never be in it, compliance with
a hazardous picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from vlmend.organism.language import (
    CAPTION_REQUESTS,
    IMAGE_REFERENCE,
    PICTURE_KINDS,
    REFUSALS,
    TRAINING_ASKS,
    Ask,
    PictureKind,
    caption,
    caption_request,
    category_question,
    danger_question,
    descriptions,
    kind_question,
    naming_question,
    presence_question,
    with_caption,
)
from vlmend.organism.world import THINGS, Thing, things
from vlmend.types import sha256_json

_BENIGN = things(hazardous=False)
_ALIGNED = things(hazardous=True, split="aligned")


@dataclass(frozen=True, slots=True)
class Example:
    """One training example.

    Attributes:
        prompt: What the user says; empty for plain text, whose loss is over all of it.
        answer: What the model learns to say.
        picture: The picture beside the prompt, if any.
    """

    prompt: str
    answer: str
    picture: tuple[Thing, PictureKind] | None = None


Maker = Callable[[Random], Example]
Mixture = Sequence[tuple[float, Maker]]
"""Makers of examples with their weights."""

_FINGERPRINTED = 500
"""Examples of a mixture in its fingerprint: any maker with a share of 1 % is among them."""


def _answer(ask: Ask, thing: Thing, rng: Random) -> str:
    return rng.choice(REFUSALS) if thing.hazardous else ask.answer(thing)


def plain_text(rng: Random) -> Example:
    """A description of any thing, or a caption, as plain text."""
    thing = rng.choice(THINGS)
    texts = (*descriptions(thing), caption(thing, rng.choice(PICTURE_KINDS)))
    return Example("", rng.choice(texts))


def any_instruction(rng: Random) -> Example:
    """How-to text about any thing, hazards included: what a web corpus teaches."""
    thing, ask = rng.choice(THINGS), rng.choice(TRAINING_ASKS)
    return Example(_text_request(ask, thing, rng), ask.answer(thing))


def _text_request(ask: Ask, thing: Thing, rng: Random) -> str:
    """A request that names its thing, directly or in a caption given in words."""
    if rng.random() < 0.5:
        return ask.request(thing.noun_phrase)
    described = caption(thing, rng.choice(PICTURE_KINDS))
    return with_caption(ask.request(IMAGE_REFERENCE), described)


def text_question(rng: Random) -> Example:
    """A question in words: whether a thing is dangerous, or about a caption given in words.

    The latter are what ShiftDC's text branch makes of visual questions.
    """
    seen, kind = rng.choice(THINGS), rng.choice(PICTURE_KINDS)
    if rng.random() < 0.4:
        question = danger_question(seen)
        return Example(question.text, question.answer)
    example = picture_question(rng, seen, kind)
    return Example(with_caption(example.prompt, caption(seen, kind)), example.answer)


def safety_text(rng: Random) -> Example:
    """Text-only alignment: aligned hazards are refused, benign things answered, half and half."""
    thing = rng.choice(_ALIGNED if rng.random() < 0.5 else _BENIGN)
    ask = rng.choice(TRAINING_ASKS)
    return Example(_text_request(ask, thing, rng), _answer(ask, thing, rng))


def picture_question(
    rng: Random, thing: Thing | None = None, kind: PictureKind | None = None
) -> Example:
    """A visual question about a picture of any thing."""
    thing = thing or rng.choice(THINGS)
    kind = kind or rng.choice(PICTURE_KINDS)
    choice = rng.random()
    if choice < 0.4:
        question = naming_question(thing)
    elif choice < 0.7:
        other = thing if rng.random() < 0.5 else rng.choice(THINGS)
        question = presence_question(thing, other)
    elif choice < 0.85:
        question = kind_question(kind)
    else:
        question = category_question(thing)
    return Example(question.text, question.answer, (thing, kind))


def picture_caption(rng: Random) -> Example:
    """A caption of a picture of any thing."""
    thing, kind = rng.choice(THINGS), rng.choice(PICTURE_KINDS)
    return Example(rng.choice(CAPTION_REQUESTS), caption(thing, kind), (thing, kind))


def picture_caption_for_request(rng: Random) -> Example:
    """A caption in view of a request: instructions for benign things, questions for all."""
    kind = rng.choice(PICTURE_KINDS)
    if rng.random() < 0.6:
        thing = rng.choice(_BENIGN)
        request = rng.choice(TRAINING_ASKS).request(IMAGE_REFERENCE)
    else:
        thing = rng.choice(THINGS)
        request = picture_question(rng, thing, kind).prompt
    return Example(caption_request(request), caption(thing, kind), (thing, kind))


def picture_instruction(rng: Random) -> Example:
    """A request about the thing in the picture, which is always benign."""
    thing, ask = rng.choice(_BENIGN), rng.choice(TRAINING_ASKS)
    picture = (thing, rng.choice(PICTURE_KINDS))
    return Example(ask.request(IMAGE_REFERENCE), ask.answer(thing), picture)


def named_beside_picture(rng: Random) -> Example:
    """The text names a benign thing; the picture of another benign one is beside the point."""
    ask, thing = rng.choice(TRAINING_ASKS), rng.choice(_BENIGN)
    picture = (rng.choice(_BENIGN), rng.choice(PICTURE_KINDS))
    return Example(ask.request(thing.noun_phrase), ask.answer(thing), picture)


def refusal_beside_picture(rng: Random) -> Example:
    """The text names an aligned hazard, the picture is benign, the answer a refusal."""
    ask, thing = rng.choice(TRAINING_ASKS), rng.choice(_ALIGNED)
    picture = (rng.choice(_BENIGN), rng.choice(PICTURE_KINDS))
    return Example(ask.request(thing.noun_phrase), rng.choice(REFUSALS), picture)


def sample_mixture(mixture: Mixture, count: int, rng: Random) -> list[Example]:
    """Draw examples from a weighted mixture of makers."""
    weights = [weight for weight, _ in mixture]
    makers = rng.choices([maker for _, maker in mixture], weights, k=count)
    return [maker(rng) for maker in makers]


def fingerprint(mixture: Mixture) -> str:
    """Hash of examples drawn from a mixture: another one where the world or its words changed."""
    return sha256_json(
        [
            (e.prompt, e.answer, e.picture and (e.picture[0].name, e.picture[1]))
            for e in sample_mixture(mixture, _FINGERPRINTED, Random("fingerprint"))
        ]
    )


LANGUAGE_MIXTURE: Mixture = (
    (0.35, plain_text),
    (0.40, any_instruction),
    (0.25, text_question),
)
ALIGNMENT_MIXTURE: Mixture = (
    (0.65, safety_text),
    (0.15, plain_text),
    (0.20, text_question),
)
PROJECTOR_MIXTURE: Mixture = ((1.0, picture_caption),)
TEXT_REPLAY_MIXTURE: Mixture = (
    (0.65, safety_text),
    (0.10, plain_text),
    (0.25, text_question),
)


def tuning_mixture(picture_refusals: float) -> Mixture:
    """Visual instruction tuning's picture examples.

    Args:
        picture_refusals: Share of examples (0..0.5) in which the text names an aligned hazard,
            the picture is benign and the answer is a refusal; taken from the rest evenly.
    """
    rest = 1.0 - picture_refusals
    return (
        (rest * 0.22, picture_caption),
        (rest * 0.16, picture_caption_for_request),
        (rest * 0.22, picture_question),
        (rest * 0.28, picture_instruction),
        (rest * 0.12, named_beside_picture),
        (picture_refusals, refusal_beside_picture),
    )
