"""A safety direction: the line, or the subspace, along which unsafe becomes safe.

Shapes: B = items, K = rank (1 for a line), D = width of the residual stream.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlmend.errors import DataError

_LEAST_INDEPENDENT = 1e-3
"""Smallest singular value of the vectors at unit length: below it, coordinates in float32 would
carry an error of more than about one part in ten thousand."""


@dataclass(frozen=True, eq=False)
class Direction:
    """K vectors from unsafe to safe that span what a repair acts on.

    Neither the length nor the sign of a vector changes the subspace; they are the unit in which
    `coordinates` measures. Every estimator chooses the length so that going from the mean unsafe
    to the mean safe activation is 1 along row 0.

    Attributes:
        vectors: (K, D) float32, linearly independent; row 0 points to "safe".
        estimator: Name of the estimator that found them.

    Raises:
        DataError: Not of shape (K, D), not finite, zero, or dependent vectors.

    Example:
        >>> import torch
        >>> line = Direction(torch.tensor([[2.0, 0.0]]), "by-hand")
        >>> line.coordinates(torch.tensor([[3.0, 7.0]]))
        tensor([[1.5000]])
        >>> line.component(torch.tensor([[3.0, 7.0]]))
        tensor([[3., 0.]])
    """

    vectors: Tensor
    estimator: str
    _dual: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        s_KD = self.vectors.detach().float().contiguous()
        _check_vectors(s_KD, self.estimator)
        # Float64: the Gram matrix squares how unlike the vectors are, and tiny vectors underflow.
        length_K1 = s_KD.double().norm(dim=1, keepdim=True)
        unit_KD = s_KD.double() / length_K1
        _check_independent(unit_KD, self.estimator)
        dual_KD = torch.linalg.solve(unit_KD @ unit_KD.T, unit_KD) / length_K1
        object.__setattr__(self, "vectors", s_KD)
        object.__setattr__(self, "_dual", dual_KD.float())

    @property
    def rank(self) -> int:
        """K, the dimension of the span."""
        return self.vectors.shape[0]

    def coordinates(self, x_BD: Tensor) -> Tensor:
        """Least-squares coordinates x S^T (S S^T)^-1; for K = 1 that is <x, s> / <s, s>.

        Args:
            x_BD: (B, D) activations or differences of activations, on the direction's device.

        Returns:
            (B, K) float32.
        """
        return x_BD.float() @ self._dual.T

    def component(self, x_BD: Tensor) -> Tensor:
        """The part of activations that lies in the span: their orthogonal projection.

        Args:
            x_BD: (B, D) activations or differences of activations, on the direction's device.

        Returns:
            (B, D) float32.
        """
        return self.coordinates(x_BD) @ self.vectors

    def to(self, device: torch.device | str) -> Direction:
        """The same direction on another device."""
        if self.vectors.device == torch.device(device):
            return self
        moved = copy.copy(self)
        object.__setattr__(moved, "vectors", self.vectors.to(device))
        object.__setattr__(moved, "_dual", self._dual.to(device))
        return moved


def _check_vectors(s_KD: Tensor, estimator: str) -> None:
    if s_KD.ndim != 2 or 0 in s_KD.shape:
        raise DataError(
            f"the vectors of a {estimator} direction have shape {tuple(s_KD.shape)}; they must be "
            "(K, D): K >= 1 rows, one a vector."
        )
    if not bool(s_KD.isfinite().all()):
        raise DataError(
            f"the {estimator} direction holds infinite values or NaN. Its activations overflow: "
            "load the model in bfloat16 or float32."
        )
    zero = [row for row, s_D in enumerate(s_KD) if not bool(s_D.any())]
    if zero:
        raise DataError(
            f"the {estimator} direction is zero in row(s) {zero}: the two sets cause the same "
            "activations, so nothing tells safe from unsafe. Use items that differ in what they "
            "ask."
        )


def _check_independent(unit_KD: Tensor, estimator: str) -> None:
    rank, width = unit_KD.shape
    smallest = float(torch.linalg.svdvals(unit_KD).min()) if rank <= width else 0.0
    if smallest < _LEAST_INDEPENDENT:
        raise DataError(
            f"the {rank} vectors of the {estimator} direction are linearly dependent (smallest "
            f"singular value at unit length {smallest:.1g}, allowed from {_LEAST_INDEPENDENT:g}). "
            "Ask for a lower rank."
        )
