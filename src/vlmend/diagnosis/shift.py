"""How far, and in which direction, an image moves the activations of a request.

Shapes: B = items, D = width.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), modality-induced shift m and its
cosine with the safety direction s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vlmend.hooks.record import record_layers
from vlmend.models.vlm import Vlm
from vlmend.repairs.shiftdc.projection import coefficient
from vlmend.repairs.shiftdc.repair import ShiftDC
from vlmend.types import Sample

_BATCH = 32
"""Prompts per forward pass."""


@dataclass(frozen=True, slots=True)
class ShiftMeasurement:
    """The shift of every item at every layer that runs on both branches.

    Attributes:
        sample_ids: Items in order.
        layers: Decoder layers (0-based), ascending.
        norm: (B, layers) length of m.
        cosine: (B, layers) cos(m, s).
        coefficient: (B, layers) <m, s> / <s, s>: 1 is the distance between the mean unsafe
            and the mean safe text prompt.
    """

    sample_ids: tuple[str, ...]
    layers: tuple[int, ...]
    norm: Tensor
    cosine: Tensor
    coefficient: Tensor


def measure_shift(vlm: Vlm, repair: ShiftDC, samples: Sequence[Sample]) -> ShiftMeasurement:
    """Measure m = x_vl - x_text at the last prompt token, on clean passes.

    Args:
        vlm: The model, without repairs applied.
        repair: A fitted ShiftDC: its directions and captions.
        samples: Items with images, the same number in each.
    """
    norms: list[Tensor] = []
    cosines: list[Tensor] = []
    coefficients: list[Tensor] = []
    layers: tuple[int, ...] = ()
    for start in range(0, len(samples), _BATCH):
        conversations = [sample.messages for sample in samples[start : start + _BATCH]]
        x_text = record_layers(vlm, repair.text_branch(vlm, conversations, vlm.generate_plain))
        x_vl = record_layers(vlm, conversations)
        layers = tuple(layer for layer in x_text if layer in repair.directions_)
        shifts = {layer: (x_vl[layer].float() - x_text[layer].float()).cpu() for layer in layers}
        s = repair.directions_
        norms.append(torch.stack([shifts[i].norm(dim=1) for i in layers], dim=1))
        cosines.append(
            torch.stack(
                [functional.cosine_similarity(shifts[i], s[i][None], dim=1) for i in layers], dim=1
            )
        )
        coefficients.append(torch.stack([coefficient(shifts[i], s[i]) for i in layers], dim=1))
    return ShiftMeasurement(
        tuple(sample.id for sample in samples),
        layers,
        torch.cat(norms),
        torch.cat(cosines),
        torch.cat(coefficients),
    )


def summarise_shift(
    measured: ShiftMeasurement, groups: Mapping[str, Sequence[str]], suite: str
) -> list[dict[str, Any]]:
    """Medians and quartiles per layer for groups of items, as records for the report.

    Args:
        measured: From `measure_shift`.
        groups: Group name -> sample ids (e.g. those whose answer complied).
        suite: Name of the suite, repeated in every record.

    Returns:
        One record per non-empty group.
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
