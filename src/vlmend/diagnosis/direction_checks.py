"""How far to trust a safety direction: do estimators agree, and would other items give it too?

Shapes: N = items, D = width.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmend.diagnosis.activations import Activations
from vlmend.directions.direction import Direction
from vlmend.directions.estimators import ESTIMATORS, difference_in_means, estimate
from vlmend.directions.stability import agreement, bootstrap_stability
from vlmend.errors import DataError

STABILITY_SIZES = (8, 16, 32, 64, 128)
"""Numbers of items at which a direction's stability is measured."""


def compare_directions(text: Activations, seed: int) -> dict[str, Any]:
    """Agreement of the estimators at every layer, and stability of the default one.

    Args:
        text: Activations of text prompts.
        seed: Of matching and resampling.

    Returns:
        The sections "estimators" and "stability", and under "gaps" the estimators that found
        no direction.
    """
    unsafe = text.unsafe
    groups = np.array(text.groups)
    agreements: list[dict[str, Any]] = []
    stability: list[dict[str, Any]] = []
    gaps: list[str] = []
    for layer, acts_ND in text.acts.items():
        safe_ND, unsafe_ND = (torch.from_numpy(acts_ND[rows]) for rows in (~unsafe, unsafe))
        found: dict[str, Direction] = {}
        for name in ESTIMATORS:
            try:
                found[name] = estimate(name, safe_ND, unsafe_ND, seed=seed)
            except DataError as error:
                gaps.append(f"no {name} direction at decoder layer {layer}: {error}")
        agreements += [{"layer": layer, **pair} for pair in agreement(found)]
        stability += [
            {"layer": layer, **record}
            for record in bootstrap_stability(
                safe_ND,
                unsafe_ND,
                "difference-in-means",
                STABILITY_SIZES,
                seed=seed,
                groups_safe=groups[~unsafe].tolist(),
                groups_unsafe=groups[unsafe].tolist(),
            )
        ]
    return {"estimators": agreements, "stability": stability, "gaps": gaps}


def difference_by_layer(text: Activations, *, without: Collection[str]) -> dict[int, Tensor]:
    """Difference in means at every layer, from all groups but some.

    Args:
        text: Activations of text prompts.
        without: Groups that are measured, and so must not be fitted on.

    Returns:
        By layer: (D,) float32.

    Raises:
        DataError: Safe or unsafe prompts are missing outside those groups, or there is no
            direction.
    """
    outside = np.array([group not in without for group in text.groups], dtype=bool)
    return {
        layer: difference_in_means(
            torch.from_numpy(acts_ND[outside & ~text.unsafe]),
            torch.from_numpy(acts_ND[outside & text.unsafe]),
        ).vectors[0]
        for layer, acts_ND in text.acts.items()
    }
