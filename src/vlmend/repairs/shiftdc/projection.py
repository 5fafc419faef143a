"""The mathematics of ShiftDC as pure functions of tensors; no model.

Shapes: N, M, B = items, D = width of the residual stream. The safety direction s is from unsafe
to safe, not zero, and not normalised. What is removed along s depends on neither its length nor
its sign; only `one_sided` reads the sign, to know which way is safe.
"""

from __future__ import annotations

from torch import Tensor


def difference_in_means(safe_ND: Tensor, unsafe_MD: Tensor) -> Tensor:
    """The safety direction s = mean of safe minus mean of unsafe activations.

    Args:
        safe_ND: (N, D) activations of safe text prompts, N >= 1.
        unsafe_MD: (M, D) activations of unsafe ones, M >= 1.

    Returns:
        (D,) float32.

    Reference: arXiv 2502.13095, equation for s^l.

    Example:
        >>> import torch
        >>> difference_in_means(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
        tensor([2., 0.])
    """
    return safe_ND.float().mean(0) - unsafe_MD.float().mean(0)


def coefficient(x_BD: Tensor, s_D: Tensor) -> Tensor:
    """How far activations lie along s, in lengths of s: <x, s> / <s, s>.

    Args:
        x_BD: (B, D) activations or differences of activations.
        s_D: (D,) safety direction, not zero.

    Returns:
        (B,) float32.

    Example:
        >>> import torch
        >>> coefficient(torch.tensor([[3.0, 7.0]]), torch.tensor([2.0, 0.0]))
        tensor([1.5000])
    """
    s = s_D.float()
    return (x_BD.float() @ s) / (s @ s)


def calibrate_online(
    x_BD: Tensor,
    text_coefficient_B: Tensor,
    s_D: Tensor,
    *,
    strength: float = 1.0,
    one_sided: bool = False,
) -> Tensor:
    """Move activations along s to where the text branch lies.

    With strength 1 the result meets the invariant <result - x_text, s> = 0 exactly.

    Args:
        x_BD: (B, D) activations of the vision-language branch, as they are now.
        text_coefficient_B: (B,) `coefficient` of the text branch.
        s_D: (D,) safety direction, from unsafe to safe.
        strength: Share of the projection removed, 1 for all of it.
        one_sided: Correct only shifts towards safe (a declared deviation).

    Returns:
        (B, D) in the dtype of `x_BD`; computed in float32.
    """
    shift_B = coefficient(x_BD, s_D) - text_coefficient_B
    return _move_back(x_BD, shift_B, s_D, strength, one_sided=one_sided)


def correct_offline(
    x_BD: Tensor,
    shift_BD: Tensor,
    s_D: Tensor,
    *,
    strength: float = 1.0,
    one_sided: bool = False,
) -> Tensor:
    """Subtract the projection of a shift that was measured on clean passes.

    Args:
        x_BD: (B, D) activations of the vision-language branch, as they are now.
        shift_BD: (B, D) modality-induced shift m = x_vl - x_text of clean passes.
        s_D: (D,) safety direction, from unsafe to safe.
        strength: Share of the projection removed.
        one_sided: Correct only shifts towards safe.

    Returns:
        (B, D) in the dtype of `x_BD`; computed in float32.

    Reference: arXiv 2502.13095, equation for the calibrated activation.
    """
    return _move_back(x_BD, coefficient(shift_BD, s_D), s_D, strength, one_sided=one_sided)


def _move_back(
    x_BD: Tensor, shift_B: Tensor, s_D: Tensor, strength: float, *, one_sided: bool
) -> Tensor:
    if one_sided:
        shift_B = shift_B.clamp(min=0)
    return (x_BD.float() - strength * shift_B[:, None] * s_D.float()).to(x_BD.dtype)
