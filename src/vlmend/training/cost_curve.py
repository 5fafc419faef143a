"""What a training cost, and how safe the model was by then: the ledger as a record.

Made from `steps.jsonl` and `watch.jsonl` of a training folder; needs no model. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmend.errors import RunError
from vlmend.training.meter import cost_to_reach, sum_ledger

SAFE_ASR = 0.08
"""The attack success rate that a repair is to reach; textual unlearning claims it for itself."""

_COSTS = ("seconds", "flops", "flops_estimated", "tokens", "images")

_NOTHING_SPENT = {"seconds": 0, "flops": 0, "flops_estimated": False, "tokens": 0, "images": 0}
"""Before the first step."""


def training_record(
    name: str,
    records: Sequence[Mapping[str, Any]],
    watch: Sequence[Mapping[str, Any]] = (),
    *,
    suite: str | None = None,
    asr: float = SAFE_ASR,
) -> dict[str, Any]:
    """One entry of `arms[].training` in `metrics.json`.

    Args:
        name: Of the repair.
        records: Rows of `steps.jsonl`.
        watch: Rows of `watch.jsonl`; only those with an "asr" are points of the curve.
        suite: What was watched.
        asr: The rate that is to be reached.

    Returns:
        "repair", "ledger" (totals), "watch" ("suite", "points": rate with limits and the cost
        until then) and "reached" ("asr", and the cost until it was and stayed so: "steps" and
        the rest are None if it did not); the last two are None where nothing was watched.

    Raises:
        RunError: Steps are missing, so that a sum would be too low.
    """
    points = [row for row in watch if row.get("asr") is not None]
    if points and (missing := max(row["step"] for row in points) - len(records)) > 0:
        raise RunError(
            f"the training of {name!r} was watched after {missing} more steps than there are "
            "records of. Give the whole steps.jsonl of that run."
        )
    return {
        "repair": name,
        "ledger": sum_ledger(records).record(),
        "watch": {"suite": suite, "points": [_point(row, records) for row in points]}
        if points
        else None,
        "reached": _reached(records, points, asr) if points else None,
    }


def _point(row: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    spent = sum_ledger(r for r in records if r["step"] <= row["step"])
    costs = spent.record() if spent.steps else _NOTHING_SPENT
    return {
        "step": row["step"],
        "asr": row["asr"],
        "low": row.get("low"),
        "high": row.get("high"),
        **{name: costs[name] for name in _COSTS},
    }


def _reached(
    records: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]], asr: float
) -> dict[str, Any]:
    found = cost_to_reach(records, points, asr=asr)
    if found is None:
        return {"asr": asr, "steps": None, **dict.fromkeys(_COSTS)}
    steps, spent = found
    costs = spent.record() if steps else _NOTHING_SPENT
    return {"asr": asr, "steps": steps, **{name: costs[name] for name in _COSTS}}
