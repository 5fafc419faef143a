"""A run in the layout of lmms-eval's `--log_samples`.

For every cell (arm, suite, exit) a task, and for every task `<date>_samples_<task>.jsonl` in a
folder named after the model, beside `<date>_results.json`. A line has what lmms-eval writes:
`doc_id` (place of the item in its suite), `doc_hash`, `input`, `target`, `filtered_resps`, and
the metrics of the sample: one entry per judge.

Reference: EvolvingLMMs-Lab/lmms-eval, `lmms_eval/loggers/evaluation_tracker.py` and
`lmms_eval/evaluator.py` (`save_results_samples`: `resps` equal to `filtered_resps` are left out).

A rate of a task that was not judged completely is left out of the results, as it is withheld
everywhere.

Deviation 1: `input` is the whole prompt with pictures as "[image SHA-256]"; lmms-eval writes the
text with its own image placeholder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmend.evals.export_rows import CellKey, ExportedAnswer, ExportedRun
from vlmend.runs import JsonLines, write_json


def write_lmms_eval(run: ExportedRun, out: Path) -> list[Path]:
    """Write the files.

    Args:
        run: The run.
        out: The folder that lmms-eval calls its output path.

    Returns:
        The results file and the files of samples.

    Raises:
        RunError: A file cannot be written.
    """
    folder = out / re.sub(r"[\"<>:/\\|?*\[\]]+", "__", run.model)
    date = str(run.info["started"])[:19].replace(":", "-")
    tasks = {task_name(key): (key, answers) for key, answers in run.cells().items()}
    hashes: dict[str, str] = {}
    written: list[Path] = []
    for task, (_, answers) in tasks.items():
        rows = [_sample(place, answer) for place, answer in enumerate(answers)]
        path = folder / f"{date}_samples_{task}.jsonl"
        JsonLines(path).replace(rows)
        hashes[task] = _sha256("".join(f"sample_{i}{r['doc_hash']}" for i, r in enumerate(rows)))
        written.append(path)
    results = folder / f"{date}_results.json"
    write_json(results, _results(run, tasks, hashes))
    return [results, *written]


def task_name(key: CellKey) -> str:
    """Name of a cell as a task: the suite, the arm, and the exit if there is one.

    Example:
        >>> task_name(("base", "figstep", None)), task_name(("no image", "organism/icon", 3))
        ('figstep__base', 'organism_icon__no_image__exit_3')
    """
    arm, suite, exit_layer = key
    parts = [suite, arm, *([] if exit_layer is None else [f"exit {exit_layer}"])]
    return "__".join(re.sub(r"\W", "_", part) for part in parts)


def _sample(place: int, answer: ExportedAnswer) -> dict[str, Any]:
    item = answer.item
    doc = {"id": answer.sample_id, **{key: item[key] for key in ("label", "meta") if key in item}}
    return {
        "doc_id": place,
        "target": str(item.get("reference") or ""),
        "filtered_resps": [answer.response["text"]],
        "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        **{judge: _metric(answer, judge) for judge in answer.verdicts},
        "input": answer.prompt,
    }


def _metric(answer: ExportedAnswer, judge: str) -> dict[str, Any]:
    verdict = answer.verdicts[judge]
    return {
        "sample_id": answer.sample_id,
        "verdict": verdict.value,
        "reason": verdict.reason,
        "score": verdict.score,
        "label": answer.item.get("label"),
    }


def _results(
    run: ExportedRun,
    tasks: Mapping[str, tuple[CellKey, Sequence[ExportedAnswer]]],
    hashes: Mapping[str, str],
) -> dict[str, Any]:
    config: Mapping[str, Any] = run.info.get("config", {})
    results: dict[str, dict[str, Any]] = {}
    for task, (key, _) in tasks.items():
        results[task] = {"alias": task}
        for cell in run.rates(key):
            part = "" if cell["suite"] == key[1] else "benign_"
            for rate in ("asr", "refusal_rate"):
                results[task][f"{part}{rate},{cell['judge']}"] = cell[rate]
    return {
        "results": results,
        "configs": {
            task: {"task": task, "generation_kwargs": config.get("generation", {})}
            for task in tasks
        },
        "n-samples": {
            task: {"original": len(answers), "effective": len(answers)}
            for task, (_, answers) in tasks.items()
        },
        "config": {"model": "vlmend", "model_args": f"pretrained={run.model}"},
        "model_name": run.model,
        "task_hashes": dict(hashes),
        "versions": run.info.get("versions", {}),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
