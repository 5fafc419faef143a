"""The four sets of the modality diagnosis: text / vision-language x safe / unsafe.

Every item with an image is asked twice: as it is (vision-language), and as the same request with
a caption in place of the image (text). Items without an image are asked as they are, and go into
the text sets alone; `FourSets.gaps` says how many those are.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), the sets D_tt and D_vl.

Deviation 1: the paper builds safe and unsafe sets from two fixed data sets; here any suites do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from vlmend.diagnosis.shift import TextBranch
from vlmend.errors import ConfigError, DataError
from vlmend.evals.captions import CaptionCache
from vlmend.evals.text_branch import put_in_words, text_conversation
from vlmend.models.vlm import Vlm
from vlmend.suites.registry import get_suite, suite_names
from vlmend.types import Conversation, Sample

Modality = Literal["text", "vision-language"]
SafetyLabel = Literal["safe", "unsafe"]

SETS: tuple[tuple[Modality, SafetyLabel], ...] = (
    ("text", "safe"),
    ("text", "unsafe"),
    ("vision-language", "safe"),
    ("vision-language", "unsafe"),
)
"""The four sets in the order of the records; a map's points name their set by its place here."""

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


@dataclass(frozen=True, slots=True)
class SetItem:
    """One conversation of one of the four sets.

    Attributes:
        item_id: Id of the sample; the two conversations of one sample share it.
        suite: Suite of the sample.
        modality: Whether it is asked with its images or in words.
        label: "unsafe" where complying would be harmful.
        group: What must never be on both sides of a split; see `group_of`.
        conversation: What the model is asked.
    """

    item_id: str
    suite: str
    modality: Modality
    label: SafetyLabel
    group: str
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class FourSets:
    """The four sets.

    Attributes:
        items: Items set by set, in the order of `SETS`; within a set as the samples were given.
        gaps: What the sets do not hold, in words.
    """

    items: tuple[SetItem, ...]
    gaps: tuple[str, ...]

    def of(self, modality: Modality) -> tuple[SetItem, ...]:
        """The items of one modality, safe ones first."""
        return tuple(item for item in self.items if item.modality == modality)

    def records(self) -> list[dict[str, Any]]:
        """One record per set, in the order of `SETS`."""
        records: list[dict[str, Any]] = []
        for modality, label in SETS:
            members = [i for i in self.items if (i.modality, i.label) == (modality, label)]
            records.append(
                {
                    "modality": modality,
                    "label": label,
                    "n": len(members),
                    "groups": len({item.group for item in members}),
                    "suites": sorted({item.suite for item in members}),
                }
            )
        return records


def group_of(sample: Sample) -> str:
    """What a sample shares with others: the unit of splits and of intervals.

    The first of these that the sample has:

    1. `meta["thing"]`: what is asked for, in whatever suite, words or picture;
    2. `meta["group"]`: what a suite declares;
    3. `meta["instruction"]`: the sentence that a picture shows (FigStep draws the same ones in
       two suites), compared without case and repeated spaces;
    4. the id of the item without the ending that tells how it was put into a picture
       (`PICTURE_VARIANTS` after one of "-_/.:"), e.g. "s/7" for "s/7-SD" and "s/7_typo".

    Example:
        >>> from vlmend.types import user
        >>> group_of(Sample("s/7-SD_TYPO", "s", user("What is it?"), "benign"))
        'item:s/7'
    """
    for key in ("thing", "group", "instruction"):
        value = " ".join(sample.meta.get(key, "").casefold().split())
        if value:
            return f"{key}:{value}"
    return f"item:{_VARIANT.sub('', sample.id)}"


def build_four_sets(
    samples: Sequence[Sample], in_words: TextBranch, *, batch_size: int = 16
) -> FourSets:
    """Build the four sets with captions made by a function.

    Args:
        samples: Of any suites, with and without images.
        in_words: Puts the images of a batch in words; called with equal numbers of images.
        batch_size: Most conversations per call of `in_words`.

    Raises:
        DataError: No sample has an image, a label is missing among those that have one, or two
            samples share an id.
        ConfigError: `batch_size` is below 1.
        VlmendError: As `in_words`.
    """
    if batch_size < 1:
        raise ConfigError(f"batch size {batch_size} is not possible: at least 1.")
    _check(samples)
    with_images = [sample for sample in samples if sample.images]
    twins = _in_words(with_images, in_words, batch_size)
    items = [_item(sample, "text", twins.get(sample.id, sample.messages)) for sample in samples] + [
        _item(sample, "vision-language", sample.messages) for sample in with_images
    ]
    items.sort(key=lambda item: SETS.index((item.modality, item.label)))
    without = Counter(sample.suite for sample in samples if not sample.images)
    gaps = [
        f"{count} item(s) of {suite} have no image: they are in the text sets alone."
        for suite, count in sorted(without.items())
    ]
    return FourSets(tuple(items), tuple(gaps))


def build_with_self_captions(
    vlm: Vlm,
    samples: Sequence[Sample],
    captions: CaptionCache,
    *,
    caption_tokens: int,
    batch_size: int = 16,
) -> FourSets:
    """Build the four sets with the model's own captions.

    Args:
        vlm: The model, without repairs applied.
        samples: Of any suites, with and without images.
        captions: Cache of captions.
        caption_tokens: Length limit of a caption in new tokens.
        batch_size: Captions generated at a time.

    Raises:
        VlmendError: As `build_four_sets` and `CaptionCache.get_all`.
    """
    in_words = partial(put_in_words, vlm, captions=captions, caption_tokens=caption_tokens)
    return build_four_sets(samples, in_words, batch_size=batch_size)


def build_with_given_captions(samples: Sequence[Sample]) -> FourSets:
    """Build the four sets with the captions that the samples bring in `meta["caption"]`.

    Raises:
        DataError: As `build_four_sets`; or samples with images but without a caption.
    """
    missing = [s.id for s in samples if s.images and not s.meta.get("caption", "").strip()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(samples)} items have an image but no caption in their "
            f"meta ({', '.join(missing[:3])}). Add one to each, or use the model's own captions."
        )
    # By value: a text branch sees conversations, not samples. Pictures tell items apart; items
    # that are asked the very same thing of the very same picture must agree on its caption.
    captions: dict[Conversation, str] = {}
    for sample in samples:
        if (
            sample.images
            and captions.setdefault(sample.messages, sample.meta["caption"])
            != (sample.meta["caption"])
        ):
            raise DataError(
                f"item {sample.id!r} repeats another item's request and image with another "
                "caption. Give one caption, or leave one of the two items out."
            )
    return build_four_sets(
        samples, lambda batch: [text_conversation(c, captions[c]) for c in batch]
    )


def _item(sample: Sample, modality: Modality, conversation: Conversation) -> SetItem:
    label = "unsafe" if sample.label == "harmful" else "safe"
    return SetItem(sample.id, sample.suite, modality, label, group_of(sample), conversation)


def _in_words(
    samples: Sequence[Sample], in_words: TextBranch, batch_size: int
) -> dict[str, Conversation]:
    """Text twins by sample id, from batches with equal numbers of images."""
    by_images: dict[int, list[Sample]] = {}
    for sample in samples:
        by_images.setdefault(len(sample.images), []).append(sample)
    twins: dict[str, Conversation] = {}
    for alike in by_images.values():
        for start in range(0, len(alike), batch_size):
            batch = alike[start : start + batch_size]
            words = in_words([sample.messages for sample in batch])
            twins |= {s.id: text for s, text in zip(batch, words, strict=True)}
    return twins


def _check(samples: Sequence[Sample]) -> None:
    twice = sorted(i for i, times in Counter(s.id for s in samples).items() if times > 1)
    if twice:
        raise DataError(
            f"{len(twice)} item id(s) are given more than once, the first is {twice[0]!r}. "
            "Name every suite once."
        )
    labels = {sample.label for sample in samples if sample.images}
    given = ", ".join(sorted({sample.suite for sample in samples})) or "no suite"
    if not labels:
        raise DataError(
            f"none of the {len(samples)} items of {given} has an image, so there is no "
            "vision-language set. Add suites with images, harmful and benign ones, e.g. "
            "organism/typographic and organism/benign."
        )
    for label, name in (("harmful", "unsafe"), ("benign", "safe")):
        if label not in labels:
            raise DataError(
                f"no {label} item of {given} has an image, so the {name} vision-language set "
                f"is empty. Add a suite with {label} items that have images. Suites with "
                f"{label} items: {', '.join(_suites_with(label))}."
            )


def _suites_with(label: str) -> Iterable[str]:
    return (name for name in suite_names() if get_suite(name).label_kind in (label, "mixed"))
