from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp
from statsmodels.regression.linear_model import OLS

from vlmend.diagnosis.intervals import (
    LEAST_FOR_MEDIAN,
    average,
    average_by_group,
    average_over_exits,
    empty_stat,
)
from vlmend.errors import ConfigError

VALUES = np.random.default_rng(1).lognormal(size=60)
THINGS = [f"thing {i}" for i in np.random.default_rng(2).integers(0, 13, 60)]


def t_limits(values: np.ndarray) -> tuple[float, float]:
    found: Any = ttest_1samp(values, 0)
    interval = found.confidence_interval(0.95)
    return interval.low, interval.high


def test_a_mean_has_students_limits() -> None:
    found = average(VALUES.tolist())
    assert found["value"] == pytest.approx(VALUES.mean())
    assert (found["low"], found["high"]) == pytest.approx(t_limits(VALUES))
    assert found["n"] == 60
    two = average([1.0, 3.0])
    # sd sqrt(2), error 1, and t of one degree of freedom.
    assert (two["low"], two["high"]) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-3)


def test_the_mean_of_things_has_cluster_robust_limits() -> None:
    found = average(VALUES.tolist(), groups=THINGS)
    number = np.unique(THINGS, return_inverse=True)[1]
    how = {"groups": number, "use_correction": False}
    fit: Any = OLS(VALUES, np.ones(60)).fit(cov_type="cluster", cov_kwds=how)
    half = float(t.ppf(0.975, 12)) * float(fit.bse[0]) * math.sqrt(13 / 12)
    assert number.max() == 12
    assert found["value"] == pytest.approx(VALUES.mean())
    expected = VALUES.mean() - half, VALUES.mean() + half
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert found["n"] == 60


@pytest.mark.parametrize("count", [2, 5])
def test_a_mean_of_few_values_covers_what_it_says(count: int) -> None:
    """A percentile bootstrap of two values covers half of the time."""
    drawn = np.random.default_rng(0).normal(size=(1000, count))
    stats = [average(row) for row in drawn.tolist()]
    inside = np.mean([stat["low"] <= 0 <= stat["high"] for stat in stats])
    assert 0.93 <= inside <= 0.97


def test_limits_are_cut_where_no_value_can_be() -> None:
    found = average([0.0, 0.0, 0.1, 0.0], within=(0.0, 1.0))
    assert found["low"] == 0.0
    assert found["high"] == average([0.0, 0.0, 0.1, 0.0])["high"] < 1


def test_the_median_of_things_is_a_bootstrap_of_whole_things() -> None:
    found = average(VALUES.tolist(), kind="median", groups=THINGS, seed=3)
    generator = np.random.default_rng(0)
    names = np.asarray(THINGS)
    whole = [VALUES[names == name] for name in np.unique(names)]
    drawn = [
        np.median(np.concatenate([whole[i] for i in generator.integers(0, 13, 13)]))
        for _ in range(2000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found["value"] == np.median(VALUES)
    assert found["low"] == pytest.approx(low, rel=0.04)
    assert found["high"] == pytest.approx(high, rel=0.04)


def test_copies_add_no_certainty() -> None:
    names = [str(i) for i in range(60)]
    for kind in ("mean", "median"):
        once = average(VALUES.tolist(), kind=kind, groups=names)
        often = average(VALUES.tolist() * 5, kind=kind, groups=names * 5)
        del once["n"], often["n"]
        assert often == pytest.approx(once)


def test_the_seed_decides_for_medians() -> None:
    values = VALUES.tolist()
    assert average(values, kind="median", seed=1) == average(values, kind="median", seed=1)
    assert average(values, kind="median", seed=1) != average(values, kind="median", seed=2)


def test_few_values() -> None:
    assert average([]) == empty_stat() == {"value": None, "low": None, "high": None, "n": 0}
    assert average([3.0]) == {"value": 3.0, "low": None, "high": None, "n": 1}
    assert average([3.0, 3.0]) == {"value": 3.0, "low": 3.0, "high": 3.0, "n": 2}
    one_thing = average([3.0, 4.0], groups=["a", "a"])
    assert one_thing == {"value": 3.5, "low": None, "high": None, "n": 2}


def test_a_median_of_few_things_has_no_interval() -> None:
    values = VALUES[:LEAST_FOR_MEDIAN].tolist()
    assert average(values, kind="median")["low"] < average(values, kind="median")["high"]
    for few, groups in ((values[1:], None), (values, ["a", "a", "b", "c", "d", "e"])):
        found = average(few, kind="median", groups=groups)
        assert found["value"] == np.median(few)
        assert (found["low"], found["high"]) == (None, None)


def test_things_that_weigh_alike() -> None:
    found = average_by_group([1.0, 3.0, 8.0, 5.0], ["a", "a", "b", "c"])
    low, high = t_limits(np.array([2.0, 8.0, 5.0]))
    assert found == pytest.approx({"value": 5.0, "low": low, "high": high, "n": 3})


@pytest.mark.parametrize("values", [[1.0, float("nan")], [float("inf")]])
def test_what_is_not_finite(values: list[float]) -> None:
    with pytest.raises(ConfigError, match="1 not finite"):
        average(values)


def test_groups_of_other_items() -> None:
    with pytest.raises(ConfigError, match="1 groups given"):
        average([1.0, 2.0], groups=["a"])


# ---- over exits


def test_the_mean_over_exits_is_of_each_exits_own_items() -> None:
    # 1/2, 2/3: the mean of rates, not 3/5 of all.
    found = average_over_exits([[1, 0, None], [1, 0, 1]])
    assert found["value"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["n"] == 3


def test_items_count_with_all_their_exits() -> None:
    """The same items succeed at all exits: the interval is as wide as that of one exit.

    Exits that were independent would make it narrower by the square root of their number.
    """
    row = [1.0] * 20 + [0.0] * 20
    one, many = average(row), average_over_exits([row] * 9)
    assert many == pytest.approx(one)
    apart = [np.random.default_rng(i).permutation(row).tolist() for i in range(9)]
    narrow = average_over_exits(apart)
    # Without holes the mean over exits is an item's mean, and its limits Student's.
    low, high = t_limits(np.mean(apart, axis=0))
    assert (narrow["low"], narrow["high"]) == pytest.approx((low, high))
    assert narrow["high"] - narrow["low"] < 0.6 * (one["high"] - one["low"])


def test_things_are_what_varies_over_exits_with_holes() -> None:
    """Against the jackknife over things, which needs no formula for ratios."""
    generator = np.random.default_rng(0)
    number = np.arange(240) // 6
    values = generator.random((3, 240)) < generator.beta(1, 1, size=40)[number]
    table = np.where(generator.random((3, 240)) < 0.1, np.nan, values)
    rows = [[None if math.isnan(v) else float(v) for v in row] for row in table]
    groups = [f"thing {g}" for g in number]
    found = average_over_exits(rows, groups=groups, within=(0, 1))
    without = [np.nanmean(table[:, number != g], axis=1).mean() for g in range(40)]
    error = math.sqrt(39 * float(np.var(np.asarray(without))))
    half = float(t.ppf(0.975, 39)) * error
    assert found["value"] == pytest.approx(np.nanmean(table, axis=1).mean())
    assert found["low"] == pytest.approx(found["value"] - half, rel=0.02)
    assert found["high"] == pytest.approx(found["value"] + half, rel=0.02)
    assert found["n"] == 240 - np.isnan(table).all(axis=0).sum()
    loose = average_over_exits(rows)
    assert loose["high"] - loose["low"] < 0.8 * (found["high"] - found["low"])


def test_exits_and_items_without_a_value() -> None:
    assert average_over_exits([[None, None], [1, 0]])["value"] == 0.5
    no_limits = {"low": None, "high": None}
    assert average_over_exits([[None, 1], [None, 0]]) == {"value": 0.5, **no_limits, "n": 1}
    for nothing in ([], [[]], [[None, None]]):
        assert average_over_exits(nothing) == empty_stat()
    # One item is all that an exit has: nothing says how it would vary.
    assert average_over_exits([[1, None], [None, 0]]) == {"value": 0.5, **no_limits, "n": 2}
    same = average_over_exits([[1, 0, 1]], groups=["a", "a", "a"])
    assert same == {"value": pytest.approx(2 / 3), **no_limits, "n": 3}


def test_exits_of_different_length() -> None:
    with pytest.raises(ConfigError, match="exits with 2, 1 items"):
        average_over_exits([[1, 0], [1]])
    with pytest.raises(ConfigError, match="and 1 groups"):
        average_over_exits([[1, 0]], groups=["a"])
