"""What the measured shifts say, item by item: by outcome, by suite, by layer. No model.

Shapes: B = items, L = layers measured.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), cos(m, s) of jailbreaks that succeed and
fail.

Deviation 1: the paper shows distributions; here the separation of the two groups is also a
number with an interval, the area under the ROC curve, resampled over things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmend.diagnosis.findings import middle_layer
from vlmend.diagnosis.intervals import average
from vlmend.diagnosis.shift import ShiftMeasurement, summarise_shift
from vlmend.evals.ranking import Auroc, auroc
from vlmend.types import Label, VerdictValue

LEAST_ITEMS = 5
"""Answers of each kind below which a separation is a stated gap."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of an item besides its shift.

    Attributes:
        suite: Its suite.
        label: Whether complying would be harmful.
        group: What it shares with others.
        verdict: Of the model's answer, None where it was not asked.
    """

    suite: str
    label: Label
    group: str
    verdict: VerdictValue | None


def shift_records(
    measured: ShiftMeasurement, items: Mapping[str, Measured]
) -> list[dict[str, Any]]:
    """Distributions of cosine, norm and coefficient by suite and outcome.

    Args:
        measured: The shifts.
        items: What is known of every measured item, by its id.

    Returns:
        The "shift" section: groups "complied" and "refused" of harmful items, and "benign".
    """
    records: list[dict[str, Any]] = []
    for suite in dict.fromkeys(items[i].suite for i in measured.sample_ids):
        mine = [i for i in measured.sample_ids if items[i].suite == suite]
        harmful = [i for i in mine if items[i].label == "harmful"]
        groups = {
            "complied": [i for i in harmful if items[i].verdict == "complied"],
            "refused": [i for i in harmful if items[i].verdict == "refused"],
            "benign": [i for i in mine if items[i].label == "benign"],
        }
        records += summarise_shift(measured, groups, suite, keep_items=True)
    return records


def separate_outcomes(
    measured: ShiftMeasurement, items: Mapping[str, Measured]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """How well cos(m, s) tells answers that complied from answers that refused.

    Args:
        measured: The shifts.
        items: What is known of every measured item, by its id.

    Returns:
        The "separation" section, by suite and layer, and one record over all suites in which an
        item's score is its mean cosine over the later half of the layers.
    """
    records = [
        {"suite": suite, "layer": layer, **_separation(measured, items, [column], suite)}
        for suite in dict.fromkeys(m.suite for m in items.values() if m.label == "harmful")
        for column, layer in enumerate(measured.layers)
    ]
    half = len(measured.layers) // 2
    later = list(range(half, len(measured.layers)))
    pooled = _separation(measured, items, later, None)
    return records, {"layers": [measured.layers[c] for c in later], **pooled}


def _separation(
    measured: ShiftMeasurement,
    items: Mapping[str, Measured],
    columns: Sequence[int],
    suite: str | None,
) -> dict[str, Any]:
    rows = [
        row
        for row, i in enumerate(measured.sample_ids)
        if items[i].label == "harmful"
        and items[i].verdict in ("complied", "refused")
        and suite in (None, items[i].suite)
    ]
    ids = [measured.sample_ids[row] for row in rows]
    complied = [items[i].verdict == "complied" for i in ids]
    counts = {"n_complied": sum(complied), "n_refused": len(complied) - sum(complied)}
    if min(counts.values()) < LEAST_ITEMS:
        return {
            "auroc": _stat(None, len(ids)),
            **counts,
            "gap": f"{counts['n_complied']} answers complied and {counts['n_refused']} refused: "
            f"at least {LEAST_ITEMS} of each are needed to tell them apart",
        }
    scores = measured.cosine[rows][:, list(columns)].mean(dim=1).tolist()
    area = auroc(scores, complied, groups=[items[i].group for i in ids])
    return {"auroc": _stat(area, len(ids)), **counts, "gap": None}


def _stat(area: Auroc | None, n: int) -> dict[str, Any]:
    if area is None:
        return {"value": None, "low": None, "high": None, "n": n}
    return {"value": area.value, "low": area.low, "high": area.high, "n": n}


def mean_shift(measured: ShiftMeasurement, items: Mapping[str, Measured]) -> dict[str, Any]:
    """Mean coefficient of harmful items at the middle layer: the mean over things.

    Returns:
        A statistic with the layer: how far the picture moves a request towards safe, in
        distances between mean unsafe and mean safe text.
    """
    layer = middle_layer(measured.layers)
    column = measured.layers.index(layer)
    by_group: dict[str, list[float]] = {}
    for row, i in enumerate(measured.sample_ids):
        if items[i].label == "harmful":
            value = float(measured.coefficient[row, column])
            by_group.setdefault(items[i].group, []).append(value)
    means = [sum(values) / len(values) for values in by_group.values()]
    return {"layer": layer, **average(means)}
