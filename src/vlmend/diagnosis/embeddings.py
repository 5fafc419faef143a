"""How far an exit's embeddings are from what the projector was trained on.

The projector was trained on the default exit. For every exit, on the tokens it is fed:

- *norm*: mean length of a token;
- *CKA*: similarity of the pictures' mean tokens with those of the default exit, 1 = the same up
  to rotation and scale. The debiased estimator: the plain one tends to 1 for few pictures, even
  of noise;
- *Mahalanobis distance* of tokens to the mean and covariance of default tokens, divided by
  sqrt(V). Fitted on one half of the pictures and measured on the other. Tokens of one picture
  are alike, so few pictures give a covariance that is too narrow, and the default exit's own
  distance is above 1: compare an exit with the default, not with 1. Tokens that are merely
  shorter lie close to the mean, and may be nearer to it than the default's own.

Intervals are over what pictures are of, not over pictures: several pictures of one thing are
alike, and say less of other things than as many pictures of different ones.

`associate` asks whether such a measure goes along with the attack success rate over exits.

Reference: Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML
2019), linear CKA. Song et al., "Feature Selection via Dependence Maximization" (JMLR 2012),
unbiased HSIC. Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices" (J. Multivariate Analysis 2004).

Shapes: N = pictures (items where it is about answers), G = groups of them, T = tokens of one,
V = width of the projector's input, E = exits, R = resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmend.diagnosis.intervals import RESAMPLES, average, empty_stat, percentile_limits
from vlmend.errors import ConfigError, DataError
from vlmend.evals.clustered import draw_groups, number_groups, student_quantile
from vlmend.evals.groups import group_of
from vlmend.hooks.projector import record_projector_inputs
from vlmend.images import image_sha256
from vlmend.models.spec import check_exit
from vlmend.models.vlm import Vlm
from vlmend.types import Sample

Array = NDArray[np.float64]

MIN_PICTURES_CKA = 5
"""Unbiased HSIC needs four pictures; its jackknife interval leaves one out."""

MIN_EXITS = 4
"""Exits below which a rank correlation over them says nothing."""

TOKENS_PER_PICTURE = 64
"""Tokens of a picture that the covariance is fitted on, evenly spread: more add little."""


# ---- similarity


def debiased_cka(x_NV: Array, y_NV: Array) -> float | None:
    """Linear CKA from the unbiased estimator of HSIC.

    Args:
        x_NV: Features of N items, at least four.
        y_NV: Other features of the same items, of any width.

    Returns:
        At most 1; around 0, also below, for unrelated features. None when either side does not
        tell the items apart (its own HSIC is not above 0), or for fewer than four items.

    Raises:
        ConfigError: Different numbers of items.
    """
    if len(x_NV) != len(y_NV):
        raise ConfigError(
            f"features of {len(x_NV)} and {len(y_NV)} items cannot be compared. "
            "Give both for the same items in the same order."
        )
    if len(x_NV) < 4:
        return None
    return _cka_of_grams(_gram(x_NV), _gram(y_NV))


def _gram(x_NV: Array) -> Array:
    # Centred and scaled first: neither changes CKA, and both spare digits.
    centred = x_NV - x_NV.mean(axis=0)
    scale = float(np.abs(centred).max())
    # Rounding of a constant is no signal.
    if scale <= 1e-12 * float(np.abs(x_NV).max()):
        return np.zeros((len(x_NV), len(x_NV)))
    centred = centred / scale
    return centred @ centred.T


def _cka_of_grams(k_NN: Array, l_NN: Array) -> float | None:
    own = _hsic(k_NN, k_NN), _hsic(l_NN, l_NN)
    if min(own) <= 0:
        return None
    return min(1.0, _hsic(k_NN, l_NN) / math.sqrt(own[0] * own[1]))


def _hsic(k_NN: Array, l_NN: Array) -> float:
    """Unbiased HSIC of two Gram matrices (Song et al. 2012, equation 5)."""
    n = len(k_NN)
    k, other = k_NN.copy(), l_NN.copy()
    np.fill_diagonal(k, 0)
    np.fill_diagonal(other, 0)
    k_sums, l_sums = k.sum(axis=0), other.sum(axis=0)
    total = (
        (k * other).sum()
        + k_sums.sum() * l_sums.sum() / ((n - 1) * (n - 2))
        - 2 / (n - 2) * float(k_sums @ l_sums)
    )
    return float(total / (n * (n - 3)))


def cka_with_interval(
    x_NV: Array, y_NV: Array, groups: Sequence[str] | None = None
) -> dict[str, Any]:
    """Debiased CKA with a delete-one-group jackknife interval.

    Not a bootstrap: drawing a picture twice makes it alike to itself in both features, which
    the debiased estimator takes for similarity. Student's t, one degree of freedom less than
    there are groups.

    Args:
        x_NV: Features of N items.
        y_NV: Other features of the same items.
        groups: What an item shares with others; None: every item stands for itself.

    Returns:
        A `Stat`; empty below `MIN_PICTURES_CKA` items or where CKA is not defined, without an
        interval where leaving out a group leaves too little.

    Raises:
        ConfigError: Different numbers of items.

    Reference:
        Shao and Tu, "The Jackknife and Bootstrap" (1995), section 2.3.
    """
    n = len(x_NV)
    value = debiased_cka(x_NV, y_NV)
    if value is None or n < MIN_PICTURES_CKA:
        return empty_stat(n)
    stat: dict[str, Any] = {"value": value, "low": None, "high": None, "n": n}
    group_N = np.arange(n) if groups is None else number_groups(groups)
    num_groups = int(group_N.max()) + 1
    k_NN, l_NN = _gram(x_NV), _gram(y_NV)
    without: list[float] = []
    for group in range(num_groups):
        left = np.flatnonzero(group_N != group)
        # The Gram matrices of fewer items differ by their centring alone, which HSIC undoes.
        rest = None if len(left) < 4 else _cka_of_grams(*(m[left][:, left] for m in (k_NN, l_NN)))
        if rest is None:
            return stat
        without.append(rest)
    spread = float(((np.asarray(without) - np.mean(without)) ** 2).sum())
    half = student_quantile(num_groups) * math.sqrt((num_groups - 1) / num_groups * spread)
    return {**stat, "low": max(-1.0, value - half), "high": min(1.0, value + half)}


# ---- distance


@dataclass(frozen=True)
class TokenStatistics:
    """Mean and covariance of default tokens; see `fit_token_statistics`.

    Attributes:
        mean: (V,).
        precision: (V, V), inverse of the shrunk covariance.
    """

    mean: Array
    precision: Array

    def distances(self, tokens_TV: Array) -> Array:
        """(T,) Mahalanobis distance of tokens, divided by sqrt(V)."""
        centred = tokens_TV - self.mean
        squared = ((centred @ self.precision) * centred).sum(axis=1)
        return np.sqrt(np.maximum(squared, 0) / tokens_TV.shape[1])


def fit_token_statistics(tokens_TV: Array) -> TokenStatistics | str:
    """Mean and Ledoit-Wolf covariance of tokens.

    Args:
        tokens_TV: Tokens of default-exit pictures.

    Returns:
        The statistics, or why there are none.
    """
    from sklearn.covariance import LedoitWolf  # takes a second to import

    if len(tokens_TV) < 2:
        return f"a covariance needs at least 2 tokens, and {len(tokens_TV)} were given"
    if float(tokens_TV.std(axis=0).max()) <= 1e-9 * float(np.abs(tokens_TV).max()):
        return "all tokens of the default exit are the same, so there is no distance to them"
    fitted = LedoitWolf().fit(tokens_TV)
    return TokenStatistics(np.asarray(fitted.location_), np.asarray(fitted.get_precision()))


# ---- over exits


class _Reader:
    """Collects what is needed of each picture at each exit, and nothing that grows with T."""

    def __init__(self, exits: Sequence[int], groups: Sequence[str]) -> None:
        self.groups = list(groups)
        self.norms: dict[int, list[float]] = {e: [] for e in exits}
        self.means: dict[int, list[Array]] = {e: [] for e in exits}
        self.distances: dict[int, list[float]] = {e: [] for e in exits}
        self.fit_tokens: list[Array] = []
        self.statistics: TokenStatistics | str = "no picture was given"

    def add(self, by_exit: Mapping[int, Array], default: int, *, fit: bool) -> None:
        for exit_layer, tokens_TV in by_exit.items():
            self.norms[exit_layer].append(float(np.linalg.norm(tokens_TV, axis=1).mean()))
            self.means[exit_layer].append(tokens_TV.mean(axis=0))
            if not fit and isinstance(self.statistics, TokenStatistics):
                found = float(self.statistics.distances(tokens_TV).mean())
                self.distances[exit_layer].append(found)
        if fit:
            tokens_TV = by_exit[default]
            step = max(1, math.ceil(len(tokens_TV) / TOKENS_PER_PICTURE))
            self.fit_tokens.append(tokens_TV[::step])


def measure_embeddings(
    vlm: Vlm, samples: Sequence[Sample], exits: Sequence[int], *, seed: int = 0
) -> list[dict[str, Any]]:
    """Norm, CKA and Mahalanobis distance of every exit's tokens.

    Pictures that occur in several items count once. The vision blocks run once per picture.

    Args:
        vlm: The model, not at an exit.
        samples: Items with pictures.
        exits: Vision exits, 0 .. N, each once.
        seed: Seed of the halves.

    Returns:
        One "embeddings" record per exit, ascending: {"exit", "norm", "cka", "mahalanobis",
        "gap"}, each measure a `Stat` over pictures (means; the interval of CKA is a jackknife's)
        with intervals over what they are of (`group_of`; of a picture's first item), "gap" None
        or why something is missing.

    Raises:
        ConfigError: No exit, or one out of range.
        DataError: No item, an item without a picture, or one that cannot be opened.
    """
    pictures = _distinct_pictures(samples)
    for exit_layer in exits:
        check_exit(exit_layer, vlm.num_vision_blocks)
    wanted = sorted(set(exits))
    default = vlm.default_exit
    order = np.random.default_rng(seed).permutation(len(pictures))
    half = len(pictures) // 2
    groups = [group_of(pictures[i]) for i in order]
    reader = _Reader(sorted({*wanted, default} if wanted else ()), groups)
    stream = record_projector_inputs(vlm, [pictures[i].messages for i in order], list(reader.norms))
    for number, by_exit in enumerate(stream):
        if number == half and reader.fit_tokens:
            reader.statistics = fit_token_statistics(np.concatenate(reader.fit_tokens))
        arrays = {e: tokens.double().numpy() for e, tokens in by_exit.items()}
        reader.add(arrays, default, fit=number < half)
    return [_exit_record(reader, exit_layer, default) for exit_layer in wanted]


def _exit_record(reader: _Reader, exit_layer: int, default: int) -> dict[str, Any]:
    own, usual = (np.stack(reader.means[e]) for e in (exit_layer, default))
    cka = cka_with_interval(own, usual, reader.groups)
    norms, distances = reader.norms[exit_layer], reader.distances[exit_layer]
    measured = reader.groups[len(reader.groups) - len(distances) :]
    gaps: list[str] = []
    if cka["value"] is None:
        gaps.append(
            f"no CKA: it needs at least {MIN_PICTURES_CKA} different pictures"
            if cka["n"] < MIN_PICTURES_CKA
            else "no CKA: the tokens of this exit or of the default do not tell pictures apart"
        )
    if not distances:
        why = reader.statistics if isinstance(reader.statistics, str) else "no picture was left"
        if len(reader.means[default]) < 2:
            why = "it needs at least 2 different pictures"
        gaps.append(f"no Mahalanobis distance: {why}")
    return {
        "exit": exit_layer,
        "norm": average(norms, groups=reader.groups, within=(0.0, math.inf)),
        "cka": cka,
        "mahalanobis": average(distances, groups=measured, within=(0.0, math.inf)),
        "gap": "; ".join(gaps) or None,
    }


def _distinct_pictures(samples: Sequence[Sample]) -> list[Sample]:
    """The first item of each picture (or list of pictures)."""
    without = [sample.id for sample in samples if not sample.images]
    if without or not samples:
        raise DataError(
            f"embeddings are those of pictures, but {len(without)} of {len(samples)} items have "
            f"none ({', '.join(without[:3]) or 'no items given'}). Give items with pictures only."
        )
    first: dict[tuple[str, ...], Sample] = {}
    for sample in samples:
        first.setdefault(tuple(image_sha256(image) for image in sample.images), sample)
    return list(first.values())


# ---- association with the attack success rate


def associate(
    measure: str,
    values: Mapping[int, float | None],
    complied: Mapping[int, Sequence[float | None]],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Spearman correlation over exits between a measure and the attack success rate.

    The interval is a bootstrap over groups of items (things), each item with its outcomes at all
    exits. It says how well the correlation *of these exits* is known, not what other models'
    exits would give: neighbouring exits are no independent draws, so no p-value is given.

    Args:
        measure: Name of the measure: "norm", "cka" or "mahalanobis".
        values: The measure by exit; None where there is none.
        complied: By exit: 1 or 0 per item, in one order, None where an item is not scored.
        groups: What an item shares with others; None: every item stands for itself.
        seed: Seed of the bootstrap.

    Returns:
        An "association" record: {"measure", "spearman": Stat, "gap"}; n is the number of exits
        with both values.

    Raises:
        ConfigError: Exits with different numbers of items, or groups of other items.
    """
    exits = sorted(
        e
        for e, value in values.items()
        if value is not None and any(c is not None for c in complied.get(e, ()))
    )
    lengths = {len(complied[e]) for e in exits}
    if groups is not None and exits:
        lengths.add(len(groups))
    if len(lengths) > 1:
        raise ConfigError(
            "the exits (or the groups) have different numbers of items, which cannot be resampled "
            "together. Give the same items in the same order, None where there is no verdict."
        )
    gap = None
    if len(exits) < MIN_EXITS:
        gap = f"{len(exits)} exits have both values; a rank correlation needs {MIN_EXITS}"
        return {"measure": measure, "spearman": empty_stat(len(exits)), "gap": gap}
    x_E = np.asarray([values[e] for e in exits], dtype=np.float64)
    table_EN = np.asarray(
        [[math.nan if c is None else float(c) for c in complied[e]] for e in exits]
    )
    there_EN = np.isfinite(table_EN)
    filled_EN = np.where(there_EN, table_EN, 0.0)
    value = _spearman(x_E, filled_EN.sum(axis=1) / there_EN.sum(axis=1))
    if value is None:
        what = measure if len(np.unique(x_E)) == 1 else "attack success rate"
        gap = f"the {what} is the same at all {len(exits)} exits, so nothing goes along with it"
        return {"measure": measure, "spearman": empty_stat(len(exits)), "gap": gap}
    group_N = np.arange(table_EN.shape[1]) if groups is None else number_groups(groups)
    limits = _bootstrap_spearman(x_E, filled_EN, there_EN, group_N, seed)
    return {"measure": measure, "spearman": {"value": value, **limits, "n": len(exits)}, "gap": gap}


def _bootstrap_spearman(
    x_E: Array,
    filled_EN: Array,
    there_EN: NDArray[np.bool_],
    group_N: NDArray[np.intp],
    seed: int,
) -> dict[str, float | None]:
    num_groups = int(group_N.max()) + 1
    one_kind_G = np.zeros(num_groups, dtype=np.intp)
    times_RG = draw_groups(one_kind_G, RESAMPLES, np.random.default_rng(seed))
    times_RN = times_RG[:, group_N]
    counts_RE = times_RN @ there_EN.T
    usable = (counts_RE > 0).all(axis=1)
    rates_RE = (times_RN[usable] @ filled_EN.T) / counts_RE[usable]
    found_R = _rank_correlation(x_E, rates_RE)
    found = found_R[np.isfinite(found_R)].tolist()
    # Resamples without any difference between exits say nothing; too many, and no interval.
    if num_groups < 2 or len(found) < RESAMPLES // 2:
        return {"low": None, "high": None}
    return {**percentile_limits(found)}


def _spearman(x_E: Array, y_E: Array) -> float | None:
    """Rank correlation with ties at their mean rank; None when either side is constant."""
    value = float(_rank_correlation(x_E, y_E[None])[0])
    return value if math.isfinite(value) else None


def _rank_correlation(x_E: Array, y_RE: Array) -> Array:
    """(R,) rank correlation of one row with many; NaN where either side is constant."""
    from scipy.stats import rankdata

    x_E, y_RE = rankdata(x_E), rankdata(y_RE, axis=1)
    x_E, y_RE = x_E - x_E.mean(), y_RE - y_RE.mean(axis=1, keepdims=True)
    scale_R = np.sqrt((x_E @ x_E) * (y_RE * y_RE).sum(axis=1))
    flat_R = scale_R == 0
    found_R = np.clip(y_RE @ x_E / np.where(flat_R, 1.0, scale_R), -1, 1)
    return np.where(flat_R, math.nan, found_R)
