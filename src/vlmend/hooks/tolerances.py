"""How close is close: differences that rounding alone explains, by dtype.

Two runs of one computation in another order (batched or one by one, with or without a cache)
differ by rounding. The tolerances are measured; that the differences *are* rounding is shown
by the same runs in float64, where they shrink with the precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmend.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest allowed difference, relative to the largest expected magnitude.

    Attributes:
        name: What the difference is attributed to.
        relative: Limit of max |actual - expected| / max |expected|.
        reason: The measurement that set it.
    """

    name: str
    relative: float
    reason: str


FLOAT64_NOISE = Tolerance(
    "float64 rounding", 1e-12, "worst of 48 tiny contract runs (4 families, 6 seeds) 1.1e-15"
)
FLOAT32_NOISE = Tolerance(
    "float32 rounding", 2e-5, "the same runs: worst 1.4e-6; room for deeper models"
)
BFLOAT16_NOISE = Tolerance(
    "bfloat16 rounding", 5e-2, "the same runs: worst 2.2e-2; one step is 2**-8 = 3.9e-3"
)
FLOAT16_NOISE = Tolerance(
    "float16 rounding", 6e-3, "the same runs: worst 2.5e-3; one step is 2**-11 = 4.9e-4"
)


def noise_of(dtype: torch.dtype) -> Tolerance:
    """The tolerance for computations in a dtype.

    Raises:
        ConfigError: No tolerance has been measured for the dtype.
    """
    known = {
        torch.float64: FLOAT64_NOISE,
        torch.float32: FLOAT32_NOISE,
        torch.bfloat16: BFLOAT16_NOISE,
        torch.float16: FLOAT16_NOISE,
    }
    if dtype not in known:
        names = ", ".join(map(str, known))
        raise ConfigError(
            f"no tolerance is known for {dtype}. Allowed: {names}. Load the model with --dtype "
            "bfloat16 or float32."
        )
    return known[dtype]


BARRED = -6e4
"""Logits below are no measurements: a model bars a token from its answers with the lowest number
of its dtype, which is -65504 in float16."""


def bar_alike(logits: Tensor, model_logits: Tensor) -> Tensor:
    """Logits with those tokens barred that the model itself bars."""
    return torch.where(model_logits < BARRED, model_logits, logits)


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Compare: max |actual - expected| / max |expected|, computed in float64.

    Barred tokens must be the same in both, and do not count otherwise. What is no number, as after
    an overflow of float16, is infinitely far from everything.
    """
    a, b = actual.detach().double().cpu(), expected.detach().double().cpu()
    barred = b < BARRED
    if not torch.equal(a < BARRED, barred):
        return float("inf")
    a, b = a[~barred], b[~barred]
    if a.numel() == 0:
        return 0.0
    if not bool(a.isfinite().all() and b.isfinite().all()):
        return float("inf")
    scale = max(float(b.abs().max()), torch.finfo(torch.float64).tiny)
    return float((a - b).abs().max()) / scale
