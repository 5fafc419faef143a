"""How the organism's world is drawn: icon, typographic, both; blank and noise as controls.

Mirrors the SD / OCR / SD+OCR pictures of MM-SafetyBench. Every picture is a pure function
of (thing, kind, seed): position, size, colour and font vary with the seed, the shape
of a thing's icon never does. Fonts are the DejaVu files that matplotlib carries, so
pictures are the same on every machine.
"""

from __future__ import annotations

import colorsys
import hashlib
import io
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vlmend.organism.language import PictureKind
from vlmend.organism.world import THINGS, Thing

SIZE = 64
"""Width and height of every picture in pixels."""

_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono-Bold.ttf")
_SHAPES = ("disc", "ring", "square", "frame", "triangle", "diamond", "cross", "bars", "star", "arc")
_GRID = 8
"""Side of the grid on which letters are located for OCR supervision (one cell a patch)."""

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
"""Multiples of it lie far apart on a circle: neighbours in shape get unlike hues."""
PICTURES_VERSION = 2
"""Raised whenever a picture changes: trained towers and drawn pools belong to one version."""

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture and where its letters are.

    Attributes:
        image: RGB, `SIZE` x `SIZE`.
        letters: (8, 8) uint8, row-major grid of patches; 0 for none, 1..26 for a..z: the
            letter that covers the centre of the patch.
    """

    image: Image.Image
    letters: np.ndarray

    def png(self) -> bytes:
        """The picture as PNG bytes."""
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG")
        return buffer.getvalue()


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", name)), size)


def _rng(*parts: object) -> np.random.Generator:
    """A generator seeded by the text of `parts`, equal on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def _colour(hue: float, lightness: float, saturation: float) -> Colour:
    red, green, blue = colorsys.hls_to_rgb(hue % 1.0, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, box: Box, fill: Colour) -> None:
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    stroke = max(2, round(width / 6))
    if shape == "disc":
        draw.ellipse(box, fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=stroke)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    elif shape == "frame":
        draw.rectangle(box, outline=fill, width=stroke)
    elif shape == "arc":
        draw.pieslice(box, 180, 360, fill=fill)
    elif shape == "cross":
        draw.rectangle((middle_x - stroke / 2, top, middle_x + stroke / 2, bottom), fill=fill)
        draw.rectangle((left, middle_y - stroke / 2, right, middle_y + stroke / 2), fill=fill)
    elif shape == "bars":
        for part in range(3):
            x = left + part * width * 0.4
            draw.rectangle((x, top, x + width * 0.2, bottom), fill=fill)
    else:
        draw.polygon(_corners(shape, box, width, height), fill=fill)


def _corners(shape: str, box: Box, width: float, height: float) -> list[tuple[float, float]]:
    left, top, right, bottom = box
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    if shape == "triangle":
        return [(middle_x, top), (right, bottom), (left, bottom)]
    if shape == "diamond":
        return [(middle_x, top), (right, middle_y), (middle_x, bottom), (left, middle_y)]
    points = []
    for corner in range(10):
        radius = 0.5 if corner % 2 == 0 else 0.22
        angle = math.pi * (corner / 5 - 0.5)
        points.append(
            (
                middle_x + radius * width * math.cos(angle),
                middle_y + radius * height * math.sin(angle),
            )
        )
    return points


@lru_cache(maxsize=1)
def _icon_plans() -> dict[str, tuple[str, str, str, float, float, int]]:
    """The fixed look of every thing: three shapes, two hues, where the small shape sits.

    No two icons are alike: a thing shares outer and inner shape with at most two others, which
    are a third of the colour circle apart. (Plans drawn at random left pairs that differed by a
    few pixels, and the organism took one for the other.)
    """
    num_pairs = len(_SHAPES) * (len(_SHAPES) - 1)
    places = _rng("icons").permutation(len(THINGS))
    plans: dict[str, tuple[str, str, str, float, float, int]] = {}
    for thing, place in zip(THINGS, places.tolist(), strict=True):
        turn, pair = divmod(place, num_pairs)
        outer = _SHAPES[pair // (len(_SHAPES) - 1)]
        rest = [shape for shape in _SHAPES if shape != outer]
        inner = rest.pop(pair % len(rest))
        rng = _rng("icon", thing.name)
        hue = (pair * _GOLDEN_RATIO + turn / 3) % 1.0
        second_hue = (hue + 1 / 3 + turn / 6) % 1.0
        small = str(rng.choice(rest))
        plans[thing.name] = outer, inner, small, hue, second_hue, int(rng.integers(4))
    return plans


def _draw_icon(draw: ImageDraw.ImageDraw, thing: Thing, box: Box, rng: np.random.Generator) -> None:
    outer, inner, small, hue, second_hue, corner = _icon_plans()[thing.name]
    left, top, right, bottom = box
    side = right - left
    first = _colour(hue + rng.uniform(-0.03, 0.03), rng.uniform(0.35, 0.45), 0.75)
    second = _colour(second_hue + rng.uniform(-0.03, 0.03), rng.uniform(0.6, 0.7), 0.8)
    _draw_shape(draw, outer, box, first)
    third = side / 3.2
    _draw_shape(draw, inner, (left + third, top + third, right - third, bottom - third), second)
    dot = side * 0.3
    x = left if corner % 2 == 0 else right - dot
    y = top if corner < 2 else bottom - dot
    _draw_shape(draw, small, (x, y, x + dot, y + dot), second)


def _mark_letters(letters: np.ndarray, word: str, font: ImageFont.FreeTypeFont, at: Box) -> None:
    cell = SIZE / _GRID
    left, top, _, bottom = at
    for position, letter in enumerate(word):
        start = left + font.getlength(word[:position])
        end = left + font.getlength(word[: position + 1])
        for row in range(_GRID):
            for column in range(_GRID):
                x, y = (column + 0.5) * cell, (row + 0.5) * cell
                if start <= x < end and top - 2 <= y < bottom + 2:
                    letters[row, column] = ord(letter) - ord("a") + 1


def _draw_word(
    draw: ImageDraw.ImageDraw,
    word: str,
    area: Box,
    rng: np.random.Generator,
    letters: np.ndarray,
    ink: Colour,
) -> None:
    """Write `word` as large as its jittered size allows, near the middle of `area`."""
    left, top, right, bottom = area
    name = _FONTS[int(rng.integers(len(_FONTS)))]
    size = int(rng.integers(13, 17))
    while size > 8 and _font(name, size).getlength(word) > right - left - 1:
        size -= 1
    font = _font(name, size)
    width = font.getlength(word)
    free_x, free_y = right - left - width, bottom - top - size
    x = left + free_x / 2 + float(np.clip(rng.uniform(-4, 4), -free_x / 2, free_x / 2))
    y = top + free_y / 2 + float(np.clip(rng.uniform(-6, 6), -free_y / 2, free_y / 2))
    draw.text((x, y), word, font=font, fill=ink, anchor="lt")
    ink_box = draw.textbbox((x, y), word, font=font, anchor="lt")
    _mark_letters(letters, word, font, (x, ink_box[1], ink_box[2], ink_box[3]))


def draw_picture(thing: Thing, kind: PictureKind, seed: int) -> Picture:
    """Draw a thing.

    Args:
        thing: What is shown.
        kind: Icon, written word, or both.
        seed: Chooses position, size, colours and font; any integer.

    Returns:
        The picture; the same arguments give the same pixels.
    """
    rng = _rng("picture", thing.name, kind, seed)
    paper = _colour(rng.uniform(), rng.uniform(0.88, 0.98), 0.4)
    ink = _colour(rng.uniform(), rng.uniform(0.05, 0.25), 0.6)
    image = Image.new("RGB", (SIZE, SIZE), paper)
    draw = ImageDraw.Draw(image)
    letters = np.zeros((_GRID, _GRID), dtype=np.uint8)
    if kind == "typographic":
        _draw_word(draw, thing.name, (0, 0, SIZE, SIZE), rng, letters, ink)
        return Picture(image, letters)
    side = int(rng.integers(30, 38)) if kind == "both" else int(rng.integers(34, 54))
    floor = 42 if kind == "both" else SIZE
    x, y = rng.uniform(1, SIZE - side - 1), rng.uniform(1, max(1.5, floor - side - 1))
    _draw_icon(draw, thing, (x, y, x + side, y + side), rng)
    if kind == "both":
        _draw_word(draw, thing.name, (0, 44, SIZE, SIZE), rng, letters, ink)
    return Picture(image, letters)
