"""What every arm did at every vision exit, item by item, as finished runs keep it.

Audits keep verdicts (`verdicts.<judge>.jsonl`), diagnoses keep `exit_items.jsonl`: one line per
item and exit, with the verdict and the scores of its answer, and of questions about pictures
whether they were answered right with their own picture and with another's. Needs no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmend.errors import RunError
from vlmend.evals.compare import (
    CellVerdicts,
    label_arms,
    read_cells,
    refuse_repeated,
    require_alike,
    require_finished,
)
from vlmend.runs import JsonLines, encode_json_text, read_json, replacing
from vlmend.suites.registry import source_name

EXIT_ITEMS_FILE = "exit_items.jsonl"

RATES: Mapping[str, str] = {
    "asr": "complied",
    "partial": "partial",
    "refusal": "refused",
    "incoherent": "incoherent",
}
"""Measure -> the verdict of which it is the share."""

SCORES = ("reward", "toxicity")
QUESTIONS = ("accuracy", "drop")
"""Of questions about pictures: answered right, and how much of that another picture costs."""

MEASURES = (*RATES, *SCORES, *QUESTIONS)

Numbers = Mapping[str, float | None]
"""Item -> its number; None where it could not be scored."""


@dataclass(frozen=True, slots=True)
class ArmItems:
    """One arm on one suite.

    Attributes:
        name: Unique among the arms.
        at: Exit -> measure -> numbers of items.
        things: Item -> what it shares with others (`groups.group_of`).
    """

    name: str
    at: Mapping[int, Mapping[str, Numbers]]
    things: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SuiteItems:
    """One suite at the vision exits, the base arm first.

    Attributes:
        suite: Its name.
        judge: Who gave the verdicts.
        kind: What complying means: "harmful", "benign" or "utility".
        default_exit: The exit of the model as it is.
        num_blocks: Vision blocks.
        arms: The arms that were measured at two exits or more.
    """

    suite: str
    judge: str
    kind: str
    default_exit: int
    num_blocks: int
    arms: tuple[ArmItems, ...]


def write_exit_items(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `exit_items.jsonl`, whole or not at all.

    Args:
        folder: The run folder.
        rows: One per item and exit: suite, judge, exit, sample_id, group, and either `value` (the
            verdict) with the scores, or `right` and `replaced`.

    Raises:
        RunError: The disk is full or the folder cannot be written.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with replacing(folder / EXIT_ITEMS_FILE) as temporary:
        temporary.write_bytes(encode_json_text(text))


def are_diagnoses(runs: Sequence[Path]) -> bool:
    """Whether runs are diagnoses, and not audits.

    Raises:
        RunError: Some are, some are not.
    """
    found = [run for run in runs if (run / "diagnosis.json").is_file()]
    if found and len(found) < len(runs):
        other = next(run for run in runs if run not in found)
        raise RunError(
            f"{str(found[0])!r} is a diagnosis and {str(other)!r} is not: they measure other "
            "things. Give folders of `vlmend audit`, or of `vlmend diagnose`."
        )
    return bool(found)


def read_exit_items(runs: Sequence[Path]) -> list[SuiteItems]:
    """Read the exits of finished runs, all audits or all diagnoses.

    Args:
        runs: Run folders. The first run's first arm is the base. Audits must have passed
            `compare.compare_runs`, which refuses other items and settings.

    Returns:
        The suites that the base answered at two exits or more.

    Raises:
        RunError: A folder is no finished run, is given twice, holds other items, another judge or
            other settings than the first, or its files do not belong together.
    """
    read = _read_diagnoses if are_diagnoses(runs) else _read_audits
    try:
        return read(runs)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"the files of one of {', '.join(map(str, runs))} lack something that the exits need "
            f"({error!r}). Run the same command there again with --resume."
        ) from error


def _names(runs: Sequence[Path], arms: Sequence[Sequence[str]]) -> list[list[str]]:
    """Arms by name; where two runs have the same, with the run's."""
    every = [name for own in arms for name in own]
    return [
        [name if every.count(name) == 1 else label for name, label in zip(own, labels, strict=True)]
        for own, labels in zip(arms, label_arms(runs, arms), strict=True)
    ]


def _anatomy(runs: Sequence[Path], records: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Default exit and vision blocks, which must be the same everywhere."""
    facts = [
        {key: record["model"][key] for key in ("default_exit", "num_vision_blocks")}
        for record in records
    ]
    require_alike(runs, facts)
    return int(facts[0]["default_exit"]), int(facts[0]["num_vision_blocks"])


def _assemble(
    arms: Iterable[ArmItems], suite: str, judge: str, kind: str, anatomy: tuple[int, int]
) -> SuiteItems | None:
    """A suite, if its base was measured at two exits or more."""
    first, *others = arms
    if len(first.at) < 2:
        return None
    kept = (first, *(arm for arm in others if len(arm.at) > 1))
    return SuiteItems(suite, judge, kind, *anatomy, kept)


# ---- audits


def _read_audits(runs: Sequence[Path]) -> list[SuiteItems]:
    by_run = [read_cells(run) for run in runs]
    stored = [read_json(run / "metrics.json") for run in runs]
    kinds = {cell["suite"]: cell["suite_kind"] for m in stored for cell in m.get("cells", ())}
    base_name, base = next(iter(by_run[0].items()))
    for arms in by_run[1:]:
        # Every audit measures the base; the same verdicts once more are no other arm.
        if arms.get(base_name) == base:
            del arms[base_name]
    places = dict.fromkeys((j, s) for j, s, exit_layer in base if exit_layer is not None)
    if not places:
        return []
    anatomy = _anatomy(runs, stored)
    names = _names(runs, [list(arms) for arms in by_run])
    cells = [
        (name, of_arm)
        for own, arms in zip(names, by_run, strict=True)
        for name, of_arm in zip(own, arms.values(), strict=True)
    ]
    found = [
        _assemble(
            [_audited_arm(name, of_arm, judge, suite, anatomy[0]) for name, of_arm in cells],
            suite,
            judge,
            kinds[suite],
            anatomy,
        )
        for judge, suite in places
    ]
    return [suite for suite in found if suite is not None]


def _audited_arm(
    name: str,
    cells: Mapping[tuple[str, str, int | None], CellVerdicts],
    judge: str,
    suite: str,
    default_exit: int,
) -> ArmItems:
    # The default path is the default exit, unless that was asked for by its number too.
    at = {
        default_exit if e is None else e: cell
        for (j, s, e), cell in cells.items()
        if (j, s) == (judge, suite)
    }
    things = {i: cell.groups.get(i, i) for cell in at.values() for i in cell.values}
    return ArmItems(name, {e: _shares(cell.values) for e, cell in sorted(at.items())}, things)


def _shares(verdicts: Mapping[str, str]) -> dict[str, Numbers]:
    """Per rate: 1 where an answer has the verdict, 0 where another, None where none."""
    return {
        measure: {
            item: None if value == "unscored" else float(value == verdict)
            for item, value in verdicts.items()
        }
        for measure, verdict in RATES.items()
    }


# ---- diagnoses


def _read_diagnoses(runs: Sequence[Path]) -> list[SuiteItems]:
    refuse_repeated(runs)
    configs = [require_finished(run) for run in runs]
    records = [read_json(run / "diagnosis.json") for run in runs]
    for run, record in zip(runs, records, strict=True):
        _require_exits(run, record["exits"])
    require_alike(
        runs,
        [_comparable(c, r["exits"]) for c, r in zip(configs, records, strict=True)],
    )
    anatomy = _anatomy(runs, records)
    arms = [[str(record.get("arm", {}).get("name", "base"))] for record in records]
    found = _assemble(
        [
            _diagnosed_arm(name, JsonLines(run / EXIT_ITEMS_FILE).read())
            for (name,), run in zip(_names(runs, arms), runs, strict=True)
        ],
        records[0]["exits"]["suite"],
        records[0]["exits"]["judge"],
        "harmful",
        anatomy,
    )
    return [] if found is None else [found]


def _require_exits(run: Path, exits: Mapping[str, Any]) -> None:
    if "rows" not in exits:
        raise RunError(
            f"the diagnosis in {str(run)!r} holds no vision exits: {exits.get('gap')}. Diagnose "
            "with --exit-suite."
        )
    if not (run / EXIT_ITEMS_FILE).is_file():
        raise RunError(
            f"the diagnosis in {str(run)!r} has no {EXIT_ITEMS_FILE}. Run the same command there "
            "again with --resume: it is made from the answers that are there."
        )


def _comparable(config: Mapping[str, Any], exits: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal: items, judge, answer length and what scores answers."""
    plan = config["plan"]
    vqa = source_name(plan["vqa_suite"] or "")
    return {
        "suites": {name: config["suites"][name] for name in (exits["suite"], vqa) if name},
        "judge": exits["judge"],
        **{key: plan[key] for key in ("max_new_tokens", "reward_model", "toxicity")},
    }


def _diagnosed_arm(name: str, rows: Sequence[Mapping[str, Any]]) -> ArmItems:
    at: dict[int, dict[str, dict[str, float | None]]] = {}
    things: dict[str, str] = {}
    for row in rows:
        # Questions are of another suite, which may number its items alike.
        item = f"{row['suite']} {row['sample_id']}"
        things[item] = row["group"]
        here = at.setdefault(row["exit"], {})
        for measure, number in _numbers(row).items():
            here.setdefault(measure, {})[item] = number
    return ArmItems(name, dict(sorted(at.items())), things)


def _numbers(row: Mapping[str, Any]) -> dict[str, float | None]:
    if "value" not in row:
        right, replaced = row["right"], row["replaced"]
        drop = None if right is None or replaced is None else right - replaced
        return {"accuracy": right, "drop": drop}
    shares = {m: found[""] for m, found in _shares({"": row["value"]}).items()}
    return shares | {score: row[score] for score in SCORES if score in row}
