"""Every estimator against an independent computation, and against data that show no direction."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
from activations import WIDTH, two_sets
from sklearn.covariance import shrunk_covariance
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from vlmend.directions import estimators as module
from vlmend.directions.direction import Direction
from vlmend.directions.estimators import (
    ESTIMATORS,
    RANKED,
    difference_in_means,
    estimate,
    logistic_probe,
    paired_pca,
    safety_subspace,
    whitened_difference,
)
from vlmend.errors import ConfigError, DataError, UnknownNameError

NAMES = sorted(ESTIMATORS)


def cosine(first: Tensor | np.ndarray, second: Tensor | np.ndarray) -> float:
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# ---- what all have in common


@pytest.mark.parametrize("name", NAMES)
def test_all_find_the_way_from_unsafe_to_safe(name: str) -> None:
    safe, unsafe, way = two_sets(200, 200)
    found = estimate(name, safe.bfloat16(), unsafe.bfloat16())
    assert found.estimator == name
    assert found.vectors.dtype == torch.float32
    assert found.vectors.shape == (1, WIDTH)
    assert cosine(found.vectors[0], way) > 0.95
    back = estimate(name, unsafe, safe)
    assert cosine(back.vectors[0], way) < -0.95


@pytest.mark.parametrize("name", NAMES)
def test_the_step_between_the_means_is_one_long(name: str) -> None:
    safe, unsafe, _ = two_sets(20, 30)
    step = safe.mean(0) - unsafe.mean(0)
    for rank in (1, 3) if name in RANKED else (1,):
        found = estimate(name, safe, unsafe, rank=rank).coordinates(step[None])[0]
        assert found.tolist() == pytest.approx([1.0] + [0.0] * (rank - 1), abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_data_give_the_same_direction(name: str) -> None:
    safe, unsafe, _ = two_sets()
    first, second = (estimate(name, safe, unsafe, seed=3).vectors for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_an_origin_far_away_changes_nothing(name: str) -> None:
    safe, unsafe, _ = two_sets()
    near = estimate(name, safe.double(), unsafe.double()).vectors[0]
    far = estimate(name, safe.double() + 1e3, unsafe.double() + 1e3).vectors[0]
    assert cosine(near, far) > 1 - 1e-6


def nan_at(x: Tensor) -> Tensor:
    x = x.clone()
    x[1, 2] = float("nan")
    return x


BAD: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], str]] = {
    "no safe ones": (lambda s, u: (s[:0], u), "there are no safe ones"),
    "no unsafe ones": (lambda s, u: (s, u[:0]), "there are no unsafe ones"),
    "NaN": (lambda s, u: (s, nan_at(u)), "unsafe activations hold infinite values or NaN"),
    "infinite": (lambda s, u: (s * float("inf"), u), "safe activations hold infinite"),
    "other width": (lambda s, u: (s, u[:, :5]), "16 wide and unsafe ones 5"),
    "one vector": (lambda s, u: (s[0], u), r"shape \(16,\)"),
    "equal": (lambda s, u: (s[:1], s[:1]), "1 safe and 1 unsafe activations are equal"),
    "equal up to rounding": (
        lambda s, u: (s[:1].repeat(3, 1).double() + 1e-9, s[:1].repeat(2, 1).double()),
        "activations are equal",
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", BAD)
def test_data_without_a_direction(name: str, case: str) -> None:
    make, words = BAD[case]
    safe, unsafe, _ = two_sets(5, 5)
    with pytest.raises(DataError, match=words):
        estimate(name, *make(safe, unsafe))


@pytest.mark.parametrize("name", NAMES)
def test_two_samples_give_a_direction_or_a_reason(name: str) -> None:
    safe, unsafe, _ = two_sets(1, 1)
    if name == "whitened-difference":
        with pytest.raises(DataError, match="needs variation"):
            estimate(name, safe, unsafe)
    else:
        found = estimate(name, safe, unsafe).vectors
        assert bool(found.isfinite().all())


def test_every_estimator_names_its_source() -> None:
    functions = [
        f for n, f in inspect.getmembers(module, inspect.isfunction) if not n.startswith("_")
    ]
    sources = [f.__name__ for f in functions if "Reference:" in (f.__doc__ or "")]
    assert len(sources) == len(ESTIMATORS)


# ---- one by one


def test_difference_in_means_by_hand() -> None:
    safe = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.bfloat16)
    unsafe = torch.tensor([[1.0, 1.0], [1.0, 1.0], [4.0, -2.0]], dtype=torch.bfloat16)
    found = difference_in_means(safe, unsafe)
    assert torch.equal(found.vectors, torch.tensor([[0.0, 4.0]]))


def test_the_mean_of_many_is_taken_in_float64() -> None:
    """In float32 the sum of so many large values loses the small difference."""
    base = torch.full((30_000, 1), 1e4)
    found = difference_in_means(base + 0.0625, base)
    assert float(found.vectors) == 0.0625


def test_logistic_probe_has_the_boundary_of_a_pipeline() -> None:
    safe, unsafe, _ = two_sets(40, 30, noise=1.5)
    stretched = torch.logspace(-2, 2, WIDTH)
    safe, unsafe = safe * stretched, unsafe * stretched
    x = torch.cat([safe, unsafe]).double().numpy()
    labels = [1] * 40 + [0] * 30
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=5000)).fit(
        x, labels
    )
    found = logistic_probe(safe, unsafe, inverse_penalty=0.3).vectors[0].double().numpy()
    # Along its boundary's normal the pipeline's decision is a straight line.
    points = np.random.default_rng(0).normal(size=(50, WIDTH)) * stretched.numpy()
    decision = pipeline.decision_function(points)
    assert np.corrcoef(decision, points @ found)[0, 1] > 1 - 1e-9


def test_a_feature_that_never_varies_is_ignored() -> None:
    safe, unsafe, _ = two_sets()
    safe[:, 3] = unsafe[:, 3] = 0.1
    found = logistic_probe(safe, unsafe).vectors[0]
    assert float(found[3]) == 0


def test_paired_pca_is_the_leading_axis_of_the_pairs() -> None:
    safe, unsafe, _ = two_sets(30, 30, noise=0.8)
    found = paired_pca(safe, unsafe, seed=3)
    random = np.random.default_rng(3)
    pairs = safe.numpy()[random.permutation(30)] - unsafe.numpy()[random.permutation(30)]
    svd = TruncatedSVD(1, algorithm="arpack", random_state=0).fit(pairs)
    assert abs(cosine(found.vectors[0], svd.components_[0])) > 1 - 1e-5
    assert cosine(found.vectors[0], safe.mean(0) - unsafe.mean(0)) > 0


def test_paired_pca_matches_at_random() -> None:
    safe, unsafe, _ = two_sets(30, 20, noise=0.8)
    drawn = [paired_pca(safe, unsafe, seed=seed).vectors for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_an_axis_at_right_angles_has_no_safe_side() -> None:
    """Pairs that spread along one axis in both senses, with the mean difference on another."""
    safe = torch.tensor([[9.0, 0.0], [-9.0, 0.0], [9.0, 0.0], [-9.0, 0.0]])
    unsafe = torch.tensor([[0.0, -1.0]] * 4)
    with pytest.raises(DataError, match="not on the safe side"):
        paired_pca(safe, unsafe)


def test_whitened_difference_by_the_shrunk_covariance() -> None:
    safe, unsafe, _ = two_sets(25, 15, noise=0.7)
    x = np.concatenate([safe - safe.mean(0), unsafe - unsafe.mean(0)]).astype(float)
    covariance = x.T @ x / (len(x) - 2)
    ridge = 0.25
    # scikit-learn's (1 - a) Sigma + a tr/D I is ours divided by 1 + ridge, for a = r / (1 + r).
    shrunk = shrunk_covariance(covariance, ridge / (1 + ridge))
    expected = np.linalg.solve(shrunk, (safe.mean(0) - unsafe.mean(0)).double().numpy())
    found = whitened_difference(safe, unsafe, ridge=ridge).vectors[0]
    assert cosine(found, expected) > 1 - 1e-10


def test_whitened_difference_with_fewer_items_than_features() -> None:
    safe, unsafe, _ = two_sets(4, 3, noise=0.7)
    x = np.concatenate([safe - safe.mean(0), unsafe - unsafe.mean(0)]).astype(float)
    covariance = x.T @ x / 5
    ridged = covariance + 0.1 * np.trace(covariance) / WIDTH * np.eye(WIDTH)
    expected = np.linalg.solve(ridged, (safe.mean(0) - unsafe.mean(0)).double().numpy())
    assert cosine(whitened_difference(safe, unsafe).vectors[0], expected) > 1 - 1e-9


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ridge_is_above_zero(ridge: float) -> None:
    safe, unsafe, _ = two_sets()
    with pytest.raises(ConfigError, match="ridge="):
        whitened_difference(safe, unsafe, ridge=ridge)


# ---- the subspace


def categories() -> tuple[Tensor, Tensor, list[str]]:
    """Unsafe items of three kinds: all lack axis 0, and each has its own of axes 1 to 3."""
    safe = torch.zeros(12, WIDTH)
    safe[:, 0] = 1
    unsafe = torch.zeros(12, WIDTH)
    groups = [str(row % 3) for row in range(12)]
    for row in range(12):
        unsafe[row, 1 + row % 3] = float(3 - row % 3)
    # Large variation that has nothing to do with the kinds.
    unsafe[:, 9] = 50 * torch.tensor([1.0, -1, 1, -1, 1, -1] * 2)
    unsafe[:3, 9] = unsafe[3:6, 9] = 50
    unsafe[6:, 9] = -50
    return safe, unsafe, groups


def test_the_subspace_holds_what_the_kinds_differ_in() -> None:
    safe, unsafe, groups = categories()
    found = safety_subspace(safe, unsafe, rank=3, groups_unsafe=groups)
    assert torch.allclose(found.vectors[:1], difference_in_means(safe, unsafe).vectors)
    means = [unsafe[torch.tensor([g == name for g in groups])].mean(0) for name in "012"]
    for mean in means:
        own = (safe.mean(0) - mean)[None]
        assert float((own - found.component(own)).norm()) < 1e-5 * float(own.norm())
    noise = torch.eye(WIDTH)[9][None]
    assert float(found.component(noise).norm()) < 1e-5
    # Without groups the largest variation of single items wins.
    single = safety_subspace(safe, unsafe, rank=2)
    assert float(single.component(noise).norm()) > 0.99


def test_rows_are_orthogonal_and_equally_long() -> None:
    safe, unsafe, _ = two_sets()
    s = safety_subspace(safe, unsafe, rank=4).vectors.double()
    gram = s @ s.T / (s[0] @ s[0])
    assert torch.allclose(gram, torch.eye(4, dtype=torch.float64), atol=1e-6)


def test_a_group_with_safe_items_of_its_own_is_held_against_them() -> None:
    safe = torch.eye(4)[[0, 0, 1, 1]] * 2
    unsafe = torch.eye(4)[[2, 2, 3, 3]]
    kinds = ["a", "a", "b", "b"]
    matched = safety_subspace(safe, unsafe, rank=2, groups_safe=kinds, groups_unsafe=kinds)
    # d_a - d_b = 2 e0 - e2 - 2 e1 + e3
    expected = torch.tensor([[2.0, -2.0, -1.0, 1.0]])
    left = expected - matched.component(expected)
    assert float(left.norm()) < 1e-5
    unmatched = safety_subspace(safe, unsafe, rank=2, groups_unsafe=kinds)
    assert float((expected - unmatched.component(expected)).norm()) > 1


def test_groups_count_by_their_size() -> None:
    """Against the eigenvectors of the sum over items, in numpy."""
    safe, unsafe, _ = two_sets(20, 30, noise=1.0)
    groups = ["a"] * 22 + ["b"] * 5 + ["c"] * 3
    a, b = safe.double().numpy(), unsafe.double().numpy()
    step = a.mean(0) - b.mean(0)
    across = np.eye(WIDTH) - np.outer(step, step) / (step @ step)
    means = {name: b[[g == name for g in groups]].mean(0) for name in "abc"}
    rows = np.stack([(a.mean(0) - means[name]) @ across for name in groups])
    leading = np.linalg.eigh(rows.T @ rows)[1][:, -1]
    found = safety_subspace(safe, unsafe, rank=2, groups_unsafe=groups)
    assert abs(cosine(found.vectors[1], leading)) > 1 - 1e-6


def test_rank_one_is_the_difference_in_means() -> None:
    safe, unsafe, _ = two_sets()
    groups = [str(row % 4) for row in range(30)]
    found = safety_subspace(safe, unsafe, rank=1, groups_unsafe=groups).vectors
    assert torch.equal(found, difference_in_means(safe, unsafe).vectors)


def test_too_few_kinds_for_the_rank() -> None:
    safe, unsafe, groups = categories()
    with pytest.raises(DataError, match=r"rank 4 was asked for, but 3 groups.* span 3 direction"):
        safety_subspace(safe, unsafe, rank=4, groups_unsafe=groups)
    with pytest.raises(DataError, match="span 1 direction"):
        safety_subspace(safe, unsafe, rank=2, groups_unsafe=["a"] * 12)
    with pytest.raises(DataError, match="3 groups are given for 12 unsafe items"):
        safety_subspace(safe, unsafe, rank=2, groups_unsafe=groups[:3])


# ---- by name


def test_a_name_that_is_nearly_right() -> None:
    safe, unsafe, _ = two_sets()
    with pytest.raises(UnknownNameError, match="Did you mean 'logistic-probe'"):
        estimate("logistic-prob", safe, unsafe)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in RANKED])
def test_one_vector_has_rank_one(name: str) -> None:
    safe, unsafe, _ = two_sets()
    with pytest.raises(ConfigError, match=r"rank=2.*Allowed: rank=1, or the estimator 'subspace'"):
        estimate(name, safe, unsafe, rank=2)


def test_rank_zero() -> None:
    safe, unsafe, _ = two_sets()
    with pytest.raises(ConfigError, match="rank=0"):
        estimate("subspace", safe, unsafe, rank=0)


def test_options_reach_the_estimator() -> None:
    safe, unsafe, groups = categories()
    by_name = estimate("subspace", safe, unsafe, rank=3, groups_unsafe=groups)
    assert isinstance(by_name, Direction)
    direct = safety_subspace(safe, unsafe, rank=3, groups_unsafe=groups)
    assert torch.equal(by_name.vectors, direct.vectors)
    safe, unsafe, _ = two_sets(noise=0.9)
    assert torch.equal(
        estimate("paired-pca", safe, unsafe, seed=5).vectors,
        paired_pca(safe, unsafe, seed=5).vectors,
    )
