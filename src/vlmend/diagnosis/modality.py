"""What the measured shifts say, item by item: by outcome, by suite, by layer. No model.

Shapes: B = items, L = layers measured.

Reference: Zou et al. (NeurIPS 2025, arXiv 2502.13095), cos(m, s) of jailbreaks that succeed and
fail.

Deviation 1: the paper shows distributions; here the separation of the two groups is also a
number with an interval, the area under the ROC curve, resampled over things. Over all suites,
answers are compared within their suite only: suites differ in cosine and in how often the model
complies, and a pooled area would tell suites apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmend.diagnosis.findings import middle_layer
from vlmend.diagnosis.intervals import average_by_group, empty_stat
from vlmend.diagnosis.shift import ShiftMeasurement, summarise_shift
from vlmend.evals.ranking import auroc
from vlmend.types import Label, VerdictValue

LEAST_ITEMS = 5
"""Things with answers of each kind below which a separation is a stated gap. Things, not answers:
answers about one thing tend to be alike."""


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
    measured: ShiftMeasurement, items: Mapping[str, Measured], *, seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """How well cos(m, s) tells answers that complied from answers that refused.

    Args:
        measured: The shifts.
        items: What is known of every measured item, by its id.
        seed: Seed of the bootstrap over things.

    Returns:
        The "separation" section, by suite and layer, and one record over all suites that have
        `LEAST_ITEMS` things of each kind, in which answers are compared within their suite and
        an item's score is its mean cosine over the later half of the layers.
    """
    by_suite: dict[str, list[int]] = {}
    for row, i in enumerate(measured.sample_ids):
        if items[i].label == "harmful" and items[i].verdict in ("complied", "refused"):
            by_suite.setdefault(items[i].suite, []).append(row)
    suites = list(dict.fromkeys(m.suite for m in items.values() if m.label == "harmful"))
    records = [
        {
            "suite": suite,
            "layer": layer,
            **_separation(measured, items, by_suite.get(suite, []), [column], seed),
        }
        for suite in suites
        for column, layer in enumerate(measured.layers)
    ]
    half = len(measured.layers) // 2
    later = list(range(half, len(measured.layers)))
    enough = [s for s in suites if _too_few(measured, items, by_suite.get(s, [])) is None]
    rows = sorted(row for suite in enough for row in by_suite[suite])
    pooled = _separation(measured, items, rows, later, seed)
    if not enough:
        pooled["gap"] = (
            f"none of {len(suites)} suites has answers that complied about at least {LEAST_ITEMS} "
            f"things and answers that refused about at least {LEAST_ITEMS}; answers of different "
            "suites are not compared"
        )
    pooled_layers = [measured.layers[column] for column in later]
    return records, {"layers": pooled_layers, "suites": enough, **pooled}


def _too_few(
    measured: ShiftMeasurement, items: Mapping[str, Measured], rows: Sequence[int]
) -> str | None:
    """Why answers that complied and refused cannot be told apart, if so."""
    answers, things = {}, {}
    for kind in ("complied", "refused"):
        mine = [items[measured.sample_ids[row]] for row in rows]
        groups = [item.group for item in mine if item.verdict == kind]
        answers[kind], things[kind] = len(groups), len(set(groups))
    if min(things.values()) >= LEAST_ITEMS:
        return None
    return (
        f"{answers['complied']} answers about {things['complied']} things complied and "
        f"{answers['refused']} about {things['refused']} refused: at least {LEAST_ITEMS} things "
        "of each are needed to tell them apart"
    )


def _separation(
    measured: ShiftMeasurement,
    items: Mapping[str, Measured],
    rows: Sequence[int],
    columns: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """The record of some rows: answers that complied or refused, compared within suites."""
    chosen = [items[measured.sample_ids[row]] for row in rows]
    complied = [item.verdict == "complied" for item in chosen]
    counts = {"n_complied": sum(complied), "n_refused": len(complied) - sum(complied)}
    gap = _too_few(measured, items, rows)
    if gap is not None:
        return {"auroc": empty_stat(len(rows)), **counts, "gap": gap}
    area = auroc(
        measured.cosine[list(rows)][:, list(columns)].mean(dim=1).tolist(),
        complied,
        groups=[item.group for item in chosen],
        strata=[item.suite for item in chosen],
        seed=seed,
    )
    stat = {"value": area.value, "low": area.low, "high": area.high, "n": len(rows)}
    return {"auroc": stat, **counts, "gap": None}


def mean_shift(measured: ShiftMeasurement, items: Mapping[str, Measured]) -> dict[str, Any]:
    """Mean coefficient of harmful items at the middle layer: the mean over things.

    Returns:
        A statistic with the layer: how far the picture moves a request towards safe, in
        distances between mean unsafe and mean safe text. The interval is over things, with the
        safety direction taken as it was fitted: it does not hold the uncertainty of the
        direction, nor what all items share through it.
    """
    layer = middle_layer(measured.layers)
    column = measured.layers.index(layer)
    rows = [r for r, i in enumerate(measured.sample_ids) if items[i].label == "harmful"]
    values = [float(measured.coefficient[row, column]) for row in rows]
    groups = [items[measured.sample_ids[row]].group for row in rows]
    return {"layer": layer, **average_by_group(values, groups)}
