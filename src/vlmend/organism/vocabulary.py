"""The organism's vocabulary, and who speaks it: how an organism is told from other models.

An organism in a folder of `vlmend organism train` is called what the folder is called. What tells
it is its language: presets, refusals and the reward model's pairs are in the words of its world,
and no other model has a tokenizer of exactly these. So repaired and merged organisms are organisms
too, whatever family their body is of. Needs no torch.
"""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any, cast

from vlmend.errors import RunError
from vlmend.organism.language import (
    ASKS,
    CAPTION_REQUESTS,
    IMAGE_REFERENCE,
    PICTURE_KINDS,
    REFUSALS,
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
from vlmend.organism.world import THINGS
from vlmend.runs import read_json

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
"""The first pieces: their places are their ids."""

_NAME = "organism"
"""What the organism that comes with vlmend is called on the command line."""

_PIECE = re.compile(r"[A-Za-z]+(?:'[a-z]+)?:?|[^\sA-Za-z]")


def vocabulary() -> dict[str, float]:
    """Pieces with their log-probabilities, by id: world words, then characters, then bytes.

    Example:
        >>> list(vocabulary())[:5]
        ['<pad>', '<s>', '</s>', '<unk>', '<image>']
    """
    words = sorted({piece for text in _corpus() for piece in _PIECE.findall(text)})
    pieces: dict[str, float] = dict.fromkeys(SPECIAL, 0.0)
    for word in words:
        is_word = word[0].isalpha()
        pieces.setdefault(f"▁{word}" if is_word else word, -1.0)
    for character in ("▁", *string.ascii_letters, *string.digits, *string.punctuation):
        pieces.setdefault(character, -10.0)
    for byte in range(256):
        pieces.setdefault(f"<0x{byte:02X}>", -20.0)
    return pieces


def _corpus() -> list[str]:
    """Every sentence pattern of the world, to read the vocabulary from."""
    texts = ["USER: ASSISTANT:", *REFUSALS, *CAPTION_REQUESTS, caption_request(""), IMAGE_REFERENCE]
    for thing in THINGS:
        texts += descriptions(thing)
        texts += [caption(thing, kind) for kind in PICTURE_KINDS]
        for question in (
            naming_question(thing),
            category_question(thing),
            danger_question(thing),
            presence_question(thing, thing),
            presence_question(thing, THINGS[0]),
        ):
            texts += [question.text, question.answer]
        texts += [ask.answer(thing) for ask in ASKS]
    texts += [kind_question(kind).text + " " + kind_question(kind).answer for kind in PICTURE_KINDS]
    texts += [with_caption(ask.request(IMAGE_REFERENCE), "") for ask in ASKS]
    return texts


def is_organism(model: str) -> bool:
    """Whether a model, as it was typed, is an organism of this world.

    Args:
        model: "organism", a folder, or a Hugging Face id.

    Example:
        >>> is_organism("organism"), is_organism("llava-hf/llava-1.5-7b-hf")
        (True, False)
    """
    if model == _NAME:
        return True
    path = Path(model).expanduser() / "tokenizer.json"
    return path.is_file() and _read_pieces(path) == list(vocabulary())


def _read_pieces(path: Path) -> list[Any]:
    """Pieces of a tokenizer's file by id; none where it is of another kind, or damaged.

    What is wrong with a file is said where the model is loaded.
    """
    try:
        found: Any = read_json(path)
        rows: Any = found["model"]["vocab"]
    except (RunError, KeyError, TypeError):
        return []
    if not isinstance(rows, list):  # other tokenizers have a table of ids
        return []
    pairs = cast("list[Any]", rows)
    return [row[0] if isinstance(row, list) and row else None for row in pairs]
