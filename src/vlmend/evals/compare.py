"""Paired comparison of cells and of stored runs, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmend.errors import RunError
from vlmend.evals.stats import holm, mcnemar
from vlmend.runs import JsonLines, read_json

_MUST_AGREE = ("suites", "judges", "generation")
"""Parts of a run's config that must be equal; model and repairs may differ."""

Pair = tuple[Mapping[str, Any], Mapping[str, str], Mapping[str, str]]
"""(coordinates, verdict values before and after by sample id)."""

Key = tuple[str, str, int | None]
"""(judge, suite, exit)."""


def compare_paired(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """McNemar's test of "complied" for every pair of cells, with Holm's adjustment over all.

    Only items that both cells scored count; a pair without any is left out.

    Args:
        pairs: Coordinates (suite, exit, judge, before, after), and verdict values by sample id.

    Returns:
        Entries of `comparisons` in `metrics.json`.
    """
    records: list[dict[str, Any]] = []
    for coordinates, before, after in pairs:
        shared = [
            sample_id
            for sample_id, value in before.items()
            if value != "unscored" and after.get(sample_id, "unscored") != "unscored"
        ]
        if not shared:
            continue
        first = [before[sample_id] == "complied" for sample_id in shared]
        second = [after[sample_id] == "complied" for sample_id in shared]
        test = mcnemar(first, second)
        records.append(
            {
                **coordinates,
                "n": test.n,
                "asr_before": sum(first) / len(shared),
                "asr_after": sum(second) / len(shared),
                "difference": test.difference,
                "difference_low": test.low,
                "difference_high": test.high,
                "p_value": test.p_value,
                "method": test.method,
            }
        )
    adjusted = holm([record["p_value"] for record in records]) if records else ()
    return [{**r, "p_holm": p} for r, p in zip(records, adjusted, strict=True)]


def _verdicts(run: Path) -> dict[str, dict[Key, dict[str, str]]]:
    """Arm -> cell -> sample id -> verdict value, arms in the order they were measured."""
    metrics = read_json(run / "metrics.json")
    found: dict[str, dict[Key, dict[str, str]]] = {arm["name"]: {} for arm in metrics["arms"]}
    for judge in metrics["judges"]:
        for row in JsonLines(run / f"verdicts.{judge['name']}.jsonl").read():
            key = (row["judge"], row["suite"], row["exit"])
            found[row["arm"]].setdefault(key, {})[row["sample_id"]] = row["value"]
    return found


def _refuse_different(first: Path, other: Path) -> None:
    a, b = (read_json(run / "run.json").get("config", {}) for run in (first, other))
    for part in _MUST_AGREE:
        if a.get(part) != b.get(part):
            raise RunError(
                f"{str(first)!r} and {str(other)!r} cannot be compared: their {part} differ "
                f"({_difference(a.get(part), b.get(part))}). Run both with the same items, judges "
                "and generation settings."
            )


def _difference(a: object, b: object) -> str:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
        return "; ".join(f"{key}: {a.get(key)!r} against {b.get(key)!r}" for key in keys)[:500]
    return f"{a!r} against {b!r}"[:500]


def compare_runs(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Compare arms in pairs.

    Args:
        runs: Run folders. The first run's first arm is the base.

    Returns:
        Entries as in `comparisons` of `metrics.json`.

    Raises:
        RunError: A folder is no finished run, or items, judges or generation settings differ.
    """
    first = runs[0]
    for other in runs[1:]:
        _refuse_different(first, other)
    by_run = [_verdicts(run) for run in runs]
    base_name, base = next(iter(by_run[0].items()))
    pairs: list[Pair] = []
    for number, (run, arms) in enumerate(zip(runs, by_run, strict=True)):
        for arm, cells in arms.items():
            if number == 0 and arm == base_name:
                continue
            name = arm if number == 0 else f"{run.name}:{arm}"
            for (judge, suite, exit_layer), values in cells.items():
                before = base.get((judge, suite, exit_layer))
                if before is not None:
                    at = {"suite": suite, "exit": exit_layer, "judge": judge}
                    pairs.append(({**at, "before": base_name, "after": name}, before, values))
    return compare_paired(pairs)
