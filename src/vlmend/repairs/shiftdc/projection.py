"""The mathematics of ShiftDC as pure functions of tensors; no model.

Shapes: B = items, K = rank of the safety direction, D = width of the residual stream. The
direction is from unsafe to safe. What is removed depends on its span alone, not on the length,
the sign or the choice of its vectors; only `one_sided` reads the sign, to know which way is safe.
"""

from __future__ import annotations

from torch import Tensor

from vlmend.directions.direction import Direction


def calibrate_online(
    x_BD: Tensor,
    text_BK: Tensor,
    direction: Direction,
    *,
    strength: float = 1.0,
    one_sided: bool = False,
) -> Tensor:
    """Move activations within the span to where the text branch lies.

    With strength 1 the result meets the invariant exactly: the part of (result - x_text) that
    lies in the span is zero.

    Args:
        x_BD: (B, D) activations of the vision-language branch, as they are now.
        text_BK: (B, K) `Direction.coordinates` of the text branch.
        direction: Safety direction, from unsafe to safe, on the device of the activations.
        strength: Share of the projection removed, 1 for all of it.
        one_sided: Correct only shifts towards safe (a declared deviation); rank 1 only.

    Returns:
        (B, D) in the dtype of `x_BD`; computed in float32.
    """
    shift_BK = direction.coordinates(x_BD) - text_BK
    return _move_back(x_BD, shift_BK, direction, strength, one_sided=one_sided)


def correct_offline(
    x_BD: Tensor,
    shift_BD: Tensor,
    direction: Direction,
    *,
    strength: float = 1.0,
    one_sided: bool = False,
) -> Tensor:
    """Subtract the projection of a shift that was measured on clean passes.

    Args:
        x_BD: (B, D) activations of the vision-language branch, as they are now.
        shift_BD: (B, D) modality-induced shift m = x_vl - x_text of clean passes.
        direction: Safety direction, from unsafe to safe, on the device of the activations.
        strength: Share of the projection removed.
        one_sided: Correct only shifts towards safe; rank 1 only.

    Returns:
        (B, D) in the dtype of `x_BD`; computed in float32.

    Reference: arXiv 2502.13095, equation for the calibrated activation.
    """
    shift_BK = direction.coordinates(shift_BD)
    return _move_back(x_BD, shift_BK, direction, strength, one_sided=one_sided)


def _move_back(
    x_BD: Tensor, shift_BK: Tensor, direction: Direction, strength: float, *, one_sided: bool
) -> Tensor:
    if one_sided:
        assert direction.rank == 1, "the safe side of a subspace is not defined"
        shift_BK = shift_BK.clamp(min=0)
    return (x_BD.float() - strength * shift_BK @ direction.vectors).to(x_BD.dtype)
