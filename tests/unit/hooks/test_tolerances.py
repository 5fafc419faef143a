"""Differences of logits, some of which bar a token and measure nothing."""

from __future__ import annotations

import pytest
import torch

from vlmend.errors import ConfigError
from vlmend.hooks.tolerances import bar_alike, noise_of, relative_difference

LOWEST = torch.finfo(torch.float32).min
LOWEST_HALF = torch.finfo(torch.float16).min


def test_a_difference_is_relative_to_the_largest_number() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert relative_difference(torch.tensor([1.0, -3.0]), expected) == pytest.approx(0.25)
    assert relative_difference(torch.empty(0), torch.empty(0)) == 0.0


@pytest.mark.parametrize("bar", [LOWEST, LOWEST_HALF, -float("inf")])
def test_barred_tokens_do_not_hide_a_difference(bar: float) -> None:
    expected = torch.tensor([1.0, -4.0, bar])
    assert relative_difference(torch.tensor([1.0, -3.0, bar]), expected) == pytest.approx(0.25)
    assert relative_difference(torch.full((2,), bar), torch.full((2,), bar)) == 0.0


@pytest.mark.parametrize("bar", [LOWEST, LOWEST_HALF, -float("inf")])
def test_a_token_that_one_side_bars_is_a_difference(bar: float) -> None:
    barred, free = torch.tensor([1.0, bar]), torch.tensor([1.0, 2.0])
    assert relative_difference(barred, free) == float("inf")
    assert relative_difference(free, barred) == float("inf")
    assert relative_difference(bar_alike(free, barred), barred) == 0.0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_no_number_is_never_close(wrong: float) -> None:
    numbers, overflowed = torch.tensor([1.0, 2.0]), torch.tensor([1.0, wrong])
    for actual, expected in ((overflowed, numbers), (numbers, overflowed), (overflowed,) * 2):
        assert relative_difference(actual, expected) == float("inf")


def test_an_unmeasured_dtype_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"float8_e5m2\. Allowed: .*float16.*--dtype bfloat16"):
        noise_of(torch.float8_e5m2)
    assert noise_of(torch.float16).relative < noise_of(torch.bfloat16).relative
