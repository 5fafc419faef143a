"""What `diagnosis.json` may hold, what is an error, and what becomes a stated gap."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from sample_diagnosis import sample_diagnosis

from vlmend.errors import RunError
from vlmend.report.diagnosis.read import read_diagnosis
from vlmend.report.diagnosis.records import NOT_MEASURED, Value

EMPTY = {"schema": 1, "kind": "diagnosis"}


def test_everything_is_read() -> None:
    diagnosis = sample_diagnosis()
    records = read_diagnosis(diagnosis)
    assert [item.style for item in records.sets.items] == [
        "text-safe",
        "text-unsafe",
        "vl-safe",
        "vl-unsafe",
    ]
    assert len(records.probes.items) == 6
    assert len(records.maps.items) == 12
    assert len(records.maps.items[0].points) == 120
    assert len(records.exits.rows.items) == 9
    assert len(records.exits.decoder.items) == 54
    first = diagnosis["probes"]["by_layer"][0]["text"]
    assert records.probes.items[0].rates["text"] == Value(
        first["rate"], first["low"], first["high"], 120
    )
    assert records.gaps == tuple(diagnosis["gaps"])


def test_empty_document_has_a_reason_for_every_section() -> None:
    records = read_diagnosis(EMPTY)
    for section in (
        records.sets,
        records.probes,
        records.maps,
        records.shift,
        records.separation,
        records.self_classification,
        records.estimators,
        records.stability,
        records.findings,
        records.cost,
    ):
        assert (section.items, section.gap) == ((), NOT_MEASURED)
    assert records.exits.gap == NOT_MEASURED


@pytest.mark.parametrize("section", ["probes", "maps", "exits", "sets", "findings", "cost"])
def test_stated_gap_is_kept(section: str) -> None:
    records = read_diagnosis(sample_diagnosis() | {section: {"gap": "only one class"}})
    assert getattr(records, section).gap == "only one class"


def test_numbers_that_are_not_finite_are_missing_and_said() -> None:
    diagnosis = sample_diagnosis()
    diagnosis["probes"]["by_layer"][2]["text"]["rate"] = float("nan")
    diagnosis["shift"][0]["cosines"][1][4] = float("inf")
    diagnosis["maps"][0]["points"][7][1] = float("-inf")
    records = read_diagnosis(diagnosis)
    assert records.probes.items[2].rates["text"] is None
    assert len(records.shift.items[0].cosines[1]) == 87
    assert len(records.maps.items[0].points) == 119
    assert records.gaps[-1] == (
        "3 numbers were not finite and left out: probes.by_layer[2].text.rate, "
        "maps[0].points[7][1], shift[0].cosines[1][4]."
    )


def test_many_places_are_counted() -> None:
    diagnosis = sample_diagnosis()
    for row in diagnosis["estimators"][:8]:
        row["cosine"] = float("nan")
    assert "estimators[4].cosine and 3 more." in read_diagnosis(diagnosis).gaps[-1]


def test_rates_of_low_coverage_are_withheld() -> None:
    diagnosis = sample_diagnosis()
    diagnosis["exits"]["rows"][3]["coverage"] = 0.9799
    diagnosis["exits"]["rows"][4]["coverage"] = 0.98
    rows = read_diagnosis(diagnosis).exits.rows.items
    assert rows[3].withheld == "exit 3: coverage 97.9 % is below 98 %"
    assert [rows[3].values[name] for name in ("asr", "refusal", "incoherent")] == [None] * 3
    assert rows[3].values["length"] is not None
    assert rows[4].values["asr"] is not None


def _set(path: tuple[str | int, ...], value: object) -> Callable[[dict[str, Any]], None]:
    def change(diagnosis: dict[str, Any]) -> None:
        place: Any = diagnosis
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(("schema",), 2), "schema 2"),
        (_set(("kind",), "audit"), "kind 'audit'"),
        (_set(("sets",), "four"), "section 'sets' must be a list"),
        (_set(("sets", 0, "modality"), None), r"sets\[0\].modality must be a text"),
        (_set(("sets", 0), 3), r"sets\[0\] must be an object"),
        (_set(("probes",), []), "section 'probes' must be an object"),
        (_set(("probes", "by_layer", 1, "layer"), "x"), r"by_layer\[1\].layer must be a whole"),
        (_set(("probes", "by_layer", 1, "text"), "x"), r"by_layer\[1\].text must be an object"),
        (_set(("probes", "by_layer", 0, "confusion", "text"), {}), "unsafe_as_unsafe"),
        (_set(("maps", 0, "points", 0), [1, 2]), r"points must be a list of \[x, y, set"),
        (_set(("shift", 0, "cos_median"), [0.1]), "6 layers but 1 values in 'cos_median'"),
        (_set(("shift", 0, "cosines"), [[0.1]]), "6 layers but cosines of 1"),
        (_set(("findings", 0, "verdict"), "proved"), "'proved'. Allowed: reproduced"),
        (_set(("exits", "rows"), {"a": 1}), "section 'exits.rows' must be a list"),
    ],
)
def test_malformed_sections_are_errors(
    change: Callable[[dict[str, Any]], None], message: str
) -> None:
    diagnosis = sample_diagnosis()
    change(diagnosis)
    with pytest.raises(RunError, match=message):
        read_diagnosis(diagnosis)


def test_input_is_untouched() -> None:
    diagnosis = sample_diagnosis()
    diagnosis["exits"]["rows"][0]["asr"]["rate"] = float("inf")
    before = copy.deepcopy(diagnosis)
    read_diagnosis(diagnosis)
    assert diagnosis == before
