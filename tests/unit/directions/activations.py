"""Activations with a direction in them that the tests know."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 16


def two_sets(
    num_safe: int = 40, num_unsafe: int = 30, *, seed: int = 0, noise: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """(safe (N, D), unsafe (M, D), unit vector from unsafe to safe (D,)), off the origin."""
    generator = torch.Generator().manual_seed(seed)
    way = torch.randn(WIDTH, generator=generator)
    way /= way.norm()
    centre = 5 * torch.randn(WIDTH, generator=generator)
    safe = centre + way + noise * torch.randn(num_safe, WIDTH, generator=generator)
    unsafe = centre - way + noise * torch.randn(num_unsafe, WIDTH, generator=generator)
    return safe, unsafe, way
