"""Is safety easier to read from text than from pictures? Paired over things, with an interval.

Shapes: G = groups, L = layers, R = resamples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmend.diagnosis.probes import LAYER_RULE, ProbeModality, ProbeRun, ProbeSet
from vlmend.errors import ConfigError
from vlmend.evals.clustered import clustered_rate, draw_groups, newcombe_limits

Floats = NDArray[np.float64]


def compare_modalities(
    run: ProbeRun, *, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Accuracy of the text probes minus that of the vision-language probes.

    The interval is a percentile bootstrap over groups; a group brings its items of both
    modalities, so the difference is paired. Groups are drawn among those that hold the same
    sets, so that no resample lacks one. Predictions are not made anew: the interval does not
    hold the randomness of the training. Where no resample differs (both modalities without an
    error) the limits are Newcombe's from the intervals of the two accuracies.

    Args:
        run: From `run_probes`.
        num_resamples: Bootstrap resamples, at least 1.
        seed: Seed of the resampling.

    Returns:
        {"rule": how the layers were chosen, "by_layer": [{"layer", "difference": Stat}],
        "middle": {"layer", "difference": Stat}, "mean": {"layers", "difference": Stat}}, where
        a Stat has value, low, high and n = groups; or {"gap": why not}.

    Raises:
        ConfigError: `num_resamples` is below 1.
    """
    if num_resamples < 1:
        raise ConfigError(f"num_resamples {num_resamples} is not possible: at least 1.")
    both = [probes for probes in run.layers if len(probes.predicted) == 2]
    if not both:
        reason = run.gap or "no layer has a probe in both modalities."
        return {"gap": f"the modalities cannot be compared: {reason}"}
    names = sorted({group for data in run.sets.values() for group in data.groups})
    if len(names) < 2:
        return {"gap": "the modalities cannot be compared: there is a single group."}
    tables: dict[ProbeModality, _Table] = {n: _Table(run, n, names) for n in run.sets}
    times_RG = draw_groups(_kinds(tables), num_resamples, np.random.default_rng(seed))
    ones_1G = np.ones((1, len(names)))
    text, images = tables["text"], tables["vision_language"]
    value_L = (text.accuracy(ones_1G) - images.accuracy(ones_1G))[0]
    drawn_RL = text.accuracy(times_RG) - images.accuracy(times_RG)
    limits_2L = np.quantile(drawn_RL, [0.025, 0.975], axis=0)
    flat_L = np.ptp(drawn_RL, axis=0) < 1e-12
    newcombe_2L = np.array([_newcombe(run, probes.layer) for probes in both]).T
    limits_2L = np.where(flat_L, newcombe_2L, limits_2L)
    mean_limits = (
        newcombe_2L.mean(axis=1)
        if flat_L.all()
        else np.quantile(drawn_RL.mean(axis=1), [0.025, 0.975])
    )

    def stat(value: float, limits: Floats) -> dict[str, Any]:
        low, high = (float(limit) for limit in limits)
        return {"value": float(value), "low": low, "high": high, "n": len(names)}

    by_layer = [
        {"layer": probes.layer, "difference": stat(value_L[i], limits_2L[:, i])}
        for i, probes in enumerate(both)
    ]
    return {
        "rule": LAYER_RULE,
        "by_layer": by_layer,
        "middle": by_layer[len(by_layer) // 2],
        "mean": {
            "layers": [probes.layer for probes in both],
            "difference": stat(value_L.mean(), mean_limits),
        },
    }


class _Table:
    """Items and hits of one modality, by class and group."""

    def __init__(self, run: ProbeRun, name: ProbeModality, names: list[str]) -> None:
        data: ProbeSet = run.sets[name]
        place = {group: i for i, group in enumerate(names)}
        group_N = np.array([place[group] for group in data.groups])
        hits_LN = [
            probes.predicted[name] == data.unsafe
            for probes in run.layers
            if len(probes.predicted) == 2
        ]
        classes = (data.unsafe, ~data.unsafe)
        self.items = [np.bincount(group_N, rows, len(names)) for rows in classes]
        self.hits = [
            np.stack([np.bincount(group_N, hit_N & rows, len(names)) for hit_N in hits_LN], axis=1)
            for rows in classes
        ]

    def accuracy(self, times_RG: Floats) -> Floats:
        """Balanced accuracy (R, L) when group g is drawn `times_RG[r, g]` times."""
        shares = [
            (times_RG @ hits_GL) / (times_RG @ items_G)[:, None]
            for items_G, hits_GL in zip(self.items, self.hits, strict=True)
        ]
        return np.mean(shares, axis=0)


def _kinds(tables: dict[ProbeModality, _Table]) -> NDArray[np.intp]:
    """The kind of each group (G,): which of the sets it holds."""
    held = [items_G > 0 for table in tables.values() for items_G in table.items]
    return np.asarray(sum(2**bit * has_G for bit, has_G in enumerate(held)), dtype=np.intp)


def _newcombe(run: ProbeRun, layer: int) -> tuple[float, float]:
    """Limits of a difference from the limits of its two rates, as if they were independent."""
    probes = next(probes for probes in run.layers if probes.layer == layer)
    limits: list[tuple[float, float, float]] = []
    for name, data in run.sets.items():
        hits = probes.predicted[name] == data.unsafe
        rate = clustered_rate(hits.tolist(), data.groups, data.unsafe.tolist())
        assert rate.rate is not None, "a probe has both classes"
        assert rate.low is not None, "a probe has several groups"
        assert rate.high is not None, "a probe has several groups"
        limits.append((rate.rate, rate.low, rate.high))
    text, images = limits
    return newcombe_limits(images, text)
