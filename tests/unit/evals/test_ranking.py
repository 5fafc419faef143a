"""AUROC with an interval over groups: against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vlmend.errors import ConfigError
from vlmend.evals.ranking import auroc


def test_value_is_scikit_learns_with_ties() -> None:
    generator = np.random.default_rng(3)
    for _ in range(5):
        positive = generator.random(60) < 0.4
        scores = np.round(generator.normal(size=60) + positive, 1)
        result = auroc(scores.tolist(), positive.tolist(), num_resamples=50)
        assert result.value == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        assert (result.n_positive, result.n_negative) == (positive.sum(), (~positive).sum())


def test_interval_is_a_plain_bootstrap_over_items_within_classes() -> None:
    generator = np.random.default_rng(4)
    positive = np.arange(80) < 30
    scores = generator.normal(size=80) + 0.8 * positive
    result = auroc(scores.tolist(), positive.tolist(), num_resamples=4000)
    wins = scores[:30, None] > scores[None, 30:]
    values = [
        wins[np.ix_(generator.integers(0, 30, 30), generator.integers(0, 50, 50))].mean()
        for _ in range(2000)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    assert result.low == pytest.approx(low, abs=0.015)
    assert result.high == pytest.approx(high, abs=0.015)


def test_copies_of_an_item_add_no_certainty_when_grouped() -> None:
    generator = np.random.default_rng(5)
    positive = np.arange(40) % 2 == 0
    scores = generator.normal(size=40) + positive
    names = [f"g{i}" for i in range(40)]
    one = auroc(scores.tolist(), positive.tolist(), groups=names)
    nine = auroc(
        np.repeat(scores, 9).tolist(),
        np.repeat(positive, 9).tolist(),
        groups=np.repeat(names, 9).tolist(),
    )
    loose = auroc(np.repeat(scores, 9).tolist(), np.repeat(positive, 9).tolist())
    assert (nine.value, nine.low, nine.high) == pytest.approx((one.value, one.low, one.high))
    assert loose.low is not None
    assert nine.low is not None
    assert loose.low > nine.low + 0.03


def test_groups_that_hold_both_classes_are_drawn_whole() -> None:
    # Each group ranks its own pair perfectly or perfectly wrong; across groups all is tied.
    scores = [1.0, 0.0] * 6 + [0.0, 1.0] * 6
    result = auroc(scores, [True, False] * 12, groups=[f"t{i // 2}" for i in range(24)])
    assert result.value == pytest.approx(0.5)
    # With k right groups of 12 the area is k / 12 exactly; k is binomial(12, 1/2).
    assert result.low == pytest.approx(3 / 12, abs=1e-9)
    assert result.high == pytest.approx(9 / 12, abs=1e-9)


def test_perfect_ranking_has_a_width_that_shrinks_with_the_groups() -> None:
    few = auroc([1, 1, 0, 0], [True, True, False, False])
    many = auroc([1] * 50 + [0] * 50, [True] * 50 + [False] * 50)
    assert few.value == many.value == few.high == many.high == 1.0
    assert few.low is not None
    assert many.low is not None
    assert 0.1 < few.low < 0.6
    assert 0.9 < many.low < 1.0
    wrong = auroc([0, 0, 1, 1], [True, True, False, False])
    assert (wrong.value, wrong.low) == (0.0, 0.0)
    assert wrong.high == pytest.approx(1 - few.low)
    # The limit solves (1 - t)^2 = z^2 V(t) with Hanley and McNeil's variance, m = n = 2.
    t, m = few.low, 2
    q1, q2 = t / (2 - t), 2 * t**2 / (1 + t)
    variance = (t * (1 - t) + (m - 1) * (q1 - t**2) + (m - 1) * (q2 - t**2)) / m**2
    assert (1 - t) ** 2 == pytest.approx(1.959964**2 * variance, rel=1e-5)


@pytest.mark.parametrize("positive", [[], [True, True], [False]])
def test_a_missing_class_is_none(positive: list[bool]) -> None:
    result = auroc([0.5] * len(positive), positive)
    assert (result.value, result.low, result.high) == (None, None, None)
    assert result.n_positive + result.n_negative == len(positive)


def test_a_class_in_one_group_has_a_value_and_no_interval() -> None:
    result = auroc([3, 2, 1, 0], [True, True, False, False], groups=["a", "a", "b", "c"])
    assert (result.value, result.low, result.high) == (1.0, None, None)


def test_same_seed_same_interval() -> None:
    generator = np.random.default_rng(0)
    scores, positive = generator.normal(size=30).tolist(), [True, False] * 15
    assert auroc(scores, positive, seed=1) == auroc(scores, positive, seed=1)
    assert auroc(scores, positive, seed=1) != auroc(scores, positive, seed=2)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not belong together"):
        auroc([1.0], [True, False])
    with pytest.raises(ConfigError, match="do not belong together"):
        auroc([1.0, 2.0], [True, False], groups=["a"])
    with pytest.raises(ConfigError, match="not finite"):
        auroc([1.0, float("nan")], [True, False])
    with pytest.raises(ConfigError, match="at least 1"):
        auroc([1.0, 2.0], [True, False], num_resamples=0)


# ---- strata


def pairs_within(scores: np.ndarray, positive: np.ndarray, suites: np.ndarray) -> float:
    wins = pairs = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            if suites[i] == suites[j]:
                wins += float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j])
                pairs += 1
    return wins / pairs


def test_only_pairs_within_a_stratum_count() -> None:
    generator = np.random.default_rng(7)
    suites = generator.choice(["tea", "cake", "soup"], size=90)
    positive = generator.random(90) < np.where(suites == "tea", 0.8, 0.2)
    # The score tells suites apart, and nothing else.
    scores = np.round(generator.normal(size=90), 1) + 5 * (suites == "tea")
    within = auroc(scores.tolist(), positive.tolist(), strata=suites.tolist())
    pooled = auroc(scores.tolist(), positive.tolist())
    assert pooled.low is not None
    assert within.low is not None
    assert within.high is not None
    assert pooled.low > 0.6
    assert within.value == pytest.approx(pairs_within(scores, positive, suites))
    assert within.low < 0.5 < within.high
    assert auroc(scores.tolist(), positive.tolist(), strata=["one"] * 90) == pooled


def test_the_interval_of_strata_is_a_bootstrap_over_groups() -> None:
    generator = np.random.default_rng(8)
    things = np.arange(40) // 2
    suites = np.where(things % 3 == 0, "tea", "cake")
    positive = things % 2 == 0
    scores = generator.normal(size=20)[things] + positive
    found = auroc(
        scores.tolist(),
        positive.tolist(),
        groups=things.astype(str).tolist(),
        strata=suites.tolist(),
        num_resamples=3000,
    )
    values: list[float] = []
    for _ in range(600):
        # Ten things of either class, both items of each.
        drawn = np.concatenate([2 * generator.integers(0, 10, 10) + k for k in (0, 1)])
        rows = np.concatenate([2 * drawn, 2 * drawn + 1])
        values.append(pairs_within(scores[rows], positive[rows], suites[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.04)
    assert found.high == pytest.approx(high, abs=0.04)


def test_a_stratum_without_an_opponent_decides_nothing() -> None:
    scores = [0.1, 0.4, 0.35, 0.8, 0.9, 0.2]
    positive = [False, False, True, True, False, True]
    alone = auroc(scores[:4], positive[:4])
    both = auroc(scores, positive, strata=["tea"] * 4 + ["cake", "soup"])
    assert (both.value, both.low, both.high) == (alone.value, alone.low, alone.high)
    assert (both.n_positive, both.n_negative) == (3, 3)
    none = auroc(scores, positive, strata=[*"ffttft"])
    assert (none.value, none.low, none.high) == (None, None, None)
    with pytest.raises(ConfigError, match="1 strata"):
        auroc([1.0, 2.0], [True, False], strata=["a"])


def test_resamples_without_a_pair_are_left_out() -> None:
    # Of a thing of each class per suite, a suite may lack one, and then both do.
    found = auroc(
        [1.0, 0.0, 0.0, 1.0],
        [True, False, True, False],
        strata=["tea", "tea", "cake", "cake"],
    )
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
