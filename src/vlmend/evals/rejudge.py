"""Judge stored answers again, by other judges, without generating and without the model.

A run folder holds what was answered, and says which items were asked and from where they came.
The items are loaded again and held against the run's hash, the answers are judged (those that a
judge in the same revision has judged before are not judged again), and `metrics.json` is made
anew. Of a run that is not finished, what is there is judged.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from vlmend.errors import ConfigError
from vlmend.evals.caveats import list_caveats, list_skips
from vlmend.evals.choices import kept_choices, with_choices
from vlmend.evals.control_arms import read_controls
from vlmend.evals.metrics import (
    SCHEMA,
    JudgedCell,
    Spent,
    benign_part,
    cell_record,
    compare_all,
    cost_records,
    judge_records,
    judging_records,
    now,
    pick_examples,
    replace_nan,
    suite_kind,
    suite_record,
)
from vlmend.evals.reloaded_run import ReloadedRun
from vlmend.evals.run import Cell, CellResponses
from vlmend.evals.run import Progress as Report
from vlmend.evals.stored import read_peaks
from vlmend.evals.verdict_files import (
    Place,
    read_verdicts,
    unfinished_file,
    verdict_row,
    write_verdicts,
)
from vlmend.judges.registry import (
    Judge,
    Prepared,
    describe_judge,
    get_judge,
    judge_responses,
)
from vlmend.runs import read_json, write_json
from vlmend.suites.registry import SuiteSpec
from vlmend.types import Response, Sample, Verdict, VerdictValue

_FIRST_CHUNK = 32
"""Answers judged before the first are stored: what a crash may cost of a slow judge."""

_LARGEST_CHUNK = 4_096

_CHUNK_S = 1.0
"""Chunks grow until one takes that long: storing must not cost more than judging."""


@dataclass(frozen=True, slots=True)
class PastJudge:
    """A judge of which only stored verdicts are at hand.

    Attributes:
        name: Its name.
        revision: Its revision when it judged.
        prompt_sha256: Hash of its prompt then.
        description: What it decides.
    """

    name: str
    revision: str
    prompt_sha256: str = ""
    description: str = ""

    def judge(self, sample: Sample, text: str) -> tuple[VerdictValue, str]:
        """Refuse: it can judge nothing new.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"of judge {self.name!r} only stored verdicts are here. Name it with --judge to judge "
            f"{sample.id!r}."
        )


def choose_judges(run: ReloadedRun, names: Sequence[str]) -> list[Judge]:
    """The judges that were asked for, or those that the run was started with.

    Args:
        run: The run.
        names: "NAME" or "NAME=TARGET"; none for the run's own.

    Raises:
        UnknownNameError: No such judge.
        ConfigError: A judge is named twice, or its target is missing.
    """
    judges = [get_judge(name) for name in names or run.default_judges]
    found = [judge.name for judge in judges]
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ConfigError(
            f"judge {twice[0]!r} is named twice. Name every judge once: its verdicts are stored "
            "by its name, whatever its target is."
        )
    return judges


def judge_run(
    run: ReloadedRun,
    judges: Sequence[Judge],
    progress: Report = lambda _what, _done, _total: None,
) -> list[JudgedCell]:
    """Judge everything that is there by every judge, and write `verdicts.<judge>.jsonl`.

    Verdicts are stored while a judge judges, so that after Ctrl-C or a crash the same call goes
    on. Those that are there already, of the same revision and prompt, are used again; unscored
    ones are asked for again, because what kept a judge from judging may have passed.

    Args:
        run: The run; no other process may be at work in its folder (`runs.hold_folder`).
        judges: From `choose_judges`.
        progress: Called after every chunk as progress(what, done, total).

    Returns:
        Every cell once per judge.

    Raises:
        VlmendError: A judge cannot judge at all, or the folder cannot be written.
    """
    judged: list[JudgedCell] = []
    for judge in judges:
        if isinstance(judge, Prepared):
            judge.prepare()  # Only then the revision is known.
        known, seconds = _judge_missing(run, judge, progress)
        found: list[JudgedCell] = []
        for cell in run.cells:
            # Taken out: arms with the same repairs share answers, which were judged once.
            own = [seconds.pop(place) for place in _places(cell) if place in seconds]
            verdicts = [known[place] for place in _places(cell)]
            found.append(JudgedCell(cell, judge, verdicts, Spent(len(own), sum(own))))
        write_verdicts(run.path, found)
        judged += found
    return judged


def _places(cell: CellResponses) -> list[Place]:
    return [(response.id, response.sample_id) for response in cell.responses]


def _judge_missing(
    run: ReloadedRun, judge: Judge, progress: Report
) -> tuple[dict[Place, Verdict], dict[Place, float]]:
    """Verdicts on all answers; those that were missing are stored as they come.

    Returns:
        The verdicts, and of those that were missing their shares of the wall time.
    """
    scored = {
        place: v for place, v in read_verdicts(run.path, judge).items() if v.value != "unscored"
    }
    todo: dict[Place, tuple[Sample, Response, Cell]] = {
        (response.id, sample.id): (sample, response, cell.cell)
        for cell in run.cells
        for sample, response in zip(cell.samples, cell.responses, strict=True)
        if (response.id, sample.id) not in scored
    }
    total = len(scored) + len(todo)
    progress(f"judge {judge.name}", total - len(todo), total)
    facts, file = describe_judge(judge), unfinished_file(run.path, judge.name)
    seconds: dict[Place, float] = {}
    waiting, size = list(todo.values()), _FIRST_CHUNK
    while waiting:
        chunk, waiting = waiting[:size], waiting[size:]
        started = time.monotonic()
        verdicts = judge_responses(judge, [(sample, response) for sample, response, _ in chunk])
        share = (time.monotonic() - started) / len(chunk)
        seconds |= {(v.response_id, v.sample_id): share for v in verdicts}
        file.append(
            verdict_row(verdict, at, sample, facts)
            for verdict, (sample, _, at) in zip(verdicts, chunk, strict=True)
        )
        scored |= {(v.response_id, v.sample_id): v for v in verdicts}
        if time.monotonic() - started < _CHUNK_S:
            size = min(2 * size, _LARGEST_CHUNK)
        progress(f"judge {judge.name}", total - len(waiting), total)
    return scored, seconds


# ---- metrics


def earlier_cells(run: ReloadedRun, judges: Sequence[Judge]) -> tuple[list[JudgedCell], list[str]]:
    """Cells by the judges of `metrics.json` that do not judge now, from their stored verdicts.

    Args:
        run: The run.
        judges: Who judges now.

    Returns:
        The cells of which a judge has judged every answer, and the names of the judges that have
        judged only some of what is there: their numbers would be of other answers.
    """
    if not (run.path / "metrics.json").is_file():
        return [], []
    names = {judge.name for judge in judges}
    old = read_json(run.path / "metrics.json")
    found: list[JudgedCell] = []
    partly: list[str] = []
    for record in old.get("judges", []):
        if record["name"] in names:
            continue
        facts = {key: record.get(key, "") for key in PastJudge.__dataclass_fields__}
        verdicts, judge = read_verdicts(run.path, facts), PastJudge(**facts)
        whole = [cell for cell in run.cells if verdicts.keys() >= set(_places(cell))]
        found += [JudgedCell(c, judge, [verdicts[p] for p in _places(c)]) for c in whole]
        judged = {
            (cell["arm"], cell["suite"], cell["exit"])
            for cell in old["cells"]
            if cell["judge"] == judge.name
        }
        if judged - {(c.cell.arm, c.cell.suite, c.cell.exit) for c in whole}:
            partly.append(judge.name)
    return found, partly


def remake_metrics(
    run: ReloadedRun, judged: Sequence[JudgedCell], more: Mapping[str, Any], command: str = ""
) -> dict[str, Any]:
    """Write `metrics.json` anew from judged cells; what no judge decides stays as it was.

    Args:
        run: The run.
        judged: Cells of all judges that it is to show.
        more: Further entries: agreement, calibration ...
        command: Command line, for "how to reproduce".

    Raises:
        RunError: The file cannot be written.
    """
    path = run.path / "metrics.json"
    old = read_json(path) if path.is_file() else _start_metrics(run)
    specs = {suite.spec.name: suite.spec for suite in run.suites}
    specs |= {benign_part(name): spec for name, spec in specs.items()}
    kinds = {
        cell.cell.suite: suite_kind(specs[cell.cell.suite], cell.samples) for cell in run.cells
    }
    kept = {(cell["arm"], cell["suite"], cell["exit"]): cell for cell in old.get("cells", [])}
    records: list[dict[str, Any]] = []
    for cell in judged:
        at = cell.answered.cell
        record = cell_record(cell, kinds[at.suite], spec=specs[at.suite])
        records.append(_keep(record, kept.get((at.arm, at.suite, at.exit), {})))
    comparisons = compare_all(judged, next(iter(run.info["config"]["arms"])))
    controls = {found["arm"]: found["control"] for found in old.get("controls") or []}
    notes = list_caveats({c.judge.name for c in judged}, specs, set(kinds.values()))
    suites = _suite_records(run, specs, kinds, old.get("suites", []))
    notes += list_skips(suites)
    metrics = {
        **old,
        "created": now(),
        "suites": suites,
        "judges": judge_records(judged, old.get("judges", [])),
        "cost": _count_cost(run, old.get("cost", [])),
        "judging": judging_records(judged, old.get("judging", [])),
        "cells": records,
        "comparisons": comparisons,
        "controls": read_controls(comparisons, controls),
        "examples": pick_examples(judged),
        "caveats": list(dict.fromkeys([*_unfinished_notes(run), *_own_notes(old), *notes])),
        "reproduce": {**old["reproduce"], "judged_by": command},
        **more,
    }
    metrics = cast("dict[str, Any]", replace_nan(metrics))
    write_json(path, metrics)
    return metrics


def _suite_records(
    run: ReloadedRun,
    specs: Mapping[str, SuiteSpec],
    kinds: Mapping[str, str],
    old: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Entries of `suites`; what was left out stays, because only the run knows all of it."""
    answered = _answered_counts(run)
    skips = {suite.spec.name: suite.skips for suite in run.suites}
    known = {row["name"]: {"skipped": row["skipped"]} for row in old if "skipped" in row}
    return [
        suite_record(specs[name], name, kind, answered[name], skips.get(name, ()))
        | known.get(name, {})
        for name, kind in kinds.items()
    ]


def _count_cost(run: ReloadedRun, old: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the answers took, which is the generating run's: judging adds nothing to it.

    FLOPs are counted with the model when the run ends; they stay with the answers that they were
    counted for, and are not known of others.
    """
    before = {(row["arm"], row["suite"], row["exit"]): row for row in old}
    records = cost_records(run.cells, read_peaks(run.path), {})
    for record in records:
        row = before.get((record["arm"], record["suite"], record["exit"]), {})
        if all(row.get(key) == record[key] for key in ("items", "prompt_tokens", "new_tokens")):
            record |= {key: row.get(key) for key in ("flops", "flops_method")}
            if record["peak_memory_bytes"] is None:  # of a version that did not store it
                record["peak_memory_bytes"] = row.get("peak_memory_bytes")
    return records


def _keep(record: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """A cell with what no judge decides and only the model could tell again."""
    if "median_perplexity" in old:
        record = {**record, "median_perplexity": old["median_perplexity"]}
    return with_choices(record, kept_choices(old))


_UNFINISHED = "This run is not finished: "


def _unfinished_notes(run: ReloadedRun) -> list[str]:
    if run.progress.finished:
        return []
    return [f"{_UNFINISHED}{run.progress.describe()}. FLOPs are counted when it ends."]


def _own_notes(metrics: Mapping[str, Any]) -> list[str]:
    """Notes of the run itself, without what an earlier judging said of its progress."""
    return [n for n in metrics.get("caveats", []) if not n.startswith(_UNFINISHED)]


def _answered_counts(run: ReloadedRun) -> dict[str, int]:
    """Items of a suite that an arm was asked: the most that one has answered so far."""
    counts: dict[str, int] = {}
    for cell in run.cells:
        counts[cell.cell.suite] = max(counts.get(cell.cell.suite, 0), len(cell.samples))
    return counts


def _start_metrics(run: ReloadedRun) -> dict[str, Any]:
    """What no judge decides, for a run that has not ended well yet."""
    config: Mapping[str, Any] = run.info["config"]
    model = {"name": config.get("model"), "weights_sha256": config.get("weights_sha256")}
    arms = [{"name": name, "repairs": [], "description": name} for name in config["arms"]]
    return {
        "schema": SCHEMA,
        "title": run.info.get("title", f"Safety audit of {config.get('model')}"),
        "model": run.info.get("model", model),
        "arms": run.info.get("arms", arms),
        "shift": [],
        "reproduce": {
            "command": run.info.get("command", ""),
            "versions": run.info.get("versions", {}),
            "seeds": {"sampling": 0},
            "settings": config.get("generation", {}),
            "hashes": {
                "weights": str(config.get("weights_sha256")),
                **{f"suite {n}": facts["sha256"] for n, facts in config["suites"].items()},
                **{f"arm {n}": " ".join(prints) or "none" for n, prints in config["arms"].items()},
            },
        },
    }
