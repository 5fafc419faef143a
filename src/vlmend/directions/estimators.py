"""Ways to estimate a safety direction from activations of safe and of unsafe prompts.

Each is a pure function: float64 inside, float32 out, an error instead of a direction where the
data show none. All have the length at which the step from the mean unsafe to the mean safe
activation has the coordinate 1 along row 0, so that coordinates compare between them.

Shapes: N = safe items, M = unsafe items, G = groups, K = rank, D = width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from vlmend.directions.direction import Direction
from vlmend.errors import ConfigError, DataError, UnknownNameError

_LEAST_DIFFERENCE = 2.0**-23
"""Difference of the means, relative to the activations, that float32 can still tell from none."""

_LEAST_SENSE = 1e-6
"""Cosine with the difference of the means from which on a vector has a safe side."""

_LEAST_SPREAD = 1e-6
"""Singular value, relative to the length of the mean difference, that spans a further row."""


def difference_in_means(safe_ND: Tensor, unsafe_MD: Tensor) -> Direction:
    """The mean of safe minus the mean of unsafe activations.

    Args:
        safe_ND: (N, D) activations of safe prompts, N >= 1.
        unsafe_MD: (M, D) activations of unsafe ones, M >= 1.

    Returns:
        Rank 1.

    Raises:
        DataError: Empty, infinite, of different widths, or of the same mean.

    Reference:
        Zou et al. (NeurIPS 2025, arXiv 2502.13095), the equation for s^l.

    Example:
        >>> import torch
        >>> s = difference_in_means(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
        >>> s.vectors
        tensor([[2., 0.]])
    """
    name = "difference-in-means"
    safe_ND, unsafe_MD = _checked(safe_ND, unsafe_MD, name)
    return Direction(_mean_difference(safe_ND, unsafe_MD, name)[None].float(), name)


def logistic_probe(
    safe_ND: Tensor, unsafe_MD: Tensor, *, inverse_penalty: float = 1.0
) -> Direction:
    """The weight of a logistic regression that tells safe from unsafe.

    Features are standardised, so that no single large one decides; the weight is mapped back to
    the space of the activations, in which it is the normal of the probe's boundary.

    Args:
        safe_ND: (N, D) activations of safe prompts, N >= 1.
        unsafe_MD: (M, D) activations of unsafe ones, M >= 1.
        inverse_penalty: scikit-learn's C, the inverse strength of the L2 penalty.

    Returns:
        Rank 1.

    Raises:
        DataError: As `difference_in_means`, or the probe's weight has no safe side.

    Reference:
        Alain and Bengio, Understanding intermediate layers using linear classifier probes
        (arXiv 1610.01644); Zou et al. (arXiv 2502.13095) train such probes per layer.
    """
    from sklearn.linear_model import LogisticRegression

    name = "logistic-probe"
    safe_ND, unsafe_MD = _checked(safe_ND, unsafe_MD, name)
    difference_D = _mean_difference(safe_ND, unsafe_MD, name)
    both = torch.cat([safe_ND, unsafe_MD])
    std_D = both.std(dim=0, correction=0)
    # A feature that never varies says nothing; dividing by its rounding error would make it loud.
    scale_D = torch.where(std_D > 1e-12 * both.abs().amax(dim=0), std_D, torch.inf)
    labels = np.repeat([1, 0], [len(safe_ND), len(unsafe_MD)])
    probe = LogisticRegression(C=inverse_penalty, max_iter=2000)
    probe.fit(((both - both.mean(0)) / scale_D).numpy(), labels)
    return _with_sense(torch.from_numpy(probe.coef_[0]) / scale_D, difference_D, name)


def paired_pca(safe_ND: Tensor, unsafe_MD: Tensor, *, seed: int = 0) -> Direction:
    """The first principal component, uncentred, of differences between safe and unsafe items.

    Args:
        safe_ND: (N, D) activations of safe prompts, N >= 1.
        unsafe_MD: (M, D) activations of unsafe ones, M >= 1.
        seed: Of the random matching.

    Returns:
        Rank 1; its sign is that of the mean difference.

    Raises:
        DataError: As `difference_in_means`; or the component is at right angles to the mean
            difference, so that it has no safe side.

    Reference:
        Zou et al., Representation Engineering (arXiv 2310.01405), reading vectors (LAT).

    Deviation:
        1. Items are matched at random (seeded), min(N, M) pairs without repeats; the paper
           pairs items that differ in the concept alone, which suites of requests do not have.
        2. The differences are not centred and all point from unsafe to safe. The paper shuffles
           the order within pairs and centres, which serves the same end.
    """
    name = "paired-pca"
    safe_ND, unsafe_MD = _checked(safe_ND, unsafe_MD, name)
    difference_D = _mean_difference(safe_ND, unsafe_MD, name)
    pairs, random = min(len(safe_ND), len(unsafe_MD)), np.random.default_rng(seed)
    safe_ND = safe_ND[random.permutation(len(safe_ND))[:pairs]]
    unsafe_MD = unsafe_MD[random.permutation(len(unsafe_MD))[:pairs]]
    components = torch.linalg.svd(safe_ND - unsafe_MD, full_matrices=False).Vh
    first_D = components[0]
    return _with_sense(first_D if first_D @ difference_D > 0 else -first_D, difference_D, name)


def safety_subspace(
    safe_ND: Tensor,
    unsafe_MD: Tensor,
    *,
    rank: int,
    groups_safe: Sequence[str] | None = None,
    groups_unsafe: Sequence[str] | None = None,
) -> Direction:
    """K directions: the mean difference, and those in which kinds of harm differ from it.

    One direction stands for all harm alike; the ShiftDC paper names that as its limitation. Here
    every group of unsafe items (a category of harm) has a difference of its own, the mean of the
    safe items of that group, or of all safe ones if it has none, minus the mean of the group.
    Row 0 is the overall mean difference; the further rows are the leading right singular vectors
    of the groups' differences after row 0 is taken out, each group weighted by the root of its
    size. They carry no sense of safe.

    Args:
        safe_ND: (N, D) activations of safe prompts, N >= 1.
        unsafe_MD: (M, D) activations of unsafe ones, M >= 1.
        rank: K >= 1; 1 is `difference_in_means`.
        groups_safe: Group of every safe item.
        groups_unsafe: Group of every unsafe item; without, every item is a group of its own and
            the further rows are the main directions in which unsafe prompts differ at all.

    Returns:
        Rank K, rows orthogonal and of equal length.

    Raises:
        DataError: As `difference_in_means`, or the groups span fewer directions than asked for.

    Reference:
        The limitation: Zou et al. (arXiv 2502.13095). Several directions of refusal: Wollschläger
        et al., The Geometry of Refusal in Large Language Models (arXiv 2502.17420).

    Deviation:
        1. Neither paper has this estimator; it is ours.
    """
    name = "subspace"
    safe_ND, unsafe_MD = _checked(safe_ND, unsafe_MD, name)
    first_D = _mean_difference(safe_ND, unsafe_MD, name)
    unit_D = first_D / first_D.norm()
    differences_GD = _group_differences(
        safe_ND,
        unsafe_MD,
        _checked_groups(groups_safe, len(safe_ND), "safe"),
        _checked_groups(groups_unsafe, len(unsafe_MD), "unsafe"),
    )
    rest_GD = differences_GD - (differences_GD @ unit_D)[:, None] * unit_D
    _, spread, axes = torch.linalg.svd(rest_GD, full_matrices=False)
    found = int((spread > _LEAST_SPREAD * first_D.norm()).sum())
    if rank - 1 > found:
        raise DataError(
            f"a safety subspace of rank {rank} was asked for, but {len(differences_GD)} groups of "
            f"unsafe items span {1 + found} direction(s). Ask for a lower rank, or give items of "
            "more kinds."
        )
    rows = [first_D[None], axes[: rank - 1] * first_D.norm()]
    return Direction(torch.cat(rows).float(), name)


def whitened_difference(safe_ND: Tensor, unsafe_MD: Tensor, *, ridge: float = 0.1) -> Direction:
    """The mean difference, whitened by the covariance within the sets plus a ridge.

    (Sigma + ridge * tr(Sigma) / D * I)^-1 (mean safe - mean unsafe): directions in which prompts
    vary anyway count less. It is linear discriminant analysis with a shrunk covariance.

    Args:
        safe_ND: (N, D) activations of safe prompts, N >= 1.
        unsafe_MD: (M, D) activations of unsafe ones, M >= 1; N + M > 2.
        ridge: Ridge in units of the mean variance of a feature, above 0.

    Returns:
        Rank 1.

    Raises:
        DataError: As `difference_in_means`, or no set varies within itself.
        ConfigError: `ridge` is not above 0.

    Reference:
        Friedman, Regularized Discriminant Analysis, JASA 84 (1989).
    """
    name = "whitened-difference"
    if not 0 < ridge < float("inf"):
        raise ConfigError(f"ridge={ridge} is out of range. Allowed: above 0.")
    safe_ND, unsafe_MD = _checked(safe_ND, unsafe_MD, name)
    difference_D = _mean_difference(safe_ND, unsafe_MD, name)
    within = torch.cat([safe_ND - safe_ND.mean(0), unsafe_MD - unsafe_MD.mean(0)])
    variance = float(within.square().mean()) * len(within) / max(len(within) - 2, 1)
    if variance <= _LEAST_DIFFERENCE**2 * float(difference_D.square().mean()):
        raise DataError(
            "a whitened difference needs variation within the safe or the unsafe items, and "
            f"{len(safe_ND)} and {len(unsafe_MD)} of them show none. Give more items, or use "
            "difference-in-means."
        )
    # By the singular vectors: D x D is never built, and there are fewer items than features.
    _, sizes, axes = torch.linalg.svd(within, full_matrices=False)
    added = ridge * variance
    shrink = 1 / (sizes.square() / max(len(within) - 2, 1) + added) - 1 / added
    whitened_D = difference_D / added + ((axes @ difference_D) * shrink) @ axes
    return _with_sense(whitened_D, difference_D, name)


# ---- by name


@dataclass(frozen=True)
class EstimatorOptions:
    """What estimators may ask for besides the activations.

    Attributes:
        rank: Dimension of the direction; only "subspace" goes above 1.
        seed: Of whatever is random.
        groups_safe: Group of every safe item, if known.
        groups_unsafe: Group of every unsafe item, if known.
    """

    rank: int = 1
    seed: int = 0
    groups_safe: Sequence[str] | None = None
    groups_unsafe: Sequence[str] | None = None


Estimator = Callable[[Tensor, Tensor, EstimatorOptions], Direction]
"""(safe (N, D), unsafe (M, D), options) -> direction."""

ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "difference-in-means": lambda safe, unsafe, _: difference_in_means(safe, unsafe),
        "logistic-probe": lambda safe, unsafe, _: logistic_probe(safe, unsafe),
        "paired-pca": lambda safe, unsafe, options: paired_pca(safe, unsafe, seed=options.seed),
        "subspace": lambda safe, unsafe, options: safety_subspace(
            safe,
            unsafe,
            rank=options.rank,
            groups_safe=options.groups_safe,
            groups_unsafe=options.groups_unsafe,
        ),
        "whitened-difference": lambda safe, unsafe, _: whitened_difference(safe, unsafe),
    }
)
"""Every estimator by the name that settings and the command line use."""

RANKED = frozenset({"subspace"})
"""Estimators of more than one vector."""


def check_estimator(name: str, rank: int) -> None:
    """Refuse an estimator that does not exist, or a rank that it does not have.

    Raises:
        UnknownNameError: No such estimator.
        ConfigError: The rank is below 1, or above 1 where there is one vector only.
    """
    if name not in ESTIMATORS:
        raise UnknownNameError("estimator", name, ESTIMATORS)
    if rank < 1:
        raise ConfigError(f"rank={rank} is out of range. Allowed: >= 1.")
    if rank > 1 and name not in RANKED:
        raise ConfigError(
            f"rank={rank} with the estimator {name!r}, which finds one vector. Allowed: rank=1, "
            f"or the estimator {', '.join(sorted(RANKED))!r}."
        )


def estimate(
    name: str,
    safe_ND: Tensor,
    unsafe_MD: Tensor,
    *,
    rank: int = 1,
    seed: int = 0,
    groups_safe: Sequence[str] | None = None,
    groups_unsafe: Sequence[str] | None = None,
) -> Direction:
    """Estimate a direction by the name of the estimator.

    Args:
        name: One of `ESTIMATORS`.
        safe_ND: (N, D) activations of safe prompts, N >= 1.
        unsafe_MD: (M, D) activations of unsafe ones, M >= 1.
        rank: Dimension; above 1 for "subspace" only.
        seed: Of the random matching of "paired-pca".
        groups_safe: Group (category) of every safe item; only "subspace" reads it.
        groups_unsafe: Group (category) of every unsafe item; only "subspace" reads it.

    Raises:
        UnknownNameError: No such estimator.
        ConfigError: A rank that the estimator does not have.
        DataError: The activations show no direction; says why.
    """
    check_estimator(name, rank)
    options = EstimatorOptions(rank, seed, groups_safe, groups_unsafe)
    return ESTIMATORS[name](safe_ND, unsafe_MD, options)


# ---- shared steps


def _checked(safe_ND: Tensor, unsafe_MD: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Both sets in float64 on the CPU, or an error."""
    for kind, x in (("safe", safe_ND), ("unsafe", unsafe_MD)):
        if x.ndim != 2 or not x.shape[1]:
            raise DataError(
                f"{kind} activations of shape {tuple(x.shape)} are given to {name}; they must be "
                "(items, width)."
            )
        if not len(x):
            raise DataError(f"{name} needs safe and unsafe items; there are no {kind} ones.")
        if not bool(x.isfinite().all()):
            raise DataError(
                f"{kind} activations hold infinite values or NaN, so {name} has no direction. "
                "Load the model in bfloat16 or float32."
            )
    if safe_ND.shape[1] != unsafe_MD.shape[1]:
        raise DataError(
            f"safe activations are {safe_ND.shape[1]} wide and unsafe ones {unsafe_MD.shape[1]}. "
            "Take both from one layer of one model."
        )
    return safe_ND.detach().double().cpu(), unsafe_MD.detach().double().cpu()


def _mean_difference(safe_ND: Tensor, unsafe_MD: Tensor, name: str) -> Tensor:
    """(D,) mean of safe minus mean of unsafe, or an error if there is none to speak of."""
    difference_D = safe_ND.mean(0) - unsafe_MD.mean(0)
    scale = max(float(safe_ND.norm(dim=1).max()), float(unsafe_MD.norm(dim=1).max()))
    if float(difference_D.norm()) <= _LEAST_DIFFERENCE * scale:
        raise DataError(
            f"the means of {len(safe_ND)} safe and {len(unsafe_MD)} unsafe activations are equal, "
            f"so {name} has no direction from one to the other. Use items that differ in what "
            "they ask."
        )
    return difference_D


def _with_sense(vector_D: Tensor, difference_D: Tensor, name: str) -> Direction:
    """Give a vector the length at which the mean difference has the coordinate 1 along it."""
    length = float(vector_D.norm())
    along = float(vector_D @ difference_D)
    if along <= _LEAST_SENSE * length * float(difference_D.norm()):
        raise DataError(
            f"the vector that {name} found is not on the safe side: the means of safe and unsafe "
            "items do not differ along it, or the wrong way round. Give more items, or use "
            "difference-in-means."
        )
    return Direction((vector_D * (along / length**2))[None].float(), name)


def _checked_groups(groups: Sequence[str] | None, count: int, kind: str) -> list[str] | None:
    if groups is not None and len(groups) != count:
        raise DataError(f"{len(groups)} groups are given for {count} {kind} items.")
    return None if groups is None else list(groups)


def _group_differences(
    safe_ND: Tensor,
    unsafe_MD: Tensor,
    groups_safe: list[str] | None,
    groups_unsafe: list[str] | None,
) -> Tensor:
    """(G, D) differences by group of unsafe items, weighted by the root of the group's size."""
    if groups_unsafe is None:
        return safe_ND.mean(0) - unsafe_MD
    rows: list[Tensor] = []
    for group in sorted(set(groups_unsafe)):
        mine = torch.tensor([g == group for g in groups_unsafe])
        same = torch.tensor([g == group for g in groups_safe or ()])
        safe = safe_ND[same] if bool(same.any()) else safe_ND
        rows.append((safe.mean(0) - unsafe_MD[mine].mean(0)) * float(mine.sum()) ** 0.5)
    return torch.stack(rows)
