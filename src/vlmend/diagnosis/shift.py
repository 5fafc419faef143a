"""How far, and in which direction, an image moves the activations of a request.

Shapes: B = items, L = layers measured, D = width.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), modality-induced shift m and its
cosine with the safety direction s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vlmend.errors import ConfigError, DataError
from vlmend.hooks.record import record_layers
from vlmend.models.vlm import Vlm
from vlmend.types import Conversation, Sample

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
    m_BLD = torch.cat(parts)
    norm_BL = m_BLD.norm(dim=2)
    cosine_BL = functional.cosine_similarity(m_BLD, s_LD[None], dim=2)
    return ShiftMeasurement(
        tuple(sample.id for sample in samples),
        layers,
        norm_BL,
        cosine_BL,
        (m_BLD * s_LD).sum(dim=2) / s_LD.square().sum(dim=1),
    )


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
    measured: ShiftMeasurement, groups: Mapping[str, Sequence[str]], suite: str
) -> list[dict[str, Any]]:
    """Medians and quartiles per layer for groups of items, as records for the report.

    Args:
        measured: From `measure_shift`.
        groups: Group name -> ids of measured items (e.g. those whose answer complied).
        suite: Name of the suite, repeated in every record.

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
    return records


def _quantile(values_BL: Tensor, q: float) -> list[float]:
    return [round(float(value), 6) for value in values_BL.quantile(q, dim=0)]
