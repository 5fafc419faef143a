"""The audit: suites x arms x exits -> responses -> verdicts -> `metrics.json`.

Audit, mend, audit again: the base model and every repaired arm answer the same items, are
judged by the same judges and compared in pairs. What is decided here is only the order of
things; each step lives in its own package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlmend.diagnosis.shift import measure_shift, summarise_shift
from vlmend.errors import ConfigError
from vlmend.evals.answer_flops import estimate_flops
from vlmend.evals.arms import BASE, Arm
from vlmend.evals.asked import Asked, answer_share, count_asked, list_asked, write_items
from vlmend.evals.batch_invariance import check_once, note_check
from vlmend.evals.caveats import list_caveats, list_skips
from vlmend.evals.choices import measure_choices
from vlmend.evals.coherence import measure_coherence
from vlmend.evals.control_arms import control_records
from vlmend.evals.metrics import (
    SCHEMA,
    JudgedCell,
    arm_record,
    benign_part,
    cell_record,
    compare_all,
    cost_records,
    find_cell,
    judge_records,
    judging_records,
    model_record,
    now,
    pick_examples,
    replace_nan,
    software_versions,
    split_by_label,
    suite_kind,
    suite_record,
)
from vlmend.evals.run import (
    SHARE_UNIT,
    Cell,
    CellResponses,
    EvalSettings,
    Evaluation,
    Progress,
    check_images,
    describe_prompt,
    first_batch_size,
    hash_labels,
)
from vlmend.evals.shards import Shard
from vlmend.evals.stored import Place, read_peaks
from vlmend.evals.verdict_files import write_verdicts
from vlmend.judges.registry import get_judge
from vlmend.models.spec import check_exit
from vlmend.models.vlm import GenerationSettings, Vlm
from vlmend.repairs.protocol import require_unseen
from vlmend.repairs.shiftdc.repair import ShiftDC
from vlmend.runs import RunFolder, is_in_use, write_json
from vlmend.suites.registry import Skip, SuiteSpec, absolute_source, find_suite, load_suite
from vlmend.types import Sample, sha256_json

Exits = Literal["default", "all"] | tuple[int, ...]

SHIFT_ITEMS = 96
"""Items per suite on which the modality-induced shift is measured."""

_SHIFT_GROUPS = ("complied", "refused")
"""Verdicts of which the shift is shown side by side."""


@dataclass(frozen=True)
class SuitePlan:
    """One suite of an audit.

    Attributes:
        name: "NAME" or "NAME=FOLDER".
        exits: "default", "all", or exits by number; the default path is always measured.
        limit: First so many items; None for all.
        exit_limit: First so many of those at exits other than the default path; None for all.
    """

    name: str
    exits: Exits = "default"
    limit: int | None = None
    exit_limit: int | None = None


@dataclass(frozen=True)
class AuditPlan:
    """What to measure.

    Attributes:
        suites: Suites with their exits and limits.
        judges: Names of judges; empty for each suite's default judge.
        max_new_tokens: Length limit of an answer.
        batch_size: Prompts a batch; None chooses.
        perplexity: Score every answer at the default path under the base model: does a repaired
            model still write as the base would?
        title: Title of the report.
        batch_check: Find out on a few items whether batching changes answers.
    """

    suites: tuple[SuitePlan, ...]
    judges: tuple[str, ...] = ()
    max_new_tokens: int = 64
    batch_size: int | None = None
    perplexity: bool = False
    title: str = "Safety audit"
    batch_check: bool = True


@dataclass(frozen=True)
class LoadedSuite:
    """A suite whose names, files and pictures are known to be good.

    Attributes:
        plan: What was asked for.
        spec: What the suite is.
        samples: Its items, up to the limit.
        skips: What its loader left out.
    """

    plan: SuitePlan
    spec: SuiteSpec
    samples: tuple[Sample, ...]
    skips: tuple[Skip, ...] = ()


@dataclass
class _Measured:
    """What the run has measured so far."""

    judged: list[JudgedCell] = field(default_factory=list[JudgedCell])
    kinds: dict[str, str] = field(default_factory=dict[str, str])
    peaks: dict[Place, int] = field(default_factory=dict[Place, int])
    flops: dict[tuple[str, str], int | None] = field(
        default_factory=dict[tuple[str, str], int | None]
    )
    perplexities: dict[Cell, list[float | None]] = field(
        default_factory=dict[Cell, list[float | None]]
    )

    @property
    def cells(self) -> list[CellResponses]:
        """Every cell once, however many judges judged it."""
        first = {id(j.answered): j.answered for j in self.judged}
        return list(first.values())


def resolve_exits(vlm: Vlm, exits: Exits) -> tuple[int, ...]:
    """Exits by number. "all" leaves out those that equal the default path.

    Raises:
        ConfigError: An exit is out of range.
    """
    if exits == "default":
        return ()
    if exits == "all":
        return tuple(layer for layer in vlm.distinct_exits if layer != vlm.default_exit)
    assert not isinstance(exits, str)
    for exit_layer in exits:
        check_exit(exit_layer, vlm.num_vision_blocks)
    return tuple(sorted(set(exits)))


def load_suites(plan: AuditPlan) -> tuple[LoadedSuite, ...]:
    """Find out all that can be wrong with suites and judges; needs no model.

    Raises:
        UnknownNameError: No such suite or judge.
        ConfigError: A suite or judge is named twice, or a folder is missing or not wanted.
        DataError: A file, row or image cannot be used.
    """
    specs = [find_suite(suite.name) for suite in plan.suites]
    _refuse_repeated("suite", [spec.name for spec in specs])
    # Two targets of one judge would share a file of verdicts.
    _refuse_repeated("judge", [judge.partition("=")[0].strip() for judge in plan.judges])
    for judge in plan.judges or [spec.default_judge for spec in specs]:
        get_judge(judge)
    loaded = tuple(
        LoadedSuite(suite, spec, tuple(found), found.skips)
        for suite, spec in zip(plan.suites, specs, strict=True)
        for found in (load_suite(suite.name, suite.limit),)
    )
    check_images(sample for suite in loaded for sample in suite.samples)
    return loaded


def _refuse_repeated(kind: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{kind} {twice[0]!r} is named twice. Name every {kind} once.")


def run_audit(
    vlm: Vlm,
    plan: AuditPlan,
    out: Path,
    *,
    arms: Sequence[Arm] = (BASE,),
    suites: Sequence[LoadedSuite] | None = None,
    resume: bool = False,
    shard: Shard | None = None,
    progress: Progress = lambda _what, _done, _total: None,
    command: str = "",
) -> dict[str, Any]:
    """Measure a model and its repaired arms, and write a run folder.

    Everything that can be wrong with the input is found before the first answer is generated.

    Args:
        vlm: The model.
        plan: What to measure.
        out: The run folder.
        arms: What is measured; comparisons are against the first.
        suites: From `load_suites(plan)`, if they are loaded already.
        resume: Go on with an interrupted run of the same plan.
        shard: Answer this share only, and judge and report only if that completes the run.
        progress: Called after every batch as progress(what, done, total).
        command: Command line, for "how to reproduce".

    Returns:
        The contents of `metrics.json`; `metrics.json`, `responses.jsonl` and
        `verdicts.<judge>.jsonl` are in `out`. Empty while other shares are not done.

    Raises:
        VlmendError: Bad input, or a folder that cannot be written.
    """
    _refuse_repeated("arm", [arm.name for arm in arms])
    if suites is None:
        suites = load_suites(plan)
    exits = {suite.spec.name: resolve_exits(vlm, suite.plan.exits) for suite in suites}
    for arm in arms:
        for repair in arm.repairs:
            require_unseen(repair, (sample for suite in suites for sample in suite.samples))
        with arm.applied(vlm):
            pass  # a repair that does not fit this model says so now, not after an hour
    config = _run_config(vlm, plan, suites, arms, exits)
    asked = [a for arm in arms for suite in suites for a in _list_asked(arm, suite, exits)]
    facts = _run_facts(vlm, plan, suites, arms, asked, command)
    settled = {SHARE_UNIT: plan.batch_size or first_batch_size(vlm)}
    open_run = partial(RunFolder.open, out, config, facts, settled=settled)
    settings = EvalSettings(GenerationSettings(plan.max_new_tokens), plan.batch_size)
    samples = [sample for suite in suites for sample in suite.samples]
    if shard is not None:
        with open_run(resume=True, part=shard.part) as folder:
            write_items(folder, samples)
            complete = answer_share(Evaluation(vlm, folder, settings, progress), shard, asked)
        if not complete or is_in_use(out):
            return {}
    with open_run(resume=resume or shard is not None) as folder:
        write_items(folder, samples)
        evaluation = Evaluation(vlm, folder, settings, progress)
        measured = _Measured()
        for arm in arms:
            for suite in suites:
                _measure(evaluation, arm, suite, exits, plan, measured)
        evaluation.finish()
        measured.peaks = read_peaks(out)
        if plan.batch_check:
            check_once(evaluation, samples)
        _measure_flops(evaluation, arms, measured)
        if plan.perplexity:
            _measure_perplexities(evaluation, measured)
        shift = _measure_shifts(evaluation, arms, suites, measured)
        metrics = _metrics(vlm, plan, suites, arms, measured, shift, config, command)
        note_check(metrics, folder.info)
        measure_choices(evaluation, arms, measured.cells).note(metrics)
        metrics["caveats"] += list_skips(metrics["suites"])
        metrics["controls"] = control_records(metrics["comparisons"], arms)
        metrics = replace_nan(metrics)
        write_verdicts(out, measured.judged)
        write_json(out / "metrics.json", metrics)
    return metrics


def _run_facts(
    vlm: Vlm,
    plan: AuditPlan,
    suites: Sequence[LoadedSuite],
    arms: Sequence[Arm],
    asked: Sequence[Asked],
    command: str,
) -> dict[str, Any]:
    """What is worth knowing of a run besides what decides its answers."""
    return {
        "versions": software_versions(),
        "command": command,
        "expected": count_asked(asked),
        # What judging the stored answers again needs to know without the model.
        "title": plan.title,
        "model": model_record(vlm),
        "arms": [arm_record(arm) for arm in arms],
        "sources": {suite.spec.name: absolute_source(suite.plan.name) for suite in suites},
        "labels": {suite.spec.name: hash_labels(suite.samples) for suite in suites},
    }


def _list_asked(arm: Arm, suite: LoadedSuite, exits: Mapping[str, tuple[int, ...]]) -> list[Asked]:
    name = suite.spec.name
    return list_asked(arm, name, suite.samples, exits[name], suite.plan.exit_limit)


def _run_config(
    vlm: Vlm,
    plan: AuditPlan,
    suites: Sequence[LoadedSuite],
    arms: Sequence[Arm],
    exits: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """All that decides the answers; the batch size does not."""
    return {
        "model": vlm.name,
        "weights_sha256": vlm.weights_sha256,
        "arms": {arm.name: [repair.fingerprint for repair in arm.repairs] for arm in arms},
        "suites": {
            suite.spec.name: {
                "items": len(suite.samples),
                "exits": list(exits[suite.spec.name]),
                "exit_limit": suite.plan.exit_limit,
                "sha256": sha256_json([[s.id, describe_prompt(s.messages)] for s in suite.samples]),
            }
            for suite in suites
        },
        "judges": {suite.spec.name: list(_judges(plan, suite)) for suite in suites},
        "generation": asdict(GenerationSettings(plan.max_new_tokens)),
    }


def _judges(plan: AuditPlan, suite: LoadedSuite) -> tuple[str, ...]:
    return plan.judges or (suite.spec.default_judge,)


def _measure(
    evaluation: Evaluation,
    arm: Arm,
    suite: LoadedSuite,
    exits: Mapping[str, tuple[int, ...]],
    plan: AuditPlan,
    measured: _Measured,
) -> None:
    answered = [
        cell
        for a in _list_asked(arm, suite, exits)
        for cell in evaluation.answer(a.arm, a.suite, a.samples, a.exits)
    ]
    for cell in answered:
        for part in split_by_label(cell):
            measured.kinds[part.cell.suite] = suite_kind(suite.spec, part.samples)
            for judge in _judges(plan, suite):
                measured.judged.append(JudgedCell(part, get_judge(judge)))


def _measure_shifts(
    evaluation: Evaluation,
    arms: Sequence[Arm],
    suites: Sequence[LoadedSuite],
    measured: _Measured,
) -> list[dict[str, Any]]:
    """Shift of every suite with images, if an arm has a safety direction to hold it against.

    Only items that the base answered in a way that a group is made of: of others (an error, an
    answer that says nothing) there is nothing to compare.
    """
    repair = next((r for arm in arms for r in arm.repairs if isinstance(r, ShiftDC)), None)
    records: list[dict[str, Any]] = []
    for number, suite in enumerate(suites if repair is not None else (), start=1):
        assert repair is not None
        values = {
            verdict.sample_id: verdict.value
            for name in (suite.spec.name, benign_part(suite.spec.name))
            if (judged := find_cell(measured.judged, arms[0].name, name)) is not None
            for verdict in judged.verdicts
        }
        samples = [
            sample
            for sample in suite.samples
            if len(sample.images) == 1 and values[sample.id] in _SHIFT_GROUPS
        ][:SHIFT_ITEMS]
        if samples:
            groups = {
                group: [s.id for s in samples if values[s.id] == group] for group in _SHIFT_GROUPS
            }
            shift = measure_shift(
                evaluation.vlm,
                {layer: found.vectors[0] for layer, found in repair.directions_.items()},
                samples,
                partial(repair.text_branch, evaluation.vlm),
                # No larger than what the answers fitted into memory with.
                batch_size=evaluation.batch_size,
            )
            records += summarise_shift(shift, groups, suite.spec.name)
        evaluation.progress("modality-induced shift", number, len(suites))
    return records


def _measure_flops(evaluation: Evaluation, arms: Sequence[Arm], measured: _Measured) -> None:
    """FLOPs of every arm on every suite at the default path, from one item each."""
    by_name = {arm.name: arm for arm in arms}
    cells = [cell for cell in measured.cells if cell.cell.exit is None]
    for number, cell in enumerate(cells, start=1):
        arm, settings = by_name[cell.cell.arm], evaluation.settings.generation
        found = estimate_flops(evaluation.vlm, arm, cell, settings)
        measured.flops[arm.name, cell.cell.suite] = found
        evaluation.progress("FLOPs of one answer", number, len(cells))


def _measure_perplexities(evaluation: Evaluation, measured: _Measured) -> None:
    """Perplexity of the answers at the default path, under the model without repairs."""
    cells = [cell for cell in measured.cells if cell.cell.exit is None]
    for number, cell in enumerate(cells, start=1):
        found = measure_coherence(
            evaluation.vlm,
            [sample.messages for sample in cell.samples],
            [response.text for response in cell.responses],
            # No larger than what the answers fitted into memory with.
            batch_size=evaluation.batch_size,
        )
        measured.perplexities[cell.cell] = [entry.perplexity for entry in found]
        evaluation.progress("perplexity of the answers", number, len(cells))


def _metrics(
    vlm: Vlm,
    plan: AuditPlan,
    suites: Sequence[LoadedSuite],
    arms: Sequence[Arm],
    measured: _Measured,
    shift: list[dict[str, Any]],
    config: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    judged = measured.judged
    specs = {
        name: suite.spec
        for suite in suites
        for name in (suite.spec.name, benign_part(suite.spec.name))
    }
    return {
        "schema": SCHEMA,
        "title": plan.title,
        "created": now(),
        "model": model_record(vlm),
        "arms": [arm_record(arm) for arm in arms],
        "suites": _suite_records(suites, measured),
        "judges": judge_records(judged),
        "cells": [
            cell_record(
                j,
                measured.kinds[j.answered.cell.suite],
                measured.perplexities.get(j.answered.cell, ()),
                specs[j.answered.cell.suite],
            )
            for j in judged
        ],
        "comparisons": compare_all(judged, arms[0].name),
        "shift": shift,
        "cost": cost_records(measured.cells, measured.peaks, measured.flops),
        "judging": judging_records(judged),
        "examples": pick_examples(judged),
        "reproduce": {
            "command": command,
            "versions": software_versions(),
            "seeds": {"sampling": 0},
            "settings": config["generation"],
            "hashes": {
                "weights": vlm.weights_sha256,
                **{f"suite {n}": facts["sha256"] for n, facts in config["suites"].items()},
                **{f"arm {n}": " ".join(prints) or "none" for n, prints in config["arms"].items()},
            },
        },
        "caveats": list_caveats(
            {j.judge.name for j in judged},
            [suite.spec.name for suite in suites],
            set(measured.kinds.values()),
            [
                suite.spec.name
                for suite in suites
                if suite.plan.exits != "default" and not any(s.images for s in suite.samples)
            ],
        ),
    }


def _suite_records(suites: Sequence[LoadedSuite], measured: _Measured) -> list[dict[str, Any]]:
    sizes = {cell.cell.suite: len(cell.samples) for cell in reversed(measured.cells)}
    return [
        suite_record(suite.spec, name, kind, sizes[name], suite.skips)
        for suite in suites
        for name, kind in measured.kinds.items()
        if name in (suite.spec.name, benign_part(suite.spec.name))
    ]
