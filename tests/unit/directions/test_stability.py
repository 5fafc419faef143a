"""Stability and agreement against recomputation and known geometry."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from activations import two_sets
from scipy.linalg import subspace_angles

from vlmend.directions.direction import Direction
from vlmend.directions.stability import agreement, bootstrap_stability, canonical_cosines
from vlmend.errors import ConfigError, DataError, UnknownNameError

MEANS = "difference-in-means"


def test_canonical_cosines_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (Direction(torch.randn(k, 9, generator=generator), "by-hand") for k in (2, 3))
    angles = subspace_angles(first.vectors.double().numpy().T, second.vectors.double().numpy().T)
    assert canonical_cosines(first, second) == pytest.approx(np.sort(np.cos(angles))[::-1])


def test_agreement_of_lines_has_a_sign_and_of_subspaces_none() -> None:
    lines = {
        "x": Direction(torch.tensor([[2.0, 0.0, 0.0]]), "a"),
        "back": Direction(torch.tensor([[-1.0, 0.0, 0.0]]), "b"),
        "slant": Direction(torch.tensor([[3.0, 4.0, 0.0]]), "c"),
        "floor": Direction(torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0]]), "d"),
        "up": Direction(torch.tensor([[0.0, 0.0, 5.0]]), "e"),
    }
    found = {(r["first"], r["second"]): r["cosine"] for r in agreement(lines)}
    assert len(found) == 10
    assert found["x", "back"] == -1
    assert found["x", "slant"] == pytest.approx(0.6)
    assert found["back", "slant"] == pytest.approx(-0.6)
    assert found["slant", "floor"] == 1
    assert found["floor", "up"] == 0
    assert agreement({"x": lines["x"]}) == []


def test_more_samples_are_more_stable() -> None:
    safe, unsafe, _ = two_sets(200, 200, noise=2.0)
    records = bootstrap_stability(safe, unsafe, MEANS, [4, 20, 100, 400], num_resamples=60)
    assert [r["n"] for r in records] == [4, 20, 100, 400]
    medians = [r["cosine"]["median"] for r in records]
    assert medians == sorted(medians)
    assert medians[0] < 0.8 < medians[-1]
    for record in records:
        assert record["estimator"] == MEANS
        assert record["gap"] is None
        assert record["cosine"]["q05"] <= record["cosine"]["median"] <= record["cosine"]["q95"]
    json.dumps(records, allow_nan=False)


def test_the_quantiles_are_those_of_a_bootstrap_by_hand() -> None:
    safe, unsafe, _ = two_sets(30, 30, noise=1.5)
    (record,) = bootstrap_stability(safe, unsafe, MEANS, [20], num_resamples=400)
    random = np.random.default_rng(99)
    a, b = safe.double().numpy(), unsafe.double().numpy()
    whole = a.mean(0) - b.mean(0)
    cosines = []
    for _ in range(2000):
        drawn = a[random.integers(30, size=10)].mean(0) - b[random.integers(30, size=10)].mean(0)
        cosines.append(drawn @ whole / np.linalg.norm(drawn) / np.linalg.norm(whole))
    expected = np.quantile(cosines, [0.5, 0.05, 0.95])
    assert list(record["cosine"].values()) == pytest.approx(expected, abs=0.03)


def test_groups_of_copies_count_once() -> None:
    """Ten copies of each item: single items look stable, whole groups do not."""
    safe, unsafe, _ = two_sets(8, 8, noise=2.0)
    copies_safe, copies_unsafe = safe.repeat(10, 1), unsafe.repeat(10, 1)
    groups = [str(row % 8) for row in range(80)]
    (single,) = bootstrap_stability(copies_safe, copies_unsafe, MEANS, [160])
    (grouped,) = bootstrap_stability(
        copies_safe, copies_unsafe, MEANS, [160], groups_safe=groups, groups_unsafe=groups
    )
    (truth,) = bootstrap_stability(safe, unsafe, MEANS, [16])
    assert grouped["cosine"]["q05"] < single["cosine"]["q05"] - 0.05
    assert grouped["cosine"]["q05"] == pytest.approx(truth["cosine"]["q05"], abs=0.05)


def test_the_seed_decides() -> None:
    safe, unsafe, _ = two_sets(noise=1.0)
    first, same, other = (
        bootstrap_stability(safe, unsafe, MEANS, [8], num_resamples=20, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == same != other


@pytest.mark.parametrize("estimator", ["logistic-probe", "paired-pca", "whitened-difference"])
def test_every_estimator_can_be_resampled(estimator: str) -> None:
    safe, unsafe, _ = two_sets(12, 12, noise=1.0)
    (record,) = bootstrap_stability(safe, unsafe, estimator, [24], num_resamples=10)
    assert record["estimator"] == estimator
    assert 0 < record["cosine"]["median"] < 1


def test_a_subspace_is_as_stable_as_its_least_stable_vector() -> None:
    safe, unsafe, _ = two_sets(40, 40, noise=1.0)
    line, plane = (
        bootstrap_stability(safe, unsafe, "subspace", [80], rank=rank, num_resamples=20)[0]
        for rank in (1, 3)
    )
    assert plane["cosine"]["median"] < line["cosine"]["median"] - 0.05


# ---- gaps


def gap_of(record: dict) -> str:
    assert record["cosine"] == {"median": None, "q05": None, "q95": None}
    return record["gap"]


def test_sizes_that_cannot_be_drawn_are_gaps() -> None:
    safe, unsafe, _ = two_sets(4, 6)
    records = bootstrap_stability(safe, unsafe, MEANS, [1, 4, 9, 10], num_resamples=5)
    assert "at least 2" in gap_of(records[0])
    assert records[1]["gap"] is None
    assert records[2]["gap"] is None
    assert "more than there are (4 safe, 6 unsafe)" in gap_of(records[3])


def test_one_group_shows_no_spread() -> None:
    safe, unsafe, _ = two_sets(4, 4)
    (record,) = bootstrap_stability(safe, unsafe, MEANS, [4], groups_safe=["a"] * 4)
    assert "1 group(s) of safe and 4 of unsafe" in gap_of(record)
    (record,) = bootstrap_stability(safe[:1], unsafe[:1], MEANS, [2])
    assert "1 group(s) of safe" in gap_of(record)
    (record,) = bootstrap_stability(safe[:0], unsafe, MEANS, [2])
    assert "0 group(s) of safe" in gap_of(record)


def test_no_direction_at_all_is_a_gap() -> None:
    safe, _, _ = two_sets(4, 4)
    (record,) = bootstrap_stability(safe, safe, MEANS, [4])
    assert "are equal" in gap_of(record)


def test_resamples_without_a_direction_are_counted() -> None:
    """Two of three groups are equal on both sides: some resamples hold nothing else."""
    safe = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    unsafe = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    (record,) = bootstrap_stability(safe, unsafe, MEANS, [2], num_resamples=200)
    lost = int(record["gap"].split(" of 200 resamples")[0])
    assert lost == pytest.approx(200 * 4 / 9, abs=4 * math.sqrt(200 * 4 / 9 * 5 / 9))
    assert record["cosine"]["median"] is not None


def test_wrong_arguments() -> None:
    safe, unsafe, _ = two_sets(4, 4)
    with pytest.raises(UnknownNameError, match="Did you mean"):
        bootstrap_stability(safe, unsafe, "difference-in-mean", [4])
    with pytest.raises(ConfigError, match="rank=2"):
        bootstrap_stability(safe, unsafe, MEANS, [4], rank=2)
    with pytest.raises(ConfigError, match="num_resamples=0"):
        bootstrap_stability(safe, unsafe, MEANS, [4], num_resamples=0)
    with pytest.raises(DataError, match="3 groups are given for 4 unsafe"):
        bootstrap_stability(safe, unsafe, MEANS, [4], groups_unsafe=["a"] * 3)
