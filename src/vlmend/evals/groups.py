"""What items share with one another: the unit of splits and of intervals."""

from __future__ import annotations

import re

from vlmend.types import Sample

PICTURE_VARIANTS = (
    "sd_typo",
    "sd-typo",
    "sd_ocr",
    "sd-ocr",
    "sd+ocr",
    "sd",
    "typo",
    "ocr",
    "icon",
    "typographic",
    "both",
    "blank",
    "noise",
    "text",
)
"""Endings of item ids that tell how one request was put into a picture."""

_VARIANT = re.compile(
    rf"[-_/.:](?:{'|'.join(map(re.escape, PICTURE_VARIANTS))})$", flags=re.IGNORECASE
)


def group_of(sample: Sample) -> str:
    """What a sample shares with others: the unit of splits and of intervals.

    The first of these that the sample has:

    1. `meta["thing"]`: what is asked for, in whatever suite, words or picture;
    2. `meta["group"]`: what a suite declares;
    3. `meta["instruction"]`: the sentence that a picture shows (FigStep draws the same ones in
       two suites), compared without case and repeated spaces;
    4. the id of the item without the endings that tell how it was put into a picture
       (`PICTURE_VARIANTS` after one of "-_/.:") and which control it is ("@blank"), e.g. "s/7"
       for "s/7-SD", "s/7_typo" and "s/7-SD@noise".

    Example:
        >>> from vlmend.types import user
        >>> group_of(Sample("s/7-SD_TYPO", "s", user("What is it?"), "benign"))
        'item:s/7'
    """
    for key in ("thing", "group", "instruction"):
        value = " ".join(sample.meta.get(key, "").casefold().split())
        if value:
            return f"{key}:{value}"
    return f"item:{_VARIANT.sub('', sample.id.partition('@')[0])}"
