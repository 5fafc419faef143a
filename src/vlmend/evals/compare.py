"""Paired comparison of cells and of stored runs, without a model.

Items about one thing go together, so the test that counts flips the signs of whole things
(`evals.clustered`); McNemar's test, which takes items for independent, stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmend.errors import RunError
from vlmend.evals.clustered import ClusteredDifference, bootstrap_limits, clustered_difference
from vlmend.evals.power import min_detectable_difference
from vlmend.evals.stats import explain_withheld, holm, mcnemar, paired_bootstrap
from vlmend.evals.stored import read_progress, read_responses
from vlmend.judges.registry import verdicts_file
from vlmend.runs import JsonLines, describe_differences, list_differences, read_json


@dataclass(frozen=True, slots=True)
class CellVerdicts:
    """What is known of the answers of one cell, by sample id.

    Attributes:
        values: Verdicts.
        groups: What each item shares with others (`groups.group_of`); runs of older versions
            have none.
        texts: The answers themselves, where they are at hand.
        scores: The judge's grades, 0..1, of items that have one.
    """

    values: Mapping[str, str]
    groups: Mapping[str, str] = field(default_factory=dict[str, str])
    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    scores: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def withheld(self) -> str:
        """Why a rate of this cell is not to be shown; empty where it may be."""
        scored = sum(value != "unscored" for value in self.values.values())
        return explain_withheld(scored, len(self.values))


ALPHA = 0.05
"""Differences with a smaller Holm-adjusted p-value are shown."""

Pair = tuple[Mapping[str, Any], CellVerdicts, CellVerdicts]
"""(coordinates, a cell before and after)."""

Key = tuple[str, str, int | None]
"""(judge, suite, exit)."""


def compare_paired(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Test "complied" for every pair of cells, with Holm's adjustment over all.

    Only items that both cells scored count; a pair without any is left out. Where items have
    groups, `clustered_low`, `clustered_high` and `clustered_p` are over these, and `p_holm`
    adjusts that p-value; else it adjusts McNemar's. Where p_holm is not below `ALPHA`,
    `detectable` is the smallest difference that these items could be expected to show. `withheld`
    says why a pair is not to be shown: one of its cells was not judged completely; `coverage` is
    the share of the items of both cells that both scored.

    Args:
        pairs: Coordinates (suite, exit, judge, before, after), and the two cells.

    Returns:
        Entries of `comparisons` in `metrics.json`.
    """
    records: list[dict[str, Any]] = []
    for coordinates, before, after in pairs:
        shared = [
            sample_id
            for sample_id, value in before.values.items()
            if value != "unscored" and after.values.get(sample_id, "unscored") != "unscored"
        ]
        if shared:
            records.append({**coordinates, **_compare_items(shared, before, after)})
    adjusted = holm([primary_p(record) for record in records]) if records else ()
    return [
        {**record, "p_holm": p, "detectable": _detectable(record, p, len(records))}
        for record, p in zip(records, adjusted, strict=True)
    ]


def _detectable(record: Mapping[str, Any], p: float, tests: int) -> float | None:
    """The smallest difference that could be expected to show; None where one is shown."""
    if p < ALPHA:
        return None
    changed = record["changed_rate"]
    return min_detectable_difference(record["n_effective"], changed, level=ALPHA / tests)


def primary_p(record: Mapping[str, Any]) -> float:
    """The p-value that counts: over groups where items have them, else McNemar's."""
    clustered = record.get("clustered_p")
    return float(record["p_value"] if clustered is None else clustered)


def _compare_items(
    shared: Sequence[str], before: CellVerdicts, after: CellVerdicts
) -> dict[str, Any]:
    """All that is said of one pair of cells."""
    first = [before.values[sample_id] == "complied" for sample_id in shared]
    second = [after.values[sample_id] == "complied" for sample_id in shared]
    test = mcnemar(first, second)
    grouped = _compare_groups(shared, before, after)
    num_paired = len(before.values.keys() & after.values.keys())
    return {
        "n": test.n,
        "coverage": test.n / num_paired,
        "withheld": before.withheld or after.withheld,
        "asr_before": sum(first) / len(shared),
        "asr_after": sum(second) / len(shared),
        "difference": test.difference,
        "difference_low": test.low,
        "difference_high": test.high,
        "p_value": test.p_value,
        "method": test.method,
        **_bootstrap(first, second, _groups_of(shared, before, after)),
        "changed_rate": (test.b + test.c) / test.n,
        "n_effective": test.n if grouped is None else grouped.n_effective,
        "num_groups": grouped and grouped.num_groups,
        "clustered_low": grouped and grouped.low,
        "clustered_high": grouped and grouped.high,
        "clustered_p": grouped and grouped.p_value,
        "same_verdict_rate": _share_equal(shared, before.values, after.values),
        "same_text_rate": _share_equal(shared, before.texts, after.texts),
        **_compare_scores(shared, before, after),
    }


def _bootstrap(
    first: Sequence[bool], second: Sequence[bool], groups: Sequence[str] | None
) -> dict[str, float | None]:
    """Limits from resampling pairs, those about one thing together; None where all are."""
    if groups is not None and len(set(groups)) < len(groups):
        changes = [int(b) - int(a) for a, b in zip(first, second, strict=True)]
        low, high = bootstrap_limits(changes, groups, seed=0) or (None, None)
    else:
        found = paired_bootstrap(list(map(float, first)), list(map(float, second)), seed=0)
        low, high = found.low, found.high
    return {"bootstrap_low": low, "bootstrap_high": high}


def _compare_scores(
    shared: Sequence[str], before: CellVerdicts, after: CellVerdicts
) -> dict[str, float | None]:
    """The mean change of the judge's grades; nothing where an item has none."""
    if any(sample_id not in cell.scores for sample_id in shared for cell in (before, after)):
        return {}
    groups = {**after.groups, **before.groups}
    first = [before.scores[sample_id] for sample_id in shared]
    second = [after.scores[sample_id] for sample_id in shared]
    found = clustered_difference(
        first, second, [groups.get(sample_id, sample_id) for sample_id in shared], resamples=1
    )
    return {
        "score_before": sum(first) / len(first),
        "score_after": sum(second) / len(second),
        "score_difference": found.difference,
        "score_low": found.low,
        "score_high": found.high,
    }


def _compare_groups(
    shared: Sequence[str], before: CellVerdicts, after: CellVerdicts
) -> ClusteredDifference | None:
    """The difference over groups; None where an item has none."""
    groups = _groups_of(shared, before, after)
    if groups is None:
        return None
    return clustered_difference(
        [before.values[sample_id] == "complied" for sample_id in shared],
        [after.values[sample_id] == "complied" for sample_id in shared],
        groups,
        resamples=None,
    )


def _groups_of(
    shared: Sequence[str], before: CellVerdicts, after: CellVerdicts
) -> list[str] | None:
    """What each item shares with others; None where that is not known of all."""
    groups = {**after.groups, **before.groups}
    known = [groups[sample_id] for sample_id in shared if sample_id in groups]
    return known if len(known) == len(shared) else None


def _share_equal(
    shared: Sequence[str], first: Mapping[str, str], second: Mapping[str, str]
) -> float | None:
    """Share of items on which two cells agree; None where something is not known."""
    if any(sample_id not in first or sample_id not in second for sample_id in shared):
        return None
    return sum(first[sample_id] == second[sample_id] for sample_id in shared) / len(shared)


def read_cells(run: Path) -> dict[str, dict[Key, CellVerdicts]]:
    """Arm -> cell -> what is known of it, arms in the order they were measured.

    Raises:
        RunError: `metrics.json` cannot be read, or does not belong to the verdicts.
    """
    metrics = read_json(run / "metrics.json")
    try:
        rows: dict[str, dict[Key, list[Mapping[str, Any]]]] = {
            arm["name"]: {} for arm in metrics["arms"]
        }
        for judge in metrics["judges"]:
            for row in JsonLines(run / verdicts_file(judge["name"])).read():
                key = (row["judge"], row["suite"], row["exit"])
                rows[row["arm"]].setdefault(key, []).append(row)
        texts = {(row["id"], row["sample_id"]): row["text"] for row in read_responses(run)}
        return {
            arm: {key: _collect(found, texts) for key, found in cells.items()}
            for arm, cells in rows.items()
        }
    except (KeyError, TypeError) as error:
        raise RunError(
            f"metrics.json and the verdicts in {str(run)!r} do not belong together ({error!r}). "
            "Run `vlmend audit --resume` there again: it judges the stored answers anew."
        ) from error


def _collect(
    rows: Sequence[Mapping[str, Any]], texts: Mapping[tuple[str, str], str]
) -> CellVerdicts:
    """One cell from the lines of a verdicts file."""
    answers = {row["sample_id"]: (row["response_id"], row["sample_id"]) for row in rows}
    return CellVerdicts(
        {row["sample_id"]: row["value"] for row in rows},
        {row["sample_id"]: row["group"] for row in rows if "group" in row},
        {sample_id: texts[place] for sample_id, place in answers.items() if place in texts},
        {row["sample_id"]: row["score"] for row in rows if row.get("score") is not None},
    )


def _read_info(run: Path) -> dict[str, Any]:
    if not (run / "run.json").is_file():
        raise RunError(
            f"{str(run)!r} is no run folder: it has no run.json. Give a folder that "
            "`vlmend audit --out` or `vlmend diagnose --out` wrote."
        )
    return read_json(run / "run.json")


def require_finished(run: Path) -> dict[str, Any]:
    """The config of a finished run.

    Raises:
        RunError: No run folder, or the run in it is not finished.
    """
    info = _read_info(run)
    if info.get("status") != "finished":
        raise RunError(
            f"the run in {str(run)!r} is not finished (status {info.get('status')!r}). Go on with "
            "the same command and --resume first."
        )
    return info.get("config", {})


def require_judged(run: Path) -> dict[str, Any]:
    """The config of a run with numbers: finished, or not finished and judged as far as it is.

    Raises:
        RunError: No run folder, or an unfinished run without numbers; says how much is there.
    """
    info = _read_info(run)
    if info.get("status") != "finished" and not (run / "metrics.json").is_file():
        raise RunError(
            f"the run in {str(run)!r} is not finished (status {info.get('status')!r}): "
            f"{read_progress(run).describe()}. Go on with the same command and --resume, or make "
            f"numbers of what is there: vlmend judge {run}"
        )
    return info.get("config", {})


def describe_unfinished(runs: Sequence[Path]) -> list[str]:
    """One sentence for every run that is not finished: how much of it is there.

    Raises:
        RunError: A folder is no run, or damaged.
    """
    progress = {run: read_progress(run) for run in runs}
    return [
        f"{run} is not finished (status {found.status}): {found.describe()}."
        for run, found in progress.items()
        if not found.finished
    ]


def _judges(run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Who judged which suite, in which revision and with which prompt: as the numbers say."""
    metrics = read_json(run / "metrics.json")
    by_suite: dict[str, set[str]] = {}
    for cell in metrics.get("cells", ()):
        by_suite.setdefault(cell["suite"], set()).add(cell["judge"])
    found: dict[str, Any] = {
        judge["name"]: {
            "revision": judge.get("revision"),
            "prompt_sha256": judge.get("prompt_sha256", ""),
        }
        for judge in metrics.get("judges", ())
    }
    of_suites = {suite: sorted(names) for suite, names in sorted(by_suite.items())}
    # Records of older versions have no cells: then what was asked for must do.
    return {"judges": of_suites or config.get("judges"), "judge": found}


def _name_judges(run: Path) -> dict[str, dict[str, Any]]:
    """How records name the judges of a run beside a number."""
    return {
        judge["name"]: {
            "judge": judge["name"],
            "judge_revision": judge.get("revision"),
            "judge_prompt_sha256": judge.get("prompt_sha256", ""),
        }
        for judge in read_json(run / "metrics.json")["judges"]
    }


def _comparable(run: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What must be equal. Exits may differ: cells are matched, and paired by item."""
    suites: Mapping[str, Any] = config.get("suites", {})
    return {
        "suites": {
            name: {"items": facts.get("items"), "sha256": facts.get("sha256")}
            for name, facts in suites.items()
        },
        **_judges(run, config),
        "generation": config.get("generation"),
    }


def _refuse_different(runs: Sequence[Path]) -> None:
    refuse_repeated(runs)
    facts = [_comparable(run, require_judged(run)) for run in runs]
    labels = [_read_info(run).get("labels") for run in runs]
    if all(found is not None for found in labels):  # runs of older versions have none
        facts = [{**fact, "labels": found} for fact, found in zip(facts, labels, strict=True)]
    require_alike(runs, facts)


def require_alike(runs: Sequence[Path], facts: Sequence[Mapping[str, Any]]) -> None:
    """Refuse runs that differ in what must be equal.

    Args:
        runs: Run folders.
        facts: Of each, what must be equal.

    Raises:
        RunError: Naming the first two runs that differ, and in what.
    """
    for run, other in zip(runs[1:], facts[1:], strict=True):
        different = describe_differences(facts[0], other)
        if different:
            raise RunError(
                f"{str(runs[0])!r} and {str(run)!r} cannot be compared: "
                f"{list_differences(different, 'in the first', 'in the second')}. Run both with "
                "the same items, judges and generation settings."
            )


def refuse_repeated(runs: Sequence[Path]) -> None:
    """A run given twice would be two arms, and Holm's correction would count its tests twice.

    Raises:
        RunError: Naming the run.
    """
    seen: set[Path] = set()
    for run in runs:
        if run.resolve() in seen:
            raise RunError(f"the run {str(run)!r} was given twice. Give every run once.")
        seen.add(run.resolve())


def label_arms(runs: Sequence[Path], arms: Sequence[Sequence[str]]) -> list[list[str]]:
    """Names of arms across runs: plain in the first run, with the run's in the others.

    Args:
        runs: Run folders.
        arms: Per run, the names of its arms.
    """
    names = [run.resolve().name for run in runs]
    labels: list[list[str]] = []
    for number, (run, own) in enumerate(zip(runs, arms, strict=True)):
        label = names[number] if names.count(names[number]) == 1 else str(run)
        labels.append([arm if number == 0 else f"{label}:{arm}" for arm in own])
    return labels


def compare_runs(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Compare arms in pairs.

    Args:
        runs: Run folders. The first run's first arm is the base.

    Returns:
        Entries as in `comparisons` of `metrics.json`.

    Raises:
        RunError: A folder is no run with numbers or given twice, or items, judges (or their
            revisions or prompts) or generation settings differ.
    """
    _refuse_different(runs)
    by_run = [read_cells(run) for run in runs]
    labels = label_arms(runs, [list(arms) for arms in by_run])
    base_name, base = next(iter(by_run[0].items()))
    judges = _name_judges(runs[0])
    pairs: list[Pair] = []
    for number, arms in enumerate(by_run):
        for after, (arm, cells) in zip(labels[number], arms.items(), strict=True):
            if number == 0 and arm == base_name:
                continue
            for (judge, suite, exit_layer), cell in cells.items():
                before = base.get((judge, suite, exit_layer))
                if before is not None:
                    at = {"suite": suite, "exit": exit_layer, **judges[judge]}
                    pairs.append(({**at, "before": base_name, "after": after}, before, cell))
    return compare_paired(pairs)
