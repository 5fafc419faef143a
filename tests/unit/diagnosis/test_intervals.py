from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from vlmend.diagnosis.intervals import average, average_over_exits, empty_stat, rate_record
from vlmend.errors import ConfigError
from vlmend.evals.stats import wilson

VALUES = np.random.default_rng(1).lognormal(size=60)


@pytest.mark.parametrize("kind", ["mean", "median"])
def test_the_interval_is_scipys(kind: str) -> None:
    reduce = np.mean if kind == "mean" else np.median
    found = average(VALUES.tolist(), kind=kind, seed=3)  # pyright: ignore[reportArgumentType]
    expected = bootstrap(
        (VALUES,), reduce, method="percentile", n_resamples=2000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found["value"] == pytest.approx(reduce(VALUES))
    assert found["low"] == pytest.approx(expected.low, rel=0.05)
    assert found["high"] == pytest.approx(expected.high, rel=0.05)
    assert found["n"] == 60


def test_the_seed_decides() -> None:
    assert average([1, 2, 5], seed=1) == average([1, 2, 5], seed=1)
    assert average(VALUES.tolist(), seed=1) != average(VALUES.tolist(), seed=2)


def test_few_values() -> None:
    assert average([]) == empty_stat() == {"value": None, "low": None, "high": None, "n": 0}
    assert average([3.0]) == {"value": 3.0, "low": None, "high": None, "n": 1}
    assert average([3.0, 3.0]) == {"value": 3.0, "low": 3.0, "high": 3.0, "n": 2}


@pytest.mark.parametrize("values", [[1.0, float("nan")], [float("inf")]])
def test_what_is_not_finite(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="1 not finite"):
        average(values)


def test_a_rate() -> None:
    assert rate_record(wilson(0, 0)) == {"rate": None, "low": None, "high": None, "n": 0}
    found = rate_record(wilson(1, 2))
    assert (found["rate"], found["n"]) == (0.5, 2)
    assert 0 < found["low"] < 0.5 < found["high"] < 1


# ---- over exits


def test_the_mean_over_exits_is_of_each_exits_own_items() -> None:
    # 1/2, 2/3: the mean of rates, not 3/5 of all.
    found = average_over_exits([[1, 0, None], [1, 0, 1]])
    assert found["value"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["n"] == 3


def test_items_are_drawn_with_all_their_exits() -> None:
    """The same items succeed at all exits: the interval is as wide as that of one exit.

    Exits drawn apart would make it narrower by the square root of their number.
    """
    row = [1.0] * 20 + [0.0] * 20
    one, many = average(row), average_over_exits([row] * 9)
    assert many["value"] == one["value"] == 0.5
    assert many["high"] - many["low"] == pytest.approx(one["high"] - one["low"], abs=0.03)
    apart = [np.random.default_rng(i).permutation(row).tolist() for i in range(9)]
    narrow = average_over_exits(apart)
    assert narrow["high"] - narrow["low"] < 0.6 * (one["high"] - one["low"])


def test_exits_and_items_without_a_value() -> None:
    assert average_over_exits([[None, None], [1, 0]])["value"] == 0.5
    assert average_over_exits([[None, 1], [None, 0]]) == {
        "value": 0.5,
        "low": None,
        "high": None,
        "n": 1,
    }
    for nothing in ([], [[]], [[None, None]]):
        assert average_over_exits(nothing) == empty_stat()
    # Never an item of both exits in one resample of two: about half of them say nothing.
    found = average_over_exits([[1, None], [None, 0]])
    assert (found["value"], found["low"], found["high"]) == (0.5, 0.5, 0.5)


def test_exits_of_different_length() -> None:
    with pytest.raises(ConfigError, match="exits with 2, 1 items"):
        average_over_exits([[1, 0], [1]])
