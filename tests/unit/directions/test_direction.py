"""A direction against linear algebra in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmend.directions.direction import Direction
from vlmend.errors import DataError

WIDTH = 12
NOISE = 1e-5
"""Relative to the largest value that there could be; float32 has steps of 6e-8, and vectors at
random have a condition of up to about ten."""


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """(x (B, D), S (K, D)) of scales that differ by up to a million."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scale = st.sampled_from([1e-3, 1.0, 1e3])
    x = draw(scale) * torch.randn(draw(st.integers(1, 4)), WIDTH, generator=generator)
    s = draw(scale) * torch.randn(draw(st.integers(1, 4)), WIDTH, generator=generator)
    return x, s


@settings(deadline=None)
@given(problems())
def test_coordinates_are_those_of_least_squares(problem: tuple[Tensor, Tensor]) -> None:
    x, s = problem
    expected = np.linalg.lstsq(s.double().numpy().T, x.double().numpy().T, rcond=None)[0].T
    found = Direction(s, "by-hand").coordinates(x).numpy()
    assert found.shape == (len(x), len(s))
    scale = np.abs(np.linalg.pinv(s.double().numpy())).max() * float(x.norm(dim=1).max())
    assert np.abs(found - expected).max() <= NOISE * scale


@settings(deadline=None)
@given(problems())
def test_what_is_left_is_at_right_angles(problem: tuple[Tensor, Tensor]) -> None:
    x, s = problem
    direction = Direction(s, "by-hand")
    left = (x - direction.component(x)).double()
    unit = s.double() / s.double().norm(dim=1, keepdim=True)
    assert float((left @ unit.T).abs().max()) <= NOISE * float(x.norm(dim=1).max())


def test_by_hand() -> None:
    direction = Direction(torch.tensor([[2.0, 0.0, 0.0], [0.0, 4.0, 0.0]]), "by-hand")
    x = torch.tensor([[3.0, 2.0, 9.0]], dtype=torch.bfloat16)
    assert direction.rank == 2
    assert torch.equal(direction.coordinates(x), torch.tensor([[1.5, 0.5]]))
    assert torch.equal(direction.component(x), torch.tensor([[3.0, 2.0, 0.0]]))


def test_vectors_are_float32_and_stay_what_they_are() -> None:
    given_KD = torch.randn(2, WIDTH, dtype=torch.float64)
    direction = Direction(given_KD, "by-hand")
    assert direction.vectors.dtype == torch.float32
    assert torch.equal(direction.vectors, given_KD.float())
    assert direction.to("cpu") is direction
    moved = direction.to("meta")
    assert moved.vectors.device.type == "meta"
    assert moved.coordinates(torch.zeros(3, WIDTH, device="meta")).shape == (3, 2)
    assert direction.vectors.device.type == "cpu"


def test_tiny_vectors_do_not_underflow() -> None:
    direction = Direction(torch.full((1, 4), 1e-25), "by-hand")
    assert float(direction.coordinates(torch.full((1, 4), 3e-25))) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (torch.ones(4), r"shape \(4,\)"),
        (torch.ones(0, 4), r"shape \(0, 4\)"),
        (torch.tensor([[1.0, float("nan")]]), "infinite values or NaN"),
        (torch.tensor([[1.0, float("inf")]]), "infinite values or NaN"),
        (torch.zeros(1, 3), r"zero in row\(s\) \[0\]"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), r"zero in row\(s\) \[1\]"),
        (torch.tensor([[1.0, 2.0], [-2.0, -4.0]]), "linearly dependent"),
        (torch.tensor([[1.0, 2.0], [1.0, 2.0001]]), "linearly dependent"),
        (torch.eye(3)[:, :2] + 1, "linearly dependent"),
    ],
)
def test_what_is_no_direction(vectors: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Direction(vectors, "by-hand")


def test_lengths_that_differ_are_no_dependence() -> None:
    Direction(torch.tensor([[1e-6, 0.0], [0.0, 1e6]]), "by-hand")
