"""Comparing tensors with tolerances that have a name and a measurement behind them."""

from __future__ import annotations

from torch import Tensor

from vlmend.hooks.tolerances import Tolerance, relative_difference


def assert_close(actual: Tensor, expected: Tensor, tolerance: Tolerance) -> None:
    """Fail unless two tensors agree up to a named tolerance.

    Args:
        actual: What was computed.
        expected: What it should be; sets the scale.
        tolerance: See `vlmend.hooks.tolerances`.

    Raises:
        AssertionError: Different shapes, a NaN, or a difference above the tolerance.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"shapes differ: {tuple(actual.shape)}, {tuple(expected.shape)}")
    difference = relative_difference(actual, expected)
    # Written so that a NaN fails.
    if not difference <= tolerance.relative:
        raise AssertionError(
            f"relative difference {difference:.3g} exceeds {tolerance.name} "
            f"({tolerance.relative:.3g}: {tolerance.reason})"
        )
