"""Shapes: B = items, L = layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlmend.diagnosis.modality import LEAST_ITEMS, Measured, mean_shift, separate_outcomes
from vlmend.diagnosis.modality import shift_records as records_of
from vlmend.diagnosis.shift import ShiftMeasurement
from vlmend.evals.ranking import auroc
from vlmend.types import VerdictValue

LAYERS = (1, 2, 5)


def measurement(count: int) -> ShiftMeasurement:
    generator = torch.Generator().manual_seed(0)
    norm, cosine, coefficient = torch.rand(3, count, len(LAYERS), generator=generator)
    ids = tuple(f"tea/{i}" for i in range(count))
    return ShiftMeasurement(ids, LAYERS, norm, cosine, coefficient)


def known(count: int) -> dict[str, Measured]:
    verdicts: tuple[VerdictValue | None, ...] = ("complied", "refused", "partial", None)
    return {
        f"tea/{i}": Measured(
            "tea" if i % 2 else "cake",
            "benign" if i % 5 == 4 else "harmful",
            f"thing {i % 7}",
            verdicts[(i // 2) % 4],
        )
        for i in range(count)
    }


def test_distributions_are_by_suite_and_outcome() -> None:
    measured, items = measurement(80), known(80)
    records = {(r["suite"], r["group"]): r for r in records_of(measured, items)}
    assert set(records) == {
        (s, g) for s in ("tea", "cake") for g in ("complied", "refused", "benign")
    }
    rows = [
        row
        for row, i in enumerate(measured.sample_ids)
        if items[i].suite == "tea"
        and items[i].label == "harmful"
        and items[i].verdict == "complied"
    ]
    record = records["tea", "complied"]
    assert record["n"] == len(rows)
    assert record["layers"] == list(LAYERS)
    expected = measured.cosine[rows].numpy()
    assert np.allclose(record["cosines"], expected.T, atol=1e-4)
    assert np.allclose(record["cos_median"], np.median(expected, axis=0), atol=1e-5)
    harmful_without_outcome = [i for i in items if items[i].verdict in ("partial", None)]
    counted = sum(r["n"] for r in records.values() if r["group"] != "benign")
    assert counted == len(
        [i for i in items if items[i].label == "harmful" and i not in harmful_without_outcome]
    )


def test_separation_is_the_auroc_of_the_cosine() -> None:
    measured, items = measurement(80), known(80)
    records, pooled = separate_outcomes(measured, items)
    assert [(r["suite"], r["layer"]) for r in records] == [
        (suite, layer) for suite in ("cake", "tea") for layer in LAYERS
    ]
    rows = [
        row
        for row, i in enumerate(measured.sample_ids)
        if items[i].label == "harmful" and items[i].verdict in ("complied", "refused")
    ]
    chosen = [items[measured.sample_ids[row]] for row in rows]
    complied = [item.verdict == "complied" for item in chosen]
    # The later half of three layers: the second and the third.
    scores = measured.cosine[rows][:, 1:].mean(1).tolist()
    area = auroc(scores, complied, groups=[item.group for item in chosen])
    assert pooled["layers"] == [2, 5]
    assert pooled["auroc"]["value"] == pytest.approx(area.value)
    assert (pooled["auroc"]["low"], pooled["auroc"]["high"]) == (area.low, area.high)
    assert (pooled["n_complied"], pooled["n_refused"]) == (sum(complied), complied.count(False))


def test_too_few_answers_of_a_kind_are_a_gap() -> None:
    items = {
        i: Measured("tea", "harmful", i, "complied" if n < LEAST_ITEMS - 1 else "refused")
        for n, i in enumerate(measurement(30).sample_ids)
    }
    records, pooled = separate_outcomes(measurement(30), items)
    for record in (*records, pooled):
        assert record["auroc"]["value"] is None
        assert f"{LEAST_ITEMS - 1} answers complied and" in record["gap"]


def test_the_mean_shift_weighs_things_alike_and_leaves_benign_items_out() -> None:
    measured, items = measurement(80), known(80)
    by_thing: dict[str, list[float]] = {}
    for row, i in enumerate(measured.sample_ids):
        if items[i].label == "harmful":
            by_thing.setdefault(items[i].group, []).append(float(measured.coefficient[row, 1]))
    found = mean_shift(measured, items)
    assert found["layer"] == 2
    assert found["value"] == pytest.approx(np.mean([np.mean(v) for v in by_thing.values()]))
    assert found["low"] < found["value"] < found["high"]
    assert found["n"] == 7
