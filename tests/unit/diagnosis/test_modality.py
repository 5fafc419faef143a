"""Shapes: B = items, L = layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

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


def rows_of(measured: ShiftMeasurement, items: dict[str, Measured], *suites: str) -> list[int]:
    return [
        row
        for row, i in enumerate(measured.sample_ids)
        if items[i].label == "harmful"
        and items[i].verdict in ("complied", "refused")
        and items[i].suite in suites
    ]


def test_separation_is_the_auroc_of_the_cosine() -> None:
    measured, items = measurement(80), known(80)
    records, pooled = separate_outcomes(measured, items, seed=5)
    assert [(r["suite"], r["layer"]) for r in records] == [
        (suite, layer) for suite in ("cake", "tea") for layer in LAYERS
    ]
    # The later half of three layers: the second and the third.
    later = measured.cosine[:, 1:].mean(1)
    given = [
        (("cake",), measured.cosine[:, 1], records[1]),
        (("cake", "tea"), later, pooled),
    ]
    for suites, cosine, record in given:
        rows = rows_of(measured, items, *suites)
        chosen = [items[measured.sample_ids[row]] for row in rows]
        complied = np.array([item.verdict == "complied" for item in chosen])
        scores = cosine[rows].numpy()
        own = np.array([item.suite for item in chosen])
        wins = [
            (scores[complied & (own == s)][:, None] > scores[~complied & (own == s)]).ravel()
            for s in suites
        ]
        assert record["auroc"]["value"] == pytest.approx(np.concatenate(wins).mean())
        area = auroc(
            scores.tolist(),
            complied.tolist(),
            groups=[item.group for item in chosen],
            strata=own.tolist(),
            seed=5,
        )
        assert (record["auroc"]["low"], record["auroc"]["high"]) == (area.low, area.high)
        assert record["auroc"]["n"] == len(rows)
        assert (record["n_complied"], record["n_refused"]) == (complied.sum(), (~complied).sum())
    assert (pooled["layers"], pooled["suites"]) == ([2, 5], ["cake", "tea"])
    other = separate_outcomes(measured, items, seed=6)[1]
    assert other["auroc"]["value"] == pooled["auroc"]["value"]
    assert other["auroc"]["low"] != pooled["auroc"]["low"]


def test_suites_that_differ_are_not_what_the_pooled_number_says() -> None:
    """Cosines tell suites apart; one suite complies and the other refuses; within, nothing."""
    plain, items = measurement(160), known(160)
    of_tea = torch.tensor([items[i].suite == "tea" for i in plain.sample_ids])
    measured = replace(plain, cosine=plain.cosine + 10 * of_tea[:, None])
    for n, i in enumerate(items):
        often: VerdictValue = "complied" if items[i].suite == "tea" else "refused"
        seldom: VerdictValue = "refused" if often == "complied" else "complied"
        items[i] = replace(items[i], group=i, verdict=often if n % 10 < 7 else seldom)
    rows = rows_of(measured, items, "cake", "tea")
    complied = [items[measured.sample_ids[row]].verdict == "complied" for row in rows]
    naive = auroc(measured.cosine[rows].mean(1).tolist(), complied)
    pooled = separate_outcomes(measured, items)[1]
    assert naive.low is not None
    assert naive.low > 0.6
    assert pooled["auroc"]["low"] < 0.5 < pooled["auroc"]["high"]


def outcome_items(*suites: tuple[str, int, int, int]) -> dict[str, Measured]:
    """(suite, things that complied, things that refused, answers about each thing)."""
    items: dict[str, Measured] = {}
    for suite, complied, refused, answers in suites:
        for thing in range(complied + refused):
            for _ in range(answers):
                verdict: VerdictValue = "complied" if thing < complied else "refused"
                known = Measured(suite, "harmful", f"thing {thing}", verdict)
                items[f"tea/{len(items)}"] = known
    return items


def test_things_and_not_answers_are_counted() -> None:
    items = outcome_items(("tea", LEAST_ITEMS - 1, 9, 3))
    records, pooled = separate_outcomes(measurement(len(items)), items)
    for record in records:
        assert record["auroc"] == {"value": None, "low": None, "high": None, "n": 39}
        assert record["gap"].startswith("12 answers about 4 things complied and 27 about 9 refused")
        assert (record["n_complied"], record["n_refused"]) == (12, 27)
    assert "none of 1 suites has answers" in pooled["gap"]
    assert (pooled["auroc"]["value"], pooled["suites"]) == (None, [])
    enough = outcome_items(("tea", LEAST_ITEMS, LEAST_ITEMS, 1))
    records, pooled = separate_outcomes(measurement(len(enough)), enough)
    assert [record["gap"] for record in (*records, pooled)] == [None] * 4


def test_only_suites_with_enough_things_are_pooled() -> None:
    items = outcome_items(("few", 2, 8, 2), ("enough", 6, 7, 2))
    measured = measurement(len(items))
    _, pooled = separate_outcomes(measured, items)
    alone = {i: item for i, item in items.items() if item.suite == "enough"}
    kept = [row for row, i in enumerate(measured.sample_ids) if i in alone]
    just = ShiftMeasurement(tuple(alone), LAYERS, *(getattr(measured, name)[kept] for name in
                            ("norm", "cosine", "coefficient")))  # fmt: skip
    assert pooled == separate_outcomes(just, alone)[1]
    assert (pooled["suites"], pooled["n_complied"], pooled["n_refused"]) == (["enough"], 12, 14)


def test_the_mean_shift_weighs_things_alike_and_leaves_benign_items_out() -> None:
    measured, items = measurement(80), known(80)
    by_thing: dict[str, list[float]] = {}
    for row, i in enumerate(measured.sample_ids):
        if items[i].label == "harmful":
            by_thing.setdefault(items[i].group, []).append(float(measured.coefficient[row, 1]))
    found = mean_shift(measured, items)
    assert found["layer"] == 2
    assert found["value"] == pytest.approx(np.mean([np.mean(v) for v in by_thing.values()]))
    assert found["n"] == 7
    interval = ttest_1samp([np.mean(v) for v in by_thing.values()], 0).confidence_interval()  # pyright: ignore
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))
