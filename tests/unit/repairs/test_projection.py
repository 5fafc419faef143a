from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmend.directions.direction import Direction
from vlmend.repairs.shiftdc.projection import calibrate_online, correct_offline
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


def line(s: Tensor) -> Direction:
    return Direction(s[None], "by-hand")


def coefficient(x: Tensor, s: Tensor) -> Tensor:
    return line(s).coordinates(x)


@settings(deadline=None)
@given(problems())
def test_coefficient_is_that_of_float64(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, _x_text, s = problem
    error = (coefficient(x, s)[:, 0].double() - exact_coefficient(x, s)).abs().max()
    assert float(error) <= COEFFICIENT_NOISE * largest_coefficient(x, s)


@settings(deadline=None)
@given(problems())
def test_online_meets_the_invariant(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_text, s = problem
    result = calibrate_online(x, coefficient(x_text, s), line(s))
    left = exact_coefficient(result.double() - x_text.double(), s).abs().max()
    scale = max(largest_coefficient(x, s), largest_coefficient(x_text, s))
    assert float(left) <= COEFFICIENT_NOISE * scale


@settings(deadline=None)
@given(problems())
def test_only_the_part_along_s_is_changed(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_text, s = problem
    change = calibrate_online(x, coefficient(x_text, s), line(s)).double() - x.double()
    along = exact_coefficient(change, s)[:, None] * s.double()
    scale = max(float(x.abs().max()), float(x_text.abs().max()))
    assert float((change - along).abs().max()) <= COEFFICIENT_NOISE * scale


@settings(deadline=None)
@given(problems())
def test_on_one_layer_online_is_offline(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_text, s = problem
    online = calibrate_online(x, coefficient(x_text, s), line(s), strength=0.7)
    offline = correct_offline(x, x - x_text, line(s), strength=0.7)
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
            calibrate_online(x, coefficient(x_text, s), line(s)),
            calibrate_online(x, coefficient(x_text, other), line(other)),
        ),
        (correct_offline(x, x - x_text, line(s)), correct_offline(x, x - x_text, line(other))),
    ):
        assert float((first - second).abs().max()) <= COEFFICIENT_NOISE * scale


@settings(deadline=None)
@given(problems())
def test_calibrating_twice_is_calibrating_once(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, x_text, s = problem
    target = coefficient(x_text, s)
    once = calibrate_online(x, target, line(s))
    scale = max(float(x.abs().max()), float(x_text.abs().max()))
    assert float((calibrate_online(once, target, line(s)) - once).abs().max()) <= (
        COEFFICIENT_NOISE * scale
    )


@settings(deadline=None)
@given(problems(), st.floats(0.05, 2.0))
def test_strength_is_the_share_removed(
    problem: tuple[Tensor, Tensor, Tensor], strength: float
) -> None:
    x, x_text, s = problem
    result = calibrate_online(x, coefficient(x_text, s), line(s), strength=strength)
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
            calibrate_online(x, coefficient(x_text, s), line(s)),
            calibrate_online(x, coefficient(x_text, s), line(s), one_sided=True),
        ),
        (
            correct_offline(x, x - x_text, line(s)),
            correct_offline(x, x - x_text, line(s), one_sided=True),
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
        calibrate_online(x, coefficient(x_text, s), line(s)),
        correct_offline(x, x.float() - x_text.float(), line(s)),
    ):
        assert result.dtype == dtype
        assert_close(result, expected, noise)  # pyright: ignore[reportArgumentType]


# ---- subspaces


@settings(deadline=None)
@given(problems())
def test_a_line_gives_what_the_formula_of_a_line_gives(
    problem: tuple[Tensor, Tensor, Tensor],
) -> None:
    """In float32, by the dot products of the paper's equation."""
    x, x_text, s = problem
    expected = x - (((x - x_text) @ s) / (s @ s))[:, None] * s
    scale = max(float(x.abs().max()), float(x_text.abs().max()))
    for result in (
        calibrate_online(x, coefficient(x_text, s), line(s)),
        correct_offline(x, x - x_text, line(s)),
    ):
        assert float((result - expected).abs().max()) <= COEFFICIENT_NOISE * scale


@st.composite
def ranked_problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Direction]:
    """(x, x_text, direction of rank 2 to 4)."""
    x, x_text, _ = draw(problems())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scale = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    s_KD = scale * torch.randn(draw(st.integers(2, 4)), WIDTH, generator=generator)
    return x, x_text, Direction(s_KD, "by-hand")


def exact_part(x: Tensor, direction: Direction) -> Tensor:
    """The part in the span, in float64, by a pseudo-inverse."""
    s_KD = direction.vectors.double()
    return x.double() @ torch.linalg.pinv(s_KD) @ s_KD


@settings(deadline=None)
@given(ranked_problems())
def test_online_leaves_nothing_in_the_span_and_the_rest_alone(
    problem: tuple[Tensor, Tensor, Direction],
) -> None:
    x, x_text, direction = problem
    result = calibrate_online(x, direction.coordinates(x_text), direction).double()
    scale = max(float(x.norm(dim=1).max()), float(x_text.norm(dim=1).max()))
    left = exact_part(result - x_text.double(), direction)
    assert float(left.abs().max()) <= COEFFICIENT_NOISE * scale
    change = result - x.double()
    assert float((change - exact_part(change, direction)).abs().max()) <= COEFFICIENT_NOISE * scale


@settings(deadline=None)
@given(ranked_problems(), st.floats(0.05, 2.0))
def test_offline_removes_its_share_of_the_shift_in_the_span(
    problem: tuple[Tensor, Tensor, Direction], strength: float
) -> None:
    x, x_text, direction = problem
    result = correct_offline(x, x - x_text, direction, strength=strength)
    expected = x.double() - strength * exact_part(x.double() - x_text.double(), direction)
    scale = max(float(x.norm(dim=1).max()), float(x_text.norm(dim=1).max()))
    assert float((result - expected).abs().max()) <= 2 * COEFFICIENT_NOISE * scale


@settings(deadline=None)
@given(ranked_problems(), st.integers(0, 100))
def test_the_choice_of_the_basis_does_not_matter(
    problem: tuple[Tensor, Tensor, Direction], seed: int
) -> None:
    """Signs, lengths and rotations, all at once."""
    x, x_text, direction = problem
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(direction.rank, direction.rank, generator=generator)
    rotation = torch.linalg.qr(mixed).Q
    lengths = torch.tensor([-3.0, 0.5, 7.0, -1.0])[: direction.rank, None]
    other = Direction(lengths * (rotation @ direction.vectors), "by-hand")
    scale = max(float(x.norm(dim=1).max()), float(x_text.norm(dim=1).max()))
    for first, second in (
        (
            calibrate_online(x, direction.coordinates(x_text), direction),
            calibrate_online(x, other.coordinates(x_text), other),
        ),
        (
            correct_offline(x, x - x_text, direction),
            correct_offline(x, x - x_text, other),
        ),
    ):
        assert float((first - second).abs().max()) <= COEFFICIENT_NOISE * scale


def test_a_subspace_has_no_safe_side() -> None:
    plane = Direction(torch.eye(3)[:2], "by-hand")
    with pytest.raises(AssertionError, match="not defined"):
        correct_offline(torch.ones(1, 3), torch.ones(1, 3), plane, one_sided=True)
