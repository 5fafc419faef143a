"""The one door through which an image that a stranger sent is opened."""

from __future__ import annotations

import hashlib
import io
import warnings

from PIL import Image, UnidentifiedImageError

from vlmend.errors import DataError
from vlmend.types import ImageRef

MAX_PIXELS = 64_000_000
"""Largest image opened (about 8000 x 8000); larger ones are refused, not shrunk."""


def read_image_bytes(image: ImageRef) -> bytes:
    """The encoded bytes of an image.

    Raises:
        DataError: The file is missing or unreadable.
    """
    if image.data is not None:
        return image.data
    assert image.path is not None
    try:
        return image.path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read image {str(image.path)!r}: {error.strerror or error}. "
            "Check the path, or give the suite's folder in its published layout."
        ) from error


def image_sha256(image: ImageRef) -> str:
    """SHA-256 of the encoded bytes, hexadecimal."""
    return hashlib.sha256(read_image_bytes(image)).hexdigest()


def open_image(image: ImageRef) -> Image.Image:
    """Decode an image completely, as RGB.

    Raises:
        DataError: Missing, truncated, not an image, or larger than `MAX_PIXELS`.
    """
    where = str(image.path) if image.path is not None else "(image in memory)"
    data = read_image_bytes(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise DataError(
                        f"image {where!r} has {opened.width} x {opened.height} pixels; at most "
                        f"{MAX_PIXELS:,} are opened. Shrink it first."
                    )
                return opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(
            f"cannot decode image {where!r} ({len(data)} bytes): {error}. "
            "Allowed: complete PNG, JPEG, WebP, BMP or GIF files. Replace or remove the file."
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"image {where!r} is too large to open safely: {error}.") from error
