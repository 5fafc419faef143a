"""Maps: the four sets of a layer in two dimensions, with the boundary of the text sets.

A map is a picture, not a measurement: t-SNE and PaCMAP keep neighbours, not distances, and the
boundary is fitted on the two coordinates shown, which hold less than the probe sees.

Shapes: N = items, D = width; maps are (N, 2).

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), t-SNE of the four sets with the text
boundary. van der Maaten and Hinton, JMLR 9 (2008). Wang et al. (PaCMAP), JMLR 22 (2021).

Deviation 1: the paper leaves perplexity and the number of points open; here perplexity is 30, or
(N - 1) / 3 for fewer than 91 points, and `MapSettings.max_points` limits the points per set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlmend._optional import require
from vlmend.diagnosis.four_sets import SETS
from vlmend.errors import ConfigError, DataError

Method = Literal["pca", "tsne", "pacmap"]
Floats = NDArray[np.float64]
Segment = list[list[float]]

MIN_POINTS = 4
"""Fewest points of a map."""

_TSNE_INPUT = 50
"""Principal components that t-SNE starts from, as its authors advise."""

_MARGIN = 0.05
"""Frame around the points, as a share of their extent."""


@dataclass(frozen=True, slots=True)
class MapSettings:
    """How maps are drawn.

    Attributes:
        max_points: Most points per set; a seeded draw without replacement leaves out the rest.
        seed: Seed of the draw and of the methods.
    """

    max_points: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_points < 1:
            raise ConfigError(f"max_points {self.max_points} is not possible: at least 1.")


def map_pca(
    acts_ND: NDArray[Any],
    set_index_N: Sequence[int],
    layer: int,
    settings: MapSettings | None = None,
) -> dict[str, Any]:
    """First two principal components of centred, unscaled activations.

    Args:
        acts_ND: Activations of one layer, all sets together.
        set_index_N: Per item, the place of its set in `four_sets.SETS`.
        layer: Decoder layer, repeated in the record.
        settings: How to draw.

    Returns:
        A record of "maps": points [x, y, set], rounded to four significant digits; the text
        boundary as a segment with its balanced accuracy on the text points; "explained", the
        shares of the variance. For degenerate input "gap" says why, and there are no points.

    Raises:
        DataError: Rows and sets do not belong together, or a set is unknown.
    """
    return _draw("pca", _pca, acts_ND, set_index_N, layer, settings)


def map_tsne(
    acts_ND: NDArray[Any],
    set_index_N: Sequence[int],
    layer: int,
    settings: MapSettings | None = None,
) -> dict[str, Any]:
    """t-SNE from the first 50 principal components; arguments and result as `map_pca`."""
    return _draw("tsne", _tsne, acts_ND, set_index_N, layer, settings)


def map_pacmap(
    acts_ND: NDArray[Any],
    set_index_N: Sequence[int],
    layer: int,
    settings: MapSettings | None = None,
) -> dict[str, Any]:
    """PaCMAP; arguments and result as `map_pca`.

    Raises:
        DataError: As `map_pca`.
        MissingExtraError: The package is not installed.
    """
    pacmap = require("pacmap", extra="maps")

    def embed(x_ND: Floats, seed: int) -> tuple[Floats, None]:
        # PaCMAP's own default is 10 neighbours, and it needs fewer of them than points.
        neighbours = min(10, len(x_ND) - 1)
        drawing = pacmap.PaCMAP(n_components=2, n_neighbors=neighbours, random_state=seed)
        return np.asarray(drawing.fit_transform(x_ND, init="pca"), dtype=np.float64), None

    return _draw("pacmap", embed, acts_ND, set_index_N, layer, settings)


MAPS: Mapping[str, Callable[..., dict[str, Any]]] = MappingProxyType(
    {"pca": map_pca, "tsne": map_tsne, "pacmap": map_pacmap}
)
"""Every map by name."""


# ---- methods

_Embed = Callable[[Floats, int], tuple[Floats, list[float] | None]]


def _pca(x_ND: Floats, seed: int) -> tuple[Floats, list[float] | None]:
    from sklearn.decomposition import PCA

    # The full solver fixes the signs of the components and needs no random numbers.
    pca = PCA(n_components=2, svd_solver="full", random_state=seed)
    points = np.asarray(pca.fit_transform(x_ND))
    return points, [float(share) for share in pca.explained_variance_ratio_]


def _tsne(x_ND: Floats, seed: int) -> tuple[Floats, None]:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if min(x_ND.shape) > _TSNE_INPUT:
        x_ND = np.asarray(PCA(_TSNE_INPUT, svd_solver="full").fit_transform(x_ND))
    perplexity = min(30.0, (len(x_ND) - 1) / 3)
    tsne = TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=seed)
    # With several threads the order of a sum, and with it the map, would change between runs.
    with threadpool_limits(limits=1):
        return np.asarray(tsne.fit_transform(x_ND), dtype=np.float64), None


# ---- the record


def _draw(
    method: Method,
    embed: _Embed,
    acts_ND: NDArray[Any],
    set_index_N: Sequence[int],
    layer: int,
    settings: MapSettings | None,
) -> dict[str, Any]:
    settings = settings or MapSettings()
    index_N = np.asarray(set_index_N, dtype=int)
    if acts_ND.ndim != 2 or len(acts_ND) != len(index_N):
        raise DataError(
            f"activations of shape {acts_ND.shape} and {len(index_N)} sets do not belong "
            "together. Give (N, D) activations and one set per row."
        )
    if len(index_N) and not 0 <= index_N.min() <= index_N.max() < len(SETS):
        raise DataError(
            f"set indices from {index_N.min()} to {index_N.max()} name no set: allowed are 0 to "
            f"{len(SETS) - 1}, the places in four_sets.SETS."
        )
    rows = choose_points(index_N, settings)
    x_ND, index_N = acts_ND[rows].astype(np.float64), index_N[rows]
    gap = _explain_degenerate(x_ND)
    record: dict[str, Any] = {"method": method, "layer": layer, "points": [], "boundary": None}
    record |= {"boundary_accuracy": None, "explained": None, "gap": gap}
    if gap:
        return record
    points_N2, explained = embed(x_ND, settings.seed)
    if not np.isfinite(points_N2).all():
        return record | {"gap": f"{method} found no finite map of these activations"}
    boundary, accuracy, gap = draw_text_boundary(points_N2, index_N)
    return record | {
        "points": [
            [_round(x), _round(y), int(i)] for (x, y), i in zip(points_N2, index_N, strict=True)
        ],
        "boundary": boundary,
        "boundary_accuracy": accuracy,
        "explained": explained,
        "gap": gap,
    }


def choose_points(set_index_N: NDArray[np.int_], settings: MapSettings) -> NDArray[np.int_]:
    """Rows to draw, ascending: at most `max_points` of each set, drawn without replacement."""
    generator = np.random.default_rng(settings.seed)
    chosen: list[int] = []
    for index in range(len(SETS)):
        rows = np.flatnonzero(set_index_N == index)
        if len(rows) > settings.max_points:
            rows = generator.choice(rows, settings.max_points, replace=False)
        chosen += rows.tolist()
    return np.array(sorted(chosen), dtype=int)


def _explain_degenerate(x_ND: Floats) -> str | None:
    if len(x_ND) < MIN_POINTS or x_ND.shape[1] < 2:
        return (
            f"{len(x_ND)} points of width {x_ND.shape[1]} are too few for a map (at least "
            f"{MIN_POINTS} points of width 2)"
        )
    if not np.isfinite(x_ND).all():
        return "the activations are not finite"
    if (x_ND == x_ND[:1]).all():
        return "all activations are the same"
    return None


def draw_text_boundary(
    points_N2: Floats, set_index_N: NDArray[np.int_]
) -> tuple[Segment | None, float | None, str | None]:
    """Where logistic regression on the two coordinates parts safe from unsafe text.

    Args:
        points_N2: The map.
        set_index_N: Per point, the place of its set in `four_sets.SETS`.

    Returns:
        The boundary within the frame of all points, as two points or None; its balanced accuracy
        on the text points it was fitted on, or None; what is missing, or None.
    """
    from sklearn.linear_model import LogisticRegression

    safe, unsafe = SETS.index(("text", "safe")), SETS.index(("text", "unsafe"))
    is_text_N = np.isin(set_index_N, [safe, unsafe])
    text_M2 = points_N2[is_text_N]
    unsafe_M = set_index_N[is_text_N] == unsafe
    if unsafe_M.all() or not unsafe_M.any():
        return None, None, "no boundary: the map does not hold both safe and unsafe text"
    centre_2, scale_2 = text_M2.mean(axis=0), text_M2.std(axis=0)
    if (scale_2 == 0).all():
        return None, None, "no boundary: all text points are at one place"
    scale_2 = np.where(scale_2 > 0, scale_2, 1.0)
    model = LogisticRegression(class_weight="balanced")
    model.fit((text_M2 - centre_2) / scale_2, unsafe_M)
    # w . (p - centre) / scale + b = 0, in the coordinates of the map.
    normal_2 = np.asarray(model.coef_).ravel() / scale_2
    offset = float(np.ravel(model.intercept_)[0] - normal_2 @ centre_2)
    hit_M = (text_M2 @ normal_2 + offset > 0) == unsafe_M
    accuracy = float((hit_M[unsafe_M].mean() + hit_M[~unsafe_M].mean()) / 2)
    margin_2 = _MARGIN * np.ptp(points_N2, axis=0)
    frame = points_N2.min(axis=0) - margin_2, points_N2.max(axis=0) + margin_2
    segment = clip_line(normal_2, offset, *frame)
    if segment is None:
        return None, accuracy, "the text boundary lies outside of the map"
    return [[_round(x), _round(y)] for x, y in segment], accuracy, None


def clip_line(
    normal_2: Floats, offset: float, low_2: Floats, high_2: Floats
) -> list[tuple[float, float]] | None:
    """The part of the line normal . p + offset = 0 within a rectangle, or None.

    Args:
        normal_2: Normal of the line; (0, 0) is no line.
        offset: Its offset.
        low_2: Lower left corner.
        high_2: Upper right corner.
    """
    length = float(np.hypot(*normal_2))
    if length == 0:
        return None
    start_2 = -offset * normal_2 / length**2
    along_2 = np.array([-normal_2[1], normal_2[0]]) / length
    first, last = -np.inf, np.inf
    for axis in range(2):
        if along_2[axis] == 0:
            if not low_2[axis] <= start_2[axis] <= high_2[axis]:
                return None
            continue
        ends = sorted(float((c[axis] - start_2[axis]) / along_2[axis]) for c in (low_2, high_2))
        first, last = max(first, ends[0]), min(last, ends[1])
    if first >= last:
        return None
    ends_22 = [start_2 + t * along_2 for t in (first, last)]
    return [(float(x), float(y)) for x, y in ends_22]


def _round(value: float) -> float:
    """Four significant digits: more would be file size, not information."""
    return float(f"{value:.4g}")
