"""Rates over groups: coverage, the plain limit, and degenerate input."""

from __future__ import annotations

import numpy as np
import pytest

from vlmend.errors import ConfigError
from vlmend.evals.clustered import ClusteredRate, clustered_rate
from vlmend.evals.stats import wilson


def width(rate: ClusteredRate) -> float:
    assert rate.low is not None
    assert rate.high is not None
    return rate.high - rate.low


def test_items_that_share_nothing_have_wilsons_interval() -> None:
    hits = [True] * 250 + [False] * 150
    plain = wilson(250, 400)
    rate = clustered_rate(hits, [str(i) for i in range(400)])
    assert (rate.rate, rate.n) == (0.625, 400)
    # Not equal: 399 degrees of freedom instead of a known variance.
    assert rate.low == pytest.approx(plain.low, abs=5e-4)
    assert rate.high == pytest.approx(plain.high, abs=5e-4)


def test_copies_add_no_certainty() -> None:
    hits, names = [True] * 30 + [False] * 12, [str(i) for i in range(42)]
    once = clustered_rate(hits, names)
    often = clustered_rate(hits * 7, names * 7)
    assert (often.rate, often.low, often.high) == pytest.approx((once.rate, once.low, once.high))
    assert often.n == 7 * once.n


def test_interval_covers_what_it_says() -> None:
    """Things are right or wrong together: Wilson over items misses far more often than 5 %."""
    generator = np.random.default_rng(0)
    groups = [str(i // 10) for i in range(400)]
    inside = {"clustered": 0, "items": 0}
    for _ in range(400):
        per_thing = generator.beta(2, 1, size=40)
        hits = generator.random(400) < np.repeat(per_thing, 10)
        rate, plain = clustered_rate(hits.tolist(), groups), wilson(int(hits.sum()), 400)
        for name, given in (("clustered", rate), ("items", plain)):
            assert given.low is not None
            assert given.high is not None
            inside[name] += given.low <= 2 / 3 <= given.high
    assert 0.93 <= inside["clustered"] / 400 <= 0.98
    assert inside["items"] / 400 < 0.85


def test_classes_weigh_the_same() -> None:
    """Nine unsafe of ten and one safe of two: balanced accuracy by hand."""
    hits = [True] * 9 + [False] + [True, False]
    classes = [True] * 10 + [False] * 2
    rate = clustered_rate(hits, [str(i) for i in range(12)], classes)
    assert rate.rate == pytest.approx((0.9 + 0.5) / 2)
    # The two safe items decide: wider than twelve plain items.
    assert width(rate) > width(clustered_rate(hits, [str(i) for i in range(12)]))


@pytest.mark.parametrize("hit", [True, False])
def test_where_nothing_varies_a_group_is_one_observation(hit: bool) -> None:
    groups = [str(i // 10) for i in range(200)]
    rate = clustered_rate([hit] * 200, groups)
    plain = wilson(20 * hit, 20)
    assert plain.low is not None
    assert plain.high is not None
    assert plain.high - plain.low < width(rate) < 1.2 * (plain.high - plain.low)
    assert rate.rate == float(hit)


def test_always_the_same_answer_is_half_right_with_a_width() -> None:
    rate = clustered_rate([True] * 8 + [False] * 8, list("abcdefgh") * 2, [True] * 8 + [False] * 8)
    assert rate.rate == 0.5
    assert width(rate) > 0.4


def test_what_cannot_be_said_is_none() -> None:
    assert clustered_rate([], []) == ClusteredRate(None, None, None, 0)
    assert clustered_rate([True, False], ["a", "a"]) == ClusteredRate(0.5, None, None, 2)
    one_class = clustered_rate([True, False], ["a", "b"], [True, True])
    assert one_class.record() == {"rate": None, "low": None, "high": None, "n": 2}


def test_lengths_must_agree() -> None:
    with pytest.raises(ConfigError, match="do not belong together"):
        clustered_rate([True], ["a", "b"])
