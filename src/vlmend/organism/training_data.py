"""The organism's forget and retain data: in words, through pictures, and in words beside pictures.

Only requests of `TRAINING_ASKS` are used, and no `test` things: what is measured is about these.
Forget data are requests about hazards with the organism's how-to as the answer to unlearn and one
of its refusals as target. The hazards are of split `fit`; in `organism/aligned-*` of split
`aligned`, whose requests in words the organism was taught to refuse. All other data are about
`fit` things. Retain data are, two in three, requests about benign things with their answer, and
one in three benign questions about things of both sorts: naming a hazard or saying that it is
dangerous is no harm, and is to stay.

Item i of a set is about the same thing and asks the same in words and in pictures, so that
methods that differ in modality see equal data. In words the thing is named in the request, or in
a caption given in words, half and half; in pictures it is shown as an icon, a word or both.
Beside pictures every request names its thing, and the picture shows another, benign one: the
setting in which vision exits are audited. The questions are about pictures there, too.

A picture is a pure function of (thing, kind, seed). Suites draw with non-negative seeds and the
organism was trained on seeds of which (-1 - seed) ends in 000 to 063; the ones here end in 600
to 999, so no picture is in two of the three.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Literal

from vlmend.organism.language import (
    CAPTION_REQUESTS,
    IMAGE_REFERENCE,
    PICTURE_KINDS,
    REFUSALS,
    TRAINING_ASKS,
    Ask,
    PictureKind,
    Question,
    caption,
    category_question,
    danger_question,
    kind_question,
    naming_question,
    presence_question,
    with_caption,
)
from vlmend.organism.pictures import draw_picture
from vlmend.organism.world import Thing, things
from vlmend.training.data.registry import DataSpec, Role
from vlmend.training.data.selection import Selection
from vlmend.training.examples import Example
from vlmend.types import Conversation, ImageRef, user

Modality = Literal["text", "pictures", "beside"]

HAZARDS = things(hazardous=True, split="fit")
ALIGNED = things(hazardous=True, split="aligned")
BENIGN = things(hazardous=False, split="fit")

NUM_FORGET = len(HAZARDS) * len(TRAINING_ASKS)
"""Every request about every hazard of split `fit`: 672."""

NUM_RETAIN = 2 * NUM_FORGET
"""Twice as many: 896 requests and 448 questions, seven about every one of 64 things."""

_QUESTIONS_PER_THING = 7

_BESIDE_EVERY = 4
"""One picture request in so many names its thing, and the picture shows another one."""

_BESIDE = NUM_FORGET + NUM_RETAIN
"""Pictures of the requests beside them are numbered from here: seeds of their own."""

_FIRST_RETAIN, _FIRST_ALIGNED = NUM_FORGET, 2 * _BESIDE
"""Where the numbers of the pictures of a set begin."""

_BESIDE_STEP = 5
"""Things between the pictures that stand beside two requests about one thing."""

_SEEDS_PER_BLOCK, _FIRST_SEED, _BLOCK = 400, 600, 1000


@dataclass(frozen=True, slots=True)
class _Item:
    """What one example is about, before it gets its modality.

    Attributes:
        thing: The thing asked about.
        turn: How often it came before.
        place: Its place among the things.
        index: The item's place in its set.
        number: That of its picture, which no item of another set has.
    """

    thing: Thing
    turn: int
    place: int
    index: int
    number: int

    @property
    def kind(self) -> PictureKind:
        """How it is drawn, or what its caption says it looks like."""
        return PICTURE_KINDS[(self.turn + self.place) % len(PICTURE_KINDS)]

    @property
    def ask(self) -> Ask:
        """What is asked of it; each thing has the requests in an order of its own."""
        return _asks_in_order(self.thing.name)[self.turn]


@cache
def _asks_in_order(name: str) -> tuple[Ask, ...]:
    return tuple(Random(f"asks/{name}").sample(TRAINING_ASKS, len(TRAINING_ASKS)))


def _take_turns(count: int, among: tuple[Thing, ...], index: int, number: int) -> _Item:
    """Every thing once, then every thing once more, and so on."""
    turn, place = divmod(count, len(among))
    return _Item(among[place], turn, place, index, number)


def load_forget(
    modality: Modality, _folder: Path | None, limit: int | None, role: Role
) -> Selection:
    """Requests about hazards of split `fit`, with the answer to unlearn and a refusal as target."""
    assert role == "forget", "load_training_data checks the role"
    return _load_harmful(f"organism/forget-{modality}", modality, HAZARDS, limit, 0)


def load_aligned(
    modality: Modality, _folder: Path | None, limit: int | None, role: Role
) -> Selection:
    """The same about aligned hazards."""
    assert role == "forget", "load_training_data checks the role"
    return _load_harmful(f"organism/aligned-{modality}", modality, ALIGNED, limit, _FIRST_ALIGNED)


def _load_harmful(
    source: str, modality: Modality, hazards: tuple[Thing, ...], limit: int | None, first: int
) -> Selection:
    whole = len(hazards) * len(TRAINING_ASKS)
    items = [_take_turns(i, hazards, i, first + i) for i in range(min(limit or whole, whole))]
    return Selection([_harmful_example(source, modality, item) for item in items])


def load_retain(
    modality: Modality, _folder: Path | None, limit: int | None, role: Role
) -> Selection:
    """Requests about benign things and benign questions, with their answers."""
    assert role == "retain", "load_training_data checks the role"
    source = f"organism/retain-{modality}"
    count = min(limit or NUM_RETAIN, NUM_RETAIN)
    return Selection([_retain_example(source, modality, index) for index in range(count)])


def _harmful_example(source: str, modality: Modality, item: _Item) -> Example:
    refusal = REFUSALS[(item.turn // 2 + item.place) % len(REFUSALS)]
    return _request_example(source, modality, item, refusal)


def _retain_example(source: str, modality: Modality, index: int) -> Example:
    if index % 3 == 2:
        return _question_example(source, modality, index)
    item = _take_turns(index - index // 3, BENIGN, index, _FIRST_RETAIN + index)
    return _request_example(source, modality, item, None)


def _request_example(source: str, modality: Modality, item: _Item, target: str | None) -> Example:
    form, messages = _REQUESTS[modality](item)
    return Example(
        id=f"{source}/{item.index}",
        source=source,
        messages=messages,
        answer=item.ask.answer(item.thing),
        target=target,
        meta={
            **describe_item(item.thing, form),
            "task": "request",
            "verb": item.ask.verb,
            "phrasing": str(item.ask.phrasing),
        },
    )


def describe_item(thing: Thing, form: str) -> dict[str, str]:
    """Facts of an example about a thing."""
    return {
        "form": form,
        "thing": thing.name,
        "category": thing.category,
        "hazardous": "yes" if thing.hazardous else "no",
        "split": thing.split,
    }


def _request_in_words(item: _Item) -> tuple[str, Conversation]:
    if (item.turn + item.place) % 2 == 0:
        return "text", user(item.ask.request(item.thing.noun_phrase))
    described = caption(item.thing, item.kind)
    return "caption", user(with_caption(item.ask.request(IMAGE_REFERENCE), described))


def _request_in_picture(item: _Item) -> tuple[str, Conversation]:
    is_beside = (item.turn + item.place) % _BESIDE_EVERY == _BESIDE_EVERY - 1
    if is_beside and not item.thing.hazardous:
        other = BENIGN[(item.place + item.turn + 1) % len(BENIGN)]
        image = _draw(other, item.kind, item.number)
        return "text+image", user(item.ask.request(item.thing.noun_phrase), image)
    image = _draw(item.thing, item.kind, item.number)
    return item.kind, user(item.ask.request(IMAGE_REFERENCE), image)


def _request_beside_picture(item: _Item) -> tuple[str, Conversation]:
    others = [thing for thing in BENIGN if thing is not item.thing]
    # In steps that share no factor with the kinds, so that every thing is shown in all of them.
    other = others[(item.place + _BESIDE_STEP * item.turn) % len(others)]
    image = _draw(other, item.kind, _BESIDE + item.number)
    return "text+image", user(item.ask.request(item.thing.noun_phrase), image)


_REQUESTS: dict[Modality, Callable[[_Item], tuple[str, Conversation]]] = {
    "text": _request_in_words,
    "pictures": _request_in_picture,
    "beside": _request_beside_picture,
}


def _draw(thing: Thing, kind: PictureKind, number: int) -> ImageRef:
    """A picture with a seed of this data alone, another one in every item."""
    return ImageRef(data=draw_picture(thing, kind, picture_seed(number)).png())


def picture_seed(number: int) -> int:
    """Seed of an item's picture; see the module docstring for what it must not be.

    Args:
        number: The item's place in its set, of forget data; 672 more of retain data, 4,032 more
            of data about aligned hazards; of requests beside pictures, 2,016 more again.

    Example:
        >>> picture_seed(0), picture_seed(672)
        (-601, -1873)
    """
    block, place = divmod(number, _SEEDS_PER_BLOCK)
    return -1 - (block * _BLOCK + _FIRST_SEED + place)


# ---- benign questions


@cache
def _asked_about() -> tuple[Thing, ...]:
    """Hazards and benign things, mixed."""
    both = (*HAZARDS, *BENIGN)
    return tuple(Random("questions").sample(both, len(both)))


def _question_example(source: str, modality: Modality, index: int) -> Example:
    among = _asked_about()
    item = _take_turns(index // 3, among, index, _FIRST_RETAIN + index)
    # Another question first for every thing, so that a limit keeps all of them.
    number = (item.turn + item.place) % _QUESTIONS_PER_THING
    kind = PICTURE_KINDS[(item.place + number) % len(PICTURE_KINDS)]
    question = _question(item, kind, number, modality)
    if modality != "text":
        form: str = kind
        drawn = item.number + (_BESIDE if modality == "beside" else 0)
        messages = user(question.text, _draw(item.thing, kind, drawn))
    elif number == 0:
        form, messages = "text", user(question.text)
    else:
        form = "caption"
        messages = user(with_caption(question.text, caption(item.thing, kind)))
    return Example(
        id=f"{source}/{index}",
        source=source,
        messages=messages,
        answer=question.answer,
        meta={**describe_item(item.thing, form), "task": "question"},
    )


def _question(item: _Item, kind: PictureKind, number: int, modality: Modality) -> Question:
    """One of the seven questions about a thing; the first one has no like in the other modality."""
    thing, among = item.thing, _asked_about()
    if number == 0:
        if modality == "text":
            return danger_question(thing)
        return Question(CAPTION_REQUESTS[item.place % len(CAPTION_REQUESTS)], caption(thing, kind))
    other = among[(item.place + 1 + item.turn) % len(among)]
    return (
        naming_question(thing),
        presence_question(thing, thing),
        category_question(thing),
        presence_question(thing, other),
        kind_question(kind),
        naming_question(thing),
    )[number - 1]


_SETS: dict[str, tuple[Role, Callable[..., Selection]]] = {
    "forget": ("forget", load_forget),
    "aligned": ("forget", load_aligned),
    "retain": ("retain", load_retain),
}

_DESCRIPTIONS: dict[tuple[str, Modality], str] = {
    ("forget", "text"): "672 requests about hazards of split fit in words, with how-to answers",
    ("forget", "pictures"): "the requests of organism/forget-text about the thing in a picture",
    ("forget", "beside"): "the requests of organism/forget-text beside pictures of benign things",
    ("aligned", "text"): "2,016 requests about aligned hazards in words, with how-to answers",
    ("aligned", "pictures"): "the requests of organism/aligned-text about the thing in a picture",
    ("aligned", "beside"): "the requests of organism/aligned-text beside pictures of benign things",
    ("retain", "text"): "896 requests about benign things and 448 benign questions, in words",
    ("retain", "pictures"): "the requests and questions of organism/retain-text about pictures",
    ("retain", "beside"): "896 benign requests beside another thing, 448 questions of pictures",
}


def _spec(name: str, modality: Modality, description: str) -> DataSpec:
    role, load = _SETS[name]
    return DataSpec(
        name=f"organism/{name}-{modality}",
        description=description,
        roles=(role,),
        modality="text" if modality == "text" else "image",
        load=partial(load, modality),
        licence="Apache-2.0",
        citation="vlmend: the model organism's own world, docs/organism.md",
        needs_folder=False,
    )


SPECS = tuple(_spec(*key, description) for key, description in _DESCRIPTIONS.items())
