from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmend.repairs.shiftdc.projection import (
    calibrate_online,
    coefficient,
    correct_offline,
    difference_in_means,
)
from vlmend.testing import BFLOAT16_NOISE, FLOAT32_NOISE, assert_close

COEFFICIENT_NOISE = 1e-5
"""Relative to the largest value that there could be. Measured in ten thousand random draws: at
most 1.1e-7 for a coefficient, 1.7e-7 for what calibration leaves, 2.7e-7 for another length of
s; float32 has steps of 6e-8."""

WIDTH = 24
MAX_ITEMS = 5


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """(x, x_text, s): (B, D), (B, D), (D,), of scales that differ by up to a million."""
    items = draw(st.integers(1, MAX_ITEMS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scale = st.sampled_from([1e-3, 1.0, 1e3])
    x = draw(scale) * torch.randn(items, WIDTH, generator=generator)
    x_text = draw(scale) * torch.randn(items, WIDTH, generator=generator)
    s = draw(scale) * torch.randn(WIDTH, generator=generator)
    return x, x_text, s


def exact_coefficient(x: Tensor, s: Tensor) -> Tensor:
    return (x.double() * s.double()).sum(-1) / s.double().square().sum()


def largest_coefficient(x: Tensor, s: Tensor) -> float:
    return float(x.double().norm(dim=-1).max() / s.double().norm())


def test_difference_in_means_by_hand_and_in_float32() -> None:
    safe = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.bfloat16)
    unsafe = torch.tensor([[1.0, 1.0], [1.0, 1.0], [4.0, -2.0]], dtype=torch.bfloat16)
    s = difference_in_means(safe, unsafe)
    assert s.dtype == torch.float32
    assert torch.equal(s, torch.tensor([0.0, 4.0]))


@settings(deadline=None)
@given(problems())
def test_coefficient_is_that_of_float64(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _x_text, s = problem
    error = (coefficient(x, s).double() - exact_coefficient(x, s)).abs().max()
    assert float(error) <= COEFFICIENT_NOISE * largest_coefficient(x, s)


@settings(deadline=None)
@given(problems())
def test_online_meets_the_invariant(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_text, s = problem
    result = calibrate_online(x, coefficient(x_text, s), s)
    left = exact_coefficient(result.double() - x_text.double(), s).abs().max()
    scale = max(largest_coefficient(x, s), largest_coefficient(x_text, s))
    assert float(left) <= COEFFICIENT_NOISE * scale


@settings(deadline=None)
@given(problems())
def test_only_the_part_along_s_is_changed(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_text, s = problem
    change = calibrate_online(x, coefficient(x_text, s), s).double() - x.double()
    along = exact_coefficient(change, s)[:, None] * s.double()
    scale = max(float(x.abs().max()), float(x_text.abs().max()))
    assert float((change - along).abs().max()) <= COEFFICIENT_NOISE * scale


@settings(deadline=None)
@given(problems())
def test_on_one_layer_online_is_offline(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_text, s = problem
    online = calibrate_online(x, coefficient(x_text, s), s, strength=0.7)
    offline = correct_offline(x, x - x_text, s, strength=0.7)
    scale = max(float(x.abs().max()), float(x_text.abs().max()))
    assert float((online - offline).abs().max()) <= COEFFICIENT_NOISE * scale


@settings(deadline=None)
@given(problems(), st.sampled_from([-1.0, 3.5, -1e-2, 40.0]))
def test_sign_and_length_of_s_do_not_matter(
    problem: tuple[Tensor, Tensor, Tensor], factor: float
) -> None:
    x, x_text, s = problem
    other = s * factor
    scale = max(float(x.abs().max()), float(x_text.abs().max()))
    for first, second in (
        (
            calibrate_online(x, coefficient(x_text, s), s),
            calibrate_online(x, coefficient(x_text, other), other),
        ),
        (correct_offline(x, x - x_text, s), correct_offline(x, x - x_text, other)),
    ):
        assert float((first - second).abs().max()) <= COEFFICIENT_NOISE * scale


@settings(deadline=None)
@given(problems())
def test_calibrating_twice_is_calibrating_once(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_text, s = problem
    target = coefficient(x_text, s)
    once = calibrate_online(x, target, s)
    scale = max(float(x.abs().max()), float(x_text.abs().max()))
    assert float((calibrate_online(once, target, s) - once).abs().max()) <= (
        COEFFICIENT_NOISE * scale
    )


@settings(deadline=None)
@given(problems(), st.floats(0.05, 2.0))
def test_strength_is_the_share_removed(
    problem: tuple[Tensor, Tensor, Tensor], strength: float
) -> None:
    x, x_text, s = problem
    result = calibrate_online(x, coefficient(x_text, s), s, strength=strength)
    before = exact_coefficient(x - x_text, s)
    after = exact_coefficient(result.double() - x_text.double(), s)
    scale = max(largest_coefficient(x, s), largest_coefficient(x_text, s))
    assert float((after - (1 - strength) * before).abs().max()) <= COEFFICIENT_NOISE * 3 * scale


@settings(deadline=None)
@given(problems())
def test_one_sided_corrects_shifts_towards_safe_alone(
    problem: tuple[Tensor, Tensor, Tensor],
) -> None:
    x, x_text, s = problem
    shift = exact_coefficient(x - x_text, s)
    # A shift of about zero has no side.
    assume(float(shift.abs().min()) > 1e-3 * largest_coefficient(x, s))
    towards_safe = shift > 0
    for whole, one_sided in (
        (
            calibrate_online(x, coefficient(x_text, s), s),
            calibrate_online(x, coefficient(x_text, s), s, one_sided=True),
        ),
        (
            correct_offline(x, x - x_text, s),
            correct_offline(x, x - x_text, s, one_sided=True),
        ),
    ):
        assert torch.equal(one_sided[towards_safe], whole[towards_safe])
        assert torch.equal(one_sided[~towards_safe], x[~towards_safe])


@pytest.mark.parametrize(
    ("dtype", "noise"), [(torch.float32, FLOAT32_NOISE), (torch.bfloat16, BFLOAT16_NOISE)]
)
def test_results_keep_the_dtype(dtype: torch.dtype, noise: object) -> None:
    generator = torch.Generator().manual_seed(0)
    x, x_text = torch.randn(2, 3, WIDTH, generator=generator).to(dtype)
    s = torch.randn(WIDTH, generator=generator)
    expected = x.double() - exact_coefficient(x.double() - x_text.double(), s)[:, None] * s
    for result in (
        calibrate_online(x, coefficient(x_text, s), s),
        correct_offline(x, x.float() - x_text.float(), s),
    ):
        assert result.dtype == dtype
        assert_close(result, expected, noise)  # pyright: ignore[reportArgumentType]
