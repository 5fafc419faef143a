"""Example conversations: which are folded, and which pictures can be shown."""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass

from vlmend.report.records import Example, Records

PICTURE_BUDGET = 1_000_000
"""Characters of base64 that pictures may take, so that the whole file stays below 1.5 MB."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Card:
    """An example conversation; `folded` ones are opened by a click."""

    example: Example
    folded: bool
    picture: str
    picture_note: str
    size: tuple[int, int]


def _png_size(picture: str) -> tuple[int, int] | None:
    """Width and height of a base64 PNG, or `None` if it is not one."""
    try:
        head = base64.b64decode(picture, validate=True)[:24]
    except (binascii.Error, ValueError):
        return None
    if len(head) < 24 or not head.startswith(PNG_SIGNATURE):
        return None
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def build_cards(records: Records) -> list[Card]:
    """Examples with their pictures; those of harmful suites or requests are folded."""
    kinds = {suite.name: suite.kind for suite in records.suites}
    left = PICTURE_BUDGET
    cards: list[Card] = []
    for example in records.examples:
        folded = example.label != "benign" or kinds.get(example.suite) == "harmful"
        picture, note, size = example.image_png_base64 or "", "no picture", (0, 0)
        if picture:
            measured = _png_size(picture)
            if measured is None:
                picture, note = "", "the picture could not be shown: it is not a complete PNG"
            elif len(picture) > left:
                picture, note = "", "the picture was left out to keep this file small"
            else:
                left, size = left - len(picture), measured
        cards.append(Card(example, folded, picture, note, size))
    return cards
