"""Paired comparison of cells and of stored runs, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmend.errors import RunError
from vlmend.evals.stats import holm, mcnemar
from vlmend.runs import JsonLines, describe_differences, list_differences, read_json

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
    try:
        found: dict[str, dict[Key, dict[str, str]]] = {arm["name"]: {} for arm in metrics["arms"]}
        for judge in metrics["judges"]:
            for row in JsonLines(run / f"verdicts.{judge['name']}.jsonl").read():
                key = (row["judge"], row["suite"], row["exit"])
                found[row["arm"]].setdefault(key, {})[row["sample_id"]] = row["value"]
    except (KeyError, TypeError) as error:
        raise RunError(
            f"metrics.json and the verdicts in {str(run)!r} do not belong together ({error!r}). "
            "Run `vlmend audit --resume` there again: it judges the stored answers anew."
        ) from error
    return found


def _require_finished(run: Path) -> dict[str, Any]:
    """The config of a finished run."""
    if not (run / "run.json").is_file():
        raise RunError(
            f"{str(run)!r} is no run folder: it has no run.json. Give a folder that "
            "`vlmend audit --out` wrote."
        )
    info = read_json(run / "run.json")
    if info.get("status") != "finished":
        raise RunError(
            f"the run in {str(run)!r} is not finished (status {info.get('status')!r}). Go on with "
            "`vlmend audit ... --resume` first."
        )
    return info.get("config", {})


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal. Exits may differ: cells are matched, and paired by item."""
    suites: Mapping[str, Any] = config.get("suites", {})
    return {
        "suites": {
            name: {"items": facts.get("items"), "sha256": facts.get("sha256")}
            for name, facts in suites.items()
        },
        "judges": config.get("judges"),
        "generation": config.get("generation"),
    }


def _refuse_different(runs: Sequence[Path]) -> None:
    first, *others = (_comparable(_require_finished(run)) for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        different = describe_differences(first, other)
        if different:
            raise RunError(
                f"{str(runs[0])!r} and {str(run)!r} cannot be compared: "
                f"{list_differences(different, 'in the first', 'in the second')}. Run both with "
                "the same items, judges and generation settings."
            )


def compare_runs(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Compare arms in pairs.

    Args:
        runs: Run folders. The first run's first arm is the base.

    Returns:
        Entries as in `comparisons` of `metrics.json`.

    Raises:
        RunError: A folder is no finished run, or items, judges or generation settings differ.
    """
    _refuse_different(runs)
    by_run = [_verdicts(run) for run in runs]
    base_name, base = next(iter(by_run[0].items()))
    names = [run.resolve().name for run in runs]
    pairs: list[Pair] = []
    for number, (run, arms) in enumerate(zip(runs, by_run, strict=True)):
        label = names[number] if names.count(names[number]) == 1 else str(run)
        for arm, cells in arms.items():
            if number == 0 and arm == base_name:
                continue
            after = arm if number == 0 else f"{label}:{arm}"
            for (judge, suite, exit_layer), values in cells.items():
                before = base.get((judge, suite, exit_layer))
                if before is not None:
                    at = {"suite": suite, "exit": exit_layer, "judge": judge}
                    pairs.append(({**at, "before": base_name, "after": after}, before, values))
    return compare_paired(pairs)
