"""How far, and in which direction, an image moves the activations of a request.

`measure_shift` runs a model against directions that are there already, e.g. those of a repair.
`cross_fit_shift` needs recorded activations only: every item is held against a direction that
was fitted on other things.

Shapes: B = items, M = text items that directions are fitted on, L = layers measured, D = width.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), modality-induced shift m and its
cosine with the safety direction s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vlmend.errors import ConfigError, DataError
from vlmend.hooks.record import record_layers
from vlmend.models.vlm import Vlm
from vlmend.types import Conversation, Sample

States = Mapping[int, NDArray[np.float32]]
"""Activations of the last prompt token by decoder layer, (B, D) each, rows in one order."""

TextBranch = Callable[[Sequence[Conversation]], list[Conversation]]
"""The same requests without images, e.g. with captions in their place."""


@dataclass(frozen=True, slots=True)
class ShiftMeasurement:
    """The shift of every item at every layer that runs on both branches.

    Attributes:
        sample_ids: Items in order.
        layers: Decoder layers (0-based), ascending.
        norm: (B, L) length of m.
        cosine: (B, L) cos(m, s); 0 where there is no shift.
        coefficient: (B, L) <m, s> / <s, s>: 1 is the distance between the mean unsafe
            and the mean safe text prompt.
    """

    sample_ids: tuple[str, ...]
    layers: tuple[int, ...]
    norm: Tensor
    cosine: Tensor
    coefficient: Tensor


def measure_shift(
    vlm: Vlm,
    directions: Mapping[int, Tensor],
    samples: Sequence[Sample],
    text_branch: TextBranch,
    *,
    batch_size: int = 32,
) -> ShiftMeasurement:
    """Measure m = x_vl - x_text at the last prompt token, on clean passes.

    Args:
        vlm: The model, without repairs applied.
        directions: Safety direction s by decoder layer, (D,) each, not zero.
        samples: Items with images, the same number in each.
        text_branch: Puts the images of a batch in words.
        batch_size: Prompts per forward pass.

    Returns:
        Float32 values on the CPU, for the layers that have a direction.

    Raises:
        DataError: No items, or items without an image.
        ConfigError: No directions, or different numbers of images in a batch.
    """
    _check(directions, samples)
    layers = tuple(sorted(directions))
    s_LD = torch.stack([directions[layer].float().cpu() for layer in layers])
    parts: list[Tensor] = []
    for start in range(0, len(samples), batch_size):
        conversations = [sample.messages for sample in samples[start : start + batch_size]]
        x_text = record_layers(vlm, text_branch(conversations), layers)
        x_vl = record_layers(vlm, conversations, layers)
        parts.append(
            torch.stack([(x_vl[i].float() - x_text[i].float()).cpu() for i in layers], dim=1)
        )
    ids = tuple(sample.id for sample in samples)
    return _against(torch.cat(parts), s_LD.expand(len(ids), -1, -1), ids, layers)


def _against(
    m_BLD: Tensor, s_BLD: Tensor, sample_ids: tuple[str, ...], layers: tuple[int, ...]
) -> ShiftMeasurement:
    return ShiftMeasurement(
        sample_ids,
        layers,
        m_BLD.norm(dim=2),
        functional.cosine_similarity(m_BLD, s_BLD, dim=2),
        (m_BLD * s_BLD).sum(dim=2) / s_BLD.square().sum(dim=2),
    )


@dataclass(frozen=True)
class TextSets:
    """The labelled text prompts that safety directions are fitted on.

    Attributes:
        states: (M, D) by layer.
        unsafe: (M,) whether complying would be harmful.
        groups: What each item shares with others (a thing, a topic).
    """

    states: States
    unsafe: Sequence[bool]
    groups: Sequence[str]


@dataclass(frozen=True)
class PairedSets:
    """The same requests with a picture and with its caption.

    Attributes:
        sample_ids: Items in order.
        groups: What each item shares with others, named as in `TextSets`.
        vision_language: (B, D) by layer.
        text: (B, D) by layer.
    """

    sample_ids: Sequence[str]
    groups: Sequence[str]
    vision_language: States
    text: States


def cross_fit_shift(fit: TextSets, pairs: PairedSets, *, num_folds: int = 5) -> ShiftMeasurement:
    """Hold every item's shift against a safety direction fitted on other things.

    Groups are dealt to folds; the items of a fold meet the difference in means of the text
    prompts of all groups outside it. Nothing is thrown away, and nothing is held against itself.

    Args:
        fit: Text prompts with labels.
        pairs: Items to measure.
        num_folds: At least 2; fewer are used where there are fewer groups.

    Returns:
        Float32 values, for the layers that all sets have.

    Raises:
        DataError: No common layer, fewer than two groups, a fold without safe or unsafe prompts
            to fit on, or a direction of length zero.
    """
    layers = tuple(sorted(set(fit.states) & set(pairs.vision_language) & set(pairs.text)))
    if not layers:
        raise DataError("no decoder layer ran both on text and on pictures with text.")
    fold_of = _deal(fit, pairs.groups, num_folds)
    s_FLD = torch.stack(
        [_direction(fit, layers, fold_of, fold) for fold in range(1 + max(fold_of.values()))]
    )
    rows = torch.tensor([fold_of[group] for group in pairs.groups])
    m_BLD = torch.stack(
        [torch.from_numpy(pairs.vision_language[i] - pairs.text[i]) for i in layers], dim=1
    )
    return _against(m_BLD.float(), s_FLD[rows], tuple(pairs.sample_ids), layers)


def _deal(fit: TextSets, measured_groups: Sequence[str], num_folds: int) -> dict[str, int]:
    """Fold of every group; groups that hold unsafe items are dealt first, so folds are alike."""
    harmful = {g for g, unsafe in zip(fit.groups, fit.unsafe, strict=True) if unsafe}
    names = sorted({*fit.groups, *measured_groups}, key=lambda g: (g not in harmful, g))
    if len(names) < 2:
        raise DataError(
            f"all items are of one group ({', '.join(names) or 'there are none'}), so nothing is "
            "left to fit a direction on that is not measured. Give items of more groups."
        )
    return {group: place % min(num_folds, len(names)) for place, group in enumerate(names)}


def _direction(
    fit: TextSets, layers: Sequence[int], fold_of: Mapping[str, int], fold: int
) -> Tensor:
    """(L, D) mean safe minus mean unsafe text prompt of the groups outside a fold."""
    outside = np.array([fold_of[group] != fold for group in fit.groups], dtype=bool)
    unsafe = np.asarray(fit.unsafe, dtype=bool)
    for name, chosen in (("unsafe", outside & unsafe), ("safe", outside & ~unsafe)):
        if not chosen.any():
            raise DataError(
                f"no {name} text prompt is left to fit a direction on when a fold of groups is "
                "held out. Give items of more groups."
            )
    rows = [
        fit.states[i][outside & ~unsafe].mean(0) - fit.states[i][outside & unsafe].mean(0)
        for i in layers
    ]
    s_LD = torch.from_numpy(np.stack(rows)).float()
    useless = [i for i, s in zip(layers, s_LD, strict=True) if not 0 < float(s.norm()) < np.inf]
    if useless:
        raise DataError(
            f"there is no safety direction at decoder layers {useless}: safe and unsafe text "
            "prompts cause the same activations, or infinite ones."
        )
    return s_LD


def _check(directions: Mapping[int, Tensor], samples: Sequence[Sample]) -> None:
    if not directions:
        raise ConfigError("there is no safety direction to hold a shift against. Fit one first.")
    without = [sample.id for sample in samples if not sample.images]
    if without or not samples:
        raise DataError(
            f"a shift is what an image causes, but {len(without)} of {len(samples)} items have "
            f"none ({', '.join(without[:3]) or 'no items given'}). Give items with images only."
        )


def summarise_shift(
    measured: ShiftMeasurement,
    groups: Mapping[str, Sequence[str]],
    suite: str,
    *,
    keep_items: bool = False,
) -> list[dict[str, Any]]:
    """Medians and quartiles per layer for groups of items, as records for the report.

    Args:
        measured: From `measure_shift`.
        groups: Group name -> ids of measured items (e.g. those whose answer complied).
        suite: Name of the suite, repeated in every record.
        keep_items: Also keep every item's cosine, by layer, for drawing distributions.

    Returns:
        One record per non-empty group; lists are by layer.
    """
    place = {sample_id: row for row, sample_id in enumerate(measured.sample_ids)}
    records: list[dict[str, Any]] = []
    for group, ids in groups.items():
        rows = [place[sample_id] for sample_id in ids]
        if not rows:
            continue
        cosine = measured.cosine[rows]
        records.append(
            {
                "suite": suite,
                "group": group,
                "n": len(rows),
                "layers": list(measured.layers),
                "cos_median": _quantile(cosine, 0.5),
                "cos_q25": _quantile(cosine, 0.25),
                "cos_q75": _quantile(cosine, 0.75),
                "norm_median": _quantile(measured.norm[rows], 0.5),
                "coefficient_median": _quantile(measured.coefficient[rows], 0.5),
            }
        )
        if keep_items:
            records[-1]["cosines"] = [
                [round(value, 4) for value in column] for column in cosine.T.tolist()
            ]
    return records


def _quantile(values_BL: Tensor, q: float) -> list[float]:
    return [round(float(value), 6) for value in values_BL.quantile(q, dim=0)]
