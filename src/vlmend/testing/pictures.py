"""Small pictures made in code."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from vlmend.types import ImageRef


def picture(seed: int = 0, size: tuple[int, int] = (40, 32)) -> ImageRef:
    """A PNG of coloured blocks, different for every seed.

    Args:
        seed: Which picture.
        size: Width and height in pixels.
    """
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    return _to_png(Image.fromarray(blocks, "RGB").resize(size, Image.Resampling.NEAREST))


def blank_picture(size: tuple[int, int] = (40, 32)) -> ImageRef:
    """A grey PNG.

    Args:
        size: Width and height in pixels.
    """
    return _to_png(Image.new("RGB", size, "grey"))


def _to_png(image: Image.Image) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return ImageRef(data=buffer.getvalue())
