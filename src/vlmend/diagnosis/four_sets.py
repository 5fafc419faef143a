"""The four sets of the modality diagnosis: text / vision-language x safe / unsafe.

Every item with an image is asked twice: as it is (vision-language), and as the same request with
a caption in place of the image (text). Items without an image are asked as they are, and go into
the text sets alone; `FourSets.gaps` says how many those are.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), the sets D_tt and D_vl.

Deviation 1: the paper builds safe and unsafe sets from two fixed data sets; here any suites do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlmend.diagnosis.shift import TextBranch
from vlmend.errors import DataError
from vlmend.evals.captions import CaptionCache
from vlmend.evals.groups import group_of
from vlmend.evals.text_branch import put_all_in_words, text_conversation
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


@dataclass(frozen=True, slots=True)
class SetItem:
    """One conversation of one of the four sets.

    Attributes:
        item_id: Id of the sample; the two conversations of one sample share it.
        suite: Suite of the sample.
        modality: Whether it is asked with its images or in words.
        label: "unsafe" where complying would be harmful.
        group: What must never be on both sides of a split; see `evals.groups.group_of`.
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


def build_four_sets(samples: Sequence[Sample], in_words: TextBranch) -> FourSets:
    """Build the four sets with captions made by a function.

    Args:
        samples: Of any suites, with and without images.
        in_words: Puts images in words; called once, with every conversation that has some.

    Raises:
        DataError: No sample has an image, a label is missing among those that have one, or two
            samples share an id.
        VlmendError: As `in_words`.
    """
    check_samples(samples)
    with_images = [sample for sample in samples if sample.images]
    words = in_words([sample.messages for sample in with_images])
    twins = {sample.id: text for sample, text in zip(with_images, words, strict=True)}
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
        batch_size: Most captions generated at a time; halved when memory runs out.

    Raises:
        VlmendError: As `build_four_sets` and `put_all_in_words`.
    """

    def in_words(conversations: Sequence[Conversation]) -> list[Conversation]:
        return put_all_in_words(vlm, conversations, captions, caption_tokens, batch_size=batch_size)

    return build_four_sets(samples, in_words)


def build_with_given_captions(samples: Sequence[Sample]) -> FourSets:
    """Build the four sets with the captions that the samples bring in `meta["caption"]`.

    Raises:
        DataError: As `build_four_sets`; samples with images but without a caption; or two samples
            of one request and image whose captions differ.
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
    for sample in (sample for sample in samples if sample.images):
        caption = sample.meta["caption"].strip()
        if captions.setdefault(sample.messages, caption) != caption:
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


def check_samples(samples: Sequence[Sample]) -> None:
    """Refuse samples that four sets cannot be built from.

    Raises:
        DataError: No sample has an image, a label is missing among those that have one, or two
            samples share an id.
    """
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
