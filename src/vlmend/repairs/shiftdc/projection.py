"""The mathematics of ShiftDC as pure functions of tensors; no model.

Shapes: B = items, D = width of the residual stream. The direction s need not be normalised;
its sign and length do not matter to any of the functions.
"""

from __future__ import annotations

from torch import Tensor


def difference_in_means(safe_ND: Tensor, unsafe_ND: Tensor) -> Tensor:
    """The safety direction s = mean of safe minus mean of unsafe activations.

    Args:
        safe_ND: (N, D) activations of safe text prompts.
        unsafe_ND: (M, D) activations of unsafe ones.

    Returns:
        (D,) float32.

    Reference: arXiv 2502.13095, equation for s^l.

    Example:
        >>> import torch
        >>> difference_in_means(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
        tensor([2., 0.])
    """
    return safe_ND.float().mean(0) - unsafe_ND.float().mean(0)


def coefficient(x_BD: Tensor, s_D: Tensor) -> Tensor:
    """How far activations lie along s: <x, s> / <s, s>.

    Returns:
        (B,) float32.
    """
    s = s_D.float()
    return (x_BD.float() @ s) / (s @ s)


def project(x_BD: Tensor, s_D: Tensor) -> Tensor:
    """The part of activations along s: (<x, s> / <s, s>) s.

    Returns:
        (B, D) float32.
    """
    return coefficient(x_BD, s_D)[:, None] * s_D.float()


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
    if one_sided:
        shift_B = shift_B.clamp(min=0)
    return (x_BD.float() - strength * shift_B[:, None] * s_D.float()).to(x_BD.dtype)


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
    """
    amount_B = coefficient(shift_BD, s_D)
    if one_sided:
        amount_B = amount_B.clamp(min=0)
    return (x_BD.float() - strength * amount_B[:, None] * s_D.float()).to(x_BD.dtype)
