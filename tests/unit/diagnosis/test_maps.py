"""Shapes: N = items, D = width."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import trustworthiness

from vlmend.diagnosis.maps import (
    MapSettings,
    choose_points,
    clip_line,
    draw_text_boundary,
    map_pacmap,
    map_pca,
    map_tsne,
)
from vlmend.errors import ConfigError, DataError, MissingExtraError


def four_clouds(per_set: int = 20, width: int = 10) -> tuple[np.ndarray, list[int]]:
    """Safe and unsafe text lie apart in column 0, pictures are moved along column 1."""
    generator = np.random.default_rng(0)
    index = [i for i in range(4) for _ in range(per_set)]
    acts = generator.normal(size=(len(index), width))
    acts[:, 0] += np.where(np.isin(index, [1, 3]), 6, -6)
    acts[:, 1] += np.where(np.isin(index, [2, 3]), 12, 0)
    return acts.astype(np.float32), index


def test_pca_is_the_svd_of_the_centred_activations() -> None:
    acts, index = four_clouds()
    record = map_pca(acts, index, 5)
    centred = acts.astype(np.float64) - acts.mean(axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.array(record["points"])
    assert np.abs(points[:, :2]) == pytest.approx(np.abs(u[:, :2] * s[:2]), rel=1e-3, abs=1e-3)
    assert record["explained"] == pytest.approx((s**2 / (s**2).sum())[:2], rel=1e-6)
    assert points[:, 2].tolist() == index
    assert (record["method"], record["layer"], record["gap"]) == ("pca", 5, None)
    assert record["boundary_accuracy"] == 1.0
    assert all(float(f"{v:.4g}") == v for row in record["points"] for v in row)


def test_the_boundary_is_where_the_regression_is_undecided() -> None:
    acts, index = four_clouds()
    acts[::7, 0] *= -1  # some text on the wrong side
    acts[40:, 0] += 30  # pictures move the centre of the map away from the boundary
    record = map_pca(acts, index, 0)
    points = np.array(record["points"])
    text = points[:, 2] < 2
    xy, unsafe = points[text, :2], points[text, 2] == 1
    scaled = (xy - xy.mean(axis=0)) / xy.std(axis=0)
    model = LogisticRegression(class_weight="balanced").fit(scaled, unsafe)
    ends = (np.array(record["boundary"]) - xy.mean(axis=0)) / xy.std(axis=0)
    assert model.decision_function(ends) == pytest.approx(0, abs=0.01)
    said = model.predict(scaled)
    recalls = [np.mean(said[unsafe == c] == c) for c in (True, False)]
    assert record["boundary_accuracy"] == pytest.approx(np.mean(recalls))
    assert record["boundary_accuracy"] < 1
    # It ends on the frame: 5 % around all points, pictures included.
    margin = 0.05 * np.ptp(points[:, :2], axis=0)
    low, high = points[:, :2].min(axis=0) - margin, points[:, :2].max(axis=0) + margin
    for end in record["boundary"]:
        distance = np.abs(np.concatenate([end - low, high - end]))
        assert distance.min() < 0.01
        assert (end > low - 0.01).all()
        assert (end < high + 0.01).all()


def test_tsne_keeps_neighbours_and_is_the_same_every_time() -> None:
    acts, index = four_clouds(15, width=60)
    record = map_tsne(acts, index, 2)
    assert record == map_tsne(acts, index, 2)
    points = np.array(record["points"])
    assert trustworthiness(acts, points[:, :2], n_neighbors=5) > 0.7
    assert (record["method"], record["explained"], len(points)) == ("tsne", None, 60)
    assert record["boundary_accuracy"] > 0.9
    json.dumps(record, allow_nan=False)


def test_four_points_are_enough() -> None:
    acts, _ = four_clouds()
    for draw in (map_pca, map_tsne):
        record = draw(acts[[0, 20, 40, 60]], [0, 1, 2, 3], 0)
        assert len(record["points"]) == 4
        json.dumps(record, allow_nan=False)


def test_points_are_limited_per_set() -> None:
    index = np.array([0] * 50 + [1] * 3 + [2] * 20 + [3] * 50)
    rows = choose_points(index, MapSettings(max_points=10))
    assert np.bincount(index[rows]).tolist() == [10, 3, 10, 10]
    assert (np.diff(rows) > 0).all()
    assert rows.tolist() == choose_points(index, MapSettings(max_points=10)).tolist()
    assert rows.tolist() != choose_points(index, MapSettings(max_points=10, seed=1)).tolist()
    acts = np.random.default_rng(0).normal(size=(123, 4))
    acts[:, 0] = np.arange(123) * 100.0  # the first component tells the row
    record = map_pca(acts, index.tolist(), 0, MapSettings(max_points=10))
    assert [i for _, _, i in record["points"]] == index[rows].tolist()
    drawn = np.array([x for x, _, _ in record["points"]])
    assert np.abs(np.diff(drawn)) == pytest.approx(np.diff(rows) * 100.0, rel=0.01)


# ---- PaCMAP, an optional package


def test_pacmap_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pacmap", None)
    acts, index = four_clouds()
    with pytest.raises(MissingExtraError, match=r"pip install 'vlmend\[maps\]'"):
        map_pacmap(acts, index, 0)


def test_pacmap_is_called_with_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class PaCMAP:
        def __init__(self, **settings: Any) -> None:
            asked.update(settings)

        def fit_transform(self, x: np.ndarray, init: str) -> np.ndarray:
            asked["init"] = init
            return x[:, :2].astype(np.float32)

    monkeypatch.setitem(sys.modules, "pacmap", SimpleNamespace(PaCMAP=PaCMAP))
    acts, index = four_clouds(2)
    record = map_pacmap(acts, index, 1, MapSettings(seed=7))
    assert asked == {"n_components": 2, "n_neighbors": 7, "random_state": 7, "init": "pca"}
    assert record["method"] == "pacmap"
    assert record["points"][0][:2] == pytest.approx(acts[0, :2].tolist(), rel=1e-3)


# ---- gaps


@pytest.mark.parametrize("draw", [map_pca, map_tsne])
@pytest.mark.parametrize(
    ("acts", "reason"),
    [
        (np.zeros((0, 5)), "0 points of width 5 are too few"),
        (np.eye(3, 5), "3 points"),
        (np.arange(8.0)[:, None], "width 1"),
        (np.full((8, 5), 2.0), "all activations are the same"),
        (np.full((8, 5), np.inf), "not finite"),
    ],
)
def test_degenerate_input_is_a_gap(draw: Any, acts: np.ndarray, reason: str) -> None:
    record = draw(acts, [i % 4 for i in range(len(acts))], 0)
    assert reason in record["gap"]
    assert (record["points"], record["boundary"], record["boundary_accuracy"]) == ([], None, None)


def test_a_map_without_unsafe_text_has_no_boundary() -> None:
    acts, _ = four_clouds()
    record = map_pca(acts, [0] * 40 + [2, 3] * 20, 0)
    assert record["boundary"] is record["boundary_accuracy"] is None
    assert "both safe and unsafe text" in record["gap"]
    assert len(record["points"]) == 80


def test_text_at_one_place_has_no_boundary() -> None:
    index = np.array([0, 1, 2, 3])
    points = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [3.0, 2.0]])
    assert draw_text_boundary(points, index)[2] == "no boundary: all text points are at one place"


def test_a_boundary_beyond_the_points() -> None:
    """Safe and unsafe text fully mixed: the line is somewhere, perhaps far away."""
    points = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    boundary, accuracy, gap = draw_text_boundary(points, np.array([0, 0, 1, 1]))
    assert boundary is None
    assert accuracy == 0.5
    assert gap == "the text boundary lies outside of the map"


def test_lines_are_clipped() -> None:
    low, high = np.array([0.0, 0.0]), np.array([2.0, 1.0])
    for normal, offset, ends in (
        ([1.0, -2.0], 0.0, [(0, 0), (2, 1)]),
        ([2.0, 0.0], -3.0, [(1.5, 0), (1.5, 1)]),
        ([0.0, 1.0], -0.25, [(0, 0.25), (2, 0.25)]),
        ([1.0, 1.0], -1.5, [(0.5, 1), (1.5, 0)]),
    ):
        found = clip_line(np.array(normal), offset, low, high)
        assert np.array(sorted(found or [])) == pytest.approx(np.array(ends))
    assert clip_line(np.array([1.0, 0.0]), -3.0, low, high) is None
    assert clip_line(np.array([1.0, 1.0]), -4.0, low, high) is None
    assert clip_line(np.array([0.0, 0.0]), 1.0, low, high) is None


def test_bad_input() -> None:
    with pytest.raises(DataError, match="do not belong together"):
        map_pca(np.zeros((4, 3)), [0, 1], 0)
    with pytest.raises(DataError, match="from 0 to 4 name no set"):
        map_pca(np.zeros((2, 3)), [0, 4], 0)
    with pytest.raises(ConfigError, match="at least 1"):
        MapSettings(max_points=0)
